"""Every error and warning of riemae.

An error says where it arose, what was expected, what came, and what to try.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "AmbientError",
    "ApproximationWarning",
    "CheckpointError",
    "ContractError",
    "DTypeError",
    "DataError",
    "DecoderError",
    "DeviceError",
    "DifferentiationError",
    "DisconnectedGraphWarning",
    "DivergenceWarning",
    "FallbackWarning",
    "FileError",
    "GraphError",
    "MemoryLimitError",
    "MetricError",
    "MissingExtraError",
    "NonFiniteError",
    "NotConvergedError",
    "OptionError",
    "PrecisionWarning",
    "RiemaeError",
    "ShapeError",
    "SingularMetricError",
    "SmoothnessWarning",
    "TrainingError",
    "TransferError",
]


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
    """A function that is not a metric tensor.

    It is asymmetric, negative, random, coupled across rows, or has another slope than it says.
    """


class DifferentiationError(RiemaeError, RuntimeError):
    """Torch cannot differentiate the map or the call, as often or in the way that was asked for."""


class GraphError(RiemaeError, ValueError):
    """A graph cannot be built, or it holds no such path."""


class FileError(RiemaeError, ValueError):
    """A file is missing, damaged, or belongs to something else."""


class TransferError(RiemaeError, TypeError):
    """An object cannot be sent to another process."""


class MemoryLimitError(RiemaeError, MemoryError):
    """There is not enough memory for a call; its cause is what torch has raised."""

    def __new__(cls, *args: Any) -> MemoryLimitError:
        """As for other exceptions.

        MemoryError's own would be found first, and refuses a class laid out as Exception: tblib,
        with which Dask sends exceptions, calls it.
        """
        return Exception.__new__(cls, *args)


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
        result: The complete result: a ``GeodesicResult``, a ``DistanceMatrix``, or what the call
            would have returned.
    """

    def __init__(self, where: str, expected: str, got: str, hint: str, result: Any) -> None:
        super().__init__(where, expected, got, hint)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.expected, self.got, self.hint, self.result)


class DecoderError(RiemaeError, ValueError):
    """The decoder cannot serve as a map.

    It is random, coupled across the batch, in training mode, or of the wrong shape.
    """


class AmbientError(RiemaeError, ValueError):
    """The ambient metric does not fit the data, or is not a metric."""


class DataError(RiemaeError, ValueError):
    """The data cannot be learned from: constant, or outside what the likelihood allows."""


class TrainingError(RiemaeError, RuntimeError):
    """Training cannot go on.

    Attributes:
        kept: Whether weights from before are back in place.
    """

    kept: bool = False


class ContractError(RiemaeError, AssertionError):
    """A manifold breaks a law of geometry: see :func:`riemae.testing.check_manifold`."""


class CheckpointError(RiemaeError, ValueError):
    """A checkpoint cannot be read.

    It is missing, cut short, changed, of an unknown version, or something else altogether.
    """


class FallbackWarning(UserWarning):
    """Something slower, but exact, takes the place of what was meant: derivatives or a solver."""


class DisconnectedGraphWarning(UserWarning):
    """A neighbourhood graph falls into several components; distances between them are infinite."""


class ApproximationWarning(UserWarning):
    """A stochastic estimate stands in for an exact value."""


class PrecisionWarning(UserWarning):
    """The dtype cannot carry a number: it has fewer than two right digits."""


class SmoothnessWarning(UserWarning):
    """The decoder is piecewise linear: second derivatives, and what rests on them, say little."""


class DivergenceWarning(UserWarning):
    """The loss exploded: training stopped, and the best weights before it were kept."""


def stack_level() -> int:
    """``stacklevel`` for a warning that names the line of riemae's caller, not one of ours."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").split(".")[0] == "riemae":
        level += 1
    return level
