"""The catalogue: spaces whose geometry is known in closed form, and pairs of points with their true
distance.

Every truth is derived in a comment, or integrated by scipy from the textbook's geodesic equation;
none comes from riemae."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp

from riemae import Manifold, ambient, solvers

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Known:
    """A space with known distances.

    Attributes:
        name: For test ids.
        decoder: The immersion, or None when the space is given by its metric tensor.
        space: Makes the space to solve in.
        points: Points inside the chart, ``(generator, n) -> (n, m)`` in float64.
        pairs: ``(generator, n) -> z0, z1, true distance`` in float64.
        distance: ``(z0, z1) -> d`` in float64, where it is a formula. It gives the truth also
            for rounded points.
        smoothness: Of the decoder: ``smooth``, ``C1``, or ``C0`` where only one-sided derivatives
            exist.
        flat: Whether the decoder maps onto a Euclidean space, so that d is the chord.
    """

    name: str
    decoder: Callable | None
    space: Callable[[], object]
    points: Callable
    pairs: Callable[[torch.Generator, int], Pairs]
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    smoothness: str = "smooth"
    flat: bool = False

    def draw(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Pairs:
        """Pairs in ``dtype`` with the distance, in float64, of what they were rounded to."""
        z0, z1, d = self.pairs(torch.Generator().manual_seed(seed), n)
        z0, z1 = z0.to(dtype), z1.to(dtype)
        if self.distance is not None:
            d = self.distance(z0.double(), z1.double())
        return z0, z1, d


def rand(generator, *shape, low=-1.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


# Immersions.


def sphere(z, radius=1.0):
    """Inverse stereographic projection from the north pole of a sphere of any dimension."""
    s = z.square().sum(-1, keepdim=True)
    return radius * torch.cat([2 * z, s - 1], -1) / (1 + s)


def torus(z, major=2.0, minor=1.0):
    u, v = z.unbind(-1)
    rho = major + minor * v.cos()
    return torch.stack([rho * u.cos(), rho * u.sin(), minor * v.sin()], -1)


def cylinder(z, radius=1.5):
    u, h = z.unbind(-1)
    return torch.stack([radius * u.cos(), radius * u.sin(), h], -1)


def paraboloid(z, c=1.0):
    return torch.cat([z, c * z.square().sum(-1, keepdim=True) / 2], -1)


def swiss_roll(z):
    t, h = z.unbind(-1)
    return torch.stack([t * t.cos(), h, t * t.sin()], -1)


def clifford_torus(z):
    u, v = z.unbind(-1)
    return torch.stack([u.cos(), u.sin(), v.cos(), v.sin()], -1)


AFFINE = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.1], [0.0, 1.0]], dtype=torch.float64)


def affine(z):
    return z @ AFFINE.to(z).T + 0.7


def lift(z):
    """The unit sphere, isometrically placed in R⁷ by orthonormal columns."""
    q, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(7, 3)))
    return sphere(z) @ torch.as_tensor(q).to(z).T


# True distances.


def great_circle(z0, z1, radius=1.0):
    # The angle between the position vectors; atan2 keeps full precision for small and for large
    # angles.
    p, q = sphere(z0), sphere(z1)
    return radius * 2 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))


def poincare(z0, z1):
    # d = arcosh(1 + 2x), x = |Δ|²/((1 − |p|²)(1 − |q|²)), as 2 arsinh √x, which keeps its digits at
    # small distances.
    outside = (1 - z0.square().sum(-1)) * (1 - z1.square().sum(-1))
    return 2 * torch.asinh((z0 - z1).norm(dim=-1) / outside.sqrt())


def half_plane(z0, z1):
    # d = arcosh(1 + |Δ|²/(2 y₀ y₁)), likewise
    return 2 * torch.asinh((z0 - z1).norm(dim=-1) / (4 * z0[..., 1] * z1[..., 1]).sqrt())


def roll_arc(t):
    # Arc length of the spiral (t cos t, t sin t): ∫ √(1 + t²) dt = (t √(1 + t²) + arsinh t)/2
    return (t * (1 + t * t).sqrt() + torch.asinh(t)) / 2


def integrated(acceleration, speed, starts, velocities):
    """End points of geodesics by scipy's DOP853 from a textbook acceleration.

    Their length is their initial speed.
    """
    ends = []
    for z, v in zip(starts.numpy(), velocities.numpy(), strict=True):
        flow = solve_ivp(
            lambda t, y: np.concatenate([y[2:], acceleration(y[:2], y[2:])]),
            (0, 1),
            np.concatenate([z, v]),
            method="DOP853",
            rtol=1e-13,
            atol=1e-13,
        )
        ends.append(flow.y[:2, -1])
    lengths = [speed(z, v) for z, v in zip(starts.numpy(), velocities.numpy(), strict=True)]
    return torch.as_tensor(np.array(ends)), torch.as_tensor(lengths)


def torus_acceleration(z, w):
    # ds² = (R + r cos v)² du² + r² dv², R = 2, r = 1:
    # ü = 2 r sin v/(R + r cos v) u̇ v̇,  v̈ = −(R + r cos v) sin v/r u̇²
    rho = 2 + np.cos(z[1])
    return np.array([2 * np.sin(z[1]) / rho * w[0] * w[1], -rho * np.sin(z[1]) * w[0] ** 2])


def torus_speed(z, w):
    return np.hypot((2 + np.cos(z[1])) * w[0], w[1])


def paraboloid_acceleration(z, w):
    # The graph of h = |z|²/2 has Γᵏ_ij = h_k h_ij/(1 + |∇h|²), so z̈ = −z |ż|²/(1 + |z|²)
    return -z * (w @ w) / (1 + z @ z)


def paraboloid_speed(z, w):
    return np.sqrt(w @ w + (z @ w) ** 2)


def closed(name, decoder, space, points, distance, **more):
    """The entry of a space whose distance is a formula.

    Both ends of a pair are drawn from the same points.
    """

    def pairs(generator, n):
        z0, z1 = points(generator, n), points(generator, n)
        return z0, z1, distance(z0, z1)

    return Known(name, decoder, space, points, pairs, distance, **more)


def _shots(points, acceleration, speed, size):
    def draw(generator, n):
        z0 = points(generator, n)
        v = size * rand(generator, n, 2)
        z1, d = integrated(acceleration, speed, z0, v)
        return z0, z1, d

    return draw


def _box(m, size):
    return lambda generator, n: rand(generator, n, m, low=-size, high=size)


def cylinder_chord(z0, z1):
    # Flat: d² = r²Δu² + Δh² while the turn is less than half.
    return torch.hypot(1.5 * (z0 - z1)[..., 0], (z0 - z1)[..., 1])


def _roll_points(generator, n):
    return torch.cat(
        [rand(generator, n, 1, low=2.0, high=8.0), rand(generator, n, 1, low=0.0, high=4.0)], 1
    )


def roll_chord(z0, z1):
    # Developable: unroll the spiral by its arc length.
    return torch.hypot(roll_arc(z0[..., 0]) - roll_arc(z1[..., 0]), (z0 - z1)[..., 1])


def _upper(generator, n):
    return torch.cat([rand(generator, n, 1), rand(generator, n, 1, low=0.3, high=2.0)], 1)


def _disc(generator, n):
    angle, radius = rand(generator, n, low=0.0, high=6.28), 0.8 * rand(generator, n, low=0.0).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def poincare_tensor(z):
    return torch.eye(2).to(z) * 4 / (1 - z.square().sum(-1))[..., None, None] ** 2


def half_plane_tensor(z):
    return torch.eye(2).to(z) / z[..., 1, None, None] ** 2


def chord_of_affine(z0, z1):
    return ((z0 - z1) @ AFFINE.T).norm(dim=-1)


def half_plane_as_ambient():
    """The same half plane as an ambient metric on data that the identity decodes, by inner
    products."""
    return Manifold(lambda z: z, ambient=lambda x: (1 / x[:, 1:] ** 2).expand_as(x))


CATALOGUE = [
    closed("sphere", sphere, lambda: Manifold(sphere), _box(2, 0.9), great_circle),
    closed(
        "sphere3",
        lambda z: sphere(z, 2.0),
        lambda: Manifold(lambda z: sphere(z, 2.0)),
        _box(3, 0.8),
        lambda a, b: great_circle(a, b, 2.0),
    ),
    Known(
        "torus",
        torus,
        lambda: Manifold(torus),
        _box(2, 3.0),
        _shots(_box(2, 3.0), torus_acceleration, torus_speed, 0.5),
    ),
    closed("cylinder", cylinder, lambda: Manifold(cylinder), _box(2, 1.0), cylinder_chord),
    Known(
        "paraboloid",
        paraboloid,
        lambda: Manifold(paraboloid),
        _box(2, 1.0),
        _shots(_box(2, 1.0), paraboloid_acceleration, paraboloid_speed, 0.8),
    ),
    closed("swiss roll", swiss_roll, lambda: Manifold(swiss_roll), _roll_points, roll_chord),
    closed(
        "clifford torus",
        clifford_torus,
        lambda: Manifold(clifford_torus),
        _box(2, 1.5),
        lambda a, b: (a - b).norm(dim=-1),  # flat, and less than half a turn each way
    ),
    closed("affine", affine, lambda: Manifold(affine), _box(2, 2.0), chord_of_affine),
    closed("orthogonal lift", lift, lambda: Manifold(lift), _box(2, 0.9), great_circle),
    closed("poincaré disc", None, lambda: solvers.MetricSpace(poincare_tensor), _disc, poincare),
    closed("half plane", None, lambda: solvers.MetricSpace(half_plane_tensor), _upper, half_plane),
    closed("half plane, ambient", lambda z: z, half_plane_as_ambient, _upper, half_plane),
    closed(
        "mahalanobis plane",
        lambda z: z,
        lambda: Manifold(lambda z: z, ambient=ambient.Constant(AFFINE.T @ AFFINE)),
        _box(2, 2.0),
        chord_of_affine,
    ),
]
NAMES = [known.name for known in CATALOGUE]
MANIFOLDS = [known for known in CATALOGUE if known.decoder is not None]
