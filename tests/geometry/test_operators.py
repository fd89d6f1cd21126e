"""Gradient, divergence and Laplacian: closed forms, other formulas, and bad functions."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.ambient import Custom
from riemae.exceptions import DifferentiationError, DTypeError, ShapeError

F64 = torch.float64


def points(n, m, seed=0, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, m, generator=generator, dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def network(m, outputs=12, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(m, 16), nn.Tanh(), nn.Linear(16, outputs))
    return net.double().requires_grad_(False)


def wave(z):
    return (z * torch.arange(1, z.shape[-1] + 1).to(z)).sum(-1).sin() + z.square().sum(-1)


def swirl(z):
    return torch.stack(
        [z.roll(1, -1)[..., i].sin() + i * z[..., i] for i in range(z.shape[-1])], -1
    )


HARMONICS = {
    1: lambda x: x[..., 2],
    2: lambda x: 3 * x[..., 2].square() - 1 + x[..., 0] * x[..., 1],
    3: lambda x: 5 * x[..., 2] ** 3 - 3 * x[..., 2] + x[..., 0] * x[..., 1] * x[..., 2],
    4: lambda x: x[..., 0] ** 4 - 6 * (x[..., 0] * x[..., 1]) ** 2 + x[..., 1] ** 4,
}


class TestLaplacian:
    @pytest.mark.parametrize("degree", HARMONICS)
    def test_spherical_harmonics(self, degree):
        z = points(20, 2)

        def f(z):
            return HARMONICS[degree](sphere(z))

        found = Manifold(sphere).laplacian(f, z)
        torch.testing.assert_close(found, -degree * (degree + 1) * f(z), rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("s", [0.5, 2.0, 3.5])
    def test_powers_in_the_hyperbolic_plane(self, s):
        """``Δ y^s = s(s − 1) y^s`` in the upper half plane."""
        M = Manifold(lambda z: z, ambient=Custom(lambda x: 1 / x[:, 1:].square().expand(-1, 2)))
        z = points(15, 2).abs() + 0.2
        found = M.laplacian(lambda z: z[:, 1] ** s, z)
        torch.testing.assert_close(found, s * (s - 1) * z[:, 1] ** s, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_against_christoffel_symbols(self, m):
        M = Manifold(network(m))
        z = points(6, m)
        inverse = M.metric(z).inverse()
        slope = torch.func.vmap(torch.func.grad(wave))(z)
        second = torch.func.vmap(torch.func.hessian(wave))(z)
        bent = second - torch.einsum("bkij,bk->bij", M.christoffel(z), slope)
        expected = torch.einsum("bij,bij->b", inverse, bent)
        torch.testing.assert_close(M.laplacian(wave, z), expected, rtol=1e-9, atol=1e-9)

    def test_is_the_divergence_of_the_gradient(self):
        z = points(5, 2)

        def raised(z):  # G⁻¹ df by hand: the sphere's metric is diag(1, cos² a)
            with torch.enable_grad():
                points = z if z.requires_grad else z.requires_grad_()
                (slope,) = torch.autograd.grad(wave(points).sum(), points, create_graph=True)
            return torch.stack([slope[:, 0], slope[:, 1] / z[:, 0].cos().square()], -1)

        M = Manifold(sphere)
        torch.testing.assert_close(
            M.divergence(raised, z), M.laplacian(wave, z), rtol=1e-9, atol=1e-9
        )

    def test_in_single_precision(self):
        z = points(9, 3)
        net = network(3)
        fine = Manifold(net).laplacian(wave, z)
        single = Manifold(net).to(dtype=torch.float32).laplacian(wave, z.float())
        torch.testing.assert_close(single.double(), fine, rtol=1e-3, atol=1e-3)

    def test_batches_and_shapes(self):
        M = Manifold(sphere)
        z = points(6, 2)
        whole = M.laplacian(wave, z)
        torch.testing.assert_close(M.laplacian(wave, z.view(2, 3, 2)), whole.view(2, 3))
        torch.testing.assert_close(M.laplacian(wave, z[0]), whole[0])
        shaped = Manifold(lambda c: c.flatten(1), latent_shape=(2, 2))
        codes = points(3, 4).view(3, 2, 2)
        assert shaped.gradient(wave, codes).shape == (3, 2, 2)
        torch.testing.assert_close(
            shaped.laplacian(lambda z: z.square().sum(-1), codes), torch.full((3,), 8.0).double()
        )

    def test_under_a_condition(self):
        def decoder(z, c):
            return torch.cat([z, c * z.square()], -1)

        z = points(4, 2)
        c = torch.tensor([[0.0], [0.5], [1.0], [2.0]], dtype=F64)
        found = Manifold(decoder).laplacian(wave, z, condition=c)
        for row in range(4):
            alone = Manifold(lambda z, c=c[row]: torch.cat([z, c * z.square()], -1))
            torch.testing.assert_close(found[row], alone.laplacian(wave, z[row]))

    @pytest.mark.parametrize("f", [lambda z: z.new_ones(len(z)), lambda z: 0 * z[:, 0]])
    def test_of_a_constant(self, f):
        assert bool((Manifold(sphere).laplacian(f, points(4, 2)) == 0).all())

    def test_of_a_linear_function_of_flat_space(self):
        found = Manifold(lambda z: 2 * z).laplacian(lambda z: z[:, 0] - 3 * z[:, 1], points(4, 2))
        assert bool((found == 0).all())


class TestGradient:
    def test_is_what_the_metric_raises(self):
        M = Manifold(network(3))
        z = points(7, 3)
        slope = torch.func.vmap(torch.func.grad(wave))(z)
        expected = torch.linalg.solve(M.metric(z), slope)
        torch.testing.assert_close(M.gradient(wave, z), expected, rtol=1e-8, atol=1e-10)

    def test_of_the_ambient_coordinate(self):
        """Its square is that of the coordinate's direction along the surface."""
        M = Manifold(sphere)
        z = points(9, 2)
        up = M.gradient(lambda z: z[:, 0].sin(), z)
        torch.testing.assert_close(M.norm(z, up).square(), z[:, 0].cos().square())


class TestDivergence:
    @pytest.mark.parametrize("m", [1, 2, 4])
    def test_against_the_volume_density(self, m):
        M = Manifold(network(m))
        z = points(6, m)

        def flux(z):
            return M.volume_density(z[None])[0] * swirl(z[None])[0]

        slope = torch.func.vmap(torch.func.jacrev(flux))(z)
        expected = slope.diagonal(dim1=-2, dim2=-1).sum(-1) / M.volume_density(z)
        torch.testing.assert_close(M.divergence(swirl, z), expected, rtol=1e-8, atol=1e-8)

    def test_rotations_have_none(self):
        def turn(z):
            return torch.stack([torch.zeros_like(z[:, 0]), torch.ones_like(z[:, 0])], -1)

        found = Manifold(sphere).divergence(turn, points(5, 2))
        assert float(found.abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["gradient", "laplacian", "divergence"])
def test_results_are_not_followed_by_autograd(name):
    """Half a gradient would be a wrong one."""
    z = points(4, 2).requires_grad_()
    f = swirl if name == "divergence" else wave
    method = getattr(Manifold(network(2).requires_grad_(True)), name)
    found = method(f, z)
    assert not found.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(method(f, z.detach().clone()), found)


def test_a_function_may_write_to_what_it_gets():
    z = points(3, 2)
    before = z.clone()
    M = Manifold(sphere)
    torch.testing.assert_close(
        M.gradient(lambda z: z.mul_(2)[:, 0], z), M.gradient(lambda z: 2 * z[:, 0], z)
    )
    assert torch.equal(z, before)


class TestBadFunctions:
    @pytest.mark.parametrize("name", ["gradient", "laplacian"])
    def test_functions(self, name):
        method = getattr(Manifold(sphere), name)
        z = points(3, 2)
        with pytest.raises(ShapeError, match="one value"):
            method(lambda z: z, z)
        with pytest.raises(DTypeError, match="float64"):
            method(lambda z: z[:, 0].float(), z)
        with pytest.raises(DTypeError):
            method(lambda z: 1.0, z)
        with pytest.raises(DTypeError, match="function"):
            method("f", z)
        with pytest.raises(DifferentiationError, match="autograd"):
            method(lambda z: z[:, 0].detach().sin(), z)

    def test_fields(self):
        M = Manifold(sphere)
        z = points(3, 2)
        with pytest.raises(ShapeError):
            M.divergence(lambda z: z[:, 0], z)
        with pytest.raises(DifferentiationError):
            M.divergence(lambda z: z.detach() * 2, z)
