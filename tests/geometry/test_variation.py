"""Expansions under ambient metrics without a feature map: against Hessians by plain autograd."""

import pytest
import torch
from likelihoods import CASES, Z
from operations import counted
from spaces import rand
from torch import distributions as td
from torch.autograd.functional import hessian
from torch.nn import functional as F
from torch.testing import assert_close

from riemae import Ensemble, Manifold, ambient
from riemae.ambient.base import (
    DiagonalMetric,
    FactorMetric,
    InnerMetric,
    MatrixMetric,
    ProductMetric,
)
from riemae.ambient.uncertain import Averaged
from riemae.differential.conditions import Condition
from riemae.geometry.variation import DiagonalVariation, ProductVariation

FIRST, LAST = rand(torch.Generator().manual_seed(0), 2, 2, 5)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def body(z):
    """Five numbers."""
    return (z @ FIRST.to(z)).tanh() + z[:, :1] * z[:, 1:] * LAST[0].to(z)


def full(x):
    """Symmetric, positive, and different in every direction."""
    wave = x.sin()
    spread = torch.diag_embed(2 + x.cos())
    return spread + wave[:, :, None] * wave[:, None]


class Conformal(DiagonalMetric):
    def diagonal(self, x):
        return (1 + x.square().sum(-1, keepdim=True)).expand_as(x)


class Full(MatrixMetric):
    def matrix(self, x):
        return full(x)


class Factored(FactorMetric):
    def factor_product(self, x, v):
        return torch.cat([v * (1 + x.square()), (x * v).sum(-1, keepdim=True)], -1)


class Applied(ProductMetric):
    def product(self, x, v):
        return v * (2 + x.cos()) + x * (x * v).sum(-1, keepdim=True)


class Paired(InnerMetric):
    def inner(self, x, u, v):
        return (u * v * (2 + x.cos())).sum(-1) + (x * u).sum(-1) * (x * v).sum(-1)


def operator(x, v):
    return (full(x) @ v[..., None])[..., 0]


# Metric, and whether its numbers are the diagonal alone.
METRICS = {
    "diagonal": (Conformal(), True),
    "matrix": (Full(), False),
    "factor": (Factored(), False),
    "product": (Applied(), False),
    "inner": (Paired(), False),
    "custom diagonal": (ambient.Custom(diagonal=lambda x: 1 + x**2), True),
    "custom, by shape": (ambient.Custom(lambda x: 1 + x**2), False),
    "custom matrix": (ambient.Custom(matrix=full), False),
    "one matrix": (ambient.Custom(matrix=lambda x: full(LAST[:1].to(x))[0]), False),
    "custom operator": (ambient.Custom(operator=operator), False),
    "custom factor": (ambient.Custom(factor=lambda x, v: v * x.exp()), False),
    "custom inner": (ambient.Custom(inner=Paired().inner), False),
    "density": (ambient.Density(rand(torch.Generator().manual_seed(1), 9, 5), 2.0), True),
}


def curves(p=1, count=4, m=2, seed=3):
    """Nodes ``(p, count, m)``."""
    return 0.6 * rand(torch.Generator().manual_seed(seed), p, count, m)


def dense(space, nodes, create_graph=False):
    """Energy, gradient and Hessian of each curve by reverse mode twice, from the chords alone."""
    found = []
    for p, curve in enumerate(nodes):
        shape = curve[1:-1].shape

        def energy(interior, p=p, curve=curve, shape=shape):
            whole = torch.cat([curve[:1], interior.view(shape), curve[-1:]])[None]
            rows = slice(p, p + 1)
            return (len(curve) - 1) * space.select(rows).squared_chords(whole).sum()

        start = curve[1:-1].reshape(-1)
        if not create_graph:
            start = start.detach()
        value = energy(start)
        gradient = torch.func.grad(energy)(start)
        found.append((value, gradient, hessian(energy, start, create_graph=create_graph)))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def assert_expands(space, nodes, **tolerance):
    """Both orders agree with autograd."""
    tolerance = tolerance or EXACT
    energy, gradient, second = dense(space, nodes)
    for order in (False, True):
        found = space.expand(nodes, second_order=order)
        assert_close(found.energy, energy, **tolerance)
        assert_close(found.gradient.flatten(1), gradient, **tolerance)
    assert_close(found.hessian.dense(), second, **tolerance)
    first = space.expand(nodes, second_order=False)
    assert_close(first.gauss_newton.dense(), found.gauss_newton.dense(), **tolerance)


@pytest.mark.parametrize("name", METRICS)
class TestUsersMetrics:
    def test_expansions_are_those_of_autograd(self, name):
        metric, is_diagonal = METRICS[name]
        space = Manifold(body, ambient=metric).as_space()
        assert_expands(space, curves())
        kind = DiagonalVariation if is_diagonal else ProductVariation
        assert type(space.variation) is kind

    def test_gauss_newton_is_the_hessian_of_frozen_weights(self, name):
        metric, _ = METRICS[name]
        space = Manifold(body, ambient=metric).as_space()
        nodes = curves()
        for curve in nodes:
            x = body(curve)
            h = metric.bind(None, x.shape[1:]).matrix(x).expand(len(x), -1, -1)
            middle = (h[1:] + h[:-1]) / 2

            def energy(interior, curve=curve, x=x, middle=middle):
                # Linear about the nodes, with constant weights and without a bent decoder.
                moved = torch.cat([curve[:1] * 0, interior.view(-1, 2), curve[-1:] * 0])
                _, tangents = torch.func.jvp(body, (curve,), (moved,))
                steps = tangents.diff(dim=0)
                return len(steps) * torch.einsum("ni,nij,nj->", steps, middle, steps)

            start = torch.zeros(2 * (len(curve) - 2), dtype=torch.float64)
            found = space.expand(curve[None]).gauss_newton.dense()[0]
            assert_close(found, hessian(energy, start), **EXACT)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.has_features])
@pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")
@pytest.mark.filterwarnings("ignore::riemae.exceptions.ApproximationWarning")
def test_families_without_features(name):
    space = Manifold(CASES[name].decoder).as_space()
    assert_expands(space, curves(1, 4), rtol=1e-7, atol=1e-7)
    x = space.decoder(Z)
    h = space.ambient.matrix(x)
    diagonal = space.ambient.diagonal(x)
    assert_close(diagonal, h.diagonal(dim1=-2, dim2=-1), rtol=1e-12, atol=1e-14)
    if space.ambient.is_diagonal:
        assert_close(torch.diag_embed(diagonal), h, rtol=1e-12, atol=1e-14)


def gaussian(z):
    x = body(z)
    return td.Normal(x[:, :3], 0.3 + F.softplus(x[:, 2:]))


class TestDiagonals:
    @pytest.mark.parametrize("name", ["normal", "von_mises"])
    def test_named_families(self, name):
        def tensors(z):
            x = body(z)
            return torch.cat([x[:, :2], 0.3 + F.softplus(x[:, 2:4])], -1)

        space = Manifold(tensors, ambient=ambient.FisherRao(name)).as_space()
        assert_expands(space, curves())
        assert space.ambient.is_diagonal

    def test_of_a_student_with_known_degrees(self):
        decoder = lambda z: td.StudentT(4.0, body(z), 0.3 + F.softplus(body(-z)))  # noqa: E731
        space = Manifold(decoder).as_space()
        assert_expands(space, curves())
        assert space.ambient.is_diagonal

    def test_not_of_a_student_with_free_degrees(self):
        decoder = lambda z: td.StudentT(2 + body(z).exp(), body(z), 0.3 + F.softplus(-z[:, :1]))  # noqa: E731
        space = Manifold(decoder).as_space()
        assert_expands(space, curves())
        assert not space.ambient.is_diagonal

    def test_heads_of_two_kinds(self):
        def decoder(z):
            return gaussian(z), td.Poisson(body(z).exp())

        space = Manifold(decoder).as_space()
        assert_expands(space, curves())
        assert not space.ambient.is_diagonal

    def test_ensembles(self):
        other = lambda z: gaussian(0.8 * z)  # noqa: E731
        space = Manifold(Ensemble([gaussian, other])).as_space()
        nodes = curves()
        assert_expands(space, nodes)
        assert isinstance(space.ambient, Averaged)
        assert space.ambient.is_diagonal
        parts = [Manifold(f).as_space().expand(nodes).hessian.dense() for f in (gaussian, other)]
        assert_close(space.expand(nodes).hessian.dense(), sum(parts) / 2, **EXACT)

    def test_single_precision(self):
        space = Manifold(gaussian).as_space()
        nodes = curves()
        single = space.expand(nodes.float())
        double = space.expand(nodes)
        assert single.gradient.dtype == torch.float32
        size = float(double.hessian.dense().abs().max())
        assert_close(
            single.hessian.dense().double(), double.hessian.dense(), rtol=0.0, atol=1e-5 * size
        )


@pytest.mark.parametrize("metric", ["custom diagonal", "custom operator"])
class TestAround:
    def test_under_conditions(self, metric):
        def decoder(z, c):
            return body(z) * c

        H, _ = METRICS[metric]
        given = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
        condition = Condition.of("test", given, torch.Size([2]), given.device)
        nodes = curves(2, 4)
        assert_expands(Manifold(decoder, ambient=H).as_space().at(condition), nodes)

    def test_the_same_bits_alone(self, metric):
        space = Manifold(body, ambient=METRICS[metric][0]).as_space()
        nodes = curves(5, 6)
        together = space.expand(nodes)
        for p in range(len(nodes)):
            alone = space.expand(nodes[p : p + 1])
            assert torch.equal(alone.energy[0], together.energy[p])
            assert torch.equal(alone.gradient[0], together.gradient[p])
            assert torch.equal(alone.hessian.diagonal[0], together.hessian.diagonal[p])
            assert torch.equal(alone.hessian.upper[0], together.hessian.upper[p])

    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_short_curves(self, metric, count):
        space = Manifold(body, ambient=METRICS[metric][0]).as_space()
        nodes = curves(3, count)
        found = space.expand(nodes)  # several curves, whose ends do not touch
        assert found.gradient.shape == (3, count - 2, 2)
        assert found.hessian.upper.shape == (3, max(count - 3, 0), 2, 2)
        if count > 2:
            assert_expands(space, nodes)

    def test_one_point_a_chunk(self, metric):
        H, _ = METRICS[metric]
        assert_expands(Manifold(body, ambient=H, chunk_size=1).as_space(), curves())

    def test_gradients_through_expansions(self, metric):
        weight = FIRST.clone().requires_grad_()

        def decoder(z):
            return (z @ weight).tanh()

        space = Manifold(decoder, ambient=METRICS[metric][0]).as_space()
        start = curves(1, 4)
        space.expand(start)  # modes are chosen
        probe = rand(torch.Generator().manual_seed(4), 4, 4)

        def slopes(second, gradient, nodes):
            number = (probe * second).sum() + (probe[0] * gradient).sum()
            return torch.autograd.grad(number, [nodes, weight])

        nodes = start.clone().requires_grad_()
        found = space.expand(nodes)
        ours = slopes(found.hessian.dense()[0], found.gradient.flatten(), nodes)
        nodes = start.clone().requires_grad_()
        _, gradient, second = dense(space, nodes, create_graph=True)
        theirs = slopes(second[0], gradient[0], nodes)
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, **EXACT)

    def test_no_graph_without_a_wish(self, metric):
        space = Manifold(body, ambient=METRICS[metric][0]).as_space()
        nodes = curves().requires_grad_()
        with torch.no_grad():
            found = space.expand(nodes)
        assert not found.gradient.requires_grad
        assert not found.hessian.diagonal.requires_grad
        with torch.inference_mode():
            again = space.expand(nodes.detach().clone())
        assert torch.equal(again.hessian.diagonal, found.hessian.diagonal)


class TestReadOnce:
    """A diagonal metric is read once at every point, whatever is made of it."""

    def test_chords(self):
        rows = []

        class Watched(Conformal):
            def diagonal(self, x):
                rows.append(len(x))
                return super().diagonal(x)

        space = Manifold(body, ambient=Watched()).as_space(torch.zeros(1, 2).double())
        nodes = rand(torch.Generator().manual_seed(3), 3, 6, 2)
        space.squared_chords(nodes)
        rows.clear()
        found = space.squared_chords(nodes)
        assert rows == [18]
        x = body(nodes.flatten(0, 1)).unflatten(0, (3, 6))
        steps = x.diff(dim=1).square().sum(-1)
        weights = 1 + x.square().sum(-1)
        expected = (weights[:, :-1] + weights[:, 1:]) / 2 * steps
        assert_close(found, expected, **EXACT)

    def test_a_gradient_costs_little_more_than_one_of_the_decoder(self):
        def decoder(z):
            return td.Normal(body(z), 0.1 + F.softplus(body(z)))

        space = Manifold(decoder).as_space(torch.zeros(1, 2).double())
        nodes = rand(torch.Generator().manual_seed(3), 3, 6, 2)
        space.energy_and_gradient(nodes)
        assert counted(lambda: space.energy_and_gradient(nodes))["launches"] <= 90

    @pytest.mark.parametrize("family", [td.Normal, td.Laplace, td.Cauchy])
    def test_lengths_of_vectors_are_those_of_products(self, family):
        decoder = lambda z: family(body(z), body(z).exp())  # noqa: E731
        manifold = Manifold(decoder)
        z, v = rand(torch.Generator().manual_seed(4), 2, 5, 2)
        x, along = torch.func.jvp(
            lambda z: torch.cat([decoder(z).loc, decoder(z).scale], -1), (z,), (v,)
        )
        manifold.norm(z, v)
        metric = manifold.as_space(z).ambient
        expected = (along * metric.product(x, along)).sum(-1)
        assert_close(metric.squared_norm(x, along), expected, **EXACT)
        assert_close(manifold.norm(z, v), expected.sqrt(), **EXACT)
