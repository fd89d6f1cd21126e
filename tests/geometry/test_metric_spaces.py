"""A metric tensor written by hand has all of a manifold's geometry: against closed forms, and
against the decoder whose metric it is."""

import math
import pickle

import pytest
import torch
from device_calls import CALLS
from on_device import Given, assert_near

from riemae import Manifold, solvers, statistics
from riemae.exceptions import AmbientError, DecoderError, GraphError, MetricError, OptionError
from riemae.geometry.coordinates import OF_AN_IMAGE
from riemae.testing import check_manifold

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of(tensor, **options):
    return Manifold(solvers.MetricSpace(tensor), **options)


def sphere(z):  # polar angle and longitude
    return torch.diag_embed(torch.stack([torch.ones_like(z[:, 0]), z[:, 0].sin().square()], -1))


def half_plane(z):
    return torch.eye(2).to(z) / z[:, 1, None, None].square()


def matrices(z):  # (k, 3) -> (k, 2, 2), of entries a, b, c
    return torch.stack([z[:, 0], z[:, 1], z[:, 1], z[:, 2]], -1).unflatten(-1, (2, 2))


def spd(z):
    """tr(P⁻¹ U P⁻¹ V), the affine-invariant metric of positive definite matrices."""
    basis = matrices(torch.eye(3).to(z))
    inverse = torch.linalg.inv(matrices(z))
    moved = inverse[:, None] @ basis
    return torch.einsum("kaij,kbji->kab", moved, moved)


def positive(n, seed=0):
    a = draw(n, 2, 2, seed=seed)
    p = a @ a.mT + 0.5 * torch.eye(2)
    return torch.stack([p[:, 0, 0], p[:, 0, 1], p[:, 1, 1]], -1)


def embedded(z):
    """The unit sphere in space, by polar angle and longitude."""
    a, b = z.unbind(-1)
    return torch.stack([a.sin() * b.cos(), a.sin() * b.sin(), a.cos()], -1)


# Less than half a turn apart, so that the shortest way does not leave the chart.
ANGLES = torch.stack([1.5 + 0.9 * draw(6).tanh(), 1.4 * draw(6, seed=2).tanh()], -1)


class TestSphere:
    M = of(sphere)

    def test_curvature(self):
        z = ANGLES
        g = sphere(z)
        u, v = draw(6, 2, seed=3), draw(6, 2, seed=4)
        torch.testing.assert_close(self.M.gaussian_curvature(z), torch.ones(6).double())
        torch.testing.assert_close(self.M.sectional_curvature(z, u, v), torch.ones(6).double())
        torch.testing.assert_close(self.M.ricci(z), g)
        torch.testing.assert_close(self.M.scalar_curvature(z), torch.full((6,), 2.0).double())
        r = torch.einsum("kjl,kim->kijlm", g, g) - torch.einsum("kil,kjm->kijlm", g, g)
        torch.testing.assert_close(self.M.riemann(z), r)

    def test_connection_and_operators(self):
        z = ANGLES
        gamma = torch.zeros(6, 2, 2, 2, dtype=F64)
        gamma[:, 0, 1, 1] = -z[:, 0].sin() * z[:, 0].cos()
        gamma[:, 1, 0, 1] = gamma[:, 1, 1, 0] = z[:, 0].cos() / z[:, 0].sin()
        torch.testing.assert_close(self.M.christoffel(z), gamma)

        # A spherical harmonic of degree 2: its eigenvalue is −2·3.
        def harmonic(z):
            return z[:, 0].sin().square() * (2 * z[:, 1]).cos()

        torch.testing.assert_close(self.M.laplacian(harmonic, z), -6 * harmonic(z))
        up = self.M.gradient(lambda z: z[:, 0].cos(), z)
        torch.testing.assert_close(up, torch.stack([-z[:, 0].sin(), 0 * z[:, 0]], -1))
        flow = self.M.divergence(lambda z: torch.stack([-z[:, 0].sin(), 0 * z[:, 0]], -1), z)
        torch.testing.assert_close(flow, -2 * z[:, 0].cos())

    def test_volume(self):
        torch.testing.assert_close(self.M.volume_density(ANGLES), ANGLES[:, 0].sin())
        box = torch.tensor([[0.2, 1.0], [0.0, 2 * math.pi]], dtype=F64)
        exact = 2 * math.pi * (math.cos(0.2) - math.cos(1.0))
        assert float(self.M.volume(box, rtol=1e-6)) == pytest.approx(exact, rel=1e-6)

    def test_distances_and_flows(self):
        a, b = ANGLES[:3], ANGLES[3:]
        exact = torch.acos((embedded(a) * embedded(b)).sum(-1))
        torch.testing.assert_close(self.M.distance(a, b), exact, rtol=1e-4, atol=0)
        v = self.M.log(a, b)
        torch.testing.assert_close(self.M.norm(a, v), exact, rtol=1e-3, atol=0)
        end = self.M.exp(a, v)
        torch.testing.assert_close(embedded(end), embedded(b), rtol=0, atol=1e-3)
        # The first conjugate point of the unit sphere is the antipode.
        along = torch.tensor([[0.0, 3.5]], dtype=F64)
        equator = torch.tensor([[math.pi / 2, 0.0]], dtype=F64)
        found = self.M.conjugate_points(equator, along)
        assert float(found.times[0, 0]) == pytest.approx(math.pi / 3.5, rel=1e-4)


class TestHyperbolicPlane:
    M = of(half_plane)

    def test_against_closed_forms(self):
        z = torch.stack([draw(6), draw(6, seed=1).exp()], -1)
        torch.testing.assert_close(self.M.gaussian_curvature(z), -torch.ones(6).double())
        a, b = z[:3], z[3:]
        square = (a - b).square().sum(1)
        exact = torch.acosh(1 + square / (2 * a[:, 1] * b[:, 1]))
        torch.testing.assert_close(self.M.distance(a, b), exact, rtol=1e-4, atol=0)
        found = self.M.distance_matrix(z)
        torch.testing.assert_close(found[:3, 3:].diagonal(), exact, rtol=1e-4, atol=0)
        near = self.M.neighbors(z, 2, rtol=1e-3)
        assert torch.equal(near.indices, found.fill_diagonal_(9).argsort(1)[:, :2])
        box = torch.tensor([[0.0, 1.0], [1.0, 2.0]], dtype=F64)
        assert float(self.M.volume(box, rtol=1e-6)) == pytest.approx(0.5, rel=1e-6)

    def test_statistics_take_it(self):
        # On the imaginary axis distances are |log y − log y'|: the mean is the geometric one.
        heights = torch.tensor([0.5, 1.0, 4.0, 2.5], dtype=F64)
        points = torch.stack([torch.zeros(4, dtype=F64), heights], -1)
        mean = statistics.frechet_mean(self.M, points, rtol=1e-6)
        exact = [0.0, float(heights.log().mean().exp())]
        assert mean.point.tolist() == pytest.approx(exact, abs=1e-4)


class TestPositiveMatrices:
    """SPD(2) is a line times a hyperbolic plane of curvature −1/2."""

    M = of(spd)

    def test_curvature(self):
        z = positive(5)
        torch.testing.assert_close(
            self.M.scalar_curvature(z), torch.full((5,), -1.0, dtype=F64), rtol=1e-8, atol=0
        )
        u, v = draw(5, 3, seed=5), draw(5, 3, seed=6)
        k = self.M.sectional_curvature(z, u, v)
        assert bool((k <= 1e-9).all())
        assert bool((k >= -0.5 - 1e-9).all())
        # K = ¼ tr([A, B]²) / (|A|² |B|² − ⟨A, B⟩²), of tangents moved to the identity.
        w, q = torch.linalg.eigh(matrices(z))
        root = q @ torch.diag_embed(w.rsqrt()) @ q.mT
        a, b = (root @ matrices(x) @ root for x in (u, v))
        c = a @ b - b @ a

        def trace(x, y):
            return torch.einsum("kij,kji->k", x, y)

        area = trace(a, a) * trace(b, b) - trace(a, b).square()
        torch.testing.assert_close(k, trace(c, c) / (4 * area))

    def test_distances(self):
        a, b = positive(4), positive(4, seed=9)
        w, q = torch.linalg.eigh(matrices(a))
        root = q @ torch.diag_embed(w.rsqrt()) @ q.mT
        exact = torch.linalg.eigvalsh(root @ matrices(b) @ root).log().norm(dim=1)
        torch.testing.assert_close(self.M.distance(a, b), exact, rtol=1e-4, atol=0)

    def test_exponential_map(self):
        p = torch.tensor([[1.0, 0.0, 1.0]], dtype=F64)  # at the identity it is that of matrices
        v = 0.4 * draw(1, 3, seed=7)
        end = torch.linalg.matrix_exp(matrices(v))
        torch.testing.assert_close(matrices(self.M.exp(p, v)), end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if not call.slow])
def test_every_method_is_that_of_the_decoder_with_this_metric(name):
    """The same numbers as with a decoder, or a reason why there are none."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
    with torch.no_grad():
        for k, p in enumerate(network.parameters()):
            p.copy_(draw(*p.shape, seed=k))
    network.double().eval().requires_grad_(False)
    decoder = Manifold(network)
    M = of(lambda z: pulled(network, z))
    given = Given.drawn(3, 2, 4)
    method = name.split(",")[0]
    chart = Given.drawn(3, 2, 2)
    if method in OF_AN_IMAGE:
        with pytest.raises(DecoderError, match=f"Manifold.{method}.*a decoder"):
            CALLS[name].run(M, chart)
        return
    if name == "distance_matrix, chord":
        with pytest.raises(AmbientError, match="chord"):
            CALLS[name].run(M, chart)
        return
    if method in ("decode", "jacobian", "pushforward", "pullback", "taylor"):
        torch.testing.assert_close(M.decode(chart.z), chart.z)  # the data are the coordinates
        return
    if name in ("scalar_curvature, drawn", "kretschmann, drawn"):
        with pytest.raises(OptionError, match="estimator='exact'"):
            CALLS[name].run(M, chart)
        return
    found, expected = (CALLS[name].run(N, given) for N in (M, decoder))
    if method == "metric_factor":  # known up to an orthogonal factor
        found, expected = found.mT @ found, expected.mT @ expected
    if "neighbors" in method:  # their error bars come from how they were solved
        found, expected = found[0], expected[0]
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    relative = {"value": 1e-9, "second": 1e-7, "solved": 1e-3}[CALLS[name].kind]
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, relative)


def pulled(network, z):
    """Jᵀ J of a network with one hidden layer, by hand."""
    first, _, last = network
    slope = 1 - first(z).tanh().square()
    j = (last.weight * slope[:, None, :]) @ first.weight
    return j.mT @ j


class TestAsAManifold:
    def test_it_travels(self):
        M = of(half_plane, latent_dim=2)
        z = torch.tensor([[0.3, 2.0]])
        assert M.to(dtype=torch.float32).metric(z).dtype == torch.float32
        torch.testing.assert_close(pickle.loads(pickle.dumps(M)).metric(z), half_plane(z))
        assert M.latent_dim == 2
        around = of(lambda z: 1 + 0 * z[..., None], latent=(1.0,))
        ends = torch.tensor([[0.1], [0.9]], dtype=F64)
        assert float(around.distance(*ends)) == pytest.approx(0.2)

    def test_refusals(self):
        space = solvers.MetricSpace(half_plane)
        with pytest.raises(OptionError, match="a MetricSpace alone"):
            Manifold(space, ambient=torch.eye(2))
        z = torch.stack([draw(6), draw(6, seed=1).exp()], -1)
        with pytest.raises(GraphError, match="chord"):
            Manifold(space).graph(z, k=2, weight="chord")
        with pytest.raises(DecoderError, match="ensemble"):
            _ = Manifold(space).members
        with pytest.raises(MetricError, match="symmetric"):
            of(lambda z: z[:, :, None] * torch.ones(2).to(z)).metric(z)

    def test_it_keeps_the_contract(self):
        z = torch.stack([draw(6), draw(6, seed=1).exp()], -1)
        check_manifold(of(half_plane), z)
