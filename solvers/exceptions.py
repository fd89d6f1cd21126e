"""Typed errors: every one says where it arose, what was expected, what came, and what to try."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from riemae.solvers.matrix import DistanceMatrix
    from riemae.solvers.result import GeodesicResult


class RiemaeError(Exception):
    """Base class of every error that riemae raises on purpose.

    Args:
        where: The call that noticed, such as ``"Manifold.metric"``.
        expected: What the call needs.
        got: What it received.
        hint: What to try; a whole sentence.
    """

    def __init__(self, where: str, expected: str, got: str, hint: str = "") -> None:
        super().__init__(where, expected, got, hint)
        self.where, self.expected, self.got, self.hint = where, expected, got, hint

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}. {self.hint}".rstrip()


class ShapeError(RiemaeError, ValueError):
    """A tensor has a shape that the call cannot use."""


class DTypeError(RiemaeError, TypeError):
    """An argument has the wrong type, or two tensors differ in dtype."""


class DeviceError(RiemaeError, ValueError):
    """Two tensors live on different devices."""


class OptionError(RiemaeError, ValueError):
    """An option is out of its range or names nothing that exists."""


class NonFiniteError(RiemaeError, ValueError):
    """NaN or infinity where a number is needed."""


class SingularMetricError(RiemaeError, ArithmeticError):
    """The metric is not positive definite at some point, so its inverse does not exist there."""


class MetricError(RiemaeError, ValueError):
    """A function that is no metric tensor: asymmetric, negative, random, coupled across rows, or with another slope."""


class DifferentiationError(RiemaeError, RuntimeError):
    """Torch cannot differentiate the map, in any mode, or the call, as often or in the way that was asked for."""


class GraphError(RiemaeError, ValueError):
    """A graph cannot be built, or it holds no such path."""


class FileError(RiemaeError, ValueError):
    """A file is missing, damaged, or belongs to something else."""


class TransferError(RiemaeError, TypeError):
    """An object cannot be sent to another process."""


class MissingExtraError(RiemaeError, ImportError):
    """An optional dependency is needed and not installed."""


class NotConvergedError(RiemaeError, RuntimeError):
    """Some samples miss the accuracy that was asked for.

    Nothing is lost: ``result`` holds every pair, finished or not.

    Args:
        where: The call that noticed.
        expected: The accuracy asked for.
        got: How many pairs miss it, and with which status.
        hint: The remedies of these statuses.
        result: The complete result: a ``GeodesicResult``, a ``DistanceMatrix``, or what the call would have returned.
    """

    def __init__(
        self, where: str, expected: str, got: str, hint: str, result: GeodesicResult | DistanceMatrix | Tensor
    ) -> None:
        super().__init__(where, expected, got, hint)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.expected, self.got, self.hint, self.result)


class FallbackWarning(UserWarning):
    """Something slower, but exact, takes the place of what was meant: derivatives or a solver."""


class DisconnectedGraphWarning(UserWarning):
    """A neighbourhood graph falls into several components; distances between them are infinite."""


def stack_level() -> int:
    """``stacklevel`` for a warning that names the line of riemae's caller, not one of ours."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").split(".")[0] == "riemae":
        level += 1
    return level
