"""A stand-in for a device, on a machine without one: which tensors would be there, and which not.

Under :class:`StandIn` everything is computed on the processor, but tensors that are moved to
``device``, or made there, and all that comes of them, say that they are there. What would fail on a
device fails here: an operation on a tensor there and one that was left behind, a numpy array of a
tensor there, numbers drawn there by a generator of the processor. Tensors of which nothing is
known, such as those that autograd makes, may be with either.
"""

import inspect

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

_DEVICE = torch.Tensor.device.__get__
_PROCESSOR = torch.device("cpu")
# Of tensors of which nothing is known; what is made on it may be with either as well.
_ANYWHERE = torch.device("cpu", 0)
# Takes indices from anywhere; copies between devices.
_INDEXED = ("__getitem__", "copy_", "index_put_", "index_put")
_TO_NUMPY = ("numpy", "__array__")


class StandIn(TorchFunctionMode):
    """Tracks where tensors would be, as long as it is active."""

    device = torch.device("xpu", 0)

    def there(self, x):
        """The same tensor, or module, as one on the device."""
        for part in [*x.parameters(), *x.buffers()] if isinstance(x, torch.nn.Module) else [x]:
            part.is_there = True
        return x

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == _DEVICE:
            place = _place(args[0])
            return self.device if place else _ANYWHERE if place is None else _PROCESSOR
        name = getattr(func, "__name__", "")
        if name == "__get__" or name == "__set__":
            found = func(*args, **kwargs)
            return self._marked(found, _place(args[0])) if name == "__get__" else found
        moved = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        places = [_place(x) for x in given]
        if name in _TO_NUMPY and places[0]:
            raise TypeError(f"{name} of a tensor {tuple(given[0].shape)} on {self.device}")
        if moved:
            target = None if moved[0] == _ANYWHERE else moved[0] == self.device
            args, kwargs = _on_processor(args, kwargs)
        elif name == "cpu":
            target = False
        elif name == "to" and len(given) > 1:
            target = _place(given[1])
        else:
            target = self._computed(name, given, places)
        if name != "to" and target and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{name} on {self.device} with a generator of the processor")
        found = func(*args, **kwargs)
        if any(found is x for x in given) and name in ("to", "cpu"):
            found = found.view_as(found)
        return self._marked(found, target)

    def _computed(self, name, given, places):
        """Where the result of an operation is; None where nothing is known."""
        checked = zip(given, places, strict=True)
        if name == "__setitem__":
            checked = [(given[0], places[0]), (given[-1], places[-1])]
        elif name in _INDEXED:
            checked = []
        checked = list(checked)
        behind = [x for x, place in checked if place is False and x.ndim]
        if behind and any(place for _, place in checked):
            shapes = [tuple(x.shape) for x in behind]
            raise RuntimeError(f"{name}: tensors {shapes} were left behind: {_line()}")
        if name in _INDEXED:
            return places[0]
        if any(places):
            return True
        return None if None in places else False

    @staticmethod
    def _marked(found, place):
        if place is not None:
            for x in tree_iter(found):
                if isinstance(x, torch.Tensor):
                    x.is_there = place
        return found


def _place(x):
    return getattr(x, "is_there", None)


def _on_processor(args, kwargs):
    def moved(x):
        return _PROCESSOR if isinstance(x, torch.device) else x

    return tuple(map(moved, args)), {name: moved(x) for name, x in kwargs.items()}


def _line():
    """The line of the library that did it."""
    for frame in inspect.stack():
        if "/riemae/" in frame.filename or "/solvers/" in frame.filename:
            return f"{frame.filename}:{frame.lineno}"
    return "outside the library"
