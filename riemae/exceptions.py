"""Every error and warning of riemae. An error says where, what was expected, what came, and what to try."""

from riemae.solvers.exceptions import (
    DeviceError,
    DifferentiationError,
    DisconnectedGraphWarning,
    DTypeError,
    FallbackWarning,
    FileError,
    GraphError,
    MetricError,
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


class DecoderError(RiemaeError, ValueError):
    """The decoder cannot serve as a map: random, coupled across the batch, in training mode, or of the wrong shape."""


class AmbientError(RiemaeError, ValueError):
    """The ambient metric does not fit the data, or is no metric."""


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
    """A checkpoint cannot be read: missing, cut short, changed, of an unknown version, or something else altogether."""


class ApproximationWarning(UserWarning):
    """A stochastic estimate stands in for an exact value."""


class PrecisionWarning(UserWarning):
    """The dtype cannot carry a number: it has fewer than two right digits."""


class SmoothnessWarning(UserWarning):
    """The decoder is piecewise linear: its second derivatives, and all that is built on them, say little."""


class DivergenceWarning(UserWarning):
    """The loss exploded: training stopped, and the best weights before it were kept."""
