"""Every ambient metric in every kind of test: laws, geodesics, exponential map, gradients,
curvature, distortion.

A new metric is one line in ``CASES``: a decoder with two latent coordinates, and the metric of its
data."""

import copy

import geoopt
import pytest
import torch
from spaces import rand, sphere
from torch.testing import assert_close

from riemae import Ensemble, Manifold, ambient, solvers
from riemae.testing import check_manifold


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


# Decoders.


def surface(z):  # (k, 2) -> (k, 3)
    return torch.cat([z + 0.3 * z.flip(-1).sin(), z[:, :1] * z[:, 1:]], 1)


def image(z):  # (k, 2) -> (k, 1, 2, 3)
    return torch.cat([surface(z), surface(z.cos())], 1).view(-1, 1, 2, 3)


POINTS = draw(5, 12, 3)


def cloud(z):  # (k, 2) -> (k, 12, 3)
    return POINTS.to(z) * torch.cat([z.exp(), torch.ones_like(z[:, :1])], 1)[:, None]


def ball(z):
    return 0.5 * z.tanh()


def hyperboloid(z):
    return torch.cat([(1 + z.square().sum(-1, keepdim=True)).sqrt(), z], -1)


def covariance(z):  # (k, 2) -> (k, 2, 2)
    a, b = z.unbind(-1)
    factor = torch.stack([a.exp(), torch.zeros_like(a), b, (-a).exp()], -1).view(-1, 2, 2)
    return factor @ factor.mT


def frame(z):  # (k, 2) -> (k, 3, 2): the first columns of a turn about z after one about x
    u, v = (z + 0.5 * z.flip(-1).square()).unbind(-1)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    about_z = torch.stack(
        [u.cos(), -u.sin(), zero, u.sin(), u.cos(), zero, zero, zero, one], -1
    ).view(-1, 3, 3)
    about_x = torch.stack(
        [one, zero, zero, zero, v.cos(), -v.sin(), zero, v.sin(), v.cos()], -1
    ).view(-1, 3, 3)
    return (about_z @ about_x)[:, :, :2]


DATA = surface(draw(0, 60, 2))
U = draw(1, 3, 1)
PRODUCT = geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(), 2))


class Filter(torch.nn.Module):
    """A convolution and a saturation."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.tensor([[[[1.0, 0.5], [-0.5, 2.0]]]]).double())

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.kernel, padding=1).tanh()


def varying(x):  # (k, 3) -> (k, 3, 3)
    return torch.eye(3).to(x) + x[:, :, None] * x[:, None]


def counts(z):
    return torch.distributions.Independent(torch.distributions.Poisson(surface(z).exp()), 1)


def uncertain(z):
    return torch.distributions.Normal(surface(z), 0.5 + z.square().sum(-1, keepdim=True) / 4)


CASES = {
    "Euclidean": (surface, ambient.Euclidean),
    "Diagonal": (surface, lambda: ambient.Diagonal(torch.tensor([0.5, 1.0, 3.0]).double())),
    "Constant": (surface, lambda: ambient.Constant(torch.eye(3).double() + U @ U.T)),
    "Constant.from_data": (surface, lambda: ambient.Constant.from_data(DATA)),
    "LowRank": (surface, lambda: ambient.LowRank(U)),
    "FeatureMap": (image, lambda: ambient.FeatureMap(Filter())),
    "ClassifierFisher": (
        surface,
        lambda: ambient.ClassifierFisher(lambda x: torch.cat([x, x[:, :1] ** 2], 1)),
    ),
    "ClassifierFisher, binary": (
        surface,
        lambda: ambient.ClassifierFisher(lambda x: x.sum(1, True), ridge=0.5),
    ),
    "Density": (surface, lambda: ambient.Density(DATA, 0.5)),
    "Density, conformal": (surface, lambda: ambient.Density(DATA, 0.5, "conformal", neighbors=60)),
    "Density, density": (surface, lambda: ambient.Density(DATA, 0.5, "density")),
    "InfoRiemannian": (cloud, lambda: ambient.InfoRiemannian(0.8)),
    "InfoRiemannian, cloud": (cloud, lambda: ambient.InfoRiemannian(0.8, evaluate="cloud")),
    "Geoopt, sphere": (sphere, lambda: ambient.Geoopt(geoopt.Sphere())),
    "Geoopt, Poincaré ball": (ball, lambda: ambient.Geoopt(geoopt.PoincareBall())),
    "Geoopt, hyperboloid": (hyperboloid, lambda: ambient.Geoopt(geoopt.Lorentz())),
    "Geoopt, SPD": (covariance, lambda: ambient.Geoopt(geoopt.SymmetricPositiveDefinite())),
    "Geoopt, Stiefel": (frame, lambda: ambient.Geoopt(geoopt.CanonicalStiefel())),
    "Geoopt, product": (
        lambda z: torch.cat([sphere(z), ball(z)], 1),
        lambda: ambient.Geoopt(PRODUCT),
    ),
    "FisherRao, features": (counts, ambient.FisherRao),
    "FisherRao, inner product": (uncertain, ambient.FisherRao),
    "Expected": (uncertain, ambient.Expected),
    "Averaged": (
        Ensemble([surface, lambda z: surface(1.2 * z)]),
        ambient.Euclidean,
    ),  # Manifold puts it around
    "Custom, function": (surface, lambda: ambient.Custom(lambda x: 1 + x**2)),
    "Custom, matrix": (surface, lambda: ambient.Custom(matrix=varying)),
    "Custom, operator": (
        surface,
        lambda: ambient.Custom(operator=lambda x, v: v + x * (x * v).sum(-1, True)),
    ),
    "Custom, factor": (surface, lambda: ambient.Custom(factor=lambda x, v: v * (1 + x**2).sqrt())),
    "Custom, inner": (
        surface,
        lambda: ambient.Custom(inner=lambda x, u, v: ((1 + x**2) * u * v).sum(-1)),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    decoder, make = CASES[request.param]
    return Manifold(decoder, make())


Z0, Z1, U0 = 0.4 * draw(2, 3, 2) + 0.2, 0.4 * draw(3, 3, 2) - 0.1, 0.3 * draw(4, 3, 2)


def test_every_metric_is_here():
    things = (getattr(ambient, name) for name in ambient.__all__)
    bases = {thing for thing in things if getattr(thing, "__module__", "") == "riemae.ambient.base"}
    classes = {getattr(ambient, name) for name in ambient.__all__ if name != "Averaged"} - bases
    made = [make() for _, make in CASES.values()]
    for metric in {thing for thing in classes if isinstance(thing, type)}:
        assert any(isinstance(one, metric) for one in made), metric


def test_every_metric_has_one_way_to_be_given():
    ways = (
        ambient.FeatureMetric,
        ambient.FactorMetric,
        ambient.DiagonalMetric,
        ambient.MatrixMetric,
        ambient.ProductMetric,
        ambient.InnerMetric,
    )
    for decoder, make in CASES.values():
        M = Manifold(decoder, make())
        for metric in (M.ambient, M.to(dtype=torch.float64).ambient):
            assert metric.has_features == isinstance(metric, ambient.FeatureMetric)
            assert isinstance(metric, ways)
        M.metric(Z0)
        assert M.ambient.has_features == isinstance(M.ambient, ambient.FeatureMetric)
        assert type(copy.deepcopy(M.ambient)) is type(M.ambient)


def test_no_call_changes_a_metric(case):
    # Settings, tensors and class of the manifold's own metric and of a new one.
    decoder, metric = case.decoder, case.ambient
    before = {name: repr(value) for name, value in vars(metric).items()}
    again = Manifold(decoder, metric if not isinstance(metric, ambient.Averaged) else metric.base)
    again.geodesic(Z0, Z1, rtol=1e-2, throw=False)
    assert {name: repr(value) for name, value in vars(metric).items()} == before


def test_laws(case):
    check_manifold(case, Z0)


def test_float32(case):
    single = case.to(dtype=torch.float32)
    assert_close(single.metric(Z0.float()), case.metric(Z0).float(), rtol=1e-3, atol=1e-4)


def test_geodesics_agree_with_those_of_the_metric_alone(case):
    # The same space, given by its metric tensor without decoder or ambient space.
    r = case.geodesic(Z0, Z1, rtol=1e-6)
    alone = solvers.geodesic(solvers.MetricSpace(case.metric), Z0, Z1, rtol=1e-6)
    assert_close(r.length, alone.length, rtol=3e-6, atol=0)
    assert (r.index == 0).all()
    assert not (r.lower_bound > r.length).any()


def test_the_exponential_map_goes_as_far_as_its_velocity(case):
    end = case.exp(Z0[:1], U0[:1], rtol=1e-7)
    assert_close(
        case.distance(Z0[:1], end, rtol=1e-6), case.norm(Z0[:1], U0[:1]), rtol=1e-5, atol=0
    )


def test_gradient_of_a_distance(case):
    # ∂d/∂z₁ = G(z₁) ż(1)/|ż(1)|: against a difference quotient of distances.
    z1 = Z1[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.distance(Z0[:1], z1, rtol=1e-8, throw=False).sum(), z1)
    h = 1e-3
    with torch.no_grad():
        ends = torch.cat([Z1[:1] + h * U0[:1], Z1[:1] - h * U0[:1]])
        d = case.distance(Z0[:1].expand(2, 2), ends, rtol=1e-7, throw=False)
    assert_close((gradient * U0[:1]).sum(), (d[0] - d[1]) / (2 * h), rtol=1e-3, atol=1e-4)


def test_curvature(case):
    # Gauss' theorema egregium: the curvature of the metric tensor alone, by Brioschi's formula,
    # from its derivatives.
    K = case.gaussian_curvature(Z0)
    assert_close(K, brioschi(case, Z0), rtol=1e-6, atol=1e-6)
    assert_close(case.scalar_curvature(Z0), 2 * K, rtol=1e-8, atol=1e-8)
    assert (case.extrinsic_curvature(Z0) >= 0).all()


def brioschi(M, z):  # (k, 2) -> (k,)
    def entries(p):  # -> (3, k)
        g = M.metric(p)
        return torch.stack([g[:, 0, 0], g[:, 0, 1], g[:, 1, 1]])

    def along(f, i):
        e = torch.eye(2).double()[i].expand_as(z).contiguous()
        return lambda p: torch.func.jvp(f, (p,), (e,))[1]

    E, F, G = entries(z)
    (Eu, Fu, Gu), (Ev, Fv, Gv) = along(entries, 0)(z), along(entries, 1)(z)
    Evv, Fuv, Guu = (
        along(along(entries, a), b)(z)[n] for n, (a, b) in enumerate([(1, 1), (0, 1), (0, 0)])
    )
    zero = torch.zeros_like(E)
    first = [-Evv / 2 + Fuv - Guu / 2, Eu / 2, Fu - Ev / 2, Fv - Gu / 2, E, F, Gv / 2, F, G]
    second = [zero, Ev / 2, Gu / 2, Ev / 2, E, F, Gu / 2, F, G]
    first, second = (torch.linalg.det(torch.stack(x, -1).view(-1, 3, 3)) for x in (first, second))
    return (first - second) / (E * G - F * F) ** 2


def test_distortion(case):
    values = torch.linalg.eigvalsh(case.metric(Z0))
    assert_close(case.distortion(Z0), (1 - values).square().sum(-1).mean(), rtol=1e-9, atol=0)
    mean = values.mean()
    assert_close(
        case.distortion(Z0, "scaled_isometry"),
        (1 - values / mean).square().sum(-1).mean(),
        rtol=1e-9,
        atol=0,
    )
