"""The paper's numbers, which tables and figures show beside ours.

Mean ranks count from 0 among 20 options. They are of OLMo-7B-0424 at step 477000 unless another model is
named, with Adam at 3e-6, 8 epochs in batches of 8. `rerun` has what the authors measured again later: the
distance shows the precision to expect. Source: Feng, Russell & Steinhardt (ICML 2025) and its published
code.
"""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

COLUMNS = ("first-hop fact", "first-hop implication", "second-hop fact", "second-hop implication")
"""The columns of the freezing table."""

GRAFTING_COLUMNS = ("Impl F'", "Impl F", "F'")


@cache
def paper_numbers() -> MappingProxyType[str, Any]:
    """Read the numbers of `ocr`, `freezing`, `ordering`, `grafting`, `localization`, `grafting_sweep`."""
    file = resources.files("ecstruct.experiments").joinpath("paper.json")
    return MappingProxyType(json.loads(file.read_text(encoding="utf-8")))
