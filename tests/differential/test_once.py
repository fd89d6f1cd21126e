"""Maps with a first derivative alone are accepted with a warning; methods that need more raise."""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from riemae import Manifold, solvers
from riemae.exceptions import ApproximationWarning, DifferentiationError

W = torch.linspace(-1, 1.5, 10, dtype=torch.float64).view(2, 5)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x * x * g


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * g.detach().numpy())


class Kept(torch.autograd.Function):
    """Keeps numbers in place of tensors, as extensions in C do."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 3 * x.detach() ** 2
        return x.detach() ** 3

    @staticmethod
    def backward(ctx, g):
        with torch.no_grad():
            return ctx.slope * g


class Pair(torch.autograd.Function):
    """Two results."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2, x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return 2 * x * g + 3 * x * x * h


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(2, 6).double(), nn.Linear(6, 4).double()

    def forward(self, z):
        return self.last(Once.apply(self.first(z).tanh()))

    def exact(self, z):
        return self.last(self.first(z).tanh() ** 3)


LAYER = Layer()
MAPS = {
    "once_differentiable": (lambda z: Once.apply(z @ W), lambda z: (z @ W) ** 3),
    "numpy": (lambda z: ByNumpy.apply(z @ W), lambda z: (z @ W) ** 3),
    "numbers kept": (lambda z: Kept.apply(z @ W), lambda z: (z @ W) ** 3),
    "two results": (
        lambda z: torch.cat(Pair.apply(z @ W), -1),
        lambda z: torch.cat([(z @ W) ** 2, (z @ W) ** 3], -1),
    ),
    "inside a network": (LAYER, LAYER.exact),
    "between others": (
        lambda z: torch.cat([z, Once.apply(z.sin()).exp()], -1),
        lambda z: torch.cat([z, (z.sin() ** 3).exp()], -1),
    ),
}


def points(n=6, dtype=torch.float64):
    return 1.5 + torch.rand(
        n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(dtype)


@pytest.fixture
def announced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        yield


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize("name", MAPS)
class TestNumbers:
    def test_first_order(self, name):
        f, exact = map(Manifold, MAPS[name])
        z, v = points(), points().flip(0)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(f.jacobian(z), exact.jacobian(z))
                torch.testing.assert_close(f.metric(z), exact.metric(z))
                torch.testing.assert_close(f.metric_product(z, v), exact.metric_product(z, v))
                torch.testing.assert_close(
                    f.pullback(z, f.decode(z)), exact.pullback(z, exact.decode(z))
                )

    def test_second_order(self, name):
        f, exact = map(Manifold, MAPS[name])
        z, v = points(), points().flip(0)
        with torch.no_grad():
            for method, given in (
                ("christoffel", (z,)),
                ("extrinsic_curvature", (z,)),
                ("riemann", (z,)),
                ("taylor", (z, v)),
                ("second_fundamental_form", (z, v, v + 1)),
            ):
                torch.testing.assert_close(
                    getattr(f, method)(*given),
                    getattr(exact, method)(*given),
                    rtol=1e-7,
                    atol=1e-7,
                    msg=method,
                )

    def test_geodesics(self, name):
        f, exact = map(Manifold, MAPS[name])
        a, b = points()[:3], points()[3:]
        for solver in (None, solvers.LBFGS()):
            found, expected = (M.geodesic(a, b, rtol=1e-5, solver=solver) for M in (f, exact))
            torch.testing.assert_close(found.length, expected.length, rtol=2e-5, atol=0)
        torch.testing.assert_close(f.exp(a, 0.1 * b), exact.exp(a, 0.1 * b), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(
            f.distance(a, b).detach(), exact.distance(a, b).detach(), rtol=2e-4, atol=0
        )


def test_it_is_announced_once():
    M = Manifold(MAPS["numpy"][0])
    with pytest.warns(ApproximationWarning, match="Second derivatives do not exist"):
        M.metric(points())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M.metric(points())


@pytest.mark.usefixtures("announced")
def test_gradients_of_results_are_refused():
    M = Manifold(MAPS["once_differentiable"][0])
    z = points().requires_grad_()
    for call in (lambda: M.metric(z), lambda: M.log_volume(z), lambda: M.distance(z[:3], z[3:])):
        with pytest.raises(DifferentiationError, match="no_grad"):
            call().sum().backward()


@pytest.mark.usefixtures("announced")
def test_float32():
    # Differences of first derivatives: three digits.
    f, exact = (
        Manifold(g) for g in (lambda z: Once.apply(z @ W.float()), lambda z: (z @ W.float()) ** 3)
    )
    z = points(dtype=torch.float32)
    torch.testing.assert_close(f.metric(z), exact.metric(z))
    with torch.no_grad():
        torch.testing.assert_close(f.taylor(z, z)[2], exact.taylor(z, z)[2], rtol=2e-3, atol=2e-3)


def test_wrong_derivatives_are_refused_all_the_same():
    class Wrong(Once):
        @staticmethod
        @once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 2 * x * x * g

    for _ in range(2):
        with pytest.raises(DifferentiationError, match=r"torch\.autograd"):
            Manifold(lambda z: Wrong.apply(z @ W)).metric(points())
