"""Settings for all tests."""

import torch

# The tests' tensors are small: more threads gain nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)
