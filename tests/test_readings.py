"""What is read off the vocabulary in every layer, against plain modules."""

import numpy as np
import pytest
import torch
from helpers.oracle import blocks, outside
from helpers.recall_cases import (
    SUBJECTS,
    span_of,
    states,
    unembedding,
    writer,
)
from helpers.tiny import (
    FAMILIES,
    N_LAYERS,
    hooked_pair,
    plain_pair,
    tokenizer,
)

from ecstruct import InputError, Prompt
from ecstruct.recall.layer_readings import readings

PARTS = ("attention", "mlp")


@pytest.mark.usefixtures("double_everywhere")
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_readings_are_those_of_plain_modules(family, normed):
    plain, model = plain_pair(family)[0], hooked_pair(family)[0]
    found = readings(model, SUBJECTS, token="answer", normed=normed, top=4, progress=False)
    norm, words = outside(plain)["ln_final"], tokenizer().convert_ids_to_tokens
    for i, prompt in enumerate(SUBJECTS):
        seen = {part: [] for part in PARTS}
        watch = [
            (writer(block, part), "output", lambda y, its=seen[part]: its.append(y[0, -1]) or y)
            for block in blocks(plain)
            for part in PARTS
        ]
        hidden, final = states(plain, prompt, watch)
        seen["subject"] = [state[span_of(prompt)[-1]] for state in hidden]
        answer = tokenizer().convert_tokens_to_ids(prompt.answer.split()[0])
        for layer in range(N_LAYERS):
            with torch.no_grad():
                logits = {
                    name: unembedding(plain) @ (norm(its[layer]) if normed else its[layer])
                    for name, its in seen.items()
                }
                # A soft cap keeps the order, but not the probabilities.
                logits["last"] = outside(plain)["unembed"](norm(hidden[layer][-1]))
            cap = getattr(plain.config, "final_logit_softcapping", None)
            if cap:
                logits["last"] = cap * torch.tanh(logits["last"] / cap)
            for name, its in logits.items():
                order = its.argsort(descending=True)
                one = found.sel(reading=name, prompt=i, layer=layer)
                assert int(one["rank"]) == order.tolist().index(answer)
                assert one["top_tokens"].values.tolist() == words(order[:4].tolist())
            p = logits["last"].softmax(-1)
            one = found.sel(prompt=i, layer=layer)
            np.testing.assert_allclose(
                [one["probability"], one["top_probability"]], [p[answer], p.max()], rtol=1e-6
            )
        np.testing.assert_allclose(p[answer], final.softmax(-1)[answer], rtol=1e-6)


def test_readings_without_subjects_and_of_one_kind():
    model = hooked_pair("llama")[0]
    bare = [Prompt("people that Ada knows speak", "Dutch")]
    assert readings(model, bare, progress=False)["reading"].values.tolist() == ["attention", "mlp", "last"]
    assert readings(model, bare, which=["last"], progress=False).sizes["reading"] == 1
    for options, complaint in (
        ({"top": 0}, "top=0"),
        ({"which": ["all"]}, "which="),
        ({"token": "first"}, "token='first'"),
    ):
        with pytest.raises(InputError, match=complaint):
            readings(model, bare, progress=False, **options)
