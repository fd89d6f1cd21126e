"""The contract of a space that path solvers work on, as a check that runs on anybody's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae import solvers
from riemae.numerics.tolerances import tolerance
from riemae.solvers.energy import discrete_energy
from riemae.solvers.space import expect_space, space_of
from riemae.testing.laws import (
    Call,
    by_autograd,
    differences,
    expect_points,
    first_order_share,
    kept_and_changed,
    normal,
    relative,
    run,
    share,
    source,
    step,
    verdict,
    worst,
)

_HINTS = {
    "metric": "metric(z) is symmetric and positive definite.",
    "norm": "norm(z, v) is sqrt(vᵀ G(z) v).",
    "chords": "squared_chords are squares: they are never negative.",
    "reversal": "A chord has one length in both directions: use both ends alike, not the left one.",
    "second order": "A short chord is h |v| long, up to a relative error of order h².",
    "gradient": "The derivative of squared_chords by torch.autograd must be right.",
    "energy_and_gradient": "The hook must return what squared_chords and autograd give.",
    "expansion": "expand(nodes) must return energy, gradient and Hessian of n Σ squared_chords.",
    "products": "products(nodes) must return what expand(nodes) does, without a matrix.",
    "acceleration": "acceleration(z, v) is −Γ(v, v) of the metric.",
    "residual": "residual(nodes) is the gradient of the energy, of higher order, or None.",
    "lower bound": "ambient_distance must not exceed the length of any curve.",
    "embedded": "Images of short steps must be as long as norm(z, v) says.",
    "velocities": "velocities(nodes) are those with which a geodesic passes its nodes.",
    "rows": "The result of a row must not depend on the other rows of the batch.",
    "dtype": "Keep shape, dtype and device of the points.",
    "inputs": "Do not change arguments in place.",
}
_SEGMENTS = 8  # of the test curves
_PIECES = 64  # of a curve whose length is measured
_CLOSE = 1e-2  # relative error of velocities from 32 segments


def check_space(
    space: Any, z: Tensor, generator: torch.Generator | int | None = 0, *, size: float = 0.2
) -> dict[str, float]:
    """Check near points of your choice that a space obeys the laws that path solvers rely on.

    ==================== ===========================================================================
    check                law
    ==================== ===========================================================================
    metric               ``G`` is symmetric and positive semi-definite
    norm                 ``norm(z, v)² = vᵀGv``
    chords               ``squared_chords ≥ 0``
    reversal             a curve has the same chords in both directions
    second order         the relative error of a short chord falls like its length squared
    gradient             the gradient of the energy agrees with differences of the energy
    energy_and_gradient  this hook agrees with ``squared_chords`` and autograd
    expansion            ``expand`` agrees with them, its Hessian with differences of the gradient,
                         and its Gauss-Newton part is positive semi-definite
    products             this hook agrees with ``expand``
    acceleration         ``G a = −(D_v G) v + ½ ∇(vᵀGv)``, the geodesic equation
    residual             it tends to the gradient with the square of the segments' length
    lower bound          ``ambient_distance`` is at most the length of a curve between the points
    embedded             its images have the lengths that ``norm`` says
    velocities           on a geodesic they are its velocities
    rows                 the result of a row does not depend on the other rows
    dtype, inputs        shapes, dtype and device are kept; no input is changed
    ==================== ===========================================================================

    Laws of optional hooks that a space does not have are left out of the report.

    Args:
        space: Anything with the :class:`~riemae.solvers.Space` protocol, or a manifold.
        z: Points ``(k, m)`` inside the chart.
        generator: Randomness of test vectors and curves; an integer is a seed.
        size: Length of the test curves about the points, relative to the spread of the points.

    Returns:
        The worst relative deviation found by each check.

    Raises:
        DTypeError: When it lacks a method of the protocol.
        ShapeError: When ``z`` is not ``(k, m)`` with k of at least 1.
        ContractError: Naming every law that is broken, and by how much.

    Example:
        >>> import torch
        >>> from riemae import solvers
        >>> from riemae.testing import check_space
        >>> half_plane = solvers.MetricSpace(lambda z: torch.eye(2).to(z) / z[..., 1:2, None] ** 2)
        >>> report = check_space(half_plane, torch.tensor([[0.0, 1.0], [1.0, 2.0]]).double())
        >>> max(report.values()) < 1e-8
        True
    """
    where = "check_space"
    expect_space(where, space)
    space = space_of(space, z)
    expect_space(where, space)
    expect_points(where, "z", z, "(k, m), k of at least 1", 2)
    vectors = source(where, generator)
    laws = _Laws(space, z.detach(), size, vectors)
    with torch.no_grad():
        # First, and alone when it fails: the other checks calculate with these outputs.
        report = laws.signatures()
        if not any(report.values()):
            report |= run(laws.checks())
    tol = dict.fromkeys(report, tolerance(z.dtype).check)
    tol["velocities"] = _CLOSE
    return verdict(where, report, tol, _HINTS)


class _Laws:
    """The laws of one space near given points, with test vectors and curves."""

    def __init__(self, space: Any, z: Tensor, size: float, generator: torch.Generator) -> None:
        self.space = space
        self.z = z
        self.labels = int(getattr(space, "labels", 0))
        self.v = self._displacement(size, generator)
        self.bend = self._displacement(0.3 * size, generator)
        self.nodes = self.curves(_SEGMENTS)
        # A displacement of the interior nodes, as large as a chord.
        interior = self.nodes[:, 1:-1]
        chord = self.v.norm(dim=-1)[:, None, None] / _SEGMENTS
        direction = self._free(normal(interior, generator))
        self.push = torch.zeros_like(self.nodes)
        self.push[:, 1:-1] = chord * direction

    def _free(self, v: Tensor) -> Tensor:
        """Without movement along labels, which only say which member of a family is meant."""
        if self.labels:
            v = v.clone()
            v[..., -self.labels :] = 0
        return v

    def _displacement(self, size: float, generator: torch.Generator) -> Tensor:  # -> (k, m)
        spread = float((self.z - self.z.mean(0)).norm(dim=-1).mean())
        direction = self._free(normal(self.z, generator))
        length = direction.norm(dim=-1, keepdim=True)
        return size * (spread or 1.0) * (direction / length)

    def curves(self, segments: int) -> Tensor:  # -> (k, segments + 1, m)
        """Bent curves about the points."""
        times = torch.linspace(0, 1, segments + 1, dtype=torch.float64)
        t = times.to(self.z)[:, None]
        along = (t - 0.5) * self.v[:, None]
        across = (torch.pi * t).sin() * self.bend[:, None]
        return self.z[:, None] + along + across

    def checks(self) -> dict[str, Callable[[], float]]:
        """Every check by the name of its law; those of hooks where the space has them."""
        checks = {
            "metric": self.metric,
            "norm": self.norm,
            "chords": self.chords,
            "reversal": self.reversal,
            "second order": self.second_order,
            "gradient": self.gradient,
            "expansion": self.expansion,
            "residual": self.residual,
            "lower bound": self.lower_bound,
            "rows": self.rows,
        }
        if not self.labels:
            checks["acceleration"] = self.acceleration
        hooks = {
            "energy_and_gradient": self.energy_and_gradient,
            "products": self.products,
            "embedded": self.embedded,
            "velocities": self.velocities,
        }
        present = {name: f for name, f in hooks.items() if hasattr(self.space, name)}
        return checks | present

    def energy(self, nodes: Tensor) -> Tensor:
        """The discrete energy of curves."""
        squares = self.space.squared_chords(nodes)
        return discrete_energy(squares)

    def differentiated(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and its gradient in the interior nodes, by autograd."""
        first = nodes[:, :1]
        last = nodes[:, -1:]

        def energy(interior: Tensor) -> Tensor:
            return self.energy(torch.cat([first, interior, last], 1))

        return by_autograd(energy, nodes[:, 1:-1])

    def _scale(self, energy: Tensor) -> Tensor:  # (p,) -> (p,)
        """What a derivative of the energy is compared with: a push of one chord changes it so."""
        return energy.abs()

    def metric(self) -> float:
        g = self.space.metric(self.z)
        asymmetry = relative(g, g.mT)
        return max(asymmetry, _negative_share((g + g.mT) / 2))

    def norm(self) -> float:
        g = self.space.metric(self.z)
        square = torch.einsum("ki,kij,kj->k", self.v, g, self.v)
        norm = self.space.norm(self.z, self.v)
        return relative(norm**2, square)

    def chords(self) -> float:
        squares = self.space.squared_chords(self.nodes)
        negative = (-squares).clamp(min=0)
        largest = squares.abs().amax(1, keepdim=True)
        return share(negative, largest)

    def reversal(self) -> float:
        there = self.space.squared_chords(self.nodes)
        reversed_nodes = self.nodes.flip(1)
        back = self.space.squared_chords(reversed_nodes).flip(1)
        largest = there.abs().amax(1, keepdim=True)
        return share(there - back, largest)

    def second_order(self) -> float:
        """How much slower than h² the relative error of a chord of length h falls."""
        speed = self.space.norm(self.z, self.v)
        steps = [2.0**-k for k in (3, 4, 5)]
        errors = []
        for h in steps:
            half = h / 2 * self.v
            ends = torch.stack([self.z - half, self.z + half], 1)
            squares = self.space.squared_chords(ends)[:, 0]
            ratio = squares / (h * speed) ** 2
            errors.append((ratio - 1).abs())
        tol = tolerance(self.z.dtype)
        if self.z.dtype != torch.float64:
            # Rounding hides the slope: a first-order error of a quarter breaks the law.
            first_order = errors[-1] / steps[-1]
            return worst(first_order * 4 * tol.check)
        rounding = 1e3 * tol.eps / steps[-1]
        return first_order_share(errors, errors[-1] > rounding)

    def gradient(self) -> float:
        energy, gradient = self.differentiated(self.nodes)
        along_push = gradient * self.push[:, 1:-1]
        found = along_push.sum((1, 2))
        expected = differences(self.energy, self.nodes, self.push)
        return share(found - expected, self._scale(energy))

    def _agree(self, energy: Tensor, gradient: Tensor) -> float:
        """Deviation of an energy and a gradient from those of ``squared_chords`` and autograd."""
        true_energy, true_gradient = self.differentiated(self.nodes)
        if gradient.shape != true_gradient.shape:
            return math.inf
        of_energy = relative(energy, true_energy)
        gap = self._along_push(gradient - true_gradient)
        of_gradient = share(gap, self._scale(true_energy))
        return max(of_energy, of_gradient)

    def _along_push(self, difference: Tensor) -> Tensor:  # (p, n - 1, m) -> (p,)
        """How much two gradients differ for the test displacement, without cancellation."""
        products = difference * self.push[:, 1:-1]
        return products.abs().sum((1, 2))

    def energy_and_gradient(self) -> float:
        energy, gradient = self.space.energy_and_gradient(self.nodes)
        return self._agree(energy, gradient)

    def expansion(self) -> float:
        flat = self.space.expand(self.nodes, False)
        full = self.space.expand(self.nodes, True)
        gaps = [self._agree(e.energy, e.gradient) for e in (flat, full)]
        if full.hessian is None:
            return math.inf

        def gradient(nodes: Tensor) -> Tensor:
            return self.differentiated(nodes)[1]

        pushed = self._applied(full.hessian.dense())
        expected = differences(gradient, self.nodes, self.push)
        gap = self._along_push(pushed - expected)
        gaps.append(share(gap, self._scale(full.energy)))
        gaps.append(_negative_share(flat.gauss_newton.dense()))
        return max(gaps)

    def _applied(self, matrix: Tensor) -> Tensor:  # (p, N, N) -> (p, n - 1, m)
        push = self.push[:, 1:-1]
        column = push.flatten(1)[..., None]
        product = (matrix @ column)[..., 0]
        return product.view_as(push)

    def products(self) -> float:
        own = self.space.products(self.nodes)
        full = self.space.expand(self.nodes, True)
        found = own.hessian(self.push[:, 1:-1])
        expected = self._applied(full.hessian.dense())
        gap = self._along_push(found - expected)
        of_hessian = share(gap, self._scale(full.energy))
        return max(self._agree(own.energy, own.gradient), of_hessian)

    def acceleration(self) -> float:
        """Of the geodesic equation, multiplied by the metric so that nothing is inverted."""
        metric = self.space.metric
        g = metric(self.z)
        turning = differences(metric, self.z, self.v)
        force = torch.einsum("kij,kj->ki", turning, self.v)
        speed = torch.einsum("ki,kij,kj->k", self.v, g, self.v)
        length = self.v.norm(dim=-1)
        slopes = []
        for direction in torch.eye(self.z.shape[1]).to(self.z):
            away = length[:, None] * direction
            change = differences(metric, self.z, away) / length[:, None, None]
            slopes.append(torch.einsum("ki,kij,kj->k", self.v, change, self.v))
        gradient = torch.stack(slopes, -1)
        expected = -(force - gradient / 2)
        acceleration = self.space.acceleration(self.z, self.v)
        found = torch.einsum("kij,kj->ki", g, acceleration)
        gap = ((found - expected) * length[:, None]).norm(dim=-1)
        larger = torch.maximum(found.norm(dim=-1), expected.norm(dim=-1))
        size = torch.maximum(larger * length, speed)
        return share(gap, size)

    def residual(self) -> float:
        """How much slower than h² the distance of residual and gradient falls."""
        gaps = []
        for segments in (16, 32, 64):
            nodes = self.curves(segments)
            found = self.space.residual(nodes)
            if found is None:
                return 0.0
            if found.shape != nodes[:, 1:-1].shape:
                return math.inf
            _, gradient = self.differentiated(nodes)
            gap = (found - gradient).flatten(1).norm(dim=-1)
            size = gradient.flatten(1).norm(dim=-1)
            gaps.append(gap / size)
        # A second difference of positions loses the square of the number of segments.
        rounding = 64**2 * 64 * tolerance(self.z.dtype).eps
        return first_order_share(gaps, gaps[-1] > rounding)

    def lower_bound(self) -> float:
        curve = self.curves(_PIECES)
        bound = self.space.ambient_distance(curve[:, 0], curve[:, -1])
        if bound is None:
            return 0.0
        middle = (curve[:, 1:] + curve[:, :-1]) / 2
        along = curve.diff(dim=1)
        pieces = self.space.norm(middle.flatten(0, 1), along.flatten(0, 1))
        length = pieces.view(len(curve), -1).sum(1)
        # The midpoint rule, and corners instead of a smooth curve.
        quadrature = 1e-3
        excess = bound - (1 + quadrature) * length
        return share(excess.clamp(min=0), length)

    def embedded(self) -> float:
        h = step(self.z)
        points = _four_points(self.z, self.v, h)
        images = self.space.embedded(points, lambda y: y)
        if images is None:
            return 0.0
        near = images[:, 0] - images[:, 1]
        far = images[:, 2] - images[:, 3]
        velocity = (8 * near - far) / (12 * h)
        speed = velocity.norm(dim=-1)
        return relative(speed, self.space.norm(self.z, self.v))

    def velocities(self) -> float:
        """Of a geodesic that starts with a known velocity, at its first node."""
        t = torch.linspace(0, 1, 33, dtype=torch.float64).to(self.z)
        nodes = solvers.exp(self.space, self.z, self.v, t)
        found = self.space.velocities(nodes)
        if found is None:
            return 0.0
        if found.shape != nodes.shape:
            return math.inf
        return relative(found[:, 0], self.v)

    def rows(self) -> float:
        calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
            (self.space.metric, (self.z,)),
            (self.space.norm, (self.z, self.v)),
            (self.space.acceleration, (self.z, self.v)),
            (self.space.squared_chords, (self.nodes,)),
        ]
        gaps = []
        for method, given in calls:
            together = method(*given)
            reversed_rows = [x.flip(0) for x in given]
            flipped = method(*reversed_rows).flip(0)
            gaps.append(relative(together, flipped))
            single = []
            for i in range(len(self.z)):
                row = [x[i : i + 1] for x in given]
                single.append(method(*row))
            gaps.append(relative(together, torch.cat(single)))
        return max(gaps)

    def signatures(self) -> dict[str, float]:
        """Shapes, dtypes and devices of every method, and whether arguments are left alone."""
        k, m = self.z.shape
        n = _SEGMENTS

        def slope(nodes: Tensor) -> Tensor:
            return self.space.expand(nodes, False).gradient

        calls: list[Call] = [
            (self.space.metric, (self.z,), (k, m, m)),
            (self.space.norm, (self.z, self.v), (k,)),
            (self.space.acceleration, (self.z, self.v), (k, m)),
            (self.space.squared_chords, (self.nodes,), (k, n)),
            (slope, (self.nodes,), (k, n - 1, m)),
        ]
        kept, changed = kept_and_changed(calls, self.z)
        return {"dtype": 0.0 if kept else math.inf, "inputs": changed}


def _four_points(z: Tensor, v: Tensor, h: float) -> Tensor:  # (k, m) x 2 -> (k, 4, m)
    """The points of a four-point difference: one and two steps ahead and behind."""
    steps = [h, -h, 2 * h, -2 * h]
    offsets = torch.tensor(steps, dtype=torch.float64).to(z)
    moves = offsets[:, None] * v[:, None]
    return z[:, None] + moves


def _negative_share(form: Tensor) -> float:  # (k, m, m)
    """The most negative eigenvalue of symmetric forms, relative to their largest."""
    values = torch.linalg.eigvalsh(form)
    negative = (-values[:, 0]).clamp(min=0)
    largest = values.abs().amax(1)
    return share(negative, largest)
