"""Global search: several start curves per pair, and all distinct geodesics that come of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.random import as_generator
from riemae.solvers.curve import Curve
from riemae.solvers.graph import Graph
from riemae.solvers.hooks import labels_of
from riemae.solvers.result import GeodesicResult, Status
from riemae.solvers.space import Space

# On fewer segments a start curve slides off the geodesic that it was made for: of 200 hard pairs 3
# were lost for good.
SCOUT_SEGMENTS = 32
# Start curves compete at this accuracy; only distinct winners are taken to the one that was asked
# for.
_SCOUT_RTOL = 1e-2
# Two curves are one when they are this close, relative to their length, and so are their lengths.
_SAME_CURVE = 2e-2
_SAME_LENGTH = 3e-2
# Points at which two curves are compared.
_COMPARED = 17
# Edges that touch a route already taken count this much longer when the next one is looked for.
_DETOUR = 1.6
# Perturbations: sine modes up to this one, of this size relative to the latent distance of the end
# points.
_MODES = 3
_AMPLITUDE = 0.35


class Solve(Protocol):
    """Solves pairs ``(p,)`` from start curves ``(p,)`` to a relative accuracy."""

    def __call__(
        self, start: Curve, rtol: float, progress: Callable[[int, int], object] | None
    ) -> GeodesicResult:
        """Solve."""
        ...


def search(
    solve: Solve,
    space: Space,
    first: Curve,
    count: int,
    graph: Graph | None,
    generator: torch.Generator | int | None,
    rtol: float,
    progress: Callable[[int, int], object] | None,
) -> GeodesicResult:
    """The shortest geodesic of each pair that ``count`` start curves lead to.

    The others are kept as alternatives. Every start curve is solved coarsely; of curves that end as
    one, one goes on. Of each pair the result depends on its own end points, the graph and the
    generator alone, not on its batch.

    Args:
        solve: The path solver.
        space: Measures how far two curves are apart.
        first: The first start curve of each pair, ``(p,)``.
        count: Start curves per pair.
        graph: Where further ones come from: the shortest path and detours from it.
        generator: Source of the perturbations, which fill the number up; None is torch's own.
        rtol: Accuracy of the lengths.
        progress: Called with (pairs done, pairs in all).
    """
    nodes = start_curves(
        first=first, count=count, graph=graph, generator=generator, labels=labels_of(space)
    )
    count, p = nodes.shape[:2]
    scouts = solve(
        Curve.from_nodes(nodes.flatten(0, 1)), max(rtol, _SCOUT_RTOL), _share(progress, p, 0.0)
    )
    pair = torch.arange(p, device=nodes.device).repeat(count)
    chosen = _distinct(space, scouts, pair, p)
    rows = chosen[chosen >= 0]
    pair = pair[rows]
    found = scouts[rows]
    if rtol < _SCOUT_RTOL:
        fine = solve(found.curve, rtol, _share(progress, p, 0.5))
        found = _at_least_scouted(fine, found)
        chosen = _distinct(space, found, pair, p)
    else:
        # Counted among those that are left.
        left = chosen >= 0
        place = left.flatten().cumsum(0) - 1
        chosen = torch.where(left, place.view_as(chosen), -1)
    return _shortest_first(found, chosen)


def ranked(space: Space, found: GeodesicResult, pair: Tensor, p: int) -> GeodesicResult:
    """The shortest of the results ``(q,)`` of each pair ``(q,)``, with all distinct ones."""
    return _shortest_first(found, _distinct(space, found, pair, p))


def _shortest_first(found: GeodesicResult, table: Tensor) -> GeodesicResult:  # (q,), (s, p) -> (p,)
    """The results at the places of the first row of a table, with those of all rows."""
    every = _padded(found, table)
    return replace(every[0], alternatives=every)


def _at_least_scouted(fine: GeodesicResult, scouts: GeodesicResult) -> GeodesicResult:
    """The results; where the budget has ended the second round, not longer than the first's."""
    cut_short = fine.status == Status.BUDGET
    shorter = fine.length <= scouts.length  # False for NaN
    wanted = cut_short & ~shorter
    if not bool(wanted.any()):
        return fine
    kept = replace(scouts, status=torch.full_like(scouts.status, int(Status.BUDGET)))
    return replace(GeodesicResult.where(wanted, kept, fine), rtol=fine.rtol)


def start_curves(
    first: Curve,
    count: int,
    graph: Graph | None,
    generator: torch.Generator | int | None,
    labels: int = 0,
) -> Tensor:
    """Nodes ``(count, p, n + 1, m)`` of start curves.

    The first curves, then routes through the graph, then perturbations. The last coordinates stay
    as they are where they are ``labels``.
    """
    if labels:
        moving = Curve(first.nodes[..., :-labels], first.slopes[..., :-labels])
        found = start_curves(moving, count, graph, generator)
        kept = first.nodes[..., -labels:]
        shape = found.shape[:-1]
        return torch.cat([found, kept.expand(*shape, labels)], -1)
    nodes = [first.nodes[None]]
    if graph is not None and count > 1:
        nodes.append(routes(graph, first, count // 2))
    known = sum(len(x) for x in nodes)
    missing = count - known
    if missing:
        nodes.append(perturbed(first, missing, generator))
    return torch.cat(nodes)


def routes(graph: Graph, first: Curve, count: int) -> Tensor:  # (p) curves -> (count, p, n + 1, m)
    """Different ways through a graph, as nodes at nearly constant speed.

    They lead from the start to the end of curves. The shortest path comes first. After each, the
    edges that touch its inner points are made longer, and the next shortest path is a detour: the k
    shortest paths proper differ in one or two points each and all lead to one geodesic (the penalty
    method; Akgün, Erkut, Batta, On finding dissimilar paths, 2000). End points enter the graph at
    the nearest point. Where no path leads, ``first`` takes its place.
    """
    from scipy.spatial import cKDTree

    outer = first.nodes[:, [0, -1]]
    ends = outer.detach().cpu().double().numpy()
    out = first.nodes.expand(count, *first.nodes.shape).clone()
    finite = np.isfinite(ends).all((1, 2))
    if not len(graph.points) or not finite.any():
        return out
    nearest = np.zeros(ends.shape[:2], dtype=np.int64)
    tree = cKDTree(graph.points.cpu().double().numpy())
    nearest[finite] = tree.query(ends[finite])[1]
    for row in np.flatnonzero(finite):
        begin = first.nodes[row, :1]
        end = first.nodes[row, -1:]
        detours = _detours(
            graph=graph, start=int(nearest[row, 0]), stop=int(nearest[row, 1]), count=count
        )
        for k, corners in enumerate(detours):
            between = graph.points[corners].to(first.nodes)
            way = torch.cat([begin, between, end])
            curve = Curve.through(way, first.segments)
            out[k, row] = curve.nodes
            out[k, row, :1] = begin
            out[k, row, -1:] = end
    return out


def perturbed(
    first: Curve, count: int, generator: torch.Generator | int | None
) -> Tensor:  # (p) curves -> (count, p, n + 1, m)
    """Nodes of curves that swing out to the side by low sine modes, in opposite pairs.

    The modes are drawn once for all pairs and turned across each pair's own direction, so that no
    pair depends on the others.
    """
    m = first.nodes.shape[-1]
    source = as_generator("perturbed", generator)
    swing = _swings(count, m, source).to(first.nodes)
    mode = torch.arange(1, _MODES + 1).to(first.nodes)
    times = first.times[:, None]
    waves = (torch.pi * mode * times).sin()  # (n + 1, modes)
    waves[[0, -1]] = 0.0  # sin(kπ) is not quite 0
    sideways = torch.einsum("tk,skm->stm", waves, swing)[:, None]  # (s, 1, n + 1, m)
    start = first.nodes[:, 0]
    stop = first.nodes[:, -1]
    gap = stop - start
    size = gap.norm(dim=-1, keepdim=True)
    swung = _reflected(sideways, gap, size)
    return first.nodes + _AMPLITUDE * size[:, None] * swung


def _swings(count: int, m: int, generator: torch.Generator | None) -> Tensor:  # -> (s, modes, m)
    """Amplitudes of the sine modes, of unit size, across the first axis and in opposite pairs."""
    pairs = (count + 1) // 2
    # Drawn where the generator lives: its numbers do not depend on where the points are.
    device = "cpu" if generator is None else generator.device
    drawn = torch.randn(pairs, _MODES, m, generator=generator, dtype=torch.float64, device=device)
    draws = drawn.cpu()
    mode = torch.arange(1, _MODES + 1)
    # on a line there is nothing but the line
    if m > 1:
        across = slice(1, None)
    else:
        across = slice(None)
    weights = torch.zeros_like(draws)
    decay = mode[:, None] ** 1.5
    weights[..., across] = draws[..., across] / decay
    energy = weights.square().sum((1, 2), keepdim=True)
    weights = weights / energy.sqrt()
    both = torch.stack([weights, -weights], 1)
    return both.flatten(0, 1)[:count]


def _reflected(x: Tensor, gap: Tensor, size: Tensor) -> Tensor:
    """Vectors after the reflection that maps the first axis onto the gap.

    It maps the other axes across the gap. ``(s, 1, n + 1, m), (p, m), (p, 1) -> (s, p, n + 1, m)``.
    """
    tiny = torch.finfo(gap.dtype).tiny
    along = gap / size.clamp(min=tiny)
    mirror = torch.nn.functional.normalize(along, dim=-1)
    axes = torch.eye(gap.shape[-1]).to(gap)
    mirror = mirror - axes[0]
    mirror = torch.nn.functional.normalize(mirror, dim=-1)
    share = x @ mirror[:, :, None]
    return x - 2 * share * mirror[:, None]


def _detours(graph: Graph, start: int, stop: int, count: int) -> list[list[int]]:
    """Up to ``count`` different paths, none when ``stop`` cannot be reached."""
    from scipy.sparse import csgraph

    if start == stop or graph.components[start] != graph.components[stop]:
        return []
    weights = graph.adjacency.tocoo()
    rows = weights.row
    columns = weights.col
    lengths = weights.data.copy()
    matrix = graph.adjacency.copy()
    paths: list[list[int]] = []
    for _ in range(count):
        _, before = csgraph.dijkstra(
            matrix, directed=False, indices=start, return_predecessors=True
        )
        path = [stop]
        while path[-1] != start:
            path.append(int(before[path[-1]]))
        paths.append(path[::-1])
        touched = np.zeros(len(graph.points), dtype=bool)
        touched[path[1:-1]] = True
        longer = touched[rows] | touched[columns]
        lengths = np.where(longer, _DETOUR * lengths, lengths)
        entries = (lengths, (rows, columns))
        matrix = type(graph.adjacency)(entries, shape=graph.adjacency.shape)
    return paths


def _distinct(space: Space, found: GeodesicResult, pair: Tensor, p: int) -> Tensor:  # -> (s, p)
    """Which of the results ``(q,)`` are different geodesics of their pair, the shortest first.

    −1 where none is left. Failures count only where a pair has nothing else.
    """
    lengths = torch.where(found.converged, found.length, torch.inf).nan_to_num(
        torch.inf, posinf=torch.inf
    )
    order = lengths.argsort(stable=True)
    order = order[pair[order].argsort(stable=True)]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(
        pair[order], pair[order]
    )
    deepest = int(rank.max()) + 1
    table = torch.full((deepest, p), -1, device=order.device)
    table[rank, pair[order]] = order
    kept: list[Tensor] = [table[0]]
    for row in table[1:]:
        usable = (row >= 0) & lengths[row].isfinite()
        for other in kept:
            known = usable & (other >= 0)
            apart = (lengths[row] - lengths[other]).abs()
            twins = known & (apart <= _SAME_LENGTH * lengths[row])
            columns = twins.nonzero().flatten()
            if len(columns):
                usable[columns] &= ~_coincide(
                    space=space, found=found, a=row[columns], b=other[columns]
                )
        kept.append(torch.where(usable, row, -1))
    return _compacted(torch.stack(kept))


def _compacted(table: Tensor) -> Tensor:
    """Columns with the −1 moved down, and rows of nothing else removed."""
    order = (table < 0).long().argsort(dim=0, stable=True)
    packed = table.gather(0, order)
    filled = (packed >= 0).any(1)
    rows = int(filled.sum())
    return packed[: max(rows, 1)]


def _coincide(
    space: Space, found: GeodesicResult, a: Tensor, b: Tensor
) -> Tensor:  # (k,), (k,) -> (k,)
    """Whether two curves run side by side all the way."""
    like = found.length
    t = torch.linspace(0, 1, _COMPARED, dtype=like.dtype, device=like.device)[1:-1]
    one = found.curve[a](t)
    two = found.curve[b](t)
    return run_together(space, one, two, found.length[a], _SAME_CURVE)


def run_together(
    space: Space, one: Tensor, two: Tensor, length: Tensor, share: float
) -> Tensor:  # (k, c, m), (k, c, m), (k,) -> (k,)
    """Whether points at the same times are close, relative to the curves' length."""
    middle = one.flatten(0, 1)
    across = (two - one).flatten(0, 1)
    gap = space.norm(middle, across).view(one.shape[:2])
    return gap.amax(-1) <= share * length


def _padded(found: GeodesicResult, table: Tensor) -> GeodesicResult:  # (q,), (s, p) -> (s, p)
    """The results at the places of ``table``, ABSENT where it has none."""
    full = found[table.clamp(min=0)]
    gone = table < 0
    nodes = full.curve.nodes
    slopes = full.curve.slopes
    nowhere = gone[..., None, None]

    def blank(x: Tensor) -> Tensor:
        return x.masked_fill(gone, torch.nan if x.is_floating_point() else 0)

    return replace(
        full,
        length=blank(full.length),
        error=blank(full.error),
        status=full.status.masked_fill(gone, int(Status.ABSENT)),
        index=full.index.masked_fill(gone, -1),
        curve=Curve(nodes.masked_fill(nowhere, torch.nan), slopes.masked_fill(nowhere, torch.nan)),
        lower_bound=blank(full.lower_bound),
        speed_deviation=blank(full.speed_deviation),
        stats={name: blank(x) for name, x in full.stats.items()},
    )


def _share(
    progress: Callable[[int, int], object] | None, p: int, offset: float
) -> Callable[[int, int], object] | None:
    """Progress of one of two rounds, in pairs."""
    if progress is None:
        return None
    return lambda done, n: progress(int(p * (offset + 0.5 * done / max(n, 1))), p)
