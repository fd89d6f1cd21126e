"""Latent spaces of autoencoders: what an encoder's numbers mean, and the prior that goes with them.

========  ===================  ==========================  ======================  =================
name      code                 encoder's output            posterior               prior
========  ===================  ==========================  ======================  =================
None      ``z`` in R^m         ``z``                       normal                  standard normal
torus     m angles             m points of the plane       wrapped normal          uniform
sphere    stereographic        a vector of R^(m+1)         power spherical         uniform
          coordinates on S^m
poincare  a point of the ball  a tangent vector at 0       wrapped normal          wrapped normal
========  ===================  ==========================  ======================  =================

A variational encoder returns further numbers: m log variances, or one for the concentration on the
sphere. On the sphere, the power spherical distribution ``p(u) ∝ (1 + μᵀu)^κ`` (De Cao & Aziz 2020)
takes the place of the von Mises-Fisher distribution, which it resembles: its draws need no
rejection, and its divergence has a closed form in every dimension. The wrapped normal distribution
of the ball is that of Nagano et al. (2019).

The sphere has the radius 1, and its pole opposite to the origin of the coordinates has none: no
geodesic goes through it. The ball has the curvature −1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from riemae import storage
from riemae.autoencoders.priors import log_normal
from riemae.exceptions import OptionError
from riemae.numerics.random import gaussian, seeded

_PERIODS = 3  # on either side, over which a wrapped density is summed
_WIDEST = math.log(9.0)  # log variance of an angle; a wider one is uniform to one per cent
_NEAR = 1e-5  # squared lengths below which quotients are series
# How near the rim of the ball points may be; nearer ones lose their digits.
_RIM = {torch.float32: 4e-3, torch.float64: 1e-5}


class Flat:
    """R^m, with normal posteriors and a standard normal prior."""

    name: str | None = None

    def outputs(self, m: int, variational: bool) -> int:
        """How many numbers an encoder returns for m dimensions."""
        return 2 * m if variational else m

    def dimension(self, outputs: int, variational: bool) -> int | None:
        """The m of an encoder with so many outputs; None where there is none."""
        most = outputs + 1
        return next((m for m in range(1, most) if self.outputs(m, variational) == outputs), None)

    def space(self, m: int) -> Any:
        """What ``Manifold(latent=)`` gets."""
        return None

    def features(self) -> nn.Module | None:
        """What a decoder sees of a code, as a first layer; None for the code itself."""
        return None

    def width(self, m: int) -> int:
        """How many numbers these are."""
        return m

    def mean(self, raw: Tensor, variational: bool) -> Tensor:  # (k, o) -> (k, m)
        """The code."""
        return raw.chunk(2, -1)[0] if variational else raw

    def deviation(self, raw: Tensor) -> Tensor:  # (k, o) -> (k, m)
        """Standard deviation of a posterior along each axis."""
        return (raw.chunk(2, -1)[1] / 2).exp()

    def draw(
        self, raw: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # (k, o) -> (k, m), (k,)
        """A code from the posterior, and the posterior's divergence from the prior.

        The divergence is the Kullback-Leibler divergence in closed form, or its unbiased estimate
        by this code, ``log q(z|x) − log p(z)``.

        Args:
            raw: What the encoder returned.
            generator: Source of the randomness.
        """
        mean, log_variance = raw.chunk(2, -1)
        code = mean + (log_variance / 2).exp() * gaussian(mean, generator)
        per_axis = mean.square() + log_variance.exp() - 1 - log_variance
        return code, per_axis.sum(-1) / 2

    def sample(self, like: Tensor, generator: torch.Generator | None) -> Tensor:  # (n, m) -> (n, m)
        """Codes from the prior."""
        return gaussian(like, generator)


class Torus(Flat):
    """m angles in [−π, π)."""

    name = "torus"

    def outputs(self, m: int, variational: bool) -> int:
        """Two numbers an angle, and its log variance."""
        return 3 * m if variational else 2 * m

    def space(self, m: int) -> Any:
        """Periods."""
        return (2 * math.pi,) * m

    def features(self) -> nn.Module | None:
        """Cosines and sines."""
        return Features(self.name)

    def width(self, m: int) -> int:
        """Two numbers an angle."""
        return 2 * m

    def mean(self, raw: Tensor, variational: bool) -> Tensor:
        """Angles of the points of the plane."""
        m = raw.shape[-1] // (3 if variational else 2)
        return torch.atan2(raw[..., m : 2 * m], raw[..., :m])

    def deviation(self, raw: Tensor) -> Tensor:
        """Of the angle before it is wrapped."""
        return (self._log_variance(raw) / 2).exp()

    def draw(self, raw: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Wrapped normal angles; the divergence from the uniform law is estimated."""
        mean = self.mean(raw, variational=True)
        log_variance = self._log_variance(raw)
        away = (log_variance / 2).exp() * gaussian(mean, generator)
        code = _wrapped(mean + away)
        turns = 2 * math.pi * torch.arange(-_PERIODS, _PERIODS + 1).to(mean)
        gap = _wrapped(away)[..., None] + turns  # (k, m, turns)
        wide = log_variance[..., None]
        each = -(gap.square() * (-wide).exp() + wide + math.log(2 * math.pi)) / 2
        own = each.logsumexp(-1) + math.log(2 * math.pi)
        return code, own.sum(-1)

    def sample(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform angles."""
        return _uniform(like, generator) * 2 * math.pi - math.pi

    def _log_variance(self, raw: Tensor) -> Tensor:
        m = raw.shape[-1] // 3
        return _below(raw[..., 2 * m :], _WIDEST)


class Sphere(Flat):
    """S^m in stereographic coordinates."""

    name = "sphere"

    def outputs(self, m: int, variational: bool) -> int:
        """A vector, and one number for the concentration."""
        return m + 2 if variational else m + 1

    def space(self, m: int) -> Any:
        """The sphere of geoopt in these coordinates."""
        import geoopt

        return geoopt.SphereProjection()

    def features(self) -> nn.Module | None:
        """Unit vectors."""
        return Features(self.name)

    def width(self, m: int) -> int:
        """Those of a unit vector."""
        return m + 1

    def mean(self, raw: Tensor, variational: bool) -> Tensor:
        """Coordinates of the direction of the vector."""
        return to_plane(self._direction(raw, variational))

    def deviation(self, raw: Tensor) -> Tensor:  # (k, m + 2) -> (k, 1)
        """Root mean square of the distance from the mean along an axis, the same for all axes."""
        alpha, beta = self._shapes(raw)
        mean_cosine = (alpha - beta) / (alpha + beta)
        return (2 * (1 - mean_cosine) / (raw.shape[-1] - 2)).sqrt()

    def draw(self, raw: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Power spherical codes; the divergence from the uniform law is exact."""
        center = self._direction(raw, variational=True)
        alpha, beta = self._shapes(raw)
        m = center.shape[-1] - 1
        kappa = alpha - beta
        cosine = 2 * _beta(alpha, beta, generator) - 1
        # A uniform direction in the tangent space: noise without its part along the mean.
        noise = gaussian(center, generator)
        noise = noise - (noise * center).sum(-1, keepdim=True) * center
        sine = (1 - cosine.square()).clamp(min=0).sqrt()
        unit = cosine * center + sine * F.normalize(noise, dim=-1)
        both = alpha + beta
        log_scale = both * math.log(2) + beta * math.log(math.pi)
        log_scale = log_scale + alpha.lgamma() - both.lgamma()
        log_one = math.log(2) + alpha.digamma() - both.digamma()  # E log(1 + t)
        area = math.log(2) + (m + 1) / 2 * math.log(math.pi) - math.lgamma((m + 1) / 2)
        divergence = kappa * log_one - log_scale + area
        return to_plane(unit), divergence[..., 0]

    def sample(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform points."""
        more = like.new_zeros(len(like), like.shape[-1] + 1)
        return to_plane(F.normalize(gaussian(more, generator), dim=-1))

    def _direction(self, raw: Tensor, variational: bool) -> Tensor:
        return F.normalize(raw[..., :-1] if variational else raw, dim=-1)

    def _shapes(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """α = m/2 + κ and β = m/2 of the law of (1 + μᵀu)/2."""
        half = (raw.shape[-1] - 2) / 2
        kappa = F.softplus(raw[..., -1:])
        beta = torch.full_like(kappa, half)
        return kappa + half, beta


class Ball(Flat):
    """The Poincaré ball, with the exponential map at its centre."""

    name = "poincare"

    def space(self, m: int) -> Any:
        """The ball of geoopt."""
        import geoopt

        return geoopt.PoincareBall()

    def features(self) -> nn.Module | None:
        """The tangent vector at the centre."""
        return Features(self.name)

    def mean(self, raw: Tensor, variational: bool) -> Tensor:
        """The tangent vector's end."""
        return to_ball(super().mean(raw, variational))

    def draw(self, raw: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Wrapped normal points; the divergence from the prior is estimated."""
        mean = self.mean(raw, variational=True)
        log_variance = raw.chunk(2, -1)[1]
        # Orthonormal coordinates w at the centre are twice the tangent vectors. A Möbius sum moves
        # them to the mean by parallel transport.
        w = (log_variance / 2).exp() * gaussian(mean, generator)
        code = _inside(_added(mean, to_ball(w / 2)))
        zero = torch.zeros_like(w)
        own = log_normal(w, zero, log_variance) - self._log_volume(w)
        home = 2 * from_ball(code)
        return code, own - log_normal(home, zero, zero) + self._log_volume(home)

    def sample(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Wrapped normal points around the centre."""
        return to_ball(gaussian(like, generator) / 2)

    @staticmethod
    def _log_volume(w: Tensor) -> Tensor:  # (k, m) -> (k,)
        """Log of the factor by which the exponential map changes volumes, ``(sinh r/r)^(m−1)``."""
        square = w.square().sum(-1)
        far = square > _NEAR
        r = torch.where(far, square, 1.0).sqrt()
        exact = r + torch.log1p(-(-2 * r).exp()) - math.log(2) - r.log()
        series = square / 6 - square.square() / 180
        return (w.shape[-1] - 1) * torch.where(far, exact, series)


@storage.register("riemae.LatentFeatures")
class Features(nn.Module):
    """The first layer of a decoder: what it sees of a code of a curved latent space.

    Args:
        kind: ``"torus"``, ``"sphere"`` or ``"poincare"``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        latent_of(kind)
        self.kind = kind

    def arguments(self) -> dict[str, Any]:
        """What builds a module of the same structure."""
        return {"kind": self.kind}

    def forward(self, z: Tensor) -> Tensor:  # (k, m) -> (k, f)
        """Cosines and sines, unit vectors, or tangent vectors."""
        if self.kind == "torus":
            return torch.cat([z.cos(), z.sin()], -1)
        if self.kind == "sphere":
            return from_plane(z)
        return from_ball(z)


LATENTS: dict[str, Flat] = {"torus": Torus(), "sphere": Sphere(), "poincare": Ball()}
_PLAIN = Flat()


def latent_of(name: str | None) -> Flat:
    """The latent space of a name; None is R^m.

    Args:
        name: Of the space.

    Raises:
        OptionError: For an unknown name.
    """
    if name is None:
        return _PLAIN
    if not isinstance(name, str) or name not in LATENTS:
        known = ", ".join(map(repr, LATENTS))
        raise OptionError("latent", f"one of {known}, or None", repr(name), "Try latent=None.")
    return LATENTS[name]


def to_plane(u: Tensor) -> Tensor:  # (…, m + 1) -> (…, m)
    """Stereographic coordinates of unit vectors, from the pole ``(0, …, 0, −1)``."""
    # The pole itself gets a point very far away.
    least = 4 * torch.finfo(u.dtype).eps
    return u[..., :-1] / (1 + u[..., -1:]).clamp(min=least)


def from_plane(z: Tensor) -> Tensor:  # (…, m) -> (…, m + 1)
    """Unit vectors of stereographic coordinates."""
    square = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, 1 - square], -1) / (1 + square)


def to_ball(v: Tensor) -> Tensor:  # (…, m) -> (…, m)
    """The exponential map at the centre of the ball, ``tanh|v| v/|v|``."""
    square = v.square().sum(-1, keepdim=True)
    far = square > _NEAR
    size = torch.where(far, square, 1.0).sqrt()
    series = 1 - square / 3 + 2 * square.square() / 15
    return _inside(v * torch.where(far, size.tanh() / size, series))


def from_ball(z: Tensor) -> Tensor:  # (…, m) -> (…, m)
    """The logarithm at the centre of the ball, ``artanh|z| z/|z|``."""
    square = z.square().sum(-1, keepdim=True)
    far = square > _NEAR
    size = torch.where(far, square, 0.25).sqrt()
    series = 1 + square / 3 + square.square() / 5
    return z * torch.where(far, size.atanh() / size, series)


def _inside(z: Tensor) -> Tensor:
    """Points moved in from the rim, where they have no digits left."""
    largest = 1 - _RIM.get(z.dtype, 4e-3)
    square = z.detach().square().sum(-1, keepdim=True)
    beyond = square > largest**2
    return z * torch.where(beyond, largest / torch.where(beyond, square, 1.0).sqrt(), 1.0)


def _added(x: Tensor, y: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
    """Möbius sum."""
    both = (x * y).sum(-1, keepdim=True)
    x2 = x.square().sum(-1, keepdim=True)
    y2 = y.square().sum(-1, keepdim=True)
    top = (1 + 2 * both + y2) * x + (1 - x2) * y
    return top / (1 + 2 * both + x2 * y2)


def _wrapped(angle: Tensor) -> Tensor:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _below(x: Tensor, limit: float) -> Tensor:
    """Numbers with a smooth upper limit."""
    return limit - F.softplus(limit - x)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    drawn = torch.rand(like.shape, generator=generator, dtype=like.dtype, device=device)
    return drawn.to(like.device)


def _beta(alpha: Tensor, beta: Tensor, generator: torch.Generator | None) -> Tensor:
    """Beta variables, differentiable in their parameters."""
    device = alpha.device if generator is None else generator.device
    seed = torch.randint(2**31, (), generator=generator, device=device)
    with seeded(alpha.device, int(seed)):
        family = torch.distributions.Beta(alpha, beta, validate_args=False)
        drawn: Tensor = family.rsample()
    return drawn
