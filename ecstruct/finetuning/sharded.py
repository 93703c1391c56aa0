"""One model on several ranks, each of which holds a part of every weight (FSDP2).

The hooked model is sharded, block by block. So weights keep their names, query, key and value stay apart,
and the numbers are those of one process. Every rank builds the model without weights. The first rank, which
has read the checkpoint into its main memory, distributes the weights one tensor at a time, and collects
them in the same way.

On GPUs, blocks are gathered and run in bfloat16, their gradients summed in float32. What Adam changes is
float32, as are embeddings, final norm and unembedding. On CPUs all is in the model's dtype.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.finetuning.learner import Learner, weights_to_train
from ecstruct.io.distributed import Ranks
from ecstruct.models.boot import boot
from ecstruct.models.bridge import logits_at, named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.names import WeightSelection
from ecstruct.models.plain import plain_model
from ecstruct.models.provenance import derived, provenance, source_of, tokenizer_of


@dataclass(frozen=True)
class Blueprint:
    """All that a rank must know of a model to build one like it."""

    name: str
    config: Any
    tokenizer: Any
    dtype: torch.dtype
    n_layers: int

    @classmethod
    def of(cls, model: TransformerBridge) -> "Blueprint":
        dtype = next(iter(named_weights(model).values())).dtype
        config = model.original_model.config
        return cls(source_of(model), config, tokenizer_of(model), dtype, model.cfg.n_layers)


def runs_in_bfloat16(device: torch.device) -> bool:
    """Return whether blocks run in bfloat16 on this device."""
    return device.type == "cuda"


class Sharded:
    """A model whose weights are sharded over all ranks. Only the first rank passes `model`, which has the
    weights; the others pass `None`."""

    def __init__(
        self,
        across: Ranks,
        blueprint: Blueprint,
        model: TransformerBridge | None,
        frozen: WeightSelection | None,
        train_embeddings: bool,
    ) -> None:
        self._across, self._model = across, model
        self._device = torch.device(across.device or "cpu")
        self._half = runs_in_bfloat16(self._device)
        self._sharded = self._built(blueprint)
        self.blocks: list[nn.Module] = list(self._sharded.blocks)
        chosen = weights_to_train(self._sharded, frozen, train_embeddings)
        for p in (*self._sharded.parameters(), *named_weights(self._sharded).values()):
            p.requires_grad_(False)
        for p in chosen.values():
            p.requires_grad_(True)
        self._shard()
        self._distribute_weights()
        weights = named_weights(self._sharded)
        self.learner = Learner(self._logits, {name: weights[name] for name in chosen}, self._device)

    def _built(self, blueprint: Blueprint) -> TransformerBridge:
        """Build a hooked model in which every weight is one expanded number; sharding allocates memory."""

        def one_number(_name: str, p: nn.Parameter) -> Tensor:
            return torch.zeros((), dtype=p.dtype, device=self._device).expand(p.shape)

        plain = plain_model(blueprint.config, blueprint.dtype, self._device, one_number)
        return boot(blueprint.name, plain, blueprint.tokenizer)

    def _shard(self) -> None:
        mesh = init_device_mesh(self._device.type, (self._across.size,))
        # As under autocast in one process, the residual stream between the blocks stays float32.
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = half if self._half else MixedPrecisionPolicy()
        used = {id(p) for p in named_weights(self._sharded).values()}

        def allocate(module: nn.Module) -> None:
            """Give the parameters, which are expanded numbers, memory of their own."""
            for p in module.parameters():
                if isinstance(p, DTensor):
                    continue
                # Once a tensor is split into query, key and value, it is not read any more.
                shape = p.shape if id(p) in used else (1,)
                p.data = torch.zeros(shape, dtype=p.dtype, device=p.device)

        for block in self.blocks:
            allocate(block)
            fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        root = self._sharded.original_model
        allocate(root)
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
        if self._half:
            _make_logits_float32(self._sharded.unembed)

    @torch.no_grad()
    def _distribute_weights(self) -> None:
        given = {} if self._model is None else named_weights(self._model)
        for name, p in named_weights(self._sharded).items():
            assert isinstance(p, DTensor)
            if self._across.first:
                full = given[name].detach().to(self._device)
            else:
                full = torch.empty(p.shape, dtype=p.dtype, device=self._device)
            p.copy_(distribute_tensor(full, p.device_mesh, p.placements))

    def _logits(
        self, read: Bool[Tensor, "batch pos"], ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "read d_vocab"]:
        with (
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False),
            warnings.catch_warnings(),
        ):
            # The warning is about in-place operations on logits that are a view; there are none.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            return logits_at(self._sharded, read, ids, mask)

    @torch.no_grad()
    def collect(self) -> tuple[TransformerBridge, WeightDelta] | None:
        """Put the trained weights into the first rank's model; return it and the change of its weights on
        the first rank, `None` on the others. All ranks call this."""
        model = self._model
        old = {} if model is None else named_weights(model)
        before = fingerprint(old)
        changes: dict[int, Tensor] = {}  # one for a tied weight
        for name, p in self.learner.weights.items():
            assert isinstance(p, DTensor)
            new = p.full_tensor()  # all ranks call this, for one tensor at a time
            if self._across.first:
                w = old[name].data
                new = new.to(w.device)
                changes[id(old[name])] = new - w
                w.copy_(new)
        if model is None:
            return None
        origin = provenance(model)
        derived(model, model, "finetuned")
        named = {name: changes[id(p)] for name, p in old.items() if id(p) in changes}
        return model, WeightDelta.of_changes(named, origin, before, model)


def _make_logits_float32(unembed: Any) -> None:
    """Wrap an unembedding so that it computes in float32: in bfloat16, ranks of answers would tie."""
    forward = unembed.forward

    def in_float32(resid: Tensor, **kwargs: Any) -> Tensor:
        with torch.autocast(resid.device.type, enabled=False):
            return forward(resid.float(), **kwargs)

    unembed.__dict__["forward"] = in_float32
