"""Extraction events, also with blocked edges and patched subjects, against what plain modules write."""

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.oracle import blocks, ids_of, outside
from helpers.recall_cases import (
    SUBJECTS,
    Replace,
    blocking_mask,
    layers_of,
    masked,
    parts_of,
    span_of,
    states,
    unembedding,
    writer,
)
from helpers.tiny import (
    N_LAYERS,
    SHAPES,
    hooked_pair,
    plain_pair,
    tokenizer,
)

import ecstruct
from ecstruct import InputError, Prompt
from ecstruct.organism import World
from ecstruct.recall import extraction_events, vocabulary
from ecstruct.recall.extraction_events import (
    extracted,
    extracting_layers,
    extraction,
    extraction_rate,
    first_extraction,
    patch_layers,
)

PARTS = ("attention", "mlp")
WORDS = [w for w in tokenizer().get_vocab() if not w.startswith("<")]
ASKED = [Prompt(p.text, word, subject=p.subject) for p in SUBJECTS for word in WORDS]
"""Every prompt with every word as its answer: events of answers say which token is the largest."""


def largest(plain, prompt, edits=(), norm=lambda y: y, **kwargs) -> dict[str, list[int]]:
    """By part, the token that each layer writes most of at the last position."""
    seen = {part: [] for part in PARTS}
    watch = [
        (writer(block, part), "output", lambda y, part=part: seen[part].append(y[0, -1]) or y)
        for block in blocks(plain)
        for part in PARTS
    ]
    states(plain, prompt, [*edits, *watch], **kwargs)
    return {part: [int((unembedding(plain) @ norm(y)).argmax()) for y in its] for part, its in seen.items()}


def staying(at: list[int]) -> Replace:
    """What enters a layer with these positions as they were when it was first called."""
    first: list[torch.Tensor] = []

    def patch(entering: torch.Tensor) -> torch.Tensor:
        first.append(entering.clone())
        entering = entering.clone()
        entering[:, at] = first[0][:, at]
        return entering

    return patch


def assert_events_are(found: xr.Dataset, condition: str, expected: list[dict[str, list[int]]]) -> None:
    for part in PARTS:
        events = found[part].sel(condition=condition).values.reshape(len(SUBJECTS), len(WORDS), N_LAYERS)
        ids = tokenizer().convert_tokens_to_ids(WORDS)
        for i, by_part in enumerate(expected):
            is_largest = np.array(by_part[part])[None] == np.array(ids)[:, None]
            np.testing.assert_array_equal(events[i], is_largest)
        assert events.any(axis=1).mean() > 0.5  # the rest is not a word


@cache
def found_in(family: str) -> xr.Dataset:
    return extraction(
        hooked_pair(family)[0],
        ASKED,
        blocked=("subject", "non-subject", "last"),
        patched=(0, 1),
        token="answer",
        progress=False,
    )


@pytest.mark.parametrize("family", SHAPES)
def test_events_are_what_hooks_see(family):
    plain = plain_pair(family)[0]
    assert_events_are(found_in(family), "none", [largest(plain, p) for p in SUBJECTS])


@pytest.mark.parametrize("family", SHAPES)
def test_blocked_edges_are_those_of_an_explicit_mask(family):
    plain, found = plain_pair(family)[0], found_in(family)
    groups = {
        "subject": lambda span, n: list(span),
        "non-subject": lambda span, n: [i for i in range(n - 1) if i not in span],
        "last": lambda span, n: [n - 1],
    }
    unlike = 0
    for name, positions in groups.items():
        expected = []
        for prompt in SUBJECTS:
            n = ids_of(prompt).shape[1]
            mask = blocking_mask(plain, n, positions(span_of(prompt), n))
            expected.append(largest(plain, prompt, attention_mask=mask))
        assert_events_are(found, f"blocked {name}", expected)
        unlike += sum(e != largest(plain, p) for e, p in zip(expected, SUBJECTS, strict=True))
    assert unlike > 0


@pytest.mark.parametrize("family", SHAPES)
def test_patched_subjects_stay_as_they_enter_a_layer(family):
    plain, found = plain_pair(family)[0], found_in(family)
    for layer in (0, 1):
        expected = []
        for prompt in SUBJECTS:
            patch = staying(list(span_of(prompt)))
            edits = [(module, "input", patch) for module in layers_of(plain)[layer:]]
            expected.append(largest(plain, prompt, edits))
        assert_events_are(found, f"patched subject from {layer}", expected)


@pytest.mark.parametrize("family", SHAPES)
def test_other_tokens_stay_as_they_enter_a_layer_too(family):
    plain, groups = plain_pair(family)[0], ("non-subject", "last")
    options = {"patched": [1], "patched_groups": groups, "token": "answer", "progress": False}
    found = extraction(hooked_pair(family)[0], ASKED, **options)
    for group in groups:
        expected = []
        for prompt in SUBJECTS:
            patch = staying(parts_of(prompt)[group])
            edits = [(module, "input", patch) for module in layers_of(plain)[1:]]
            expected.append(largest(plain, prompt, edits))
        assert_events_are(found, f"patched {group} from 1", expected)


@pytest.mark.parametrize("family", SHAPES)
def test_local_interventions_change_one_layer_alone(family):
    plain, blocked = plain_pair(family)[0], ("first", "all-but-subject-last", "subject-last+last")
    options = {"blocked": blocked, "patched": [0], "local": True, "token": "answer", "progress": False}
    found = extraction(hooked_pair(family)[0], ASKED, **options)
    conditions = {f"blocked {name}": [] for name in blocked} | {"patched subject from 0": []}
    for prompt in SUBJECTS:
        parts = parts_of(prompt)
        everything, (last,) = {*range(parts["last"][0] + 1)}, parts["last"]
        sources = [{0}, everything - {*parts["subject-last"]}, {*parts["subject-last"], last}]
        by_layer = {condition: [] for condition in conditions}
        for layer in range(N_LAYERS):
            for condition, its in zip(conditions, sources, strict=False):
                with masked(plain, range(layer, layer + 1), [last], [*its]):
                    by_layer[condition].append(largest(plain, prompt))
            embedded = staying(parts["subject"])  # the embeddings, in this layer alone
            edits = [(layers_of(plain)[n], "input", embedded) for n in sorted({0, layer})]
            by_layer["patched subject from 0"].append(largest(plain, prompt, edits))
        for condition, runs in by_layer.items():
            at = {part: [run[part][layer] for layer, run in enumerate(runs)] for part in PARTS}
            conditions[condition].append(at)
    for condition, expected in conditions.items():
        assert_events_are(found, condition, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_final_norm_may_come_first(family):
    plain = plain_pair(family)[0]
    found = extraction(hooked_pair(family)[0], ASKED, normed=True, token="answer", progress=False)
    norm, expected = outside(plain)["ln_final"], []
    for prompt in SUBJECTS:
        expected.append(largest(plain, prompt, norm=norm))
    assert_events_are(found, "none", expected)
    assert any(e != largest(plain, p) for e, p in zip(expected, SUBJECTS, strict=True))


def test_looking_at_part_of_the_vocabulary_first_changes_nothing(monkeypatch):
    model, options = hooked_pair("llama")[0], {"token": "answer", "progress": False}
    expected = extraction(model, ASKED, **options)
    monkeypatch.setattr(extraction_events, "SOME", 3)
    monkeypatch.setattr(vocabulary, "LOGITS", 1)
    xr.testing.assert_identical(extraction(model, ASKED, **options), expected)


@pytest.mark.parametrize("family", SHAPES)
def test_the_token_looked_for_is_predicted_without_intervention(family):
    plain, model = plain_pair(family)[0], hooked_pair(family)[0]
    found = extraction(model, SUBJECTS, blocked="subject", progress=False)
    for i, prompt in enumerate(SUBJECTS):
        predicted = int(states(plain, prompt)[1].argmax())
        assert found.token[i] == tokenizer().convert_ids_to_tokens(predicted)
        first = tokenizer().convert_tokens_to_ids(prompt.answer.split()[0])
        assert bool(found.predicted[i]) == (predicted == first)
        for part, its in largest(plain, prompt).items():
            events = found[part].sel(condition="none", prompt=i).values
            np.testing.assert_array_equal(events, np.array(its) == predicted)


@pytest.mark.parametrize("family", ["mixtral", "cohere"])
def test_other_architectures_can_be_read(family):
    found = extraction(hooked_pair(family)[0], SUBJECTS, blocked="subject", patched=[0], progress=False)
    assert found.sizes == {"condition": 3, "prompt": 5, "layer": N_LAYERS}


# --- What is made of events ---


def events(attention: list[list[int]], mlp: list[list[int]], parallel: bool = False) -> xr.Dataset:
    dims = ("condition", "prompt", "layer")
    data = {"attention": (dims, [np.array(attention, bool)]), "mlp": (dims, [np.array(mlp, bool)])}
    return xr.Dataset(data, {"condition": ["none"]}, {"parallel": parallel})


def test_rates_and_who_is_first():
    its = events([[0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 0]])
    rate = extraction_rate(its).sel(condition="none")
    np.testing.assert_allclose(rate.sel(part="attention"), [0, 50, 50])
    np.testing.assert_allclose(rate.sel(part="mlp"), [0, 50, 25])
    share = extracted(its).sel(condition="none")
    shares = {str(p): float(share.sel(part=p)) for p in share.part.values}
    assert shares == {"attention": 75, "mlp": 75, "either": 75, "both": 75}
    layers = extracting_layers(its).sel(condition="none")
    assert layers.sel(part="attention").values.tolist() == [2, 1, 0, 1]
    first = first_extraction(its).sel(condition="none").values.tolist()
    assert first == ["attention", "mlp", "never", "attention"]
    its.attrs["parallel"] = True
    assert first_extraction(its).sel(condition="none").values.tolist()[3] == "together"


def test_one_part_alone():
    its = events([[1, 0]], [[0, 0]])
    assert first_extraction(its).item() == "attention"
    assert extracted(its).sel(part=["either", "both"]).values.ravel().tolist() == [100, 0]


def test_patched_layers_scale_with_depth():
    assert patch_layers(48) == (0, 1, 5, 10, 20)
    assert patch_layers(6) == (0, 1, 2)
    assert all(layer < n for n in range(1, 60) for layer in patch_layers(n))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"token": "first"}, "token='first' is unknown"),
        ({"patched": [N_LAYERS]}, "there is no layer 3"),
        ({"patched": [-1]}, "there is no layer -1"),
        ({"blocked": "relation"}, "no group of positions 'relation'"),
        ({"blocked": "subject-others"}, "has no token in"),
        ({"blocked": "all"}, "sees none at all in layer 0"),
    ],
)
def test_bad_options(options, complaint):
    with pytest.raises(InputError, match=complaint):
        extraction(hooked_pair("llama")[0], SUBJECTS, progress=False, **options)


def test_interventions_on_the_subject_need_one():
    prompts, model = [Prompt("people that Ada knows speak", "Dutch")], hooked_pair("llama")[0]
    extraction(model, prompts, progress=False)
    for options in ({"blocked": "subject"}, {"patched": [0]}):
        with pytest.raises(InputError, match="has no subject"):
            extraction(model, prompts, progress=False, **options)


# --- On the organism ---


def test_the_organism_extracts_by_attention_from_enriched_subjects():
    people = [p for p in World.build().people if not p.held_out][:40]
    facts = [Prompt(f"{p.name} lives in", p.home.name, subject=p.name) for p in people]
    found = extraction(
        ecstruct.load("organism"), facts, blocked=["subject", "non-subject"], patched=[0, 2], progress=False
    )
    share = extracted(found)
    assert found.predicted.mean() > 0.9
    by_attention = share.sel(part="attention")
    assert by_attention.sel(condition="none") > 90 > 50 > share.sel(part="mlp", condition="none")
    assert by_attention.sel(condition="blocked subject") < 10
    assert by_attention.sel(condition="blocked non-subject") > 90
    from_0, from_2 = (by_attention.sel(condition=f"patched subject from {layer}") for layer in (0, 2))
    assert from_0 < 15 < from_2 < 90
