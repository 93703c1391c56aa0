"""Fixtures that several test files share, and run-time checks of tensor shapes.

With ECSTRUCT_CHECK_TYPES=1 in the environment, every call checks the annotations of the numerical modules.
That nearly triples the time of these tests, so it is off by default.
"""

import gc
import os
from collections.abc import Iterator, Sequence

import pytest
from jaxtyping import install_import_hook

if os.environ.get("ECSTRUCT_CHECK_TYPES"):  # before these modules are imported
    numerical = ("scores.walk", "scores.linear", "scores.assemble", "models.hooked", "models.sites")
    install_import_hook([f"ecstruct.{name}" for name in numerical], "beartype.beartype")

import huggingface_hub.constants
import torch
from helpers.tiny import UNHOOKED, double_throughout
from transformer_lens.model_bridge import TransformerBridge

from ecstruct.models.loading import load

collect_ignore = ["data"]
"""pytest looks for doctests in every file, but the scripts that make the data need other packages."""

torch.set_num_threads(1)  # the models are tiny: more threads would only wait for one another


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters and set(UNHOOKED).intersection(map(str, parameters.params.values())):
            item.add_marker(pytest.mark.skip(reason="TransformerLens 3 does not hook it"))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over half a million objects of libraries: a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look nothing up on the Hugging Face Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # --quiet sets it; restored after the test


@pytest.fixture(scope="session")
def organism() -> TransformerBridge:
    """The shipped organism, hooked, which no test may change."""
    return load("organism", device="cpu")


@pytest.fixture
def double_everywhere() -> Iterator[None]:
    """Compute float64 models in float64 throughout: sums of scores then hold to 1e-10 in every family."""
    with double_throughout():
        yield
