"""Selections by the names of modules and weights, on their own and with layers and kinds."""

import json
from typing import Any

import pytest
from helpers.tiny import single_pair

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models.bridge import named_weights
from ecstruct.models.names import WeightSelection

NAMES = ["blocks.1.mlp", "blocks.2.ln1", "ln_final", "blocks.0.attn.q.weight"]


@pytest.mark.parametrize("family", ["gemma2", "neox"])
def test_names_select_what_is_in_their_modules(family: str) -> None:
    every = list(named_weights(single_pair(family)[0]))
    selection = WeightSelection(names=NAMES)
    in_modules = [n for n in every if n.startswith(("blocks.1.mlp.", "blocks.2.ln1.", "ln_final."))]
    expected = {*in_modules, "blocks.0.attn.q.weight"}
    assert {n for n in every if selection.matches(n)} == expected
    assert len(in_modules) >= 4 and "blocks.0.attn.q.weight" in every


def test_a_name_is_no_beginning_of_another_word() -> None:
    selection = WeightSelection(names=["blocks.1", "blocks.2.ln1", "embed"])
    chosen = ("blocks.1.mlp.in.weight", "blocks.2.ln1.weight", "embed.weight")
    others = ("blocks.11.mlp.in.weight", "blocks.2.ln1_post.weight", "unembed.weight", "pos_embed.weight")
    assert all(map(selection.matches, chosen))
    assert not any(map(selection.matches, others))


def test_layers_and_kinds_narrow_names_down() -> None:
    both = WeightSelection(layers=[1], kinds=["mlp", "norm"], names=["blocks.1.ln2", "blocks.0.mlp"])
    assert both.matches("blocks.1.ln2.weight")
    assert not both.matches("blocks.1.mlp.in.weight")
    assert not both.matches("blocks.0.mlp.in.weight")
    assert not WeightSelection(names=[]).matches("blocks.0.mlp.in.weight")


def test_names_survive_json() -> None:
    selection = WeightSelection(names=set(NAMES))
    again = WeightSelection.of(json.loads(json.dumps(selection.to_dict())), n_layers=3)
    assert again.names == sorted(NAMES) and again.layers is None and again.kinds is None


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("blocks.1.mlp", r"pass a list, as in \['blocks.1.mlp'\]"),
        (["blocks.1.mpl"], "no weight's name begins with 'blocks.1.mpl'"),
        (["blocks.x"], "no weight's name begins with 'blocks.x'"),
        (["head"], "no weight's name begins with 'head'"),
        ([""], "no weight's name begins with ''"),
    ],
)
def test_names_of_nothing_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        WeightSelection(names=names)


def test_names_in_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="there is no layer 3: this model has 0 to 2"):
        WeightSelection.of({"names": ["blocks.3.mlp"]}, n_layers=3)
    with pytest.raises(InputError, match="give 'layers', 'kinds' and 'names'"):
        WeightSelection.of({"name": ["blocks.0.mlp"]}, n_layers=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"layers": 3}, r"layers=3 are no layers: pass a list, such as \[3\]"),
        ({"layers": "01"}, "layers='01' are no layers"),
        ({"kinds": "attn"}, r"kinds='attn' is one kind: pass a list, as in \['attn'\]"),
    ],
)
def test_what_is_no_list_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        WeightSelection(**given)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blocks.0.mlp.up", "blocks.0.mlp has gate, in, out"),
        ("blocks.0.ln9", "blocks.0 has attn, ln1, ln2, mlp"),
        ("pos_embed", "name a module such as 'blocks.3.mlp'"),
    ],
)
def test_a_freeze_that_holds_nothing_is_refused(name: str, says: str) -> None:
    model = single_pair("llama")[0]
    frozen = WeightSelection(names=["blocks.1.mlp", name])
    with pytest.raises(InputError, match=f"no weight of this model begins with {name!r}: {says}"):
        ecstruct.finetune(model, [("people", "speak")], lr=1.0, freeze=frozen, progress=False)
