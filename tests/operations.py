"""Counts what a call asks of torch: operations, numbers read back from the device, arithmetic."""

from collections import Counter

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operations whose result decides on the processor what happens next, or how large it is.
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
_READING = {Tensor.tolist, Tensor.numpy}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Operations that only name a part of memory, or take it: nothing is launched for them.
_NAMING = {
    f"aten::{name}"
    for name in (
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "expand",
        "lift_fresh",
        "new_empty",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "squeeze_",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "unsqueeze_",
        "view",
    )
}


# Operations that move numbers, and those that look at what a tensor is.
_MOVING = {
    f"aten::{name}"
    for name in (
        "_has_same_storage_numel",
        "_to_copy",
        "_local_scalar_dense",
        "arange",
        "cat",
        "clone",
        "constant_pad_nd",
        "copy_",
        "eye",
        "fill_",
        "full",
        "full_like",
        "gather",
        "index",
        "index_select",
        "is_same_size",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "repeat",
        "select_backward",
        "slice_backward",
        "stack",
        "zero_",
        "zeros",
        "zeros_like",
    )
}


# Products with vectors, by the place of the argument whose numbers are each used once.
_OF_VECTORS = {"aten::dot": 0, "aten::mv": 0, "aten::addmv": 1}


class _Arithmetic(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if func._overloadpacket in flop_registry:
            self.count += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        elif name in _OF_VECTORS:
            self.count += 2 * args[_OF_VECTORS[name]].numel()
        elif name not in _NAMING | _MOVING:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.count += max((t.numel() for t in tensors), default=0)
        return out


class _Operations(TorchDispatchMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.counts["operations"] += 1
        self.counts["launches"] += name not in _NAMING
        self.counts["reads"] += name in _READS
        if name in _INDEXING:
            self.counts["reads"] += _masks(args[1])
        return func(*args, **(kwargs or {}))


def _masks(indices):
    """How many of them are masks, whose places have to be counted before memory is taken."""
    return sum(i is not None and i.dtype == torch.bool for i in indices)


class _Calls(TorchFunctionMode):
    """Reads that reach memory without an operation."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.counts["reads"] += func in _READING
        return func(*args, **(kwargs or {}))


def counted(call):
    """Operations, those of them that launch something, and reads of a call, as a Counter."""
    counts = Counter(operations=0, launches=0, reads=0)
    with _Calls(counts), _Operations(counts):
        call()
    return counts


def arithmetic(call):
    """Additions and multiplications of products and convolutions; of others, their numbers.

    Fused kernels count as if they computed one number for each that they give.
    """
    with _Arithmetic() as counter:
        call()
    return counter.count


def test_of_the_counter():  # collected nowhere: called by the tests that use it
    x = torch.ones(3)
    assert counted(lambda: x + x) == Counter(operations=1, launches=1, reads=0)
    assert counted(lambda: x[1:]) == Counter(operations=1, launches=0, reads=0)
    assert counted(lambda: x[x > 0])["reads"] == 1
    assert counted(lambda: (x[0].item(), x.nonzero(), bool((x > 0).all())))["reads"] == 3
    assert counted(x.tolist)["reads"] == 1
    w = torch.ones(3, 5)
    assert arithmetic(lambda: (x @ w, w.mT.contiguous())) == 2 * 3 * 5
    assert arithmetic(lambda: (w * x[:, None]).sum()) == 2 * 3 * 5
