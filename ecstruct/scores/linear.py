"""The three linear scores of one block, from its visits in a walk under W and in one under W'.

With g = dR/dy under W and g' = dR/dy under W' (Feng, Russell and Steinhardt 2024, section 4):

    I_C = dR/dW_C . dW_C              D_C = g_C . (f_C(z'_C, W_C) - y_C)
    U_C = (g'_C - g_C) . (y_C - y*_C)

for an MLP or a head C of the block, per token; positive raises the reward. A head writes y_h = z_h W_O^h,
an MLP y = h W_out: both are linear in the input of an *output projection* (`attn.o`, `mlp.out`). So D is
computed at that input, g W^T . (z(z') - z), which spares the projection.

There are two conventions for assigning scores to tokens.

`"definition"`: a score is assigned to the token where the component writes. Heads are scored in residual
space: U_h = (g'_o - g_o) W_O^hT . (z_h - z*_h), with the original W_O both times; a change of W_K or W_V is
pushed through the attention pattern to the destination token; a pre-norm belongs to its component.

`"reference"`: the published code's choices. Heads are scored in z space, each gradient with its own W_O:
U_h = (g'_z - g_z) . (z_h - z*_h); D runs the projections again on the post-norm input under W'; the score
of a weight is assigned to the token where it multiplies, that of keys and values to the source token; norm
weights go to `rest`. The published code counts an MLP's W_out twice and omits W_in; that is corrected here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from ecstruct.models.experts import Experts
from ecstruct.models.hooked import HookedView
from ecstruct.models.sites import QK_NORMS, SINKS, Site, Weights, entries, of_heads, token_axis
from ecstruct.options import Convention
from ecstruct.scores.walk import Visit

PerToken = Float[Tensor, "batch pos"]
PerHead = Float[Tensor, "batch pos head"]
Z = Float[Tensor, "batch pos width"]
"""The heads' z, or a gradient there, concatenated: width = n_heads * d_head."""

Y = Float[Tensor, "batch pos d_model"]
"""What the MLP writes, or a gradient there."""


@dataclass(frozen=True)
class Informative:
    """I of one block: for its MLP, for its heads, and for its weights outside both, by group."""

    mlp: PerToken
    heads: PerHead
    rest: dict[str, PerToken]


def split_heads(x: Z, n_heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """Split the last dimension, a concatenation of heads, by head."""
    return rearrange(x, "batch pos (head d_head) -> batch pos head d_head", head=n_heads)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of vectors, [..., d] and [..., d], as [...]."""
    return (a * b).sum(-1)


def dot_heads(a: Z, b: Z, n_heads: int) -> PerHead:
    """Return the inner product of two concatenations of heads, head by head."""
    return sum_heads(a * b, n_heads)


def sum_heads(x: Z, n_heads: int) -> PerHead:
    """Return the sum over d_head of a concatenation of heads, head by head."""
    return reduce(x, "batch pos (head d_head) -> batch pos head", "sum", head=n_heads)


def weight_change(
    before: Weights, after: Weights, sites: Mapping[str, Site], buffers: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return dW = W' - W by name, for those weights of these sites that change.

    The differences are written into `buffers`, whose tensors are reused from block to block: on a CPU,
    allocating memory for a weight costs more than the subtraction. Experts on disk are subtracted when they
    are read.
    """
    change = {}
    for site in sites.values():
        for own_name, name in site.weights.items():
            old, new = before[name], after[name]
            if torch.equal(new, old):
                continue
            if isinstance(old, Experts):
                change[name] = new - old
                continue
            place = f"{site.name}.{own_name}"
            if place not in buffers or buffers[place].shape != old.shape:
                buffers[place] = torch.empty_like(old)
            change[name] = torch.sub(new, old, out=buffers[place])
    return change


def contribution(
    site: Site, visit: Visit, change: Weights, weights: Weights | None = None
) -> PerToken | None:
    """Return <dR/dW, dW> of one site under `weights`, at the token where its weights multiply; `None` if
    none of its weights changes."""
    along = site.product(visit.input(site.name), change, weights)
    return None if along is None else dot(visit.d_output[site.name], along)


def contribution_of_rows(site: Site, visit: Visit, before: Weights, after: Weights) -> PerToken:
    """Return what `contribution` does, of an embedding: dW is taken of those rows only that are looked
    up, few of a large table."""
    old, new = (site.product(visit.input(site.name), weights) for weights in (before, after))
    assert old is not None and new is not None
    return dot(visit.d_output[site.name], new - old)


def few_outputs(site: Site, visit: Visit) -> Tensor | None:
    """Return the indices of those outputs of a linear site at which the reward has a gradient, if they are
    few: a reward reads few logits of a large vocabulary."""
    if type(site.module) is not nn.Linear or "weight" not in site.weights:
        return None
    d_output = visit.d_output[site.name]
    found = d_output.flatten(0, -2).any(0).nonzero()[:, 0]
    return found if 4 * len(found) < d_output.shape[-1] else None


def contribution_of_outputs(
    site: Site, visit: Visit, outputs: Tensor, before: Weights, after: Weights
) -> PerToken:
    """Return what `contribution` does, of a linear site of whose outputs those with the indices `outputs`
    alone have a gradient: dW is taken of these only."""
    change = {name: after[name][outputs] - before[name][outputs] for name in site.weights.values()}
    along = site.product(visit.input(site.name), change)
    assert along is not None
    return dot(visit.d_output[site.name][..., outputs], along)


def informative(
    view: HookedView,
    sites: Mapping[str, Site],
    visit: Visit,
    weights: Weights,
    change: Weights,
    convention: Convention,
) -> Informative:
    """Compute I of one block from its visit under W, with gradients at all sites that change.

    A component's I sums over tokens to <dR/dW_C, dW_C>; with the rest, all sum to <dR/dW, dW> of the block.
    """
    z, n_heads = visit.input("attn.o"), view.n_heads
    mlp = torch.zeros_like(z[..., 0])
    heads = torch.zeros_like(split_heads(z, n_heads)[..., 0])
    rest: dict[str, Tensor] = {}

    def to_rest(group: str, value: Tensor | None) -> None:
        if value is not None:
            rest[group] = rest.get(group, torch.zeros_like(mlp)) + value

    for name, site in sites.items():
        if name.startswith("mlp.") or (name == "ln2" and convention == "definition"):
            value = contribution(site, visit, change, weights)
            mlp = mlp if value is None else mlp + value
        elif name.endswith("_post"):
            to_rest("post_norm", contribution(site, visit, change))
        elif name == "ln1" and view.shared_norm and convention == "definition":
            mlp = mlp + _through_mlp(sites, visit, weights, site.product(visit.input("ln1"), change))
        elif name in ("ln1", "ln2") and convention == "reference":
            to_rest("pre_norm", contribution(site, visit, change))
    o = sites["attn.o"]
    if (matrix := o.matrix(change)) is not None:
        heads = heads + dot_heads(visit.d_output["attn.o"] @ matrix, z, n_heads)
    if (bias := o.bias(change)) is not None:
        to_rest("attn_bias", visit.d_output["attn.o"] @ bias)
    into_attention = _attention_tangents(sites, visit, weights, change, convention)
    at_source = {}
    if convention == "reference":  # sinks multiply no token, and count where they take part in a softmax
        at_source = {name: t for name, t in into_attention.items() if name != SINKS}
    if at_source:
        heads = heads + _where_multiplied(view, sites, visit, at_source)
    if at_destination := {name: t for name, t in into_attention.items() if name not in at_source}:
        heads = heads + _at_destination(view, visit, at_destination)
    return Informative(mlp, heads, rest)


def _attention_tangents(
    sites: Mapping[str, Site],
    visit: Visit,
    weights: Weights,
    change: Weights,
    convention: Convention,
) -> dict[str, Tensor]:
    """Return the derivatives along dW of query, key and value (with convention "definition" including the
    change of their pre-norm) and of the outputs of their own norms, by site."""
    tangents = {}
    d_norm = None
    if convention == "definition" and "ln1" in sites:
        d_norm = sites["ln1"].product(visit.input("ln1"), change)
    for name in of_heads(sites):
        tangent = sites[name].product(visit.input(name), change)
        if d_norm is not None and name in entries(sites):
            matrix = sites[name].matrix(weights)
            assert matrix is not None
            through_norm = d_norm @ matrix.T
            tangent = through_norm if tangent is None else tangent + through_norm
        if tangent is not None:
            tangents[name] = tangent
    return tangents


def _through_mlp(
    sites: Mapping[str, Site], visit: Visit, weights: Weights, d_norm: Y | None
) -> PerToken | float:
    """Return <gradient at the MLP's input, change of that input> for a pre-norm that MLP and heads
    share, whose output changes by `d_norm`: only the part of the gradient at the norm's output that comes
    back through the MLP counts."""
    if d_norm is None:
        return 0.0
    total: PerToken | float = 0.0
    for name in ("mlp.in", "mlp.gate"):
        if name in sites:
            matrix = sites[name].matrix(weights)
            assert matrix is not None
            total = total + dot(visit.d_output[name], d_norm @ matrix.T)
    return total


def _at_destination(view: HookedView, visit: Visit, tangents: Mapping[str, Tensor]) -> PerHead:
    """Return g_z . dz, where dz is the first-order change of z if query, key and value move by `tangents`.

    phi(u) = <vjp of the attention pattern and mixing at u, tangents> is linear in u = dR/dz, and its
    gradient is dz. This takes two backward passes through the attention alone, whatever the architecture
    does there (rotary, clipping, soft-caps, shared key and value heads).
    """
    names = list(tangents)
    u = visit.d_input["attn.o"].detach().requires_grad_()
    with torch.enable_grad():
        pulled = torch.autograd.grad(
            visit.taps["attn.o"].input,
            [visit.taps[name].output for name in names],
            grad_outputs=u,
            create_graph=True,
        )
        (dz,) = torch.autograd.grad(pulled, u, grad_outputs=[tangents[name] for name in names])
    return dot_heads(u.detach(), dz, view.n_heads)


def _where_multiplied(
    view: HookedView, sites: Mapping[str, Site], visit: Visit, tangents: Mapping[str, Tensor]
) -> PerHead:
    """Assign the scores of query, key and value each to its own token. A key or value head that several
    query heads share is split among them by the gradients that come back through each of them alone. Where
    one norm acts on all heads of a token, every head depends on all queries and keys, and its whole
    gradient counts."""
    n_heads, d_z = view.n_heads, visit.d_input["attn.o"]
    total = torch.zeros_like(split_heads(d_z, n_heads)[..., 0])
    names = list(tangents)
    z, outputs = visit.taps["attn.o"].input, [visit.taps[name].output for name in names]
    read_all = any(name in visit.taps and visit.taps[name].output.ndim == 3 for name in QK_NORMS)
    read_all = read_all or "attn.k" not in sites  # latents, which all heads share
    n_shared = n_heads if read_all else n_heads * view.d_head // visit.taps["attn.k"].output.shape[-1]
    for turn in range(n_shared):
        asked = (torch.arange(n_heads, device=d_z.device) % n_shared == turn)[:, None]
        part = rearrange(
            split_heads(d_z, n_heads) * asked, "batch pos head d_head -> batch pos (head d_head)"
        )
        pulled = torch.autograd.grad(z, outputs, grad_outputs=part, retain_graph=True)
        for name, gradient in zip(names, pulled, strict=True):
            value = gradient * tangents[name]
            if read_all and value.ndim == 3:
                total[..., turn] += value.sum(-1)
                continue
            value = _by_head(value, sites[name], view.d_head)
            if read_all:
                total[..., turn] += value.sum(-1)
            elif value.shape[-1] == n_heads:
                total += value
            else:
                total[..., turn::n_shared] += value
    return total


def _by_head(x: Tensor, site: Site, d_head: int) -> Float[Tensor, "batch pos some"]:
    """Sum within each query, key or value head; `x` is a query, key or value, [batch, pos, head * d_head],
    or what a norm of single queries or keys writes, whose heads have an axis of their own."""
    if x.ndim == 3:
        return reduce(x, "batch pos (head d_head) -> batch pos head", "sum", d_head=d_head)
    return x.sum(-1).movedim(token_axis(site), 1)


def upstream(
    view: HookedView, before: Visit, d_written: Y, d_z: Z, z_star: Z, y_star: Y
) -> tuple[PerToken, PerHead]:
    """Compute U of one block's MLP and heads; `d_written` is the change of the slope at what the MLP
    writes, `d_z` the change of the slope at the heads' z."""
    mlp = dot(d_written, before.output("mlp.out") - y_star)
    return mlp, dot_heads(d_z, before.input("attn.o") - z_star, view.n_heads)


def pulled_back(sites: Mapping[str, Site], old: Visit, new: Visit, weights: Weights) -> Z:
    """Return (g'_o - g_o) W_O^T: the change of the slope at what the heads write, pulled back to their z
    through W_O of `weights`."""
    matrix = sites["attn.o"].matrix(weights)
    assert matrix is not None
    return (new.d_output["attn.o"] - old.d_output["attn.o"]) @ matrix


def downstream(
    view: HookedView, before: Visit, z_at: Z, hidden_at: Float[Tensor, "batch pos d_mlp"]
) -> tuple[PerToken, PerHead]:
    """Compute D of one block's MLP and heads; `z_at` and `hidden_at` are the inputs of `attn.o` and
    `mlp.out` when the components run under W on their inputs z' from the run under W'."""
    mlp = dot(before.d_input["mlp.out"], hidden_at - before.input("mlp.out"))
    return mlp, dot_heads(before.d_input["attn.o"], z_at - before.input("attn.o"), view.n_heads)


def attribution(view: HookedView, before: Visit, z_star: Z, y_star: Y) -> tuple[PerToken, PerHead]:
    """Compute R_C = g_C . (y_C - y*_C) of MLP and heads under W."""
    return (
        dot(before.d_output["mlp.out"], before.output("mlp.out") - y_star),
        dot_heads(before.d_input["attn.o"], before.input("attn.o") - z_star, view.n_heads),
    )


def attribution_after(
    view: HookedView, before: Visit, after: Visit, d_z: Z, z_star: Z, y_star: Y
) -> tuple[PerToken, PerHead]:
    """Compute R_C under W', with the y* of W. Its change is U + I + D to first order in the change of
    weights, with the paper's U (its appendix A)."""
    # g'_o . (z' W'_O - z* W_O), where g'_o W_O^T = g_z + (g'_o - g_o) W_O^T.
    at_baseline = (before.d_input["attn.o"] + d_z) * z_star
    at_new = after.d_input["attn.o"] * after.input("attn.o")
    return (
        dot(after.d_output["mlp.out"], after.output("mlp.out") - y_star),
        sum_heads(at_new - at_baseline, view.n_heads),
    )
