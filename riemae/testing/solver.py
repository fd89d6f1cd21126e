"""The contract of a path solver, as a check that runs on anybody's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import DTypeError
from riemae.numerics.checks import expect_range, expect_rtol
from riemae.numerics.tolerances import tolerance
from riemae.solvers.state import RUNNING, select
from riemae.testing.laws import relative, run, share, source, verdict, worst

_HINTS = {
    "frozen": "Settings are a frozen dataclass; what changes while solving lives in the state.",
    "state": "begin(nodes) returns a solvers.State about exactly these nodes, all running.",
    "converged": "Not every pair converged: raise max_steps, or pass an rtol that it can reach.",
    "accuracy": "CONVERGED means that the length is right to rtol: end curves by their decrement.",
    "error": "The decrement must be at least the relative length that is still to gain.",
    "upper bound": "Keep the nodes in the chart: a curve is never shorter than the distance.",
    "ends": "Move interior nodes only.",
    "honest": "After max_steps a pair that is not there must not end as CONVERGED.",
    "alone": "A finished or other pair must not change a pair's steps: decide row by row.",
}
_UNDERESTIMATED = 10  # how much larger than its estimate an error may be


@dataclasses.dataclass(frozen=True)
class _Known:
    """A space whose distances have a closed form."""

    tensor: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], Tensor]
    low: tuple[float, float]
    high: tuple[float, float]

    def pairs(
        self, generator: torch.Generator, count: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Pairs of points inside the chart."""
        low = torch.tensor(self.low).double()
        high = torch.tensor(self.high).double()
        drawn = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
        z0, z1 = (low + (high - low) * drawn).to(dtype)
        return z0, z1


def _flat(z: Tensor) -> Tensor:
    identity = torch.eye(2).to(z)
    return identity.expand(*z.shape, 2)


def _half_plane(z: Tensor) -> Tensor:
    height = z[..., 1, None, None]
    return _flat(z) / height**2


def _sphere(z: Tensor) -> Tensor:
    """The unit sphere in stereographic coordinates."""
    squared = z.square().sum(-1)
    scale = 2 / (1 + squared)[..., None, None]
    return _flat(z) * scale**2


def _chord(z0: Tensor, z1: Tensor) -> Tensor:
    return (z0 - z1).norm(dim=-1)


def _hyperbolic(z0: Tensor, z1: Tensor) -> Tensor:
    # arcosh(1 + |Δ|²/(2 y₀ y₁)), written so that small distances keep their digits.
    heights = 4 * z0[..., 1] * z1[..., 1]
    half = _chord(z0, z1) / heights.sqrt()
    return 2 * torch.asinh(half)


def _great_circle(z0: Tensor, z1: Tensor) -> Tensor:
    # The chord of the unit sphere is 2|Δ|/√((1 + |z₀|²)(1 + |z₁|²)) and subtends 2 arcsin of half.
    first = 1 + z0.square().sum(-1)
    second = 1 + z1.square().sum(-1)
    half = _chord(z0, z1) / (first * second).sqrt()
    return 2 * torch.asin(half)


_SPACES = (
    _Known(_flat, _chord, (-1.0, -1.0), (1.0, 1.0)),
    _Known(_half_plane, _hyperbolic, (-1.0, 0.5), (1.0, 2.0)),
    _Known(_sphere, _great_circle, (-0.8, -0.8), (0.8, 0.8)),
)


def check_solver(
    solver: Any,
    *,
    rtol: float = 1e-4,
    dtype: torch.dtype = torch.float64,
    generator: torch.Generator | int | None = 0,
    pairs: int = 6,
    same_bits: bool = True,
) -> dict[str, float]:
    """Check on spaces with closed forms that a path solver keeps the promises of its protocol.

    The spaces are the flat plane, the hyperbolic half plane and a chart of the sphere.

    ============= ==================================================================================
    check         law
    ============= ==================================================================================
    frozen        settings cannot be changed, and solving changes none
    state         ``begin(nodes)`` holds these nodes, all running, and selects and joins rows
    converged     every pair converges; the share of those that do not
    accuracy      the length of every converged pair is right to ``rtol``; in units of ``rtol``
    error         the true error is at most ten times the reported one; in units of that
    upper bound   no curve is shorter than the distance
    ends          curves begin and end at the given points exactly
    honest        with ``max_steps=1`` from a bad start, CONVERGED is still true; in units of
                  ``rtol``
    alone         a pair alone has the same result as in a batch: the same bits, or to ``rtol``
    ============= ==================================================================================

    Args:
        solver: Settings with the :class:`~riemae.solvers.Solver` protocol, a dataclass.
        rtol: Relative accuracy that it is asked for.
        dtype: Of the points.
        generator: Randomness of the pairs; an integer is a seed.
        pairs: How many in each space; at least 2.
        same_bits: Whether it promises the same bits for a pair alone and in a batch.

    Returns:
        The worst deviation found by each check.

    Raises:
        DTypeError: When it is not the settings of a solver.
        ContractError: Naming every promise that is broken, and by how much.

    Example:
        >>> from riemae import solvers
        >>> from riemae.testing import check_solver
        >>> check_solver(solvers.Newton())["converged"]
        0.0
    """
    where = "check_solver"
    if not isinstance(solver, solvers.Solver) or isinstance(solver, type):
        hint = "Give an instance with the methods and settings of solvers.Solver."
        raise DTypeError(where, "the settings of a path solver", repr(solver)[:80], hint)
    rtol = expect_rtol(where, rtol)
    expect_range(where, "pairs", pairs, 2, integer=True, hint="Try pairs=6.")
    vectors = source(where, generator)
    drawn = [(known, *known.pairs(vectors, pairs, dtype)) for known in _SPACES]
    laws = _Laws(solver, rtol, drawn, same_bits)
    report = run(laws.checks())
    rounding = 64 * tolerance(dtype).length
    tol = dict.fromkeys(report, 0.0)
    tol |= {"accuracy": 1.0, "error": 1.0, "honest": 1.0, "upper bound": rounding}
    return verdict(where, report, tol, _HINTS)


class _Laws:
    """The promises of one solver, and what it makes of the known spaces."""

    def __init__(
        self,
        solver: Any,
        rtol: float,
        pairs: list[tuple[_Known, Tensor, Tensor]],
        same_bits: bool,
    ) -> None:
        self.solver = solver
        self.rtol = rtol
        self.same_bits = same_bits
        self.settings = repr(solver)
        # The truth is that of the points after rounding.
        self.cases = []
        for known, z0, z1 in pairs:
            truth = known.distance(z0.double(), z1.double())
            result = self.solved(known, z0, z1)
            self.cases.append((known, z0, z1, truth, result))

    def solved(self, known: _Known, z0: Tensor, z1: Tensor, **options: Any) -> Any:
        """Geodesics in a known space."""
        defaults = {"solver": self.solver, "rtol": self.rtol, "throw": False}
        space = solvers.MetricSpace(known.tensor)
        return solvers.geodesic(space, z0, z1, **(defaults | options))

    def checks(self) -> dict[str, Callable[[], float]]:
        """Every check by its name."""
        return {
            "converged": self.converged,
            "accuracy": self.accuracy,
            "error": self.error,
            "upper bound": self.upper_bound,
            "ends": self.ends,
            "honest": self.honest,
            "alone": self.alone,
            "state": self.state,
            "frozen": self.frozen,
        }

    def converged(self) -> float:
        shares = []
        for *_, result in self.cases:
            missed = (~result.converged).double()
            shares.append(missed.mean())
        return float(torch.stack(shares).mean())

    def _off(self, truth: Tensor, result: Any) -> float:
        """The largest error of the converged pairs, in units of ``rtol``."""
        gap = (result.length.double() - truth).abs()
        in_units = gap / (self.rtol * truth)
        counted = torch.where(result.converged, in_units, 0.0)
        return worst(counted)

    def accuracy(self) -> float:
        return max(self._off(truth, result) for *_, truth, result in self.cases)

    def error(self) -> float:
        gaps = []
        for *_, truth, result in self.cases:
            gap = (result.length.double() - truth).abs()
            # Below this nothing can be claimed of a length of this dtype.
            floor = 64 * tolerance(result.length.dtype).length * truth
            claimed = _UNDERESTIMATED * result.error.double() + floor
            counted = torch.where(result.converged, gap, 0.0)
            gaps.append(share(counted, claimed))
        return max(gaps)

    def upper_bound(self) -> float:
        gaps = []
        for *_, truth, result in self.cases:
            known = result.length.isfinite()
            missing = (truth - result.length.double()).clamp(min=0)
            counted = torch.where(known, missing / truth, 0.0)
            gaps.append(float(counted.max()))
        return max(gaps)

    def ends(self) -> float:
        gaps = []
        for _, z0, z1, _, result in self.cases:
            gaps.append(relative(result.curve(0.0), z0))
            gaps.append(relative(result.curve(1.0), z1))
        return max(gaps)

    def honest(self) -> float:
        """With one step only, from a curve that bulges far away from the geodesic."""
        hurried = dataclasses.replace(self.solver, max_steps=1)
        gaps = []
        for known, z0, z1, truth, _ in self.cases:
            t = torch.linspace(0, 1, 33, dtype=torch.float64).to(z0)[:, None]
            away = torch.tensor([0.0, 1.5]).to(z0)
            bulge = (torch.pi * t).sin() * away
            start = _straight(z0, z1, t) + bulge
            result = self.solved(known, z0, z1, solver=hurried, init=start)
            gaps.append(self._off(truth, result))
            running = bool((result.status == RUNNING).any())
            gaps.append(math.inf if running else 0.0)
        return max(gaps)

    def alone(self) -> float:
        gaps = []
        for known, z0, z1, _, batch in self.cases:
            single = self.solved(known, z0[:1], z1[:1])
            same = bool(single.status[0] == batch.status[0])
            if self.same_bits:
                same = same and _same_bits(single, batch)
            elif bool(single.converged[0]):
                ratio = float(single.length[0] / batch.length[0])
                same = same and abs(ratio - 1) <= 2 * self.rtol
            gaps.append(0.0 if same else math.inf)
        return max(gaps)

    def state(self) -> float:
        _, z0, z1, _, _ = self.cases[0]
        times = torch.linspace(0, 1, self.solver.segments + 1, dtype=torch.float64)
        t = times.to(z0)[:, None]
        nodes = _straight(z0, z1, t)
        state = self.solver.begin(nodes)
        first = select(state, np.arange(1))
        rest = select(state, np.arange(1, len(nodes)))
        joined = type(state).cat([first, rest])
        kept = all(torch.equal(part.nodes, nodes) for part in (state, joined))
        running = bool((state.status == RUNNING).all())
        sound = kept and running and not bool(state.steps.any())
        return 0.0 if sound else math.inf

    def frozen(self) -> float:
        if repr(self.solver) != self.settings:
            return math.inf
        try:
            self.solver.max_steps = self.solver.max_steps
        except (dataclasses.FrozenInstanceError, AttributeError):
            return 0.0
        return math.inf


def _straight(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:  # (p, m) x 2, (n, 1) -> (p, n, m)
    """Points of straight segments."""
    along = t * (z1 - z0)[:, None]
    return z0[:, None] + along


def _same_bits(single: Any, batch: Any) -> bool:
    """Whether the result of a pair alone is that of the first pair of a batch."""
    if not torch.equal(single.length, batch.length[:1]):
        return False
    own_error = single.error.nan_to_num(-1.0)
    error = batch.error[:1].nan_to_num(-1.0)
    if not torch.equal(own_error, error):
        return False
    segments = batch.curve.segments
    own_nodes = single.curve.resample(segments).nodes
    return torch.equal(own_nodes, batch.curve.nodes[:1])
