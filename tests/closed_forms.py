"""More spaces with known distances, of every curvature, coordinate system and kind of metric.

Every part of the package is tested on the catalogue of :mod:`spaces`. The spaces here test claims
about accuracy. True distances are formulas, or lengths of geodesics that scipy integrates from the
textbook's equation, which are their initial speeds. The geodesic of every pair is the only one, or
the shortest by far."""

import math

import numpy as np
import torch
import torch.distributions as td
from scipy.integrate import solve_ivp
from spaces import Known, _box, closed, great_circle, half_plane, poincare, rand, sphere

from riemae import Manifold, solvers


def from_tensor(tensor):
    return lambda: solvers.MetricSpace(tensor)


def diagonal(*entries):
    """The tensor with these functions of z on its diagonal."""
    return lambda z: torch.diag_embed(
        torch.stack([f(z) * torch.ones_like(z[..., 0]) for f in entries], -1)
    )


def shots(name, decoder, space, points, velocities, shoot):
    """The entry of a space whose geodesics are integrated: ``shoot(z, v) -> end point, length`` for
    one pair."""

    def pairs(generator, n):
        z0, v = points(generator, n), velocities(generator, n)
        ends, lengths = zip(
            *(shoot(a, b) for a, b in zip(z0.numpy(), v.numpy(), strict=True)), strict=True
        )
        return z0, torch.as_tensor(np.array(ends)), torch.as_tensor(np.array(lengths))

    return Known(name, decoder, space, points, pairs)


def integrate(acceleration, z, v):
    """Where the geodesic from z with velocity v is at time 1, and its velocity there."""
    m = len(z)
    flow = solve_ivp(
        lambda t, y: np.concatenate([y[m:], acceleration(y[:m], y[m:])]),
        (0, 1),
        np.concatenate([z, v]),
        method="DOP853",
        rtol=1e-13,
        atol=1e-14,
    )
    return flow.y[:m, -1]


# Spheres and submanifolds of them.


def _near_antipodal(generator, n):
    # Great circles of 0.9 π to 0.999 π whose middle is next to the south pole, which is the origin
    # of the chart.
    middle = sphere(0.3 * rand(generator, n, 2))
    tangent = torch.linalg.cross(middle, rand(generator, n, 3))
    tangent = tangent / tangent.norm(dim=-1, keepdim=True)
    half = math.pi / 2 * rand(generator, n, 1, low=0.9, high=0.999)
    ends = (middle * half.cos() - tangent * half.sin(), middle * half.cos() + tangent * half.sin())
    z0, z1 = (x[:, :2] / (1 - x[:, 2:]) for x in ends)
    return z0, z1, great_circle(z0, z1)


def rotation_matrix(w):
    """Rodrigues' vector: the rotation by 2 arctan|w| about w, as nine numbers."""
    x, y, z = w.unbind(-1)
    s = w.square().sum(-1)
    rows = (
        (1 - s + 2 * x * x, 2 * (x * y - z), 2 * (x * z + y)),
        (2 * (x * y + z), 1 - s + 2 * y * y, 2 * (y * z - x)),
        (2 * (x * z - y), 2 * (y * z + x), 1 - s + 2 * z * z),
    )
    return torch.stack([entry for row in rows for entry in row], -1) / (1 + s)[..., None]


def rotation_angle(w0, w1):
    # |dR|² = 2 dθ²: √2 times the angle of R₀ᵀR₁, itself twice the angle between the unit
    # quaternions along (1, w).
    p, q = (
        torch.nn.functional.normalize(torch.nn.functional.pad(w, (1, 0), value=1.0), dim=-1)
        for w in (w0, w1)
    )
    return 2**0.5 * 4 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))


def class_angle(z0, z1):
    # d = 2 arccos Σ√(p q): twice the angle between the unit vectors √p.
    p, q = (torch.nn.functional.pad(z, (0, 1)).softmax(-1).sqrt() for z in (z0, z1))
    return 4 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))


def projector(z):
    """The plane in R⁴ spanned by the columns of (I, W), W = z as 2 × 2, by its orthogonal
    projector."""
    w = z.unflatten(-1, (2, 2))
    v = torch.cat([torch.eye(2).to(z).expand_as(w), w], -2)
    (a, b), (_, c) = (row.unbind(-1) for row in (v.mT @ v).unbind(-2))
    adjugate = torch.stack([torch.stack([c, -b], -1), torch.stack([-b, a], -1)], -2)
    return (v @ adjugate @ v.mT / (a * c - b * b)[..., None, None]).flatten(-2)


def principal_angles(z0, z1):
    # |dP|² = 2 Σ dθ², θ the principal angles: sines are the singular values of (1 − P₀) Q₁, cosines
    # those of Q₀ᵀ Q₁.
    bases = []
    for z in (z0, z1):
        w = z.unflatten(-1, (2, 2))
        bases.append(torch.linalg.qr(torch.cat([torch.eye(2).to(z).expand_as(w), w], -2))[0])
    inner = bases[0].mT @ bases[1]
    sines = torch.linalg.svdvals(bases[1] - bases[0] @ inner)
    cosines = torch.linalg.svdvals(inner).flip(-1)
    return 2**0.5 * torch.atan2(sines, cosines).norm(dim=-1)


# Flat spaces in curved coordinates.

_APERTURE = 0.4  # sine of half the opening angle of the cone


def cone(z):
    r, angle = z.unbind(-1)
    rho = _APERTURE * r
    return torch.stack([rho * angle.cos(), rho * angle.sin(), (1 - _APERTURE**2) ** 0.5 * r], -1)


def cone_chord(z0, z1):
    # Cut open, the cone is a sector: polar coordinates r and sin α times the angle; less than half
    # a turn of it here.
    x, y = (
        z[..., :1] * torch.stack([(_APERTURE * z[..., 1]).cos(), (_APERTURE * z[..., 1]).sin()], -1)
        for z in (z0, z1)
    )
    return (x - y).norm(dim=-1)


def complex_square(z):
    x, y = z.unbind(-1)
    return torch.stack([x * x - y * y, 2 * x * y], -1)


def complex_square_chord(z0, z1):
    # One to one on the right half plane, onto all but the negative axis, which no chord between
    # these points meets.
    return (complex_square(z0) - complex_square(z1)).norm(dim=-1)


def _wedge(generator, n):
    r, angle = rand(generator, n, low=0.2, high=1.5), 0.75 * rand(generator, n)
    return torch.stack([r * angle.cos(), r * angle.sin()], -1)


def wave(z):
    """A curve in R³ of uneven speed."""
    return torch.cat([(3 * z).sin(), (2 * z).cos(), z + 0.3 * z * z.square()], -1)


def wave_length(z0, z1):
    # ∫ |f'|, by Gauss-Legendre with 24 nodes on each of 16 parts.
    x, w = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(24))
    t = ((torch.arange(16)[:, None] + (x + 1) / 2) / 16).flatten()
    at = z0 + (z1 - z0) * t
    speed = torch.stack([3 * (3 * at).cos(), -2 * (2 * at).sin(), 1 + 0.9 * at.square()], -1).norm(
        dim=-1
    )
    return (z1 - z0)[..., 0].abs() * (speed * (w / 32).repeat(16)).sum(-1)


# Hyperbolic.


def tractrix(z):
    """The pseudosphere, the tractrix turned about its axis."""
    u, v = z.unbind(-1)
    return torch.stack([v.cos() / u.cosh(), v.sin() / u.cosh(), u - u.tanh()], -1)


def tractrix_distance(z0, z1):
    # ds² = tanh²u du² + dv²/cosh²u is the half plane at x = v, y = cosh u; its geodesics never come
    # below their ends.
    at = (torch.stack([z[..., 1], z[..., 0].cosh()], -1) for z in (z0, z1))
    return half_plane(*at)


def ball_tensor(z):
    return torch.eye(z.shape[-1]).to(z) * 4 / (1 - z.square().sum(-1))[..., None, None] ** 2


def _ball(m, radius):
    def points(generator, n):
        direction = torch.nn.functional.normalize(
            torch.randn(n, m, generator=generator, dtype=torch.float64), dim=-1
        )
        return radius * rand(generator, n, 1, low=0.0) * direction

    return points


def polar_distance(z0, z1):
    # The law of cosines, by half arguments: sinh²(d/2) = sinh²(Δr/2) + sinh r₀ sinh r₁ sin²(Δθ/2)
    (r, s), gap = (z0[..., 0], z1[..., 0]), (z0 - z1) / 2
    return 2 * torch.asinh(
        (gap[..., 0].sinh().square() + r.sinh() * s.sinh() * gap[..., 1].sin().square()).sqrt()
    )


def _polar_points(generator, n):
    return torch.cat([rand(generator, n, 1, low=0.3, high=2.5), rand(generator, n, 1)], 1)


def normal_distance(z0, z1):
    # (μ, log σ): ds² = dμ²/σ² + 2 dσ²/σ² is √2 times the half plane at x = μ/√2, y = σ.
    at = (torch.stack([z[..., 0] / 2**0.5, z[..., 1].exp()], -1) for z in (z0, z1))
    return 2**0.5 * half_plane(*at)


def product_tensor(z):
    """S² × H² × R: the stereographic plane, the half plane, the line."""
    round_, hyperbolic = 2 / (1 + z[..., :2].square().sum(-1)), 1 / z[..., 3]
    return torch.diag_embed(
        torch.stack([round_, round_, hyperbolic, hyperbolic, torch.ones_like(round_)], -1) ** 2
    )


def product_distance(z0, z1):
    parts = (
        great_circle(z0[..., :2], z1[..., :2]),
        half_plane(z0[..., 2:4], z1[..., 2:4]),
        (z0 - z1)[..., 4],
    )
    return torch.stack(parts, -1).norm(dim=-1)


def _product_points(generator, n):
    height = rand(generator, n, 1, low=0.3, high=2.0)
    return torch.cat(
        [0.9 * rand(generator, n, 2), rand(generator, n, 1), height, rand(generator, n, 1)], 1
    )


def curved_product(*parts):
    """Spheres (sign 1) and hyperbolic spaces (sign −1), ``(sign, m, weight)`` each, by their
    tensors: a sphere's stereographic projection and the Poincaré ball."""
    sizes = [m for _, m, _ in parts]

    def tensor(z):
        entries = []
        for (sign, _, weight), x in zip(parts, z.split(sizes, -1), strict=True):
            factor = 2 * weight / (1 + sign * x.square().sum(-1, keepdim=True))
            entries.append(factor.expand_as(x).square())
        return torch.diag_embed(torch.cat(entries, -1))

    def distance(z0, z1):
        found = []
        for (sign, _, weight), x, y in zip(
            parts, z0.split(sizes, -1), z1.split(sizes, -1), strict=True
        ):
            apart = great_circle if sign > 0 else poincare
            found.append(weight * apart(x, y))
        return torch.stack(found, -1).norm(dim=-1)

    def points(generator, n):
        return torch.cat(
            [(0.9 if sign > 0 else 0.4) * rand(generator, n, m) for sign, m, _ in parts], -1
        )

    return from_tensor(tensor), points, distance


# Symmetric positive definite matrices, by their lower triangle.


def _triangle(n):
    """A basis of the symmetric matrices, one matrix per coordinate."""
    basis = torch.zeros(n * (n + 1) // 2, n, n, dtype=torch.float64)
    for matrix, i, j in zip(basis, *torch.tril_indices(n, n), strict=True):
        matrix[i, j] = matrix[j, i] = 1
    return basis


def covariance_tensor(n, scale):
    """``scale`` · tr(A⁻¹ dA A⁻¹ dA).

    ½ of it is the Fisher metric of a normal distribution with mean 0.
    """
    basis = _triangle(n)

    def tensor(z):
        e = basis.to(z)
        a = torch.einsum("...k,kij->...ij", z, e)
        turned = torch.einsum("...ij,kjl->...kil", torch.linalg.inv(a), e)
        return scale * torch.einsum("...kij,...lji->...kl", turned, turned)

    return tensor


def covariance_distance(n, scale):
    # √scale · |log eigenvalues of A⁻¹ B|
    basis = _triangle(n)

    def distance(z0, z1):
        a, b = (torch.einsum("...k,kij->...ij", z, basis) for z in (z0, z1))
        root = torch.linalg.inv(torch.linalg.cholesky(a))
        return scale**0.5 * torch.linalg.eigvalsh(root @ b @ root.mT).log().norm(dim=-1)

    return distance


def _covariances(n):
    rows, columns = torch.tril_indices(n, n)

    def points(generator, count):
        root = torch.randn(count, n, n, generator=generator, dtype=torch.float64)
        return (root @ root.mT / n + 0.2 * torch.eye(n))[:, rows, columns]

    return points


# Geodesics that have to be integrated.

_AXES = np.array([1.3, 1.0, 0.7])


def ellipsoid(z):
    return sphere(z) * torch.as_tensor(_AXES).to(z)


def shoot_ellipsoid(z, w):
    # In R³, with N = x/a²: ẍ = −(Σ ẋ²/a²)/|N|² N. K is at most (1.3/0.7)²: nothing is conjugate
    # before 1.69.
    s = z @ z
    position = np.append(2 * z, s - 1) / (1 + s) * _AXES
    normal = position / _AXES**2
    velocity = w - (w @ normal) / (normal @ normal) * normal
    velocity *= (0.3 + 1.2 * abs(w[0])) / np.linalg.norm(velocity)

    def acceleration(x, v):
        n = x / _AXES**2
        return -(v @ (v / _AXES**2)) / (n @ n) * n

    end = integrate(acceleration, position, velocity) / _AXES
    return end[:2] / (1 - end[2]), np.linalg.norm(velocity)


def catenoid(z):
    u, v = z.unbind(-1)
    return torch.stack([v.cosh() * u.cos(), v.cosh() * u.sin(), v], -1)


def shoot_catenoid(z, w):
    # cosh²v (du² + dv²): ü = −2 tanh v u̇ v̇, v̈ = tanh v (u̇² − v̇²). K < 0: the geodesic is the
    # only one in this chart.
    def acceleration(x, v):
        return np.tanh(x[1]) * np.array([-2 * v[0] * v[1], v[0] ** 2 - v[1] ** 2])

    return integrate(acceleration, z, w), np.cosh(z[1]) * np.linalg.norm(w)


def shoot_slice(z, w):
    # dr²/(1 − 2/r) + r² dθ²: r̈ = ṙ²/(r (r − 2)) + (r − 2) θ̇², θ̈ = −2 ṙ θ̇/r. K = −1/r³.
    def acceleration(x, v):
        (r, _), (dr, turn) = x, v
        return np.array([dr * dr / (r * (r - 2)) + (r - 2) * turn * turn, -2 * dr * turn / r])

    return integrate(acceleration, z, w), math.sqrt(w[0] ** 2 / (1 - 2 / z[0]) + (z[0] * w[1]) ** 2)


def heisenberg_tensor(z):
    """dx² + dy² + (dz − (x dy − y dx)/2)²: the left-invariant metric of the Heisenberg group."""
    x, y, _ = z.unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    frame = torch.stack(
        [
            torch.stack(row, -1)
            for row in ((one, zero, zero), (zero, one, zero), (y / 2, -x / 2, one))
        ],
        -2,
    )
    return frame.mT @ frame


def shoot_heisenberg(z, w):
    # In the left-invariant frame a geodesic's horizontal velocity turns at the constant rate c of
    # its vertical one: ζ(t) = V (e^{ict} − 1)/(ic), and its height is c t + |V|² (ct − sin
    # ct)/(2c²); shortest up to 2π. Then translate.
    horizontal, c = complex(w[0], w[1]), w[2] + math.copysign(0.1, w[2])
    step = horizontal * (np.exp(1j * c) - 1) / (1j * c)
    height = c + abs(horizontal) ** 2 * (c - math.sin(c)) / (2 * c * c)
    end = [
        z[0] + step.real,
        z[1] + step.imag,
        z[2] + height + (z[0] * step.imag - z[1] * step.real) / 2,
    ]
    return np.array(end), math.sqrt(abs(horizontal) ** 2 + c * c)


def _boxes(*bounds):
    return lambda generator, n: torch.cat(
        [rand(generator, n, 1, low=low, high=high) for low, high in bounds], 1
    )


CLOSED_FORMS = [
    closed("sphere, 7 dimensions", sphere, lambda: Manifold(sphere), _box(7, 0.6), great_circle),
    Known(
        "near-antipodal",
        sphere,
        lambda: Manifold(sphere),
        _box(2, 0.9),
        _near_antipodal,
        great_circle,
    ),
    closed(
        "rotations",
        rotation_matrix,
        lambda: Manifold(rotation_matrix),
        _box(3, 0.7),
        rotation_angle,
    ),
    closed(
        "categorical",
        lambda z: td.Categorical(logits=torch.nn.functional.pad(z, (0, 1))),
        lambda: Manifold(lambda z: td.Categorical(logits=torch.nn.functional.pad(z, (0, 1)))),
        _box(3, 2.0),
        class_angle,
    ),
    closed("planes in R⁴", projector, lambda: Manifold(projector), _box(4, 0.5), principal_angles),
    closed("cone", cone, lambda: Manifold(cone), _boxes((0.3, 2.0), (-1.5, 1.5)), cone_chord),
    closed(
        "complex square",
        complex_square,
        lambda: Manifold(complex_square),
        _wedge,
        complex_square_chord,
    ),
    closed("curve", wave, lambda: Manifold(wave), _box(1, 2.0), wave_length),
    closed(
        "tractrix surface",
        tractrix,
        lambda: Manifold(tractrix),
        _boxes((0.5, 2.5), (-1.2, 1.2)),
        tractrix_distance,
    ),
    closed("poincaré ball, m=5", None, from_tensor(ball_tensor), _ball(5, 0.9), poincare),
    closed("poincaré disc to 0.999", None, from_tensor(ball_tensor), _ball(2, 0.999), poincare),
    closed(
        "hyperbolic polar",
        None,
        from_tensor(diagonal(lambda z: 1.0, lambda z: z[..., 0].sinh() ** 2)),
        _polar_points,
        polar_distance,
    ),
    closed(
        "normal, fisher",
        lambda z: td.Normal(z[:, :1], z[:, 1:].exp()),
        lambda: Manifold(lambda z: td.Normal(z[:, :1], z[:, 1:].exp())),
        _box(2, 1.5),
        normal_distance,
    ),
    closed("S² x H² x R", None, from_tensor(product_tensor), _product_points, product_distance),
    *(
        closed(name, None, *curved_product(*parts))
        for name, parts in (
            ("S⁵ by its tensor", ((1, 5, 1.0),)),
            ("S³ x S²", ((1, 3, 1.0), (1, 2, 0.3))),
            ("S² x S² x H⁴", ((1, 2, 1.0), (1, 2, 0.5), (-1, 4, 0.2))),
        )
    ),
    closed(
        "SPD(2)",
        None,
        from_tensor(covariance_tensor(2, 1.0)),
        _covariances(2),
        covariance_distance(2, 1.0),
    ),
    closed(
        "normal of mean 0, fisher",
        None,
        from_tensor(covariance_tensor(3, 0.5)),
        _covariances(3),
        covariance_distance(3, 0.5),
    ),
    shots(
        "ellipsoid",
        ellipsoid,
        lambda: Manifold(ellipsoid),
        _box(2, 0.7),
        _box(3, 1.0),
        shoot_ellipsoid,
    ),
    shots(
        "catenoid", catenoid, lambda: Manifold(catenoid), _box(2, 1.0), _box(2, 1.2), shoot_catenoid
    ),
    shots(
        "schwarzschild slice",
        None,
        from_tensor(diagonal(lambda z: 1 / (1 - 2 / z[..., 0]), lambda z: z[..., 0] ** 2)),
        _boxes((4.0, 8.0), (-1.0, 1.0)),
        _boxes((-1.0, 1.0), (-0.6, 0.6)),
        shoot_slice,
    ),
    shots(
        "heisenberg",
        None,
        from_tensor(heisenberg_tensor),
        _box(3, 1.0),
        _box(3, 1.4),
        shoot_heisenberg,
    ),
]
CLOSED_NAMES = [space.name for space in CLOSED_FORMS]
