"""Programs as the weights of a plain GPT-2, by Tracr (Lindner et al. 2023, arXiv 2301.05062).

Tracr's transformers have no norms, and heads and MLPs as wide as a program needs. Here they are put into a
GPT-2 of a fixed width, with ReLU. Beside the dimensions that the program uses, its residual stream has
three:

* one holds minus the sum of all the others that are written, so that the mean of the stream is 0;
* two hold C and -C, beside which everything else is small, so that its variance is 2 C² / d_model.

A LayerNorm with gain C sqrt(2 / d_model) and epsilon 0 is then the identity, up to |x|² / (4 C²) of x.

Tracr's MLPs have units for what is read, x for a table of one value and x + x' - 1 for one of two, where x
is 1 if a value is there and 0 if not: most of them sit at the kink of ReLU, where nothing has a derivative.
Here,

* a table of one value has two units for each, of which one is open always and one opens on the way,
  x = (relu(x + 1) + relu(2x - 1) - 1) / 2, so that the slope is 1/2 where a value is not there and 3/2
  where it is: neither 0 nor always the same, as in a model that was trained;
* a unit of a table of two, relu(2x + 2x' - 3), opens for both values and is well closed for one of them.

Every weight is a whole number or a half.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from tracr.compiler import (
    assemble,
    basis_inference,
    craft_graph_to_model,
    craft_model_to_transformer,
    expr_to_craft_graph,
    nodes,
    rasp_to_graph,
)
from tracr.craft import bases, transformers
from tracr.rasp import rasp

BOS, PAD = "<bos>", "<pad>"
D_MODEL, N_HEADS, C = 128, 2, 10_000
D_HEAD = D_MODEL // N_HEADS
BALANCE, PLUS, MINUS = D_MODEL - 3, D_MODEL - 2, D_MODEL - 1
_MATRICES = ("attn/query", "attn/key", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2")


@dataclass(frozen=True)
class Component:
    """A head or the MLP of a layer, and the labels of the values that it writes. Its `place` is the layer,
    and in it 0 for heads and 1 for the MLP."""

    name: str
    place: tuple[int, int]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """A program as a transformer: its expressions by their labels, those that it says, the components that
    compute them, the words that are tokens, and the weights by the names that they have in GPT-2."""

    expressions: Mapping[str, rasp.RASPExpr]
    sinks: Sequence[str]
    components: Sequence[Component]
    vocabulary: Sequence[str]
    weights: Mapping[str, np.ndarray]


def start_labels() -> None:
    """Number expressions from 1 again: the same program, made again, has the same labels."""
    rasp.RASPExpr._ids = itertools.count(1)


def compiled(sinks: Sequence[rasp.SOp], words: Sequence[str], length: int) -> Compiled:
    """A program that says some values, as a transformer that reads up to `length` of these words."""
    parts = [rasp_to_graph.extract_rasp_graph(sink) for sink in sinks]
    graph = nx.compose_all([part.graph for part in parts])
    sources = list({node[nodes.ID]: node for part in parts for node in part.sources}.values())
    for part in parts:
        basis_inference.infer_bases(graph, part.sink, set(words), length)
    bos = bases.BasisDirection(rasp.tokens.label, BOS)
    expr_to_craft_graph.add_craft_components_to_rasp_graph(graph, bos_dir=bos)
    craft = craft_graph_to_model.craft_graph_to_model(graph, sources)
    model = craft_model_to_transformer.craft_model_to_transformer(
        craft, graph, graph.nodes[sinks[0].label], length, BOS, PAD, causal=True
    )
    said = {
        f"{sink.label}:{value}": value
        for sink in sinks
        for value in sorted(graph.nodes[sink.label][nodes.VALUE_SET])
    }
    vocabulary = list(dict.fromkeys((PAD, BOS, *words, *said.values())))
    weights = _weights(model, vocabulary)
    for dimension, value in said.items():
        place = vocabulary.index(value), model.residual_labels.index(dimension)
        weights["lm_head.weight"][place] = 1 / len(sinks)
    return Compiled(
        {label: node[nodes.EXPR] for label, node in graph.nodes.items()},
        [sink.label for sink in sinks],
        _components(graph, sources, craft),
        vocabulary,
        weights,
    )


def _components(
    graph: nx.DiGraph, sources: Sequence[nodes.Node], craft: transformers.SeriesWithResiduals
) -> list[Component]:
    """The compiler gives every value a half layer, and these the first fitting places in the model."""
    half_layer = craft_graph_to_model._allocate_modules_to_layers(graph, sources)
    _, modules = assemble._get_model_config_and_module_names(craft)
    places = dict(zip(sorted(set(half_layer.values())), modules, strict=True))
    labels: dict[str, list[str]] = {}
    place_of, n_heads = {}, Counter()
    for label, half in half_layer.items():
        _, layer, part = places[half].split("/")
        layer, is_mlp = int(layer.removeprefix("layer_")), part == "mlp"
        name = f"MLP {layer}" if is_mlp else f"head {layer}.{n_heads[layer]}"
        n_heads[layer] += not is_mlp
        labels.setdefault(name, []).append(label)
        place_of[name] = layer, int(is_mlp)
    return [Component(name, place_of[name], tuple(of_it)) for name, of_it in labels.items()]


def _weights(model: assemble.AssembledTransformerModel, vocabulary: Sequence[str]) -> dict[str, np.ndarray]:
    """All weights that are not 0, and an unembedding that is."""
    config = model.model_config
    tokens = np.asarray(model.params["token_embed"]["embeddings"])
    n_used = tokens.shape[1]
    if config.num_heads > N_HEADS or config.key_size > D_HEAD or n_used > BALANCE:
        raise ValueError(f"it needs more than {N_HEADS} heads of {D_HEAD}, or {BALANCE} dimensions")

    def written(rows: np.ndarray) -> np.ndarray:
        """[any, used] to [any, d_model], each row with a sum of 0."""
        wide = np.zeros((len(rows), D_MODEL))
        wide[:, :n_used], wide[:, BALANCE] = rows, -rows.sum(1)
        return wide

    embedding = np.zeros((len(vocabulary), D_MODEL))
    embedding[:, PLUS], embedding[:, MINUS] = C, -C
    for word, row in model.input_encoder.encoding_map.items():
        embedding[vocabulary.index(word)] += written(tokens[row : row + 1])[0]
    gain = np.full(D_MODEL, C * math.sqrt(2 / D_MODEL))
    weights = {
        "transformer.wte.weight": embedding,
        "transformer.wpe.weight": written(np.asarray(model.params["pos_embed"]["embeddings"])),
        "transformer.ln_f.weight": gain,
        "lm_head.weight": np.zeros((len(vocabulary), D_MODEL)),
    }
    for layer in range(config.num_layers):
        ours = f"transformer.h.{layer}"
        q, k, v, o, into, out = (
            np.asarray(model.params[f"transformer/layer_{layer}/{name}"]["w"]) for name in _MATRICES
        )
        read, merged = np.zeros((3, D_MODEL, N_HEADS, D_HEAD)), np.zeros((N_HEADS, D_HEAD, D_MODEL))
        for which, matrix in enumerate((q, k, v)):
            by_head = matrix.reshape(n_used, config.num_heads, config.key_size)
            read[which, :n_used, : config.num_heads, : config.key_size] = by_head
        read[0] *= math.sqrt(D_HEAD)  # by which GPT-2 divides: scores are 100, and 50 for the first token
        by_head = written(o).reshape(config.num_heads, config.key_size, D_MODEL)
        merged[: config.num_heads, : config.key_size] = by_head
        into, threshold, out, bias = _bent(into, out)
        weights |= {
            f"{ours}.ln_1.weight": gain,
            f"{ours}.attn.c_attn.weight": np.moveaxis(read, 0, 1).reshape(D_MODEL, -1),
            f"{ours}.attn.c_proj.weight": merged.reshape(D_MODEL, D_MODEL),
            f"{ours}.ln_2.weight": gain,
            f"{ours}.mlp.c_fc.weight": np.pad(into, ((0, D_MODEL - n_used), (0, 0))),
            f"{ours}.mlp.c_fc.bias": threshold,
            f"{ours}.mlp.c_proj.weight": written(out),
            f"{ours}.mlp.c_proj.bias": written(bias[None])[0],
        }
    return {name: value.astype(np.float32) for name, value in weights.items()}


def _bent(into: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tracr's tables with the units described above, of which there are at most twice as many: what these
    read, their biases, what they write, and the bias of that."""
    of_two = (into < 0).any(0)  # by their threshold, which Tracr reads from a dimension that is always 1
    read, half = into[:, ~of_two], out[~of_two] / 2
    one, spare = read.any(0).astype(float), of_two.sum()
    return (
        np.concatenate([2 * into[:, of_two], read, 2 * read, np.zeros((len(into), spare))], 1),
        np.concatenate([-np.ones(spare), one, -one, np.zeros(spare)]),
        np.concatenate([out[of_two], half, half, np.zeros((spare, out.shape[1]))]),
        -half.sum(0),
    )
