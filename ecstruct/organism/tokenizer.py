"""The organism's tokenizer: one token per whitespace-separated word it knows, and no special tokens added.

As in OLMo's own tokenizer, no token is added at the beginning or end of a text. A word that is not in the
vocabulary is split into pieces that are ("dax" into "d" and "##ax"), or becomes `<unk>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

EOS, PAD, UNKNOWN = "<|endoftext|>", "<|padding|>", "<unk>"
EOS_ID, PAD_ID, UNKNOWN_ID = range(3)


def word_tokenizer(words: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer over `words`: EOS, PAD and UNKNOWN have the ids 0 to 2, the words follow."""
    ids = {word: i for i, word in enumerate([EOS, PAD, UNKNOWN, *words])}
    if len(ids) != len(words) + 3:
        raise ValueError("the words of a tokenizer must be distinct and not be special tokens")
    backend = Tokenizer(WordPiece(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
