"""Classifiers: `...ForSequenceClassification` checkpoints, of decoders and of encoders, as hooked models.

A classifier is hooked as the language model of its architecture, with its head in the place of the
unembedding: the matrix `score` of a decoder; the pooler and the classifier of an encoder, whose weights are
`pooler` and `unembed`. transformers reads the head at one token of every text, and a hooked classifier at
every token, [batch, pos, n_labels], as a language model does its unembedding. Which of them counts is said
by the prompts' batch: the last token of a text in a decoder, the first one ([CLS]) in an encoder.

The blocks of an encoder are bidirectional, and normed after the residual stream is added: x = ln1_post(x +
attention), x = ln2_post(x + MLP). If an encoder embeds the second text of a pair in a way of its own
(BERT), the ids of that text are counted from the size of the vocabulary on.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    LinearBridge,
    UnembeddingBridge,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from ecstruct.errors import InputError
from ecstruct.models.labels import Labels, set_labels

_SUFFIX = "ForSequenceClassification"

_HEADS = {
    "bert": ("bert.pooler.dense", "classifier"),
    "roberta": ("classifier.dense", "classifier.out_proj"),
}
"""For each kind of encoder that can be hooked, where its pooler and its classifier are."""


def is_classifier(config: Any) -> bool:
    """Return whether a Hugging Face configuration is that of a classifier."""
    names = getattr(config, "architectures", None)
    return isinstance(names, list | tuple) and any(str(name).endswith(_SUFFIX) for name in names)


def auto_class(config: Any) -> Any:
    """Return the class of transformers that builds the model of a configuration."""
    return AutoModelForSequenceClassification if is_classifier(config) else AutoModelForCausalLM


def is_encoder(config: Any) -> bool:
    """Return whether a Hugging Face configuration is that of an encoder, with whatever head."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def labels_in(config: Any) -> Labels:
    """Return the labels of a classifier, by its configuration.

    Raises:
        InputError: It has a single output, or outputs that do not exclude one another.
    """
    names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len(names) < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or "regression"
        raise InputError(
            f"this classifier has {len(names)} outputs ({kind.replace('_', ' ')}), and labels are told "
            "apart as options, of which one is right: use a classifier of two or more labels that exclude "
            "one another."
        )
    encoder = is_encoder(config)
    return Labels(
        names,
        at_start=encoder,
        skipped=None if encoder else config.pad_token_id,
        second_from=config.vocab_size if _embeds_second(config) else None,
    )


def tokenizer_for(config: Any, tokenizer: Any) -> Any:
    """Return the tokenizer of a model, if it has one; for a classifier, a copy that has its labels."""
    if tokenizer is None or not is_classifier(config):
        return tokenizer
    return set_labels(copy.deepcopy(tokenizer), labels_in(config))


def hookable(hf: Any) -> Any:
    """Return a Hugging Face model in a form that TransformerLens can hook. Of a classifier it is another
    object with the same modules, whose forward pass gives the logits of its head at every token, [batch,
    pos, label]; any other model is returned as it is."""
    if is_classifier(hf.config) or type(hf).__name__.endswith(_SUFFIX):
        hf.config.architectures = [type(hf).__name__]  # from_pretrained may keep the name of another model
    if not is_classifier(hf.config):
        return hf
    labels_in(hf.config)  # raises if it has none
    own = copy.copy(hf)
    own.forward = MethodType(_forward_at_every_token, own)
    return own


def _forward_at_every_token(own: Any, input_ids: Tensor, **inputs: Any) -> SequenceClassifierOutput:
    config = own.config
    if _embeds_second(config) and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = input_ids // config.vocab_size
        input_ids = input_ids % config.vocab_size
    resid = own.base_model(input_ids, **inputs)[0]
    if not is_encoder(config):
        return SequenceClassifierOutput(logits=own.score(resid))
    pooler, classifier = (own.get_submodule(name) for name in _HEADS[config.model_type])
    return SequenceClassifierOutput(logits=classifier(torch.tanh(pooler(resid))))


def _embeds_second(config: Any) -> bool:
    return is_encoder(config) and getattr(config, "type_vocab_size", 1) > 1


@contextmanager
def recognised(hf: Any) -> Iterator[None]:
    """Let TransformerLens know in this context where the modules of a classifier are."""
    if not is_classifier(hf.config):
        yield
        return
    name, adapter = type(hf).__name__, _adapter_of(hf)
    ArchitectureAdapterFactory.register_adapter(name, adapter)
    with patch.dict(SUPPORTED_ARCHITECTURES, {name: adapter}):  # by which an architecture is recognised
        yield


def _adapter_of(hf: Any) -> Any:
    """Return TransformerLens' adapter of the architecture, with the head of a classifier."""
    model_type, encoder = hf.config.model_type, is_encoder(hf.config)
    if encoder and model_type not in _HEADS:
        raise InputError(
            f"a {type(hf).__name__} cannot be hooked: of encoders, {' and '.join(sorted(_HEADS))} can."
        )
    if encoder and version("transformer-lens").startswith("3."):
        raise InputError(f"TransformerLens 3 cannot hook a {type(hf).__name__}: install TransformerLens 4.")
    of = MODEL_FOR_MASKED_LM_MAPPING_NAMES if encoder else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    adapter = SUPPORTED_ARCHITECTURES.get(of.get(model_type, ""))
    if adapter is None:
        raise InputError(f"TransformerLens cannot hook a {type(hf).__name__}: use another architecture.")

    class OfClassifier(adapter):
        def prepare_model(self, hf_model: Any) -> None:
            super().prepare_model(hf_model)
            parts: Any = self.component_mapping
            if not encoder:
                parts["unembed"] = UnembeddingBridge(name="score")
                return
            for name in ("mlm_head", "nsp_head", "ln_final"):
                parts.pop(name, None)
            pooler, classifier = _HEADS[model_type]
            parts["pooler"] = LinearBridge(name=pooler)
            parts["unembed"] = UnembeddingBridge(name=classifier)
            parts["blocks"] = _post_normed(parts["blocks"])

    return OfClassifier


def _post_normed(blocks: Any) -> BlockBridge:
    """Give the norms of an encoder's blocks the names of norms after attention and MLP."""
    parts: dict[str, Any] = blocks.submodules
    renamed = {"ln1": "ln1_post", "ln2": "ln2_post"}
    return BlockBridge(
        name=blocks.name,
        submodules={renamed.get(name) or name: part for name, part in parts.items()},
        hook_alias_overrides={
            "hook_attn_out": "attn.hook_out",
            "hook_mlp_out": "mlp.out.hook_out",
            "hook_mlp_in": "mlp.in.hook_in",
            "hook_resid_mid": "mlp.in.hook_in",
        },
    )


def with_labels(config: Any, labels: Any, name: str) -> tuple[Any, bool]:
    """Return a copy of a configuration as that of a classifier with these labels, and whether its head is
    new. Labels of a classifier that has no names for its own (LABEL_0, ...) get these.

    Raises:
        InputError: The labels cannot be used, or the checkpoint is a classifier with others.
    """
    if isinstance(labels, str) or not isinstance(labels, Collection) or len(labels := [*labels]) < 2:
        raise InputError(f"labels={labels!r} are no labels: give a list of two names or more.")
    for label in labels:
        if not isinstance(label, str) or not label.strip() or labels.count(label) > 1:
            raise InputError(
                f"{label!r} among labels={labels!r} is no text, is empty or is there twice: give "
                "names that differ."
            )
    new = not is_classifier(config)
    own = copy.deepcopy(config)
    if not new:
        has = labels_in(config).names
        unnamed = has == tuple(f"LABEL_{i}" for i in range(len(has)))
        if tuple(labels) != has and not (unnamed and len(labels) == len(has)):
            raise InputError(
                f"{name} is a classifier with the labels {', '.join(has)}, and labels={labels!r} are "
                "given: leave them away, or give the model from which to train another classifier."
            )
    elif (kind := MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)) is None:
        raise InputError(f"{name} is a {config.model_type}, of which transformers has no classifier.")
    else:
        own.architectures, own.problem_type = [kind], None
    own.id2label = dict(enumerate(labels))
    own.label2id = {label: i for i, label in own.id2label.items()}
    return own, new


def is_of_head(name: str) -> bool:
    """Return whether a tensor of a checkpoint is of a head, and not of the model below it."""
    return bool({"lm_head", "embed_out", "cls", "pooler", "classifier", "score"} & set(name.split(".")))


@torch.no_grad()
def fill_head(hf: Any, names: list[str], seed: int) -> None:
    """Set these weights of a head to random ones: matrices are normal, with the standard deviation of the
    configuration's `initializer_range`, and biases are zero."""
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(hf.config, "initializer_range", None) or 0.02)
    for name in sorted(names):
        p = hf.get_parameter(name)
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        p.copy_(deviation * noise if p.ndim > 1 else torch.zeros_like(p))
