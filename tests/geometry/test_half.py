"""Decoders in coarser arithmetic than that of their points: carried with its error, never refused;
coupled rows and chance are refused in it as well."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from riemae import Manifold
from riemae.exceptions import DecoderError, DifferentiationError
from riemae.numerics.arithmetic import coarsest, in_double, roundoff
from riemae.numerics.dependence import dependence
from riemae.numerics.tolerances import coarser, tolerance
from riemae.solvers import HINTS, Status

SPACING = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
HALF = list(SPACING)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 20)]
        return nn.Sequential(*layers).eval().requires_grad_(False)


@functools.cache
def exact():
    return Manifold(copy.deepcopy(network()).double())


@functools.cache
def truth():
    a, b = draw(2, 4, 2, seed=1).double()
    return exact().geodesic(a, b, rtol=1e-7).length


class Casting(nn.Module):
    """Weights in half precision, points and data in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.net = copy.deepcopy(network()).to(dtype)

    def forward(self, z):
        return self.net(z.to(next(self.parameters()).dtype)).float()


def returning(dtype):
    half = copy.deepcopy(network()).to(dtype)
    return lambda z: half(z.to(dtype))


def in_autocast(dtype):
    def decode(z):
        with torch.autocast("cpu", dtype=dtype):
            return network()(z)

    return decode


def module(dtype):
    return copy.deepcopy(network()).to(dtype)


FORMS = {
    "weights in half": Casting,
    "half returned": returning,
    "autocast inside": in_autocast,
    "half throughout": module,
}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("form", FORMS)
class TestHalfPrecision:
    def test_the_metric_is_that_of_a_float64_copy_within_rounding(self, form, dtype):
        z = draw(8, 2)
        M = Manifold(FORMS[form](dtype))
        g, true = M.metric(z).double(), exact().metric(z.double())
        assert g.dtype == torch.float64
        assert float((g - true).abs().max()) < 4 * SPACING[dtype] * float(true.abs().max())

    def test_geodesics_are_right_within_their_bars(self, form, dtype):
        a, b = draw(2, 4, 2, seed=1)
        M = Manifold(FORMS[form](dtype))
        for rtol in (None, 0.2):
            result = M.geodesic(a, b, rtol=rtol)
            assert bool(((result.length - truth()).abs() <= result.error).all())
        assert coarser(torch.float32, SPACING[dtype]).geodesic <= M.geodesic(a, b).rtol < 0.2

    def test_what_it_cannot_carry_ends_in_precision(self, form, dtype):
        a, b = draw(2, 4, 2, seed=1)
        result = Manifold(FORMS[form](dtype)).geodesic(a, b, rtol=1e-4, throw=False)
        assert result.status.tolist() == [Status.PRECISION] * 4
        assert bool(((result.length - truth()).abs() <= result.error).all())


def test_the_sentence_says_so():
    assert "half precision" in HINTS[Status.PRECISION]


# Coupling and chance.


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.body = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32))
            self.head = nn.Sequential(nn.SiLU(), nn.Linear(32, 20))
            self.attention = nn.MultiheadAttention(32, 4)
        self.norm = nn.BatchNorm1d(32, track_running_stats=False)


def across_rows(p, z):
    x = p.body(z)[:, None]
    return p.head((x + p.attention(x, x, x)[0])[:, 0])


def by_position(p, z):
    return p.head(p.body(z)) * (1 + 0.02 * torch.arange(len(z))[:, None]).to(z)


COUPLED = {
    "attention across rows": (across_rows, "row alone"),
    "batch statistics": (lambda p, z: p.head(p.norm(p.body(z))), "row alone"),
    "a mean": (lambda p, z: p.head(p.body(z) - 0.1 * p.body(z).mean(0)), "row alone"),
    "position": (by_position, "row alone"),
    "dropout": (lambda p, z: p.head(F.dropout(p.body(z), 0.1, True)), "deterministic"),
}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_and_chance_are_refused_in_half_precision(name, dtype):
    f, message = COUPLED[name]
    parts = Parts().to(dtype).requires_grad_(False)
    with pytest.raises(DecoderError, match=message):
        Manifold(lambda z: f(parts, z.to(dtype)).float()).metric(draw(8, 2))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_derivative_that_is_cut_is_refused_in_half_precision(dtype):
    half = copy.deepcopy(network()).to(dtype)

    def partly(z):
        x = half(z.to(dtype)).float()
        return x + 3 * z.detach().repeat(1, 10)

    with pytest.raises(DifferentiationError, match="detach"):
        Manifold(partly).metric(draw(8, 2))


# Coarse products, chosen by the size of the batch.


def coarse(x):
    return x.bfloat16().float()


def product(x, layer):
    """Large batches take products of rounded factors, as some kernels do."""
    if len(x) >= 8:
        return F.linear(coarse(x), coarse(layer.weight), layer.bias)
    return layer(x)


def products(z):
    first, second, third = network()[::2]
    x = F.silu(product(z, first))
    return product(F.silu(product(x, second)), third)


def scattered(z):
    """Another rounding of size 1e-3 for each size of the batch."""
    x = network()(z)
    return x * (1 + 1e-3 * torch.sin(1e6 * x.detach() + len(z)))


@pytest.mark.parametrize("decoder", [products, scattered])
def test_rounding_that_changes_with_the_batch_is_carried(decoder):
    a, b = draw(2, 4, 2, seed=1)
    M = Manifold(decoder)
    z = draw(16, 2)
    true = exact().metric(z.double())
    assert float((M.metric(z) - true).abs().max()) < 0.02 * float(true.abs().max())
    result = M.geodesic(a, b)
    assert bool(((result.length - truth()).abs() <= result.error).all())
    sharp = M.geodesic(a, b, rtol=1e-5, throw=False)
    assert not bool(sharp.converged.any())
    assert bool(((sharp.length - truth()).abs() <= sharp.error).all())


@pytest.mark.parametrize(
    "coupled",
    [
        lambda z: network()(z) * (1 + 1e-3 * torch.arange(len(z))[:, None]),
        lambda z: network()(z) * (1 + 1e-3 * len(z)),
        lambda z: network()(z) + 1e-2 * network()(z).mean(0),
        lambda z: products(z) + 1e-2 * network()(z).mean(0),
    ],
    ids=["position", "number", "mean", "mean behind coarse products"],
)
def test_coupling_of_the_size_of_coarse_products_is_refused(coupled):
    with pytest.raises(DecoderError, match="row alone"):
        Manifold(coupled).metric(draw(16, 2))


# The tools.


def test_a_function_in_float64_is_that_of_a_float64_copy():
    z = draw(5, 2)
    twin = copy.deepcopy(network()).double()
    for decoder in (in_autocast(torch.bfloat16), lambda z: network()(z.float().half().float())):
        found = in_double(decoder)(z.double())
        torch.testing.assert_close(found, twin(z.double()), rtol=1e-13, atol=1e-14)


class Sequence(nn.Module):
    """A recurrent decoder of seven steps, in both directions."""

    def __init__(self, kind, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cells = kind(5, 12, num_layers=2, batch_first=True, bidirectional=True)
            self.first = nn.Linear(3, 5)
            self.last = nn.Linear(24, 4)
            self.steps = nn.Parameter(torch.randn(7, 5))

    def forward(self, z):
        return self.last(self.cells(self.first(z)[:, None] + self.steps)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("dtype", HALF)
def test_recurrent_layers_have_a_copy_in_float64(kind, dtype):
    # They compare the dtypes of input and weights themselves.
    half = Sequence(kind, 0).to(dtype).eval().requires_grad_(False)
    z = draw(5, 3)
    found = in_double(lambda z: half(z.to(dtype)))(z.double())
    torch.testing.assert_close(found, copy.deepcopy(half).double()(z.double()), rtol=0, atol=1e-15)
    assert not torch.is_autocast_enabled("cpu")


def test_recurrent_rounding_that_changes_with_the_batch_is_no_coupling():
    # Of these seeds, the rounding of 6 is alike at points nearby.
    for seed in (0, 6):
        M = Manifold(Sequence(nn.LSTM, seed).bfloat16().eval())
        assert M.jacobian(draw(3, 3)).isfinite().all()


def test_the_arithmetic_inside_is_measured():
    z = draw(4, 2)
    assert roundoff(network(), z) == 0
    assert coarsest(network(), z) is None
    constant = torch.ones(20, dtype=torch.bfloat16)
    assert roundoff(lambda z: network()(z) + constant, z) == 0  # which has no rounding
    for dtype in HALF:
        assert coarsest(returning(dtype), z) == dtype
        assert SPACING[dtype] <= roundoff(returning(dtype), z) < 4 * SPACING[dtype]
    found = dependence(products, draw(16, 2))
    assert found is not None
    assert found.sound


def test_tolerances_are_those_of_the_table_without_coarse_arithmetic():
    for dtype in (torch.float32, torch.float64):
        assert coarser(dtype, 0.0) is tolerance(dtype)
    assert coarser(torch.float32, 1e-2).length > 1e-2


def test_a_module_in_half_precision_is_given_points_in_it_every_time():
    net = module(torch.bfloat16)
    z = draw(4, 2)
    first = Manifold(net).metric(z)
    again = Manifold(net)  # with what the first has found out
    assert torch.equal(again.metric(z), first)
    assert torch.equal(Manifold(lambda z: net(z.bfloat16())).metric(z), first)
    net.float()
    assert Manifold(net).geodesic(z[:1], z[1:2]).rtol < 1e-2


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = module(torch.float32)
        self.shift = nn.Embedding(4, 20)

    def forward(self, z, given):
        label, place = given
        return self.net(z + place) + self.shift(label)


def test_conditions_of_a_module_in_half_precision_are_converted_with_the_points():
    single = Conditional()
    half = copy.deepcopy(single).half()
    z = draw(4, 2)
    given = (torch.arange(4), draw(4, 2, seed=3))
    exact = Manifold(single).metric(z, condition=given)
    found = Manifold(half).metric(z, condition=given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_what_was_found_of_the_arithmetic_travels_to_other_processes():
    M = Manifold(module(torch.bfloat16))
    z = draw(4, 2)
    g = M.metric(z)
    space = pickle.loads(pickle.dumps(M.as_space(z)))
    assert torch.equal(space.metric(z), g)
    assert space.roundoff == M.as_space(z).roundoff > 2.0**-8


def test_a_function_of_a_network_in_half_precision_says_how_to_convert():
    net = module(torch.float16)
    with pytest.raises(DecoderError, match=r"z\.to\(torch\.float16\)"):
        Manifold(lambda z: net(z)).metric(draw(2, 2))


def test_what_a_module_in_half_precision_cannot_take_is_told_of_its_own_points():
    net = module(torch.float16)
    with pytest.raises(DecoderError, match=r"torch\.float32"):
        Manifold(net).metric(draw(2, 5))
