"""What ``torch.compile`` is called with, and what to say where it cannot work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from riemae.exceptions import DTypeError, OptionError

# What torch raises where it finds no compiler for a backend.
_NO_COMPILER = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")
_KNOWN = ("backend", "mode", "options")
# What makes torch replay CUDA graphs.
_REPLAYING = ("reduce-overhead", "max-autotune")
_OPTION_OF_GRAPHS = "triton.cudagraphs"


@dataclass(frozen=True)
class Compiling:
    """What ``torch.compile`` is called with.

    Attributes:
        given: As the user gave it.
        options: Keyword arguments.
        once: Whether results are differentiated, once, as by the step of a training; otherwise
            what is to be differentiated is not compiled.
    """

    given: Any
    options: dict[str, Any]
    once: bool = False

    @classmethod
    def of(cls, where: str, given: Any) -> Compiling | None:
        """From an argument ``compile=``; None where nothing is to be compiled.

        Args:
            where: The call that takes the argument.
            given: False, True, the name of a backend, or keyword arguments of ``torch.compile``.

        Raises:
            DTypeError: For anything else.
            OptionError: For a backend, a mode or an argument that torch does not know.
        """
        if given is None or given is False:
            return None
        if isinstance(given, Compiling):
            return given
        if given is True:
            options: Any = {}
        elif isinstance(given, str):
            options = {"backend": given}
        else:
            options = given
        if not isinstance(options, Mapping):
            wanted = "compile as True, the name of a backend, or a dict of torch.compile's options"
            raise DTypeError(where, wanted, repr(given), 'Try compile={"mode": "reduce-overhead"}.')
        options = dict(options)
        _expect_options(where, options)
        return cls(given, options)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        backend = self.options.get("backend", "inductor")
        if isinstance(backend, str):
            return backend
        return getattr(backend, "__name__", type(backend).__name__)

    @property
    def replays(self) -> bool:
        """Whether CUDA graphs are replayed, whose results the next replay overwrites."""
        options = self.options.get("options") or {}
        return self.options.get("mode") in _REPLAYING or bool(options.get(_OPTION_OF_GRAPHS))

    def with_graphs(self, device: torch.device) -> Compiling:
        """The same by CUDA graphs, where there are such and nothing else was asked for.

        One launch takes the place of hundreds, and memory is held for each graph: so for passes of
        few points.
        """
        if device.type != "cuda" or self.options:
            return self
        return replace(self, options={"mode": _REPLAYING[0]})

    def compiled(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.compile(f)`` with these options, as one graph for each shape of arguments."""
        return torch.compile(f, fullgraph=True, dynamic=False, **self.options)


def _expect_options(where: str, options: dict[str, Any]) -> None:
    known = ("backend", "mode", "options")
    unknown = [name for name in options if name not in known]
    if unknown:
        wanted = f"options of torch.compile ({', '.join(known)})"
        hint = "Shapes are fixed here, and each pass is one graph."
        raise OptionError(where, wanted, f"compile with {', '.join(map(repr, unknown))}", hint)
    backend = options.get("backend", "inductor")
    if isinstance(backend, str):
        names = torch.compiler.list_backends(exclude_tags=())
        if backend not in names:
            hint = "See torch.compiler.list_backends()."
            raise OptionError(
                where, f"a backend of torch.compile ({', '.join(names)})", repr(backend), hint
            )
    if "mode" in options and "options" in options:
        hint = "A mode is a set of options."
        raise OptionError(where, "a mode or options in compile", "both", hint)
    mode = options.get("mode")
    modes = list(torch._inductor.list_mode_options()) if mode is not None else []
    if mode is not None and mode not in modes:
        wanted = f"a mode of torch.compile ({', '.join(modes)})"
        raise OptionError(where, wanted, repr(mode), "Leave it out for the default.")


def refuse_without_compiler(compiling: Compiling, reason: BaseException) -> None:
    """Say what is missing where torch finds no compiler.

    Raises:
        OptionError: In this case.
    """
    cause: BaseException | None = reason
    while cause is not None:
        if type(cause).__name__ in _NO_COMPILER:
            raise OptionError(
                "torch.compile",
                f"a compiler for the backend {compiling.backend!r}",
                str(cause).splitlines()[0],
                "Install g++ or clang (on a GPU also triton), or name one by the environment "
                'variable CXX; try compile="aot_eager", which needs none, or leave compile out.',
            ) from reason
        cause = getattr(cause, "inner_exception", None) or cause.__cause__


def in_words(reason: BaseException) -> str:
    """An error in one line; of one that only says that there was another, the other."""
    reason = getattr(reason, "inner_exception", None) or reason
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return f"{type(reason).__name__}: {lines[0]}" if lines else type(reason).__name__


@contextmanager
def compiling_aloud() -> Iterator[None]:
    """A context in which torch says by an error what it cannot compile, and warns of nothing.

    By a setting of its own it would run such functions by themselves, silently. Settings are back
    in place afterwards.
    """
    with warnings.catch_warnings(), torch._dynamo.config.patch(suppress_errors=False):
        warnings.simplefilter("ignore")
        yield
