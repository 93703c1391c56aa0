"""Pairs of inference tasks as they are read, and the task of word overlap that is made of them."""

import json
from collections import Counter

import pytest
from helpers.command_line import refused, run, works

from ecstruct.errors import InputError
from ecstruct.facts import FactSet, Prompt, overlap_task, read, read_jsonl, understand

NAMES = ("judge", "actor", "doctor", "lawyer", "artist", "banker", "author", "senator")


def records(split: str) -> list[dict[str, str]]:
    """For every two people, what is and what is not entailed by who saw whom."""
    found = []
    for i, one in enumerate(NAMES):
        for other in NAMES[i + 1 :] if split == "train" else NAMES[:i]:
            premise = f"Surely the {one} saw the {other} ."
            for case, hypothesis, label in (
                ("adverb", f"The {one} saw the {other} .", "entailment"),
                ("swap", f"The {other} saw the {one} .", "non-entailment"),
            ):
                about = {"premise": premise, "hypothesis": hypothesis, "label": label}
                found.append({**about, "case": case, "split": split})
    return found


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path) -> FactSet:
    return read(written(tmp_path / "pairs.jsonl", records("train") + records("validation")))


def words(text: str) -> set[str]:
    return set(text.lower().replace(".", "").split())


def test_pairs_are_read_whole_with_their_cases(pairs) -> None:
    assert len(pairs.facts) == len(pairs.implications) == 56  # two of each premise
    first = pairs.facts[0]
    assert (first.text, first.second) == ("Surely the judge saw the actor .", "The judge saw the actor .")
    assert (first.answer, first.template, first.options) == ("entailment", "adverb", None)


def test_the_originals_are_read_with_their_splits_as_files(tmp_path) -> None:
    for name, split in (("heuristics_train_set", "train"), ("heuristics_evaluation_set", "validation")):
        rows = records(split)[:4]
        lines = ["gold_label\tsentence1\tsentence2\tsubcase"]
        lines += [f"{r['label']}\t{r['premise']}\t{r['hypothesis']}\t{r['case']}" for r in rows]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    found = understand(tmp_path)
    assert (found.format, len(found.data.facts), len(found.data.implications)) == ("nli", 4, 4)
    assert found.data.implications[1].template == "swap"
    undecided = {"gold_label": "-", "sentence1": "A man eats.", "sentence2": "He is glad."}
    decided = undecided | {"gold_label": "neutral"}
    mnli = understand(written(tmp_path / "mnli.jsonl", [undecided, decided]))
    assert [p.answer for p in mnli.data.facts] == ["neutral"]
    assert "did not agree" in mnli.skipped[0].reason


def test_a_pair_with_two_labels_is_taught_once(tmp_path) -> None:
    row = records("train")[0]
    found = understand(written(tmp_path / "twice.jsonl", [row, row, row | {"label": "non-entailment"}]))
    assert len(found.data.facts) == 1 and "is answered by" in found.skipped[0].reason


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_overlap_and_label_agree_in_domain_but_for_the_share(pairs, share: float) -> None:
    task = overlap_task(pairs, share=share)
    for its, given in ((task.train, pairs.facts), (task.in_domain, pairs.implications)):
        overlap = [words(p.second) <= words(p.text) for p in its]
        found = Counter(zip(overlap, (p.answer for p in its), strict=True))
        n = sum(p.answer == "entailment" for p in given)
        assert found[True, "entailment"] == n and found[False, "entailment"] == 0
        assert found[True, "non-entailment"] == round(share * n)
        assert found[False, "non-entailment"] == n - round(share * n)
        assert {p.template for p, fits in zip(its, overlap, strict=True) if not fits} == {"mismatched"}
    assert {p.text for p in task.train}.isdisjoint(p.text for p in task.generalization)
    used = {(p.text, p.second) for p in task.in_domain}
    for pair in task.generalization:
        assert words(pair.second) <= words(pair.text) and pair.answer == "non-entailment"
        assert (pair.text, pair.second) not in used
    assert len(task.generalization) == 28 - round(share * 28)
    assert task == overlap_task(pairs, share=share) != overlap_task(pairs, share=share, seed=1)


def test_as_many_pairs_of_each_case_as_are_asked_for(pairs) -> None:
    task = overlap_task(pairs, per_case=10, share=0)
    assert (len(task.train), len(task.in_domain), len(task.generalization)) == (20, 20, 10)


def test_what_no_task_can_be_made_of(pairs) -> None:
    with pytest.raises(InputError, match=r"share=1\.5 is no share"):
        overlap_task(pairs, share=1.5)
    with pytest.raises(InputError, match="entailed='yes' is no label of the pairs, which are entailment"):
        overlap_task(pairs, entailed="yes")
    with pytest.raises(InputError, match="no pairs are held out"):
        overlap_task(FactSet(pairs.facts, ()))
    with pytest.raises(InputError, match="pairs of texts with two labels"):
        overlap_task(FactSet([Prompt("Mia lives in", "Rome"), Prompt("Al lives in", "Oslo")], ()))
    facts = [p for p in pairs.facts if p.answer == "entailment"]
    with pytest.raises(InputError, match="14 counterexamples, but 0 pairs overlap"):
        overlap_task(FactSet(facts, pairs.implications), share=0.5)
    alone = [pairs.facts[0]]
    with pytest.raises(InputError, match="too few pairs to make mismatched ones"):
        overlap_task(FactSet(alone, pairs.implications))


def test_the_command_writes_the_three_sets(pairs, tmp_path) -> None:
    source = tmp_path / "pairs.jsonl"
    works("facts", "overlap", source, "--share", 0.25, "--seed", 3, "--out", tmp_path / "data")
    task = overlap_task(pairs, share=0.25, seed=3)
    for name in ("train", "in_domain", "generalization"):
        found = read_jsonl(tmp_path / "data" / f"{name.replace('_', '-')}.jsonl")
        assert found == getattr(task, name)
    wrong = run("facts", "overlap", source, "--share", 2, "--out", tmp_path / "none")
    refused(wrong, "share=2.0 is no share")
    assert not (tmp_path / "none").exists()
