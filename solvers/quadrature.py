"""Length and energy of curves to a given accuracy.

Pieces of a curve are halved until their integrals are known. The speed is integrated by Kronrod's
seven points per panel, whose difference from Gauss' three among
them tells, with plenty to spare, what is missing. Where the space embeds curves in a Euclidean one,
the straight line between a panel's ends is a second witness: no curve is shorter, so a step of the
map that falls between the seven points is seen all the same. A third one are the panel's
neighbours: a kink between its last point and its end is seen by none of the seven, but the speed
with which one panel ends must be that with which the next one begins. At corners of polylines, and
at the ends of curves, it must be that of the curve there. Panels are chosen without gradient; what
they add up to is differentiable.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError
from riemae.numerics.checks import expect_rtol
from riemae.numerics.precision import in_full_precision
from riemae.numerics.sums import summed
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete
from riemae.solvers.curve import Curve, check_nodes, hermite, nodes_of
from riemae.solvers.hooks import embedding_of, precision_of
from riemae.solvers.space import HasSpace, Space, space_of

# Times and weights on [0, 1] of Kronrod's extension of Gauss' three points, and Gauss' own weights.
_KNOTS = np.array([0.434243749346802558, 0.774596669241483377, 0.960491268708020283])
_KRONROD = np.array(
    [0.450916538658474142, 0.401397414775962223, 0.268488089868333441, 0.104656226026467265]
)
_TIMES = (1 + np.concatenate([-_KNOTS[::-1], [0.0], _KNOTS])) / 2
_WEIGHTS = np.concatenate([_KRONROD[:0:-1], _KRONROD]) / 2
_GAUSS = np.array([0, 5 / 9, 0, 8 / 9, 0, 5 / 9, 0]) / 2

# Rows that should give 0: twice the difference of the rules, which covers a single jump of the
# speed wherever it is, and the highest Legendre coefficients, as several jumps may cancel in one
# row. On smooth pieces all are far more than the error of the better rule.
_COEFFICIENTS = np.linalg.inv(np.polynomial.legendre.legvander(2 * _TIMES - 1, 6))
_TESTS = np.stack([2 * (_GAUSS - _WEIGHTS), _COEFFICIENTS[5] / 8, _COEFFICIENTS[6] / 4])
# From the seven points to the heights of the polynomial through them at the ends of a panel, and
# the share of a panel between an end and the point next to it.
_ENDS = np.polynomial.legendre.legvander(np.array([-1.0, 1.0]), 6) @ _COEFFICIENTS
_UNSEEN = (1 - _KNOTS[-1]) / 2
# Where a segment is looked at in place of its ends, in units of rounding: a map with a kink in a
# node has a derivative of its own there (0 for a ReLU), which is none of the curve's.
_BESIDE = 64
# Panels that a curve begins with, if it has fewer segments: a few points may all lie where nothing
# happens.
_FEWEST_PANELS = 16
# Panels of a curve whose ends are decoded together, so that those between two are decoded once.
_LONGEST_RUN = 64
# Panels that a curve may have (some 100,000 points), and how often one may be halved.
_MOST_PANELS = 16384
_SHORTEST_PANEL = 2.0**-40
# Panels of a curve that cannot be looked at: inside torch.func.vmap and on the meta device.
_BLIND_PANELS = 32


@overload
def length(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: Literal[False] = False,
    throw: bool = True,
) -> Tensor: ...


@overload
def length(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    *,
    return_error: Literal[True],
    throw: bool = True,
) -> tuple[Tensor, Tensor]: ...


@overload
def length(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: bool = False,
    throw: bool = True,
) -> Tensor | tuple[Tensor, Tensor]: ...


@in_full_precision
def length(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: bool = False,
    throw: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:  # -> (*b,) or (*b,), (*b,)
    """Riemannian length ``∫ |ż| dt`` , refined until its error is below ``rtol``.

    Args:
        space: Anything with a ``norm``; an ``embedded``, if it has one, makes the error estimate
            safer.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
        rtol: Relative error allowed. Inside ``torch.func.vmap``, where no value can be looked at,
            every curve is integrated with 32 panels or more, and not refined.
        return_error: Also return the estimated error of each length.
        throw: Raise when a curve misses ``rtol``; False returns it all the same.

    Raises:
        NotConvergedError: When ``throw`` and a curve still misses ``rtol`` in 16384 panels, as one
            that jumps does; its ``result`` holds all lengths.
    """
    space = space_of(space, nodes_of(curve), where="length", finite=True)
    value, error = _integral(
        where="length", space=space, curve=curve, power=1, rtol=rtol, throw=throw
    )
    if return_error:
        return (value, error)
    return value


@overload
def energy(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: Literal[False] = False,
    throw: bool = True,
) -> Tensor: ...


@overload
def energy(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    *,
    return_error: Literal[True],
    throw: bool = True,
) -> tuple[Tensor, Tensor]: ...


@overload
def energy(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: bool = False,
    throw: bool = True,
) -> Tensor | tuple[Tensor, Tensor]: ...


@in_full_precision
def energy(
    space: Space | HasSpace,
    curve: Curve | Tensor,
    rtol: float = 1e-4,
    return_error: bool = False,
    throw: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:  # -> (*b,) or (*b,), (*b,)
    """Energy ``∫ |ż|² dt`` over ``t`` in [0, 1], refined as :func:`length` is.

    It is at least the squared length.

    Args:
        space: As in :func:`length`.
        curve: A :class:`Curve`, or points ``(*b, n, m)`` joined by straight latent lines in equal
            times.
        rtol: As in :func:`length`.
        return_error: As in :func:`length`.
        throw: As in :func:`length`.

    Raises:
        NotConvergedError: As in :func:`length`.
    """
    space = space_of(space, nodes_of(curve), where="energy", finite=True)
    value, error = _integral(
        where="energy", space=space, curve=curve, power=2, rtol=rtol, throw=throw
    )
    if return_error:
        return (value, error)
    return value


class _Panels(NamedTuple):
    """Pieces of curves, one per row.

    Of ``curve``, in its ``segment``, from ``start`` on and ``width`` long there.
    """

    curve: Tensor
    segment: Tensor
    start: Tensor
    width: Tensor

    @classmethod
    def evenly(cls, curves: int, segments: int, fewest: int, like: Tensor) -> _Panels:
        """Every segment in equally many panels, at least ``fewest`` per curve."""
        parts = -(-fewest // segments)
        index = torch.arange(curves * segments * parts, device=like.device)
        start = (index % parts).to(like) / parts
        return cls(
            curve=index // (segments * parts),
            segment=index // parts % segments,
            start=start,
            width=torch.full_like(start, 1 / parts),
        )

    def where(self, keep: Tensor) -> _Panels:
        return _Panels(*(x[keep] for x in self))

    def halved(self) -> _Panels:
        """Both halves of every panel, one after the other."""
        half = self.width / 2
        return _Panels(
            curve=self.curve.repeat_interleave(2),
            segment=self.segment.repeat_interleave(2),
            start=torch.stack([self.start, self.start + half], 1).flatten(),
            width=half.repeat_interleave(2),
        )

    def joined(self, other: _Panels) -> _Panels:
        pairs = zip(self, other, strict=True)
        return _Panels(*(torch.cat(pair) for pair in pairs))


class _Track(NamedTuple):
    """Curves ``(p, n + 1, m)`` of which panels are cut.

    Splines; without slopes, straight lines from node to node.
    """

    nodes: Tensor
    slopes: Tensor | None

    @property
    def segments(self) -> int:
        return self.nodes.shape[1] - 1

    def at(
        self, panels: _Panels, times: Tensor
    ) -> tuple[Tensor, Tensor]:  # (c,) -> (k, c, m), (k, c, m)
        """Points and velocities at times ``[0, 1]`` of panels."""
        n = self.segments
        (curve, segment) = panels[:2]
        u = panels.start[:, None] + panels.width[:, None] * times
        left = self.nodes[curve, segment, None]
        right = self.nodes[curve, segment + 1, None]
        if self.slopes is None:
            step = right - left
            shares = u[..., None]
            velocity = n * step
            return left + shares * step, velocity.expand(*u.shape, -1)
        first = self.slopes[curve, segment, None]
        last = self.slopes[curve, segment + 1, None]
        a, b, c, d = (x[..., None] for x in hermite(u, 0, n))
        z = a * left + b * first + c * right + d * last
        _, b, c, d = (x[..., None] for x in hermite(u, 1, n))
        # So written that it has no speed at all where it rests.
        return z, b * first + c * (right - left) + d * last


def _integral(
    where: str, space: Space, curve: Curve | Tensor, power: int, rtol: float, throw: bool
) -> tuple[Tensor, Tensor]:
    """``∫ |ż|^power dt`` and its error.

    Raises:
        DTypeError: For anything but a curve or a tensor.
        OptionError: When ``rtol`` is not positive.
        NotConvergedError: When ``throw`` and a curve misses ``rtol``.
    """
    if isinstance(curve, Curve):
        nodes = curve.nodes
        slopes = curve.slopes
    elif isinstance(curve, Tensor):
        nodes = curve
        slopes = None
    else:
        hint = "Try a curve of M.geodesic(...).curve, or points as a tensor."
        raise DTypeError(where, "a Curve or a tensor (*b, n, m)", type(curve).__name__, hint)
    check_nodes(where, nodes)
    rtol = expect_rtol(where, rtol)
    batch = nodes.shape[:-2]
    flat = [None if x is None else x.reshape(-1, *x.shape[-2:]) for x in (nodes, slopes)]
    track = _Track(flat[0], flat[1])  # type: ignore[arg-type]
    if not len(track.nodes):
        # The space still says what it says of points that it cannot measure, and has its graph.
        start = track.nodes[:, 0]
        empty = space.norm(start, start)
        return empty.view(batch), empty.detach().view(batch)
    if concrete(track.nodes) is None:
        panels = _Panels.evenly(
            curves=len(track.nodes), segments=track.segments, fewest=_BLIND_PANELS, like=track.nodes
        )
        value, error, _ = _summed(space, track, panels, power)
        return value.view(batch), error.detach().view(batch)
    with torch.no_grad():
        still = _Track(*(None if x is None else x.detach() for x in track))  # type: ignore[arg-type]
        panels, value, error = _chosen(space, still, power, rtol)
    if torch.is_grad_enabled() and _differentiated(space, track):
        value = _summed(space, track, panels, power)[0]
    finite = value.detach().isfinite()
    missed = ~(error <= rtol * value.detach()) & finite
    if throw and bool(missed.any()):
        rows = missed.nonzero().flatten().tolist()
        worst = float((error / value.detach())[missed].max())
        raise NotConvergedError(
            where,
            f"curves measured to rtol={rtol:g}",
            f"{len(rows)} of {len(missed)} that miss it, the worst by an error of {worst:.1e} "
            f"(first: {rows[:5]})",
            "The map jumps, bends very sharply, or its dtype cannot carry it: loosen rtol, use a "
            "smooth decoder or float64, or take the values and errors as they are with "
            "throw=False, return_error=True.",
            value.view(batch),
        )
    return value.view(batch), error.view(batch)


def _chosen(space: Space, track: _Track, power: int, rtol: float) -> tuple[_Panels, Tensor, Tensor]:
    """Panels whose errors add up to less than ``rtol`` of every curve's integral, if possible."""
    p = len(track.nodes)
    eps = precision_of(space, track.nodes.dtype).eps
    panels = _Panels.evenly(
        curves=p, segments=track.segments, fewest=_FEWEST_PANELS, like=track.nodes
    )
    each = len(panels.curve) // p
    values, seen, edges = _measured(
        space, track, panels, power, each if each <= _LONGEST_RUN else 1
    )
    corners = _Corners.of(space, track, power)
    while True:
        errors = seen + _unseen(track, panels, edges, corners)
        value = summed(values, panels.curve, p)
        error = summed(errors, panels.curve, p)
        count = torch.bincount(panels.curve, minlength=p)
        unmet = ~(error <= rtol * value) & value.isfinite()
        share = rtol * value / (2 * count)
        long = panels.width > _SHORTEST_PANEL
        large = errors > share[panels.curve]
        bad = unmet[panels.curve] & large & long
        bad &= errors > 16 * eps * values  # less is rounding, and halves have as much of it
        halves = torch.bincount(panels.curve[bad], minlength=p)
        crowded = count + halves > _MOST_PANELS
        bad &= ~crowded[panels.curve]
        if not bool(bad.any()):
            return panels, value, error
        finer = panels.where(bad).halved()
        finer_values, finer_errors, finer_edges = _measured(space, track, finer, power, 2)
        panels = panels.where(~bad).joined(finer)
        values = torch.cat([values[~bad], finer_values])
        seen = torch.cat([seen[~bad], finer_errors])
        edges = torch.cat([edges[~bad], finer_edges])


def _summed(
    space: Space, track: _Track, panels: _Panels, power: int
) -> tuple[Tensor, Tensor, Tensor]:
    values, errors, _ = _integrated(space, track, panels, power)
    p = len(track.nodes)
    return summed(values, panels.curve, p), summed(errors, panels.curve, p), values


def _measured(
    space: Space, track: _Track, panels: _Panels, power: int, run: int
) -> tuple[Tensor, Tensor, Tensor]:  # -> (k,), (k,), (k, 2, 2)
    """As :func:`_integrated`, with chords as a second witness.

    Args:
        space: The space.
        track: The curves.
        panels: Some of their panels.
        power: Of the speed.
        run: How many panels each follow one another without a gap.
    """
    values, errors, edges = _integrated(space, track, panels, power)
    distance = _chords(space, track, panels, run)
    if distance is None and run > 1:  # perhaps there is room for the images of fewer points
        distance = _chords(space, track, panels, 1)
    if distance is None:
        return values, errors, edges
    # ∫ |ż|^q dt over a time h is at least chord^q / h^(q − 1).
    mean_speed = distance * track.segments / panels.width
    least = distance * mean_speed ** (power - 1)
    missing = torch.where(least.isfinite(), least - values, 0.0)
    return values, torch.maximum(errors, missing), edges


def _chords(
    space: Space, track: _Track, panels: _Panels, run: int
) -> Tensor | None:  # -> (k,) or None
    """Distances of the images of panels' ends, less what rounding may have added."""
    embedded = embedding_of(space)
    if embedded is None:
        return None
    both = track.nodes.new_tensor([0.0, 1.0])
    first, last = track.at(panels, both)[0].unflatten(0, (-1, run)).unbind(2)
    points = torch.cat([first, last[:, -1:]], 1)
    eps = precision_of(space, points.dtype).eps

    def distances(x: Tensor) -> Tensor:  # (c, run + 1, D) -> (c, run)
        size = x.norm(dim=-1)
        noise = 4 * eps * (size[:, 1:] + size[:, :-1])
        return (x.diff(dim=1).norm(dim=-1) - noise).clamp(min=0)

    found = embedded(points, distances)
    return None if found is None else found.flatten()


class _Corners(NamedTuple):
    """What is known of ``|ż|^power`` at the ends of segments, ``(p, n)`` each.

    NaN where it is that of the neighbouring segment, or the space has none there.
    """

    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, space: Space, track: _Track, power: int) -> _Corners:
        """Of all segments of polylines; of splines, whose velocity is continuous, at their ends."""
        p, n = len(track.nodes), track.segments
        whole = _Panels.evenly(curves=p, segments=n, fewest=1, like=track.nodes)
        beside = _BESIDE * torch.finfo(track.nodes.dtype).eps
        sides = []
        for time, end in ((beside, 0), (1 - beside, n - 1)):
            looked = whole if track.slopes is None else whole.where(whole.segment == end)
            times = track.nodes.new_tensor([time])
            heights = _heights(space, track, looked, times, power)[:, 0]
            side = heights.new_full((p, n), torch.nan)
            side[looked.curve, looked.segment] = heights
            sides.append(side)
        return cls(*sides)


def _unseen(
    track: _Track, panels: _Panels, edges: Tensor, corners: _Corners
) -> Tensor:  # (k, 2, 2) -> (k,)
    """What may be missing of panels where their ends do not fit their neighbours.

    Args:
        track: The curves.
        panels: All of their panels.
        edges: As from :func:`_integrated`.
        corners: The ends of segments.
    """
    place = panels.curve * track.segments + panels.segment
    order = panels.start.argsort()
    order = order[place[order].argsort(stable=True)]
    curve, segment, _, width = panels.where(order)
    left, right = edges[order].unbind(1)
    # What a polyline's segment ends with says nothing of the next one.
    whole = place[order] if track.slopes is None else curve
    follows = whole[1:] == whole[:-1]
    inner = _gap(right[:-1], left[1:])
    first = _gap(left, corners.first[curve, segment, None])
    last = _gap(right, corners.last[curve, segment, None])
    first[1:] = torch.where(follows, inner, first[1:])
    last[:-1] = torch.where(follows, inner, last[:-1])
    gaps = torch.stack([first, last], 1)
    missing = torch.where(gaps.isfinite(), gaps, 0.0).sum(1)
    out = torch.empty_like(missing)
    out[order] = _UNSEEN * width / track.segments * missing
    return out


def _gap(one: Tensor, other: Tensor) -> Tensor:  # (k, i), (k, j) -> (k,)
    """The least difference of what two sides may be at their common end."""
    return (one[:, :, None] - other[:, None]).abs().flatten(1).amin(1)


def _heights(
    space: Space, track: _Track, panels: _Panels, times: Tensor, power: int
) -> Tensor:  # (c,) -> (k, c)
    """``|ż|^power`` at times of panels."""
    z, v = track.at(panels, times)
    points = z.flatten(0, 1)
    velocities = v.flatten(0, 1)
    speed = space.norm(points, velocities).view(z.shape[:-1])
    return speed if power == 1 else speed.square()


def _integrated(
    space: Space, track: _Track, panels: _Panels, power: int
) -> tuple[Tensor, Tensor, Tensor]:  # -> (k,), (k,), (k, 2, 2)
    """Integrals over panels, their errors, and what ``|ż|^power`` may be at either end.

    That is the polynomial's there, or that of the point next to it.
    """
    times = torch.as_tensor(_TIMES).to(track.nodes)
    heights = _heights(space, track, panels, times, power)
    time = panels.width / track.segments
    weights = torch.as_tensor(_WEIGHTS).to(heights)
    values = time * (heights * weights).sum(-1)
    tests = torch.as_tensor(_TESTS).to(heights)
    gaps = (heights[:, None] * tests).sum(-1)
    continued = (heights[:, None] * torch.as_tensor(_ENDS).to(heights)).sum(-1)
    edges = torch.stack([continued, heights[:, [0, -1]]], 2)
    return values, time * gaps.abs().amax(-1), edges


def _differentiated(space: Space, track: _Track) -> bool:
    """Whether the result may be differentiated: in the curve, or in what the space is made of."""
    if (
        transformed()
        or track.nodes.requires_grad
        or (track.slopes is not None and track.slopes.requires_grad)
    ):
        return True
    start = track.nodes[:1, 0]
    stop = track.nodes[:1, 1]
    return space.norm(start, stop - start).requires_grad
