"""What a call for geodesics may ask of torch: operations, and numbers read back from the device.

An operation costs a launch on an accelerator; a number that is read back makes the host wait until
the device has done all before it. Numbers on a CPU are counted as if they were on a device. The
limits on operations are about a twentieth above what is needed at present, those on reads are what
is needed.
"""

import pytest
import torch
from operations import counted
from torch import nn

from riemae import Manifold, solvers
from riemae.differential import chunks
from riemae.solvers import state

LIMITS = {  # by the number of pairs: operations, without those that only name a part; and reads
    1: (670, 12),
    64: (820, 14),
}
FIELDS = ("length", "error", "status", "index", "lower_bound", "speed_deviation")


@pytest.fixture(autouse=True)
def no_shared_memory(monkeypatch):
    """The processor's memory counts as that of a device, from which numbers are transferred.

    Its chunks are as large as there, where no cache has to hold them.
    """
    monkeypatch.setattr(state, "_ON_HOST", frozenset())
    monkeypatch.setattr(chunks, "_CPU_BYTES", chunks._DEVICE_BYTES)


def manifold():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)]
    return Manifold(nn.Sequential(*layers).double())


def points(count):
    source = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 8, generator=source, dtype=torch.float64)


def least(call):
    """Counts of a warm call that does not look again at what it has found out before."""
    for _ in range(5):
        call()
    both = [counted(call) for _ in range(2)]
    return {name: min(counts[name] for counts in both) for name in ("launches", "reads")}


@pytest.mark.parametrize("count", LIMITS)
def test_a_call(count):
    m = manifold()
    z0, z1 = points(count)
    found = least(lambda: m.geodesic(z0, z1, rtol=1e-4))
    launches, reads = LIMITS[count]
    assert found["launches"] <= launches
    assert found["reads"] <= reads


@pytest.mark.parametrize("rtol", [1e-4, 1e-5, 1e-7])
def test_one_read_a_step_and_one_a_level(rtol, monkeypatch):
    m = manifold()
    z0, z1 = points(4)
    steps = []
    step = solvers.Newton.step

    def seen(self, space, before, tol):
        steps.append(before)
        return step(self, space, before, tol)

    monkeypatch.setattr(solvers.Newton, "step", seen)
    gradients = watched(monkeypatch)
    found = []

    def call():
        found.append(m.geodesic(z0, z1, rtol=rtol))

    reads = least(call)["reads"]
    calls = len(found)
    finest = int(found[0].stats["segments"].max())
    levels = (finest // 8).bit_length()
    # The first point, the start curves, what the chunk knows, what came of it, and the verdict.
    a_call = 5
    assert reads <= a_call + levels + (len(steps) + len(gradients)) / calls


def watched(monkeypatch, name="energy_and_gradient"):
    """Calls of the gradient by the space of a manifold: trial steps, and first looks."""
    calls = []
    space = type(manifold().as_space(points(1)[0]))
    gradient = getattr(space, name)

    def seen(self, *given):
        calls.append(given)
        return gradient(self, *given)

    monkeypatch.setattr(space, name, seen)
    return calls


@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
def test_whole_curves_read_four_times_a_gradient(rtol, monkeypatch):
    m = manifold()
    z0, z1 = points(4)
    gradients = watched(monkeypatch, "pulled")
    r = m.geodesic(z0, z1, rtol=rtol)
    assert bool((r.index < 0).all())  # no segments, and no second derivatives
    calls = 2
    del gradients[:]
    reads = counted(lambda: [m.geodesic(z0, z1, rtol=rtol) for _ in range(calls)])["reads"]
    # Where each is the first look of a level: what it was like, the verdict, who goes on, and what
    # has come of those that have ended. The first level compares with the start curves.
    a_call = 7
    assert reads <= calls * a_call + 4 * len(gradients)


def test_numbers_that_are_transferred_together_change_nothing(monkeypatch):
    m = manifold()
    z0, z1 = points(6)
    rtols = (1e-3, 1e-6)  # whole curves, and Newton, there as here
    transferred = [m.geodesic(z0, z1, rtol=rtol) for rtol in rtols]
    monkeypatch.undo()
    for rtol, one in zip(rtols, transferred, strict=True):
        shared = m.geodesic(z0, z1, rtol=rtol)
        for name in FIELDS:
            assert torch.equal(getattr(one, name), getattr(shared, name))
        assert torch.equal(one.curve.nodes, shared.curve.nodes)


@pytest.mark.parametrize(
    "solver", [solvers.LBFGS(), solvers.NewtonCG(), solvers.QuasiNewton(), solvers.GEORCE()]
)
def test_for_any_solver(solver, monkeypatch):
    m = manifold()
    z0, z1 = points(3)
    transferred = m.geodesic(z0, z1, rtol=1e-3, solver=solver, throw=False)
    monkeypatch.undo()
    shared = m.geodesic(z0, z1, rtol=1e-3, solver=solver, throw=False)
    assert torch.equal(transferred.length, shared.length)
