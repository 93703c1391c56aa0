"""The one view of a hooked model that the rest of the package uses.

A model is an embedding, a stack of blocks and a head. `HookedView` runs each of the three on a chosen
input and under chosen weights. Besides the output, it returns the input and output of every *site*: a
module that is affine in its weights (a projection, a norm, an embedding). No architecture is
special-cased: how the model itself calls its blocks (masks, rotary tables, sliding windows) is recorded
in a dry run in which every block is bypassed, and replayed; the head is the same dry run, given a
chosen residual stream. Weights are never swapped in place but passed through `torch.func.functional_call`,
so the model is bit-identical afterwards, even after an exception.

Code outside `models/` uses TransformerLens only through this view. Modules have TransformerLens' names:
`attn.q`, `attn.k`, `attn.v`, `attn.o` (or those of latents, `sites.LATENT`), the norms `attn.q_norm`,
`attn.k_norm` of queries and keys, `attn.sinks`, `mlp.in`, `mlp.gate`, `mlp.out`, the pre-norms `ln1`,
`ln2`, the post-norms `ln1_post`, `ln2_post`; outside the blocks `embed`, `pos_embed`, `ln_final`,
`unembed`, and, in encoders, `token_type_embed`, `embed_ln` and the `pooler`. In an MLP without the usual
projections (a mixture of experts), `mlp.in` is the whole MLP and `mlp.out` an identity after it.
"""

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.bridge import drop_pattern, named_weights
from ecstruct.models.calls import BlockCall, Bypass, Stop, written_by
from ecstruct.models.components import check_components
from ecstruct.models.configs import check_same_rotation
from ecstruct.models.edits import Edit, editing, first_token, replaced_by, shortcuts
from ecstruct.models.names import kind_of, layer_of
from ecstruct.models.sites import (
    SINKS,
    Sinks,
    Site,
    Tap,
    Weights,
    Written,
    names_under,
    sites_of,
    tapping,
    whole_mlp,
)

Sublayer = Literal["attn", "mlp"]
"""The attention or the MLP of a block."""

_AFTER_ATTENTION = ("ln1_post", "ln2", "ln2_post")


@dataclass(frozen=True)
class Trace:
    """A run of the embedding, of one block or of the head: its output, and its taps by module name."""

    output: Float[Tensor, "batch pos d"]
    taps: dict[str, Tap]


class HookedView:
    """A view that runs the parts of a hooked model on chosen inputs and under chosen weights.

    Shapes: the residual stream is [batch, pos, d_model]; the input of `attn.o` is the concatenation of
    the heads' z, [batch, pos, n_heads * d_head].

    Raises `InputError` for a model that is not a TransformerBridge, whose weights were processed (folded,
    centred), or that has a component ecstruct does not know.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.named_weights = named_weights(model)
        self.model = model
        self.hf: nn.Module = model.original_model
        self.blocks: list[nn.Module] = list(model.blocks)
        cfg = model.cfg
        self.n_layers, self.n_heads, self.d_head = len(self.blocks), cfg.n_heads, cfg.d_head
        self.parallel = bool(getattr(cfg, "parallel_attn_mlp", False))
        names = list(self.named_weights)
        outside = sites_of(model, [name for name in names if layer_of(name) is None], prefix="")
        self.head_sites = {n: s for n, s in outside.items() if kind_of(n) in ("final_norm", "unembed")}
        self.embed_sites = {n: s for n, s in outside.items() if n not in self.head_sites}
        self.block_sites = [
            _block_sites(block, [n for n in names if layer_of(n) == layer], f"blocks.{layer}.")
            for layer, block in enumerate(self.blocks)
        ]
        has_ln1, has_ln2 = (hasattr(self.blocks[0], name) for name in ("ln1", "ln2"))
        self.shared_norm = has_ln1 and not has_ln2 and self.parallel
        if "attn.kv_b_proj" in self.block_sites[0]:  # whose keys are wider than what the heads write
            written = self.block_sites[0]["attn.o"].matrix(self.named_weights)
            self.d_head = 0 if written is None else written.shape[1] // self.n_heads
        check_components(
            type(self.hf).__name__,
            self.blocks,
            self.block_sites,
            self.named_weights,
            n_heads=self.n_heads,
            d_head=self.d_head,
            shared_norm=self.shared_norm,
        )
        # The buffers of a half-precision checkpoint are cast up, like its weights.
        self._hf_buffers = _cast_up(self.hf, self.dtype)
        self._block_buffers = [_cast_up(b, self.dtype) if self._hf_buffers else {} for b in self.blocks]
        self._hf_names = names_under(self.hf, outside)
        self._block_names = [
            names_under(block, sites) for block, sites in zip(self.blocks, self.block_sites, strict=True)
        ]
        self._returns_tuple: bool | None = None

    @property
    def device(self) -> torch.device:
        return next(iter(self.named_weights.values())).device

    @property
    def projections(self) -> list[str]:
        """The projections of this model's MLPs and heads; see `Site.projection`."""
        found = {site.projection for sites in self.block_sites for site in sites.values() if site.weights}
        order = ("q", "k", "v", "o", "in", "gate", "out", "experts", "norm")
        return [name for name in order if name in found]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype everything is computed in: float64 for a float64 model, float32 for any other."""
        double = next(iter(self.named_weights.values())).dtype == torch.float64
        return torch.float64 if double else torch.float32

    def late_in_block(self, layer: int, sublayer: Sublayer) -> list[str]:
        """Return the names of a block's weights that act on what one of its sublayers writes.

        For the attention of a sequential block these are its post-norm and all of the MLP with its norms;
        for the MLP, and for both sublayers of a parallel block, they are the sublayer's own post-norm, if
        any."""
        if sublayer == "mlp" or self.parallel:
            late = ("ln2_post",) if sublayer == "mlp" else ("ln1_post",)
            sites = [name for name in self.block_sites[layer] if name in late]
        else:
            sites = [n for n in self.block_sites[layer] if n in _AFTER_ATTENTION or n.startswith("mlp.")]
        return [name for site in sites for name in self.block_sites[layer][site].weights.values()]

    def given_to_mlp(self, layer: int, taps: Mapping[str, Tap]) -> dict[str, Tensor]:
        """Return the `inputs` for `writer_inputs` that make the MLP read what it read in another run: the
        input of its pre-norm or, without one, of the MLP itself. An MLP that shares its pre-norm with the
        attention reads what enters the block, so nothing is given."""
        entry = self._mlp_entry(layer)
        return {} if self.shared_norm else {entry: taps[entry].input.detach()}

    def weights(self) -> dict[str, Tensor]:
        """Return this model's weights by name, detached and in `dtype`."""
        return {name: p.detach().to(self.dtype) for name, p in self.named_weights.items()}

    def embed(
        self,
        weights: Weights,
        ids: Int[Tensor, "batch pos"],
        mask: Tensor,
        positions: Int[Tensor, "batch pos"] | None = None,
    ) -> tuple[Trace, list[BlockCall]]:
        """Run the embedding; return the residual stream entering block 0, and the call of each block.

        `mask` is [batch, pos], 1 at real tokens, or [batch, 1, pos, pos], to be added to the attention
        scores. `positions` are the positions of the tokens, needed where these are not in order.
        """
        check_same_rotation(self.hf.config, mask)
        calls: list[BlockCall] = []
        entering: list[Tensor] = []

        def visit(call: BlockCall, resid: Tensor) -> Any:
            if not calls and self._returns_tuple is None:
                with torch.no_grad():
                    self._call_block(0, weights, call, resid)  # sets _returns_tuple
            calls.append(call)
            entering.append(resid)
            if len(calls) == self.n_layers:
                raise Stop
            return (resid,) if self._returns_tuple else resid

        with (
            self._bypassed(visit),
            tapping(self.embed_sites, len(ids), leaves=True) as taps,
            suppress(Stop),
        ):
            self._forward(weights, self.embed_sites, ids, mask, positions)
        return Trace(entering[0], taps), calls

    def block(
        self, layer: int, weights: Weights, call: BlockCall, resid: Float[Tensor, "batch pos d_model"]
    ) -> Trace:
        """Run one block on `resid`. The trace has taps of its sites, its pre-norms and the MLP's entry."""
        sinks = self.block_sites[layer].get(SINKS)
        names = sinks.weights.values() if sinks else ()
        leaves = {name: weights[name].detach().requires_grad_() for name in names}
        with tapping(self._tapped(layer), len(resid)) as taps:
            under: Any = ChainMap(leaves, weights)  # type: ignore[arg-type]  # which is read only
            output = self._call_block(layer, under, call, resid)
        taps.update((SINKS, Tap(leaf, leaf)) for leaf in leaves.values())
        return Trace(output, taps)

    def through(
        self,
        layer: int,
        weights: Weights,
        call: BlockCall,
        resid: Float[Tensor, "batch pos d_model"],
        written: Mapping[str, Tensor] | None = None,
        at: Int[Tensor, "batch read"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run one block on `resid` and return its output only, without taps.

        `written` replaces what the output projections `attn.o` and `mlp.out` write. If it replaces what
        attention writes, the attention runs on one token only, and its result is dropped. With `at`,
        attention and MLP write at these positions only, and the output at others has no meaning; this is
        for the last block, which is read at few tokens.
        """
        with shortcuts(self._tapped(layer), written or {}, at, *resid.shape[:2]):
            return self._call_block(layer, weights, call, resid)

    def writer_inputs(
        self,
        layer: int,
        weights: Weights,
        call: BlockCall,
        resid: Float[Tensor, "batch pos d_model"],
        inputs: Mapping[str, Tensor],
    ) -> tuple[Float[Tensor, "batch pos width"], Float[Tensor, "batch pos d_mlp"]]:
        """Return the inputs of the output projections `attn.o` (the heads' z) and `mlp.out` when the block
        runs on `resid`. `inputs` has the input of the MLP or of its pre-norm (see `given_to_mlp`), unless
        the MLP reads what the attention reads.

        Neither projection is computed in full: the run ends once both inputs are seen. As the MLP's input
        is known, nothing reads what the first projection writes, so it runs on one token only.
        """
        seen: dict[str, Tensor] = {}

        def see(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            if len(seen) == 2:
                raise Stop
            return value

        sites = self.block_sites[layer]
        others = [name for name in inputs if name not in sites]
        sites = {**{name: Site(name, getattr(self.blocks[layer], name), {}) for name in others}, **sites}
        before: dict[str, Edit] = {name: replaced_by(value) for name, value in inputs.items()}
        after: dict[str, Edit] = {}
        before["attn.o"] = lambda z: first_token(see("attn.o", z))
        if isinstance(sites["mlp.out"], Written):
            after["mlp.out"] = lambda output: see("mlp.out", output)
        else:
            before["mlp.out"] = lambda x: first_token(see("mlp.out", x))
        with editing(sites, before, after, len(resid)), suppress(Stop):
            self._call_block(layer, weights, call, resid)
        return seen["attn.o"], seen["mlp.out"]

    def head(self, weights: Weights, resid: Float[Tensor, "batch pos d_model"]) -> Trace:
        """Run the model's own head (final norm, unembedding, soft-cap) on the final residual stream at any
        positions; the output is the logits [batch, pos, d_vocab]."""
        ids = torch.zeros(resid.shape[:2], dtype=torch.long, device=resid.device)

        def visit(call: BlockCall, entering: Tensor) -> Any:
            return (resid,) if self._returns_tuple else resid

        with self._bypassed(visit), tapping(self.head_sites, len(resid)) as taps:
            out = self._forward(weights, self.head_sites, ids, torch.ones_like(ids))
        return Trace(out.logits, taps)

    def logits_at(
        self, weights: Weights, resid: Float[Tensor, "batch pos d_model"], at: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Return the logits of the head at one position of each row."""
        rows = torch.arange(len(resid), device=resid.device)
        return self.head(weights, resid[rows, at][:, None]).output[:, 0]

    def _forward(
        self,
        weights: Weights,
        sites: Mapping[str, Site],
        ids: Tensor,
        mask: Tensor,
        positions: Tensor | None = None,
    ) -> Any:
        """Run the model's own forward with the weights of these sites, which lie outside the blocks."""
        names = [name for site in sites.values() for name in site.weights.values()]
        local = {self._hf_names[name]: weights[name] for name in names}
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if positions is not None:
            inputs["position_ids"] = positions
        return _call(self.hf, {**self._hf_buffers, **local}, (), inputs)

    def _call_block(self, layer: int, weights: Weights, call: BlockCall, resid: Tensor) -> Tensor:
        args, kwargs = call.bind(resid)
        local = {here: weights[name] for name, here in self._block_names[layer].items()}
        out = _call(self.blocks[layer], {**self._block_buffers[layer], **local}, args, kwargs)
        drop_pattern(self.blocks[layer])
        self._returns_tuple = isinstance(out, tuple)
        return written_by(out, type(self.hf).__name__)

    def _tapped(self, layer: int) -> dict[str, "Site"]:
        """Return the sites of a block, its pre-norms and the entry of its MLP, even without weights."""
        block, sites = self.blocks[layer], self.block_sites[layer]
        entries = [name for name in ("ln1", self._mlp_entry(layer)) if hasattr(block, name)]
        tapped = {name: site for name, site in sites.items() if not isinstance(site, Sinks)}
        return {**{name: Site(name, getattr(block, name), {}) for name in entries}, **tapped}

    def _mlp_entry(self, layer: int) -> str:
        return "ln2" if hasattr(self.blocks[layer], "ln2") else self.mlp_module(layer)

    def mlp_module(self, layer: int) -> str:
        """Return the module whose input is that of the MLP itself: in the blocks of an encoder, no module
        is called but the projections of the MLP."""
        block: Any = self.blocks[layer]
        return "mlp.in" if hasattr(block, "mlp") and block.mlp.name is None else "mlp"

    @contextmanager
    def _bypassed(self, visit: Callable[[BlockCall, Tensor], Any]) -> Iterator[None]:
        """Replace all blocks by `Bypass`es that call `visit` in this context."""
        stack = self.model.blocks
        try:
            for layer, block in enumerate(self.blocks):
                stack[layer] = Bypass(block, visit)
            yield
        finally:
            for layer, block in enumerate(self.blocks):
                stack[layer] = block


def _block_sites(block: nn.Module, names: list[str], prefix: str) -> dict[str, Site]:
    if f"{prefix}mlp.in.weight" in names or not hasattr(block, "mlp"):
        return sites_of(block, names, prefix)
    others = [name for name in names if not name.startswith(f"{prefix}mlp.")]
    component: Any = block.mlp
    return {**sites_of(block, others, prefix), **whole_mlp(component, f"{prefix}mlp.")}


def _call(module: nn.Module, weights: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
    """Call `module` under `weights`.

    `tie_weights` is off because tied embeddings are two weights here, the embedding early, the unembedding
    late, and because a hooked model reaches one parameter by several names, of which `functional_call`
    would restore all but the first to the tensor passed in.
    """
    return functional_call(module, weights, args, kwargs, tie_weights=False)


def _cast_up(root: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    half = (torch.bfloat16, torch.float16)
    return {name: b.to(dtype) for name, b in root.named_buffers() if b.dtype in half}
