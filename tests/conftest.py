"""Settings for all tests."""

import pytest
import torch

# The tests' tensors are small: more threads gain nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_seed():
    """Draw the same random numbers in every run: dropout decides what becomes of a step."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _functions_as_they_were():
    """Nothing leaves behind that tensors of classes of their own are taken for plain ones."""
    yield
    assert torch._C._is_torch_function_enabled()
