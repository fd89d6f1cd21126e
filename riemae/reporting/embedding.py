"""A smooth decoder for coordinates that somebody else has made, so that they can be judged.

The decoder is a kernel regression with a linear trend,

    ``f(z) = a + A z + Σ_j w_j k(|z − c_j|)``,  ``k(r) = 1 / (1 + r²/ℓ²)``,

whose kernel is the rational quadratic one: positive definite in any dimension, infinitely often
differentiable, and with tails that follow structure of several sizes (Rasmussen & Williams,
Gaussian Processes for Machine Learning, 2006, section 4.2). The trend is not penalised, so that the
metric does not vanish away from the data. The centres ``c_j`` are some of the coordinates, far from
each other: the weights minimise ``Σ_i |x_i − f(z_i)|² + λ tr Wᵀ K W`` with ``K`` among the centres.
The length ``ℓ`` and the penalty ``λ`` have the smallest leave-one-out error, which a linear
smoother has in closed form: ``r_i / (1 − h_ii)`` with the residual ``r_i`` and the leverage
``h_ii`` (Allen's PRESS).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from riemae.exceptions import DataError, OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_finite, expect_range
from riemae.plotting import spread_points
from riemae.reporting.arguments import as_tensor

__all__ = ["Fit", "FittedDecoder", "fit_decoder"]

_WHERE = "fit_decoder"
_LENGTHS = 7  # tried, from the distance between neighbouring centres to the size of the plot
_PENALTIES = tuple(10.0**k for k in range(-8, 4))  # in units of the mean eigenvalue
_DIRECTIONS = 32  # of the data, by which length and penalty are chosen
_ROWS = 4096  # of data at a time
_RANK = 1e-10  # eigenvalues of the kernel below this share of the largest are rounding


@dataclass(frozen=True)
class Fit:
    """How well a decoder follows the data that it was fitted to.

    Attributes:
        samples: n.
        latent_dim: m.
        data_dim: D.
        r2: Share of the data's variance that the decoder reproduces, at the data themselves.
        loo_r2: The same for each sample by the decoder that has not seen it: what the coordinates
            say about the data. It is near 0, or negative, for coordinates that say nothing.
        length: ℓ, in the units of the coordinates.
        penalty: λ.
        centres: How many kernels there are.
        freedom: Effective number of parameters per data coordinate, the trace of the smoother.
    """

    samples: int
    latent_dim: int
    data_dim: int
    r2: float
    loo_r2: float
    length: float
    penalty: float
    centres: int
    freedom: float

    def __repr__(self) -> str:
        return (
            f"Fit({self.samples} samples, {self.latent_dim} -> {self.data_dim} dimensions: "
            f"R² {self.r2:.3f}, leave-one-out {self.loo_r2:.3f}, "
            f"length {self.length:.3g}, {self.freedom:.0f} degrees of freedom)"
        )


class FittedDecoder(nn.Module):
    """The regression of data on coordinates, ``(k, m) -> (k, *shape)``.

    Attributes:
        summary: How well it follows the data.
    """

    centres: Tensor
    weights: Tensor
    linear: Tensor
    offset: Tensor
    embedding: Tensor
    data: Tensor

    def __init__(
        self,
        centres: Tensor,
        weights: Tensor,
        trend: Tensor,
        shape: torch.Size,
        summary: Fit,
        seen: tuple[Tensor, Tensor],
    ) -> None:
        """Take over what was fitted.

        Args:
            centres: ``(p, m)``.
            weights: ``(p, D)``.
            trend: ``(1 + m, D)``, offset and slopes.
            shape: Of one datum.
            summary: Of the fit.
            seen: Coordinates ``(n, m)`` and data ``(n, D)`` that it was fitted to; a report
                compares with them. They are not part of a state dict.
        """
        super().__init__()
        self.summary = summary
        self.shape = shape
        self.register_buffer("centres", centres)
        self.register_buffer("weights", weights)
        self.register_buffer("offset", trend[0].clone())
        self.register_buffer("linear", trend[1:].clone())
        self.register_buffer("embedding", seen[0], persistent=False)
        self.register_buffer("data", seen[1], persistent=False)

    def forward(self, z: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
        """Data at coordinates."""
        kernel = _kernel(z, self.centres, self.summary.length)
        flat = self.offset + z @ self.linear + kernel @ self.weights
        return flat.view(len(z), *self.shape)


def fit_decoder(
    embedding: Any,
    data: Any,
    *,
    max_centres: int = 400,
    length: float | None = None,
    penalty: float | None = None,
) -> Manifold:
    """A manifold for given coordinates (UMAP, t-SNE, PHATE, PCA …) of data.

    A smooth decoder is fitted from the coordinates back to the data, in float64; its smoothing is
    chosen by the leave-one-out error. Everything that riemae says of a manifold is then said of the
    coordinates: ``riemae.report(riemae.fit_decoder(y, x), y)`` judges them. How much of the data
    they explain is in ``manifold.decoder.summary``, a :class:`Fit`. Nothing is random: the same
    input gives the same decoder, up to rounding.

    Args:
        embedding: Coordinates ``(n, m)``, as a tensor, an array, or a data frame.
        data: ``(n, *shape)``, the data that they stand for.
        max_centres: Kernels at most; of more coordinates so many, far from each other, are taken.
            The time grows with ``n max_centres²``.
        length: ℓ in the units of the coordinates; chosen unless given.
        penalty: λ; chosen unless given.

    Raises:
        ShapeError: When coordinates and data differ in number, or the coordinates are no table.
        NonFiniteError: For NaN or infinity among them.
        OptionError: When there are too few samples, or an option is out of its range.
        DataError: When the coordinates lie on fewer dimensions than they have, or all data are
            equal.

    Example:
        >>> import torch, riemae
        >>> t = torch.linspace(0, 3, 60, dtype=torch.float64)[:, None]
        >>> M = riemae.fit_decoder(t, torch.cat([t.cos(), t.sin()], 1))
        >>> round(float(M.distance(t[0], t[-1])), 2)  # an arc of the unit circle
        3.0
    """
    z = as_tensor(_WHERE, "embedding", embedding, torch.float64)
    x = as_tensor(_WHERE, "data", data, torch.float64)
    if z.ndim == 1:
        z = z[:, None]
    shape = x.shape[1:]
    x = x.reshape(len(x), -1)
    _expect_usable(z, x)
    expect_range(_WHERE, "max_centres", max_centres, 2, integer=True)
    for name, value in (("length", length), ("penalty", penalty)):
        if value is not None:
            expect_range(_WHERE, name, value, 0.0, above=True)
    with torch.no_grad():
        return Manifold(_fitted(z, x, shape, max_centres, length, penalty), latent_dim=z.shape[1])


def _expect_usable(z: Tensor, x: Tensor) -> None:
    """Refuse coordinates and data that no decoder can be fitted to.

    Raises:
        ShapeError: When their shapes do not fit.
        OptionError: For too few samples.
        DataError: When coordinates span fewer dimensions than they have, or data do not differ.
    """
    if z.ndim != 2 or z.shape[1] < 1:
        hint = "Give one row of coordinates per sample."
        raise ShapeError(_WHERE, "embedding of shape (n, m)", str(tuple(z.shape)), hint)
    if len(z) != len(x):
        hint = "Coordinates and data need the same samples in the same order."
        raise ShapeError(_WHERE, f"data of {len(z)} samples", f"{len(x)}", hint)
    n, m = z.shape
    if n < m + 3:
        raise OptionError(_WHERE, f"at least {m + 3} samples", str(n), "Give more samples.")
    for name, values in (("embedding", z), ("data", x)):
        expect_finite(_WHERE, name, values, f"Drop these rows from embedding and data: {name}.")
    values = torch.linalg.svdvals(z - z.mean(0))
    if not values[-1] > 1e-9 * values[0]:
        hint = "Drop coordinates that are constant or follow from others."
        raise DataError(_WHERE, f"coordinates that span {m} dimensions", "fewer", hint)
    if not (x - x[0]).any():
        raise DataError(_WHERE, "data that differ", "equal rows", "Are these the right data?")


def _kernel(z: Tensor, centres: Tensor, length: float) -> Tensor:  # (k, m), (p, m) -> (k, p)
    """``1 / (1 + |z − c|²/ℓ²)``."""
    square = ((z[:, None, :] - centres) / length).square().sum(-1)
    return 1 / (1 + square)


def _blocks(z: Tensor, centres: Tensor, length: float) -> Tensor:  # -> (n, p)
    """The kernel matrix, some rows at a time: its differences have one more axis."""
    return torch.cat([_kernel(rows, centres, length) for rows in z.split(_ROWS)])


@dataclass(frozen=True)
class _Basis:
    """The smoother for one length: orthonormal functions and how stiff each is.

    Attributes:
        trend: ``(n, 1 + m)``, orthonormal functions that are not penalised.
        modes: ``(n, p)``, orthonormal, orthogonal to the trend.
        eigenvalues: ``(p,)``; the penalty λ shrinks a mode by ``e / (e + λ)``.
        back: ``(p, p)``, from coefficients of the modes to those of the kernels.
        kernel: ``(n, p)``.
    """

    trend: Tensor
    modes: Tensor
    eigenvalues: Tensor
    back: Tensor
    kernel: Tensor

    @classmethod
    def of(cls, z: Tensor, centres: Tensor, length: float) -> _Basis:
        kernel = _blocks(z, centres, length)
        among = _kernel(centres, centres, length)
        values, vectors = torch.linalg.eigh(among)
        kept = values > _RANK * values[-1]
        white = vectors[:, kept] / values[kept].sqrt()  # functions whose penalty is 1 each
        trend = torch.linalg.qr(_affine(z)).Q
        features = kernel @ white
        features = features - trend @ (trend.T @ features)
        gram, turned = torch.linalg.eigh(features.T @ features)
        kept = gram > _RANK * gram[-1]
        gram, turned = gram[kept], turned[:, kept]
        modes = features @ turned / gram.sqrt()
        back = white @ turned / gram.sqrt()
        return cls(trend, modes, gram, back, kernel)

    def leverage(self, shrink: Tensor) -> Tensor:  # (p,) -> (n,)
        """Diagonal of the smoother."""
        return self.trend.square().sum(1) + self.modes.square() @ shrink

    def smooth(self, x: Tensor, shrink: Tensor) -> Tensor:  # (n, D), (p,) -> (n, D)
        """Fitted values."""
        return self.trend @ (self.trend.T @ x) + self.modes @ (shrink[:, None] * (self.modes.T @ x))


def _affine(z: Tensor) -> Tensor:  # (n, m) -> (n, 1 + m)
    return torch.cat([torch.ones_like(z[:, :1]), z], 1)


def _fitted(
    z: Tensor,
    x: Tensor,
    shape: torch.Size,
    max_centres: int,
    length: float | None,
    penalty: float | None,
) -> FittedDecoder:
    mean = x.mean(0)
    centred = x - mean
    centres = spread_points(torch.unique(z, dim=0), max_centres)
    few = _main_directions(centred)
    lengths = _lengths(z, centres) if length is None else [float(length)]
    best: tuple[float, float, float, _Basis] | None = None
    for size in lengths:
        basis = _Basis.of(z, centres, size)
        unit = float(basis.eigenvalues.mean())
        tried = [share * unit for share in _PENALTIES] if penalty is None else [float(penalty)]
        for strength in tried:
            error = float(_left_out(basis, few, strength).square().sum())
            if best is None or error < best[0]:
                best = (error, size, strength, basis)
    assert best is not None
    _, size, strength, basis = best
    shrink = basis.eigenvalues / (basis.eigenvalues + strength)
    coefficients = basis.back @ (shrink[:, None] * (basis.modes.T @ centred))
    # The modes are orthogonal to the trend at the data, and the kernels are not.
    rest = centred - basis.kernel @ coefficients
    trend = torch.linalg.lstsq(_affine(z), rest).solution
    residual = rest - _affine(z) @ trend
    total = float(centred.square().sum())
    left = residual / _one_minus(basis.leverage(shrink))[:, None]
    trend[0] += mean
    summary = Fit(
        samples=len(z),
        latent_dim=z.shape[1],
        data_dim=x.shape[1],
        r2=1 - float(residual.square().sum()) / total,
        loo_r2=1 - float(left.square().sum()) / total,
        length=size,
        penalty=strength,
        centres=len(centres),
        freedom=float(basis.leverage(shrink).sum()),
    )
    return FittedDecoder(centres, coefficients, trend, shape, summary, (z, x))


def _left_out(basis: _Basis, x: Tensor, penalty: float) -> Tensor:  # (n, c) -> (n, c)
    """Residuals of each sample by the smoother that has not seen it."""
    shrink = basis.eigenvalues / (basis.eigenvalues + penalty)
    return (x - basis.smooth(x, shrink)) / _one_minus(basis.leverage(shrink))[:, None]


def _one_minus(leverage: Tensor) -> Tensor:
    """``1 − h``, away from 0 where the smoother passes through a point."""
    return (1 - leverage).clamp(min=1e-9)


def _main_directions(x: Tensor) -> Tensor:  # (n, D) -> (n, c)
    """The data along their principal directions: their squared residuals are nearly all there."""
    if x.shape[1] <= _DIRECTIONS:
        return x
    if x.shape[1] > len(x):
        values, vectors = torch.linalg.eigh(x @ x.T)
        return vectors[:, -_DIRECTIONS:] * values[-_DIRECTIONS:].clamp(min=0).sqrt()
    _, vectors = torch.linalg.eigh(x.T @ x)
    return x @ vectors[:, -_DIRECTIONS:]


def _lengths(z: Tensor, centres: Tensor) -> list[float]:
    """From the distance between neighbouring centres to half the size of the plot."""
    between = torch.cdist(centres, centres).fill_diagonal_(torch.inf)
    low = max(float(between.min(1).values.median()), 1e-9)
    high = max(float((z - z.mean(0)).norm(dim=1).max()), 2 * low)
    step = math.log(high / low) / (_LENGTHS - 1)
    return [low * math.exp(k * step) for k in range(_LENGTHS)]
