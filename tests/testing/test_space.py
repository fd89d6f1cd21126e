"""check_space: it passes for every space that ships, and names every law that is broken."""

import types

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import ContractError, DTypeError, ShapeError
from riemae.geometry.decoder import Decoder
from riemae.geometry.pullback import PullbackMetric
from riemae.testing import check_space

F32, F64 = torch.float32, torch.float64
Z = torch.tensor([[0.1, 0.8], [0.4, 1.2], [-0.3, 0.6]]).double()


@pytest.mark.parametrize("known", spaces.CATALOGUE, ids=spaces.NAMES)
def test_shipped_spaces_pass(known):
    check_space(known.space(), known.points(torch.Generator().manual_seed(0), 3))


@pytest.mark.parametrize("name", ["sphere", "poincaré disc", "half plane, ambient"])
def test_in_single_precision(name):
    known = spaces.CATALOGUE[spaces.NAMES.index(name)]
    space = known.space()
    if isinstance(space, Manifold):
        space = space.to(dtype=F32)
    check_space(space, known.points(torch.Generator().manual_seed(0), 3).float())


def test_hooks_that_are_there_are_looked_at():
    hooks = {"energy_and_gradient", "products", "embedded", "velocities"}
    plain = check_space(solvers.MetricSpace(spaces.half_plane_tensor), Z)
    assert hooks.isdisjoint(plain)
    assert hooks <= set(check_space(Manifold(spaces.sphere), Z))


class Sound(solvers.MetricSpace):
    """The half plane, with some methods replaced; each gets the true result first."""

    def __init__(self):
        super().__init__(spaces.half_plane_tensor)


def broken(**methods):
    def replace(name, change):
        def method(self, *args):
            return change(getattr(Sound, name)(self, *args), *args)

        return method

    return type("Broken", (Sound,), {name: replace(name, f) for name, f in methods.items()})()


def broken_sphere(**methods):
    """The sphere, with optional hooks that are wrong."""

    def replace(name, change):
        def method(self, *args):
            return change(getattr(PullbackMetric, name)(self, *args), *args)

        return method

    changed = {name: replace(name, change) for name, change in methods.items()}
    return type("Broken", (PullbackMetric,), changed)(Decoder(spaces.sphere), None, None)


def broken_laws(space, z=Z):
    with pytest.raises(ContractError, match="every law to hold") as caught:
        check_space(space, z.clone())
    assert caught.value.hint
    return {part.split(" off by ")[0] for part in caught.value.got.split(", ")}


def left_nodes(out, nodes):
    """Chords by the metric at their left ends alone."""
    g = spaces.half_plane_tensor(nodes[:, :-1])
    step = nodes.diff(dim=1)
    return torch.einsum("pni,pnij,pnj->pn", step, g, step)


class Blocked(Sound):
    """Its chords are right, and their derivatives are wrong."""

    def squared_chords(self, nodes):
        g = self.metric(nodes.detach())
        step = nodes.diff(dim=1)
        return torch.einsum("pni,pnij,pnj->pn", step, (g[:, :-1] + g[:, 1:]) / 2, step)


def spoil(out, z, *rest):
    z.add_(1e-3)
    return out


def scaled(expansion, **factors):
    fields = ("energy", "gradient", "gauss_newton", "correction", "noise", "scalable")
    values = {name: getattr(expansion, name) for name in fields}
    for name, factor in factors.items():
        value = values[name]
        values[name] = value.scaled(factor) if hasattr(value, "scaled") else factor * value
    return solvers.Expansion(**values)


def times(factor, x):
    """A value, or the values of a function, times a number."""
    return (lambda v: factor * x(v)) if callable(x) else factor * x


def products(**factors):
    def change(out, nodes):
        values = {name: getattr(out, name) for name in ("energy", "gradient", "noise", "hessian")}
        for name, factor in factors.items():
            values[name] = times(factor, values[name])
        return solvers.Products(**values)

    return broken_sphere(products=change)


def bent(out, nodes, second_order=True):
    """A Gauss-Newton part that is not positive, with an unchanged Hessian."""
    if out.correction is None:
        return scaled(out, gauss_newton=-1.0)
    return out


BROKEN = [
    ("metric", lambda: broken(metric=lambda g, z: g + torch.tensor([[0.0, 0.1], [-0.1, 0.0]]))),
    ("norm", lambda: broken(norm=lambda out, z, v: 1.001 * out)),
    ("chords", lambda: broken(squared_chords=lambda out, nodes: -out)),
    ("reversal", lambda: broken(squared_chords=left_nodes)),
    ("second order", lambda: broken(squared_chords=left_nodes)),
    ("second order", lambda: broken(squared_chords=lambda out, nodes: 1.1 * out)),
    ("gradient", Blocked),
    (
        "energy_and_gradient",
        lambda: broken_sphere(energy_and_gradient=lambda o, n: (o[0], 2 * o[1])),
    ),
    (
        "energy_and_gradient",
        lambda: broken_sphere(energy_and_gradient=lambda o, n: (2 * o[0], o[1])),
    ),
    ("expansion", lambda: broken(expand=lambda out, *_: scaled(out, gradient=1.001))),
    ("expansion", lambda: broken(expand=lambda out, *_: scaled(out, energy=1.001))),
    ("expansion", lambda: broken(expand=lambda out, *_: scaled(out, gauss_newton=1.001))),
    ("expansion", lambda: broken(expand=bent)),
    ("products", lambda: products(hessian=1.001)),
    ("products", lambda: products(gradient=1.001)),
    ("products", lambda: products(energy=1.001)),
    ("acceleration", lambda: broken(acceleration=lambda a, z, v: -a)),
    ("acceleration", lambda: broken(acceleration=lambda a, z, v: 0 * a)),
    ("residual", lambda: broken_sphere(residual=lambda r, nodes: 1.01 * r)),
    ("residual", lambda: broken_sphere(residual=lambda r, nodes: r[:, 1:])),
    ("lower bound", lambda: broken_sphere(ambient_distance=lambda d, a, b: 1.2 * d)),
    ("embedded", lambda: broken_sphere(embedded=lambda y, points, then: 1.001 * y)),
    ("velocities", lambda: broken_sphere(velocities=lambda v, nodes: 1.1 * v)),
    ("rows", lambda: broken(squared_chords=lambda out, n: out * (1 + n[:1].square().sum()))),
    ("rows", lambda: broken(acceleration=lambda a, z, v: a * len(z))),
    ("dtype", lambda: broken(norm=lambda out, z, v: out.float())),
    ("dtype", lambda: broken(squared_chords=lambda out, nodes: out[:, :-1])),
    ("inputs", lambda: broken(norm=spoil)),
]


@pytest.mark.parametrize(("law", "make"), BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)])
def test_a_broken_law_is_named(law, make):
    assert law in broken_laws(make())


def test_a_sound_law_is_not_blamed():
    check_space(Sound(), Z)
    assert broken_laws(broken(acceleration=lambda a, z, v: -a)) == {"acceleration"}
    assert broken_laws(products(hessian=2.0)) == {"products"}
    assert broken_laws(broken_sphere(residual=lambda r, nodes: 2 * r)) == {"residual"}


def test_what_is_not_a_space():
    with pytest.raises(DTypeError, match="check_space.*a space, got object"):
        check_space(object(), Z)
    half = types.SimpleNamespace(metric=lambda z: z, inner=lambda z, u, v: z)
    with pytest.raises(DTypeError, match=r"without acceleration, .*squared_chords"):
        check_space(half, Z)
    with pytest.raises(ShapeError, match=r"z of shape \(k, m\)"):
        check_space(Sound(), torch.zeros(2))
