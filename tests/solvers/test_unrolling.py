"""Which pairs wait to begin anew, and when they are looked at."""

import numpy as np
import torch

from riemae import Manifold, solvers
from riemae.solvers.methods.newton import Newton
from riemae.solvers.state import PathState
from riemae.solvers.unrolling import Unrolling, Watch


def circle(z):  # (k, 1) -> (k, 2)
    return torch.cat([z.cos(), z.sin()], -1)


def rounds():
    """Twice around in four chords."""
    nodes = torch.linspace(0, 4 * torch.pi, 5, dtype=torch.float64)
    return nodes[None, :, None].repeat(2, 1, 1)


def space():
    return Manifold(circle).as_space(torch.zeros(1, 1, dtype=torch.float64))


def test_looks_wait():
    """Nothing is looked at before ten steps, then after twice as many."""
    state = PathState.start(rounds())
    start = solvers.Curve.from_nodes(rounds())
    watch = Unrolling(space(), Newton(segments=4), start).watch(
        np.array([1.0, 100.0]), np.zeros(2, dtype=np.int64), 4
    )
    state.book["steps"] = 9
    watch.see(state)
    assert not watch.gone.any()
    state.book["steps"] = 10
    watch.see(state)
    assert watch.gone.tolist() == [True, False]  # the other one is shorter than its start
    assert watch.looks.tolist() == [20, 20]


def test_not_for_every_solver():
    start = solvers.Curve.from_nodes(rounds())
    lengths = np.ones(2)
    steps = np.zeros(2, dtype=np.int64)
    for solver in (solvers.NewtonCG(), Newton(target="stationary"), Newton(max_segments=16)):
        watch = Unrolling(space(), solver, start).watch(lengths, steps, 8)
        assert watch.space is None
        assert np.isnan(watch.start).all()


def test_nothing_to_watch():
    watch = Watch.of_none(3)
    watch.see(PathState.start(rounds()))
    assert watch.gone.tolist() == [False] * 3


def test_waiting_pairs_come_back_at_their_resolution():
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    start = solvers.Curve.line(z0, z0 + 1.0, 32)
    anew = Unrolling(space(), Newton(), start)
    steps = np.array([3, 4])
    ((pairs, measure),) = anew.begin(np.array([0, 1]), steps, 8)
    assert pairs.tolist() == [0, 1]
    np.testing.assert_allclose(measure.length, 1.0)
    assert anew.rows.tolist() == [0, 1]
    assert anew.admit(16) == []
    ((pairs, nodes, taken),) = anew.admit(32)
    assert pairs.tolist() == [0, 1]
    assert nodes.shape == (2, 33, 1)
    assert taken.tolist() == [3, 4]
    assert not anew.waiting
