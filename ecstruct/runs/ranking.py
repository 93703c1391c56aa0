"""Ranks of a model as it is: with few imports, as these take longer than ranking some prompts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ecstruct.evaluate import ranks
from ecstruct.facts import read_jsonl
from ecstruct.io.files import write_text
from ecstruct.models.loading import load
from ecstruct.options import AnswerTokens
from ecstruct.runs.configuration import Chat


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
    seconds = [prompt.second for prompt in prompts]
    table = pd.DataFrame(
        {
            "prompt": [prompt.text for prompt in prompts],
            **({"second": seconds} if any(seconds) else {}),
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
