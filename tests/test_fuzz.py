"""Every file that the command line takes, damaged in every way that we know of: status 2, one sentence that
names what is wrong, no traceback, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from damage import DEEP, HEADERS, PATHS, PLACED, VALUES, WRITTEN, put, ways, without
from facts_fixtures import FACTS
from folders import contents, edit_weights, save
from readers_records import RECORDS, written
from typer.testing import CliRunner

from ecstruct.cli import app
from ecstruct.models import WeightDelta, load
from ecstruct.runs import _KEYS

LINKS = ("a dangling link", "a link to itself")

Words = list[Any]
Make = Callable[[Path, Path], tuple[Words, str | tuple[str, ...]]]
"""From the folder of good inputs and one of the case's own, with OUT in it, to a command and what its
message must name."""


@dataclass(frozen=True)
class Case:
    name: str
    make: Make


def case(name: str, make: Make) -> Case:
    return Case(name, make)


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def works(*words: Any) -> None:
    result = run(*words)
    assert result.exit_code == 0, (result.stderr, result.exception)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Good ones of every kind. Not to be written to."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        model, prompts = folder / "model", folder / "prompts.jsonl"
        save(model)
        shutil.copytree(model, folder / "after")
        edit_weights(folder / "after", lambda tensors: [t.mul_(1.01) for t in tensors.values()])
        prompts.write_text("".join(f"{json.dumps({'prompt': p, 'answer': a})}\n" for p, a in FACTS))
        both = [load(folder / name, device="cpu") for name in ("model", "after")]
        WeightDelta.between(*both).save(folder / "delta.safetensors")
        shards(folder)
        # Checkpoints and parts are removed when a run is done: these ones stay.
        patch.setattr("ecstruct.runs.training.discard", lambda _: None)
        patch.setattr("ecstruct.scores.batching.TOKENS_PER_ROUND", 1)  # parts are kept if there are many
        patch.setattr("shutil.rmtree", lambda *_args, **_options: None)
        tuned = ("--model", model, "--facts", prompts, "--lr", 0.01, "--epochs", 1, "--quiet")
        works("finetune", *tuned, "--lora", "r=2", "--out", folder / "tuned")
        works("finetune", *tuned, "--checkpoint-every", 1, "--out", folder / "begun")
        works(*score_words(folder, folder / "parts"), "--batch-size", 2, "--quiet")
    for name in ("delta.safetensors", "history.json", "config.json"):
        (folder / "begun" / name).unlink()
    for name in ("scores.nc", "report.html", "config.json"):
        (folder / "parts" / name).unlink()
    yield folder


def shards(folder: Path) -> None:
    """The good model once more, in two files with an index."""
    model = Path(shutil.copytree(folder / "model", folder / "sharded"))
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="30KB")
    (model / "model.safetensors").unlink()


def score_words(inputs: Path, out: Path, **other: Any) -> Words:
    files = {"before": inputs / "model", "after": inputs / "after", "prompts": inputs / "prompts.jsonl"}
    given = [word for name, path in {**files, **other}.items() for word in (f"--{name}", path)]
    return ["score", *given, "--out", out]


# Prompts

RANK = ("rank", "--model", "{model}", "--prompts", "{file}", "--out", "{out}")
TAKE_PROMPTS: dict[str, tuple[str, ...]] = {
    "rank": RANK,
    "score": (
        "score",
        "--before",
        "{model}",
        "--after",
        "{after}",
        "--prompts",
        "{file}",
        "--out",
        "{out}",
    ),
    "fidelity": (
        *("fidelity", "--before", "{model}", "--after", "{after}", "--prompts", "{file}", "--out", "{out}"),
    ),
    "finetune": ("finetune", "--model", "{model}", "--facts", "{file}", "--lr", "1e-3", "--out", "{out}"),
    "finetune --evaluate": (
        *("finetune", "--model", "{model}", "--facts", "{prompts}", "--lr", "1e-3", "--out", "{out}"),
        *("--evaluate", "seen={file}"),
    ),
}


def filled(words: tuple[str, ...], inputs: Path, file: Path, out: Path) -> Words:
    known = {name: inputs / name for name in ("model", "after")}
    return [w.format(**known, prompts=inputs / "prompts.jsonl", file=file, out=out) for w in words]


def of_file(words: tuple[str, ...], name: str, good: Callable[[Path], bytes], skip: set[str]) -> list[Case]:
    """A file, of the contents that are `good`, in all kinds of damage but those that it stands."""

    def wrote(change: Callable[[bytes], bytes]) -> Make:
        def make(inputs: Path, folder: Path) -> tuple[Words, str]:
            path = folder / name
            path.write_bytes(change(good(inputs)))
            return filled(words, inputs, path, folder / "out"), name

        return make

    def placed(place: Callable[[Path], None]) -> Make:
        def make(inputs: Path, folder: Path) -> tuple[Words, str]:
            path = folder / name
            path.write_bytes(good(inputs))
            place(path)
            return filled(words, inputs, path, folder / "out"), name

        return make

    def called(to: Callable[[Path], Path]) -> Make:
        def make(inputs: Path, folder: Path) -> tuple[Words, str]:
            path = folder / name
            path.write_bytes(good(inputs))
            return filled(words, inputs, to(path), folder / "out"), to(path).name

        return make

    made = {
        **{damage: wrote(change) for damage, change in WRITTEN.items()},
        **{damage: placed(place) for damage, place in PLACED.items()},
        **{damage: called(to) for damage, to in PATHS.items()},
    }
    return [case(damage, make) for damage, make in made.items() if damage not in skip]


def named(target: str, cases: list[Case]) -> list[Case]:
    return [Case(f"{target}: {each.name}", each.make) for each in cases]


def good_prompts(inputs: Path) -> bytes:
    return (inputs / "prompts.jsonl").read_bytes()


RECORD = {
    **{"prompt": "Mia lives in", "answer": "Rome", "options": ["Rome", "Paris"], "subject": "Mia"},
    **{"template": "lives", "aliases": ["Roma"]},
}
OPTIONAL = ("options", "subject", "template", "aliases")


def bad_records() -> Iterator[tuple[str, Any]]:
    """A value in the place of another, a key too few, and what does not go together."""
    for way in ways(RECORD):
        at = ".".join(map(str, way))
        for name, value in VALUES.items():
            same = isinstance(value, str) and value.strip() and value.isascii()
            left_out = value is None and way in [(key,) for key in OPTIONAL]
            if not (same or left_out or (value == [] and way == ("aliases",))):
                yield f"{at} is {name}", put(RECORD, way, value)
    for key in ("prompt", "answer"):
        yield f"no {key}", without(RECORD, (key,))
    yield "a subject of another text", {**RECORD, "subject": "Zoe"}
    yield "an answer that is no option", {**RECORD, "answer": "Oslo"}
    yield "an option twice", {**RECORD, "options": ["Rome", "Paris", "Rome"]}
    yield "an alias that is an option", {**RECORD, "aliases": ["Paris"]}
    yield "a prompt that ends with a blank", {**RECORD, "prompt": "Mia lives in "}
    yield "blanks around the answer", {**RECORD, "answer": " Rome"}


def of_record(record: Any) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "p.jsonl"
        path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(record)}\n")
        return filled(RANK, inputs, path, folder / "out"), "p.jsonl, line 2: "

    return make


TWICE = b'{"prompt": "Mia lives in", "answer": "Rome", "answer": "Paris"}\n'


def prompts_cases() -> list[Case]:
    cases = [
        each
        for target, words in TAKE_PROMPTS.items()
        for each in named(target, of_file(words, "p.jsonl", good_prompts, set()))
    ]
    cases += [case(f"a record: {name}", of_record(record)) for name, record in bad_records()]
    return cases


# Facts

SHOW = ("facts", "show", "{file}", "--out", "{out}")
OF_FACTS = {
    "json": ("mquake", set[str]()),
    "jsonl": ("prompts", {"cut in the middle"}),  # between two lines
    "csv": ("hopping", set[str]()),
    "tsv": ("twohopfact", set[str]()),
}


def fact_file(suffix: str) -> Callable[[Path], bytes]:
    record = RECORDS[OF_FACTS[suffix][0]]

    def good(_: Path) -> bytes:
        if suffix == "jsonl":
            return "".join(f"{json.dumps(record)}\n" for record in (record, record)).encode()
        if suffix == "json":
            return json.dumps([record]).encode()
        by = "\t" if suffix == "tsv" else ","
        return f"{by.join(record)}\n{by.join(str(v) for v in record.values())}\n".encode()

    return good


def in_folder(change: Callable[[Path], None]) -> Make:
    """A folder of files of which one is damaged."""

    def make(_inputs: Path, folder: Path) -> tuple[Words, str]:
        home = folder / "facts"
        home.mkdir()
        written(home, "lre", RECORDS["lre"])
        change(home)
        return ["facts", "show", home, "--out", folder / "out"], "facts"

    return make


def _saved(change: Callable[[Path], object]) -> Make:
    """A folder that a dataset was saved to, and then damaged."""

    def make(_inputs: Path, folder: Path) -> tuple[Words, str]:
        from datasets import Dataset

        home = folder / "saved"
        Dataset.from_list([{"prompt": p, "answer": a} for p, a in FACTS]).save_to_disk(home)
        change(home)
        return ["facts", "show", home, "--out", folder / "out"], "saved"

    return make


SAVED: dict[str, Callable[[Path], object]] = {
    "a cut-off table": lambda f: next(f.glob("*.arrow")).write_bytes(b"ARROW1"),
    "no table": lambda f: next(f.glob("*.arrow")).unlink(),
    "a state that is no JSON": lambda f: (f / "state.json").write_text("{"),
    "a state that is a list": lambda f: (f / "state.json").write_text("[]"),
    "a state without files": lambda f: (f / "state.json").write_text("{}"),
    "a state that is nested deeply": lambda f: (f / "state.json").write_text("[" * DEEP),
    "no features": lambda f: (f / "dataset_info.json").write_text('{"features": 3}'),
}


def facts_cases() -> list[Case]:
    cases = []
    for suffix, (_, stands) in OF_FACTS.items():
        cases += named(f"facts.{suffix}", of_file(SHOW, f"x.{suffix}", fact_file(suffix), stands))
    for name, change in WRITTEN.items():
        if name not in ("an empty object", "a pointer of git"):  # records that are listed as left out
            cases.append(
                case(f"facts in a folder: {name}", in_folder(lambda f, c=change: _one_more(f, c))),
            )
    cases.append(case("facts in a folder: none", in_folder(lambda f: shutil.rmtree(f) or f.mkdir())))
    cases += [case(f"a saved dataset: {name}", _saved(change)) for name, change in SAVED.items()]
    return cases


def _one_more(folder: Path, change: Callable[[bytes], bytes]) -> None:
    (folder / "more.json").write_bytes(change(json.dumps(RECORDS["lre"]).encode()))


# Configurations

ONE = [{"prompt": "Mia lives in", "answer": "Rome"}, {"prompt": "Zoe lives in", "answer": "Paris"}]
CONFIGS: dict[str, dict[str, Any]] = {
    "demo": {"seed": 0},
    "fidelity": {
        **{"before": "{model}", "after": "{after}", "prompts": ONE, "reward": "logit_diff"},
        **{"baseline": "mean", "top": 5, "memory": None},
    },
    "finetune": {
        **{"model": "{model}", "facts": ONE, "save_model": False, "lr": 1e-3, "epochs": 1, "batch_size": 2},
        **{"schedule": "constant", "seed": 0, "freeze": {"layers": [0], "kinds": ["mlp"], "names": None}},
        **{"train_embeddings": False, "evaluate": {"seen": ONE}, "accumulate": 1, "recompute": False},
        **{"lora": {"r": 2, "alpha": 4, "targets": ["q_proj"], "rslora": False, "dora": False}},
        **{"checkpoint_every": 1, "fingerprint": None},
    },
    "score": {
        **{"before": "{model}", "after": "{after}", "prompts": ONE, "reward": "logit_diff"},
        **{"answer_tokens": "first", "baseline": "mean", "upstream": "surrogate", "offload": False},
        **{"convention": "definition", "path_steps": 1, "batch_size": None},
    },
    "reproduce": {
        "experiments": ["ocr"],
        "options": {"sensitivity": {}},
        "setup": {
            **{"model": "{model}", "seeds": [0], "repeats": 1, "epochs": 1, "batch_size": 8, "early": 0.5},
            **{"rates": {"first_hop": 1e-3, "second_hop": 1e-3, "continued": 1e-3, "test": 1e-3}},
            **{"known": {"fact": "{{name}} a", "implication": "{{name}} b"}, "own_rates": False},
            "device": None,
        },
    },
}


def good_config(command: str, inputs: Path) -> dict[str, Any]:
    text = json.dumps({"command": command, "ecstruct": "0", "arguments": CONFIGS[command]})
    for name in ("model", "after"):
        text = text.replace(f'"{{{name}}}"', json.dumps(str(inputs / name)))
    return json.loads(text.replace("{{name}}", "{name}"))


STANDS: dict[str, set[str]] = {
    **{key: {"null"} for key in ("freeze", "lora", "own_rates", "early")},
    **{key: {"null", "an empty list"} for key in ("layers", "kinds")},
    **{"checkpoint_every": {"null", "a number"}, "batch_size": {"a number"}},
    **{"names": {"an empty list"}, "evaluate": {"null", "an empty object"}, "targets": {"null"}},
    **{"alpha": {"a fraction"}, "fingerprint": {"an empty text"}, "seeds": {"a number"}},
    **{key: {"an empty object"} for key in ("options", "sensitivity", "setup")},
    **{"device": {"a text"}},
}
"""Values that a part of a configuration may have, beyond those of its own type."""


def stands(way: tuple[Any, ...], was: Any, name: str, value: Any) -> bool:
    """Whether a value may be in the place of another one."""
    if isinstance(was, bool):
        return isinstance(value, bool) or name in STANDS.get(str(way[-1]), ())
    if isinstance(was, str) or (isinstance(was, int | float) and isinstance(value, int | float)):
        plain = name in ("a text", "a number") or (isinstance(was, float) and name == "a fraction")
        return plain or name in STANDS.get(str(way[-1]), ())
    return (was is None and value is None) or name in STANDS.get(str(way[-1]), ())


def replayed(command: str, change: Callable[[dict[str, Any]], Any], *says: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, tuple[str, ...]]:
        path = folder / "config.json"
        path.write_text(json.dumps(change(good_config(command, inputs))))
        return ["replay", path, "--out", folder / "out"], says

    return make


OF_CONFIGS = ("null", "true", "a fraction", "a huge number", "NaN", "a text", "a list", "an object")


def configs_cases() -> list[Case]:
    cases = named(
        "config.json",
        of_file(
            ("replay", "{file}", "--out", "{out}"),
            "config.json",
            lambda inputs: json.dumps(good_config("demo", inputs)).encode(),
            set(),
        ),
    )
    for command, arguments in CONFIGS.items():
        for key in sorted(_KEYS[command][0]):
            cases.append(
                case(
                    f"replay {command}: no {key}",
                    replayed(command, lambda c, k=key: without(c, ("arguments", k)), key),
                )
            )
        for way in ways(arguments):
            shown = [str(part) for part in way]
            if {"facts", "prompts", "evaluate"} & {*shown} and len(way) > 2:
                continue  # what is in a record is not read differently here
            was = arguments
            for part in way:
                was = was[part]
            for name, value in ((name, VALUES[name]) for name in OF_CONFIGS):
                if stands(way, was, name, value):
                    continue
                at = ("arguments", *way)
                cases.append(
                    case(
                        f"replay {command}: {'.'.join(shown)} is {name}",
                        replayed(
                            command,
                            lambda c, w=at, v=value: put(c, w, v),
                            str(way[0]).removesuffix("s"),
                            shown[-1],
                            *map(repr, value if isinstance(value, dict) else [value]),
                        ),
                    )
                )
    return cases


# Grids

GRID: dict[str, Any] = {
    **{"experiments": ["ocr"], "models": ["organism"], "learning_rates": [1e-4], "epochs": [1]},
    **{"seeds": [0], "repeats": 1, "batch_size": 8, "early": 0.5, "own_rates": False},
    **{"rates": None, "known": {"fact": "{name} a", "implication": "{name} b"}, "options": {"ocr": {}}},
}
GRIDS: dict[str, bytes] = {
    "a tag that runs code": b"experiments: !!python/object/apply:os.system ['true']\n",
    "a tag of a tuple": b"experiments: !!python/tuple [ocr]\n",
    "an unknown tag": b"experiments: !mine [ocr]\n",
    "an alias of nothing": b"experiments: *none\n",
    "a list that holds itself": b"experiments: &a [ocr, *a]\n",
    "lists of lists of aliases": b"a0: &a0 [ocr, ocr]\n"
    + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40))
    + b"experiments: *a39\n",
    "a key twice": b"experiments: [ocr]\nseeds: [0]\nseeds: [1]\n",
    "a key that is a list": b"? [a, b]\n: [ocr]\nexperiments: [ocr]\n",
    "a key that is an object": b"? {a: b}\n: [ocr]\nexperiments: [ocr]\n",
    "a number for a key": b"7: [ocr]\nexperiments: [ocr]\n",
    "a date for a seed": b"experiments: [ocr]\nseeds: [2020-01-01]\n",
    "a date that is none": b"experiments: [ocr]\nseeds: [2020-99-99]\n",
    "a number of 10,000 digits": b"experiments: [ocr]\nseeds: [" + b"9" * 10_000 + b"]\n",
    "more than one document": b"experiments: [ocr]\n---\nexperiments: [ocr]\n",
    "tabs": b"experiments:\n\t- ocr\n",
    "a list that does not end": b"experiments: [ocr\n",
    "a text that does not end": b'experiments: ["ocr]\n',
    "lists in lists below a key": b"experiments: " + b"[" * DEEP + b"]" * DEEP,
    "indented 2,000 times": b"".join(b" " * i + b"a:\n" for i in range(2000)),
    "a control character": b"experiments: [o\x07cr]\n",
    "10,000 options twice": b"experiments: [ocr]\nseeds: [" + b"7," * 10_000 + b"]\n",
    "an axis of text": b"experiments: ocr\n",
    "infinity": b"experiments: [ocr]\nlearning_rates: [.inf]\n",
    "no number": b"experiments: [ocr]\nlearning_rates: [.nan]\n",
    "a binary": b"experiments: [!!binary aGVsbG8=]\n",
    "a set": b"experiments: !!set {ocr}\n",
    "a merge of a text": b"<<: text\nexperiments: [ocr]\n",
}
SWEEP = ("sweep", "{file}", "--out", "{out}")


def of_grid(content: bytes) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "grid.yaml"
        path.write_bytes(content)
        return filled(SWEEP, inputs, path, folder / "out"), "grid.yaml"

    return make


def grids_cases() -> list[Case]:
    good = yaml.safe_dump(GRID).encode()
    cases = named("grid.yaml", of_file(SWEEP, "grid.yaml", lambda _: good, {"cut in the middle"}))
    cases += [case(f"a grid: {name}", of_grid(content)) for name, content in GRIDS.items()]
    for way in ways(GRID):
        was = GRID
        for part in way:
            was = was[part]
        for name, value in VALUES.items():
            if name == "half a pair" or stands(way, was, name, value):  # which YAML cannot write
                continue
            content = yaml.safe_dump(put(GRID, way, value), allow_unicode=True).encode()
            cases.append(case(f"a grid: {'.'.join(map(str, way))} is {name}", of_grid(content)))
    cases.append(case("a grid: no experiments", of_grid(b"seeds: [0]\n")))
    return cases


# Weights


def of_delta(content: Callable[[Path], bytes], *more: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        path = folder / "d.safetensors"
        path.write_bytes(content(inputs))
        return [*score_words(inputs, folder / "out", after=path), *more], "d.safetensors"

    return make


def weights_cases() -> list[Case]:
    words = TAKE_PROMPTS["score"]
    after = tuple({"{after}": "{file}", "{file}": "{prompts}"}.get(word, word) for word in words)
    good = lambda inputs: (inputs / "delta.safetensors").read_bytes()  # noqa: E731
    cases = named("delta.safetensors", of_file(after, "d.safetensors", good, set()))
    for name, content in HEADERS.items():
        cases.append(case(f"a delta: {name}", of_delta(lambda _, c=content: c)))
        cases.append(case(f"a delta, offloaded: {name}", of_delta(lambda _, c=content: c, "--offload")))
    return cases


FILES: dict[str, tuple[str, ...]] = {
    "config.json": (),
    "tokenizer.json": (),
    "tokenizer_config.json": ("an empty object", *PLACED),  # which says nothing that must be known
    "model.safetensors": (),
}
"""Files of a model, and the damage that each stands."""


def of_folder(file: str, change: Callable[[Path], object], source: str = "model", *more: str) -> Make:
    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        broken = Path(shutil.copytree(inputs / source, folder / "broken"))
        change(broken / file)
        words = ["rank", "--model", broken, "--prompts", inputs / "prompts.jsonl", "--out", folder / "out"]
        if more:
            words = [*score_words(inputs, folder / "out", after=broken), *more]
        return words, "broken"

    return make


def damages(file: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """A change of the file at a path, by its name."""
    for name, change in WRITTEN.items():
        yield name, lambda path, c=change: path.write_bytes(c(path.read_bytes()))
    yield from PLACED.items()
    if file.endswith(".safetensors"):
        for name, content in HEADERS.items():
            yield name, lambda path, c=content: path.write_bytes(c)


def models_cases() -> list[Case]:
    cases = []
    for file, fine in FILES.items():
        for name, change in damages(file):
            if name not in fine:
                cases.append(case(f"{file} of a model: {name}", of_folder(file, change)))
    index = "model.safetensors.index.json"
    for name, change in damages(index):
        cases.append(case(f"the index of shards: {name}", of_folder(index, change, "sharded")))
        if name not in PLACED:  # without an index, all files are read
            of_disk = of_folder(index, change, "sharded", "--offload")
            cases.append(case(f"the index of shards, offloaded: {name}", of_disk))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        for name, change in damages(file):
            cases.append(
                case(f"{file}: {name}", of_folder(file, change, "tuned/adapter", "--baseline", "mean"))
            )
    return cases


# What runs go on from


def resumed(source: str, pattern: str, change: Callable[[Path], object], words: str) -> Make:
    """A run whose OUT has what an earlier one left, one file of it damaged."""

    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        out = Path(shutil.copytree(inputs / source, folder / "out"))
        change(next(path for path in sorted(out.glob(pattern)) if path.is_file()))
        prompts = inputs / "prompts.jsonl"
        if words == "score":
            return [*score_words(inputs, out), "--batch-size", 2, "--quiet"], Path(pattern).parts[0]
        tuning = ("finetune", "--model", inputs / "model", "--facts", prompts, "--lr", 0.01, "--epochs", 1)
        return [*tuning, "--checkpoint-every", 1, "--out", out, "--quiet"], "checkpoint"

    return make


def resumed_cases() -> list[Case]:
    cases = []
    for file in ("run.json", "*.distcp", ".metadata"):
        for name, change in damages(file):
            if name == "NUL bytes at the end" and file != "run.json":
                continue  # bytes that nothing asks for
            made = resumed("begun", f"checkpoint/step-*/{file}", change, "finetune")
            cases.append(case(f"{file} of a checkpoint: {name}", made))
    for file in ("part-*.safetensors", "baseline.safetensors"):
        for name, change in damages(file):
            if name in LINKS and file.startswith("baseline"):
                continue  # then there is none
            cases.append(
                case(f"{file} of a scoring: {name}", resumed("parts", f"shards/{file}", change, "score"))
            )
    return cases


SWEPT: dict[str, tuple[str, tuple[str, ...]]] = {
    "grid.json": ("--status", ()),
    "queue.json": ("--status", LINKS[:1]),
    "cells/*/attempts.json": ("--status", ("an empty list", *LINKS[:1])),
    "cells/*/result.json": ("--resume", LINKS),
}
"""Files of a sweep, what reads them, and damage that means that there is no such file."""


def swept(pattern: str, change: Callable[[Path], object], option: str) -> Make:
    """A sweep all of whose cells are done, with a damaged file."""

    def make(inputs: Path, folder: Path) -> tuple[Words, str]:
        from ecstruct.grids import Grid
        from ecstruct.grids.cell import Place

        out = folder / "out"
        grid = Grid(["ocr"])
        place = Place(out, grid.cells()[0])
        place.home.mkdir(parents=True)
        (out / "grid.json").write_text(json.dumps(grid.to_dict(), indent=1))
        (out / "queue.json").write_text('{"waiting": [], "jobs": {}, "slurm": false}')
        (place.home / "attempts.json").write_text('[{"job": "1", "started": 1.0, "seconds": 2.0}]')
        result = {"cell": place.cell.columns(), "rows": [{"rank": 1.0}], "results": {}}
        (place.home / "result.json").write_text(json.dumps(result))
        change(next(iter(out.glob(pattern))))
        return ["sweep", "--out", out, option, "--quiet"], (Path(pattern).name, "out holds")

    return make


def swept_cases() -> list[Case]:
    return [
        case(f"{Path(pattern).name} of a sweep: {name}", swept(pattern, change, option))
        for pattern, (option, fine) in SWEPT.items()
        for name, change in damages(pattern)
        if name not in fine
    ]


CASES = [
    *prompts_cases(),
    *facts_cases(),
    *configs_cases(),
    *grids_cases(),
    *weights_cases(),
    *models_cases(),
    *resumed_cases(),
    *swept_cases(),
]


def kept(folder: Path) -> dict[str, bytes] | None:
    """All that lies in a folder, None if there is no such."""
    if not folder.exists():
        return None
    return {name: (folder / name).read_bytes() for name in contents(folder)}


@pytest.mark.parametrize("bad", [pytest.param(each, id=each.name) for each in CASES])
def test_what_is_damaged_is_refused_in_one_sentence(bad, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    words, says = bad.make(inputs, tmp_path)
    before = kept(tmp_path / "out")
    result = run(*words)
    assert result.exit_code == 2, (result.output[-500:], result.exception)
    assert kept(tmp_path / "out") == before
    assert_one_sentence(result, says)


def assert_one_sentence(result: Any, says: str | tuple[str, ...]) -> None:
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("."), line
    assert "Traceback" not in line and len(line) <= 1500, (len(line), line[:1500])
    told = says if isinstance(says, tuple) else (says,)
    assert any(each in line for each in told), (told, line[:1500])
    assert result.stdout == ""


def test_there_are_many() -> None:
    assert len(CASES) >= 300 and len({each.name for each in CASES}) == len(CASES)
