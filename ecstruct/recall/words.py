"""How tokens are compared as words, and which words say something about a subject.

Tokens are compared by what they spell, in lower case and without leading space, so that "Paris", " Paris"
and " paris" are one word.
"""

from functools import lru_cache

from transformers import PreTrainedTokenizerBase


def word_of(token: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a token spells, in lower case, without white space or markers of word boundaries."""
    return tokenizer.convert_tokens_to_string([token]).strip().removeprefix("##").lower()


@lru_cache(maxsize=2)
def words_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what every token of the vocabulary spells, by id; "" for special tokens and for ids without a
    token."""
    tokens = tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])
    special = set(tokenizer.all_special_tokens)
    return tuple("" if t is None or t in special else word_of(t, tokenizer) for t in tokens)


def says_something(word: str) -> bool:
    """Return whether a lower-case word is longer than two characters and not a stop word.

    >>> says_something("tokyo"), says_something("the"), says_something("to")
    (True, False, False)
    """
    return len(word) > 2 and word not in STOP_WORDS


_TEXT = """
a able about above across after afterwards again against ago all almost along already also although always
am among amongst an and another any anybody anyhow anyone anything anyway anywhere are aren around as at
away back be became because become becomes been before beforehand behind being below beside besides best
better between beyond both but by
came can cannot certain certainly come comes could couldn
did didn do does doesn doing don done down due during
each either else elsewhere enough especially et etc even ever every everybody everyone everything everywhere
except
far few first for former formerly from further
gave get gets getting give given go goes going gone got
had hadn has hasn have haven having he hence her here hers herself him himself his how however
if in indeed instead into is isn it its itself
just
keep kept know known knows
last later latter least less let like likely ll
made mainly make makes many may maybe me meanwhile might mightn more moreover most mostly much must mustn my
myself
namely near nearly need neither never nevertheless next no nobody none nor not nothing now nowhere
of off often on once one ones only onto or other others otherwise ought our ours ourselves out over own
particularly per perhaps please put
quite
rather re really recent recently regarding
said same saw say says see seem seemed seeming seems seen several shall shan she should shouldn since so
some somebody someone something sometimes somewhat somewhere soon still such
take taken takes than that the their theirs them themselves then there therefore these they thing things
this those though three through throughout thus to together too took toward towards tried tries truly two
under unless until up upon us use used uses using usually
various ve very via
want was wasn way we well went were weren what whatever when whenever where whereas wherever whether which
while who whoever whole whom whose why will with within without won would wouldn
yes yet you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_TEXT.split())
"""English words that say nothing about a subject, and the pieces into which tokenizers cut contractions."""
