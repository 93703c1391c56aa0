"""Configurations of adapters from elsewhere: refused in a sentence, in seconds, whatever they say."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.facts_fixtures import hugging_face
from helpers.folders import edit_json
from helpers.fuzz.damage import VALUES
from test_adapters import adapted

import ecstruct
from ecstruct import InputError
from ecstruct.models import adapter_config
from ecstruct.models.adapters import merged
from ecstruct.models.bridge import named_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and an adapter of it."""
    return adapted("llama", tmp_path_factory.mktemp("adapted"))[:2]


def changed(saved: tuple[Path, Path], folder: Path, **values: Any) -> Path:
    adapter = Path(shutil.copytree(saved[1], folder / "adapter"))
    return edit_json(adapter / "adapter_config.json", **values).parent


def loaded(saved: tuple[Path, Path], folder: Path, **values: Any) -> Any:
    return ecstruct.load(saved[0], adapter=changed(saved, folder, **values), device="cpu")


PATTERNS = [r".*\.(q_proj|v_proj|o_proj|up_proj|down_proj)", r"(?:.*)(?:q|v|o|up|down)_proj$"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_modules_may_be_named_by_a_pattern(saved: Any, tmp_path: Path, pattern: str) -> None:
    expected = named_weights(ecstruct.load(saved[0], adapter=saved[1], device="cpu"))
    for name, w in named_weights(loaded(saved, tmp_path, target_modules=pattern)).items():
        assert w.equal(expected[name]), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": "(a"}, "which is no pattern of modules"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication, which makes a model of other layers"),
        ({"trainable_token_indices": [1, 10**6]}, "trains the token 1000000 of a vocabulary of"),
        (
            {"trainable_token_indices": {"embed_tokens": [10**400]}},
            "trains the token a number of many digits",
        ),
        ({"trainable_token_indices": [-1]}, "should be greater than or equal to 0"),
        ({"r": 10**9}, "has the rank 1000000000, and no weight of the adapter is larger than"),
        ({"rank_pattern": {"q_proj": 10**9}}, "has the rank 1000000000"),
        ({"r": 0}, "`r` should be a positive integer"),
    ],
)
def test_what_cannot_be_is_refused(saved: Any, tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        loaded(saved, tmp_path, **values)
    assert "adapter_config.json" in str(raised.value) and str(raised.value).endswith((".", ")."))


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": r"(\w+\.?)+!"},
        {"exclude_modules": r"((\w|\.)*)*!"},
        {"rank_pattern": {r"(([a-z_.0-9]+)+)+!": 2}},
        {"layers_to_transform": [0], "layers_pattern": r"((\w|\.)*)*!"},
    ],
)
def test_a_pattern_that_never_ends_is_refused(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: Any
) -> None:
    monkeypatch.setattr(adapter_config, "SECONDS", 0.2)
    with pytest.raises(InputError, match=r"which takes longer than 0\.2 seconds to be compared"):
        loaded(saved, tmp_path, **values)


FIELDS = [
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "bias"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"),
    *("fan_in_fan_out", "init_lora_weights", "peft_type", "task_type", "target_parameters"),
    *("trainable_token_indices", "layer_replication", "loftq_config", "runtime_config", "eva_config"),
    *("corda_config", "megatron_config", "alora_invocation_tokens", "auto_mapping", "peft_version"),
]


@pytest.mark.parametrize("field", FIELDS)
def test_values_of_other_types_are_refused_or_read(saved: Any, tmp_path: Path, field: str) -> None:
    """Every kind of value: a sentence, or merged weights; never another error."""
    plain = hugging_face(saved[0])
    for i, value in enumerate(VALUES.values()):
        adapter = changed(saved, tmp_path / str(i), **{field: value})
        try:
            merged(copy.deepcopy(plain), adapter)
        except InputError as error:
            assert str(error).endswith(".") and len(str(error)) < 1500
