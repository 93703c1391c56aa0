"""Knockouts against plain Hugging Face models with edited attention masks, one forward pass each."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny
from helpers.oracle import outside
from helpers.recall_cases import SUBJECTS, masked, parts_of, states
from helpers.tiny import (
    N_LENGTHS,
    NAMES,
    OTHERS,
    SHAPES,
    assert_unchanged,
    hooked,
    hooked_pair,
    plain_pair,
    state_of,
)
from torch import Tensor
from transformers import PreTrainedModel

from ecstruct import InputError, Prompt, mean_rank, recall
from ecstruct.engine import plan
from ecstruct.recall import attention_knockout, copies

N_LAYERS = tiny.N_LAYERS

pytestmark = pytest.mark.usefixtures("double_everywhere")


def probabilities(plain: PreTrainedModel, text: str) -> Tensor:
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        return plain(input_ids=ids, use_cache=False).logits[0, -1].double().softmax(-1)


def slowly(plain: PreTrainedModel, prompt: Prompt, into: Sequence[int], sources: Sequence[int], size: int):
    """Percent by layer, one whole forward pass each."""
    p = probabilities(plain, prompt.text)
    token, found = p.argmax(), []
    for layer in range(N_LAYERS):
        start, stop = max(0, layer - size // 2), min(N_LAYERS, layer + -(-size // 2))
        with masked(plain, range(start, stop), into, sources):
            found.append(float(100 * (probabilities(plain, prompt.text)[token] / p[token] - 1)))
    return found


def never(*_args: object) -> None:
    raise AssertionError("this model can read packed prompts")


@pytest.mark.parametrize(
    ("family", "size"),
    [*((family, 2) for family in (*SHAPES, *OTHERS)), ("gemma2", 1), ("gpt2", 3)],
)
def test_is_what_masked_attention_gives(family: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "Stacked", never)
    plain, _ = plain_pair(family)
    groups = {name: name for name in ("subject", "non-subject", "last", "subject-last")} | {"third": 2}
    found = recall.knockout(hooked_pair(family)[0], SUBJECTS, window=size, groups=groups, progress=False)
    assert found.dims == ("prompt", "group", "layer")
    for i, prompt in enumerate(SUBJECTS[:N_LENGTHS]):
        parts = parts_of(prompt)
        for group in groups:
            expected = slowly(plain, prompt, parts["last"], parts[group], size)
            np.testing.assert_allclose(found.sel(prompt=i, group=group), expected, rtol=1e-8, atol=1e-8)
        p = probabilities(plain, prompt.text)
        assert float(found["probability"][i]) == pytest.approx(float(p.max()), rel=1e-10)
        assert found["token"][i] == tiny.tokenizer().convert_ids_to_tokens(int(p.argmax()))


@pytest.mark.parametrize(
    ("family", "destination", "sources"),
    [
        *(("gemma2", "subject", "non-subject"), ("neox", "non-subject", "subject")),
        *(("olmo-clip", "subject-last", "third"), ("gpt2", "all", "subject")),
    ],
)
def test_into_other_tokens(
    family: str, destination: str, sources: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "Stacked", never)
    groups = {"these": 2 if sources == "third" else sources}
    prompts = SUBJECTS
    if destination == "all":  # but those of the subject, which would see themselves no more
        groups, prompts = {"these": slice(3, 4)}, SUBJECTS[1:3]
    model = hooked_pair(family)[0]
    found = recall.knockout(
        model, prompts, window=2, groups=groups, destination=destination, progress=False
    )
    for i, prompt in enumerate(prompts):
        parts = parts_of(prompt) | {"all": list(range(parts_of(prompt)["last"][0] + 1))}
        these = [3] if destination == "all" else parts[sources]
        expected = slowly(plain_pair(family)[0], prompt, parts[destination], these, 2)
        np.testing.assert_allclose(found.sel(prompt=i, group="these"), expected, rtol=1e-8, atol=1e-8)


def relative(family: str) -> PreTrainedModel:
    """Positions are distances in the row, which no packing can know."""
    shared = {
        "vocab_size": len(tiny.tokenizer()),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if family == "bloom":
        plain = hf.BloomForCausalLM(hf.BloomConfig(**shared, hidden_size=32, n_layer=N_LAYERS, n_head=4))
    else:
        config = hf.MptConfig(**shared, d_model=32, n_heads=4, n_layers=N_LAYERS, max_seq_len=32)
        plain = hf.MptForCausalLM(config)
    return tiny.fill(plain.double().eval())


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_models_that_cannot_read_packed_prompts(family: str) -> None:
    plain = relative(family)
    model = hooked(plain)
    for destination in ("last", "subject"):
        groups = ["non-subject"] if destination == "subject" else ["subject", "last"]
        found = recall.knockout(
            model, SUBJECTS, window=2, groups=groups, destination=destination, progress=False
        )
        for i, prompt in enumerate(SUBJECTS):
            parts = parts_of(prompt)
            for group in groups:
                expected = slowly(plain, prompt, parts[destination], parts[group], 2)
                np.testing.assert_allclose(found.sel(prompt=i, group=group), expected, rtol=1e-8, atol=1e-8)


def test_all_layers_and_sources_take_away_all_influence() -> None:
    model, _ = hooked_pair("gemma2")
    other = Prompt("Zulu Dutch Thai Ada Old Roy speak", "Dutch")
    one = Prompt("people that Bo Li knows Di speak", "Dutch")
    rest = {"rest": slice(0, -1), "most": slice(1, -1)}
    options = {"window": N_LAYERS, "groups": rest, "token": "answer", "progress": False}
    found = recall.knockout(model, [one, other], **options)
    p = found["probability"] * (1 + found / 100)
    # The middle window has all layers, those at the ends are cut off.
    rest, most = p.sel(group="rest", layer=1), p.sel(group="most", layer=1)
    assert float(rest[0]) == pytest.approx(float(rest[1]), rel=1e-9)
    assert abs(float(most[0] / most[1]) - 1) < 1e-9  # both begin with the same token
    assert abs(float(p.sel(group="rest", layer=0)[0] / p.sel(group="rest", layer=0)[1]) - 1) > 1e-3


def test_what_is_not_seen_anyway_changes_nothing() -> None:
    model, _ = hooked_pair("gemma3")  # the first layer sees 4 tokens
    found = recall.knockout(model, SUBJECTS, window=1, groups={"first": 0}, progress=False)
    assert np.abs(found.sel(layer=0)).max() < 1e-10 < np.abs(found.sel(layer=1)).min()


@pytest.mark.parametrize("token", ["predicted", "answer"])
def test_prompts_do_not_depend_on_others(token: str) -> None:
    model, _ = hooked_pair("gpt2")
    together = recall.knockout(model, SUBJECTS, window=2, token=token, progress=False)
    for i, prompt in enumerate(SUBJECTS):
        alone = recall.knockout(model, [prompt], window=2, token=token, progress=False)
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-9, atol=1e-9)
        assert alone["token"].item() == together["token"][i].item()
    if token == "answer":
        assert together["token"].values.tolist() == ["Dutch", "Old", "Thai", "Zulu", "Dutch"]


def test_pieces_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = hooked_pair("qwen2")
    options = {"window": 2, "groups": ["non-subject"], "destination": "subject", "progress": False}
    expected = recall.knockout(model, SUBJECTS, **options)
    monkeypatch.setattr(copies, "TOKENS_PER_ROW", 1)
    monkeypatch.setattr(plan, "TOKENS_PER_BATCH", 1)
    monkeypatch.setattr(attention_knockout, "LOGITS", 1)
    np.testing.assert_allclose(recall.knockout(model, SUBJECTS, **options), expected, rtol=1e-9)


def test_tokens_of_one_prompt() -> None:
    model, _ = hooked_pair("llama")
    found = recall.knockout_tokens(model, SUBJECTS[2], window=2, progress=False)
    groups = {"subject": slice(3, 6), "Cy": 3, "last": -1}
    expected = recall.knockout(model, [SUBJECTS[2]], window=2, groups=groups, progress=False)
    name = ("Cy", "de", "Wit")
    assert found.dims == ("token", "layer")
    assert found["token_text"].values.tolist() == [
        "<bos>",
        "people",
        "that",
        "Cy",
        "de",
        "Wit",
        "knows",
        "speak",
    ]
    np.testing.assert_allclose(found.sel(token=3), expected.sel(group="Cy")[0], rtol=1e-9)
    np.testing.assert_allclose(found[-1], expected.sel(group="last")[0], rtol=1e-9)
    hidden, _ = states(plain_pair("llama")[0], SUBJECTS[2])
    norm, unembed = (outside(plain_pair("llama")[0])[name] for name in ("ln_final", "unembed"))
    p, top = unembed(norm(torch.stack([h[-1] for h in hidden]))).softmax(-1).max(-1)
    assert found["lens"].values.tolist() == tiny.tokenizer().convert_ids_to_tokens(top.tolist())
    np.testing.assert_allclose(found["lens_probability"], p.detach(), rtol=1e-9)
    into_subject = recall.knockout_tokens(
        model, SUBJECTS[2], window=2, destination="subject-last", progress=False
    )
    assert into_subject["token_text"].values.tolist() == ["<bos>", "people", "that", *name]


@pytest.mark.parametrize("family", ["gpt2", "olmo2"])
def test_recall_leaves_the_model_as_it_was(family: str) -> None:
    model, quiet = tiny.hooked(plain_pair(family)[0]), {"progress": False}
    mean_rank(model, SUBJECTS)  # blocks get hooks of their own in the first run
    model.train()
    state, its = state_of(model), recall.Attributes.from_facts(SUBJECTS, model)
    looked_at = {"top": 12, "kept": 4, **quiet}
    for run in (
        lambda: recall.knockout(model, SUBJECTS, window=2, **quiet),
        lambda: recall.extraction(model, SUBJECTS, blocked=["subject"], patched=[1], **quiet),
        lambda: recall.readings(model, SUBJECTS, **quiet),
        lambda: recall.attributes_rate(model, SUBJECTS, its, normed=True, **looked_at),
        lambda: recall.sublayer_knockout(model, SUBJECTS, its, **looked_at),
        lambda: recall.sublayer_knockout(model, SUBJECTS, its, mode="uniform", **looked_at),
        lambda: recall.extraction_heads(model, SUBJECTS, its, **quiet),
    ):
        run()
        assert_unchanged(model, state)
    with pytest.raises(InputError):
        recall.knockout(model, SUBJECTS, window=2, groups={"all": slice(None)}, **quiet)
    assert_unchanged(model, state)


def test_says_what_it_takes_to_run_it_again() -> None:
    model, _ = hooked_pair("llama")
    found = recall.knockout(
        model,
        SUBJECTS,
        window=2,
        groups={"a": slice(0, 2), "b": [1, -1]},
        destination="last",
        progress=False,
    )
    assert found.attrs["options"] == {
        "window": 2,
        "groups": {"a": {"slice": [0, 2, None]}, "b": [1, -1]},
        "destination": "last",
        "token": "predicted",
    }
    assert found["subject"].values.tolist() == list(NAMES)
    assert [*found["first_layer"].values, *found["last_layer"].values] == [0, 0, 1, 0, 1, 2]
    assert len(found.attrs["model"]["fingerprint"]) == 32
