"""How facts are recalled: which tokens must be seen, what subjects are enriched with, and what is extracted
from them, in one model or before and after finetuning (Geva, Bastings, Filippova and Globerson 2023, arXiv
2304.14767)."""

from ecstruct.recall.attention_knockout import knockout, knockout_tokens
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.comparison import Comparison, compare
from ecstruct.recall.dissection import Dissection, dissect
from ecstruct.recall.enrichment import attributes_rate, sublayer_knockout
from ecstruct.recall.extraction_events import (
    extracted,
    extracting_layers,
    extraction,
    extraction_rate,
    first_extraction,
)
from ecstruct.recall.heads import extraction_heads
from ecstruct.recall.layer_readings import readings
from ecstruct.recall.storage import load, save

__all__ = [
    "Attributes",
    "Comparison",
    "Dissection",
    "attributes_rate",
    "compare",
    "dissect",
    "extracted",
    "extracting_layers",
    "extraction",
    "extraction_heads",
    "extraction_rate",
    "first_extraction",
    "knockout",
    "knockout_tokens",
    "load",
    "readings",
    "save",
    "sublayer_knockout",
]
