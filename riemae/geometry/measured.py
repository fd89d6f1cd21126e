"""Whether an ambient metric is one, looked at where a decoder leads."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric
from riemae.differential.conditions import Condition
from riemae.exceptions import AmbientError
from riemae.geometry.composition import Composition, first_of
from riemae.numerics import probe
from riemae.numerics.contradiction import contradiction, explained
from riemae.numerics.dependence import dependence
from riemae.numerics.probe import FEW, ROWS
from riemae.numerics.tolerances import tolerance


def check_ambient(
    composition: Composition, flat: Tensor, condition: Condition | None = None
) -> None:  # (k, m)
    """Look at the ambient metric at decoded points, along the directions in which they move.

    All points are decoded under the first one's condition.

    Raises:
        AmbientError: When it is not a metric: random, coupled across the batch, not positive, or
            when torch.autograd does not know its derivative.
    """
    ambient = composition.ambient
    one = first_of(condition)

    def decoded(z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        return composition.decoder(z, one and one.spread(len(z))).flatten(1)

    chunk = composition.chunk_size
    with torch.inference_mode(False), torch.no_grad():
        if len(flat):
            flat = flat.detach().clone()
        else:
            flat = flat.new_zeros(1, flat.shape[-1])
        size = _check_values(composition, decoded, flat, chunk)
        if not ambient.foreign:
            return
        source = probe.generator()
        limit = max(chunk or ROWS * FEW, FEW)
        wanted = ROWS if size <= 64 else FEW
        points = probe.generic(decoded, flat, min(wanted, limit), chunk)
        v = probe.normal(points, *points.shape, source=source) * probe.spread(flat)
        x = decoded(points)
        columns = probe.normal(x, *x.shape, source=source)
    sound = x.isfinite().all(-1)
    if not bool(sound.any()):
        return
    lowered = _Lowered(composition)
    packed = torch.cat([x, columns], -1)
    _check_rows(ambient, lowered, packed[sound])
    path = _path(decoded, points[:FEW], v[:FEW], columns[:FEW])
    contradicted = contradiction(lowered, path, len(columns[:FEW]), points)
    if contradicted is not None:
        got, remedy = explained(contradicted, lowered)
        expected = "a function whose derivative torch.autograd knows"
        raise AmbientError(ambient.title, expected, got, remedy)


def _path(
    decoded: Callable[[Tensor], Tensor], starts: Tensor, velocities: Tensor, constant: Tensor
) -> Callable[[Tensor], Tensor]:
    """Decoded points that move in straight lines, packed with vectors that stay."""

    def path(t: Tensor) -> Tensor:
        moved = decoded(starts + t[:, None] * velocities)
        return torch.cat([moved, constant], -1)

    return path


class _Lowered:
    """``H(x) u`` of rows ``(x, u)``, or the features of x where there are some."""

    def __init__(self, composition: Composition) -> None:
        self.composition = composition

    def __call__(self, packed: Tensor) -> Tensor:  # (k, 2D) -> (k, …)
        ambient = self.composition.ambient
        dimension = packed.shape[1] // 2
        x, u = packed.split(dimension, -1)
        if ambient.has_features:
            shaped = self.composition.shaped(x)
            return ambient.features(shaped).flatten(1)
        lowered = ambient.apply_to(x, u[..., None])
        return lowered[..., 0]


def _check_values(
    composition: Composition,
    decoded: Callable[[Tensor], Tensor],
    flat: Tensor,
    chunk: int | None,
) -> int:
    """Look at shapes, symmetry and sign of the metric's values; the size of one output."""
    ambient = composition.ambient
    given, x = _with_values(decoded, flat[:2])
    if not ambient.foreign or ambient.has_features:
        ambient.check(composition.shaped(x))
        return x.shape[1]
    # A subclass may have a check of its own, of points alone.
    known = inspect.signature(ambient.check).parameters
    options: dict[str, Tensor] = {}
    if "tangents" in known:
        options["tangents"] = _directions(decoded, given)
    ambient.check(composition.shaped(x), **options)
    # Some functions get a row for every direction.
    limit = max(chunk or ROWS * FEW, FEW)
    per_point = min(flat.shape[-1], FEW)
    rows = min(ROWS, limit // per_point, len(flat))
    picked = torch.linspace(0, len(flat) - 1, rows).long().to(flat.device)
    given, x = _with_values(decoded, flat[picked])
    tangents = _directions(decoded, given)
    rounding = tolerance(x.dtype).eps ** (2 / 3)
    ambient.check_positive(x, tangents, rounding)
    return x.shape[1]


def _check_rows(ambient: AmbientMetric, lowered: _Lowered, packed: Tensor) -> None:
    """Look whether the metric at a point depends on chance, or on the other points of a batch.

    Raises:
        AmbientError: When it does.
    """
    where = ambient.title
    try:
        with torch.no_grad():
            found = dependence(lowered, packed, FEW)
    except probe.FAILURES as reason:
        got = f"{type(reason).__name__}: {reason}"
        hint = "Keep the batch axis."
        raise AmbientError(where, "a metric of any number of points", got, hint) from reason
    if found is not None and not found.sound:
        raise AmbientError(where, *found.message("metric"))


def _directions(decoded: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:  # (k, m) -> (k, D, c)
    """How decoded points move along the first few coordinates, by differences of the decoder."""
    axes = torch.eye(z.shape[-1]).to(z)[:FEW]
    largest = z.abs().amax()
    step = tolerance(z.dtype).eps ** (1 / 3) * (1 + largest)
    sides = []
    for axis in axes:
        ahead = decoded(z + step * axis)
        behind = decoded(z - step * axis)
        sides.append(ahead - behind)
    changes = torch.stack(sides, -1).nan_to_num(0.0, 0.0, 0.0)
    return changes / (2 * step)


def _with_values(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """The points at which ``f`` is finite, and its values there."""
    x = f(z)
    ok = x.isfinite().all(-1)
    return z[ok], x[ok]
