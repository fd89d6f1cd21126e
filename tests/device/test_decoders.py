"""Decoders of all kinds on a device: families of distributions, layers, conditions, ensembles."""

import copy
import pickle
from dataclasses import fields

import pytest
import torch
from likelihoods import CASES
from on_device import (
    DTYPES,
    F32,
    F64,
    Given,
    assert_near,
    assert_placed,
    elsewhere,
    network,
    parts,
)
from spaces import great_circle, paraboloid, sphere
from torch import distributions as td
from torch import nn

import riemae
from riemae import Ensemble, Manifold
from riemae.exceptions import DeviceError

# One of each way to compute: formulas, special functions, quadrature, factors of matrices.
FAMILIES = (
    "bernoulli",
    "binomial, probs",
    "categorical",
    "continuous bernoulli",
    "negative binomial",
    "negative binomial, dispersion",
    "gamma",
    "beta",
    "dirichlet",
    "normal",
    "logit-normal",
    "student",
    "wishart",
    "von mises",
    "multivariate normal",
    "independent",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, device):
    """Fisher-Rao metrics in float32 are those of the CPU in float64."""
    decoder = CASES[family].decoder
    z = Given.drawn(3, 2, 3, device, F32).z
    M = Manifold(decoder)
    g = M.metric(z)
    assert_placed(g, device, F32)
    expected = Manifold(decoder).metric(z.double().cpu())
    # Some families' information is itself an integral, whose nodes have float32's digits.
    assert_near(g, expected, 2e-3)
    assert_placed(M.distribution(z), device, F32)


class Images(nn.Module):
    """Transposed convolutions and group norm, ``(k, 2) -> (k, 3, 8, 8)``."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 64),
            nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.GroupNorm(2, 8),
            nn.SiLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    def forward(self, z):
        return self.layers(z)


class Sequences(nn.Module):
    """A GRU over four steps."""

    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(2, 8, batch_first=True)

    def forward(self, z):
        return self.cells(z[:, None].repeat(1, 4, 1))[0]


class Tokens(nn.Module):
    """A transformer on four tokens."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(2, 32)
        layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, z):
        return self.layers(self.start(z).unflatten(-1, (4, 8)))


class Conditioned(nn.Module):
    """A network of a code and a class."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, z, c):
        return self.net(torch.cat([z, self.table(c)], -1))


NETWORKS = {"images": Images, "sequences": Sequences, "tokens": Tokens}


def built(kind, dtype, device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().to(dtype).to(device).eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
def test_layers(name, device):
    dtype = F32
    given = Given.drawn(2, 2, 3, device, dtype)
    f = built(NETWORKS[name], dtype, device)
    M = Manifold(f)
    exact = Manifold(built(NETWORKS[name], F64, "cpu"))
    z, v = given.z.double().cpu(), given.v.double().cpu()
    for found, expected in (
        (M.metric(given.z), exact.metric(z)),
        (M.taylor(given.z, given.v), exact.taylor(z, v)),
    ):
        assert_placed(found, device, dtype)
        for a, b in zip(parts(found).values(), parts(expected).values(), strict=True):
            assert_near(a, b, 2e-4)
    lengths = M.distance(given.z, given.end, rtol=1e-3)
    assert_near(lengths, exact.distance(z, given.end.double().cpu(), rtol=1e-3), 2e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conditions(dtype, device):
    given = Given.drawn(3, 2, 3, device, dtype)
    M = Manifold(built(Conditioned, dtype, device))
    c = torch.tensor([0, 2, 1], device=device)
    exact = Manifold(built(Conditioned, F64, "cpu"))
    g = M.metric(given.z, condition=c)
    assert_placed(g, device, dtype)
    assert_near(g, exact.metric(given.z.double().cpu(), condition=c.cpu()), 1e-5)
    d = M.distance(given.z, given.end, condition=c)
    alone = M.distance(given.z[1:2], given.end[1:2], condition=c[1:2])
    assert_placed(d, device, dtype)
    assert_near(alone, d[1:2], 2e-3)
    matrix = M.distance_matrix(given.z, condition=c[:1], method="chord")
    assert_placed(matrix, device, dtype)
    with pytest.raises(DeviceError):
        M.metric(given.z, condition=c.to(elsewhere(device)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ensembles(dtype, device):
    members = (sphere, lambda z: 2 * sphere(z), paraboloid)
    given = Given.drawn(3, 2, 3, device, dtype)
    M = Manifold(Ensemble(members))
    every = torch.stack([Manifold(f).metric(given.z) for f in members])
    assert_near(M.metric(given.z), every.mean(0), 1e-5)
    assert len(M.members) == 3
    d = M.distance(given.z, given.end, per_member=True)
    assert_placed(d, device, dtype)
    known = great_circle(given.z.double(), given.end.double())
    assert_near(d[:2], torch.stack([known, 2 * known]), 3e-3)
    drawn = M.extrinsic_curvature(given.z, "hutchinson", generator=0, per_member=True)
    assert_placed(drawn, device, dtype)


def test_dropout_masks_are_drawn_alike(device):
    net = nn.Sequential(network(F32), nn.Dropout(0.3), nn.Linear(5, 3)).requires_grad_(False)
    z = Given.drawn(3, 2, 3, device, F32).z
    there = copy.deepcopy(net).to(device)
    found = Manifold(Ensemble.from_dropout(there, z[:1], members=3)).metric(z)
    assert_placed(found, device, F32)
    expected = Manifold(Ensemble.from_dropout(net, z[:1].cpu(), members=3)).metric(z.cpu())
    assert_near(found, expected, 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_latent_spaces(dtype, device):
    # A cylinder's angle has a period: the short way round.
    given = torch.tensor([[3.0, 0.0], [-3.0, 0.5]], dtype=dtype, device=device)
    f = lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1)  # noqa: E731
    M = Manifold(f, latent=(2 * torch.pi, None))
    d = M.distance(given[0], given[1])
    assert_placed(d, device, dtype)
    wanted = torch.tensor((2 * torch.pi - 6) ** 2 + 0.25).sqrt()
    assert_near(d, wanted, 2e-3)
    assert_placed(M.distortion(given), device, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_of_any_shape(dtype, device):
    f = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh()).to(dtype).to(device)
    M = Manifold(f.eval().requires_grad_(False), latent_shape=(1, 2, 2))
    z = torch.zeros(3, 1, 2, 2, dtype=dtype, device=device)
    assert M.metric(z).shape == (3, 4, 4)
    end = M.exp(z, 0.1 * torch.ones_like(z))
    assert end.shape == z.shape
    assert_placed((M.metric(z), end), device, dtype)


def test_properties(device):
    f = network(F32).to(device)
    M = Manifold(f)
    z = Given.drawn(2, 2, 3, device, F32).z
    assert M.decoder is f
    assert M.latent_dim is None
    assert M.kinks(z) is None
    assert M.latent_dim == 2
    assert isinstance(M.ambient, riemae.ambient.Euclidean)
    assert M.as_space(z).metric(z).device == device
    relu = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)).to(device).eval()
    assert "ReLU" in Manifold(relu.requires_grad_(False)).kinks(z)


def test_an_explanation_has_times(device):
    z = Given.drawn(8, 2, 3, device, F32).z
    found = Manifold(network(F32).to(device)).explain(z)
    times = [getattr(found, f.name) for f in fields(found)]
    assert all(t > 0 for t in times if isinstance(t, float))
    assert str(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moved_manifolds(dtype, device):
    M = Manifold(network(F64))
    moved = M.to(device, dtype)
    z = Given.drawn(3, 2, 3, device, dtype).z
    assert_placed((moved.metric(z), moved.decoder), device, dtype)
    assert_placed(M.decoder, torch.device("cpu"), F64)
    back = moved.to("cpu", F64)
    assert_near(moved.metric(z), back.metric(z.double().cpu()), {F32: 1e-5, F64: 1e-13}[dtype])
    again = pickle.loads(pickle.dumps(moved))
    assert_near(again.metric(z), moved.metric(z), {F32: 1e-6, F64: 1e-13}[dtype])


def test_distributions_are_where_the_points_are(device):
    M = Manifold(lambda z: td.Normal(z[:, :1], z[:, 1:].exp()))
    z = Given.drawn(3, 2, 3, device, F32).z
    found = M.distribution(z)
    assert_placed((found.loc, found.scale, found.sample()), device, F32)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_float32_keeps_its_digits(autocast, precision, device):
    """Under torch's settings for coarse products, which are the caller's and stay as they are."""
    z = Given.drawn(4, 2, 3, device, F32).z
    f = network(F32, sizes=(2, 64, 64, 16))
    expected = Manifold(copy.deepcopy(f).double()).metric(z.double().cpu())
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            found = Manifold(f.to(device)).metric(z)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert_placed(found, device, F32)
    assert_near(found, expected, 1e-5)


def test_states_and_models_are_saved(device, tmp_path):
    found = Manifold(network(F32).to(device))
    z = Given.drawn(3, 2, 3, device, F32).z
    out = tmp_path / "distances.npy"
    first = found.distance_matrix(z, out=out)
    again = found.distance_matrix(z, out=out)
    assert_placed((first, again), device, F32)
    assert torch.equal(first, again)
