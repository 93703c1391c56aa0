"""One model on several ranks, each of which holds a part of every weight (FSDP2).

What is sharded is the hooked model, block by block, so that the weights have their names, query, key and
value stay apart, and the numbers are those of one process. It is built without weights on every rank; the
first, which has read the checkpoint into its main memory, deals them out tensor by tensor, and takes them
back so.

On GPUs the blocks are gathered and run in bfloat16 and their gradients summed in float32; what Adam changes
is float32, as are embeddings, final norm and unembedding. On CPUs everything has the model's own dtype.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.finetuning.learner import Learner, hooked_logits, trained
from ecstruct.io.distributed import Ranks
from ecstruct.models.boot import boot
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.names import WeightSelection
from ecstruct.models.plain import plain_model
from ecstruct.models.provenance import derived, provenance, source_of, tokenizer_of


@dataclass(frozen=True)
class Blueprint:
    """All that a rank has to know of a model to build one like it."""

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


def in_half(device: torch.device) -> bool:
    """Whether blocks are run in bfloat16."""
    return device.type == "cuda"


class Sharded:
    """A model that all ranks share. `model` has the weights; the first rank gives it, and only there is it
    anything but `None`."""

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
        self._half = in_half(self._device)
        self._sharded = self._built(blueprint)
        self.blocks: list[nn.Module] = list(self._sharded.blocks)
        chosen = trained(self._sharded, frozen, train_embeddings)
        for p in (*self._sharded.parameters(), *named_weights(self._sharded).values()):
            p.requires_grad_(False)
        for p in chosen.values():
            p.requires_grad_(True)
        self._shard()
        self._deal_out()
        weights = named_weights(self._sharded)
        self.learner = Learner(self._logits, {name: weights[name] for name in chosen}, self._device)

    def _built(self, blueprint: Blueprint) -> TransformerBridge:
        """Hooked like the model, every weight one number: it takes memory when it is sharded."""

        def one_number(_name: str, p: nn.Parameter) -> Tensor:
            return torch.zeros((), dtype=p.dtype, device=self._device).expand(p.shape)

        plain = plain_model(blueprint.config, blueprint.dtype, self._device, one_number)
        return boot(blueprint.name, plain, blueprint.tokenizer)

    def _shard(self) -> None:
        mesh = init_device_mesh(self._device.type, (self._across.size,))
        # The residual stream between the blocks stays float32, as under autocast in one process.
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = half if self._half else MixedPrecisionPolicy()
        used = {id(p) for p in named_weights(self._sharded).values()}

        def fill(module: nn.Module) -> None:
            for p in module.parameters():
                if isinstance(p, DTensor):
                    continue
                # A tensor that was split into query, key and value is not read any more.
                shape = p.shape if id(p) in used else (1,)
                p.data = torch.zeros(shape, dtype=p.dtype, device=p.device)

        for block in self.blocks:
            fill(block)
            fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        root = self._sharded.original_model
        fill(root)
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
        if self._half:
            _in_single(self._sharded.unembed)

    @torch.no_grad()
    def _deal_out(self) -> None:
        given = {} if self._model is None else named_weights(self._model)
        for name, p in named_weights(self._sharded).items():
            assert isinstance(p, DTensor)
            if self._across.first:
                full = given[name].detach().to(self._device)
            else:
                full = torch.empty(p.shape, dtype=p.dtype, device=self._device)
            p.copy_(distribute_tensor(full, p.device_mesh, p.placements))

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        with (
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._half, cache_enabled=False),
            warnings.catch_warnings(),
        ):
            # Logits may be a view, on which nothing in place is to be done; nobody does.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
            return hooked_logits(self._sharded, ids, mask)

    @torch.no_grad()
    def collect(self) -> tuple[TransformerBridge, WeightDelta] | None:
        """The trained weights, written into the first rank's model, and their change; by all ranks."""
        model = self._model
        old = {} if model is None else named_weights(model)
        before = fingerprint(old)
        changes: dict[int, Tensor] = {}  # of a tied weight, one
        for name, p in self.learner.weights.items():
            assert isinstance(p, DTensor)
            new = p.full_tensor()  # by all, one tensor at a time
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


def _in_single(unembed: Any) -> None:
    """Logits in float32, also where all else is run in half: ranks are read from them, and would tie."""
    forward = unembed.forward

    def in_single(resid: Tensor, **kwargs: Any) -> Tensor:
        with torch.autocast(resid.device.type, enabled=False):
            return forward(resid.float(), **kwargs)

    unembed.__dict__["forward"] = in_single
