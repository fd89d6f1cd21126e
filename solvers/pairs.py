"""What a call for geodesics begins with: points in pairs or sets, start curves, and a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.exceptions import DeviceError, DTypeError, GraphError, NonFiniteError, ShapeError
from riemae.numerics.checks import expect_dense, expect_device, expect_shape, expect_values
from riemae.solvers.curve import Curve
from riemae.solvers.graph import Graph

# Start curves are looked at on this many segments.
_SEGMENTS = 32


def paired_points(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Points of one shape.

    Raises:
        DTypeError: When they are not tensors of one dtype that solvers work with.
        DeviceError: When their devices differ.
        ShapeError: When they do not broadcast.
    """
    for name, z in (("z0", z0), ("z1", z1)):
        expect_dense("geodesic", name, z)
    if z0.device != z1.device:
        raise DeviceError(
            "geodesic",
            "z0 and z1 on one device",
            f"{z0.device} and {z1.device}",
            "Move one of them.",
        )
    for name, z in (("z0", z0), ("z1", z1)):
        expect_values("geodesic", name, z)
    if z0.dtype != z1.dtype:
        raise DTypeError(
            "geodesic",
            "z0 and z1 of one dtype",
            f"{z0.dtype} and {z1.dtype}",
            "Convert one of them.",
        )
    problem = ShapeError(
        "geodesic",
        "z0 and z1 of one shape (*b, m)",
        f"{tuple(z0.shape)} and {tuple(z1.shape)}",
        "Pair them up.",
    )
    if not z0.ndim or not z1.ndim or z0.shape[-1] != z1.shape[-1]:
        raise problem
    try:
        z0, z1 = torch.broadcast_tensors(z0, z1)
    except RuntimeError:
        raise problem from None
    return z0, z1


def expect_point_sets(where: str, **sets: Tensor) -> None:
    """Sets of points ``(n, m)`` of one space, by name.

    Raises:
        DTypeError: When one is not a tensor that solvers work with, or their dtypes or devices
            differ.
        DeviceError: When one has no values.
        ShapeError: When one has more or fewer than two axes, or their dimensions differ.
        NonFiniteError: When a point is NaN or infinite.
    """
    for name, points in sets.items():
        expect_values(where, name, points)
        expect_shape(where, name, points, ("n", "m"), "Flatten the batch axes.")
        bad = (~points.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            got = f"NaN or infinity at rows {bad[:5]} of {name}"
            raise NonFiniteError(where, "finite points", got, "Remove them.")
    a, *others = sets.values()
    names = " and ".join(sets)
    for b in others:
        if a.shape[1] != b.shape[1]:
            got = f"{a.shape[1]} and {b.shape[1]}"
            hint = "Both must be latent points of one space."
            raise ShapeError(where, f"{names} of one dimension", got, hint)
        if a.dtype != b.dtype or a.device != b.device:
            got = f"{a.dtype} on {a.device} and {b.dtype} on {b.device}"
            raise DTypeError(where, f"{names} of one dtype on one device", got, "Convert one.")


def start_curve(z0: Tensor, z1: Tensor, init: Curve | Tensor | None) -> Curve:  # a flat batch (p,)
    """The start curves of pairs ``(*b, m)``, with their end points.

    By default straight lines.

    Raises:
        DTypeError: When ``init`` is neither a curve nor a tensor, or of another dtype.
        DeviceError: When ``init`` is on another device.
        ShapeError: When it does not fit the pairs.
    """
    m = z0.shape[-1]
    if init is None:
        return Curve.line(z0.reshape(-1, m), z1.reshape(-1, m), _SEGMENTS)
    if not isinstance(init, (Curve, Tensor)):
        raise DTypeError(
            "geodesic",
            "init as a Curve or a tensor (*b, k, m)",
            type(init).__name__,
            "Try init=graph.curves(i, j), or nodes (*b, k, m).",
        )
    if isinstance(init, Tensor):
        init = Curve.through(init, _SEGMENTS)
    expect_device("geodesic", "init", init.nodes, "z0", z0)
    if init.nodes.dtype != z0.dtype:
        raise DTypeError(
            "geodesic", f"init of dtype {z0.dtype}", str(init.nodes.dtype), "Convert one of them."
        )
    segments = max(init.segments, _SEGMENTS)
    try:
        nodes = init.resample(segments).nodes.detach()
        nodes = nodes.expand(*z0.shape[:-1], segments + 1, m).clone()
    except RuntimeError:
        raise ShapeError(
            "geodesic",
            f"init curves for {tuple(z0.shape[:-1])} pairs in {m} dimensions",
            f"{tuple(init.nodes.shape)}",
            "Give one curve for all pairs, or one for each.",
        ) from None
    nodes[..., 0, :] = z0
    nodes[..., -1, :] = z1
    return Curve.from_nodes(nodes.view(-1, segments + 1, m))


def expect_graph(graph: Graph | None, z: Tensor) -> None:
    """None, or a graph on points like these.

    Raises:
        DTypeError: When it is not a graph of this package.
        GraphError: When its points have another dimension, dtype or device.
    """
    if graph is None:
        return
    if not isinstance(graph, Graph):
        raise DTypeError(
            "geodesic",
            "a graph made by M.graph(points)",
            type(graph).__name__,
            "Try M.graph(points).",
        )
    own = graph.points
    if own.shape[-1] != z.shape[-1] or own.dtype != z.dtype or own.device != z.device:
        got = f"{own.shape[-1]} of {own.dtype} on {own.device}"
        expected = f"a graph on points with {z.shape[-1]} coordinates of {z.dtype} on {z.device}"
        raise GraphError(
            "geodesic", expected, got, "Is it a graph of another manifold? Try M.graph(points)."
        )
