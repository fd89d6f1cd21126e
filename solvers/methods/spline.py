"""A cubic-spline parametrisation of the curve: few coefficients, a first-order method."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from riemae.exceptions import OptionError
from riemae.solvers.curve import Curve
from riemae.solvers.methods.adam import Adam
from riemae.solvers.methods.descent import Descent, Optimizer
from riemae.solvers.methods.lbfgs import LBFGS
from riemae.solvers.solver import check_settings


@dataclass(frozen=True)
class CubicSpline(Descent):
    """The start curve plus a cubic spline with few knots, as StochMan parametrises its curves.

    What moves are the values of a not-a-knot spline at its interior knots; the energy is that of
    the chords between the (more) nodes on it. From level to level knots and nodes double together,
    so that the error estimate sees what the spline cannot follow.

    Args:
        segments: Segments of the coarsest level; a multiple of ``segments_per_piece``.
        max_segments: Segments of the finest level allowed.
        max_steps: Iterations that a pair may take in total.
        segments_per_piece: Segments of the energy between two knots of the spline.
        optimizer: Its settings: :class:`Adam` or :class:`LBFGS`; their own segments and steps do
            not count.

    Raises:
        OptionError: For a value out of range.

    References:
        N. S. Detlefsen, A. Pouplin, C. W. Feldager, C. Geng, D. Kalatzis, H. Hauschultz, M.
        González-Duque, F. Warburg, M. Miani, S. Hauberg, StochMan, 2021.
    """

    segments: int = 16
    max_segments: int = 512
    max_steps: int = 5000
    segments_per_piece: int = 4
    optimizer: Adam | LBFGS = field(default_factory=Adam)

    def __post_init__(self) -> None:
        check_settings("CubicSpline", self, "segments_per_piece")
        pieces, rest = divmod(self.segments, self.segments_per_piece)
        if pieces < 2 or rest:
            raise OptionError(
                "CubicSpline",
                "segments as a multiple, at least twice, of segments_per_piece",
                f"{self.segments} and {self.segments_per_piece}",
                "Try 16 and 4.",
            )

    @property
    def method(self) -> Optimizer:
        """The optimiser."""
        return self.optimizer

    @property
    def burst(self) -> int:  # type: ignore[override]
        """Iterations between two looks at the Hessian."""
        return self.optimizer.burst

    def basis(self, nodes: Tensor) -> Tensor:
        """Values at the interior nodes of the splines that are 1 at one interior knot.

        And 0 at the others.
        """
        segments = nodes.shape[1] - 1
        return spline_basis(segments, max(segments // self.segments_per_piece, 2)).to(nodes)


@lru_cache(maxsize=32)
def spline_basis(segments: int, pieces: int) -> Tensor:  # (n - 1, k - 1)
    """Values at the interior nodes of splines that are 1 at one interior knot, 0 at the others."""
    knots = torch.eye(pieces + 1, dtype=torch.float64)[1:-1, :, None]
    t = torch.linspace(0, 1, segments + 1, dtype=torch.float64)
    return Curve.from_nodes(knots)(t)[:, 1:-1, 0].T.contiguous()
