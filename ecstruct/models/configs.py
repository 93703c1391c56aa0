"""Check that two configurations ask for the same computation.

Scores run the weights of both checkpoints through one model, that of the checkpoint before. If the
configuration after asks for another computation (a rotary base, a norm's epsilon, an activation), the
weights after would run in a way in which they were never trained.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.models.classifiers import is_classifier, labels_in

_logger = logging.getLogger(__name__)

_SAME_ANYHOW = frozenset(
    {
        # Making, saving and training.
        *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
        *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"),
        *("classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"),
        *("initializer_range", "pretraining_tp"),
        *("router_aux_loss_coef", "output_router_logits", "router_jitter_noise"),
        # Settings of generation and padding.
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "use_cache"),
        "tie_word_embeddings",  # the tensors show whether they are tied
        "vocab_size",  # compared separately
        # Settings of other kinds of models.
        *("id2label", "label2id", "problem_type", "return_dict", "output_attentions"),
        *("output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder"),
    }
)
"""Keys of a configuration that do not change the logits of a prompt."""


def check_same_computation(before: Any, after: Any) -> None:
    """Raise `InputError` if two Hugging Face configurations differ in their class or in keys on which the
    logits depend, which are named. Keys that the class does not know do not affect the computation."""
    if type(before) is not type(after):
        raise InputError(
            f"the models are a {_model(before)} before and a {_model(after)} after: compare two "
            "checkpoints of one architecture."
        )
    labels = [labels_in(config).names if is_classifier(config) else () for config in (before, after)]
    if labels[0] != labels[1]:
        told = [", ".join(names) or "none, as a language model" for names in labels]
        raise InputError(
            f"the labels of the models differ: {told[0]} before, and {told[1]} after: compare two "
            "checkpoints of one classifier, or name the labels alike with load(..., labels=[...])."
        )
    old, new = before.to_dict(), after.to_dict()
    n_before, n_after = (config.get("vocab_size") for config in (old, new))
    if n_before > n_after:
        raise InputError(
            f"the vocabulary of the model after has {n_after} tokens, and that before {n_before}: compare "
            "with a model whose tokens are all there."
        )
    if n_before < n_after:
        _logger.warning(
            "the vocabulary after has %d tokens and that before %d: the others are left out, as no prompt "
            "has them",
            *(n_after, n_before),
        )
    known = type(before)().to_dict().keys() - _SAME_ANYHOW
    if _plain_rotary(old) and _plain_rotary(new):
        known -= {"max_position_embeddings"}  # it only limits the length of prompts
    if differing := sorted(key for key in known if not _alike(old.get(key), new.get(key))):
        told = "; ".join(f"{key}: {old.get(key)} before, {new.get(key)} after" for key in differing)
        raise InputError(
            f"the configurations of the models ask for different computations ({told}), and scores run "
            "both weights through one: compare checkpoints that agree in these, or correct the config.json "
            "that is wrong."
        )


def warn_of_buffers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Log a warning if two checkpoints differ in a buffer, which is no weight and has no score."""
    for name, b in before.items():
        other = after.get(name, b)
        if b.shape == other.shape and not torch.equal(b.cpu(), other.to("cpu", b.dtype)):
            _logger.warning("the models differ in %s, which is no weight: that before is used", name)
            return


def _alike(old: Any, new: Any) -> bool:
    """Return whether two values are equal up to the rounding of files that store 32-bit numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_alike(old[key], new[key]) for key in old)
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-6)
    return old == new


def check_same_rotation(config: Any, mask: Tensor) -> None:
    """Raise `InputError` if the longest prompt of a batch, by its attention mask [batch, pos], changes the
    rotary embedding of the others (LongRoPE); masks of other shapes pass."""
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "longrope" or mask.ndim != 2:
        return
    default = getattr(config, "original_max_position_embeddings", None)
    limit = rotary.get("original_max_position_embeddings", default)
    lengths = mask.sum(1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if limit is not None and shortest <= limit < longest:
        raise InputError(
            f"prompts of {shortest} and of {longest} tokens cannot share a batch: with one of more "
            f"than {limit} this model rotates all of them otherwise (LongRoPE), so give short and long "
            "prompts apart, or batch_size=1."
        )


def _plain_rotary(config: dict[str, Any]) -> bool:
    rotary = config.get("rope_parameters") or {}
    return rotary.get("rope_type", "default") == "default"


def _model(config: Any) -> str:
    return str(getattr(config, "model_type", type(config).__name__))
