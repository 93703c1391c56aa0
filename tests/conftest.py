"""Fixtures of several test files, and run-time checks of tensor shapes.

With ECSTRUCT_CHECK_TYPES=1 in the environment the annotations of the numerical modules are checked in
every call. They nearly triple the time of these tests, so they are not always on.
"""

import os
from collections.abc import Iterator, Sequence

import pytest
from jaxtyping import install_import_hook

if os.environ.get("ECSTRUCT_CHECK_TYPES"):  # before anything imports them
    numerical = ("scores.walk", "scores.linear", "scores.assemble", "models.hooked", "models.sites")
    install_import_hook([f"ecstruct.{name}" for name in numerical], "beartype.beartype")

import huggingface_hub.constants
import torch
from tiny import UNHOOKED, double_throughout

collect_ignore = ["data"]
"""Doctests are looked for in every file, but what makes the data needs packages of its own."""

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters and set(UNHOOKED).intersection(map(str, parameters.params.values())):
            item.add_marker(pytest.mark.skip(reason="TransformerLens 3 does not hook it"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for on the Hugging Face Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # --quiet sets it; restored after the test


@pytest.fixture
def double_everywhere() -> Iterator[None]:
    """Double models are computed in double throughout: sums of scores hold to 1e-10 in every family."""
    with double_throughout():
        yield
