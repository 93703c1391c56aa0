"""What is finished of one scoring, kept in a folder until all of it is.

    DIR/baseline.safetensors    the sums of the baseline, over all prompts
    DIR/part-*.safetensors      the scores of some prompts

Every file is a piece (see `ecstruct.pieces`) that says what its numbers depend on. How prompts are batched
and over how many processes they are shared is not part of that: any run of the same scoring goes on from
here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from ecstruct import pieces
from ecstruct.interruption import finishing
from ecstruct.scores.assemble import Part
from ecstruct.scores.baseline import Sums

_SUMS = "baseline.safetensors"


@dataclass(frozen=True)
class Shards:
    """The folder, and what the numbers in it depend on, by names that are fit for a message."""

    folder: Path
    identity: Mapping[str, str]

    def check(self) -> None:
        """Whether what is here, if anything, is of the same scoring.

        Raises:
            InputError: it is not.
        """
        for path in [*self.folder.glob(_SUMS), *self._parts()]:
            try:
                found = pieces.read_about(path)["identity"]
            except (pieces.Damaged, OSError):
                continue  # told where it would be read
            pieces.check_same_run(self.folder, found, self.identity)

    def parts(self) -> Iterator[Part]:
        """The scores that are finished."""
        for path in self._parts():
            if found := pieces.if_whole(pieces.read_tensors, path):
                about, tensors = found
                rows = tensors.pop("rows").tolist()
                yield Part(rows, about["groups"], {name: t.numpy() for name, t in tensors.items()})

    def keep(self, part: Part) -> None:
        """Write finished scores; a SIGTERM waits for it."""
        rows = torch.tensor(part.rows)
        name = xxhash.xxh3_64_hexdigest(rows.numpy().data)
        arrays = {name: torch.from_numpy(array) for name, array in part.arrays.items()}
        self._write(f"part-{name}.safetensors", {"rows": rows, **arrays}, groups=part.groups)

    def sums(self) -> Sums | None:
        """The sums of the baseline, if they are here."""
        if (found := pieces.if_whole(pieces.read_tensors, self.folder / _SUMS)) is None:
            return None
        by_key = ((key.split(".", 1), sums) for key, sums in found[1].items())
        return {(int(layer), name): sums for (layer, name), sums in by_key}

    def keep_sums(self, sums: Sums) -> None:
        """Write the sums of the baseline over all prompts."""
        self._write(_SUMS, {f"{layer}.{name}": t.cpu() for (layer, name), t in sums.items()})

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))

    def _write(self, name: str, tensors: dict[str, Tensor], **header: object) -> None:
        about = {"identity": dict(self.identity), **header}
        with finishing():
            pieces.save_tensors(self.folder / name, tensors, about)
