"""Subnetworks that know the facts: do they generalise alike, and what do all of them share?

    python -m benchmarks.organism_subnetworks FOLDER [first-hop|second-hop]

The organism is finetuned on facts and pruned to 12 subnetworks at each of two sparsities. Everything is
deterministic. The masks are stored in the folder, so that a second call only measures.
"""

import argparse
from pathlib import Path
from typing import Any

from ecstruct import subnetworks
from ecstruct.evaluate import mean_rank
from ecstruct.facts import first_hop, second_hop
from ecstruct.finetuning import finetune
from ecstruct.models.loading import load
from ecstruct.plots import save_figure, spread
from ecstruct.scores import score

SPARSITIES, SEEDS, STEPS = (0.3, 0.5), 12, 500
HOPS = {
    "first-hop": (first_hop, 2.3e-4),
    "second-hop": (second_hop, 4e-4),
}


def main(folder: Path, hop: str) -> None:
    make, lr = HOPS[hop]
    data = make()
    before = load("organism")

    def tuned_for(epochs: int):
        return finetune(before, data.facts, lr=lr, epochs=epochs, progress=False).model

    model, asked = tuned_for(8), {"facts": data.facts, "implications": data.implications}
    for name, prompts in asked.items():
        print(f"{hop}: the full model's mean rank on {name} is {mean_rank(model, prompts):.2f}")

    masks = {sparsity: found(model, data, sparsity, folder, hop) for sparsity in SPARSITIES}
    evaluated = {name: {} for name in asked}
    for sparsity, its in masks.items():
        measured = {name: subnetworks.evaluate(model, its, p, progress=False) for name, p in asked.items()}
        print(f"\n{sparsity:.0%} ablated, by seed")
        for name, of in measured.items():
            evaluated[name][f"{sparsity:.0%} ablated"] = of
            print(f"{name}: mean rank {of['mean_rank'].values.round(2).tolist()}")
            print(f"{name}: accuracy {of['accuracy'].values.round(2).tolist()}")

    core = subnetworks.core(masks)
    print(f"\n{core.table().round(3).to_string(index=False)}\n{core.conclusion()}", core.components())
    ranks = [of["mean_rank"] for of in evaluated["implications"].values()]
    generalising = subnetworks.generalising(masks, dict(zip(masks, ranks, strict=True)))
    print(f"\n{generalising.conclusion()}")
    figures = {"core": core.figure, "spread": spread(evaluated["facts"], evaluated["implications"])}

    ablated = subnetworks.ablate_core(model, masks, data.facts, data.implications, progress=False)
    print(f"\n{ablated.table().round(2).to_string(index=False)}\n{ablated.conclusion()}")
    depends = subnetworks.dependence(
        model, masks, data.implications, added=generalising.heads, progress=False
    )
    print(f"\n{depends.table().round(3).to_string(index=False)}\n{depends.conclusion()}")
    figures |= {"ablation": ablated.figure, "dependence": depends.figure}

    epochs: dict[str | int, Any] = {epoch: tuned_for(epoch) if epoch else before for epoch in range(9)}
    course = subnetworks.emergence(epochs, core, data.facts, data.implications, added=generalising)
    by_epoch = course.frame.pivot_table(index=["prompts", "network"], columns="checkpoint", values="rank")
    print(f"\n{by_epoch.round(2).to_string()}\n{course.conclusion()}")
    scores = score(before, model, data.implications, progress=False)
    beside = subnetworks.with_scores(core, scores, added=generalising)
    print(f"\n{beside.correlations.round(2).to_string(index=False)}\n{beside.conclusion()}")
    print(beside.groups().round(2).to_string(index=False))
    figures |= {"emergence": course.figure, "scores": beside.figure}

    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}-{hop}.html")


def found(model, data, sparsity: float, folder: Path, hop: str) -> subnetworks.Masks:
    """Return subnetworks of the model on its facts, from the folder if they are there."""
    path = folder / f"masks-{hop}-{sparsity}.nc"
    if not path.exists():
        subnetworks.prune(
            model,
            data.facts,
            sparsity=sparsity,
            seeds=SEEDS,
            steps=STEPS,
            checkpoint=path.with_suffix(".checkpoint"),
        ).save(path)
    return subnetworks.Masks.load(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Subnetworks of the organism, finetuned on facts.")
    parser.add_argument("folder", type=Path, help="where masks and figures are kept")
    parser.add_argument("hop", choices=HOPS, nargs="?", default="first-hop")
    args = parser.parse_args()
    main(args.folder, args.hop)
