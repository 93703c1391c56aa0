"""The benchmarks run, count what they should, and refuse to time ways that compute something else."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import naive, published
from benchmarks.__main__ import BENCHMARKS
from benchmarks.agreement import check_equal
from benchmarks.command import main
from benchmarks.memory import peak_during
from benchmarks.models import Shape, ids_of, make_prompts, plain_pair
from benchmarks.scaling import slope
from benchmarks.setup import Setup
from benchmarks.timing import alternate

TINY = Shape("olmo", 2, 64)


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The table of everything but offloaded scoring, as it is written."""
    path = tmp_path_factory.mktemp("benchmarks") / "table.json"
    others = [name for name in BENCHMARKS if name != "offload"]
    main(BENCHMARKS, ["--small", "--repeats", "1", "--only", *others, "--json", str(path)])
    return json.loads(path.read_text())


def test_every_question_has_its_rows(written):
    found = [row["what"] for row in written["rows"]]
    for what, n in (
        ("three scores / bare passes", 7),
        ("causal scores, 72 interventions", 6),
        ("checked / scored", 2),
        ("slope of log time", 3),
        ("finetuning on 16 facts", 1),
        ("three scores written with TransformerLens", 2),
        ("published way", 4),
    ):
        assert sum(row.startswith(what) for row in found) == n, what
    assert all(row["ratio"] == row["a"]["value"] / row["b"]["value"] for row in written["rows"])
    assert written["setup"]["versions"].keys() >= {"ecstruct", "torch"}
    assert written["setup"]["threads"] == 1


def test_passes_of_the_published_way(written):
    (row,) = (r for r in written["rows"] if "forward passes" in r["what"])
    assert row["a"]["value"] == 50
    assert "50 backward" in row["a"]["side"]
    assert row["b"]["value"] == 3  # under W, under W', and of the components on z'


def test_the_published_way_leaves_the_weights_to_rounding():
    model, after = plain_pair(TINY, "cpu")
    old = [p.clone() for p in model.parameters()]
    way = published.Published(model, after)
    way.shift(1)
    for p, new in zip(model.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), new)
    way.shift(-1)
    for p, before in zip(model.parameters(), old, strict=True):
        torch.testing.assert_close(p.detach(), before)


def test_a_wrong_published_way_is_not_timed(monkeypatch):
    monkeypatch.setattr(published, "dot", lambda a, b: 1.01 * (a * b).sum(-1))
    with pytest.raises(ArithmeticError, match="of the largest score"):
        published.check(Setup(small=True), TINY)


def test_a_wrong_way_in_transformerlens_is_not_timed(monkeypatch):
    right = naive.summed
    monkeypatch.setattr(naive, "summed", lambda gradient, value: 1.01 * right(gradient, value))
    with pytest.raises(ArithmeticError, match=r"upstream scores .* of the largest score"):
        naive.sides(Setup(small=True), TINY)


def test_counterfactuals_are_other_prompts(monkeypatch):
    prompts = make_prompts(11)
    ids, answers = ids_of(prompts, "cpu")
    way, seen = published.Published(*plain_pair(TINY, "cpu")), []
    monkeypatch.setattr(
        way, "of_pair", lambda index, other, *_: seen.append((index, other)) or {"I": (torch.ones(1),) * 2}
    )
    way.scores(4, ids, answers, np.random.default_rng(0))
    assert sorted(seen) == [(4, other) for other in range(11) if other != 4]


def test_memory_from_disk_is_measured(capsys):
    rows = main({"offload": BENCHMARKS["offload"]}, ["--small", "--repeats", "1"])
    assert [row.a.side.partition(",")[0] for row in rows] == ["offload", "loaded", "offload"]
    assert rows[0].b.value == pytest.approx(2 * TINY.n_parameters * 4 / 1e6, rel=0.02)
    assert "memory of scoring from disk" in capsys.readouterr().out


def test_peak_memory_is_that_of_the_call():
    before, most = peak_during(lambda: torch.ones(25_000_000).sum(), "cpu")
    assert 95 < most - before < 130  # 100 MB
    before, most = peak_during(lambda: None, "cpu")
    assert most - before < 20  # the peak before is forgotten


def test_products_are_counted_and_sides_take_turns():
    a, order = torch.ones(30, 40, requires_grad=True), []

    def product():
        order.append("product")
        torch.autograd.grad((a @ torch.ones(40, 50)).sum(), a)

    costs = alternate({"product": product, "nothing": lambda: order.append("nothing")}, 2, "cpu")
    assert order == ["product", "nothing"] * 3
    assert costs["product"].gflop == 2 * (2 * 30 * 40 * 50) / 1e9
    assert costs["nothing"].gflop == 0


def test_slope():
    assert slope([8, 16, 32, 64], [3 * n**1.5 for n in (8, 16, 32, 64)]) == pytest.approx(1.5)


def test_agreement():
    check_equal("scores", [1.0, 2.0], [1.0, 2.001])
    with pytest.raises(ArithmeticError, match=r"differ by 5\.0e-02"):
        check_equal("scores", [1.0, 1.9], [1.0, 2.0])
    with pytest.raises(ArithmeticError, match="nan"):
        check_equal("scores", [np.nan], [1.0])
