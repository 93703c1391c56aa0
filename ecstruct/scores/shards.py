"""What is finished of one scoring, kept in a folder until all of it is.

    DIR/baseline.safetensors    the sums of the baseline, over all prompts
    DIR/part-*.safetensors      the scores of some prompts

Every file is written whole or not at all, and says in its header what its numbers depend on. How prompts
are batched and over how many processes they are shared is not part of that: any run of the same scoring
goes on from here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.files import from_json, write_atomically
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
            InputError: it is not; a damaged file.
        """
        for path in [*self.folder.glob(_SUMS), *self._parts()]:
            found = self._read(path)[0].get("identity", {})
            for key in [*self.identity, *(key for key in found if key not in self.identity)]:
                one, other = found.get(key), self.identity.get(key)
                if one != other:
                    raise InputError(
                        f"{self.folder} holds a part of another run ({key} was {one}, now {other}): finish "
                        "that run by its own command, or delete the folder."
                    )

    def parts(self) -> Iterator[Part]:
        """The scores that are finished."""
        for path in self._parts():
            header, tensors = self._read(path, True)
            rows = tensors.pop("rows").tolist()
            yield Part(rows, header["groups"], {name: t.numpy() for name, t in tensors.items()})

    def keep(self, part: Part) -> None:
        """Write finished scores; a SIGTERM waits for it."""
        rows = torch.tensor(part.rows)
        name = xxhash.xxh3_64_hexdigest(rows.numpy().data)
        arrays = {name: torch.from_numpy(array) for name, array in part.arrays.items()}
        self._write(f"part-{name}.safetensors", {"rows": rows, **arrays}, groups=part.groups)

    def sums(self) -> Sums | None:
        """The sums of the baseline, if they are here."""
        path = self.folder / _SUMS
        if not path.exists():
            return None
        found: Sums = {}
        for key, sums in self._read(path, True)[1].items():
            layer, name = key.split(".", 1)
            found[int(layer), name] = sums
        return found

    def keep_sums(self, sums: Sums) -> None:
        """Write the sums of the baseline over all prompts."""
        self._write(_SUMS, {f"{layer}.{name}": t.cpu() for (layer, name), t in sums.items()})

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.safetensors"))

    def _read(self, path: Path, whole: bool = False) -> tuple[dict, dict[str, Tensor]]:
        try:
            with safe_open(path, framework="pt") as file:
                header = from_json(file.metadata()["shard"])
                names = file.keys() if whole else []
                return header, {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise InputError(f"{path} is no finished part: delete it to compute it again.") from error

    def _write(self, name: str, tensors: dict[str, Tensor], **header: object) -> None:
        about = {"shard": json.dumps({"identity": dict(self.identity), **header})}
        with finishing():
            write_atomically(self.folder / name, lambda temporary: save_file(tensors, temporary, about))
