"""Fixtures of several test files."""

from collections.abc import Iterator

import pytest
import torch
from tiny import double_throughout

torch.set_num_threads(1)  # the models are tiny: more threads only wait for one another


@pytest.fixture
def double_everywhere() -> Iterator[None]:
    """Double models are computed in double throughout: sums of scores hold to 1e-10 in every family."""
    with double_throughout():
        yield
