"""Dequantise checkpoints with quantised weights: bitsandbytes, FP8, MXFP4, compressed-tensors.

transformers does so, for the formats for which it can. What comes out has ordinary weights, those with
which transformers computes.
"""

import inspect
import logging
from typing import Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoHfQuantizer,
)
from transformers.quantizers.base import HfQuantizer

from ecstruct.errors import InputError
from ecstruct.models.boot import gist

_logger = logging.getLogger(__name__)


def quantisation_of(config: Any) -> str:
    """Return the format in which a checkpoint is quantised, by its configuration, or "" if it is not."""
    asked = _asked(config)
    if asked.get("load_in_4bit"):
        return "bitsandbytes_4bit"
    if asked.get("load_in_8bit"):
        return "bitsandbytes_8bit"
    return str(asked.get("quant_method", "unknown")) if asked else ""


def ask_to_dequantise(name: str, config: Any) -> None:
    """Set a configuration so that transformers dequantises the weights as it reads them, if it can do so.

    Raises:
        InputError: The format cannot be dequantised, or not without a package that is missing here.
    """
    if not (method := quantisation_of(config)):
        return
    while_reading = _while_reading(method)
    if not while_reading and not _afterwards(method):
        raise InputError(
            f"{name} is quantised ({method}), which transformers cannot dequantise: use the checkpoint "
            "that it was made from or, of GPTQ and AWQ, what gptqmodel writes, as with `python -c 'from "
            'gptqmodel.utils.model_dequant import dequantize_model as d; d("FOLDER", "NEW_FOLDER")\'`.'
        )
    config.quantization_config = {**_asked(config), **({"dequantize": True} if while_reading else {})}
    try:
        AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment()
    except (ImportError, RuntimeError) as error:
        package = "bitsandbytes" if method.startswith("bitsandbytes") else method
        raise InputError(
            f"{name} is quantised ({method}), and what dequantises it is missing here ({gist(error)}): "
            f"install it, as with `pip install {package}`, or use the checkpoint that it was made from."
        ) from error
    _logger.warning("the weights of %s are dequantised from %s", name, method)


def dequantised(hf: Any) -> Any:
    """Return a model in memory with ordinary weights.

    Raises:
        InputError: transformers cannot dequantise it.
    """
    if getattr(hf, "hf_quantizer", None) is None:
        return hf
    try:
        return hf.dequantize(dtype=torch.float32)
    except NotImplementedError as error:
        raise InputError(
            f"this {type(hf).__name__} is quantised, and transformers cannot dequantise it: give the model "
            "that it was made from."
        ) from error


def _asked(config: Any) -> dict[str, Any]:
    asked = getattr(config, "quantization_config", None) or {}
    if isinstance(asked, dict):
        return asked
    return asked.to_dict() if hasattr(asked, "to_dict") else {"quant_method": "unknown"}


def _while_reading(method: str) -> bool:
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return kind is not None and "dequantize" in inspect.signature(kind.__init__).parameters


def _afterwards(method: str) -> bool:
    quantizer: Any = AUTO_QUANTIZER_MAPPING.get(method)
    return quantizer is not None and quantizer._dequantize is not HfQuantizer._dequantize
