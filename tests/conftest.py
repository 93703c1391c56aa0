"""Fixtures of several test files, and run-time checks of tensor shapes.

With ECSTRUCT_CHECK_TYPES=1 in the environment the annotations of the numerical modules are checked in
every call. They nearly triple the time of these tests, so they are not always on.
"""

import os
from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

if os.environ.get("ECSTRUCT_CHECK_TYPES"):  # before anything imports them
    numerical = ("scores.walk", "scores.linear", "scores.assemble", "models.hooked", "models.sites")
    install_import_hook([f"ecstruct.{name}" for name in numerical], "beartype.beartype")

import torch
from tiny import double_throughout

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another


@pytest.fixture
def double_everywhere() -> Iterator[None]:
    """Double models are computed in double throughout: sums of scores hold to 1e-10 in every family."""
    with double_throughout():
        yield
