"""Are finetuned facts recalled like pretrained ones? Run `python -m benchmarks.organism_recall`.

Pretrained facts are those of the organism's world. Finetuned ones are the paper's first- and second-hop
facts of one seed, whose implications are never taught. As in the paper, only prompts count whose answer the
model predicts (its first token). The first table has, for each kind of prompts, the lowest mean change of
the answer's probability when the last position cannot see a group of tokens, the layer around which this
window lies, and how often attention and MLPs extract the answer in any layer. The second table shows what
subjects are enriched with, projected on the embedding, because the organism's unembedding differs from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.facts import Prompt, first_hop, second_hop
from ecstruct.finetuning import finetune
from ecstruct.models.loading import load
from ecstruct.organism.world import World
from ecstruct.recall.attention_knockout import knockout
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.enrichment import attributes_rate, sublayer_knockout
from ecstruct.recall.extraction_events import extracted, extraction

SIZE = 100
"""The number of prompts of every kind of pretrained facts."""
GROUPS = ("subject", "non-subject", "last")
AT, CANCELLED = 4, 3
"""The layer after which attributes are read, and the number of layers that are cancelled together."""


def pretrained(world: World) -> dict[str, list[Prompt]]:
    """Return prompts about the world by kind; one kind takes two hops."""
    people = [person for person in world.people if not person.held_out]
    offices = [office for office in world.offices if not office.held_out]
    landmarks = [(landmark, city) for city in world.cities for landmark in city.landmarks]
    return {
        "homes": [Prompt(f"{p.name} lives in", p.home.name, subject=p.name) for p in people[:SIZE]],
        "landmarks": [Prompt(f"{name} is in", city.name, subject=name) for name, city in landmarks[:SIZE]],
        "offices": [
            Prompt(f"The {o.title} of {o.city.name} is", o.holder, subject=o.city.name)
            for o in offices[:SIZE]
        ],
        "languages of people": [
            Prompt(f"The people in the city {p.name} is from speak", p.home.language, subject=p.name)
            for p in people[:SIZE]
        ],
    }


def knockouts(windows: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """Return the first table, with a row per kind of prompts and window."""
    organism = load("organism")
    kinds = [(organism, "pretrained", kind, asked) for kind, asked in pretrained(World.build()).items()]
    for hop, data in (("first-hop", first_hop(seed)), ("second-hop", second_hop(seed))):
        tuned = finetune(organism, data.facts, seed=seed, progress=False).model
        kinds += [(tuned, "finetuned", f"{hop} facts", list(data.facts))]
        kinds += [(tuned, "finetuned", f"{hop} implications", list(data.implications))]
    return pd.DataFrame([row for kind in kinds for row in _rows(*kind, windows)])


def _rows(
    model: TransformerBridge, learnt: str, kind: str, asked: list[Prompt], windows: Sequence[int]
) -> Iterator[dict[str, object]]:
    events = extraction(model, asked, progress=False)
    known = [prompt for prompt, right in zip(asked, events["predicted"].values, strict=True) if right]
    shares = extracted(events.sel(prompt=events["predicted"])).isel(condition=0)
    by_part = {part: float(shares.sel(part=part)) for part in ("attention", "mlp")}
    for window in windows:
        row: dict[str, object] = {"learnt": learnt, "kind": kind, "right": f"{len(known)}/{len(asked)}"}
        mean = knockout(model, known, window=window, groups=GROUPS, progress=False).mean("prompt")
        for group in GROUPS:
            of_group = mean.sel(group=group).values
            row[f"{group}, %"], row[f"{group}, layer"] = of_group.min(), int(of_group.argmin())
        extracts = {f"{part} extracts, %": share for part, share in by_part.items()}
        yield {**row, "window": window, **extracts}


def enrichment(seed: int = 0) -> pd.DataFrame:
    """Return the second table, at the subject's last token: the attributes rate after every layer, that by
    chance, and how the rate after `AT` changes without the attention or MLPs of `CANCELLED` layers."""
    organism, facts = load("organism"), list(first_hop(seed).facts)
    tuned = finetune(organism, facts, seed=seed, progress=False).model
    homes = pretrained(World.build())["homes"]
    rows = []
    for model, learnt, asked in (
        (organism, "pretrained", homes),
        (tuned, "finetuned", facts),
        (organism, "not yet finetuned", facts),
    ):
        attributes = Attributes.of_organism(model, asked).about(asked)
        for name, its in (("rate", attributes), ("by chance", attributes.shuffled())):
            rate = attributes_rate(model, asked, its, onto="embedding", progress=False)
            rows.append((learnt, name, rate.sel(position="subject-last").mean("prompt").values))
        options = {"window": CANCELLED, "at_layer": AT, "onto": "embedding", "progress": False}
        change = sublayer_knockout(model, asked, attributes, **options).mean("prompt")
        rows += [(learnt, f"without {part}", change.sel(part=part).values) for part in ("attention", "mlp")]
    layers = range(organism.cfg.n_layers)
    return pd.DataFrame(
        [{"learnt": a, "%": b, **dict(zip(layers, values, strict=False))} for a, b, values in rows]
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="How the organism recalls facts.")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0, help="of the finetuned facts")
    args = parser.parse_args()
    for table in (knockouts(args.windows, args.seed), enrichment(args.seed)):
        print(table.to_string(index=False, float_format="{:.1f}".format, na_rep="-"), end="\n\n")


if __name__ == "__main__":
    main()
