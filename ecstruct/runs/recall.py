"""Dissection of recall, in one model or in two."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.commands import Recall
from ecstruct.engine.session import Session
from ecstruct.errors import InputError
from ecstruct.evaluate import keep_known
from ecstruct.facts import Prompt
from ecstruct.io.files import write_text
from ecstruct.models.loading import load, load_after
from ecstruct.recall import Attributes, compare, dissect, knockout_tokens, save
from ecstruct.recall.attention_knockout import LIKELY
from ecstruct.report.recall import AFTER, recall_report
from ecstruct.runs.configuration import check_weights, finish, folder_locked, replay_command
from ecstruct.scores.pair import Pair

FEW = 2
"""The fewest attributes per subject, on average, from which a rate can be estimated."""

_log = logging.getLogger(__name__)


@folder_locked
def run_recall(config: Recall, out: Path, device: str | None, progress: bool) -> None:
    """Dissect recall and write an array per part and model and `report.html`; for two models also
    `agreement.csv` and `scores.nc`. An interrupted run continues from the folder `unfinished`."""
    prompts = [Prompt.from_record(record) for record in config.prompts]
    asked = model = load(config.before, device=device)
    if config.after:
        asked = load_after(config.after, model, device=device)
        before, after = Pair.of(model, asked).sessions
        sessions = {"before": before, AFTER: after}
    else:
        sessions = {"": Session.of(model)}
    weights = {state: session.described["fingerprint"] for state, session in sessions.items()}
    for (state, found), source in zip(weights.items(), (config.before, config.after), strict=False):
        check_weights(str(source), found, (config.fingerprints or {}).get(state))
    if config.known:
        known = keep_known(asked, prompts, among="vocabulary").kept
        if progress:
            tqdm.write(f"the model knows {len(known)} of {len(prompts)} prompts")
        prompts = list(known)
    attributes = _attributes(config.attributes, prompts, model)
    unfinished = out / "unfinished"
    token = config.token or ("answer" if config.after else "predicted")
    options: dict[str, Any] = {"window": config.window, "token": token, "onto": config.onto}
    options |= {"normed": config.normed, "folder": unfinished, "progress": progress}
    if config.after:
        result = compare(sessions["before"], sessions[AFTER], prompts, attributes, **options)
        parts = {"before": result.before, AFTER: result.after}
        result.scores.save(out / "scores.nc")
        write_text(out / "agreement.csv", result.agreement().to_csv(index=False))
    else:
        result = dissect(sessions[""], prompts, attributes, **options)
        parts = {"": result}
    window = next(iter(parts.values())).knockout.attrs["options"]["window"]
    of_one = {"window": window, "token": token, "progress": False}
    # These show the first prompt whose token is likely.
    p = list(parts.values())[-1].knockout["probability"].values
    shown_prompt = prompts[int((p >= LIKELY).argmax())]
    tokens = {state: knockout_tokens(its, shown_prompt, **of_one) for state, its in sessions.items()}
    for state, found in parts.items():
        for name, part in {**found.parts(), "tokens": tokens[state]}.items():
            save(part, out / f"{name}{'-' * bool(state)}{state}.nc")
    described = None if attributes is None else {"source": attributes.source, "words": _words(attributes)}
    told = {"window": window, "token": token, "attributes": described, "fingerprints": weights}
    shown = {key: v for key, v in (vars(config) | told).items() if key not in ("prompts", "attributes")}
    recall_report(out / "report.html", result, tokens, replay_command(out), shown)
    finish(out, "recall", config, "", progress, **told)


def _attributes(given: Any, prompts: list[Prompt], model: TransformerBridge) -> Attributes | None:
    """Return the attributes that a configuration gives: each subject's words, or the source of these."""
    if given is None or given == "none":
        return None
    if isinstance(given, Mapping):
        words = {subject: frozenset(its) for subject, its in given["words"].items()}
        return Attributes(words, given["source"])
    if given in ("facts", "answers"):
        found = Attributes.from_facts(prompts, model)
        if np.mean([len(words) for words in found.values()]) < FEW:
            said = (
                "the answers of these prompts give their subjects hardly more than one attribute each, of "
                "which no rate can be told: give --attributes FILE.jsonl with texts about the subjects"
            )
            if given == "facts":
                raise InputError(f"{said}, or --attributes none.")
            _log.warning("%s. Subject enrichment and extraction heads are left out.", said)
            return None
    elif given == "world":
        found = Attributes.of_organism(model, prompts)
    else:
        found = Attributes.from_corpus(given, model)
    return found.about(prompts)


def _words(attributes: Attributes) -> dict[str, list[str]]:
    return {subject: sorted(words) for subject, words in attributes.items()}
