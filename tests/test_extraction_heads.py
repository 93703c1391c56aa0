"""Extraction heads against an explicit loop over plain weights."""

import numpy as np
import pytest
import xarray as xr
from helpers.oracle import ids_of, outside
from helpers.recall_cases import SUBJECTS, span_of, unembedding, value_output
from helpers.tiny import (
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    hooked_pair,
    plain_pair,
    tokenizer,
)

from ecstruct import InputError
from ecstruct.plots import extraction_falls, extraction_head_map, extraction_lines
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.extraction_events import extraction, extraction_rate
from ecstruct.recall.heads import extraction_heads

WORDS = {p.subject: ["Dutch Wit"] if i % 2 else ["Zulu Norse"] for i, p in enumerate(SUBJECTS)}


def found_in(family: str, **options):
    model = hooked_pair(family)[0]
    its = Attributes.from_texts(WORDS, model)
    return extraction_heads(model, SUBJECTS, its, progress=False, **options)


@pytest.mark.parametrize("position", ["subject-last", "subject"])
@pytest.mark.parametrize("family", (*FAMILIES, "cohere", "mixtral"))
def test_rows_are_those_of_plain_weights(family, position):
    plain, top = plain_pair(family)[0], 3
    found = found_in(family, position=position, top=top)
    embedding = outside(plain)["embed"].weight.detach() if family not in ("cohere", "mixtral") else None
    embedding = plain.get_input_embeddings().weight.detach() if embedding is None else embedding
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            w_v, w_o = value_output(plain, layer, head)
            for i, prompt in enumerate(SUBJECTS):
                span = span_of(prompt)
                at = span if position == "subject" else span[-1:]
                hits, firsts = [], []
                for token in ids_of(prompt)[0, list(at)]:
                    row = unembedding(plain) @ (w_o @ (w_v @ embedding[token]))
                    words = [
                        tokenizer().convert_ids_to_tokens(int(t)) for t in row.argsort(descending=True)
                    ]
                    firsts.append([w.lower() for w in words[:top]])
                    hits += [w in WORDS[prompt.subject][0].split() for w in words[:top]]
                here = found.sel(prompt=i, layer=layer, head=head)
                assert bool(here.maps) == any(hits)
                assert float(here.hits) == pytest.approx(100 * np.mean(hits))
                shown = [w if w not in ("<pad>", "<unk>") else "" for w in firsts[0]]
                assert here.top_tokens.values.tolist() == shown
    np.testing.assert_allclose(found.share, 100 * found.maps.mean("prompt"))
    assert 0 < found.share.mean() < 100


def test_the_paper_s_number_of_tokens_is_scaled_to_the_vocabulary():
    assert found_in("llama").attrs["options"]["top"] == 1  # of 21
    assert found_in("llama", top=21).share.min() == 100


def test_some_layers_are_as_among_all():
    whole, some = found_in("gpt2"), found_in("gpt2", layers=[2, 0])
    xr.testing.assert_identical(some, whole.sel(layer=[2, 0]))
    with pytest.raises(InputError, match=r"layers=\[0, 3\]: there is no layer 3, but 0 to 2"):
        found_in("gpt2", layers=[0, 3])


def test_bad_options():
    for options, complaint in (
        ({"top": 22}, "top=22"),
        ({"position": "names"}, "group of positions 'names'"),
    ):
        with pytest.raises(InputError, match=complaint):
            found_in("llama", **options)


# --- Figures ---


def test_figures_show_what_was_found():
    heads = found_in("llama", top=3)
    figure = extraction_head_map({"before": heads, "after": heads})
    first = figure.data[0]
    np.testing.assert_array_equal(first.z, heads.share.values)
    assert "head 1.2: " in first.text[1][2] and str(heads.top_tokens[0, 1, 2, 0].item()) in first.text[1][2]
    events = extraction(hooked_pair("llama")[0], SUBJECTS, blocked="subject", progress=False)
    rates = extraction_rate(events)
    for figure, names, panels in (
        (extraction_lines({"before": events, "after": events}), ["attention", "mlp"], 2),
        (extraction_falls(events), ["none", "blocked subject"], 2),
    ):
        lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
        assert [line.name for line in lines] == names * panels
        np.testing.assert_allclose(lines[0].y, rates.sel(part="attention", condition="none"))
    with pytest.raises(InputError, match="no heads to show"):
        extraction_head_map({})
