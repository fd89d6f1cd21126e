"""What the geometry of a trained autoencoder is like, in numbers and in advice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.autoencoders.diagnostics import (
    conditioning,
    expected_data,
    folded_share,
    mean_curvature,
    nearest_by_metric,
    overlap_share,
    plane_residual,
    rank_agreement,
    residual_correlation,
    variance_shares,
)
from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.html import table

_DEAD = 1e-3  # share of the decoded variance below which a latent dimension is dead
# Values from which a sentence of the report is written.
_FOLDED = 0.05  # of the samples: a fold that matters covers more than stray pairs do
_OVERLAPPING = 0.2  # of the samples
_MISSED = 0.5  # of the variance
# Residuals of noise are not correlated. Those of a network that leaves less than a thousandth of
# the variance may be, which does no harm.
_SMOOTHED = 1e-3  # of the variance
_CORRELATED = 0.3
_DISTORTED = 3.0  # MCN
_TORN = 0.95  # continuity


@dataclass(frozen=True)
class Report:
    """Diagnostics of an encoder and the manifold of its decoder, on samples.

    Attributes:
        samples: How many samples were examined.
        latent_dim: m.
        data_dim: D.
        reconstruction: Mean squared distance ``E |x − f(g(x))|²``, summed over the D numbers of a
            sample.
        unexplained: The same as a share of the data's total variance: 0 is perfect, and 1 is no
            better than the mean.
        residual_correlation: How alike the residuals of neighbours are, in [−1, 1]: Moran's I
            (Moran 1950) over pairs of neighbouring codes. Noise gives 0. A manifold that is too
            stiff to follow the data gives values near 1, because all residuals of a region point to
            the same side.
        mcn: Mean condition number of the metric, ``E λ_max/λ_min``: 1 for a conformal chart.
        vor: ``E Σ log² λ_i(Ḡ⁻¹G)``: 0 where the metric is the same everywhere.
        extrinsic_curvature: Mean of ``Tr(G⁻¹C)``, in 1/length² of the data; NaN where the metric is
            singular.
        kinks: What makes the decoder piecewise linear, or None. Curvature is only meaningful
            without kinks.
        folded: Share of the samples whose nearest neighbour in latent space, by the metric, is far
            in the data. Far means more than twice ``√(r² + n)``, where r is the larger one of the
            two samples' distances to their k-th neighbours in the data, and n the squared distance
            that noise of the residuals' size explains. Without folds the nearest neighbour in
            latent space is near in the data as well. Distortion does not matter, because the metric
            corrects it.
        overlap: Share of the samples whose nearest code belongs to a sample that is not among their
            nearest tenth in the data, whatever the reconstruction leaves: what a plot lays on top
            of each other. A plane through data of many dimensions overlaps, though nothing is
            folded. NaN for fewer than 20 samples, and in reports of earlier versions.
        dead: How many latent dimensions carry less than a thousandth of the decoded variance. The
            variances are the eigenvalues of ``Cov(z)^½ Ḡ Cov(z)^½``, one for each principal
            direction of the manifold; no linear change of coordinates alters them.
        spread: These variances as shares of their sum, descending.
        trustworthiness: Whether neighbours in latent space are neighbours in the data (Venna &
            Kaski 2001), in [0, 1].
        continuity: Whether neighbours in the data are neighbours in latent space, in [0, 1].
        plane: The unexplained share of the variance for the plane of m dimensions that fits these
            samples best (PCA); NaN in reports of earlier versions.
        sentences: What is wrong, and what to try; empty when nothing is wrong.
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
    plane: float = math.nan
    overlap: float = math.nan
    sentences: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, float, str]]:
        """The numbers with their names and how to read them."""
        return [
            (
                "reconstruction error",
                self.reconstruction,
                f"{self.unexplained:.2%} of the variance; a plane {self.plane:.2%}",
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
            ("overlapping codes", self.overlap, "share of the samples"),
            ("dead dimensions", self.dead, f"of {self.latent_dim}"),
            ("trustworthiness", self.trustworthiness, "1 is best"),
            ("continuity", self.continuity, "1 is best"),
        ]

    def __repr__(self) -> str:
        lines = [f"  {name:<22}{value:>10.4g}  {note}" for name, value, note in self.rows()]
        return "\n".join([self._head(), *lines, *(f"- {text}" for text in self.sentences)])

    def _repr_html_(self) -> str:
        """The numbers as a table, with the sentences below, for notebooks."""
        rows = [(name, f"{value:.4g}", note) for name, value, note in self.rows()]
        notes = self.sentences or ("Nothing to complain about.",)
        return table(self._head(), rows, ("", "value", "how to read it"), notes)

    def _head(self) -> str:
        return f"Report({self.samples} samples, {self.data_dim} -> {self.latent_dim} dimensions)"


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
    """Examine a trained autoencoder.

    The neighbours of a sample are looked for among all samples, whatever their conditions. Where
    the condition decides where in the data a code lies, as a class does, call this once for each
    condition, with its samples.

    Args:
        manifold: The decoder, with its ambient metric.
        encoder: ``x (n, *shape) -> z (n, m)``, in eval mode; or None when ``z`` is given. An
            encoder that takes conditions as well cannot be used: give ``z``.
        x: Samples ``(n, *shape)``.
        z: Their codes ``(n, m)``, when they are known already.
        k: Neighbours that make up a neighbourhood.
        max_samples: Of more samples than this, so many are drawn.
        seed: Of that draw, and of the estimate of the curvature when m > 3.
        condition: What the decoder gets in addition to the codes, one for each sample,
            ``(n, *shape)``, or one for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.

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
        raise ShapeError(where, f"{len(x)} codes", f"{len(z)}", "Give one row per sample.")
    if k < 1 or max_samples < 2 * k + 2 or len(x) < 2 * k + 2:
        expected = f"k of at least 1 and {2 * k + 2} samples for k={k}"
        got = f"{len(x)} samples, max_samples={max_samples}"
        raise OptionError(where, expected, got, "Lower k.")
    generator = torch.Generator().manual_seed(seed)
    given = Condition.of(where, condition, torch.Size([len(x)]), x.device)
    if len(x) > max_samples:
        drawn = torch.randperm(len(x), generator=generator)[:max_samples]
        chosen = drawn.sort().values.to(x.device)
        x = x[chosen]
        z = None if z is None else z[chosen]
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
    decoded = expected_data(M, z, given)
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
    unexplained = error / variance if variance else (math.inf if error else 0.0)
    g = M.metric(z, condition=given)
    spread = variance_shares(z, g)
    dead = sum(share < _DEAD for share in spread)
    near = nearest_by_metric(z, g)
    trust, continuity = rank_agreement(where, flat, z, k)
    mcn, vor = conditioning(M, z, given)
    found = Report(
        samples=len(x),
        latent_dim=z.shape[1],
        data_dim=flat.shape[1],
        reconstruction=error,
        unexplained=unexplained,
        residual_correlation=residual_correlation(residual, near),
        mcn=mcn,
        vor=vor,
        extrinsic_curvature=mean_curvature(M, z, given, flat.shape[1], generator),
        kinks=M.kinks(z, condition=given),
        folded=folded_share(flat, residual, near, k),
        dead=dead,
        spread=spread,
        trustworthiness=trust,
        continuity=continuity,
        plane=plane_residual(flat, z.shape[1]),
        overlap=overlap_share(z, flat),
    )
    return replace(found, sentences=tuple(_sentences(found)))


def _sentences(r: Report) -> list[str]:
    out = []
    if r.kinks is not None:
        out.append(
            f"The decoder has {r.kinks}: it is piecewise linear, so curvature terms (MCAE) and "
            "second-order neighbourhoods (NRAE, order 2) have no gradient to act by. Use SiLU, "
            "GELU, Softplus or tanh."
        )
    if r.folded > _FOLDED:
        out.append(
            f"The encoder folds the data: for {r.folded:.0%} of the samples the nearest one "
            "in latent space is far in the data. No term on the decoder can unfold it. Start the "
            "encoder from a graph embedding (Neighborhood.embedding), try other seeds, or raise "
            "latent_dim."
        )
    elif r.overlap > _OVERLAPPING:
        out.append(
            f"Different data share places in latent space: for {r.overlap:.0%} of the samples the "
            "nearest code belongs to one that is far in the data. Raise latent_dim, or read no "
            "neighbourhoods off a plot of the codes."
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
