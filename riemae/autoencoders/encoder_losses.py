"""Losses that see the encoder, the codes, or an absolute scale, each as one number.

======================  ========================================  =========  =======================
loss                    what it is                                units      0 exactly for
======================  ========================================  =========  =======================
encoder_isometry        ``m² E Tr K²/(E Tr K)² − m``, or          none       encoders whose K is one
                        ``E‖K/c² − 1‖²/m``, ``K = J_g J_gᵀ``                 multiple of 1
jacobian_matching       ``E‖J_g J_f − 1‖²/m``                     none       encoders that undo the
                                                                             decoder
bi_lipschitz            ``E Σ relu(|log σ_i/c| − log κ)²``        none       decoders that stretch
                                                                             by c/κ to c κ
absolute_isometry       ``E‖G/c² − 1‖²/m``, c given or learned    none       isometries, up to c
topology                lengths of spanning trees, compared       none       equal trees, up to a
                                                                             scale
temporal_straightening  ``1 − cos`` of successive steps           none       straight sequences
======================  ========================================  =========  =======================

Here ``J_f`` and ``J_g`` are the Jacobians of decoder and encoder, G the metric, and σ_i the
singular values of ``J_f`` under the ambient metric. The encoder's Jacobian is taken in the
Euclidean data space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from riemae.autoencoders.weighting import weighted_mean
from riemae.exceptions import OptionError, ShapeError
from riemae.geometry.distortion import relative_metric
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range
from riemae.numerics.random import signs

Encoder = Callable[[Tensor], Tensor]
_EXACT = 3  # latent dimensions up to which "auto" forms the whole Jacobian of the encoder


def encoder_isometry(
    encoder: Encoder,
    x: Tensor,
    *,
    scale: float | None = None,
    probes: int | Literal["auto"] | None = "auto",
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, *shape) -> ()
    """How far the encoder is from a projection along the normals, up to one scale.

    The second half of the loss of I-AE (Gropp et al. 2020). The decoder's isometry says nothing on
    how the encoder treats data off the manifold. Where ``K = J_g J_gᵀ`` is a multiple of the
    identity and the encoder undoes the decoder, it is the pseudo-inverse of an isometric decoder.
    Cost: m reverse products of the encoder, or one for each probe.

    Args:
        encoder: ``(k, *shape) -> (k, m)``.
        x: Data.
        scale: c, the rate at which codes change with data, for the absolute form
            ``E‖K/c² − 1‖²/m``; None allows any one rate.
        probes: Random signs per point; None is exact. ``"auto"`` is exact up to m = 3, and one
            probe for larger m.
        weights: Of the points ``(k,)``.
        generator: Source of the probes.

    Raises:
        OptionError: For fewer than one probe, or a scale that is not positive.
    """
    where = "encoder_isometry"
    if scale is not None:
        expect_range(where, "scale", scale, 0, above=True, hint="Use None for any scale.")
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        z = encoder(point)
        m = z.shape[-1]
        count = _probes(where, probes, m)
        covectors = _covectors(z, count, generator)
        rows = [_pulled(z, point, w) for w in covectors]
    if not differentiable:
        rows = [row.detach() for row in rows]
    if count is None:
        j = torch.stack([row.flatten(1) for row in rows], 1)  # (k, m, D)
        k = j @ j.mT
        trace = k.diagonal(dim1=-2, dim2=-1).sum(-1)
        square = k.square().sum((-1, -2))
    else:
        # For random signs w, E wᵀKw = Tr K, and E (Kw)ᵀ(Kw) = Tr K². K w = J_g (J_gᵀ w).
        traces = []
        squares = []
        for row in rows:
            pushed = _jvp(encoder, x, row)
            squares.append(pushed.square().sum(-1))
            traces.append(row.flatten(1).square().sum(-1))
        trace = torch.stack(traces).mean(0)
        square = torch.stack(squares).mean(0)
    if scale is None:
        mean = weighted_mean(trace, weights)
        return m * m * weighted_mean(square, weights) / mean.square() - m
    error = square / scale**4 - 2 * trace / scale**2 + m
    return weighted_mean(error, weights) / m


def jacobian_matching(
    manifold: Manifold,
    z: Tensor,
    encoder: Encoder,
    *,
    probes: int | Literal["auto"] | None = "auto",
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # (k, m) -> ()
    """Whether the encoder undoes the decoder to first order: ``E‖J_g J_f − 1‖²_F/m``.

    A reconstruction compares values; this compares directions, at the decoded codes. Cost: m
    forward products of decoder and encoder, or one of each for every probe.

    Args:
        manifold: Of the decoder.
        z: Codes.
        encoder: ``(k, *shape) -> (k, m)``.
        probes: Random signs per point; None is exact; ``"auto"`` as in :func:`encoder_isometry`.
        weights: Of the points ``(k,)``.
        generator: Source of the probes.

    Raises:
        OptionError: For fewer than one probe.
    """
    m = z.shape[-1]
    count = _probes("jacobian_matching", probes, m)
    x = manifold.decode(z)
    error = z.new_zeros(len(z))
    directions = _covectors(z, count, generator)
    for v in directions:
        pushed = manifold.pushforward(z, v).reshape(x.shape)
        error = error + (_jvp(encoder, x, pushed) - v).square().sum(-1)
    draws = 1 if count is None else count
    return weighted_mean(error, weights) / (draws * m)


def bi_lipschitz(
    manifold: Manifold,
    z: Tensor,
    *,
    bound: float = 1.5,
    weights: Tensor | None = None,
) -> Tensor:  # (k, m) -> ()
    """How far the decoder's stretching leaves ``[c/κ, c κ]``: ``E Σ relu(|log σ_i/c| − log κ)²``.

    The relaxation of isometry in BLAE (Zhan et al. 2026), free of the scale: c is the geometric
    mean of the singular values σ_i. With κ = 1 it is the squared logarithmic distance from scaled
    isometries. Cost: m forward products.

    Args:
        manifold: Of the decoder.
        z: Codes.
        bound: κ, at least 1.
        weights: Of the points ``(k,)``.

    Raises:
        OptionError: For a bound below 1.
    """
    expect_range("bi_lipschitz", "bound", bound, 1, hint="1 asks for a scaled isometry.")
    smallest = torch.finfo(z.dtype).tiny
    if manifold.latent is None or manifold.latent.metric is None:
        eigenvalues = manifold.eigenvalues(z)
    else:
        eigenvalues = torch.linalg.eigvalsh(_relative("bi_lipschitz", manifold, z))
    log_sigma = eigenvalues.clamp(min=smallest).log() / 2
    center = weighted_mean(log_sigma.mean(-1), weights)
    excess = ((log_sigma - center).abs() - math.log(bound)).relu()
    return weighted_mean(excess.square().sum(-1), weights)


def topology(z: Tensor, x: Tensor) -> Tensor:  # (k, m), (k, *shape) -> ()
    """Whether data and codes have the same minimum spanning trees (Moor et al. 2020).

    The edges of a minimum spanning tree are the scales at which components merge, which is the
    0-dimensional persistent homology. Distances are divided by the root mean square over all pairs,
    so scales do not matter. The value is the mean squared difference of the lengths of these edges
    in data and codes, over both trees. Cost: k² distances, and two trees on the CPU, whose edges
    have no gradient, as their lengths have.

    Args:
        z: Codes.
        x: Data.

    Raises:
        ShapeError: For fewer than 2 samples.
    """
    if len(z) < 2 or len(x) != len(z):
        got = f"{len(x)} samples and {len(z)} codes"
        raise ShapeError("topology", "2 samples or more, and their codes", got, "Raise batch_size.")
    in_data = _distances(x.flatten(1))
    in_codes = _distances(z)
    edges = np.concatenate([_spanning_tree(in_data), _spanning_tree(in_codes)])
    first, second = torch.as_tensor(edges, device=z.device).T
    return (in_data[first, second] - in_codes[first, second]).square().mean()


class AbsoluteIsometry(nn.Module):
    """``E‖G/c² − 1‖²_F/m``: the same scale everywhere, given or learned (Chen et al. 2020).

    The flat manifold VAE and FlatVI (Palma et al. 2025) learn c with the networks. FlatVI takes the
    Fisher-Rao metric of counts: use ``ambient="fisher"``. Cost: m forward products.

    Args:
        scale: c, units of data per unit of codes; None learns it, from the extent of the data.
    """

    unit: Tensor

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        if scale is not None:
            expect_range("absolute_isometry", "scale", scale, 0, above=True, hint="Try scale=1.")
        self.scale = scale
        self.register_buffer("unit", torch.tensor(math.nan))
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=scale is None)

    def fitted(self, data: Tensor, extent: Tensor | None = None) -> AbsoluteIsometry:
        """Set where the learned scale starts: codes of unit size that fill the data.

        Args:
            data: ``(n, *shape)``.
            extent: Their mean squared distance from the mean under the ambient metric; by default
                the Euclidean one.
        """
        if bool(self.unit.isnan()):
            if extent is None:
                extent = (data - data.mean(0)).flatten(1).square().sum(1).mean()
            start = extent.sqrt() if self.scale is None else self.scale
            self.to(data)
            self.unit.fill_(float(start))
        return self

    def forward(
        self, manifold: Manifold, z: Tensor, weights: Tensor | None = None
    ) -> Tensor:  # (k, m) -> ()
        """The value at codes."""
        c = self.unit * self.log_scale.exp() if self.scale is None else self.scale
        m = z.shape[-1]
        g = _relative("absolute_isometry", manifold, z) / c**2
        error = g - torch.eye(m).to(g)
        return weighted_mean(error.square().sum((-1, -2)), weights) / m


class TemporalStraightening:
    """How much the codes of a sequence turn: the mean of ``1 − cos`` of successive steps.

    Hénaff et al. (2019): what is predictable moves on straight lines. The samples are in the order
    of time. It is 0 for straight lines, whatever the speed, and 1 for random steps. Cost: two more
    passes of the encoder.

    Args:
        sequences: ``(n,)``, the sequence of each sample, when there are several; the first and the
            last sample of each have no turn.
    """

    def __init__(self, sequences: Any = None) -> None:
        self.sequences = sequences
        self.x: Tensor | None = None
        self.inner: Tensor | None = None

    def fitted(self, data: Tensor) -> TemporalStraightening:
        """The same with the data, of which it takes the samples before and after.

        Raises:
            ShapeError: For numbers of sequences that do not fit the data.
            OptionError: When no sequence has three samples.
        """
        n = len(data)
        own = torch.zeros(n) if self.sequences is None else torch.as_tensor(self.sequences)
        if own.shape != (n,):
            got = str(tuple(own.shape))
            hint = "Give the sequence of each sample."
            raise ShapeError("temporal_straightening", f"sequences ({n},)", got, hint)
        inner = torch.zeros(n, dtype=torch.bool)
        inner[1:-1] = (own[:-2] == own[1:-1]) & (own[1:-1] == own[2:])
        if not bool(inner.any()):
            expected = "a sequence of 3 samples or more"
            raise OptionError("temporal_straightening", expected, f"{n} samples", "Add samples.")
        made = TemporalStraightening(self.sequences)
        made.x = data
        made.inner = inner.to(data.device)
        return made

    def __call__(self, encoder: Encoder, index: Tensor) -> Tensor:  # (k,) -> ()
        """The value at the samples with these numbers.

        Raises:
            OptionError: Before ``fitted``.
        """
        if self.x is None or self.inner is None:
            raise OptionError("temporal_straightening", "data", "none", "Call fitted(x) first.")
        middle = index[self.inner[index]]
        if not len(middle):
            return (encoder(self.x[index]) * 0).sum()
        codes = encoder(torch.cat([self.x[middle - 1], self.x[middle], self.x[middle + 1]]))
        before, now, after = codes.chunk(3)
        cosine = torch.nn.functional.cosine_similarity(now - before, after - now, dim=-1, eps=1e-12)
        return (1 - cosine).mean()


def _relative(where: str, manifold: Manifold, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """The metric relative to that of the latent space, where it has one."""
    latent = None if manifold.latent is None else manifold.latent.metric
    return relative_metric(where, manifold.metric(z), z, latent)


def _probes(where: str, probes: int | Literal["auto"] | None, m: int) -> int | None:
    if probes == "auto":
        return None if m <= _EXACT else 1
    if probes is not None:
        hint = "Use None for the exact value."
        expect_range(where, "probes", probes, 1, integer=True, hint=hint)
    return probes


def _covectors(z: Tensor, probes: int | None, generator: torch.Generator | None) -> list[Tensor]:
    """The basis, or random signs."""
    if probes is None:
        return [e.expand_as(z) for e in torch.eye(z.shape[-1]).to(z)]
    return [signs(z, generator) for _ in range(probes)]


def _pulled(z: Tensor, x: Tensor, w: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
    (found,) = torch.autograd.grad(z, x, w, create_graph=True, retain_graph=True)
    return found


def _jvp(encoder: Encoder, x: Tensor, v: Tensor) -> Tensor:  # (k, *shape) -> (k, m)
    found: Tensor = torch.func.jvp(encoder, (x,), (v,))[1]
    return found


def _distances(y: Tensor) -> Tensor:  # (k, d) -> (k, k)
    """Distances in units of their root mean square; with a gradient also for equal rows."""
    square = (y[:, None] - y[None]).square().sum(-1)
    mean = square.mean()
    tiny = torch.finfo(y.dtype).eps ** 2
    return (square / mean + tiny).sqrt() - tiny**0.5


def _spanning_tree(distances: Tensor) -> np.ndarray:  # (k, k) -> (k − 1, 2)
    from scipy.sparse.csgraph import minimum_spanning_tree

    # Zeros would be missing edges for scipy.
    dense = distances.detach().double().cpu().numpy() + 1e-12
    np.fill_diagonal(dense, 0)
    return np.argwhere(minimum_spanning_tree(dense).toarray() > 0)
