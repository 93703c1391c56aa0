"""The change of weights dW = W' - W between two checkpoints, as an object.

Deltas can be added, subtracted and scaled, restricted to layers and kinds of weights, replaced by noise of
the same norms, applied to a model, and saved. Tensors that do not change are not stored.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.errors import InputError
from ecstruct.io.files import from_json, write_atomically, write_tensors
from ecstruct.io.values import bounded
from ecstruct.models.added_tokens import without_added
from ecstruct.models.bridge import copy_of, named_weights
from ecstruct.models.checkpoint import TensorFiles
from ecstruct.models.configs import check_same_computation
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.names import WeightSelection
from ecstruct.models.provenance import Provenance, derived, provenance, source_of
from ecstruct.models.tied import untie_hooked

_FORMAT = "ecstruct-delta-1"


@dataclass(frozen=True, eq=False)
class WeightDelta:
    """A change of weights, by TransformerLens name; a missing name stands for zeros.

    `metadata` has the sources and fingerprints of both models and, if the model before is not saved in a
    file, `before_made`: how it was made from its source.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def between(cls, before: TransformerBridge, after: TransformerBridge) -> "WeightDelta":
        """Return W' - W, in float64 for float64 models and in float32 for any other. Tokens that only the
        vocabulary after has are left out.

        Raises:
            InputError: The models differ in a tensor's name or shape (the first one is named), or in the
                computation that their configurations ask for.
        """
        old, new = named_weights(before), named_weights(after)
        check_same(old, without_added(new, old))
        check_same_computation(before.original_model.config, after.original_model.config)
        return cls.from_weights(old, new, metadata_of(provenance(before), fingerprint(old), after))

    @classmethod
    def from_weights(
        cls,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        metadata: Mapping[str, str] | None = None,
    ) -> "WeightDelta":
        """Return W' - W of weights given by name, with the dtype and errors of `between`."""
        after = without_added(after, before)
        check_same(before, after)
        tensors = {}
        for name, p in before.items():
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            change = after[name].detach().to(p.device, dtype) - p.detach().to(dtype)
            if change.any():
                tensors[name] = change
        return cls(tensors, metadata or {})

    @classmethod
    def of_changes(
        cls,
        changes: Mapping[str, Tensor],
        before: Provenance,
        before_fingerprint: str,
        after: TransformerBridge,
    ) -> "WeightDelta":
        """Return the delta that `between` would, from `changes` W' - W, when only `after` is in memory."""
        tensors = {name: change for name, change in changes.items() if change.any()}
        return cls(tensors, metadata_of(before, before_fingerprint, after))

    def __repr__(self) -> str:
        """
        >>> WeightDelta({"embed.weight": torch.zeros(2, 3)}, {"before": "a", "after": "b"})
        <WeightDelta a to b, 6 numbers in 1 tensors>
        """
        n = sum(t.numel() for t in self.tensors.values())
        ends = [self.metadata[key] for key in ("before", "after") if key in self.metadata]
        of = f"{ends[0]} to {ends[1]}, " if len(ends) == 2 else ""
        return f"<WeightDelta {of}{n:,} numbers in {len(self.tensors)} tensors>"

    @property
    def name(self) -> str:
        """The source of the model after, if it is known."""
        return self.metadata.get("after", "a weight delta")

    def __add__(self, other: "WeightDelta") -> "WeightDelta":
        total = dict(self.tensors)
        for name, t in other.tensors.items():
            if name in total and total[name].shape != t.shape:
                raise InputError(
                    f"the deltas differ in the shape of {name}: {tuple(total[name].shape)} and "
                    f"{tuple(t.shape)}; combine deltas of one architecture."
                )
            total[name] = total[name] + t if name in total else t
        return WeightDelta(total)

    def __sub__(self, other: "WeightDelta") -> "WeightDelta":
        return self + (-other)

    def __mul__(self, factor: float) -> "WeightDelta":
        return WeightDelta({name: factor * t for name, t in self.tensors.items()})

    __rmul__ = __mul__

    def __neg__(self) -> "WeightDelta":
        return -1.0 * self

    def restrict(
        self,
        layers: Collection[int] | None = None,
        kinds: Collection[str] | None = None,
        names: Collection[str] | None = None,
    ) -> "WeightDelta":
        """Return the part of the change in these layers, of these kinds and in the modules of these names
        (see `WeightSelection`)."""
        chosen = WeightSelection(layers, kinds, names)
        return WeightDelta({n: t for n, t in self.tensors.items() if chosen.matches(n)})

    @bounded
    def random_like(self, seed: int) -> "WeightDelta":
        """Return Gaussian noise with the Frobenius norm of every tensor of this delta: a control that is as
        large as this change but has learnt nothing.

        A seed gives the same noise on every device, and tied embeddings stay tied.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name in sorted(self.tensors):
            change = self.tensors[name]
            noise = torch.randn(change.shape, generator=generator, dtype=torch.float64)
            noise *= torch.linalg.vector_norm(change, dtype=torch.float64).cpu() / noise.norm()
            tensors[name] = noise.to(change)
        embed, unembed = (self.tensors.get(f"{name}.weight") for name in ("embed", "unembed"))
        if embed is not None and unembed is not None and torch.equal(embed, unembed):
            tensors["unembed.weight"] = tensors["embed.weight"].clone()
        kept = {key: value for key, value in self.metadata.items() if key.startswith("before")}
        return WeightDelta(tensors, {**kept, "after": f"noise of the norms of {self.name} (seed {seed})"})

    def starts_at(self, model: TransformerBridge) -> bool:
        """Return whether this was made from `model`, in any dtype; true if there is no fingerprint."""
        expected = self.metadata.get("before_fingerprint")
        weights = named_weights(model)
        return expected is None or any(
            fingerprint({name: w.to(dtype) for name, w in weights.items()}) == expected
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        )

    def added_to(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return W + dW. Weights that do not change are the same tensors, not copies.

        Raises:
            InputError: The delta has a tensor that `weights` lacks or has in another shape.
        """
        check_fits({n: t.shape for n, t in self.tensors.items()}, {n: w.shape for n, w in weights.items()})
        return {
            name: _sum(w, self.tensors[name]) if name in self.tensors else w for name, w in weights.items()
        }

    def apply_to(self, model: TransformerBridge) -> TransformerBridge:
        """Return a copy of `model` with the change added; `model` itself stays as it is."""
        weights = named_weights(model)
        moved = self.added_to({name: p.detach() for name, p in weights.items()})
        new = copy_of(model)
        embed, unembed = "embed.weight", "unembed.weight"
        tied = weights[embed] is weights.get(unembed)
        if tied and not torch.equal(moved[embed], moved[unembed]):
            untie_hooked(new)
        with torch.no_grad():
            for name, p in named_weights(new).items():
                if name in self.tensors:
                    p.data = moved[name]
        return derived(new, model, "with a weight delta")

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with the metadata in its header; a failure leaves no partial file."""
        header = {"format": _FORMAT, "metadata": json.dumps(dict(self.metadata))}
        tensors: dict[str, Tensor] = {}
        stored: set[int] = set()
        for name, t in self.tensors.items():
            t = t.contiguous().cpu()
            # Tied embeddings may be one tensor under two names, which safetensors refuses.
            tensors[name] = t.clone() if t.data_ptr() in stored else t
            stored.add(tensors[name].data_ptr())
        write_atomically(path, lambda temporary: write_tensors(temporary, tensors, header))

    @classmethod
    def load(cls, path: str | Path) -> "WeightDelta":
        """Read what `save` wrote.

        Raises:
            InputError: The file is missing, truncated or of another format, or has NaN or infinite values.
        """
        files, metadata = open_delta(path)
        tensors = dict(files)
        for name, t in tensors.items():
            if not torch.isfinite(t).all():
                raise InputError(f"{path} has NaN or infinite values in {name}: make it anew.")
        return cls(tensors, metadata)


def metadata_of(before: Provenance, before_fingerprint: str, after: TransformerBridge) -> dict[str, str]:
    """Return the metadata of the delta between two models."""
    made = {"before_made": ", ".join(before.made)} if before.made else {}
    return {
        "before": str(before),
        **made,
        "after": source_of(after),
        "before_fingerprint": before_fingerprint,
        "after_fingerprint": fingerprint(named_weights(after)),
    }


def _sum(w: Tensor, change: Tensor) -> Tensor:
    """Return `w` + `change` in the dtype of `w`, added in the wider of both dtypes so as to round once."""
    dtype = torch.promote_types(w.dtype, change.dtype)
    return (w.to(dtype) + change.detach().to(w.device, dtype)).to(w.dtype)


def check_fits(change: Mapping[str, Sequence[int]], weights: Mapping[str, Sequence[int]]) -> None:
    """Raise `InputError` naming the first of a delta's shapes that the model's weights do not have."""
    for name, shape in change.items():
        if name not in weights or tuple(weights[name]) != tuple(shape):
            found = tuple(weights[name]) if name in weights else "no such tensor"
            raise InputError(
                f"the delta does not fit the model in {name}: {tuple(shape)} against {found}; use the "
                "architecture it was made with."
            )


def open_delta(path: str | Path) -> tuple[TensorFiles, dict[str, str]]:
    """Open a saved delta: return its tensors, which are read when they are asked for, and its metadata.

    Raises:
        InputError: The file is missing, truncated or of another format.
    """
    files = TensorFiles.of_file(Path(path).expanduser())
    try:
        if files.metadata["format"] == _FORMAT:
            return files, dict(from_json(files.metadata["metadata"]))
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError(
        f"{path} is no weight delta, as WeightDelta.save writes: give one, or the folder of a model or "
        "of an adapter."
    )


def is_delta(source: object) -> bool:
    """Return whether a source is a saved delta, judging by its suffix."""
    return isinstance(source, str | Path) and Path(source).suffix == ".safetensors"


def base_of(path: str | Path) -> str:
    """Return the source of the model that a saved delta changes.

    Raises:
        InputError: The file is not a delta, or it does not name a source.
    """
    _, metadata = open_delta(path)
    base = metadata.get("before")
    if not base or "before_made" in metadata:
        raise InputError(
            f"{path} changes {base or 'a model that it does not name'}, which is in no file: load that "
            "model and apply the delta to it, with WeightDelta.load(...).apply_to(model)."
        )
    return base


def check_same(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise `InputError` if two models differ in a tensor's name or shape; the first one is named."""
    for name in [*before, *after]:
        shapes = [tuple(w[name].shape) if name in w else "absent" for w in (before, after)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"the models differ in {name}: {shapes[0]} before, {shapes[1]} after; compare two "
                "checkpoints of one architecture, vocabulary and depth."
            )
