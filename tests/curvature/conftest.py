"""What tests of the engines have in common."""

import sys

import pytest
import torch
from tests.curvature.networks import forget_choices

from latephase.curvature.engines import linearize

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


@pytest.fixture
def traces(monkeypatch):
    """Counts the traces made."""
    made = []

    def counting(point, options, trace=linearize.trace):
        made.append(point)
        return trace(point, options)

    monkeypatch.setattr(GGN_MODULE, "trace", counting)
    return made


@pytest.fixture
def float64():
    """New tensors are of float64, and drawn from one seed."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture
def no_memory():
    """No choice of an earlier test is remembered: networks that call the same functions would share it."""
    forget_choices()
