"""Options that are declared once: functions, command line, `config.json` and attributes say the same."""

import re
from dataclasses import MISSING, fields
from inspect import Parameter, signature

import pytest
from helpers.command_line import refused, run

import ecstruct
from ecstruct import options
from ecstruct.cli.command import _parameters
from ecstruct.commands import COMMANDS
from ecstruct.errors import InputError
from ecstruct.runs import RUNS, run_of
from ecstruct.subnetworks import prune

SHELLS = {
    ecstruct.alignment: options.AlignmentOptions,
    ecstruct.score: options.ScoreOptions,
    ecstruct.causal_scores: options.CausalOptions,
    ecstruct.fidelity: options.FidelityOptions,
    ecstruct.finetune: options.FinetuneOptions,
    prune: options.PruneOptions,
}


@pytest.mark.parametrize("function", SHELLS, ids=lambda function: function.__name__)
def test_a_function_takes_the_options_of_its_class_with_their_defaults(function):
    parameters = signature(function).parameters
    for field in fields(SHELLS[function]):
        assert parameters[field.name].default == field.default, field.name
        assert re.search(rf"\b{field.name}\b", function.__doc__), field.name


def test_every_configuration_has_a_run():
    assert COMMANDS.keys() == RUNS.keys()
    assert all(callable(run_of(command)) for command in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_words_and_records_have_the_defaults_of_the_configuration(name):
    config = COMMANDS[name]
    by_name = {field.name: field for field in fields(config)}
    for word, parameter in _parameters(config).items():
        field = by_name[word]
        if field.default is MISSING:
            assert parameter.default is Parameter.empty
        elif not isinstance(field.default, tuple):  # repeatable words are absent by default
            assert parameter.default == field.default
    with pytest.raises(InputError, match=f"the file has 'colour', which {name} does not know: remove it"):
        config.read(_record(config) | {"colour": "red"}, "the file", name)
    for field in by_name.values():
        if field.default is field.default_factory is MISSING:
            lacking = {key: value for key, value in _record(config).items() if key != field.name}
            with pytest.raises(InputError, match=f"the file lacks '{field.name}'"):
                config.read(lacking, "the file", name)


def _record(config) -> dict:
    """A record of what a configuration needs, whatever its type."""
    return {f.name: "x" for f in fields(config) if f.default is f.default_factory is MISSING}


def test_a_word_and_an_argument_are_refused_in_the_same_words(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    words = ["--before", "x", "--after", "y", "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out"]
    refused(
        run("score", *words, "--path-steps", 1001),
        "path_steps=1001: it should be less than or equal to 1000",
    )
    with pytest.raises(InputError, match="path_steps=1001: it should be less than or equal to 1000"):
        options.ScoreOptions(path_steps=1001)


def test_what_does_not_change_scores_is_no_part_of_their_identity():
    one = options.ScoreOptions()
    assert one.identity() == options.ScoreOptions(batch_size=3, verify=2, offload=True).identity()
    for other in ({"path_steps": 2}, {"upstream": "exact"}, {"reward": "logprob"}, {"baseline": "mean"}):
        assert options.ScoreOptions(**other).identity() != one.identity()


def test_configurations_of_the_first_version():
    pair = {"before": "a", "after": "b", "prompts": [{"prompt": "x"}]}
    assert COMMANDS["score"].read({**pair, "upstream": "exact"}, "it", "score").propagation == "gradient"
    of_old = COMMANDS["fidelity"].read(pair, "it", "fidelity")
    assert of_old.sample is None and set(of_old.forms) == {"path", "surrogate", "exact"}
    recalled = COMMANDS["recall"].read({"model": "a", "prompts": pair["prompts"]}, "it", "recall")
    assert recalled.before == "a" and recalled.after is None
