"""Modules and tensors that a decoder refers to, and copies of the decoder with them.

They may be in closures, defaults, globals and bound methods: ``Manifold(lambda z: net(z)[0])``
holds a network without being an ``nn.Module``. The network is found here, so that it can be moved
to another device or dtype together with the function around it.
"""

from __future__ import annotations

import copy
import dis
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_DEPTH = 4  # functions that call functions …


def modules(function: Any) -> list[nn.Module]:
    """Modules that a decoder consists of or refers to, each once."""
    found: dict[int, nn.Module] = {}
    for value in _walk(function, _DEPTH, set()):
        if isinstance(value, nn.Module):
            found.setdefault(id(value), value)
    return list(found.values())


def moved(
    function: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Any:
    """A copy of a decoder, with its modules and tensors elsewhere; the original is unchanged.

    Functions are made anew around the copies; what does not lead to a module or a tensor is shared.
    """
    return _Mover(device, dtype)(function, _DEPTH)


def copied(module: Any) -> Any:
    """A deep copy that also takes modules whose weights are computed: see :func:`computed`."""
    return copy.deepcopy(module, computed(module))


def computed(module: Any) -> dict[int, Any]:
    """A memo for ``deepcopy`` with copies of computed weights (``torch.nn.utils.weight_norm``).

    Such tensors are not leaves of autograd's graph, which refuses to copy them. The copies have
    their values, and are computed anew at the next forward pass.
    """
    memo: dict[int, Any] = {}
    if not isinstance(module, nn.Module):
        return memo
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def _referred(function: types.FunctionType) -> Iterator[tuple[str, str, Any]]:
    """(where, name, value) of all that a function refers to."""
    captured = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, captured, strict=True):
        try:
            yield "closure", name, cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name in names_in(function.__code__):
        if name in function.__globals__:
            yield "globals", name, function.__globals__[name]
    keywords = function.__kwdefaults__ or {}
    for name, value in keywords.items():
        yield "keywords", name, value
    defaults = function.__defaults__ or ()
    for i, value in enumerate(defaults):
        yield "defaults", str(i), value


@functools.lru_cache(maxsize=1024)
def names_in(code: types.CodeType) -> frozenset[str]:
    """Names that a function, or one inside of it, looks up among its globals."""
    steps = dis.get_instructions(code)
    # Attributes have names as well, which may be those of globals by accident.
    found = {step.argval for step in steps if "GLOBAL" in step.opname or step.opname == "LOAD_NAME"}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= names_in(constant)
    return frozenset(found)


def _held(value: Any) -> dict[str, Any]:
    """Modules and tensors among the attributes of an object that is not a module itself."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, (type, types.ModuleType)):
        return {}
    held = {}
    for name, x in attributes.items():
        if isinstance(x, (nn.Module, Tensor)):
            held[name] = x
    return held


def _walk(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, (nn.Module, Tensor)):
        yield value
    elif isinstance(value, types.FunctionType):
        for _, _, part in _referred(value):
            yield from _walk(part, depth - 1, seen)
    elif isinstance(value, types.MethodType):
        yield from _walk(value.__self__, depth, seen)
        yield from _walk(value.__func__, depth - 1, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _walk(part, depth, seen)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _walk(part, depth - 1, seen)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _walk(part, depth - 1, seen)
    else:
        for part in _held(value).values():
            yield from _walk(part, depth - 1, seen)


class _Mover:
    """Copies values once each: two functions that share a network share its copy."""

    def __init__(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self.device = device
        self.dtype = dtype
        # (original, copy) by the id of the original, which is kept alive: no other gets its id.
        self.done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any, depth: int) -> Any:
        if id(value) in self.done:
            _, twin = self.done[id(value)]
            return twin
        if depth < 0:
            return value
        self.done[id(value)] = value, value  # a function that refers to itself
        twin = self._copy(value, depth)
        self.done[id(value)] = value, twin
        return twin

    def _copy(self, value: Any, depth: int) -> Any:
        if isinstance(value, nn.Module):
            return self._module(copied(value), depth - 1)
        if isinstance(value, Tensor):
            dtype = self.dtype if value.is_floating_point() else None
            converted = value.to(device=self.device, dtype=dtype)
            if converted is value:
                return value
            return converted.detach().requires_grad_(value.requires_grad)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth - 1)
        if isinstance(value, types.MethodType):
            owner = self(value.__self__, depth)
            if owner is value.__self__:
                return value
            return types.MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            arguments = [self(part, depth) for part in value.args]
            keywords = self._values(value.keywords, depth)
            function = self(value.func, depth)
            return functools.partial(function, *arguments, **keywords)
        if type(value) in (list, tuple):
            parts = [self(part, depth - 1) for part in value]
            return value if _same(parts, value) else type(value)(parts)
        if type(value) is dict:
            changed = self._values(value, depth - 1)
            return value if _same_values(changed, value) else changed
        held = _held(value)
        changed = self._values(held, depth - 1)
        if _same_values(changed, held):
            return value
        twin = copy.copy(value)
        vars(twin).update(changed)
        return twin

    def _values(self, named: dict[Any, Any], depth: int) -> dict[Any, Any]:
        return {name: self(part, depth) for name, part in named.items()}

    def _module(self, module: nn.Module, depth: int) -> nn.Module:
        module.to(device=self.device, dtype=self.dtype)
        for part in module.modules():
            # Those of torch: compiled code, scripts, computed weights.
            if type(part).__module__.startswith("torch."):
                continue
            # Constants that are not buffers, and functions of its own.
            for name, value in vars(part).items():
                if isinstance(value, (Tensor, types.FunctionType, functools.partial)):
                    vars(part)[name] = self(value, depth)
        return module

    def _function(self, function: types.FunctionType, depth: int) -> types.FunctionType:
        found = _walk(function, _DEPTH, set())
        if next(found, None) is None:
            return function
        # The twin is there before its parts are: a function may refer to itself.
        code = function.__code__
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        names = dict(function.__globals__)
        twin = types.FunctionType(code, names, function.__name__, function.__defaults__, cells)
        self.done[id(function)] = function, twin
        keywords = dict(function.__kwdefaults__ or {})
        defaults = list(function.__defaults__ or ())
        for where, name, value in _referred(function):
            new = self(value, depth)
            if where == "closure":
                place = code.co_freevars.index(name)
                cells[place].cell_contents = new
            elif where == "globals":
                names[name] = new
            elif where == "keywords":
                keywords[name] = new
            else:
                defaults[int(name)] = new
        twin.__kwdefaults__ = keywords or None
        twin.__defaults__ = tuple(defaults) or None
        twin.__dict__.update(function.__dict__)
        twin.__qualname__ = function.__qualname__
        twin.__module__ = function.__module__
        return twin


def _same(new: list[Any], old: Any) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _same_values(new: dict[Any, Any], old: dict[Any, Any]) -> bool:
    return _same(list(new.values()), list(old.values()))
