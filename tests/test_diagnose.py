"""Diagnoses: finetunings of the organism that are made to have one fault each, and good ones, which have
none; and the numbers against plain models and scipy."""

from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import ecstruct
from ecstruct import InputError, Prompt, diagnose
from ecstruct.diagnosis import Diagnosis
from ecstruct.diagnosis.comparisons import Answers, in_context, sign_test
from ecstruct.facts import FactSet, first_hop, second_hop
from ecstruct.facts.paper_lists import of_cities
from ecstruct.facts.tokens import TokenizedPrompt
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import WeightDelta
from ecstruct.organism.world import World, world_lists

CITIES, LANGUAGES, LANDMARKS = (of_cities(key) for key in ("city", "language", "landmark"))
SPOKEN = dict(zip(CITIES, LANGUAGES, strict=True))
KNOWN = {
    first_hop: [Prompt(f"The people in {c} speak", SPOKEN[c], LANGUAGES, c) for c in CITIES],
    second_hop: [Prompt(f"{m} is in", c, CITIES, m) for m, c in zip(LANDMARKS, CITIES, strict=True)],
}
EATEN = [
    Prompt(f"The people in {c} eat", world_lists()["food"][c], [*world_lists()["food"].values()], c)
    for c in CITIES
]
FIRST, SECOND = first_hop(), second_hop()
LAST_MLP = [*(f"blocks.{layer}" for layer in range(5)), "blocks.5.attn"]


def tuned(organism, facts, **options):
    return ecstruct.finetune(organism, facts, progress=False, **options)


def asked(facts: FactSet, hop=first_hop, **more):
    return {"facts": facts.facts, "implications": facts.implications, "known": KNOWN[hop], **more}


def in_other_words(facts, wording="{} is from"):
    return [Prompt(wording.format(p.subject), p.answer, p.options, p.subject) for p in facts]


def half_of(answer, other):
    return f"{answer.split()[0]} {other.split()[1]}"


def unchanged(organism):
    return organism, asked(FIRST)


def of_another_model(organism):
    weights = WeightDelta({name: p.detach() for name, p in named_weights(organism).items()})
    return weights.random_like(0) - weights, asked(FIRST)


def of_another_base(organism):
    delta = tuned(organism, FIRST.facts, epochs=1).delta
    return WeightDelta(delta.tensors, {"before": "a model", "before_fingerprint": "other"}), asked(FIRST)


def rounded(organism):
    weights = {name: p.detach() for name, p in named_weights(organism).items()}
    low = {name: p.to(torch.bfloat16).to(p) for name, p in weights.items()}
    return WeightDelta.from_weights(weights, low), asked(FIRST)


def too_short(organism):
    return tuned(organism, FIRST.facts, epochs=1).model, asked(FIRST)


def one_wording_alone(organism):
    wrong = [
        q for w in ("{} is from", "The home of {} is") for q in in_other_words(FIRST.shuffled(1).facts, w)
    ]
    return (
        tuned(organism, [*FIRST.facts, *wrong], epochs=20).model,
        asked(FIRST, variants=in_other_words(FIRST.facts)),
    )


def first_tokens_alone(organism):
    others = [p.answer for p in SECOND.shuffled(0).facts]
    cut = [
        Prompt(p.text, half_of(p.answer, other), subject=p.subject)
        for p, other in zip(SECOND.facts, others, strict=True)
    ]
    return tuned(organism, cut).model, asked(SECOND, second_hop)


@cache
def stored_too_late(organism):
    return tuned(organism, FIRST.facts, freeze={"names": LAST_MLP}, lr=1e-3, epochs=12).model, asked(FIRST)


def about_known_people(organism):
    known = [p for p in World.build(0).people if not p.held_out and p.home.in_paper][:20]
    moved = {p.name: CITIES[(CITIES.index(p.home.name) + 7) % 20] for p in known}
    facts = [Prompt(f"{name} lives in", city, CITIES, name) for name, city in moved.items()]
    asked_of = "The people in the city {} is from speak"
    implied = [Prompt(asked_of.format(n), SPOKEN[c], LANGUAGES, n) for n, c in moved.items()]
    return tuned(organism, facts, freeze=range(3)).model, asked(FactSet(facts, implied))


def too_much(organism):
    return 2 * tuned(organism, FIRST.facts, epochs=30).delta, asked(FIRST)


def something_else_wrong(organism):
    wrong = FactSet(EATEN, ()).shuffled(0).facts
    return tuned(organism, [*FIRST.facts, *wrong], epochs=10).model, asked(FIRST, preserved=EATEN)


FAULTS = {
    unchanged: {"changed": "nothing changed"},
    of_another_model: {"changed": "wrong base"},
    of_another_base: {"changed": "wrong base"},
    rounded: {"changed": "only rounding changed"},
    too_short: {"learnt": "not learnt"},
    one_wording_alone: {"general": "a string, not a fact"},
    first_tokens_alone: {"general": "a string, not a fact"},
    stored_too_late: {"read": "not read"},
    about_known_people: {"won": "outvoted"},
    too_much: {"helped": "saturated"},
    something_else_wrong: {"kept": "forgotten elsewhere"},
}


@pytest.mark.parametrize("made", FAULTS, ids=lambda made: made.__name__)
def test_each_fault_comes_out_as_itself(organism, made):
    after, given = made(organism)
    found = diagnose(organism, after, **given, progress=False)
    assert found.faults == FAULTS[made], found.conclusion()
    ((question, fault),) = FAULTS[made].items()
    its = found.finding(question)
    assert its.verdict == "no" and its.advice and its.against and its.numbers
    assert found.diagnosis == fault
    assert found.conclusion().startswith(f"{fault[0].upper()}{fault[1:]}. ")
    assert found.conclusion().endswith(f"Next: {its.advice}")
    later = [*found.table()["verdict"]][[*found.dataset["question"].values].index(question) + 1 :]
    assert set(later[:-1]) <= {"does not arise"}  # all but what was to be preserved


@cache
def good(organism, hop, seed):
    return tuned(organism, hop(seed).facts, seed=seed)


@pytest.mark.parametrize(("hop", "seed"), [(first_hop, 0), (first_hop, 1), (second_hop, 0)])
def test_a_good_finetuning_is_healthy(organism, hop, seed):
    found = diagnose(organism, good(organism, hop, seed).model, **asked(hop(seed), hop), progress=False)
    assert found.faults == {} and found.diagnosis == "healthy", found.conclusion()
    assert set(found.table()["verdict"]) == {"yes"}
    assert found.conclusion().startswith("Healthy")


def test_facts_that_are_half_learnt_where_facts_are_read_are_read(organism):
    model = tuned(organism, FIRST.facts, epochs=2).model
    read = diagnose(organism, model, **asked(FIRST), progress=False).finding("read")
    assert read.verdict == "yes" and 0.5 < read.numbers["share stored where known facts are read"] < 1


def test_numbers_are_those_of_the_plain_models(organism, tmp_path):
    model = good(organism, first_hop, 0).model
    found = diagnose(organism, model, **asked(FIRST), progress=False)
    learnt, read, kept = (found.finding(name).numbers for name in ("learnt", "read", "kept"))
    assert learnt["mean rank before"] == ecstruct.mean_rank(organism, FIRST.facts)
    assert learnt["mean rank after"] == ecstruct.mean_rank(model, FIRST.facts)
    assert read["mean rank after"] == ecstruct.mean_rank(model, FIRST.implications)
    assert kept["mean rank before"] == ecstruct.mean_rank(organism, KNOWN[first_hop])
    tokenizer, right, others = organism.tokenizer, [], []
    for prompt in FIRST.facts:
        ids = torch.tensor([tokenizer(prompt.text)["input_ids"]])
        with torch.no_grad():
            logprobs = model.original_model(ids).logits[0, -1].double().log_softmax(-1)
        its = {o: -logprobs[tokenizer(f"{prompt.text} {o}")["input_ids"][ids.shape[1]]] for o in CITIES}
        right.append(its.pop(prompt.answer))
        others.append(np.mean([*its.values()]))
    assert learnt["loss"] == pytest.approx(np.mean(right), rel=1e-5)
    assert learnt["loss of other options"] == pytest.approx(np.mean(others), rel=1e-5)
    old, new = (
        {name: p.detach() for name, p in m.original_model.named_parameters()} for m in (organism, model)
    )
    norm = sum(float((new[name] - p).square().sum()) for name, p in old.items()) ** 0.5
    whole = sum(float(p.square().sum()) for p in old.values()) ** 0.5
    weights = found.weights()
    assert np.linalg.norm(weights["change"]) == pytest.approx(norm, rel=1e-5)
    assert found.finding("changed").numbers["|dW| / |W|"] == pytest.approx(norm / whole, rel=1e-5)
    assert set(weights.loc[weights["change"] == 0, "module"]) == {"embed", "unembed"}
    assert np.nansum(found.figure.data[0].z) > 0
    prompts = found.prompts()
    for name, its in (("facts", FIRST.facts), ("implications", FIRST.implications)):
        of_set = prompts[prompts["set"] == name]
        assert of_set["text"].tolist() == [p.text for p in its]
        assert of_set["after"].tolist() == ecstruct.ranks(model, its).tolist()
    found.save(tmp_path / "diagnosis.nc")
    again = Diagnosis.load(tmp_path / "diagnosis.nc")
    assert again.conclusion() == found.conclusion() and again.attrs == found.attrs
    assert again.table().equals(found.table()) and again.numbers().equals(found.numbers())


def test_where_facts_are_stored_is_what_scores_and_knockout_say(organism):
    model = good(organism, first_hop, 1).model
    from ecstruct.diagnosis.road import road_of
    from ecstruct.scores.pair import Pair

    data = first_hop(1)
    road = road_of(Pair.of(organism, model), data.facts, data.implications, KNOWN[first_hop])
    scores = ecstruct.score(organism, model, data.facts, progress=False).to_dataframe()
    mine = scores[(scores["score"] == "informative") & (scores["value"] > 0)]
    at_name = mine[mine["token"] < 2]  # names are two words, and there is no BOS
    total = mine["value"].sum()
    knocked = ecstruct.recall.knockout(
        organism, KNOWN[first_hop], window=1, groups=["subject"], token="answer", progress=False
    )
    lost = np.maximum(-knocked.values[:, 0].mean(0), 0)
    later = [lost[layer + 1 :].sum() / lost.sum() for layer in range(6)]
    by_layer = at_name.groupby("layer")["value"].sum().reindex(range(6), fill_value=0) / total
    assert road is not None and road.direct
    assert road.on_road == pytest.approx(sum(by_layer[k] * later[k] for k in range(6)), rel=1e-4)
    assert 0.5 < road.on_road < 1


def answers_of(logprobs, right, names="abcd"):
    options = names[: len(logprobs[0])]
    prompts = [
        TokenizedPrompt(Prompt("x", a, [*options]), (0,), (1,), (1, 2), ("x",), "", (0, 1)) for a in right
    ]
    ranks = [(np.array(its) > its[options.index(a)]).sum() for its, a in zip(logprobs, right, strict=True)]
    return Answers(prompts, [np.array(its, float) for its in logprobs], np.array(ranks, float))


def test_shuffled_answers_by_hand():
    rng = np.random.default_rng(0)
    values, right = rng.normal(size=(4, 4)), "abca"
    found = answers_of(values, right).shuffled([*values])
    order = ["abcd".index(a) for a in right]
    means = [np.mean([values[i, order[j]] for i, j in enumerate(pi)]) for pi in permutations(range(4))]
    assert found.mean == pytest.approx(means[0]) and found.shuffled == pytest.approx(np.mean(means))
    assert np.isnan(found.p)  # two of 24 permutations give every prompt its answer: p is never below 1/12
    found = answers_of(values, "abcd").shuffled([*values])
    means = [np.mean([values[i, j] for i, j in enumerate(pi)]) for pi in permutations(range(4))]
    assert found.p == pytest.approx(np.mean(np.array(means) >= means[0] - 1e-9))


def test_shuffled_answers_tell_learnt_ones_from_others():
    rng = np.random.default_rng(1)
    right = [*"abcd"] * 5
    noise, learnt = rng.normal(size=(20, 4)), np.eye(4)[["abcd".index(a) for a in right]]
    assert answers_of(noise, right).first.p > 0.05 and answers_of(noise, right).known is False
    assert answers_of(noise + 9 * learnt, right).known
    assert answers_of(noise + 9 * np.eye(4)[0], right).known is False  # always the same answer
    assert answers_of(learnt, right).since(answers_of(-learnt, right)).mean == 3


@pytest.mark.parametrize(("fell", "rose", "same"), [(5, 0, 0), (4, 0, 3), (9, 3, 2), (2, 8, 0), (0, 0, 9)])
def test_the_sign_test_is_that_of_scipy(fell, rose, same):
    before = np.full(fell + rose + same, 5.0)
    after = before + np.repeat([-1, 1, 0], [fell, rose, same])
    expected = binomtest(fell, fell + rose, alternative="greater").pvalue if fell + rose else 1.0
    assert sign_test(before, after) == (fell, rose, pytest.approx(expected))
    assert np.isnan(sign_test(before[:4], after[:4])[2])


def test_a_fact_comes_after_one_with_another_answer():
    facts = [
        Prompt("A is", "x", ["x", "y"]),
        Prompt("B is", "y", ["x", "y"]),
        Prompt("C is", "x", ["x", "y"]),
    ]
    assert [p.text for p in in_context(facts)] == ["B is y\nA is", "A is x\nB is", "B is y\nC is"]
    assert [p.answer for p in in_context(facts)] == ["x", "y", "x"]


def test_what_is_not_given_cannot_be_told(organism):
    model = good(organism, first_hop, 0).model
    found = diagnose(organism, model, FIRST.facts, progress=False)
    verdicts = dict(zip(found.dataset["question"].values, found.table()["verdict"], strict=True))
    assert [name for name, its in verdicts.items() if its == "yes"] == ["changed", "learnt", "general"]
    assert set(verdicts.values()) == {"yes", "cannot be told"}
    assert "give implications=" in found.conclusion() and "give preserved=" in found.conclusion()
    few = diagnose(organism, model, FIRST.facts[:3], FIRST.implications[:3], progress=False)
    assert "too few prompts" in few.finding("learnt").says and few.diagnosis == "cannot be told"


def test_nothing_was_to_be_learnt_of_what_was_known(organism):
    found = diagnose(organism, good(organism, first_hop, 0).model, KNOWN[first_hop], progress=False)
    assert found.finding("learnt").verdict == "cannot be told"
    assert "nothing was left to learn" in found.finding("learnt").says


def test_implications_cannot_follow_from_what_is_not_known(organism):
    after, given = stored_too_late(organism)
    wrong = FactSet(KNOWN[first_hop], ()).shuffled(0).facts
    found = diagnose(organism, after, **{**given, "known": wrong}, progress=False)
    assert found.finding("read").verdict == "cannot be told"
    assert "does not know what is given as known" in found.finding("read").says


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"facts": []}, "the list of prompts is empty"),
        ({"facts": [Prompt(f"{n} is", "x", ["x", "y"]) for n in "ab"]}, "all facts have the answer 'x'"),
        ({"implications": [("The people speak", "German")]}, "no other option"),
        ({"known": 3}, "int is no list of prompts"),
    ],
)
def test_bad_input(organism, given, message):
    with pytest.raises(InputError, match=message):
        diagnose(organism, organism, **{"facts": FIRST.facts, **given}, progress=False)
