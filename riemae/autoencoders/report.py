"""What the geometry of a trained autoencoder is like, in numbers and in advice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from riemae import scores
from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import (
    DecoderError,
    MissingExtraError,
    OptionError,
    ShapeError,
    SingularMetricError,
    SmoothnessWarning,
)
from riemae.manifold import Manifold

# Where a sentence begins. Each number is explained at the sentence's own test below.
_FAR = (
    2.0  # in distances to the k-th neighbour, and in root mean square differences of two residuals
)
_FOLDED = 0.05
_DEAD = 1e-3
_MISSED = 0.5
_SMOOTHED, _CORRELATED = 1e-3, 0.3
_DISTORTED = 3.0
_TORN = 0.95
_EXACT_UP_TO = 3  # latent dimensions; beyond, curvature is estimated
_CHUNK = 2**22  # numbers in second derivatives at a time
_CANDIDATES = 16  # nearest codes among which the nearest by the metric is looked for


@dataclass(frozen=True)
class Report:
    """Diagnostics of an encoder and the manifold of its decoder, on samples.

    Attributes:
        samples: How many samples were looked at.
        latent_dim: m.
        data_dim: D.
        reconstruction: Mean squared distance ``E |x − f(g(x))|²``, summed over the D numbers of a
            sample.
        unexplained: The same as a share of the data's total variance: 0 is perfect, 1 no better
            than the mean.
        residual_correlation: How alike the residuals of neighbours are, in [−1, 1]: Moran's I
            (Moran 1950) over pairs of neighbouring codes. Noise gives 0; a manifold too stiff to
            follow the data gives values near 1, for there all residuals of a region point to the
            same side.
        mcn: Mean condition number of the metric, ``E λ_max/λ_min``: 1 for a conformal chart.
        vor: ``E Σ log² λ_i(Ḡ⁻¹G)``: 0 where the metric is the same everywhere.
        extrinsic_curvature: Mean of ``Tr(G⁻¹C)``, in 1/length² of the data; NaN where the metric is
            singular.
        kinks: What makes the decoder piecewise linear, or None: then curvature means something.
        folded: Share of the samples whose nearest neighbour in latent space, measured by the metric
            there, is far in the data: farther than twice the distance to the k-th nearest samples
            of both, and than noise of the residuals' size explains (their squares add). A chart
            without folds has the nearest neighbour of a region among the first few, whatever its
            distortion, as the metric corrects that.
        dead: How many latent dimensions move the decoder's output by less than a thousandth of all
            its variance: eigenvalues of ``Cov(z)^½ Ḡ Cov(z)^½``, the variance along each principal
            direction of the manifold, which no linear change of coordinates alters.
        spread: These eigenvalues as shares, descending.
        trustworthiness: Whether neighbours in latent space are neighbours in the data (Venna &
            Kaski 2001), in [0, 1].
        continuity: Whether neighbours in the data are neighbours in latent space, in [0, 1].
        sentences: What is wrong, and what to try; empty when nothing is.
    """

    samples: int
    latent_dim: int
    data_dim: int
    reconstruction: float
    unexplained: float
    residual_correlation: float
    mcn: float
    vor: float
    extrinsic_curvature: float
    kinks: str | None
    folded: float
    dead: int
    spread: tuple[float, ...]
    trustworthiness: float
    continuity: float
    sentences: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rows = [
            (
                "reconstruction error",
                self.reconstruction,
                f"{self.unexplained:.2%} of the variance",
            ),
            (
                "residual correlation",
                self.residual_correlation,
                "0 is noise, 1 a manifold that is too stiff",
            ),
            ("MCN", self.mcn, "1 is conformal"),
            ("VoR", self.vor, "0 is the same metric everywhere"),
            (
                "extrinsic curvature",
                self.extrinsic_curvature,
                "unreliable: kinks" if self.kinks else "1/length²",
            ),
            ("folded neighbours", self.folded, "share of the samples"),
            ("dead dimensions", self.dead, f"of {self.latent_dim}"),
            ("trustworthiness", self.trustworthiness, "1 is best"),
            ("continuity", self.continuity, "1 is best"),
        ]
        table = [f"  {name:<22}{value:>10.4g}  {note}" for name, value, note in rows]
        head = f"Report({self.samples} samples, {self.data_dim} -> {self.latent_dim} dimensions)"
        return "\n".join([head, *table, *(f"- {sentence}" for sentence in self.sentences)])


def report(
    manifold: Manifold,
    encoder: Callable[[Tensor], Tensor] | None,
    x: Tensor,
    z: Tensor | None = None,
    k: int = 10,
    max_samples: int = 2000,
    seed: int = 0,
    *,
    condition: Conditions = None,
) -> Report:
    """Look at a trained autoencoder.

    Neighbours are looked for among all samples, under whatever conditions. Where the condition
    decides where in the data a code lies, as a class does, call once for each condition, with its
    samples.

    Args:
        manifold: The decoder, with its ambient metric.
        encoder: ``x (n, *shape) -> z (n, m)``, in eval mode; may be None when ``z`` is given, as it
            must be where the encoder takes conditions, too.
        x: Samples ``(n, *shape)``.
        z: Their codes ``(n, m)``, when they are known already.
        k: Neighbours that make up a neighbourhood.
        max_samples: Of more, so many are drawn.
        seed: Of that draw, and of the estimate of the curvature when m > 3.
        condition: What the decoder gets besides the codes, one for each sample, ``(n, *shape)``, or
            one for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.

    Raises:
        ShapeError: When samples, codes and conditions do not fit each other or the decoder.
        DTypeError: For a condition that is neither a tensor nor a tuple, list or dict of them.
        DeviceError: When a condition is on another device than the samples.
        OptionError: When there are too few samples for neighbourhoods of k, or neither encoder nor
            codes.
        MissingExtraError: When scikit-learn is not installed.
    """
    where = "report"
    if z is None and encoder is None:
        raise OptionError(
            where,
            "an encoder or codes z=",
            "neither",
            "Give the codes, z=encoder(x), or the encoder itself.",
        )
    if z is not None and len(z) != len(x):
        raise ShapeError(where, f"{len(x)} codes", f"{len(z)}", "One row a sample.")
    if k < 1 or max_samples < 2 * k + 2 or len(x) < 2 * k + 2:
        got = f"{len(x)} samples, max_samples={max_samples}"
        raise OptionError(
            where, f"k of at least 1 and {2 * k + 2} samples for k={k}", got, "Lower k."
        )
    generator = torch.Generator().manual_seed(seed)
    given = Condition.of(where, condition, torch.Size([len(x)]), x.device)
    if len(x) > max_samples:
        chosen = (
            torch.randperm(len(x), generator=generator)[:max_samples].sort().values.to(x.device)
        )
        x, z = x[chosen], None if z is None else z[chosen]
        given = None if given is None else given.select(chosen)
    with torch.no_grad():
        codes = encoder(x).detach() if z is None and encoder is not None else z
        assert codes is not None
        return _report(where, manifold, x.detach(), codes.detach(), given, k, generator)


def _report(
    where: str,
    M: Manifold,
    x: Tensor,
    z: Tensor,
    given: Condition | None,
    k: int,
    generator: torch.Generator,
) -> Report:
    decoded = _expected(M, z, given)
    flat = x.flatten(1).to(decoded)
    if decoded.shape != flat.shape or z.ndim != 2:
        got = f"codes {tuple(z.shape)} decoded to {tuple(decoded.shape)}"
        raise ShapeError(
            where,
            f"a decoder back to the data {tuple(flat.shape)}",
            got,
            "Is it the decoder of these data?",
        )
    residual = flat - decoded
    error = float(residual.square().sum(1).mean())
    variance = float(flat.var(0, unbiased=False).sum())
    g = M.metric(z, condition=given)
    spread = _spread(z, g)
    dead = sum(share < _DEAD for share in spread)
    near = _nearest_by_metric(z, g)
    trust, continuity = _ranks(where, flat, z, k)
    mcn, vor = _scores(M, z, given)
    found = Report(
        samples=len(x),
        latent_dim=z.shape[1],
        data_dim=flat.shape[1],
        reconstruction=error,
        unexplained=error / variance if variance else (0.0 if not error else math.inf),
        residual_correlation=_correlation(residual, near),
        mcn=mcn,
        vor=vor,
        extrinsic_curvature=_curvature(M, z, given, flat.shape[1], generator),
        kinks=M.kinks(z, condition=given),
        folded=_folded(flat, residual, near, k),
        dead=dead,
        spread=spread,
        trustworthiness=trust,
        continuity=continuity,
    )
    return replace(found, sentences=tuple(_sentences(found)))


# Measures.


def _expected(M: Manifold, z: Tensor, given: Condition | None) -> Tensor:  # (n, m) -> (n, D)
    """The data that codes stand for: decoded values, or the means of decoded distributions."""
    try:
        found = M.distribution(z, condition=given)
    except DecoderError:  # it returns tensors; whatever else is wrong shows again
        return M.decode(z, condition=given).flatten(1)
    heads = (
        list(found.values())
        if isinstance(found, dict)
        else found
        if isinstance(found, tuple)
        else [found]
    )
    return torch.cat([head.mean.flatten(1) for head in heads], 1)


def _nearest_by_metric(z: Tensor, g: Tensor) -> Tensor:  # (n, m), (n, m, m) -> (n,)
    """The nearest other sample of each by ``dzᵀ G dz`` with the mean metric of both ends.

    Candidates are the nearest codes once the mean metric is made the identity; ties go to the lower
    number, and the centre is left out by its number.
    """
    mean = (g.mean(0) + g.mean(0).mT) / 2
    values, vectors = torch.linalg.eigh(mean)
    root = vectors * values.clamp(min=0).sqrt()
    candidates = min(_CANDIDATES, len(z) - 1)
    found = []
    white = z @ root
    for rows in torch.arange(len(z), device=z.device).split(512):
        d = torch.cdist(white[rows], white, compute_mode="donot_use_mm_for_euclid_dist")
        d[torch.arange(len(rows), device=z.device), rows] = torch.inf
        other = d.topk(candidates, largest=False).indices  # (r, c)
        dz = z[other] - z[rows, None]
        size = torch.einsum("rci,rcij,rcj->rc", dz, (g[other] + g[rows, None]) / 2, dz)
        found.append(other.gather(1, size.argmin(1, keepdim=True))[:, 0])
    return torch.cat(found)


def _folded(flat: Tensor, residual: Tensor, near: Tensor, k: int) -> float:
    """Share of samples whose nearest one in latent space is far in the data.

    Duplicates are never far.

    Two residuals r of independent noise differ by 2 E|r|² in square; of that the median is taken,
    for where the encoder folds, the mean holds the fold itself.
    """
    radius = torch.cat(
        [
            torch.cdist(part, flat, compute_mode="donot_use_mm_for_euclid_dist")
            .kthvalue(k + 1)
            .values
            for part in flat.split(512)
        ]
    )
    square = (flat - flat[near]).square().sum(1)
    noise = 2 * residual.square().sum(1).median()
    near_by = _FAR**2 * (torch.maximum(radius, radius[near]).square() + noise)
    return float((square > near_by).double().mean())


def _correlation(residual: Tensor, near: Tensor) -> float:
    """Moran's I of the residuals, with every sample and its nearest one as the pairs.

    0 for residuals that vanish.
    """
    square = residual.square().sum(1)
    total = float((square + square[near]).sum()) / 2
    return float((residual * residual[near]).sum()) / total if total else 0.0


def _spread(z: Tensor, g: Tensor) -> tuple[float, ...]:
    """Shares of the decoded variance along the principal directions of the manifold, descending."""
    centred = z - z.mean(0)
    covariance = centred.mT @ centred / len(z)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    shares = torch.linalg.eigvalsh(root.mT @ g.mean(0) @ root).clamp(min=0).flip(0)
    total = shares.sum()
    return tuple((shares / total if total > 0 else torch.zeros_like(shares)).tolist())


def _scores(M: Manifold, z: Tensor, given: Condition | None) -> tuple[float, float]:
    """MCN and VoR; infinite where the metric is singular on average."""
    mcn = float(scores.condition_number(M, z, condition=given).mean())
    try:
        return mcn, float(scores.vor(M, z, condition=given))
    except SingularMetricError:
        return mcn, math.inf


def _curvature(
    M: Manifold, z: Tensor, given: Condition | None, d: int, generator: torch.Generator
) -> float:
    """Mean extrinsic curvature, exact for few dimensions; kinks are told apart from it."""
    m = z.shape[1]
    total = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmoothnessWarning)
        for rows in torch.arange(len(z), device=z.device).split(max(1, _CHUNK // (d * m * m))):
            options: dict[str, Any] = {"condition": None if given is None else given.select(rows)}
            if m > _EXACT_UP_TO:
                options |= {"estimator": "hutchinson", "samples": 4, "generator": generator}
            try:
                total += float(M.extrinsic_curvature(z[rows], **options).sum())
            except SingularMetricError:
                return math.nan
    return total / len(z)


def _ranks(where: str, flat: Tensor, z: Tensor, k: int) -> tuple[float, float]:
    """Trustworthiness, and continuity: the same with data and codes exchanged.

    Raises:
        MissingExtraError: When scikit-learn is not installed.
    """
    try:
        from sklearn.manifold import trustworthiness
    except ImportError as reason:
        raise MissingExtraError(
            where, "scikit-learn", "none", "Try: pip install 'riemae[neighbors]'"
        ) from reason
    data, codes = flat.cpu().numpy(), z.cpu().numpy()
    return float(trustworthiness(data, codes, n_neighbors=k)), float(
        trustworthiness(codes, data, n_neighbors=k)
    )


# Sentences.


def _sentences(r: Report) -> list[str]:
    out = []
    if r.kinks is not None:
        out.append(
            f"The decoder has {r.kinks}: it is piecewise linear, so curvature terms (MCAE) and "
            "second-order neighbourhoods (NRAE, order 2) have no gradient to act by. Use SiLU, "
            "GELU, Softplus or tanh."
        )
    if r.folded > _FOLDED:  # a fold that matters covers more than stray pairs do
        out.append(
            f"The encoder folds the data: for {r.folded:.0%} of the samples the nearest one "
            "in latent space is far in the data. No term on the decoder can unfold it. Start the "
            "encoder from a graph embedding (Neighborhood.embedding), try other seeds, or raise "
            "latent_dim."
        )
    if r.dead:
        out.append(
            f"{r.dead} of {r.latent_dim} latent dimensions are dead: they hardly move the "
            "decoder's output, and the metric is nearly singular. Lower latent_dim, or the weight "
            "of a prior or regulariser that shuts them off."
        )
    if r.unexplained > _MISSED:
        out.append(
            f"The reconstruction misses {r.unexplained:.0%} of the data's variance: the "
            "geometry is that of another surface. Train longer, with a larger network or learning "
            "rate, or scale the data to unit variance."
        )
    elif r.unexplained > _SMOOTHED and r.residual_correlation > _CORRELATED:
        # Residuals of noise do not correlate; those of a network that fits to a thousandth may, and
        # nobody minds.
        out.append(
            "The manifold is smoother than the data: residuals of neighbours point the same way "
            f"(correlation {r.residual_correlation:.2f}). Lower the weight of the regulariser, or "
            "train longer."
        )
    if r.mcn > _DISTORTED and not r.dead:
        out.append(
            "The latent space is distorted: one direction is stretched "
            f"{math.sqrt(r.mcn):.1f} times as much as another. Add relaxed_distortion (IRAE) "
            "or raise its weight; it combines with the other terms."
        )
    if r.continuity < _TORN:
        out.append(
            f"Neighbours in the data are torn apart in latent space (continuity "
            f"{r.continuity:.2f}). A closed surface must be cut somewhere unless latent_dim is "
            "raised; of an open one try another start or NRAE."
        )
    return out
