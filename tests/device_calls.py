"""Every public method of a manifold, with arguments of :class:`on_device.Given`.

A new method has to be entered here, or in :data:`ELSEWHERE` with the test that has it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from on_device import RTOL, solved


@dataclass(frozen=True)
class Call:
    """A method with its arguments.

    Attributes:
        run: ``(M, given) -> tensors``.
        kind: How exact it is: a key of ``on_device.AGREEMENT``.
        rows: Whether the result has one row for each point, so that a point may stand alone.
        slow: Whether its numbers are left to the tests of its topic.
    """

    run: Any
    kind: str = "value"
    rows: bool = True
    slow: bool = False


def value(run, **options):
    return Call(run, **options)


def second(run, **options):
    return Call(run, "second", **options)


def flow(run, **options):
    return Call(run, "solved", **options)


def stochastic(method, **options):
    """Random numbers drawn on the CPU are the same everywhere."""

    def run(M, g):
        generator = torch.Generator().manual_seed(0)
        how = {"estimator": "hutchinson", "samples": 2, **options}
        return getattr(M, method)(g.z, generator=generator, **how)

    return run


def rtol(g):
    return RTOL[g.z.dtype]


def wave(z):
    return (z[:, 0] + 2 * z[:, 1]).sin()


def swirl(z):
    return torch.stack([z[:, 1].sin(), z[:, 0].square()], -1)


def box(g):
    return torch.tensor([[0.0, 1.0], [-0.5, 0.5]]).to(g.z)


def nearest(M, g):
    found = M.neighbors(g.z, min(2, len(g.z) - 1), g.end, rtol=rtol(g))
    return found.distances, found.errors


def within(M, g):
    found = M.radius_neighbors(g.z, 0.5, g.end, rtol=rtol(g))
    return found.distances, found.errors


def graph(M, g):
    """Distances along a graph, its points, and a curve."""
    found = M.graph(g.z, k=min(3, len(g.z) - 1))
    return found.distances(), found.points, found.curves([0], [1]).nodes


MAP = {
    "decode": value(lambda M, g: M.decode(g.z)),
    "jacobian": value(lambda M, g: M.jacobian(g.z)),
    "pushforward": value(lambda M, g: M.pushforward(g.z, g.v)),
    "pullback": value(lambda M, g: M.pullback(g.z, g.x)),
    "taylor": value(lambda M, g: M.taylor(g.z, g.v)),
}
METRIC = {
    "metric": value(lambda M, g: M.metric(g.z)),
    "metric_product": value(lambda M, g: M.metric_product(g.z, g.v)),
    "inner": value(lambda M, g: M.inner(g.z, g.u, g.v)),
    "norm": value(lambda M, g: M.norm(g.z, g.v)),
    "eigenvalues": second(lambda M, g: M.eigenvalues(g.z)),
    "metric_factor": second(lambda M, g: M.metric_factor(g.z)),
    "log_volume": second(lambda M, g: M.log_volume(g.z)),
    "volume_density": second(lambda M, g: M.volume_density(g.z)),
    "christoffel": second(lambda M, g: M.christoffel(g.z)),
    "acceleration": second(lambda M, g: M.acceleration(g.z, g.v)),
    "integrate": second(lambda M, g: M.integrate(wave, box(g), rtol=1e-3).value, rows=False),
    "volume": second(lambda M, g: M.volume(box(g), rtol=1e-3).value, rows=False),
    "gradient": second(lambda M, g: M.gradient(wave, g.z)),
    "laplacian": second(lambda M, g: M.laplacian(wave, g.z)),
    "divergence": second(lambda M, g: M.divergence(swirl, g.z)),
    "distortion": second(lambda M, g: M.distortion(g.z, local=True)),
    "distortion, area": second(lambda M, g: M.distortion(g.z, "area"), rows=False),
    "distortion, drawn": second(stochastic("distortion"), rows=False),
}
CURVATURE = {
    "second_fundamental_form": second(lambda M, g: M.second_fundamental_form(g.z, g.u, g.v)),
    "curvature_form": second(lambda M, g: M.curvature_form(g.z)),
    "extrinsic_curvature": second(lambda M, g: M.extrinsic_curvature(g.z, decoded=True)),
    "extrinsic_curvature, drawn": second(stochastic("extrinsic_curvature"), rows=False),
    "mean_curvature": second(lambda M, g: M.mean_curvature(g.z)),
    "principal_curvatures": second(lambda M, g: M.principal_curvatures(g.z, g.x)),
    "riemann": second(lambda M, g: M.riemann(g.z, with_metric=True)),
    "ricci": second(lambda M, g: M.ricci(g.z)),
    "scalar_curvature": second(lambda M, g: M.scalar_curvature(g.z)),
    "scalar_curvature, drawn": second(stochastic("scalar_curvature"), rows=False),
    "kretschmann": second(lambda M, g: M.kretschmann(g.z)),
    "kretschmann, drawn": second(stochastic("kretschmann", estimator="planes"), rows=False),
    "sectional_curvature": second(lambda M, g: M.sectional_curvature(g.z, g.u, g.end)),
    "gaussian_curvature": second(lambda M, g: M.gaussian_curvature(g.z)),
}
DISTANCES = {
    "length": flow(lambda M, g: M.length(torch.stack([g.z, g.end], 1), return_error=True)[0]),
    "energy": flow(lambda M, g: M.energy(torch.stack([g.z, g.end], 1))),
    "geodesic": flow(lambda M, g: solved(M.geodesic(g.z, g.end, rtol=rtol(g)))),
    "distance": flow(lambda M, g: M.distance(g.z, g.end, rtol=rtol(g))),
    "distance_matrix": flow(lambda M, g: M.distance_matrix(g.z, rtol=rtol(g)), rows=False),
    "distance_matrix, chord": value(
        lambda M, g: M.distance_matrix(g.z, g.end, method="chord"), rows=False
    ),
    "distance_matrix, graph": flow(
        lambda M, g: M.distance_matrix(g.z, method="graph", k=2), rows=False
    ),
    "graph": flow(graph, rows=False),
    "neighbors": flow(nearest, rows=False),
    "radius_neighbors": flow(within, rows=False),
}
FLOWS = {
    "exp": flow(lambda M, g: M.exp(g.z, g.v, rtol=rtol(g))),
    "exp, at times": flow(lambda M, g: M.exp(g.z, g.v, torch.linspace(0.1, 1, 3), rtol(g))),
    "log": flow(lambda M, g: M.log(g.z, g.end, rtol=rtol(g))),
    "shoot": flow(lambda M, g: M.shoot(g.z, g.v, segments=4, rtol=rtol(g)).nodes),
    "jacobi_field": flow(lambda M, g: M.jacobi_field(g.z, g.v, slope=g.u), slow=True),
    "second_variation": flow(lambda M, g: M.second_variation(g.z, g.v), slow=True),
    "conjugate_points": flow(lambda M, g: M.conjugate_points(g.z, g.v), slow=True),
    "transport": flow(lambda M, g: M.transport(torch.stack([g.z, g.end], 1), g.u, rtol(g))),
}
TOPICS = {
    "map": MAP,
    "metric": METRIC,
    "curvature": CURVATURE,
    "distances": DISTANCES,
    "flows": FLOWS,
}
CALLS = {name: call for topic in TOPICS.values() for name, call in topic.items()}
# What has no numbers, or needs a decoder of its own: tests/device/test_decoders.py.
ELSEWHERE = {
    "ambient",
    "as_space",
    "decoder",
    "distribution",
    "explain",
    "given",
    "kinks",
    "data_shape",
    "latent_dim",
    "members",
    "to",
}
