"""What a module is apart from the values of its weights: whether it is still the same function.

The description of a module has its submodules with their classes and every attribute, shapes,
dtypes and devices of its tensors, and the code that runs: methods of its own classes with the
globals that they read. Two descriptions are equal only where nothing has changed that decides what
the module computes from its weights.

There is a description only where everything could be looked at. None is returned for hooks, methods
that were replaced on an instance, closures, scripts, compiled modules, and attributes or globals of
unknown kinds: such a module may change in ways that do not show here.
"""

from __future__ import annotations

import enum
import sys
import types
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from riemae.distributions.closed_form import NAMED
from riemae.distributions.family import Family
from riemae.numerics.reach import names_in

Description = Hashable

_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_EXACTLY = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device))
# What torch keeps in every module, described by itself or without a part in what it computes.
_OWN = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(nn.modules.module, f"_global{name}") for name in _HOOKS)
# Classes that are torch's own altogether; others are looked through.
_LIBRARY_CLASSES: weakref.WeakSet[type] = weakref.WeakSet()
# Parts of a class that do not run when the module is called.
_SILENT = frozenset(("__init__", "__doc__", "__module__", "__qualname__", "__annotations__"))
# Larger collections, and more functions, are not looked through at every first use.
_LARGEST = 256
# Names of packages that nobody changes while a program runs.
_LIBRARIES = frozenset(
    (
        "torch numpy builtins math operator functools itertools collections typing abc enum riemae"
    ).split()
)


class _Unknown(Exception):
    """Something that cannot be described."""


# A compiled module lacks what all others have.
_UNDESCRIBED = (_Unknown, RecursionError, KeyError)


def structure(module: nn.Module, anonymous: bool = False) -> Description | None:
    """The description of a module and of the settings of torch that it runs under, or None.

    Args:
        module: With all of its parts.
        anonymous: Whether another module with the same parts has the same description.
    """
    if any(_GLOBAL_HOOKS):
        return None
    try:
        own, *others = _Describer().root(module)
        return (_settings(), None if anonymous else own, *others)
    except _UNDESCRIBED:
        return None


def identity(f: Any) -> Description | None:
    """The description of a module, of a method of its class, or of a function without a closure.

    It also tells which tensors are in it: as long as somebody holds them, it is another one once a
    tensor was replaced. None as for :func:`structure`, and for other callables.
    """
    describer = _Describer(identities=True)
    owner = getattr(f, "__self__", f)
    name = getattr(f, "__name__", "")
    method = f is not owner and getattr(type(owner), name, None) is getattr(f, "__func__", None)
    try:
        if isinstance(owner, nn.Module) and (f is owner or method):
            if any(_GLOBAL_HOOKS):
                return None
            return (_settings(), name, describer.root(owner))
        if isinstance(f, types.FunctionType):
            return (_settings(), describer.value(f))
    except _UNDESCRIBED:
        pass
    return None


def weights(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Its floating-point tensors, by name; those too that are neither parameters nor buffers."""
    for prefix, part in module.named_modules():
        for name, value in (*_tensors(part).items(), *vars(part).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                yield f"{prefix}.{name}", value


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module without its parts."""
    parameters = part.named_parameters(recurse=False, remove_duplicate=False)
    buffers = part.named_buffers(recurse=False, remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _settings() -> Description:
    return (
        torch.get_default_dtype(),
        # In place of torch.get_default_device(), which takes longer than a description.
        torch.empty(0).device,
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
    )


class _Describer:
    """Describes a module; each class and each function once.

    Args:
        identities: Whether a tensor is described by which one it is, and not by its shape alone.

    Raises:
        _Unknown: For what cannot be described.
    """

    def __init__(self, identities: bool = False) -> None:
        self._identities = identities
        self._classes: dict[type, Description] = {}
        self._functions: set[types.FunctionType] = set()
        # Modules that are attributes: only those that are parts, too, have weights that are seen.
        self._held: set[int] = set()

    def root(self, module: nn.Module) -> tuple[Description, ...]:
        """A module by itself, with all of its parts.

        Raises:
            _Unknown: For what cannot be described.
        """
        found = self.module(module)
        if self._held and not self._held <= {id(part) for part in module.modules()}:
            raise _Unknown
        return found

    def module(self, part: nn.Module) -> tuple[Description, ...]:
        """A module with all of its parts.

        This runs for every manifold that is made: it reads the dicts of torch's modules themselves,
        which takes a fifth of the time of their generators.

        Raises:
            _Unknown: For what cannot be described.
        """
        kind = type(part)
        described = self._class(kind)
        held = vars(part)
        if (
            held["_forward_hooks"]
            or held["_forward_pre_hooks"]
            or held["_backward_hooks"]
            or held["_backward_pre_hooks"]
        ):
            raise _Unknown
        parts = held["_modules"]
        value = self.value
        return (
            id(part),
            described,
            held["training"],
            self._items(held["_parameters"]),
            self._items(held["_buffers"]),
            tuple([(name, value(x)) for name, x in held.items() if name not in _OWN]),
            tuple([(name, x if x is None else self.module(x)) for name, x in parts.items()]),
        )

    def _items(self, named: dict[Any, Any]) -> Description:
        value = self.value
        return tuple([(name, value(x)) for name, x in named.items()]) if named else ()

    def value(self, value: Any) -> Description:
        """An attribute, a default or a global.

        Raises:
            _Unknown: For what cannot be described.
        """
        kind = type(value)
        if kind in _EXACTLY:
            return (kind, value)
        if isinstance(value, Tensor):
            own = id(value) if self._identities else None
            # All but its values.
            form = (value.shape, value.dtype, value.device, value.layout, value.requires_grad)
            return (own, kind, form)
        if isinstance(value, weakref.ref):  # recurrent layers refer to their weights so
            return (kind, self.value(value()))
        if isinstance(value, _PLAIN):
            return (kind, value)
        if isinstance(value, (tuple, list, set, frozenset, dict)) and len(value) > _LARGEST:
            raise _Unknown
        if kind in (tuple, list, torch.Size):
            return (kind, tuple(self.value(x) for x in value))
        if kind in (set, frozenset):
            return (kind, frozenset(self.value(x) for x in value))
        if kind is dict:
            keys = tuple(self.value(key) for key in value)
            return (kind, keys, tuple(self.value(x) for x in value.values()))
        if _is_permanent(value):
            return value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, nn.Module):
            self._held.add(id(value))
            return self.module(value)
        if isinstance(value, Family) and NAMED.get(value.name) is value:
            return (Family, value.name)
        raise _Unknown

    def _class(self, kind: type) -> Description:
        found = self._classes.get(kind)
        if found is None:
            # Torch's own classes are known; a method that somebody replaced shows.
            calls = (kind, kind.__call__, getattr(kind, "forward", None))
            found = self._classes[kind] = (calls, self._own_methods(kind))
        return found

    def _own_methods(self, kind: type) -> Description:
        """The methods of classes that are not a library's.

        Raises:
            _Unknown: For a class of torch.jit, whose methods cannot be looked at.
        """
        if kind in _LIBRARY_CLASSES:
            return ()
        if issubclass(kind, torch.jit.ScriptModule):
            raise _Unknown
        own = [base for base in kind.__mro__ if not _is_library(base.__module__)]
        if not own:
            _LIBRARY_CLASSES.add(kind)
        return tuple([self._methods(base) for base in own])

    def _methods(self, kind: type) -> Description:
        found: list[Description] = []
        for name, value in vars(kind).items():
            if name in _SILENT or isinstance(value, types.GetSetDescriptorType):
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if isinstance(value, property):
                parts = tuple(self.value(f) for f in (value.fget, value.fset))
                found.append((name, parts))
            else:
                found.append((name, self.value(value)))
        return tuple(found)

    def _function(self, function: types.FunctionType) -> Description:
        if function in self._functions:  # it calls itself, or was described before
            return function.__code__
        self._functions.add(function)
        if len(self._functions) > _LARGEST:
            raise _Unknown
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if any(name != "__class__" for name, _ in cells):
            raise _Unknown
        read = {}
        for name in sorted(names_in(function.__code__)):
            if name in function.__globals__:
                read[name] = function.__globals__[name]
        return (
            function.__code__,
            self.value(function.__defaults__),
            self.value(function.__kwdefaults__),
            self._items(read),
        )


def _is_permanent(value: Any) -> bool:
    """Whether it is a module, function or class of a library, which nobody changes."""
    if isinstance(value, types.ModuleType):
        return _is_library(value.__name__)
    if isinstance(value, types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, (types.ModuleType, type))
    known = isinstance(value, (type, types.FunctionType)) or callable(value)
    named = getattr(value, "__module__", None)
    if not known or not isinstance(named, str) or not _is_library(named):
        return False
    # An object of a library's class may hold anything; what a module has by a name is permanent.
    name = getattr(value, "__name__", None)
    return isinstance(name, str) and getattr(sys.modules.get(named), name, None) is value


def _is_library(name: str) -> bool:
    """Whether a module of this name belongs to torch, numpy, or to Python itself."""
    return name.partition(".")[0] in _LIBRARIES
