"""Within a trial point parameters hold another vector, afterwards θ, whatever happens."""

from contextlib import nullcontext

import pytest
import torch

from latephase.parameters import Parameters
from latephase.trial_points import at_trial_point


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_parameters_hold_the_trial_point_and_then_theta(error: type[BaseException] | None) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 1))
    parameters = Parameters([{"params": [weight]}])
    theta, place, version = parameters.read(), weight.data_ptr(), weight._version
    expected = nullcontext() if error is None else pytest.raises(error)
    with expected, at_trial_point(parameters, torch.tensor([3.0, 4.0]), theta):
        assert weight.flatten().tolist() == [3.0, 4.0]
        if error is not None:
            raise error
    assert torch.equal(parameters.read(), theta)
    assert weight.data_ptr() == place
    assert weight._version == version  # else graphs that hold the parameter would no longer run


def test_no_parameters_are_no_trouble() -> None:
    parameters = Parameters([{"params": []}])
    with at_trial_point(parameters, torch.zeros(0), torch.zeros(0)):
        pass
