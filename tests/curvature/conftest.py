"""What tests of the engines have in common."""

import sys

import pytest

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
