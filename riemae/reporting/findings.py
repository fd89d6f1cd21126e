"""Numbers with a sentence each: what they mean, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riemae.reporting.embedding import Fit
from riemae.reporting.measures import Fidelity, Local, Pairs, ranks_agree
from riemae.solvers import Status

Level = Literal["good", "fair", "poor", "note"]

_HIGH, _MIDDLE = 0.95, 0.8  # rank correlations
_EVEN, _UNEVEN = 1.5, 3.0  # ratios of lengths
_ROUND, _SQUASHED = 2.0, 10.0  # condition numbers
_CONVERGED = 0.98  # share of the pairs
_OVERLAP, _TORN = 0.05, 0.2  # share of the codes
_EXPLAINED, _PARTLY = 0.8, 0.4  # share of the variance
_BENT, _STRONGLY = 1.0, 10.0  # |K| · distance²
_DETOUR, _FAR_DETOUR = 1.05, 1.3  # straight line / geodesic


@dataclass(frozen=True)
class Finding:
    """A number about a latent space, in words.

    Attributes:
        key: Its name in :attr:`Report.numbers`.
        title: What it is.
        value: The number; NaN where it could not be measured.
        text: The number with its unit, as people read it.
        meaning: What the number says.
        advice: What to do; empty when nothing needs to be done.
        level: Whether it is ``"good"``, ``"fair"`` or ``"poor"`` news, or a mere ``"note"``.
    """

    key: str
    title: str
    value: float
    text: str
    meaning: str
    advice: str
    level: Level


def verdict(found: list[Finding]) -> tuple[Level, str]:
    """Whether distances in the plot are meaningful, in one sentence."""
    by_key = {finding.key: finding for finding in found}
    ranks = by_key["spearman"].value
    spread = by_key["stretch_spread"].value
    if by_key["converged"].value < 0.5 or math.isnan(ranks) or math.isnan(spread):
        return "note", (
            "Too little could be measured to say: that takes several pairs of points whose "
            "geodesics are solved. Below is what could be measured."
        )
    share = _explained(by_key)
    if share <= 0:
        return "poor", (
            "No: the plot explains nothing of the data. Distances in it are between decoded points "
            "that have little to do with the data."
        )
    worst = by_key.get("overlap")
    overlaps = worst is not None and worst.value > _TORN
    if ranks >= _HIGH and spread <= _EVEN and not overlaps:
        return _even(share, spread)
    if ranks >= _MIDDLE and not overlaps:
        return "fair", (
            "Roughly: near and far can be told apart "
            f"(rank correlation {ranks:.2f}), but the same distance in the plot means up to "
            f"{spread:.1f} times as much in one place as in another."
        )
    if overlaps:
        return "poor", (
            "No: the plot lays different data on top of each other, so points that look close may "
            "be far apart."
        )
    return "poor", (
        "No: distances in the plot do not even rank the distances in the data "
        f"(rank correlation {ranks:.2f}; the scale varies {spread:.1f}-fold). Use geodesic "
        "distances in place of what the eye measures."
    )


def _explained(by_key: dict[str, Finding]) -> float:
    """The share of the data that the plot explains; 1 where it is not known."""
    known = [by_key[key].value for key in ("explained", "loo_r2") if key in by_key]
    return known[0] if known and not math.isnan(known[0]) else 1.0


def _even(share: float, spread: float) -> tuple[Level, str]:
    """The verdict on a plot whose scale is even, which is one on the part that it shows."""
    proportional = f"to within a factor of {spread:.1f}"
    if share >= _EXPLAINED:
        return "good", (
            "Yes: distances that one reads off the plot are proportional to distances in the data, "
            f"{proportional}."
        )
    return "fair" if share >= _PARTLY else "poor", (
        f"Only for the {100 * share:.0f} % of the data that the plot explains: distances that one "
        f"reads off it are proportional to distances in that part, {proportional}. The rest of the "
        "data is invisible here."
    )


def findings(
    pairs: Pairs,
    local: Local,
    fidelity: Fidelity | None,
    fit: Fit | None,
    m: int,
    explained: float | None = None,
) -> list[Finding]:
    """All that can be said, the most important first.

    Args:
        pairs: The sampled geodesics.
        local: Measures at the codes.
        fidelity: What a comparison with the data has found, or None.
        fit: Of a decoder that was fitted to coordinates, or None.
        m: Latent dimensions.
        explained: What share of the data a model says that it explains, where ``fidelity`` does
            not tell.
    """
    out = [
        *_about_ranks(pairs),
        *_about_local_distortion(local, m),
        *_about_trust(pairs),
        *_about_data(fidelity, fit),
        *_about_score(explained if fidelity is None and fit is None else None),
        *_about_curvature(local, pairs, m),
    ]
    if local.kinks is not None:
        out.append(
            Finding(
                "kinks",
                "Kinks",
                1.0,
                local.kinks,
                "The decoder is piecewise linear: its geodesics are polygons, and curvature says "
                "nothing.",
                "Use SiLU, GELU, Softplus or tanh in the decoder.",
                "fair",
            )
        )
    return out


def _about_ranks(pairs: Pairs) -> Iterator[Finding]:
    usable = pairs.usable
    length, plain = pairs.result.length[usable], pairs.euclidean[usable]
    ranks = ranks_agree(length, plain)
    yield Finding(
        "spearman",
        "Agreement of ranks",
        ranks,
        _number(ranks, ".2f"),
        "How well distances in the plot order the pairs as their geodesic distances do "
        f"(Spearman, {len(length)} pairs): 1 is perfect, 0 is chance.",
        _choose(
            ranks >= _HIGH,
            "",
            "Sort, cluster and search by geodesic distances (M.distance_matrix, M.neighbors), not "
            "by coordinates.",
        ),
        _level(ranks, _HIGH, _MIDDLE),
    )
    stretch = pairs.stretch[usable]
    low, high = _quantiles(stretch, (0.05, 0.95))
    spread = high / low if low > 0 else math.nan
    yield Finding(
        "stretch_spread",
        "Uneven scale",
        spread,
        _number(spread, ".1f", "×"),
        "How much more data lies behind a centimetre of the plot in one place than in another: "
        "ratio of the 95 % and 5 % quantiles of geodesic over plotted distance.",
        _choose(
            spread <= _EVEN,
            "",
            "Do not compare gaps between far apart regions; see the background “Volume”, and train "
            "with relaxed_distortion (IRAE), which evens the scale.",
        ),
        _level(-spread, -_EVEN, -_UNEVEN),
    )
    detours = (pairs.straight / pairs.result.length)[usable]
    detours = detours[detours.isfinite()]
    (detour,) = _quantiles(detours, (0.5,))
    yield Finding(
        "detour",
        "Straight lines",
        detour,
        _number(detour, ".2f", "×"),
        "Median length of the straight line through the plot, in units of the shortest path: what "
        "linear interpolation costs.",
        _choose(detour <= _DETOUR, "", "Interpolate along geodesics: M.geodesic(z0, z1).curve."),
        _level(-detour, -_DETOUR, -_FAR_DETOUR),
    )


def _about_local_distortion(local: Local, m: int) -> Iterator[Finding]:
    if m > 1:
        finite = local.condition[local.condition.isfinite()]
        mean = float(finite.mean()) if len(finite) else math.nan
        ratio = math.sqrt(mean) if mean > 0 else math.nan
        yield Finding(
            "condition_number",
            "Directions",
            mean,
            _number(mean, ".3g"),
            f"Mean condition number of the metric: a step in one direction changes the data about "
            f"{_number(ratio, '.1f')} times as much as the same step in another. 1 is a plot "
            "without preferred directions.",
            _choose(
                mean <= _ROUND,
                "",
                "Look at the ellipses: long ones point where steps matter little. A conformal "
                "term (IRAE) makes them round.",
            ),
            _level(-mean, -_ROUND, -_SQUASHED),
        )
    yield Finding(
        "vor",
        "Variation of the metric (VoR)",
        local.vor,
        _number(local.vor, ".2f"),
        "How much the metric changes over the plot; 0 where it is the same everywhere, so that one "
        "linear map makes the plot faithful.",
        "",
        "note",
    )
    yield Finding(
        "distortion",
        "Distortion",
        local.isometry,
        _number(local.isometry, ".2f"),
        "Mean squared deviation of the metric's eigenvalues from 1 after the best common scale; 0 "
        "for an isometry up to scale.",
        "",
        "note",
    )
    if local.singular > 0:
        yield Finding(
            "singular",
            "Degenerate points",
            local.singular,
            _number(100 * local.singular, ".1f", " %"),
            "Share of the codes where the metric is singular or undefined: there the decoder does "
            "not move in some direction, or gives no numbers.",
            "Look for unused latent units and saturated activations; lower latent_dim.",
            "poor" if local.singular > 0.01 else "fair",
        )


def _about_trust(pairs: Pairs) -> Iterator[Finding]:
    result = pairs.result
    share = float(result.converged.double().mean())
    relative = (result.error / result.length)[pairs.usable]
    error = float(relative.max()) if len(relative) else math.nan
    failed = _failures(result.status)
    yield Finding(
        "converged",
        "Trust in the geodesics",
        share,
        f"{100 * share:.0f} %",
        f"Share of {len(result.length)} sampled geodesics that were solved to an estimated error "
        f"of {result.rtol:.0e}; the largest error bar among them is {_number(error, '.0e')}."
        + (f" The others: {failed}." if failed else ""),
        _choose(
            share >= _CONVERGED,
            "",
            "Loosen rtol, give a graph of the data (M.geodesic(graph=…)), or look for regions "
            "where the decoder is not smooth.",
        ),
        _level(share, _CONVERGED, 0.8),
    )
    gap = pairs.gap[pairs.usable]
    close = float((gap < 0.02).double().mean()) if len(gap) else math.nan
    if close > 0:
        yield Finding(
            "ambiguous",
            "Ambiguous pairs",
            close,
            f"{100 * close:.0f} %",
            "Share of the pairs with a second geodesic that is at most 2 % longer: another "
            "training run may prefer that one.",
            "Compare training runs before you interpret a single path "
            "(riemae.statistics.compare_distances).",
            "fair" if close > 0.05 else "note",
        )


def _about_score(explained: float | None) -> Iterator[Finding]:
    if explained is None:
        return
    yield Finding(
        "explained",
        "What the codes explain",
        explained,
        _number(100 * explained, ".0f", " %"),
        "Share of the deviance of the data that the decoded codes explain, the variance of a "
        "likelihood. Noise that nothing can explain counts as unexplained; of counts it is often "
        "the larger part. Distances of this report are between decoded codes.",
        _choose(
            explained >= _EXPLAINED,
            "",
            "Train longer, or with more latent dimensions, and see whether it rises.",
        ),
        _level(explained, _EXPLAINED, _PARTLY),
    )


def _about_data(fidelity: Fidelity | None, fit: Fit | None) -> Iterator[Finding]:
    if fit is not None:
        yield Finding(
            "loo_r2",
            "What the coordinates explain",
            fit.loo_r2,
            f"{100 * fit.loo_r2:.0f} %",
            "Share of the variance of the data that the coordinates predict for samples left out "
            f"of the fit ({100 * fit.r2:.0f} % for those in it). The rest of the data is invisible "
            "here: all distances of this report are within the explained part.",
            _choose(
                fit.loo_r2 >= _EXPLAINED,
                "",
                "Do not read fine structure into the plot; use more dimensions, or the data.",
            ),
            _level(fit.loo_r2, _EXPLAINED, _PARTLY),
        )
    if fidelity is None:
        return
    if fit is None:
        yield Finding(
            "explained",
            "What the codes explain",
            fidelity.explained,
            _number(100 * fidelity.explained, ".0f", " %"),
            "Share of the variance of the data that the decoded codes reproduce; distances of this "
            "report are between decoded codes.",
            _choose(
                fidelity.explained >= _EXPLAINED,
                "",
                "Train longer, or with more latent dimensions; the rest is invisible in the plot.",
            ),
            _level(fidelity.explained, _EXPLAINED, _PARTLY),
        )
    yield Finding(
        "overlap",
        "Overlap",
        fidelity.overlap,
        _number(100 * fidelity.overlap, ".1f", " %"),
        "Share of the points whose nearest neighbour in the plot is not even among the nearest "
        "tenth of the data: there the plot lays different data on top of each other.",
        _choose(
            fidelity.overlap <= _OVERLAP,
            "",
            "Do not take neighbours in the plot for neighbours in the data; try more latent "
            "dimensions, or start the encoder from a graph embedding.",
        ),
        _level(-fidelity.overlap, -_OVERLAP, -_TORN),
    )


def _about_curvature(local: Local, pairs: Pairs, m: int) -> Iterator[Finding]:
    values = local.curvature[local.curvature.isfinite()]
    if not len(values):
        return
    (size,) = _quantiles(values.abs(), (0.5,))
    distance = pairs.result.length[pairs.usable]
    (scale,) = _quantiles(distance, (0.5,))
    bent = size * scale**2
    what = "Gaussian curvature" if m == 2 else "half of the scalar curvature"
    low, high = _quantiles(values, (0.05, 0.95))
    yield Finding(
        "curvature",
        "Curvature",
        bent,
        _number(bent, ".2g"),
        f"Median size of the {what}, times the squared median distance ({what}: "
        f"{low:.2g} to {high:.2g} per squared unit of the data). Well above 1, no flat plot can "
        "show all distances, however it is trained.",
        _choose(
            bent <= _BENT,
            "",
            "Believe distances within a neighbourhood, and geodesics beyond it.",
        ),
        _level(-bent, -_BENT, -_STRONGLY),
    )


def _failures(status: Tensor) -> str:
    codes, counts = torch.unique(status[status != Status.CONVERGED], return_counts=True)
    named = zip(codes.tolist(), counts.tolist(), strict=True)
    return ", ".join(f"{n} {Status(code).name.lower().replace('_', ' ')}" for code, n in named)


def _quantiles(x: Tensor, shares: tuple[float, ...]) -> tuple[float, ...]:
    if not len(x):
        return tuple(math.nan for _ in shares)
    found = torch.quantile(x.double(), torch.tensor(shares, dtype=torch.float64, device=x.device))
    return tuple(found.tolist())


def _number(x: float, form: str, unit: str = "") -> str:
    if math.isnan(x):
        return "not measured"
    return "∞" if math.isinf(x) else f"{x:{form}}{unit}"


def _choose(fine: bool, nothing: str, advice: str) -> str:
    return nothing if fine else advice


def _level(x: float, good: float, fair: float) -> Level:
    if math.isnan(x):
        return "note"
    return "good" if x >= good else "fair" if x >= fair else "poor"
