"""What two ranks run in `test_sharded.py`, in one start: every case in one process group.

`python sharded_script.py CASES OUT`: CASES is a JSON file of cases, each a folder, a dtype and options; the
first rank writes the results of all cases to OUT with torch.save.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from transformer_lens.model_bridge import TransformerBridge

import ecstruct
from ecstruct.facts.tokens import pad_id_of, tokenize
from ecstruct.finetuning import finetune_across, sharded
from ecstruct.finetuning.learner import recomputing
from ecstruct.finetuning.loop import add_gradient
from ecstruct.finetuning.sharded import Blueprint, Sharded
from ecstruct.io.distributed import Ranks, ranks
from ecstruct.models.bridge import named_weights
from helpers.facts_fixtures import FACTS
from helpers.tiny import double_throughout


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    with ranks("cpu") as them, pytest.MonkeyPatch.context() as patch:
        for name, case in cases.items():
            model = None
            if them.first:
                dtype = getattr(torch, case["dtype"])
                model = ecstruct.load(case["folder"], dtype=dtype, device="cpu")
            if case.get("half"):
                patch.setattr(sharded, "runs_in_bfloat16", lambda device: True)
            if "options" in case:
                results[name] = finetuned(them, model, case["options"])
            else:
                with double_throughout():
                    results[name] = gradients(them, model)
            patch.undo()
        if them.first:
            torch.save(results, sys.argv[2])


def finetuned(them: Ranks, model: TransformerBridge | None, options: dict[str, Any]) -> Any:
    facts = options.pop("facts", FACTS)
    tuned = finetune_across(them, model, facts, progress=False, **options)
    if tuned is None:
        return None
    weights = {n: p.detach() for n, p in named_weights(tuned.model).items()}
    return tuned.history.to_dict(), weights, dict(tuned.delta.tensors), dict(tuned.delta.metadata)


def gradients(them: Ranks, model: TransformerBridge | None) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss over all facts; each rank runs every second fact."""
    blueprint = them.broadcast(Blueprint.of(model) if model else None)
    assert blueprint is not None
    lessons = tokenize(FACTS, blueprint.tokenizer, n_ctx=24, with_options=False)
    n_tokens = sum(len(t.answer_ids) for t in lessons)
    shared = Sharded(them, blueprint, model, None, train_embeddings=True)
    with recomputing(shared.blocks):
        part = lessons[them.rank :: them.size]
        add_gradient(shared.learner, part, pad_id_of(blueprint.tokenizer), n_tokens, them.size)
    found = {}
    for name, p in shared.learner.weights.items():
        assert isinstance(p, DTensor) and p.to_local().numel() < p.numel(), f"{name} is not sharded"
        assert isinstance(p.grad, DTensor)
        found[name] = p.grad.full_tensor()
    return found


if __name__ == "__main__":
    main()
