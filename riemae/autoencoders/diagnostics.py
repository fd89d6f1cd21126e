"""What a report measures on the samples of a trained autoencoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae import scores
from riemae.differential.conditions import Condition
from riemae.exceptions import (
    DecoderError,
    MissingExtraError,
    SingularMetricError,
    SmoothnessWarning,
)
from riemae.manifold import Manifold

_FAR = 2.0  # in distances to the k-th neighbour, and in root mean square differences of residuals
_EXACT_UP_TO = 3  # latent dimensions; for more, the curvature is estimated
_CHUNK = 2**22  # numbers in second derivatives at a time
_CANDIDATES = 16  # nearest codes among which the nearest by the metric is looked for
_ENOUGH = 20  # samples whose neighbourhoods say something
_TENTH = 0.1  # of the other samples are near
_ROWS = 512  # of a matrix of distances at a time
_EXACTLY = "donot_use_mm_for_euclid_dist"  # distances without the rounding of a matrix product


def expected_data(M: Manifold, z: Tensor, given: Condition | None) -> Tensor:  # (n, m) -> (n, D)
    """The data that codes stand for: decoded values, or the means of decoded distributions."""
    try:
        found = M.distribution(z, condition=given)
    except DecoderError:
        # The decoder returns tensors. If anything else is wrong, decode raises again.
        return M.decode(z, condition=given).flatten(1)
    if isinstance(found, dict):
        heads = list(found.values())
    elif isinstance(found, tuple):
        heads = list(found)
    else:
        heads = [found]
    means = [head.mean.flatten(1) for head in heads]
    return torch.cat(means, 1)


def nearest_by_metric(z: Tensor, g: Tensor) -> Tensor:  # (n, m), (n, m, m) -> (n,)
    """The nearest other sample of each sample, by ``dzᵀ G dz``.

    G is the mean of the metrics at both ends. It is computed for a few candidates, which are the
    nearest codes in coordinates where the mean metric of all samples is the identity. Of equally
    near samples, the one with the lower number is taken.
    """
    mean = (g.mean(0) + g.mean(0).mT) / 2
    values, vectors = torch.linalg.eigh(mean)
    root = vectors * values.clamp(min=0).sqrt()
    candidates = min(_CANDIDATES, len(z) - 1)
    found = []
    white = z @ root
    for rows in torch.arange(len(z), device=z.device).split(_ROWS):
        d = torch.cdist(white[rows], white, compute_mode=_EXACTLY)
        d[torch.arange(len(rows), device=z.device), rows] = torch.inf
        other = d.topk(candidates, largest=False).indices  # (r, c)
        dz = z[other] - z[rows, None]
        between = (g[other] + g[rows, None]) / 2
        size = torch.einsum("rci,rcij,rcj->rc", dz, between, dz)
        nearest = size.argmin(1, keepdim=True)
        found.append(other.gather(1, nearest)[:, 0])
    return torch.cat(found)


def folded_share(flat: Tensor, residual: Tensor, near: Tensor, k: int) -> float:
    """Share of the samples whose nearest sample in latent space is far from them in the data.

    A distance is far when its square exceeds ``4 (r² + n)``. Here r is the larger one of the two
    samples' distances to their k-th neighbours, so duplicates are never far. And n is the squared
    difference of two residuals of independent noise, ``2 E|residual|²``. The expectation is
    estimated by the median, because a fold of the encoder would enter the mean. Where more than
    half of the samples are folded, the median contains the fold as well, and explains it: see
    :func:`overlap_share`.

    Args:
        flat: Data ``(n, D)``.
        residual: Data minus reconstructions ``(n, D)``.
        near: The nearest sample of each in latent space, ``(n,)``.
        k: Neighbours that make up a neighbourhood.
    """
    radii = []
    for part in flat.split(_ROWS):
        d = torch.cdist(part, flat, compute_mode=_EXACTLY)
        radii.append(d.kthvalue(k + 1).values)  # each sample is at distance 0 of itself
    radius = torch.cat(radii)
    square = (flat - flat[near]).square().sum(1)
    noise = 2 * residual.square().sum(1).median()
    larger = torch.maximum(radius, radius[near])
    limit = _FAR**2 * (larger.square() + noise)
    return float((square > limit).double().mean())


def overlap_share(
    z: Tensor, flat: Tensor, between: Callable[[Tensor, Tensor], Tensor] = torch.cdist
) -> float:  # (n, m), (n, D) -> float
    """Share of the codes whose nearest other code is not among their nearest tenth in the data.

    Of several codes at the same place, the nearest in the data is taken. Unlike
    :func:`folded_share` it allows nothing for the residuals: a projection that lays different data
    on top of each other overlaps, though it is no fold. NaN for fewer than 20 codes.

    Args:
        z: Codes.
        flat: Data.
        between: Distances of codes ``(k, m), (n, m) -> (k, n)``.
    """
    n = len(z)
    if n < _ENOUGH:
        return math.nan
    far = 0
    for rows in torch.arange(n, device=z.device).split(_ROWS):
        itself = torch.arange(len(rows), device=z.device), rows
        of_codes = between(z[rows], z)
        of_data = torch.cdist(flat[rows], flat)
        of_codes[itself] = of_data[itself] = torch.inf
        nearest = of_codes == of_codes.min(1, keepdim=True).values
        own = torch.where(nearest, of_data, torch.inf).min(1, keepdim=True).values
        rank = (of_data < own).sum(1)
        far += int((rank >= _TENTH * (n - 1)).sum())
    return far / n


def plane_residual(flat: Tensor, m: int) -> float:  # (n, D) -> float
    """Share of the variance that the best plane of m dimensions leaves, by PCA.

    Args:
        flat: Data ``(n, D)``.
        m: Dimensions of the plane.
    """
    away = (flat - flat.mean(0)).double()
    # The smaller of the two matrices with the same eigenvalues other than 0.
    wide = away.shape[1] > len(away)
    variances = torch.linalg.eigvalsh(away @ away.mT if wide else away.mT @ away)
    total = float(variances.sum())
    if not total > 0:
        return 0.0
    kept = float(variances[-m:].sum())
    return max(0.0, 1 - kept / total)


def residual_correlation(residual: Tensor, near: Tensor) -> float:
    """Moran's I of the residuals, over pairs of a sample and its nearest one; 0 without residuals.

    Args:
        residual: Data minus reconstructions ``(n, D)``.
        near: The nearest sample of each in latent space, ``(n,)``.
    """
    square = residual.square().sum(1)
    total = float((square + square[near]).sum()) / 2
    if not total:
        return 0.0
    covariance = float((residual * residual[near]).sum())
    return covariance / total


def variance_shares(z: Tensor, g: Tensor) -> tuple[float, ...]:  # (n, m), (n, m, m) -> (m,)
    """Shares of the decoded variance along the principal directions of the manifold, descending."""
    centred = z - z.mean(0)
    covariance = centred.mT @ centred / len(z)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    decoded = root.mT @ g.mean(0) @ root
    variances = torch.linalg.eigvalsh(decoded).clamp(min=0).flip(0)
    total = variances.sum()
    shares = variances / total if total > 0 else torch.zeros_like(variances)
    return tuple(shares.tolist())


def conditioning(M: Manifold, z: Tensor, given: Condition | None) -> tuple[float, float]:
    """MCN and VoR; VoR is infinite where the mean metric is singular."""
    mcn = float(scores.condition_number(M, z, condition=given).mean())
    try:
        return mcn, float(scores.vor(M, z, condition=given))
    except SingularMetricError:
        return mcn, math.inf


def mean_curvature(
    M: Manifold, z: Tensor, given: Condition | None, d: int, generator: torch.Generator
) -> float:
    """Mean extrinsic curvature, exact for few dimensions; NaN where the metric is singular.

    Args:
        M: The decoder's manifold.
        z: Codes ``(n, m)``.
        given: Conditions of the codes, or None.
        d: Dimension of the data.
        generator: Source of the estimate's randomness.
    """
    m = z.shape[1]
    total = 0.0
    samples_at_a_time = max(1, _CHUNK // (d * m * m))
    with warnings.catch_warnings():
        # Kinks have an entry of their own in the report.
        warnings.simplefilter("ignore", SmoothnessWarning)
        for rows in torch.arange(len(z), device=z.device).split(samples_at_a_time):
            options: dict[str, Any] = {"condition": None if given is None else given.select(rows)}
            if m > _EXACT_UP_TO:
                options |= {"estimator": "hutchinson", "samples": 4, "generator": generator}
            try:
                total += float(M.extrinsic_curvature(z[rows], **options).sum())
            except SingularMetricError:
                return math.nan
    return total / len(z)


def rank_agreement(where: str, flat: Tensor, z: Tensor, k: int) -> tuple[float, float]:
    """Trustworthiness, and continuity, which is the same with data and codes exchanged.

    Args:
        where: The call that asks, for the error.
        flat: Data ``(n, D)``.
        z: Codes ``(n, m)``.
        k: Neighbours that make up a neighbourhood.

    Raises:
        MissingExtraError: When scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import trustworthiness
    except ImportError as reason:
        raise MissingExtraError(
            where, "scikit-learn", "none", "Try: pip install 'riemae[neighbors]'"
        ) from reason
    data = flat.cpu().numpy()
    codes = z.cpu().numpy()
    trust = trustworthiness(data, codes, n_neighbors=k)
    continuity = trustworthiness(codes, data, n_neighbors=k)
    return float(trust), float(continuity)
