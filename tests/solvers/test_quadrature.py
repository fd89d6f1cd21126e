"""Lengths and energies to a given accuracy: lines on steep and kinked maps against many chords, and
closed forms."""

import math

import pytest
import spaces
import torch
from torch.nn import functional as F

from riemae import Manifold, ambient, solvers
from riemae.exceptions import NotConvergedError, OptionError
from riemae.solvers import Curve

F32, F64 = torch.float32, torch.float64


def draw(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(torch.Generator().manual_seed(seed), *shape, low=low, high=high)


def network(activation, gain=1.0, m=2, size=30, width=32, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.nn.Linear(m, width), activation, torch.nn.Linear(width, width), activation]
    layers.append(torch.nn.Linear(width, size))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.copy_(
                gain * torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5
            )
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return torch.nn.Sequential(*layers).to(dtype).requires_grad_(False)


def chords(f, a, b, count=20_000):
    """Lengths and energies of straight lines from chords of the image: their error falls with the
    square of count."""
    t = torch.linspace(0, 1, count + 1, dtype=F64)[:, None]
    steps = torch.stack(
        [f(x + (y - x) * t).diff(dim=0).norm(dim=-1) for x, y in zip(a, b, strict=True)]
    )
    return steps.sum(-1), count * steps.square().sum(-1)


MAPS = {
    "silu": network(torch.nn.SiLU(), 1.5),
    "steep tanh": network(torch.nn.Tanh(), 4.0),
    "relu": network(torch.nn.ReLU(), 2.0),
    "leaky relu, m = 6": network(torch.nn.LeakyReLU(0.1), 2.0, m=6),
    "wide gelu": network(torch.nn.GELU(), 3.0, width=128, size=8),
    "hardtanh": network(torch.nn.Hardtanh(), 1.5),
    "sine": lambda z: torch.cat([(7 * z).sin(), (z.sum(1, keepdim=True) * 5).cos(), z], 1),
    "a cliff": lambda z: torch.cat([z, ((z[:, :1] - 0.123) * 2000).tanh()], 1),
    "a bump": lambda z: torch.cat([z, (-((z[:, :1] - 0.321) * 20).square()).exp()], 1),
}


def ends(name):
    m = 6 if "m = 6" in name else 2
    a, b = 3 * draw(2, 6, m)
    a[:, 0], b[:, 0] = -1 - a[:, 0].abs(), 1 + b[:, 0].abs()  # over the cliff and the bump
    return a, b


class TestStraightLines:
    @pytest.mark.parametrize("name", MAPS)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-4])
    def test_against_many_chords(self, name, rtol):
        a, b = ends(name)
        length, energy = chords(MAPS[name], a, b, 500_000 if name == "a cliff" else 20_000)
        M, line = Manifold(MAPS[name]), torch.stack([a, b], 1)
        for truth, call in ((length, M.length), (energy, M.energy)):
            found, error = call(line, rtol=rtol, return_error=True)
            # The chords themselves cut corners: at kinks, and on the cliff, by up to 2e-4 of the
            # energy. Of a map with hundreds of kinks, two may lie between the points of a panel.
            assert ((found - truth).abs() <= error + 3e-4 * truth).all()
            assert (error <= rtol * found).all()

    @pytest.mark.parametrize("name", ["silu", "relu", "a cliff"])
    def test_curves_alike(self, name):
        a, b = ends(name)
        for segments in (1, 3, 16):
            line = Curve.line(a, b, segments)
            assert torch.allclose(
                Manifold(MAPS[name]).length(line), chords(MAPS[name], a, b)[0], rtol=1.5e-4
            )
        assert torch.allclose(
            Manifold(MAPS[name]).length(line.nodes), chords(MAPS[name], a, b)[0], rtol=1.5e-4
        )

    @pytest.mark.parametrize("name", ["silu", "relu", "steep tanh"])
    def test_float32(self, name):
        m = MAPS[name]
        a, b = ends(name)
        single = network(m[1], {"silu": 1.5, "relu": 2.0, "steep tanh": 4.0}[name], dtype=F32)
        found = Manifold(single).length(torch.stack([a, b], 1).float())
        assert found.dtype == F32
        assert torch.allclose(found.double(), chords(m, a, b)[0], rtol=2e-4)

    def test_never_shorter_than_the_geodesic(self):
        a, b = ends("silu")
        M = Manifold(MAPS["silu"])
        distance = M.distance(a, b, throw=False)
        assert (M.length(torch.stack([a, b], 1)) >= distance * (1 - 3e-4)).all()

    @pytest.mark.parametrize(
        "metric",
        [ambient.Diagonal(torch.linspace(1, 2, 30, dtype=F64)), lambda x: 1 + x.square() / 10],
    )
    def test_under_another_ambient_metric(self, metric):
        a, b = ends("relu")
        M, f = Manifold(MAPS["relu"], ambient=metric), MAPS["relu"]
        t = torch.linspace(0, 1, 20_001, dtype=F64)[:, None]
        truth = []
        for x, y in zip(a, b, strict=True):
            image = f(x + (y - x) * t)
            middle, step = (image[1:] + image[:-1]) / 2, image.diff(dim=0)
            weights = metric.weights if isinstance(metric, ambient.Diagonal) else metric(middle)
            truth.append((weights * step.square()).sum(-1).sqrt().sum())
        assert torch.allclose(M.length(torch.stack([a, b], 1)), torch.stack(truth), rtol=1.5e-4)

    def test_one_line_does_not_notice_another(self):
        a, b = ends("relu")
        M = Manifold(MAPS["relu"])
        both = M.length(torch.stack([a, b], 1))
        alone = torch.stack([M.length(torch.stack([x, y])) for x, y in zip(a, b, strict=True)])
        assert torch.allclose(both, alone, rtol=1e-12)


class TestClosedForms:
    def test_a_line_across_the_sphere(self):
        # Stereographic: a straight line through the origin is a great circle, of length 2 (arctan b
        # + arctan a).
        M = Manifold(spaces.sphere)
        line = torch.tensor([[-30.0, 0.0], [20.0, 0.0]], dtype=F64)
        truth = 2 * (math.atan(30) + math.atan(20))
        found, error = M.length(line, rtol=1e-9, return_error=True)
        assert abs(float(found) - truth) <= 1e-9 * truth
        assert float(error) <= 1e-9 * truth
        assert abs(float(M.length(line)) / truth - 1) < 1e-4
        assert abs(float(M.length(line.float())) / truth - 1) < 1e-4

    def test_energy_of_a_line_up_the_half_plane(self):
        # z(t) = a + t (b − a): ∫ ((b − a)/z)² dt = (b − a)²/(ab); length log b/a. Three points were
        # 96 % off.
        space, a, b = solvers.MetricSpace(spaces.half_plane_tensor), 1e-3, 1.0
        line = torch.tensor([[0.3, a], [0.3, b]], dtype=F64)
        assert (
            abs(float(solvers.energy(space, line, rtol=1e-8)) / ((b - a) ** 2 / (a * b)) - 1) < 1e-8
        )
        assert abs(float(solvers.length(space, line, rtol=1e-8)) / math.log(b / a) - 1) < 1e-8

    def test_polygon_in_polar_coordinates(self):
        # r from 1 to 2 at fixed angle, then an arc of radius 2 over 3 radians, each in half of the
        # time.
        space = solvers.MetricSpace(
            lambda z: torch.diag_embed(torch.stack([torch.ones_like(z[:, 0]), z[:, 0] ** 2], -1))
        )
        corners = torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 3.0]], dtype=F64)
        assert float(solvers.length(space, corners)) == pytest.approx(7, rel=1e-10)
        assert float(solvers.energy(space, corners)) == pytest.approx(2 * (1 + 36), rel=1e-10)

    def test_the_distance_function_of_a_corner(self):
        # (x, |x|) from −1 to 2: √2 · 3, and its energy 9 · 2; the kink lies at a third, where no
        # panel ever ends.
        M = Manifold(lambda z: torch.cat([z, z.abs()], 1))
        line = torch.tensor([[-1.0], [2.0]], dtype=F64)
        assert float(M.length(line)) == pytest.approx(3 * 2**0.5, rel=1e-12)
        M = Manifold(lambda z: torch.cat([z, F.relu(z)], 1))
        found, error = M.length(line, rtol=1e-7, return_error=True)
        assert abs(float(found) - (1 + 2 * 2**0.5)) <= max(float(error), 1e-12)
        assert float(M.energy(line, rtol=1e-7)) == pytest.approx(9 * (1 / 3 + 2 * 2 / 3), rel=1e-6)

    @pytest.mark.parametrize("place", [1e-4, 0.124, 0.126, 0.3749, 0.50001, 0.7493, 0.9988, 0.9999])
    @pytest.mark.parametrize("nodes", [2, 3, 5, "spline"])
    def test_kinks_next_to_the_ends_of_panels(self, place, nodes):
        # Of seven points of a panel, none lies in the last 2.5 % of it on either side: kinks of
        # (t, max(t − place, 0) · slope, |t − place|) there.
        corners = torch.linspace(0, 1, 3 if nodes == "spline" else nodes, dtype=F64)[:, None]
        line = Curve.from_nodes(corners) if nodes == "spline" else corners
        for slope in (0.5, -3.0):
            M = Manifold(
                lambda z, s=slope: torch.cat([z, s * F.relu(z - place), (z - place).abs()], 1)
            )
            after = (2 + slope**2) ** 0.5
            length, error = M.length(line, rtol=1e-3, return_error=True)
            assert abs(length - (place * 2**0.5 + (1 - place) * after)) <= error + 1e-14
            energy, error = M.energy(line, rtol=1e-3, return_error=True)
            assert abs(energy - (place * 2 + (1 - place) * after**2)) <= error + 1e-14

    def test_steps_of_a_metric_next_to_the_ends_of_panels(self):
        for place in (0.001, 0.0624, 0.8126, 0.9995):
            space = solvers.MetricSpace(
                lambda z, p=place: torch.where(z < p, 1.0, 9.0).to(z)[..., None]
            )
            line = torch.tensor([[0.0], [1.0]], dtype=F64)
            length, error = solvers.length(space, line, rtol=1e-4, return_error=True)
            assert abs(length - (3 - 2 * place)) <= error <= 1e-4 * length

    def test_a_kink_in_a_node_is_no_kink(self):
        # The derivatives of |t| and ReLU in 0 are conventions: nothing has to be refined for them.
        M = Manifold(lambda z: torch.cat([z, z.abs(), F.relu(z)], 1))
        line = torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
        length, error = M.length(line, return_error=True)
        assert abs(length - (2**0.5 + 2 * 3**0.5)) < 1e-14
        assert error < 1e-14

    def test_gradients(self):
        nodes = draw(2, 3, 2, low=0.5, high=2.0).requires_grad_()
        space = solvers.MetricSpace(spaces.half_plane_tensor)
        assert torch.autograd.gradcheck(lambda x: solvers.length(space, x), nodes)
        assert torch.autograd.gradcheck(lambda x: solvers.energy(space, Curve.from_nodes(x)), nodes)
        # log y1/y0 of a vertical line: derivatives −1/y0, 1/y1; also through torch.func.
        line = torch.tensor([[0.0, 0.01], [0.0, 2.0]], dtype=F64)
        slope = torch.func.grad(lambda x: solvers.length(space, x, rtol=1e-8))(line)
        assert torch.allclose(
            slope, torch.tensor([[0.0, -100.0], [0.0, 0.5]], dtype=F64), rtol=1e-5, atol=1e-9
        )
        both = torch.func.vmap(lambda x: solvers.length(space, x))(torch.stack([line, line + 0.01]))
        assert torch.allclose(both, torch.tensor([200.0, 2.01 / 0.02], dtype=F64).log(), rtol=1e-4)

    def test_gradient_in_the_weights(self):
        f = torch.nn.Linear(2, 5).double()
        line = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=F64)
        Manifold(f).length(line).backward()
        step = line[1] - line[0]
        image = f.weight.detach() @ step
        assert torch.allclose(f.weight.grad, image[:, None] * step / image.norm(), rtol=1e-10)

    def test_nothing_to_measure(self):
        M = Manifold(spaces.sphere)
        still = torch.ones(2, 3, 2, dtype=F64, requires_grad=True)
        length, error = M.length(still, return_error=True)
        assert length.tolist() == error.tolist() == [0, 0]
        assert torch.autograd.grad(length.sum(), still)[0].abs().max() == 0
        assert M.length(still[:0]).shape == (0,)
        assert solvers.length(
            solvers.MetricSpace(spaces.half_plane_tensor), torch.full((1, 2, 2), torch.nan)
        ).isnan()


class TestFailures:
    def test_a_jump_is_refused(self):
        # A step of height 1: derivatives do not see it, chords do.
        M = Manifold(lambda z: torch.cat([z, (z[:, :1] > 0.123).to(z)], 1))
        line = torch.tensor([[[-1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]], dtype=F64)
        with pytest.raises(NotConvergedError, match="1 of 2") as caught:
            M.length(line)
        assert "throw=False" in caught.value.hint
        length, error = M.length(line, throw=False, return_error=True)
        assert torch.equal(length, caught.value.result)
        assert error[0] > 0.9
        assert error[1] <= 1e-12

    def test_what_float32_cannot_carry(self):
        M = Manifold(network(torch.nn.ReLU(), dtype=F32))
        with pytest.raises(NotConvergedError, match="rtol=1e-12"):
            M.length(torch.tensor([[-1.0, 0.0], [1.0, 2.0]]), rtol=1e-12)

    @pytest.mark.parametrize("rtol", [0, -1.0, math.nan])
    def test_wrong_rtol(self, rtol):
        with pytest.raises(OptionError, match="rtol"):
            Manifold(spaces.sphere).length(torch.zeros(2, 2, dtype=F64), rtol=rtol)
