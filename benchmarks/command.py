"""The command line that all benchmarks share."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from benchmarks.setup import Setup
from benchmarks.table import Row, as_text
from ecstruct.io.files import write_text

Benchmarks = Mapping[str, Callable[[Setup], Iterator[Row]]]


def main(benchmarks: Benchmarks, argv: list[str] | None = None) -> list[Row]:
    """Run benchmarks, print their table, and with `--json` write it with all it takes to read it."""
    parser = argparse.ArgumentParser(description="What scoring costs.")
    parser.add_argument("--only", nargs="+", choices=benchmarks, default=[*benchmarks], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny models: whether everything runs")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    args = parser.parse_args(argv)
    setup = Setup(args.repeats, args.threads, args.device, args.small)
    setup.prepare()
    rows: list[Row] = []
    with tqdm(args.only) as bar:
        for name in bar:
            bar.set_description(name)
            rows += benchmarks[name](setup)
    print(as_text(rows))
    if args.json:
        table = [{**asdict(row), "ratio": row.ratio} for row in rows]
        write_text(args.json, json.dumps({"setup": setup.describe(), "rows": table}, indent=1))
    return rows
