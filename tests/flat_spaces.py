"""Flat-onto spaces: decoders f that map Rᵐ onto Rᵐ one to one, so that the distance is the chord
|f(a) − f(b)|.

The preimage of a straight line is strongly curved where f is uneven. A solver's error estimate
must reflect that, while the true distance costs two evaluations. Every map here is a bijection
of Rᵐ, and its docstring says why. The stretch of f is its largest singular value divided by its
smallest, among all points of the pairs. It ranges from 2 to 1e3."""

from collections.abc import Callable

import numpy as np
import torch
from spaces import closed

from riemae import Manifold

Map = Callable[[torch.Tensor], torch.Tensor]


def constant(x, like):
    return torch.as_tensor(x).to(like)


def chain(*maps: Map) -> Map:
    """The composition of maps, which is a bijection if each of them is."""

    def decoder(z):
        for f in maps:
            z = f(z)
        return z

    return decoder


# Coordinate by coordinate: increasing and unbounded on both sides, hence onto.


def sine(k, omega):
    """``x + k sin(ωx)``, of slope 1 ± kω: increasing for kω < 1."""
    return lambda z: z + k * (omega * z).sin()


def square(z):
    """``x + x|x|/2``, of slope 1 + |x|: once differentiable at 0."""
    return z + z * z.abs() / 2


def huber(k=0.7, width=0.3):
    """``x + k h(x)`` with Huber's h, of slope 1 ± k outside ``|x| < width``: once differentiable at
    ± width."""

    def decoder(z):
        size = z.abs()
        return z + k * torch.where(size < width, z * z / (2 * width), size - width / 2)

    return decoder


def quintic(z):
    """``x + 0.02 x⁵``: slopes from 1 to 25 at |x| = 4, and smooth."""
    return z + 0.02 * z**5


def logarithmic(z):
    """``arsinh(5x)``: slopes fall from 5 at 0 to 1/|x|, and the image is still all of R."""
    return torch.asinh(5 * z)


def leaky(slope=0.2):
    """Leaky ReLU: slopes ``slope`` and 1, continuous."""
    return lambda z: torch.nn.functional.leaky_relu(z, slope)


def _bins(seed, m, count, bound):
    """Random increasing knots and values from −bound to bound, ``(m, count + 1)`` each: sums of
    positive widths."""
    rng = np.random.default_rng(seed)

    def knots():
        widths = 0.3 + rng.dirichlet(np.ones(count), m) * count
        edges = np.concatenate([np.zeros((m, 1)), widths.cumsum(1)], 1)
        return bound * (2 * edges / edges[:, -1:] - 1)

    return knots(), knots(), rng


def _locate(z, knots):
    """The number of the bin that holds each coordinate, and a look-up of the bins' constants."""
    inner = constant(knots[:, 1:-1], z)
    index = (z[..., None] >= inner).sum(-1)
    axis = torch.arange(z.shape[-1], device=z.device)
    return lambda table: constant(table, z)[axis, index]


def piecewise_linear(seed, m, count=12, bound=6.0):
    """Linear interpolation of increasing data, continued with the slope of the outermost bins."""
    x, y, _ = _bins(seed, m, count, bound)

    def decoder(z):
        at = _locate(z, x)
        return at(y[:, :-1]) + at(np.diff(y) / np.diff(x)) * (z - at(x[:, :-1]))

    return decoder


def rational_quadratic(seed, m, count=10, bound=6.0, slopes=(0.3, 3.0)):
    """The monotone spline of Gregory and Delbourgo (1982) as used for flows by Durkan et al. (2019,
    equation 4).

    Between knots with secant slope s and derivatives d, e, at the share t of the bin of height h:
    ``y + h (s t² + d t (1 − t))/(s + (d + e − 2s) t (1 − t))``, increasing since s, d, e > 0. Once
    differentiable at the knots. Outside, lines with the outermost derivative."""
    x, y, rng = _bins(seed, m, count, bound)
    derivative = np.exp(rng.uniform(*np.log(slopes), (m, count + 1)))
    secant = np.diff(y) / np.diff(x)

    def decoder(z):
        at = _locate(z, x)
        left, bottom = at(x[:, :-1]), at(y[:, :-1])
        width, height, s = at(np.diff(x)), at(np.diff(y)), at(secant)
        d, e = at(derivative[:, :-1]), at(derivative[:, 1:])
        low, high = constant(x[:, 0], z), constant(x[:, -1], z)
        t = (torch.minimum(torch.maximum(z, low), high) - left) / width
        both = t * (1 - t)
        inside = bottom + height * (s * t * t + d * both) / (s + (d + e - 2 * s) * both)
        below = constant(y[:, 0], z) + constant(derivative[:, 0], z) * (z - low)
        above = constant(y[:, -1], z) + constant(derivative[:, -1], z) * (z - high)
        return torch.where(z < low, below, torch.where(z > high, above, inside))

    return decoder


# Mixing the coordinates.


def rotation(seed, m):
    """A random orthogonal matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))
    q = q * np.sign(np.diag(r))
    return lambda z: z @ constant(q, z)


def anisotropic(seed, m, condition):
    """A linear map with singular values from 1/√condition to √condition, in random directions."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(m, m)))[0] for _ in range(2))
    a = left * condition ** np.linspace(-0.5, 0.5, m) @ right
    return lambda z: z @ constant(a, z)


def stack(seed, m, depth, activation):
    """``depth`` random orthogonal layers with an increasing activation after each."""
    return chain(*(f for i in range(depth) for f in (rotation([seed, i], m), activation)))


def coupling(seed, m, scale=0.6, gain=1.5, width=16):
    """Dinh et al.'s affine coupling (2017): one half becomes ``x exp(s) + t``, s and t tanh
    networks of the other half.

    Onto, since for every value of the unchanged half the other one is mapped by an affine
    bijection. |s| ≤ scale."""
    rng = np.random.default_rng(seed)
    keep = m // 2
    first = gain * rng.normal(size=(keep, width)) / keep**0.5
    bias = rng.normal(size=width)
    second = rng.normal(size=(width, 2 * (m - keep))) / width**0.5

    def decoder(z):
        fixed, moved = z[..., :keep], z[..., keep:]
        hidden = (fixed @ constant(first, z) + constant(bias, z)).tanh() @ constant(second, z)
        s, t = hidden[..., : m - keep], hidden[..., m - keep :]
        return torch.cat(
            [moved * (scale * s.tanh()).exp() + t, fixed], -1
        )  # exchanged, so that the next layer moves the other half

    return decoder


def flow(seed, m, layers=4, **options):
    """Affine couplings with rotations between them."""
    return chain(
        *(
            f
            for i in range(layers)
            for f in (coupling([seed, i], m, **options), rotation([seed, i], m))
        )
    )


def planar(seed, m, strength=0.9, gain=1.0):
    """Rezende and Mohamed's planar flow (2015), ``x + u tanh(wᵀx + b)``.

    Along w it is ``s + (wᵀu) tanh(s + b)`` with s = wᵀx, which is onto and, for wᵀu > −1,
    increasing; s gives x."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=m)
    w *= gain / np.linalg.norm(w)
    u = rng.normal(size=m)
    u *= 2 / np.linalg.norm(u)
    u += (-strength - w @ u) * w / (w @ w)  # wᵀu = −strength
    b = rng.normal()

    def decoder(z):
        return z + constant(u, z) * (z @ constant(w, z) + b).tanh()[..., None]

    return decoder


def planar_flow(seed, m, layers=4, **options):
    """Planar layers one after the other."""
    return chain(*(planar([seed, i], m, **options) for i in range(layers)))


def known(name, decoder, m, smoothness="smooth", size=3.0):
    """The catalogue's entry for a bijection: normally distributed points, and the chord."""

    def points(generator, n):
        return size * torch.randn(n, m, generator=generator, dtype=torch.float64)

    def chord(z0, z1):
        return (decoder(z0) - decoder(z1)).norm(dim=-1)

    return closed(
        name, decoder, lambda: Manifold(decoder), points, chord, smoothness=smoothness, flat=True
    )


FLAT_ONTO = [
    # Analytic, one coordinate at a time: speed ratios 19, 2.3, 4 and 19.
    *(known(f"sine .45 m={m}", sine(0.45, 2.0), m) for m in (1, 2, 3, 5, 8)),
    known("sine .2 m=2", sine(0.2, 2.0), 2),
    known("sine .3 m=2", sine(0.3, 2.0), 2),
    known("sine .9 slow m=2", sine(0.9, 1.0), 2),
    known("quintic m=2", quintic, 2, size=1.5),
    known("logarithmic m=3", logarithmic, 3),
    # Stacks of orthogonal layers with an analytic activation.
    known("stack sine .5 m=5", stack(0, 5, 3, sine(0.5, 1.0)), 5),
    known("stack sine .45 m=3", stack(1, 3, 2, sine(0.45, 2.0)), 3),
    known("stack sine .5 m=8", stack(2, 8, 3, sine(0.5, 1.0)), 8),
    known("stack sine .2 m=2", stack(3, 2, 2, sine(0.2, 2.0)), 2),
    # Flows.
    known("coupling m=2", flow(0, 2), 2, size=1.5),
    known("coupling m=5", flow(1, 5), 5, size=1.5),
    known("coupling m=8", flow(2, 8), 8, size=1.5),
    known("coupling steep m=3", flow(3, 3, layers=4, scale=1.0, gain=1.0), 3, size=1.5),
    known("planar m=2", planar_flow(0, 2, layers=2, strength=0.8), 2),
    known("planar m=5", planar_flow(1, 5, layers=3, strength=0.8), 5),
    # Unequal directions.
    known("linear 1e3 m=5", anisotropic(0, 5, 1e3), 5),
    known("linear 30, sine .45 m=2", chain(anisotropic(1, 2, 30.0), sine(0.45, 2.0)), 2, size=1.0),
    known("sine .2, linear 400 m=3", chain(sine(0.2, 2.0), anisotropic(2, 3, 400.0)), 3, size=1.0),
    known(
        "linear 50, stack, linear 10 m=5",
        chain(anisotropic(3, 5, 50.0), stack(4, 5, 1, sine(0.5, 1.0)), anisotropic(5, 5, 10.0)),
        5,
        size=0.5,
    ),
    # Once differentiable.
    known("square m=1", square, 1, "C1"),
    known("square m=2", square, 2, "C1"),
    known("square m=5", square, 5, "C1"),
    known("huber m=2", huber(), 2, "C1"),
    known("stack huber m=3", stack(5, 3, 2, huber(0.5)), 3, "C1"),
    known("rational-quadratic m=1", rational_quadratic(0, 1), 1, "C1"),
    known("rational-quadratic m=2", rational_quadratic(1, 2), 2, "C1"),
    known("rational-quadratic m=5", rational_quadratic(2, 5), 5, "C1"),
    known(
        "rational-quadratic, turned m=3", chain(rotation(0, 3), rational_quadratic(3, 3)), 3, "C1"
    ),
    # Continuous.
    known("leaky m=1", leaky(), 1, "C0"),
    known("leaky m=2", stack(6, 2, 3, leaky()), 2, "C0"),
    known("leaky m=3", stack(7, 3, 2, leaky()), 3, "C0"),
    known("leaky m=8", stack(8, 8, 3, leaky()), 8, "C0"),
    known("piecewise linear m=1", piecewise_linear(0, 1), 1, "C0"),
    known("piecewise linear m=2", piecewise_linear(1, 2), 2, "C0"),
    known("piecewise linear m=5", piecewise_linear(2, 5), 5, "C0"),
]
FLAT_NAMES = [space.name for space in FLAT_ONTO]
