"""Find what a source names, a local folder or a model on the hub; read its configuration and tokenizer."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.hub import cached_file

from ecstruct.errors import InputError
from ecstruct.models.adapters import is_adapter
from ecstruct.models.boot import cause, gist
from ecstruct.models.checkpoint import check_weights_are_there
from ecstruct.models.delta import base_of, is_delta
from ecstruct.models.gguf import dequantised, gguf_at
from ecstruct.models.shards import check_merged
from ecstruct.models.steps import instead, resolved
from ecstruct.named_models import named, names

_logger = logging.getLogger(__name__)

DAMAGED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError, StrictDataclassError),
)
"""The errors that transformers raises when it reads files that are malformed or nested too deeply."""

_SIZES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 2**30),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 10_000),
    **dict.fromkeys(("head_dim", "num_local_experts", "num_experts", "num_experts_per_tok"), 10_000),
}
"""The largest plausible values of configuration entries that must be at least 1. Larger ones are mistakes,
for which it would take hours to build the modules."""


@dataclass(frozen=True)
class Located:
    """A checkpoint: its name without the revision, and its folder, `None` if it is on the hub. `weights`
    says how the weights in the folder were converted, or which of several they are."""

    name: str
    revision: str | None = None
    folder: Path | None = None
    weights: str = ""

    @property
    def where(self) -> str:
        """The folder or hub id, as transformers takes it."""
        return str(self.folder or self.name)

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments for transformers: the revision of a model on the hub."""
        return {} if self.folder else {"revision": self.revision}

    @contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn the errors that libraries raise in this context, in which the files are read, into
        `InputError`."""
        try:
            yield
        except InputError:
            raise
        except DAMAGED as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> InputError:
        """Return the error that says in one sentence why the checkpoint could not be loaded."""
        if self.folder:
            return InputError(
                f"the folder {self.name} cannot be loaded as a causal language model ({cause(error)}): see "
                "whether its config.json is the one that was saved with its weights, and whether this "
                "version of transformers knows what it asks for."
            )
        return InputError(
            f"{self.name!r} is no local folder and could not be loaded from the hub: check the spelling, "
            f"the network and, for a gated model, your login ({gist(error)})."
        )


def located(source: str | Path, revision: str | None = None) -> Located:
    """Locate the checkpoint of a source; fetch named models and dequantise GGUF files if need be.

    Raises:
        InputError: It is not a checkpoint, has two revisions, or has one although such sources have none.
    """
    name = resolved(source)
    if revision is not None and Path(name).is_dir():
        name, revision = resolved(f"{name}@{revision}"), None
    elif "@" in name and not Path(name).exists():
        name, _, at = name.partition("@")
        if revision not in (None, at):
            raise InputError(f"two revisions are given, {at!r} and {revision!r}: give one.")
        revision = at
    if known := named(name):
        if revision is not None:
            raise InputError(f"{name} has no revisions, and revision={revision!r} is given: leave it away.")
        return Located(name, None, *known.locate())
    if file := gguf_at(Path(name)):
        if revision is not None:
            raise InputError(f"a GGUF file has no revisions, and {revision!r} is given: leave it away.")
        return Located(name, None, *dequantised(file))
    return Located(name, revision, _local_folder(name))


def check_there(source: str) -> None:
    """Raise `InputError` if a source is neither a local checkpoint nor, by its name, one on the hub.
    Nothing is fetched or read."""
    name = resolved(source)
    if gguf_at(Path(name)) is None:
        _local_folder(name if Path(name).exists() else name.partition("@")[0])


def read_config(at: Located) -> Any:
    """Read the configuration of a checkpoint."""
    with at.explaining_errors():
        config = AutoConfig.from_pretrained(at.where, trust_remote_code=False, **at.options)
    for key, most in _SIZES.items():
        if isinstance(size := getattr(config, key, None), int) and not 0 < size <= most:
            raise InputError(
                f"the config.json of {at.name} says that {key} is {size}, but it must be between 1 and "
                f"{most}: correct it, or fetch the checkpoint again."
            )
    return config


def read_tokenizer(at: Located) -> Any:
    """Read the tokenizer that is saved with the weights of a checkpoint."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(at.where, trust_remote_code=False, **at.options)
        said = cached_file(
            at.where, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **at.options
        )
        if said is None:
            return tokenizer
        (of_file := Tokenizer.from_file(said)).no_padding()  # to which the file may ask to pad
        if (text := _read_otherwise(tokenizer, of_file)) is None:
            return tokenizer
        _logger.warning(
            "transformers makes another tokenizer of %s than its tokenizer.json says (%r differs): the "
            "file's is used",
            *(at.name, text),
        )
        return PreTrainedTokenizerFast.from_pretrained(at.where, trust_remote_code=False, **at.options)
    except DAMAGED as error:
        if _needs_code(at):
            raise InputError(
                f"the tokenizer of {at.name} needs code of its own (auto_map in its "
                "tokenizer_config.json), which is never run: save a PreTrainedTokenizerFast of it beside "
                "the weights."
            ) from error
        raise InputError(f"{at.name} has no usable tokenizer: save it beside the weights.") from error


def usable_tokenizer(at: Located) -> Any:
    """Read the tokenizer of a checkpoint; if that fails, log a warning and return `None`."""
    try:
        return read_tokenizer(at)
    except InputError as error:
        _logger.warning("%s The tokenizer of the model before reads all prompts.", error)
        return None


def _needs_code(at: Located) -> bool:
    try:
        return "AutoTokenizer" in get_tokenizer_config(at.where, **at.options).get("auto_map", ())
    except DAMAGED:
        return False


_PROBES = (
    "Ada was born in 1987",
    "  two  spaces, 12,345.6!",
    "It's\n\tCAFÉ naïve",
    "Tōkyō 東京 ½",
    "a_b(c)",
)
"""Texts in which tokenizers differ: digits, spaces, apostrophes, capitals, accents, other scripts."""


def _read_otherwise(tokenizer: Any, of_file: Tokenizer) -> str | None:
    """Return the first of `_PROBES` to which a tokenizer gives other ids than the file it was made from."""

    def ids(encode: Callable[[str], list[int]], text: str) -> list[int] | None:
        try:
            return encode(text)
        except Exception:  # tokenizers raises nothing more specific for symbols not in the vocabulary
            return None

    for text in _PROBES:
        ours = ids(lambda t: tokenizer(t, add_special_tokens=False)["input_ids"], text)
        if ours != ids(lambda t: of_file.encode(t, add_special_tokens=False).ids, text):
            return text
    return None


def tokenizer_at(source: str | Path) -> Any:
    """Read the tokenizer of a source; for a saved delta, that of the model before."""
    at = located(base_of(source) if is_delta(source) else source)
    read_config(at)  # its errors say more clearly what is wrong with a source
    return read_tokenizer(at)


def _local_folder(name: str) -> Path | None:
    """Return the local folder that `name` stands for, `None` for a hub id or a named model."""
    if name in names():
        return None
    path = Path(name)
    if path.is_dir():
        if is_adapter(path) and not (path / "config.json").is_file():
            raise InputError(
                f"the folder {name} is an adapter: give the model that it changes with adapter=, or, in a "
                "command that compares two models, the adapter as --after."
            )
        check_merged(path)
        if not (path / "config.json").is_file():
            raise InputError(f"the folder {name} has no config.json: {instead(name)}.")
        check_weights_are_there(path)
        return path
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"{name} is no folder: give a Hugging Face folder, a GGUF file, a hub id, or one of "
            f"{' and '.join(map(repr, names()))}."
        )
    return None
