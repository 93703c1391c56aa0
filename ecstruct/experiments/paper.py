"""The numbers of the paper, to stand beside ours.

Mean ranks from 0 among 20 options; OLMo-7B-0424 at step 477000 unless another model is named, Adam at
3e-6, 8 epochs in batches of 8. `rerun` are those that the authors measured again later: the distance
between the two is the precision to expect. Source: Feng, Russell & Steinhardt (ICML 2025) and its
published code.
"""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

COLUMNS = ("first-hop fact", "first-hop implication", "second-hop fact", "second-hop implication")
"""Of the freezing table."""

GRAFTING_COLUMNS = ("Impl F'", "Impl F", "F'")


@cache
def paper_numbers() -> MappingProxyType[str, Any]:
    """By result: `ocr`, `freezing`, `ordering`, `grafting`, `localization`, `grafting_sweep`."""
    file = resources.files("ecstruct.experiments").joinpath("paper.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))
