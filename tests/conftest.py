"""Fixtures that several test files use."""

import pytest
import torch

from circuitsieve.instrument import Subject
from models import FAMILIES, shared


@pytest.fixture(params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """A tiny float32 model of each family; tests leave it as it is."""
    return shared(request.param, torch.float32)
