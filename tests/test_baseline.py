"""The baseline y* against a plain loop over prompts."""

from itertools import chain

import pytest
import torch
from helpers.facts_fixtures import word_tokenizer
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts import Prompt
from ecstruct.facts.tokens import TokenizedPrompt, tokenize
from ecstruct.scores.baseline import Baseline, slot_index
from ecstruct.scores.batching import with_answer

OPTIONS = ("Dutch", "Old Norse", "Thai")
PARTS = [  # prefix, entity, suffix, answer, template
    ("people that", "Ada", "knows speak", "Dutch", "long"),
    ("people that", "Bo Li", "knows speak", "Old Norse", "long"),
    ("people that", "Cy de Wit", "knows speak", "Thai", "long"),
    ("people that", "Di", "knows speak", "Dutch", "long"),
    ("people that", "Bo Li", "knows speak", "Thai", "long"),  # a text of before, another answer
    ("people that", "Ada", "knows speak", "Dutch", "long"),  # a prompt of before
    ("in", "Lima", "all say", "Old Norse", "short"),
    ("in", "Addis Ababa", "all say", "Thai", "short"),
    ("in", "Rome", "all say", "Dutch", "short"),
]
PROMPTS = [
    Prompt(f"{prefix} {entity} {suffix}", answer, OPTIONS, template=template)
    for prefix, entity, suffix, answer, template in PARTS
]
TOKENIZER = word_tokenizer(" ".join(f"{p.text} {p.answer}" for p in PROMPTS))
BATCHES = ([0, 6, 2], [3, 4, 8], [7, 1, 5])
N = len(PROMPTS)
D = 3


def counterpart(i: int, j: int, t: int) -> int:
    """The token of prompt j that stands where token t of prompt i stands: from the left in the prefix;
    from the right in the entity and the suffix, but no further than the entity's first token."""
    prefix, from_the_end = len(PARTS[i][0].split()), len(PROMPTS[i].text.split()) - t
    if t < prefix:
        return t
    return max(prefix, len(PROMPTS[j].text.split()) - from_the_end)


def eligible(kind: str, i: int) -> list[int]:
    """The prompts over which y* of prompt i is a mean."""
    template = [j for j in range(N) if PARTS[j][4] == PARTS[i][4]]
    if kind == "mean":
        return template
    return [
        j for j in template if PROMPTS[j].text != PROMPTS[i].text and PROMPTS[j].answer != PROMPTS[i].answer
    ]


def by_loop(kind: str, written: list[Tensor], i: int) -> Tensor:
    rows = []
    for t in range(len(written[i])):
        values = [written[j][counterpart(i, j, t)] for j in eligible(kind, i)]
        rows.append(sum(values) / len(values))
    return torch.stack(rows)


def random_written(tokenized: list[TokenizedPrompt]) -> list[Tensor]:
    """What a component might write: one vector per token of every prompt."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(len(p.ids), D, generator=generator, dtype=torch.float64) for p in tokenized]


def baselines(
    kind: str, tokenized: list[TokenizedPrompt], written: list[Tensor], batches=BATCHES
) -> list[Tensor]:
    """y* of all prompts from the `Baseline`, which is shown padded batches."""
    baseline = Baseline(kind, tokenized, batches, torch.device("cpu"))
    stacked = []
    for b, rows in enumerate(batches):
        longest = max(len(written[i]) for i in rows)
        batch = torch.full((len(rows), longest, D), 1e9, dtype=torch.float64)  # padding must not be read
        for row, i in enumerate(rows):
            batch[row, : len(written[i])] = written[i]
        stacked.append(batch)
        baseline.add(1, "mlp.out", b, batch)
    found: list[Tensor] = [torch.empty(0)] * len(tokenized)
    for b, rows in enumerate(batches):
        y_star = baseline.of(1, "mlp.out", b, stacked[b])
        assert y_star.shape == stacked[b].shape and y_star.dtype == stacked[b].dtype
        for row, i in enumerate(rows):
            found[i] = y_star[row, : len(written[i])]
    return found


@pytest.fixture(scope="module")
def tokenized():
    return tokenize(PROMPTS, TOKENIZER)


@pytest.mark.parametrize("kind", ["counterfactual", "mean"])
def test_the_baseline_is_that_of_a_plain_loop(kind, tokenized):
    written = random_written(tokenized)
    for i, y_star in enumerate(baselines(kind, tokenized, written)):
        torch.testing.assert_close(y_star, by_loop(kind, written, i), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["counterfactual", "mean"])
@pytest.mark.parametrize("batches", [[[i] for i in range(N)], [list(reversed(range(N)))]], ids=len)
def test_the_baseline_does_not_depend_on_batches(kind, batches, tokenized):
    written = random_written(tokenized)
    pairs = zip(
        baselines(kind, tokenized, written),
        baselines(kind, tokenized, written, batches=batches),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def test_the_zero_baseline_subtracts_nothing(tokenized):
    for y_star in baselines("zero", tokenized, random_written(tokenized)):
        assert (y_star == 0).all()


def test_components_are_kept_apart(tokenized):
    baseline = Baseline("mean", tokenized[6:], [[0, 1, 2]], torch.device("cpu"))
    ones = torch.ones(3, 5, D)
    for value, (layer, name) in enumerate([(0, "mlp.out"), (1, "mlp.out"), (1, "attn.o")], start=1):
        baseline.add(layer, name, 0, value * ones)
    assert (baseline.of(0, "mlp.out", 0, ones) == 1).all()
    assert (baseline.of(1, "mlp.out", 0, ones) == 2).all()
    assert (baseline.of(1, "attn.o", 0, ones) == 3).all()


def test_a_prompt_fills_the_slots_of_its_template():
    """Three entity slots, as the longest has; a shorter one repeats its first token in the leading ones."""
    found = slot_index(tokenize(PROMPTS[:4], TOKENIZER))
    assert found.n_slots == 2 + 3 + 2
    assert [list(p) for p in found.positions] == [
        [0, 1, 2, 2, 2, 3, 4],  # Ada
        [0, 1, 2, 2, 3, 4, 5],  # Bo Li
        [0, 1, 2, 3, 4, 5, 6],  # Cy de Wit
        [0, 1, 2, 2, 2, 3, 4],
    ]
    assert [list(s) for s in found.slot_of[:2]] == [[0, 1, 4, 5, 6], [0, 1, 3, 4, 5, 6]]


def test_templates_do_not_mix(tokenized):
    found = slot_index(tokenized)
    long, short = (
        set(chain.from_iterable(found.slots[i] for i in rows)) for rows in (range(6), range(6, 9))
    )
    assert not long & short
    assert len(long | short) == found.n_slots


def test_answer_tokens_that_are_read_align_one_to_one(tokenized):
    """They come after the suffix; a prompt that has fewer repeats its last token."""
    read = [with_answer(p, TOKENIZER) for p in tokenized]
    assert [len(r.ids) - len(p.ids) for r, p in zip(read, tokenized, strict=True)][:4] == [0, 1, 0, 0]
    written = random_written(read)
    found = baselines("counterfactual", read, written)

    def token_of(j: int, i: int, t: int) -> int:
        n = len(tokenized[i].ids)
        beyond = t - (n - 1)
        return (
            counterpart(i, j, t)
            if beyond <= 0
            else min(len(tokenized[j].ids) - 1 + beyond, len(written[j]) - 1)
        )

    for i, y_star in enumerate(found):
        for t, row in enumerate(y_star):
            values = [written[j][token_of(j, i, t)] for j in eligible("counterfactual", i)]
            torch.testing.assert_close(row, sum(values) / len(values), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "others",
    [
        [],
        [Prompt("in Rome all say", "Thai", OPTIONS)],  # the same text
        [Prompt("in Oslo all say", "Dutch", OPTIONS)],  # the same answer
        [Prompt("in Oslo all say", "Thai", OPTIONS, template="another")],
    ],
    ids=["alone", "same text", "same answer", "another template"],
)
def test_a_prompt_without_counterfactual_is_named_with_the_alternatives(others):
    tokenizer = word_tokenizer("in Rome Oslo all say Dutch Thai Old Norse")
    prompts = tokenize([Prompt("in Rome all say", "Dutch", OPTIONS), *others], tokenizer)
    batches = [list(range(len(prompts)))]
    with pytest.raises(InputError, match=r"'in Rome all say' has no.*baseline='mean' or baseline='zero'"):
        Baseline("counterfactual", prompts, batches, torch.device("cpu"))
    for kind in ("mean", "zero"):
        Baseline(kind, prompts, batches, torch.device("cpu"))
