"""Ranks, scores and their fidelity, of models as they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ecstruct import distributed
from ecstruct.checks.fidelity import fidelity
from ecstruct.evaluate import AnswerTokens, ranks
from ecstruct.facts import read_jsonl
from ecstruct.files import exclusive, write_text
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.load import load
from ecstruct.report.pages import fidelity_report, score_report
from ecstruct.runs.configuration import (
    Chat,
    Config,
    again,
    alone,
    check_weights,
    described,
    write_config,
)
from ecstruct.scores.engine import ScoreEngine


def rank_table(
    source: str,
    path: Path,
    device: str | None,
    out: Path | None,
    chat: Chat = tuple,
    answer_tokens: AnswerTokens = "first",
    adapter: str | None = None,
) -> pd.DataFrame:
    """Rank of every answer of a JSONL file; written to `out`, with what was ranked, when given."""
    prompts = chat(read_jsonl(path))
    model = load(source, adapter=adapter, device=device)
    table = pd.DataFrame(
        {
            "prompt": [prompt.text for prompt in prompts],
            "answer": [prompt.answer for prompt in prompts],
            "rank": ranks(model, prompts, answer_tokens=answer_tokens),
        }
    )
    if out:
        result = {
            "model": source,
            "adapter": adapter,
            "answer_tokens": answer_tokens,
            "mean_rank": np.mean(table["rank"]).item(),
            "ranks": table.to_dict("records"),
            "prompts": [prompt.to_record() for prompt in prompts],
        }
        write_text(out, json.dumps(result, indent=1))
    return table


def run_score(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Score and write `scores.nc` and `report.html`; of several processes the first does, and all score."""
    arguments = dict(config)
    before, after, prompts = (arguments.pop(name) for name in ("before", "after", "prompts"))
    expected = arguments.pop("fingerprints", None) or {}
    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree(described(config, out))
        engine = ScoreEngine(before, after, **arguments, device=joined.device, progress=progress)
        fingerprints = {state: engine.attrs[state]["fingerprint"] for state in ("before", "after")}
        for state, source in (("before", before), ("after", after)):
            check_weights(source, fingerprints[state], expected.get(state))
        scores = engine.shared(prompts, joined, out / "shards")
        if scores is None:
            return
        scores.save(out / "scores.nc")
        score_report(out / "report.html", scores, again(out))
        write_config(out, "score", {**config, "fingerprints": fingerprints})
        shutil.rmtree(out / "shards", ignore_errors=True)
    if progress:
        tqdm.write(f"report: {out / 'report.html'}")


@alone
def run_fidelity(config: Config, out: Path, device: str | None, progress: bool) -> None:
    """Hold fast scores against interventions; write `fidelity.json`, `report.html` and all scores."""
    arguments = dict(config)
    before, after, prompts = (arguments.pop(name) for name in ("before", "after", "prompts"))
    expected = arguments.pop("fingerprints", None) or {}
    model = load(before, device=device)
    check_weights(before, fingerprint(named_weights(model)), expected.get("before"))
    result = fidelity(model, after, prompts, **arguments, progress=progress)
    fingerprints = {state: result.linear.attrs[state]["fingerprint"] for state in ("before", "after")}
    check_weights(after, fingerprints["after"], expected.get("after"))
    for how, scores in result.scores().items():
        scores.save(out / f"scores-{how}.nc")
    write_text(out / "fidelity.json", json.dumps(result.results(), indent=1, allow_nan=False))
    fidelity_report(out / "report.html", result, again(out))
    write_config(out, "fidelity", {**config, "fingerprints": fingerprints})
    if progress:
        table = result.table().to_string(index=False, float_format="{:.2f}".format)
        tqdm.write(f"{table}\n{result.verdict()}\nreport: {out / 'report.html'}")
