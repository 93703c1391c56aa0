"""Scores of models as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm

from ecstruct.commands import Alignment, Score, Suggest
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import rank_summary
from ecstruct.facts import Prompt
from ecstruct.io import distributed
from ecstruct.io.files import exclusive, write_text
from ecstruct.models.loading import load
from ecstruct.options import AlignmentOptions, ScoreOptions, SuggestOptions
from ecstruct.report.alignment import alignment_report
from ecstruct.report.page import write_result
from ecstruct.report.pages import PROMPTS, score_report, top_table
from ecstruct.runs.configuration import (
    check_fingerprints,
    described,
    finish,
    folder_locked,
    replay_command,
    session_of,
    write_config,
)
from ecstruct.scores.engine import ScoreEngine
from ecstruct.scores.gradient_alignment import alignment
from ecstruct.scores.pair import Pair
from ecstruct.scores.ranks import rankable, with_ranks
from ecstruct.scores.read import read_words
from ecstruct.scores.result import ExtractiveScores
from ecstruct.scores.summary import adding_up
from ecstruct.scores.written import written_words
from ecstruct.suggestions import suggested


@folder_locked
def run_alignment(config: Alignment, out: Path, device: str | None, progress: bool) -> None:
    """Compute the alignment of facts and implications; write `alignment.nc` and `report.html`."""
    session, found = session_of(config.model, device, config.fingerprint)
    facts, implications = ([*map(Prompt.from_record, each)] for each in (config.facts, config.implications))
    options: dict[str, Any] = vars(AlignmentOptions.given(vars(config)))
    aligned = alignment(session, facts, implications, **options, progress=progress)
    aligned.save(out / "alignment.nc")
    alignment_report(out / "report.html", aligned, replay_command(out))
    finish(out, "alignment", config, aligned.conclusion(), progress, fingerprint=found)


_IN_WORDS = ("informative", "downstream")
"""The scores of whose strongest components a report says what they write."""


def run_score(config: Score, out: Path, device: str | None, progress: bool) -> None:
    """Score and write `scores.nc` and `report.html`; of several processes all score, the first writes."""
    prompts = config.prompts
    with distributed.ranks(device) as joined, exclusive(out):
        joined.agree(described(config, out))
        options = ScoreOptions.given(vars(config))
        engine = ScoreEngine(config.before, config.after, options, device=joined.device, progress=progress)
        prints = check_fingerprints(engine.pair.sources, config)
        scores = engine.score_across(prompts, joined, out / "shards")
        if scores is None:
            return
        tokenized = rankable(engine.pair, prompts)
        scores, ranked = with_ranks(scores, engine.pair, tokenized, engine.options.batch_size), None
        if tokenized is not None:
            found = scores.dataset["rank"]
            states = {state: found.sel(state=state).values for state in ("before", "after")}
            ranked = rank_summary(tokenized, states)
        words = None
        if tokenized is not None and joined.size == 1 and engine.pair.resident:
            of = (*engine.pair.sessions, prompts, scores)
            words = {each: written_words(*of, score=each) for each in _IN_WORDS}
            words["read"] = read_words(*of)
        scores.save(out / "scores.nc")
        lines = (json.dumps(record, ensure_ascii=False) for record in prompts)
        write_text(out / PROMPTS, "".join(f"{line}\n" for line in lines))
        score_report(out / "report.html", scores, replay_command(out), ranked, words)
        write_config(out, "score", config, fingerprints=prints)
        shutil.rmtree(out / "shards", ignore_errors=True)
    if progress:
        tables = [] if ranked is None else [ranked.to_string(index=False, float_format="{:.2f}".format)]
        tables.append(top_table(scores).to_string(index=False))
        tables.append(f"{adding_up(scores.reward, scores.completeness)}\nreport: {out / 'report.html'}")
        tqdm.write("\n\n".join(tables))


@folder_locked
def run_suggest(config: Suggest, out: Path, device: str | None, progress: bool) -> None:
    """Suggest sublayers; write `suggestion.nc`, `suggestion.csv`, `lora.json` and `report.html`; with a
    finetuned model also `mergekit.yaml`, and if an MLP is suggested, `easyedit.yaml`."""
    if config.facts is not None:
        if config.after is not None or config.scores is not None:
            raise InputError(
                "--facts are for a model that is not finetuned yet: leave out --after and --scores."
            )
        session = Session.of(load(config.before, device=device))
        prints = check_fingerprints({"before": session.described}, config)
        facts, prompts = ([*map(Prompt.from_record, each)] for each in (config.facts, config.prompts))
        scores = alignment(session, facts, prompts, progress=progress)
    elif config.after is None:
        raise InputError("nothing says what to suggest sublayers for: give --after, or --facts.")
    else:
        pair = Pair.of(config.before, config.after, device)
        session, prints = pair.sessions[0], check_fingerprints(pair.sources, config)
        if config.scores is not None:
            scores = ExtractiveScores.load(config.scores)
        else:
            scores = ScoreEngine(pair, None, progress=progress).score(config.prompts)
    found = suggested(session, scores, SuggestOptions.given(vars(config)))
    found.save(out / "suggestion.nc")
    write_text(out / "suggestion.csv", found.table().to_csv(index=False))
    for name, by_score in {"lora": False, "lora-by-score": True}.items():
        write_text(out / f"{name}.json", json.dumps(found.lora(by_score=by_score), indent=1))
    if found.merges:
        write_text(out / "mergekit.yaml", yaml.safe_dump(found.mergekit(), sort_keys=False))
    if found.edits_mlps:
        write_text(out / "easyedit.yaml", yaml.safe_dump(found.easyedit(), sort_keys=False))
    write_result(out / "report.html", "suggest.html", "Suggestions", found, replay_command(out))
    finish(out, "suggest", config, found.conclusion(), progress, fingerprints=prints)
