"""Optional hooks of a space: used where they are, replaced by a default where they are not."""

import pytest
import torch

from riemae import Manifold, solvers
from riemae.numerics.offers import offers
from riemae.solvers import hooks
from riemae.solvers.curve import Curve

F64 = torch.float64
PLANE = solvers.MetricSpace(lambda z: torch.eye(2).to(z).expand(len(z), 2, 2))
NODES = torch.tensor([[[0.0, 0.0], [0.4, 0.7], [1.0, 1.0]]], dtype=F64)
PROTOCOLS = {
    "energy_and_gradient": hooks.HasEnergyAndGradient,
    "between": hooks.HasBetween,
    "products": hooks.HasProducts,
    "embedded": hooks.HasEmbedded,
    "velocities": hooks.HasVelocities,
    "labels": hooks.HasLabels,
    "restored": hooks.HasRestored,
    "ambient_features": hooks.HasAmbientFeatures,
    "gradients_only": hooks.HasGradientsOnly,
    "turning": hooks.HasTurning,
    "deviation": hooks.HasDeviation,
    "geodesic": hooks.HasGeodesic,
}


class Everything:
    labels = 1

    def energy_and_gradient(self, nodes):
        return "energy", nodes

    def between(self, z0, z1):
        return "between", z0, z1

    def products(self, nodes):
        return "products", nodes

    def embedded(self, points, then):
        return then(points)

    def velocities(self, nodes):
        return 2 * nodes

    def restored(self, curve, stats):
        return "restored", stats

    def ambient_features(self, z):
        return 3 * z

    def gradients_only(self, z):
        return len(z) == 3

    def turning(self, z, v):
        return z[:, :, None] * v[:, None]

    def deviation(self, z, v):
        return torch.stack([z, v], 1)

    def geodesic(self, z0, z1):
        return "own", z0, z1


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_hook_is_in_the_table_and_recognised(name):
    assert f"``{name}``" in hooks.__doc__
    assert offers(Everything(), PROTOCOLS[name])
    assert not offers(PLANE, PROTOCOLS[name])


def test_hooks_are_used():
    space = Everything()
    assert hooks.energy_and_gradient(space, NODES)[0] == "energy"
    assert hooks.between(space, 1, 2) == ("between", 1, 2)
    assert hooks.products(space, NODES)[0] == "products"
    assert torch.equal(hooks.embedding_of(space)(NODES, lambda x: x + 1), NODES + 1)
    assert torch.equal(hooks.velocities_of(space, NODES), 2 * NODES)
    assert hooks.labels_of(space) == 1
    assert hooks.restored(space, Curve.from_nodes(NODES), {"a": 1}) == ("restored", {"a": 1})
    assert torch.equal(hooks.features_of(space, NODES[0]), 3 * NODES[0])
    assert hooks.gradients_only(space, NODES[0])
    z, v = NODES[0], NODES[0].flip(0)
    assert torch.equal(hooks.turning_of(space, z, v), z[:, :, None] * v[:, None])
    assert torch.equal(hooks.deviation_of(space, z, v), torch.stack([z, v], 1))
    assert hooks.solver_of(space, solvers.geodesic)(1, 2) == ("own", 1, 2)


def test_defaults():
    # 2 segments: the energy is 2 (|Δ1|² + |Δ2|²), its gradient in the middle 4 (Δ1 − Δ2).
    energy, gradient = hooks.energy_and_gradient(PLANE, NODES)
    first, second = NODES[0].diff(dim=0)
    assert torch.allclose(energy, 2 * (first.square().sum() + second.square().sum()))
    assert torch.allclose(gradient[0, 0], 4 * (first - second))
    assert hooks.between(PLANE, NODES[:, 0], NODES[:, -1]) is PLANE
    local = hooks.products(PLANE, NODES)
    assert torch.allclose(local.energy, energy)
    assert torch.allclose(local.hessian(gradient), 8 * gradient)
    assert hooks.embedding_of(PLANE) is None
    assert hooks.velocities_of(PLANE, NODES) is None
    assert hooks.labels_of(PLANE) == 0
    curve = Curve.from_nodes(NODES)
    assert hooks.restored(PLANE, curve, {}) is curve
    assert hooks.features_of(PLANE, NODES[0]) is None
    assert not hooks.gradients_only(PLANE, NODES[0])
    assert hooks.turning_of(PLANE, NODES[0], NODES[0]) is None
    assert hooks.deviation_of(PLANE, NODES[0], NODES[0]) is None
    solve = hooks.solver_of(PLANE, solvers.geodesic)
    assert torch.allclose(
        solve(NODES[:, 0], NODES[:, -1]).length, torch.tensor(2.0).double().sqrt()
    )


def test_a_manifold_has_what_solvers_use():
    M = Manifold(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()).double()).as_space()
    names = "energy_and_gradient products embedded velocities ambient_features turning deviation"
    for name in names.split():
        assert offers(M, PROTOCOLS[name]), name
