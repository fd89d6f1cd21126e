"""Shared set-up."""

import torch

# The tensors here are tiny: a second thread would only wait for the first, and starve other
# processes.
torch.set_num_threads(1)
