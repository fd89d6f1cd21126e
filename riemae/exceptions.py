"""Every error and warning of riemae. An error says where, what was expected, what came, and what to try."""

from riemae.solvers.exceptions import (
    DeviceError,
    DisconnectedGraphWarning,
    DTypeError,
    FileError,
    GraphError,
    MissingExtraError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    RiemaeError,
    ShapeError,
    SingularMetricError,
    TransferError,
)

__all__ = [
    "AmbientError",
    "ContractError",
    "DTypeError",
    "DecoderError",
    "DeviceError",
    "DifferentiationError",
    "DisconnectedGraphWarning",
    "FallbackWarning",
    "FileError",
    "GraphError",
    "MissingExtraError",
    "NonFiniteError",
    "NotConvergedError",
    "OptionError",
    "RiemaeError",
    "ShapeError",
    "SingularMetricError",
    "SmoothnessWarning",
    "TransferError",
]


class DecoderError(RiemaeError, ValueError):
    """The decoder cannot serve as a map: random, coupled across the batch, in training mode, or of the wrong shape."""


class AmbientError(RiemaeError, ValueError):
    """The ambient metric does not fit the data, or is no metric."""


class DifferentiationError(RiemaeError, RuntimeError):
    """Torch cannot differentiate the map, in any mode."""


class ContractError(RiemaeError, AssertionError):
    """A manifold breaks a law of geometry: see :func:`riemae.testing.check_manifold`."""


class FallbackWarning(UserWarning):
    """A slower road was taken; the result is the same."""


class SmoothnessWarning(UserWarning):
    """The decoder is piecewise linear: its second derivatives, and all that is built on them, say little."""
