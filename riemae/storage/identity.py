"""What a function, a module or a metric is made of, as text that another process reproduces.

Followed are modules (layers, their settings and tensors), functions (defaults, captured variables,
globals that they name), ``functools.partial``, methods, containers and arrays; of other objects
only what they hold of these. Code is not compared: it differs between versions of Python. What it
computes is compared by values, in riemae.solvers.matrix.

Counters, caches and records change while a decoder runs. What differs between :func:`parts` before
and after some calls is not a parameter of the map: :func:`fingerprint` leaves it out.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae.storage.digests import digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
# What may be a parameter wherever it is found; numbers in an object may be the time of day.
_TELLING = (Tensor, nn.Module, np.ndarray, *_FUNCTIONS)
# What a function may read as a setting among the globals that it names.
_SETTINGS = (Tensor, nn.Module, np.ndarray, bool, int, float, str, list, tuple, dict)
_DEEPEST = 12

Parts = dict[str, str]


def parts(thing: object) -> Parts:
    """Place and value of everything that ``thing`` is made of, as far as it can be reached."""
    return dict(_walk(thing, "", {}, 0))


def fingerprint(before: Parts, after: Parts) -> str:
    """A digest of what is the same in both: parameters, not what counts or remembers calls.

    Args:
        before: :func:`parts` of something.
        after: The same, after it was called.
    """
    places = before.keys() | after.keys()
    moved = {place for place in places if before.get(place) != after.get(place)}
    inside = tuple(f"{place}/" for place in moved)
    total = hashlib.sha256()
    for place, value in before.items():
        # What lies in a list that has grown is as volatile as the list.
        if place not in moved and not place.startswith(inside):
            total.update(f"{place} {value}\n".encode())
    return total.hexdigest()


def _walk(thing: Any, place: str, seen: dict[int, str], depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(thing, _PLAIN):
        yield place, f"{type(thing).__name__} {thing!r}"
        return
    if id(thing) in seen or depth > _DEEPEST:
        first_place = seen.get(id(thing), "…")
        yield place, f"as {first_place}"
        return
    seen[id(thing)] = place
    text, inside = _described(thing)
    yield place, text
    for name, value in inside.items():
        yield from _walk(value, f"{place}/{name}", seen, depth + 1)


def _described(thing: Any) -> tuple[str, Mapping[str, Any]]:
    """What is to be said of a thing itself, and what it holds by name."""
    kind = type(thing).__qualname__  # a module's name depends on how it was started
    if isinstance(thing, Tensor):
        return f"tensor {_tensor(thing)}", {}
    if isinstance(thing, (np.ndarray, np.generic)):
        return f"array {_array(np.asarray(thing))}", {}
    if isinstance(thing, (type, types.BuiltinFunctionType, types.ModuleType)):
        return getattr(thing, "__qualname__", thing.__name__), {}
    if isinstance(thing, functools.partial):
        held = {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
        return "partial", held
    if isinstance(thing, types.MethodType):
        return f"method {thing.__func__.__qualname__}", {"self": thing.__self__}
    if isinstance(thing, types.FunctionType):
        return f"function {thing.__qualname__}", _of_function(thing)
    if isinstance(thing, nn.Module):
        return _of_module(thing, kind)
    if isinstance(thing, Mapping):
        named = {repr(key): value for key, value in thing.items() if isinstance(key, _PLAIN)}
        return f"{kind} {len(thing)}", named
    if isinstance(thing, (list, tuple)):
        numbered = {str(i): value for i, value in enumerate(thing)}
        return f"{kind} {len(thing)}", numbered
    held = {}
    for name, value in getattr(thing, "__dict__", {}).items():
        if isinstance(value, _TELLING):
            held[name] = value
    return kind, held


def _of_module(module: nn.Module, kind: str) -> tuple[str, dict[str, Any]]:
    inside: dict[str, Any] = {}
    inside.update(module.named_parameters(recurse=False))
    inside.update(module.named_buffers(recurse=False))
    inside.update(module.named_children())
    if type(module).__module__.split(".")[0] == "torch":
        return f"{kind}({module.extra_repr()})", inside
    plain = (*_PLAIN, *_TELLING, tuple)
    for name, value in vars(module).items():
        public = not name.startswith("_") and name != "training"
        if public and isinstance(value, plain):
            inside.setdefault(name, value)
    return kind, inside


def _of_function(function: types.FunctionType) -> dict[str, Any]:
    inside: dict[str, Any] = {
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
    }
    code = function.__code__
    captured = function.__closure__ or ()
    for name, cell in zip(code.co_freevars, captured, strict=True):
        try:
            inside[f"closure.{name}"] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in code.co_names:
        value = function.__globals__.get(name)
        # Functions of other files are named by the code; what they hold is not this function's.
        near = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if near or isinstance(value, _SETTINGS):
            inside[f"global.{name}"] = value
    return inside


def _tensor(x: Tensor) -> str:
    if x.is_meta or x.is_quantized or x.layout != torch.strided:
        return f"{x.dtype} {tuple(x.shape)} {x.layout}"
    try:
        resolved = x.detach().resolve_conj().resolve_neg()
        return digest(resolved)
    except (RuntimeError, TypeError):  # a subclass without memory of its own
        return f"{x.dtype} {tuple(x.shape)}"


def _array(x: np.ndarray) -> str:
    if x.dtype.hasobject:
        return f"object {x.shape}"
    content = np.ascontiguousarray(x).tobytes()
    return f"{x.dtype} {x.shape} {hashlib.sha256(content).hexdigest()}"
