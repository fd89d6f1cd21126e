"""Geodesics through data: regression on a time, and principal geodesics.

Both minimise the sum of squared distances from the data to points of a geodesic: residuals are
logarithms at those points, and how the points move with the geodesic's start and velocity is told
by Jacobi fields. Regression takes Gauss–Newton steps. Principal geodesics choose the times as well,
and count how fast the fields grow along the geodesic: only the curvature of the distances is left
out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_range, expect_shape
from riemae.numerics.random import as_generator
from riemae.solvers import Curve, JacobiField, Status
from riemae.solvers.result import remedies
from riemae.solvers.space import Space, space_of
from riemae.statistics.arguments import takes_and_gives_codes, takes_codes
from riemae.statistics.components import tangent_pca
from riemae.statistics.means import Mean, frechet_mean
from riemae.statistics.tangents import (
    Logarithms,
    Somewhere,
    accuracy,
    expect_points,
    expect_steps,
    factor,
    normalised,
    stepped,
)

_SHOT_RTOL = 1e-2
_HALVINGS = 12
_SLACK = 1e-9
# The least curvature of an objective that a step divides by, relative to Gauss and Newton's.
_LEAST = 1e-2


@dataclass(frozen=True, eq=False)
class GeodesicRegression:
    """The geodesic ``exp(point, t velocity)`` that is nearest to data given at times.

    Attributes:
        point: ``(m,)``, its place at time 0.
        velocity: ``(m,)``, per unit of time.
        r2: Share of the data's variance that it explains, ``()``: 1 − (mean squared distance to
            it) / (that to the Fréchet mean). NaN where the data do not vary.
        p_value: How often data whose times are shuffled are explained as well, ``()``: the share
            ``(1 + count) / (1 + permutations)``; NaN without permutations.
        distances: ``(n,)``, from the data to their points on it.
        status: A :class:`~riemae.solvers.Status` code: CONVERGED when the last step was at most
            ``rtol`` of the data's spread.
        steps: Gauss–Newton steps.
        geometry: Where it lies.
    """

    point: Tensor
    velocity: Tensor
    r2: Tensor
    p_value: Tensor
    distances: Tensor
    status: int
    steps: int
    geometry: Somewhere

    @property
    def converged(self) -> bool:
        """Whether the steps have come to an end."""
        return self.status == Status.CONVERGED

    @takes_and_gives_codes
    def predict(self, t: Tensor) -> Tensor:  # (k,) -> (k, m)
        """Its points at times.

        Raises:
            NotConvergedError: When it leaves the domain.
        """
        where = "GeodesicRegression.predict"
        return _along(where, self.geometry, self.point, self.velocity, t)

    def __repr__(self) -> str:
        return (
            f"GeodesicRegression(R² {float(self.r2):.3f}, p {float(self.p_value):.3g}, "
            f"{Status(self.status).name} after {self.steps} steps)"
        )


@dataclass(frozen=True, eq=False)
class PrincipalGeodesic:
    """The geodesic through the mean that is nearest to the data.

    Attributes:
        point: ``(m,)``, the mean.
        direction: ``(m,)``, its velocity there, of length 1.
        scores: ``(n,)``, where along it the data are nearest: signed lengths from the mean.
        explained_variance_ratio: Share of the data's variance that it explains, ``()``.
        distances: ``(n,)``, from the data to it.
        status: As of :class:`GeodesicRegression`.
        steps: Newton steps.
        geometry: Where it lies.
    """

    point: Tensor
    direction: Tensor
    scores: Tensor
    explained_variance_ratio: Tensor
    distances: Tensor
    status: int
    steps: int
    geometry: Somewhere

    @property
    def converged(self) -> bool:
        """Whether the steps have come to an end."""
        return self.status == Status.CONVERGED

    @takes_and_gives_codes
    def curve(self, scores: Tensor) -> Tensor:  # (k,) -> (k, m)
        """Its points at lengths from the mean.

        Raises:
            NotConvergedError: When it leaves the domain.
        """
        where = "PrincipalGeodesic.curve"
        return _along(where, self.geometry, self.point, self.direction, scores)

    def __repr__(self) -> str:
        return (
            f"PrincipalGeodesic({float(self.explained_variance_ratio):.0%} of the variance, "
            f"{Status(self.status).name} after {self.steps} steps)"
        )


@takes_codes
def geodesic_regression(
    geometry: Somewhere,
    t: Tensor,
    points: Tensor,
    weights: Tensor | None = None,
    *,
    permutations: int = 0,
    rtol: float | None = None,
    max_steps: int = 50,
    generator: torch.Generator | int | None = 0,
    throw: bool = True,
) -> GeodesicRegression:
    """The geodesic ``exp(p, t v)`` with the least ``Σ wᵢ d(exp(p, tᵢ v), xᵢ)²``.

    (P. T. Fletcher, Geodesic regression and the theory of least squares on Riemannian manifolds,
    Int. J. Computer Vision 105, 2013.)

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        t: Times ``(n,)``, at least two different ones.
        points: ``(n, m)``.
        weights: ``(n,)``, at least 0; equal by default.
        permutations: How often times are shuffled for the p-value; each costs a regression.
        rtol: How small the last step is, relative to the data's spread; by default 1e-6, and 1e-3
            in float32.
        max_steps: Gauss–Newton steps.
        generator: Of the permutations.
        throw: Raise when the steps do not come to an end.

    Raises:
        NotConvergedError: When ``throw`` and they do not, with the result; or when a geodesic
            leaves the domain.
        ShapeError: When ``t`` and ``points`` do not pair up.
        OptionError: For fewer than two points or two times, or an option out of range.
    """
    where = "geodesic_regression"
    expect_points(where, points, 2)
    rtol = accuracy(where, rtol, points)
    expect_steps(where, "max_steps", max_steps)
    hint = "0 for no p-value."
    expect_range(where, "permutations", permutations, 0, integer=True, hint=hint)
    share = normalised(where, weights, points)
    times = _times(where, t, points, share)
    points = points.detach()
    source = as_generator(where, generator)
    with torch.no_grad():
        mean = frechet_mean(geometry, points, weights, rtol=rtol)
        fit = _Fit(geometry, space_of(geometry, points), points, share, rtol, max_steps)
        found = fit.regression(mean, times)
        r2 = 1 - found.objective / mean.variance
        p_value = points.new_full((), torch.nan)
        if permutations:
            as_well = 1
            for _ in range(permutations):
                order = torch.randperm(len(times), generator=source).to(times.device)
                as_well += int(fit.regression(mean, times[order]).objective <= found.objective)
            p_value = points.new_tensor(as_well / (1 + permutations))
    result = GeodesicRegression(
        point=found.point,
        velocity=found.velocity,
        r2=r2,
        p_value=p_value,
        distances=found.distances,
        status=found.status,
        steps=found.steps,
        geometry=geometry,
    )
    if throw and not result.converged:
        _refuse(where, rtol, found, result)
    return result


@takes_codes
def principal_geodesics(
    geometry: Somewhere,
    points: Tensor,
    n_components: int = 1,
    weights: Tensor | None = None,
    *,
    rtol: float | None = None,
    max_steps: int = 50,
    throw: bool = True,
) -> list[PrincipalGeodesic]:
    """Geodesics through the Fréchet mean with the least sum of squared distances to the data.

    Each is orthogonal at the mean to those before it, and looked for from the corresponding
    direction of :func:`tangent_pca`, which it is where space is flat (S. Sommer, F. Lauze, S.
    Hauberg, M. Nielsen, Manifold valued statistics, exact principal geodesic analysis and the
    effect of linear approximations, ECCV 2010).

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        points: ``(n, m)``, n of at least 2.
        n_components: How many.
        weights: ``(n,)``, at least 0; equal by default.
        rtol: How small the last step is, relative to the data's spread; by default 1e-6, and 1e-3
            in float32.
        max_steps: Newton steps for each.
        throw: Raise when the steps do not come to an end.

    Raises:
        NotConvergedError: When ``throw`` and they do not, with the result; or when a geodesic
            leaves the domain.
        OptionError: For fewer than two points, or more components than dimensions.
    """
    where = "principal_geodesics"
    expect_points(where, points, 2)
    rtol = accuracy(where, rtol, points)
    expect_steps(where, "max_steps", max_steps)
    m = points.shape[1]
    hint = f"The points have {m} coordinates."
    expect_range(where, "n_components", n_components, 1, m, integer=True, hint=hint)
    share = normalised(where, weights, points)
    points = points.detach()
    found: list[PrincipalGeodesic] = []
    with torch.no_grad():
        mean = frechet_mean(geometry, points, weights, rtol=rtol)
        pca = tangent_pca(geometry, points, weights=weights, mean=mean, rtol=rtol)
        fit = _Fit(geometry, space_of(geometry, points), points, share, rtol, max_steps)
        for _ in range(n_components):
            line = fit.principal(mean, pca.components, [other.direction for other in found])
            result = PrincipalGeodesic(
                point=mean.point,
                direction=line.velocity,
                scores=line.times,
                explained_variance_ratio=1 - line.objective / mean.variance,
                distances=line.distances,
                status=line.status,
                steps=line.steps,
                geometry=geometry,
            )
            if throw and not result.converged:
                _refuse(where, rtol, line, result)
            found.append(result)
    return found


def _times(where: str, t: Tensor, points: Tensor, weights: Tensor) -> Tensor:  # -> (n,)
    """Times of the points' dtype.

    Raises:
        DTypeError: When they are not a tensor.
        ShapeError: When there is not one for each point.
        OptionError: When they are not finite, or all the same.
    """
    if not isinstance(t, Tensor):
        raise DTypeError(where, "t as a tensor", type(t).__name__, "Try torch.tensor(t).")
    if t.shape != points.shape[:1]:
        wanted = f"one time for each of {len(points)} points"
        raise ShapeError(where, wanted, str(tuple(t.shape)), "Give t of shape (n,).")
    times = t.detach().to(points)
    counted = times[weights > 0]
    if not bool(times.isfinite().all()) or bool((counted == counted[0]).all()):
        wanted = "at least two different finite times of positive weight"
        raise OptionError(where, wanted, f"{counted.tolist()[:5]}", "A line needs two.")
    return times


@torch.no_grad()
def _along(where: str, geometry: Somewhere, point: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """``exp(point, t velocity)`` for each time ``(k,)``."""
    expect_shape(where, "t", t, ("k",), "A tensor of times.")
    t = t.detach().to(point)
    return solvers.exp(geometry, point.expand(len(t), -1), t[:, None] * velocity)


def _refuse(where: str, rtol: float, line: _Line, result: object) -> None:
    raise NotConvergedError(
        where,
        f"steps that shrink to rtol={rtol:g} of the spread",
        f"{Status(line.status).name} after {line.steps} of them",
        f"{remedies(torch.tensor([line.status]))} The error's .result holds it; throw=False "
        "returns it.",
        result,
    )


@dataclass(frozen=True)
class _Line:
    """A geodesic, and the data beside it.

    Attributes:
        point: ``(m,)``, at time 0.
        velocity: ``(m,)``.
        times: ``(n,)``, of the data.
        feet: ``(n, m)``, its points there.
        forward: ``(n, m)``, its velocities there.
        residuals: ``(n, m)``, logarithms of the data at the feet.
        distances: ``(n,)``, their lengths.
        objective: The mean squared distance.
        curves: From the feet to the data, for the next ones to begin with.
        unit: Whether the velocity keeps its length 1.
        status: A code.
        steps: Steps so far.
    """

    point: Tensor
    velocity: Tensor
    times: Tensor
    feet: Tensor
    forward: Tensor
    residuals: Tensor
    distances: Tensor
    objective: Tensor
    curves: Curve
    unit: bool = False
    status: int = int(Status.MAX_STEPS)
    steps: int = 0


# Steps of start, velocity and times.
_Steps = Callable[[_Line], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class _Fit:
    """Data, and what geodesics are fitted to them with."""

    geometry: Somewhere
    space: Space
    points: Tensor
    weights: Tensor
    rtol: float
    max_steps: int

    def regression(self, mean: Mean, times: Tensor) -> _Line:
        """Start and velocity, at given times.

        They are those of a straight line in the tangent space at the mean, to begin with; its
        middle time is where the geodesic starts while it is fitted.
        """
        middle = (self.weights * times).sum()
        apart = times - middle
        slope = (self.weights * apart) @ mean.logarithms
        velocity = slope / (self.weights * apart.square()).sum()
        line = self._line(mean.point, velocity, apart)
        line = self._descend(line, mean.variance.sqrt(), self._steps_of_regression)
        start = self._moment(line.point, line.velocity, -middle)
        return replace(line, point=start[0], velocity=start[1], times=times)

    def principal(self, mean: Mean, components: Tensor, before: Sequence[Tensor]) -> _Line:
        """Direction at the mean and times, across directions ``(m,)`` that are taken."""
        direction = components[len(before)]
        direction = self._across(mean.point, direction, before)
        lengths = self._products(mean.point, mean.logarithms, direction)
        line = replace(self._line(mean.point, direction, lengths), unit=True)

        def steps(line: _Line) -> tuple[Tensor, Tensor, Tensor]:
            return self._steps_of_direction(line, before)

        return self._descend(line, mean.variance.sqrt(), steps)

    def _descend(self, line: _Line, spread: Tensor, steps_of: _Steps) -> _Line:
        """Gauss–Newton steps, halved while they lead up."""
        if not bool(spread > 0):
            return replace(line, status=int(Status.CONVERGED))
        for count in range(1, self.max_steps + 1):
            move, turn, wait = steps_of(line)
            reach = line.times.abs().amax()
            here = line.point[None]
            size = self.space.norm(here, move[None])[0]
            size = size + reach * self.space.norm(here, turn[None])[0]
            size = size + wait.abs().amax() * self.space.norm(here, line.velocity[None])[0]
            if bool(size <= self.rtol * spread):
                return replace(line, status=int(Status.CONVERGED), steps=count)
            share = 1.0
            for _ in range(_HALVINGS):
                trial = self._moved(line, share * move, share * turn, share * wait)
                if bool(trial.objective <= (1 + _SLACK) * line.objective):
                    break
                share /= 2
            else:
                return replace(line, status=int(Status.STALLED), steps=count)
            line = replace(trial, steps=count)
        return line

    def _line(
        self, point: Tensor, velocity: Tensor, times: Tensor, init: Curve | None = None
    ) -> _Line:
        """What there is beside a geodesic."""
        start = point.expand(len(times), -1)
        pace = times[:, None] * velocity
        field = solvers.jacobi(self.geometry, start, pace)
        shot = max(_SHOT_RTOL * self.rtol, 1e-12, 8 * torch.finfo(times.dtype).eps)
        found = Logarithms.between(self.geometry, field.points, self.points, shot, init, sharp=True)
        logs = found.vectors
        distances = self.space.norm(field.points, logs)
        return _Line(
            point=point,
            velocity=velocity,
            times=times,
            feet=field.points,
            forward=self._forward(velocity, field.velocities, times),
            residuals=logs,
            distances=distances,
            objective=(self.weights * distances.square()).sum(),
            curves=found.curves,
        )

    def _forward(self, velocity: Tensor, paces: Tensor, times: Tensor) -> Tensor:
        """Velocities per unit of time, from those per arrival; at time 0 the geodesic's own."""
        still = times[:, None] == 0
        scale = torch.where(still, 1.0, times[:, None])
        return torch.where(still, velocity.expand_as(paces), paces / scale)

    def _moved(self, line: _Line, move: Tensor, turn: Tensor, wait: Tensor) -> _Line:
        """The geodesic after a step of its start, its velocity and the times."""
        point = stepped(self.space, line.point[None], move[None])[0]
        velocity = line.velocity
        if bool((move != 0).any()):
            path = Curve.from_nodes(torch.stack([line.point, point])[None])
            velocity = solvers.transport(self.geometry, path, velocity[None])[0]
        velocity = velocity + turn
        if line.unit:
            velocity = velocity / self.space.norm(point[None], velocity[None])[0]
        trial = self._line(point, velocity, line.times + wait, line.curves)
        return replace(trial, unit=line.unit)

    def _steps_of_regression(self, line: _Line) -> tuple[Tensor, Tensor, Tensor]:
        """Gauss–Newton: residuals by what start and velocity do to the feet."""
        basis = self._basis(line.point)
        upper = factor(self.geometry, line.feet)
        none = torch.zeros_like(basis)
        moved = self._fields(line, torch.cat([basis, none]), torch.cat([none, basis]))
        fields = torch.einsum("nij,naj->nai", upper, moved.values)
        left = torch.einsum("nij,nj->ni", upper, line.residuals)
        weights = self.weights.sqrt()
        matrix = (weights[:, None, None] * fields).mT.reshape(-1, fields.shape[1])
        right = (weights[:, None] * left).reshape(-1, 1)
        solution = torch.linalg.lstsq(matrix, right, driver="gelsd").solution[:, 0]
        m = len(basis)
        return solution[:m] @ basis, solution[m:] @ basis, torch.zeros_like(line.times)

    def _steps_of_direction(
        self, line: _Line, before: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Newton's, but for the curvature of the distances: the times are eliminated.

        That how fast a field grows along the geodesic counts as well as the field is what tells the
        second direction from the first: in flat space the Hessian is the difference of variances.
        """
        none = torch.zeros_like(line.point)
        upper = factor(self.geometry, line.feet)
        forward = torch.einsum("nij,nj->ni", upper, line.forward)
        residuals = torch.einsum("nij,nj->ni", upper, line.residuals)
        squared = forward.square().sum(-1)
        ahead = (residuals * forward).sum(-1)
        basis = self._complement(line.point, [*before, line.velocity])
        if not len(basis):
            return none, none, ahead / squared
        found = self._fields(line, torch.zeros_like(basis), basis)
        fields, growth = (
            torch.einsum("nij,naj->nai", upper, x) for x in (found.values, found.derivatives)
        )
        still = line.times[:, None, None] == 0
        own = torch.einsum("nij,aj->nai", upper, basis)
        growth = torch.where(
            still, own, growth / torch.where(still, 1.0, line.times[:, None, None])
        )
        mixed = torch.einsum("nai,ni->na", fields, forward)
        mixed = mixed - torch.einsum("nai,ni->na", growth, residuals)
        pull = torch.einsum("n,nai,ni->a", self.weights, fields, residuals)
        pull = pull - torch.einsum("n,na,n->a", self.weights, mixed, ahead / squared)
        whole = torch.einsum("n,nai,nbi->ab", self.weights, fields, fields)
        times = torch.einsum("n,na,nb->ab", self.weights / squared, mixed, mixed)
        values, vectors = torch.linalg.eigh(whole - times)
        # Uphill it is a saddle: as far down as Gauss–Newton would go.
        least = _LEAST * whole.diagonal().sum()
        turn = vectors @ ((vectors.T @ pull) / values.abs().clamp(min=least))
        return none, turn @ basis, (ahead - mixed @ turn) / squared

    def _fields(self, line: _Line, starts: Tensor, slopes: Tensor) -> JacobiField:
        """How the feet move ``(n, c, m)`` with start and velocity ``(c, m)``."""
        wide = (len(line.times), len(starts), len(line.point))
        start = line.point.expand(wide)
        pace = (line.times[:, None] * line.velocity)[:, None].expand(wide)
        slope = line.times[:, None, None] * slopes
        return solvers.jacobi(self.geometry, start, pace, start=starts.expand(wide), slope=slope)

    def _basis(self, point: Tensor) -> Tensor:  # -> (m, m)
        """Orthonormal tangents, as rows."""
        upper = factor(self.geometry, point[None])[0]
        eye = torch.eye(len(point)).to(point)
        return torch.linalg.solve_triangular(upper, eye, upper=True).T

    def _complement(self, point: Tensor, taken: Sequence[Tensor]) -> Tensor:  # -> (c, m)
        """Orthonormal tangents, as rows, across those that are taken."""
        upper = factor(self.geometry, point[None])[0]
        flat = torch.stack(list(taken)) @ upper.T
        _, _, whole = torch.linalg.svd(flat, full_matrices=True)
        free = whole[len(taken) :]
        return torch.linalg.solve_triangular(upper, free.T, upper=True).T

    def _across(self, point: Tensor, direction: Tensor, before: Sequence[Tensor]) -> Tensor:
        """A unit tangent near a direction, across others."""
        upper = factor(self.geometry, point[None])[0]
        flat = upper @ direction
        for other in before:
            one = upper @ other
            flat = flat - (flat @ one) * one
        return torch.linalg.solve_triangular(upper, (flat / flat.norm())[:, None], upper=True)[:, 0]

    def _products(self, point: Tensor, vectors: Tensor, direction: Tensor) -> Tensor:  # -> (n,)
        upper = factor(self.geometry, point[None])[0]
        return (vectors @ upper.T) @ (upper @ direction)

    def _moment(self, point: Tensor, velocity: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Point and velocity of a geodesic at a time."""
        if float(t) == 0:
            return point, velocity
        field = solvers.jacobi(self.geometry, point[None], t * velocity[None])
        return field.points[0], field.velocities[0] / t
