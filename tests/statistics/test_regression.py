"""Regression on a time and principal geodesics: planted ones, noise, p-values, and bad input."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.solvers import MetricSpace
from riemae.statistics import geodesic_regression, principal_geodesics, tangent_pca

F64 = torch.float64


def points(n, m, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, m, generator=generator, dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


SPACES = {
    "sphere": Manifold(sphere),
    "half plane": MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square()),
}
STARTS = {"sphere": [0.1, -0.2], "half plane": [0.3, 1.5]}


def planted(name, t):
    from riemae import solvers

    start = torch.tensor(STARTS[name], dtype=F64)
    velocity = torch.tensor([0.5, 0.4], dtype=F64)
    z = solvers.exp(SPACES[name], start.expand(len(t), 2), t[:, None] * velocity)
    return start, velocity, z


class TestRegression:
    @pytest.mark.parametrize("name", SPACES)
    def test_planted(self, name):
        t = torch.tensor([-0.7, -0.2, 0.0, 0.3, 0.9, 1.4], dtype=F64)
        start, velocity, z = planted(name, t)
        fit = geodesic_regression(SPACES[name], t, z)
        torch.testing.assert_close(fit.point, start, rtol=0, atol=1e-6)
        torch.testing.assert_close(fit.velocity, velocity, rtol=0, atol=1e-6)
        assert float(fit.r2) == pytest.approx(1, abs=1e-9)
        torch.testing.assert_close(fit.predict(t), z, rtol=0, atol=1e-6)
        assert fit.converged

    def test_in_flat_space_it_is_least_squares(self):
        t = torch.linspace(0, 2, 12, dtype=F64)
        weights = points(12, 1, 4)[:, 0].abs()
        z = torch.outer(t, torch.tensor([1.0, -0.5, 0.2], dtype=F64)) + points(12, 3)
        fit = geodesic_regression(Manifold(lambda z: 2 * z), t, z, weights)
        design = torch.stack([torch.ones_like(t), t], 1)
        root = weights.sqrt()[:, None]
        exact = torch.linalg.lstsq(root * design, root * z).solution
        torch.testing.assert_close(fit.point, exact[0], rtol=0, atol=1e-8)
        torch.testing.assert_close(fit.velocity, exact[1], rtol=0, atol=1e-8)
        share = weights / weights.sum()
        left = (share[:, None] * (z - design @ exact).square()).sum()
        whole = (share[:, None] * (z - share @ z).square()).sum()
        torch.testing.assert_close(fit.r2, 1 - left / whole, rtol=1e-6, atol=0)

    def test_with_noise_it_is_a_minimum(self):
        t = torch.linspace(-1, 1, 9, dtype=F64)
        _, _, z = planted("sphere", t)
        z = z + points(9, 2, 3, scale=0.15)
        M = SPACES["sphere"]
        fit = geodesic_regression(M, t, z)

        def objective(point, velocity):
            feet = M.exp(point.expand(9, 2), t[:, None] * velocity)
            cosine = (sphere(feet) * sphere(z)).sum(1).clamp(-1, 1)
            return float(cosine.acos().square().mean())

        best = objective(fit.point, fit.velocity)
        assert best == pytest.approx(float(fit.distances.square().mean()), rel=1e-6)
        for i in range(4):
            for sign in (-1e-3, 1e-3):
                step = torch.zeros(4, dtype=F64)
                step[i] = sign
                assert objective(fit.point + step[:2], fit.velocity + step[2:]) > best
        assert 0.8 < float(fit.r2) < 1

    def test_p_values(self):
        """Small where the times tell something, and anything where they do not."""
        M = Manifold(lambda z: torch.cat([z, z.square()], -1))
        t = torch.linspace(0, 1, 6, dtype=F64)
        told = torch.outer(t, torch.tensor([1.0, 0.5], dtype=F64)) + points(6, 2, scale=0.05)
        fit = geodesic_regression(M, t, told, permutations=4, rtol=1e-2)
        assert float(fit.p_value) == pytest.approx(1 / 5)
        untold = geodesic_regression(M, t, points(6, 2, 7), permutations=4, rtol=1e-2)
        assert float(untold.p_value) > 0.25
        assert bool(geodesic_regression(M, t, told).p_value.isnan())

    def test_p_values_of_500_data_sets_without_a_line_have_the_right_level(self):
        """In flat space R² is that of least squares, whose level is counted for all sets at once.

        ``geodesic_regression`` shuffles in the same order, so that its p-values are the same
        numbers.
        """
        count, times, shuffles = 500, 6, 9
        t = torch.linspace(0, 1, times, dtype=F64)
        flat = Manifold(torch.nn.Identity(), latent_dim=1)
        sets = points(count * times, 1, 11).view(count, times)
        source = torch.Generator().manual_seed(0)
        orders = torch.stack([torch.randperm(times, generator=source) for _ in range(shuffles)])
        apart = t - t.mean()
        explained = (sets @ apart).square()
        shuffled = torch.stack([(sets @ apart[order]).square() for order in orders])
        p_values = (1 + (shuffled >= explained).sum(0)) / (1 + shuffles)
        for number in (0, 1):
            fit = geodesic_regression(
                flat, t, sets[number][:, None], permutations=shuffles, rtol=1e-4
            )
            assert float(fit.p_value) == pytest.approx(float(p_values[number]))
        for level in (0.1, 0.2, 0.5):
            # Where permutations are exchangeable, p ≤ level has exactly this chance.
            share = float((p_values <= level + 1e-9).double().mean())
            assert abs(share - level) <= 3 * (level * (1 - level) / count) ** 0.5

    def test_bad_input(self):
        M = SPACES["sphere"]
        z = points(5, 2)
        t = torch.linspace(0, 1, 5, dtype=F64)
        with pytest.raises(ShapeError, match="5 points"):
            geodesic_regression(M, t[:4], z)
        with pytest.raises(OptionError, match="different"):
            geodesic_regression(M, 0 * t, z)
        with pytest.raises(DTypeError, match="tensor"):
            geodesic_regression(M, t.tolist(), z)
        with pytest.raises(OptionError, match="positive weight"):
            geodesic_regression(M, t, z, torch.eye(5, dtype=F64)[0])
        with pytest.raises(OptionError, match="permutations"):
            geodesic_regression(M, t, z, permutations=-1)
        with pytest.raises(NotConvergedError) as caught:
            geodesic_regression(M, t, z, max_steps=1, rtol=1e-12)
        assert caught.value.result.point.shape == (2,)


class TestPrincipalGeodesics:
    def test_in_one_dimension(self):
        """There is one direction: the whole variance."""
        z = points(6, 1, scale=1.0)
        (line,) = principal_geodesics(Manifold(lambda z: torch.cat([z, z.square()], -1)), z)
        assert float(line.explained_variance_ratio) == pytest.approx(1, abs=1e-8)

    def test_planted(self):
        """On a great circle, and nothing else: it is found, and explains all."""
        arcs = torch.tensor([-0.8, -0.5, 0.1, 0.4, 0.8], dtype=F64)
        direction = torch.tensor([0.6, 0.8], dtype=F64)
        M = SPACES["sphere"]
        z = M.exp(torch.zeros(5, 2, dtype=F64), arcs[:, None] * direction)
        (line,) = principal_geodesics(M, z)
        assert float(line.explained_variance_ratio) == pytest.approx(1, abs=1e-9)
        assert float(line.distances.max()) < 1e-6
        torch.testing.assert_close(line.scores, arcs - arcs.mean(), rtol=0, atol=1e-6)
        torch.testing.assert_close(line.curve(line.scores), z, rtol=0, atol=1e-6)

    def test_in_flat_space_they_are_components(self):
        z = points(20, 3) * torch.tensor([3.0, 1.0, 0.4], dtype=F64)
        M = Manifold(lambda z: 2 * z)
        lines = principal_geodesics(M, z, 2)
        pca = tangent_pca(M, z)
        for line, component, ratio in zip(
            lines, pca.components, pca.explained_variance_ratio, strict=False
        ):
            dot = 4 * (line.direction @ component)
            assert abs(float(dot)) == pytest.approx(1, abs=1e-6)
            assert float(line.explained_variance_ratio) == pytest.approx(float(ratio), abs=1e-6)

    def test_nearer_than_the_tangent_component(self):
        """Where space is curved it explains at least as much, and its feet are nearest points."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 8)).double()
        M = Manifold(net.requires_grad_(False))
        z = points(10, 2, scale=0.8)
        (line,) = principal_geodesics(M, z)
        pca = tangent_pca(M, z)
        assert line.converged
        scores = torch.linspace(-1, 1, 11, dtype=F64)
        best = torch.stack(
            [(M.geodesic(line.curve(s[None]).expand_as(z), z).length) for s in scores]
        ).amin(0)
        assert bool((line.distances <= best + 1e-6).all())
        assert float(line.explained_variance_ratio) <= 1
        assert float(pca.explained_variance_ratio[0]) > 0

    def test_across_at_the_mean(self):
        M = SPACES["sphere"]
        lines = principal_geodesics(M, points(8, 2), 2)
        g = M.metric(lines[0].point)
        assert abs(float(lines[0].direction @ g @ lines[1].direction)) < 1e-8
        assert "variance" in repr(lines[0])

    def test_bad_input(self):
        with pytest.raises(OptionError, match="n_components"):
            principal_geodesics(SPACES["sphere"], points(4, 2), 3)
        with pytest.raises(OptionError, match="at least 2 points"):
            principal_geodesics(SPACES["sphere"], points(1, 2))
