"""Counts what a call asks of torch: operations, and numbers that are read back from the device."""

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result decides on the processor what happens next, or how large it is.
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
_READING = {Tensor.tolist, Tensor.numpy}


class _Operations(TorchDispatchMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.counts["operations"] += 1
        self.counts["reads"] += name in _READS
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Reads that reach memory without an operation."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.counts["reads"] += func in _READING
        return func(*args, **(kwargs or {}))


def counted(call):
    """Operations and reads of a call, as a Counter."""
    counts = Counter(operations=0, reads=0)
    with _Calls(counts), _Operations(counts):
        call()
    return counts


def test_of_the_counter():  # collected nowhere: called by the tests that use it
    x = torch.ones(3)
    assert counted(lambda: x + x) == Counter(operations=1, reads=0)
    assert counted(lambda: (x[0].item(), x.nonzero(), bool((x > 0).all())))["reads"] == 3
    assert counted(x.tolist)["reads"] == 1
