"""First-hop and second-hop facts on the embedded model: finetune, score, draw.

    python examples/quickstart.py [FIGURE.png]

Without a file name the figure opens in the browser; PNG, SVG and PDF need `pip install "ecstruct[export]"`.
"""

import sys

import ecstruct


def main() -> None:
    before = ecstruct.load("organism")
    scores = {}
    for hop, data in (
        ("first-hop", ecstruct.facts.first_hop()),
        ("second-hop", ecstruct.facts.second_hop()),
    ):
        tuned = ecstruct.finetune(before, data.facts)
        rank = ecstruct.mean_rank(tuned.model, data.implications)
        print(
            f"{hop}: mean rank of implications {ecstruct.mean_rank(before, data.implications):.2f} "
            f"before, {rank:.2f} after"
        )
        scores[hop] = ecstruct.score(before, tuned.model, data.implications)
        print(scores[hop].top(3, "informative"))
    figure = ecstruct.plots.heatmap(scores)
    if len(sys.argv) > 1:
        ecstruct.plots.save_figure(figure, sys.argv[1])
    else:
        figure.show()


if __name__ == "__main__":
    main()
