"""check_ambient: it passes for every metric that ships, and names every law that is broken."""

import random

import geoopt
import pytest
import torch

from riemae import ambient
from riemae.exceptions import AmbientError, ContractError, DTypeError, ShapeError
from riemae.testing import check_ambient

F32, F64 = torch.float32, torch.float64


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=F64)


X = 0.5 * draw(4, 3)
FACTOR = draw(2, 3, seed=1)
DATA = draw(40, 3, seed=2)
SHIPPED = {
    "none": lambda: None,
    "euclidean": ambient.Euclidean,
    "diagonal": lambda: ambient.Diagonal(torch.tensor([1.0, 2.0, 3.0]).double()),
    "constant": lambda: ambient.Constant(FACTOR.T @ FACTOR + torch.eye(3).double()),
    "low rank": lambda: ambient.LowRank(FACTOR.T),
    "features": lambda: ambient.FeatureMap(torch.sinh),
    "classifier": lambda: ambient.ClassifierFisher(lambda x: x @ FACTOR.to(x).T, ridge=0.1),
    "function, matrix": lambda: lambda x: x[:, :, None] * x[:, None] + 2 * torch.eye(3).to(x),
    "custom, diagonal": lambda: ambient.Custom(diagonal=lambda x: 1 + x.square()),
    "custom, operator": lambda: ambient.Custom(
        operator=lambda x, v: v + x * (x * v).sum(-1, keepdim=True)
    ),
    "custom, factor": lambda: ambient.Custom(factor=lambda x, v: v * (1 + x.square())),
    "custom, inner": lambda: ambient.Custom(
        inner=lambda x, u, v: (u * v * (1 + x.square())).sum(-1)
    ),
    "density, diagonal": lambda: ambient.Density(DATA, bandwidth=1.0),
    "density, conformal": lambda: ambient.Density(DATA, bandwidth=1.0, kind="conformal"),
    "density, density": lambda: ambient.Density(DATA, bandwidth=1.0, kind="density"),
    "bernoulli": lambda: ambient.FisherRao("bernoulli"),
    "normal, known scale": lambda: ambient.FisherRao("normal", scale=0.5),
    "geoopt, ball": lambda: ambient.Geoopt(geoopt.PoincareBall()),
}


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_metrics_pass(name, dtype):
    x = X.to(dtype)
    if name == "geoopt, ball":
        x = 0.5 * x / x.norm(dim=-1, keepdim=True)
    metric = SHIPPED[name]()
    if isinstance(metric, torch.nn.Module):
        metric = metric.to(dtype)
    report = check_ambient(metric, x)
    assert set(report) == {
        *("symmetric", "positive", "linear", "inner", "matrix", "diagonal", "columns", "factor"),
        *("features", "distance", "derivative", "rows", "deterministic", "dtype", "inputs"),
    }


def test_clouds_pass():
    check_ambient(ambient.InfoRiemannian(bandwidth=0.8), draw(3, 6, 2))


def test_tangents_of_a_surface():
    # The sphere of radius 1, whose metric holds on its tangent vectors.
    x = X / X.norm(dim=-1, keepdim=True)
    tangents = torch.stack([torch.linalg.cross(x, w.expand_as(x)) for w in draw(2, 3, seed=3)], -1)
    check_ambient(ambient.Geoopt(geoopt.Sphere()), x, tangents=tangents)


class Sound(ambient.ProductMetric):
    """H = diag(1 + x²), from its product; everything else by the base class."""

    def product(self, x, v):
        return v * (1 + x.square())


class Embedded(ambient.FeatureMetric):
    """The same idea from features."""

    def features(self, x):
        return torch.sinh(x)


def broken(base=Sound, **methods):
    def replace(name, change):
        def method(self, *args):
            return change(getattr(base, name)(self, *args), *args)

        return method

    return type("Broken", (base,), {name: replace(name, f) for name, f in methods.items()})()


def broken_laws(metric, x=X, **options):
    with pytest.raises(ContractError, match="every law to hold to 1e-08") as caught:
        check_ambient(metric, x.clone(), **options)
    assert caught.value.hint
    return {part.split(" off by ")[0] for part in caught.value.got.split(", ")}


def spoil(out, x, *rest):
    x.add_(1e-3)
    return out


class Noisy(Sound):
    def product(self, x, v):
        return v * (1 + 1e-3 * random.random())


class WrongDiagonal(Sound):
    """Overrides a second method, which does not agree with the first."""

    def diagonal(self, x):
        return (1 + x.square()).sqrt()

    def matrix(self, x):
        return torch.diag_embed(1 + x.square())


class Blocked(Sound):
    """Its derivative by autograd is not that of its values."""

    def product(self, x, v):
        return v * (1 + x.detach().square())


def asymmetric(out, x, v):
    return out + v.roll(1, -1)


BROKEN = [
    ("symmetric", lambda: broken(product=asymmetric)),
    ("positive", lambda: broken(product=lambda out, x, v: -out)),
    ("positive", lambda: broken(product=lambda out, x, v: 0 * out)),
    ("linear", lambda: broken(product=lambda out, x, v: out * v.norm(dim=-1, keepdim=True))),
    ("inner", lambda: broken(inner=lambda out, *_: 1.001 * out)),
    ("inner", lambda: broken(squared_norm=lambda out, *_: 2 * out)),
    ("matrix", lambda: broken(matrix=lambda out, x: out.flip(-1))),
    ("diagonal", WrongDiagonal),
    ("columns", lambda: broken(apply_to=lambda out, *_: out.flip(-1))),
    ("factor", lambda: broken(Embedded, factor_product=lambda out, *_: 2 * out)),
    ("features", lambda: broken(Embedded, product=lambda out, *_: 2 * out)),
    ("distance", lambda: broken(Embedded, distance=lambda out, *_: 1.1 * out)),
    ("derivative", Blocked),
    ("rows", lambda: broken(product=lambda out, x, v: out * (1 + x[:1].square().sum()))),
    ("rows", lambda: broken(product=lambda out, x, v: out * len(x))),
    ("deterministic", Noisy),
    ("dtype", lambda: broken(product=lambda out, *_: out.float())),
    ("dtype", lambda: broken(inner=lambda out, *_: out[:, None])),
    ("dtype", lambda: broken(product=lambda out, *_: out / 0)),
    ("inputs", lambda: broken(product=spoil)),
]


@pytest.mark.parametrize(("law", "make"), BROKEN, ids=[f"{i}-{b[0]}" for i, b in enumerate(BROKEN)])
def test_a_broken_law_is_named(law, make):
    assert law in broken_laws(make())


def test_a_sound_law_is_not_blamed():
    check_ambient(Sound(), X)
    check_ambient(Embedded(), X)
    assert broken_laws(broken(inner=lambda out, *_: 2 * out)) == {"inner"}
    assert broken_laws(broken(Embedded, distance=lambda out, *_: 2 * out)) == {"distance"}
    assert broken_laws(Blocked()) == {"derivative"}


def test_a_metric_that_is_not_positive_along_given_tangents():
    constant = torch.diag(torch.tensor([1.0, 1.0, 0.0]).double())
    flat = ambient.Custom(matrix=lambda x: constant.expand(len(x), 3, 3))
    check_ambient(flat, X)
    assert broken_laws(flat, tangents=torch.eye(3).double().expand(4, 3, 3)) == {"positive"}


def test_data_that_cannot_be_used():
    with pytest.raises(ShapeError, match=r"x of shape \(k, \*shape\)"):
        check_ambient(None, torch.zeros(0, 2))
    with pytest.raises(DTypeError):
        check_ambient(None, [[1.0]])
    with pytest.raises(ShapeError, match="tangents"):
        check_ambient(None, X, tangents=torch.zeros(4, 2, 1))
    with pytest.raises(AmbientError):
        check_ambient("euclid", X)
    with pytest.raises(DTypeError, match="generator"):
        check_ambient(None, X, generator="a")
