"""Shared set-up."""

import torch

# The tensors of the tests are tiny. A second thread would not help, and would slow other processes.
torch.set_num_threads(1)
