"""Ranks, scores and their fidelity, for models as they are."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ecstruct.checks.fidelity import engine_for, fidelity_of
from ecstruct.commands import Fidelity, Score
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_summary, ranks
from ecstruct.facts import Prompt, read_jsonl
from ecstruct.facts.tokens import tokenize
from ecstruct.io import distributed
from ecstruct.io.files import exclusive, write_text
from ecstruct.models.load import load
from ecstruct.models.provenance import tokenizer_of
from ecstruct.options import AnswerTokens, FidelityOptions, ScoreOptions
from ecstruct.report.pages import PROMPTS, fidelity_report, score_report, top_table
from ecstruct.runs.configuration import Chat, again, alone, check_pair, described, write_config
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.ranks import ranks_of_pair
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.summary import adding_up


def rank_table(
    source: str,
    path: Path,
    device: str | None,
    out: Path | None,
    chat: Chat = tuple,
    answer_tokens: AnswerTokens = "first",
    adapter: str | None = None,
) -> pd.DataFrame:
    """Rank every answer of a JSONL file; if `out` is given, write the ranks there with what was ranked."""
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


def run_score(config: Score, out: Path, device: str | None, progress: bool) -> None:
    """Score and write `scores.nc` and `report.html`; of several processes all score, the first writes."""
    prompts = config.prompts
    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree(described(config, out))
        options = ScoreOptions.given(vars(config))
        engine = ScoreEngine(config.before, config.after, options, device=joined.device, progress=progress)
        prints = check_pair(engine, config)
        scores = engine.shared(prompts, joined, out / "shards")
        if scores is None:
            return
        scores, ranked = _ranked(scores, engine, prompts)
        scores.save(out / "scores.nc")
        lines = (json.dumps(record, ensure_ascii=False) for record in prompts)
        write_text(out / PROMPTS, "".join(f"{line}\n" for line in lines))
        score_report(out / "report.html", scores, again(out), ranked)
        write_config(out, "score", config, fingerprints=prints)
        shutil.rmtree(out / "shards", ignore_errors=True)
    if progress:
        tables = [] if ranked is None else [ranked.to_string(index=False, float_format="{:.2f}".format)]
        tables.append(top_table(scores).to_string(index=False))
        tqdm.write("\n\n".join([*tables, f"{adding_up(scores)}\nreport: {out / 'report.html'}"]))


def _ranked(
    scores: ExtractiveScores, engine: ScoreEngine, prompts: Sequence[Mapping[str, Any]]
) -> tuple[ExtractiveScores, pd.DataFrame | None]:
    """Add the prompts' ranks to the scores as the coordinate `rank` (prompt, state), and summarise them;
    prompts without options to rank among get neither."""
    pair = engine.pair
    try:
        asked = [Prompt.from_record(record) for record in prompts]
        tokenized = tokenize(asked, tokenizer_of(pair.view.model), n_ctx=pair.view.model.cfg.n_ctx)
    except InputError:  # such prompts can still be scored by their log-probability
        return scores, None
    found = ranks_of_pair(pair, tokenized, engine.options.batch_size)
    by_state = np.stack([found[str(state)] for state in scores.dataset["state"].values], 1)
    dataset = scores.dataset.assign_coords(rank=(("prompt", "state"), by_state))
    return ExtractiveScores(dataset), rank_summary(tokenized, found)


@alone
def run_fidelity(config: Fidelity, out: Path, device: str | None, progress: bool) -> None:
    """Compare fast scores with interventions; write `fidelity.json`, `report.html` and all scores."""
    options, folder = FidelityOptions.given(vars(config)), out / "unfinished"
    engine = engine_for(config.before, config.after, options, device)
    prints = check_pair(engine, config)
    result = fidelity_of(engine, config.prompts, options, folder=folder, progress=progress)
    for how, scores in result.scores().items():
        scores.save(out / f"scores-{how}.nc")
    write_text(out / "fidelity.json", json.dumps(result.results(), indent=1, allow_nan=False))
    fidelity_report(out / "report.html", result, again(out))
    write_config(out, "fidelity", config, fingerprints=prints)
    shutil.rmtree(folder, ignore_errors=True)
    if progress:
        table = result.table().to_string(index=False, float_format="{:.2f}".format)
        tqdm.write(f"{table}\n{result.verdict()}\nreport: {out / 'report.html'}")
