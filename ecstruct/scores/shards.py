"""The finished scores of a scoring run, kept in a folder until all prompts are scored.

    DIR/identity.json           everything that the scores depend on
    DIR/baseline.safetensors    the sums of the baseline, over all prompts
    DIR/part-*.safetensors      the scores of some prompts

The batch size and the number of processes are not part of the identity: any run that computes the same
scores can resume from here.
"""

from collections.abc import Iterator

import torch
import xxhash

from ecstruct.io.store import FinishedPieces, read_tensors, save_tensors
from ecstruct.scores.assemble import PromptScores
from ecstruct.scores.baseline import Sums

_SUMS = "baseline.safetensors"


class Shards(FinishedPieces):
    """The finished scores of a scoring run, as pieces in a folder, which must be given."""

    def finished(self) -> Iterator[PromptScores]:
        """Yield the scores that earlier runs finished, some prompts at a time."""
        assert self.folder is not None
        for path in sorted(self.folder.glob("part-*.safetensors")):
            if found := self.find(path.name, read_tensors):
                about, tensors = found
                rows = tensors.pop("rows").tolist()
                yield PromptScores(rows, about["groups"], {name: t.numpy() for name, t in tensors.items()})

    def keep_scores(self, scores: PromptScores) -> None:
        """Write the scores of some prompts."""
        rows = torch.tensor(scores.rows)
        name = f"part-{xxhash.xxh3_64_hexdigest(rows.numpy().data)}.safetensors"
        arrays = {name: torch.from_numpy(array) for name, array in scores.arrays.items()}
        self.keep(name, save_tensors, {"rows": rows, **arrays}, {"groups": scores.groups})

    def sums(self) -> Sums | None:
        """Return the sums of the baseline over all prompts, or None if they are not in the folder."""
        if (found := self.find(_SUMS, read_tensors)) is None:
            return None
        by_key = ((key.split(".", 1), sums) for key, sums in found[1].items())
        return {(int(layer), name): sums for (layer, name), sums in by_key}

    def keep_sums(self, sums: Sums) -> None:
        """Write the sums of the baseline over all prompts."""
        tensors = {f"{layer}.{name}": t.cpu() for (layer, name), t in sums.items()}
        self.keep(_SUMS, save_tensors, tensors, {})
