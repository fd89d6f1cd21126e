"""check_solver: it passes for every solver that ships, and names every promise that is broken."""

from dataclasses import dataclass, replace

import pytest
import torch

from riemae import solvers
from riemae.exceptions import ContractError, DTypeError, OptionError
from riemae.solvers import Status
from riemae.testing import check_solver

SHIPPED = {
    "Newton": (solvers.Newton(), {}),
    "Newton, first order": (solvers.Newton(second_order=False), {}),
    "NewtonCG": (solvers.NewtonCG(), {}),
    "QuasiNewton": (solvers.QuasiNewton(), {}),
    "Spectral": (solvers.Spectral(), {}),
    "GaussNewton": (solvers.GaussNewton(), {}),
    "LBFGS": (solvers.LBFGS(), {"pairs": 3}),
    "Adam": (solvers.Adam(), {"pairs": 3}),
    "CubicSpline": (solvers.CubicSpline(), {"pairs": 3, "same_bits": False}),
    "GEORCE": (solvers.GEORCE(), {"pairs": 3}),
    "Shooting": (solvers.Shooting(), {"pairs": 2, "rtol": 1e-2}),
    "BVP": (solvers.BVP(), {"pairs": 2, "rtol": 1e-2}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_solvers_pass(name):
    solver, options = SHIPPED[name]
    report = check_solver(solver, **options)
    assert set(report) == {
        *("frozen", "state", "converged", "accuracy", "error", "upper bound", "ends", "honest"),
        "alone",
    }


def test_in_single_precision():
    check_solver(solvers.Newton(), dtype=torch.float32, rtol=1e-3)


def broken_promises(solver, **options):
    with pytest.raises(ContractError, match="check_solver") as caught:
        check_solver(solver, pairs=2, **options)
    assert caught.value.hint
    return {part.split(" off by ")[0] for part in caught.value.got.split(", ")}


@dataclass(frozen=True)
class Base:
    """Newton's method in a class of its own, which tests break."""

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200

    def newton(self):
        return solvers.Newton(self.segments, self.max_segments, self.max_steps)

    def begin(self, nodes):
        return self.newton().begin(nodes)

    def step(self, space, state, tol):
        return self.newton().step(space, state, tol)


class Lying(Base):
    """Ends every curve where it begins, as converged."""

    def begin(self, nodes):
        return solvers.State.start(nodes)

    def step(self, space, state, tol):
        done = torch.full_like(state.status, int(Status.CONVERGED))
        return replace(state, status=done, decrement=torch.zeros_like(state.decrement))


class Hurried(Base):
    """As good as Newton, except that its last step is taken for the end."""

    def step(self, space, state, tol):
        if self.max_steps > 1:
            return super().step(space, state, tol)
        return Lying.step(self, space, solvers.State.start(state.nodes), tol)

    def begin(self, nodes):
        return super().begin(nodes) if self.max_steps > 1 else solvers.State.start(nodes)


class Giving(Base):
    """Gives up at once."""

    begin = Lying.begin

    def step(self, space, state, tol):
        return replace(state, status=torch.full_like(state.status, int(Status.STALLED)))


class Crowded(Base):
    """Steps are shorter where the batch is larger."""

    def step(self, space, state, tol):
        if len(state.nodes) == 1:
            return super().step(space, state, tol)
        return super().step(space, state, tol * 1e-3)


class Displaced(Base):
    """Begins with other nodes than it is given."""

    def begin(self, nodes):
        return super().begin(nodes * (1 + 1e-9))


@dataclass
class Soft(Base.__bases__[0]):
    """Settings that can be changed."""

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200
    newton = Base.newton
    begin = Base.begin
    step = Base.step


@pytest.mark.parametrize(
    ("promise", "solver"),
    [
        ("honest", Hurried()),
        ("converged", Lying()),
        ("converged", Giving()),
        ("alone", Crowded()),
        ("state", Displaced()),
        ("frozen", Soft()),
    ],
)
def test_a_broken_promise_is_named(promise, solver):
    assert promise in broken_promises(solver)


def test_a_kept_promise_is_not_blamed():
    check_solver(Base(), pairs=2)
    assert broken_promises(Hurried()) == {"honest"}
    assert broken_promises(Soft()) == {"frozen"}
    assert broken_promises(Displaced()) >= {"state"}


def test_results_that_no_driver_should_make(monkeypatch):
    # The driver keeps end points and lengths correct for every solver. These laws test the driver,
    # so they are broken here after it.
    true = solvers.geodesic

    def changed(**fields):
        def geodesic(*args, **options):
            found = true(*args, **options)
            return replace(found, **{name: f(found) for name, f in fields.items()})

        return geodesic

    monkeypatch.setattr(solvers, "geodesic", changed(length=lambda r: 0.9 * r.length))
    assert "upper bound" in broken_promises(Base())
    monkeypatch.setattr(solvers, "geodesic", changed(length=lambda r: 1.01 * r.length))
    assert {"accuracy", "error"} <= broken_promises(Base())
    sure = changed(length=lambda r: 1.00005 * r.length, error=lambda r: 0 * r.error)
    monkeypatch.setattr(solvers, "geodesic", sure)
    assert broken_promises(Base()) == {"error"}
    moved = changed(curve=lambda r: replace(r.curve, nodes=r.curve.nodes + 1e-6))
    monkeypatch.setattr(solvers, "geodesic", moved)
    assert broken_promises(Base()) == {"ends"}


def test_what_is_not_a_solver():
    for wrong in (solvers.Newton, object(), None):
        with pytest.raises(DTypeError, match="settings of a path solver"):
            check_solver(wrong)
    with pytest.raises(OptionError, match="pairs"):
        check_solver(solvers.Newton(), pairs=1)
    with pytest.raises(OptionError, match="rtol"):
        check_solver(solvers.Newton(), rtol=-1.0)
