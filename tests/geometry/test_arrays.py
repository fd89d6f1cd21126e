"""Arrays in, arrays out, for every public method of a manifold."""

import inspect
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import DTypeError, NonFiniteError, ShapeError
from riemae.geometry import arrays

F64 = torch.float64


def network(dtype=F64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    return net.to(dtype).requires_grad_(False)


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.5, dtype=F64))

    def forward(self, z):
        return torch.cat([z, self.scale * z.square().sum(-1, keepdim=True)], -1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def wave(z):
    return (z[:, 0] + 2 * z[:, 1]).sin()


def swirl(z):
    return torch.stack([z[:, 1].sin(), z[:, 0].square()], -1)


Z, U = (draw(4, 2, seed=s) for s in range(2))
V = 0.1 * draw(4, 2, seed=2)
# Arguments that are arrays, and others that are required, by name.
CODES = {
    "z": Z,
    "z0": Z,
    "z1": Z + 0.3 * U,
    "u": U,
    "v": V,
    "w": draw(4, 3),
    "points": Z,
    "queries": Z + 0.1,
    "a": Z,
    "b": Z + 0.1,
    "curve": torch.stack([Z, Z + U], 1),
    "start": U,
    "slope": V,
    "normal": draw(4, 3),
}
OTHERS = {"f": wave, "field": swirl, "radius": 0.8, "k": 2, "rtol": 1e-3, "t": 0.02}
OTHERS["region"] = [(0.0, 1.0), (0.0, 1.0)]
# No arrays of points among their arguments, and one that has a test of its own.
ELSEWHERE = ("to", "as_space", "given", "conjugate_points")
METHODS = sorted(
    name
    for name, method in vars(Manifold).items()
    if inspect.isfunction(method) and not name.startswith("_") and name not in ELSEWHERE
)


def arguments(name, of):
    """Arguments of a method, its arrays passed through a function."""
    given = {}
    for parameter in inspect.signature(getattr(Manifold, name)).parameters.values():
        key = parameter.name
        required = parameter.default is parameter.empty and key != "self"
        if key in OTHERS and (required or key in ("k", "rtol", "t")):
            given[key] = OTHERS[key]
        elif key in CODES:
            given[key] = of(CODES[key])
        elif required:
            pytest.fail(f"Manifold.{name} takes {key}: give it a value in this file")
    return given


def array(x):
    return x.numpy().copy()


def compared(found, expected):
    """Tensors became arrays of the same numbers; what is more than a tensor holds tensors."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected.numpy())
    elif type(expected) is tuple:
        assert type(found) is tuple
        for one, other in zip(found, expected, strict=True):
            compared(one, other)
    else:
        assert type(found) is type(expected)
        if is_dataclass(found):
            for field in fields(found):
                value = getattr(found, field.name)
                assert not isinstance(value, np.ndarray)
                if isinstance(value, torch.Tensor):
                    other = getattr(expected, field.name)
                    assert torch.equal(value.nan_to_num(), other.nan_to_num())


@pytest.mark.filterwarnings("ignore::riemae.exceptions.DisconnectedGraphWarning")
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    if name == "distribution":
        M = Manifold(lambda z: torch.distributions.Normal(z.sin(), 1 + z.square()))
        found = M.distribution(Z.numpy())
        assert isinstance(found, torch.distributions.Distribution)
        assert torch.equal(found.mean, Z.sin())
        return
    M = Manifold(Bowl())
    expected = getattr(M, name)(**arguments(name, lambda x: x))
    found = getattr(M, name)(**arguments(name, array))
    compared(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_signatures_and_docstrings_stay(name):
    method = getattr(Manifold, name)
    assert method.__doc__
    assert list(inspect.signature(method).parameters)[0] == "self"
    assert method.__qualname__ == f"Manifold.{name}"


def test_conjugate_points(monkeypatch):
    """They take seconds to find: what is looked at is what the search for them gets."""

    class Found(Exception):
        pass

    def found(space, z, v, t, **options):
        raise Found(z, v)

    monkeypatch.setattr(solvers, "conjugate_points", found)
    with pytest.raises(Found) as caught:
        Manifold(Bowl()).conjugate_points(**arguments("conjugate_points", array))
    z, v = caught.value.args
    assert torch.equal(z, Z)
    assert torch.equal(v, V)


def test_in_order_as_well_as_by_name():
    M = Manifold(network())
    assert isinstance(M.inner(Z.numpy(), U.numpy(), v=V.numpy()), np.ndarray)
    assert isinstance(M.log_volume(Z.numpy()), np.ndarray)


class TestDtypes:
    def test_that_of_the_decoder(self):
        net = network(torch.float32)
        z = Z.numpy()
        for M in (Manifold(net), Manifold(lambda z: net(z))):
            assert M.metric(z).dtype == np.float32
            assert M.metric(z.astype(np.float32)).dtype == np.float32
        assert Manifold(lambda z: z.sin()).metric(z.astype(np.float32)).dtype == np.float64

    def test_whole_numbers(self):
        M = Manifold(network())
        found = M.metric(np.array([[1, 2], [3, 4]]))
        np.testing.assert_array_equal(found, M.metric(np.array([[1.0, 2.0], [3.0, 4.0]])))

    def test_half_precision(self):
        net = network(torch.bfloat16)
        M = Manifold(lambda z: net(z.bfloat16()))
        assert M.decode(Z.numpy()).dtype == np.float32

    @pytest.mark.parametrize("values", [["a", "b"], [1j, 2j], [None, 1]])
    def test_what_is_no_number(self, values):
        with pytest.raises(DTypeError, match="arrays of real numbers"):
            Manifold(network()).metric(np.array(values))


class TestKinds:
    M = Manifold(network())

    def test_views_and_arrays_that_cannot_be_written(self):
        z = Z.numpy().copy()
        z.flags.writeable = False
        np.testing.assert_array_equal(self.M.norm(z, z), self.M.norm(Z, Z).numpy())
        np.testing.assert_array_equal(self.M.metric(z[::-1]), self.M.metric(Z.flip(0)).numpy())

    def test_input_is_not_changed(self):
        z = Z.numpy().copy()
        self.M.geodesic(z, z + 0.1)
        np.testing.assert_array_equal(z, Z.numpy())

    def test_among_tensors(self):
        """One tensor is enough for tensors to come back, with gradients."""
        z = Z.clone().requires_grad_()
        found = self.M.distance(z, Z.numpy() + 0.2)
        assert found.requires_grad
        assert torch.equal(found, self.M.distance(z, Z + 0.2))

    def test_tables(self):
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame(Z.numpy(), columns=["one", "two"])
        np.testing.assert_array_equal(self.M.metric(table), self.M.metric(Z).numpy())
        table["name"] = "x"
        with pytest.raises(DTypeError, match="columns name"):
            self.M.metric(table)

    def test_conditions(self):
        def decoder(z, c):
            return torch.cat([z, c["a"] * z.square() + c["b"][:, :1]], -1)

        M = Manifold(decoder)
        c = {"a": torch.rand(4, 1, dtype=F64), "b": torch.arange(4)[:, None]}
        as_arrays = {name: x.numpy() for name, x in c.items()}
        expected = M.metric(Z, condition=c)
        np.testing.assert_array_equal(M.metric(Z.numpy(), condition=as_arrays), expected.numpy())
        assert torch.equal(M.metric(Z, condition=as_arrays), expected)

    def test_shaped_codes(self):
        M = Manifold(lambda z: z.flatten(1) + 0.1 * z.flatten(1).sin(), latent_shape=(2, 2))
        z = draw(3, 2, 2)
        np.testing.assert_array_equal(M.metric(z.numpy()), M.metric(z).numpy())
        assert M.log(z.numpy(), z.numpy() + 0.1).shape == (3, 2, 2)

    def test_queries_of_a_kept_result(self):
        index = self.M.neighbors(Z.numpy(), k=2)
        found = index.query(Z.numpy() + 0.01)
        assert torch.equal(found.indices, index.query(Z + 0.01).indices)

    def test_errors_are_those_of_tensors(self):
        with pytest.raises(ShapeError):
            self.M.metric(np.zeros((3, 5)))
        with pytest.raises(NonFiniteError):
            self.M.metric(np.full((3, 2), np.nan))


def test_calls_without_arrays_are_passed_on():
    seen = []

    class Thing:
        @arrays.takes_arrays
        def metric(self, z, scale=1.0):
            seen.append((z, scale))
            return z

    assert Thing().metric(Z, scale=2.0) is Z
    assert seen[0][0] is Z
