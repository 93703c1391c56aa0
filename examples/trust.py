"""Can the scores be trusted? Interventions, controls and grafts, on both hops of the embedded model.

    python examples/trust.py [FOLDER]

With a folder, the figures are written to it as PNG, which needs `pip install "ecstruct[export]"`.
"""

import sys
from pathlib import Path

import ecstruct
from ecstruct.checks import controls, grafts

PEOPLE_OF_NO_FACT = slice(20, 40)


def main() -> None:
    before = ecstruct.load("organism")
    unrelated = ecstruct.facts.first_hop(names=PEOPLE_OF_NO_FACT).implications
    for hop, data, lr in (
        ("first-hop", ecstruct.facts.first_hop(), 2.3e-4),
        ("second-hop", ecstruct.facts.second_hop(), 4e-4),
    ):
        tuned = ecstruct.finetune(before, data.facts, lr=lr, progress=False)
        pair, asked = (before, tuned.model), data.implications
        figures = {}

        print(f"\n{hop}: fast scores and interventions")
        fidelity = ecstruct.fidelity(*pair, asked)
        print(fidelity.table().round(2).to_string(index=False), fidelity.verdict(), sep="\n")
        figures["fidelity"] = fidelity.figure

        print(f"\n{hop}: mean rank of the implications with k components grafted or reverted")
        grafted = grafts(*pair, asked, fidelity.linear)
        ranks = grafted.frame.groupby(["how", "by", "k"], sort=False)["rank"].mean()
        print(ranks.unstack("k").round(2).to_string(), grafted.conclusion(), sep="\n")
        figures["grafts"] = grafted.figure

        print(f"\n{hop}: sums of positive scores, and components above their controls (p <= 0.05)")
        controlled = controls(*pair, asked, facts=data, unrelated=unrelated, tune=tuned.config)
        print(controlled.totals().round(2).to_string())
        for score in ("informative", "upstream", "downstream"):
            above = controlled.above(score)
            found = above[above["p_adjusted"] <= 0.05].groupby("against").size()
            print(f"{score}: {found.reindex(list(controlled.controls), fill_value=0).to_dict()}")
        figures["controls"] = controlled.figure

        for name, figure in figures.items() if len(sys.argv) > 1 else ():
            ecstruct.plots.save_figure(figure, Path(sys.argv[1]) / f"{name}-{hop}.png")


if __name__ == "__main__":
    main()
