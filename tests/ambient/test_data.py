"""Metrics from data and from classifiers: formulas by hand, closed-form distances, and refusals."""

import pytest
import torch
from spaces import rand
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import ClassifierFisher, Constant, Custom, Density, LowRank
from riemae.exceptions import AmbientError, OptionError
from riemae.testing import check_manifold

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


DATA = draw(0, 40, 3) + 5  # off the origin


def local_variance(x, data, sigma):
    gap = data - x[:, None]
    w = (-gap.square().sum(-1) / (2 * sigma**2)).exp()
    return (w[..., None] * gap.square()).sum(1), w.sum(1)


class TestDensity:
    x = draw(1, 6, 3) + 5

    @pytest.mark.parametrize("neighbors", [None, 40, 100])
    def test_formulas(self, neighbors):
        s, h = local_variance(self.x, DATA, 0.5)
        diagonal = Density(DATA, 0.5, floor=0.1, neighbors=neighbors)
        assert_close(diagonal.matrix(self.x), (1 / (s + 0.1)).diag_embed(), **EXACT)
        conformal = Density(DATA, 0.5, "conformal", floor=0.1, neighbors=neighbors)
        assert_close(
            conformal.diagonal(self.x), (1 / (s.mean(-1, keepdim=True) + 0.1)).expand(6, 3), **EXACT
        )
        density = Density(DATA, 0.5, "density", floor=0.1, neighbors=neighbors)
        h = (h / local_variance(DATA, DATA, 0.5)[1].max())[:, None]
        assert_close(density.diagonal(self.x), (1 / (h + 0.1)).expand(6, 3), **EXACT)

    def test_neighbours_take_the_nearest(self):
        s = torch.stack(
            [
                local_variance(x[None], DATA[(DATA - x).norm(dim=-1).argsort()[:7]], 0.5)[0][0]
                for x in self.x
            ]
        )
        assert_close(
            Density(DATA, 0.5, floor=0.1, neighbors=7).diagonal(self.x), 1 / (s + 0.1), **EXACT
        )

    @pytest.mark.parametrize("kind", ["diagonal", "conformal", "density"])
    def test_far_from_all_data_it_is_the_inverse_floor(self, kind):
        metric = Density(DATA, 0.5, kind, floor=0.25)
        assert_close(
            metric.matrix(self.x + 100), 4 * torch.eye(3).double().expand(6, 3, 3), **EXACT
        )

    def test_defaults(self):
        # On a line with step 1, the tenth neighbour of an inner datum is 5 away.
        line = torch.arange(200.0).double()[:, None]
        metric = Density(line)
        assert_close(metric.bandwidth, 5.0)
        s, h = local_variance(line, line, 5.0)
        assert_close(metric.floor, 0.01 * float(s.mean()))
        assert_close(Density(line, kind="density").floor, 0.01 * float((h / h.max()).mean()))

    @pytest.mark.parametrize("kind", ["diagonal", "conformal", "density"])
    @pytest.mark.parametrize("neighbors", [None, 20])
    def test_laws(self, kind, neighbors):
        M = Manifold(
            lambda z: torch.cat([z, z[:, :1] * z[:, 1:]], 1) + 5,
            Density(DATA, 0.4, kind, neighbors=neighbors),
        )
        check_manifold(M, 0.5 * draw(2, 3, 2))

    def test_images(self):
        data = draw(0, 30, 2, 4)
        M = Manifold(lambda z: (z @ draw(3, 2, 8)).view(-1, 2, 4), Density(data, 1.0))
        a = draw(3, 2, 8)
        h = M.ambient.matrix(self.x[:, :2] @ a)
        assert_close(M.metric(self.x[:, :2]), a @ h @ a.T, **EXACT)

    def test_float32_far_from_the_origin(self):
        single = Density((DATA + 1000).float(), 0.5, floor=0.1).diagonal((self.x + 1000).float())
        # Coordinates near 1000 are themselves known to 6e-5 only, a part of 1e-4 of the bandwidth.
        assert_close(
            single, Density(DATA, 0.5, floor=0.1).diagonal(self.x).float(), rtol=3e-3, atol=0
        )

    def test_it_moves_with_the_manifold(self):
        M = Manifold(lambda z: z, Density(DATA, 0.5))
        assert_close(
            M.to(dtype=torch.float32).metric(self.x.float()),
            M.metric(self.x).float(),
            rtol=1e-3,
            atol=1e-4,
        )

    def test_geodesics_go_round_a_hole(self):
        angle = torch.linspace(0, 2 * torch.pi, 81)[:-1].double()
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        M = Manifold(lambda z: z, Density(ring, 0.25))
        # Nearly opposite points: a straight line would come within 0.2 of the middle.
        z0, z1 = ring[:1], ring[34:35]
        r = M.geodesic(z0, z1, rtol=1e-4)
        radii = r.curve(torch.linspace(0, 1, 33).double()).norm(dim=-1)
        assert radii.min() > 0.5
        # The straight line, by the midpoints of ten thousand pieces.
        t = ((torch.arange(10_000) + 0.5) / 10_000).double()[:, None]
        line = M.norm((1 - t) * z0 + t * z1, (z1 - z0).expand(10_000, 2)).mean()
        assert r.length < 0.75 * line

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Density([1.0]), AmbientError, "floating-point tensor"),
            (lambda: Density(DATA[:1]), AmbientError, "N of at least 2"),
            (lambda: Density(DATA / 0), AmbientError, "finite data"),
            (lambda: Density(torch.ones(5, 2)), AmbientError, "data that differ.*Give a bandwidth"),
            (
                lambda: Density(DATA, kind="round"),
                OptionError,
                "'diagonal', 'conformal', 'density'",
            ),
            (lambda: Density(DATA, -1.0), AmbientError, "a positive bandwidth, got -1.0"),
            (lambda: Density(DATA, floor=0.0), AmbientError, "a positive floor"),
            (lambda: Density(DATA, neighbors=0), AmbientError, "a positive neighbors"),
            (
                lambda: Density(DATA).check(draw(0, 2, 4)),
                AmbientError,
                "data of dimension 3, got 4",
            ),
            (lambda: Density(DATA).check(draw(0, 2, 3).float()), AmbientError, r"Manifold\.to"),
        ],
    )
    def test_what_is_refused(self, make, error, message):
        with pytest.raises(error, match=message):
            make()

    def test_repr(self):
        assert (
            repr(Density(DATA, 0.5, floor=0.1))
            == "Density(40×3, bandwidth=0.5, kind='diagonal', floor=0.1)"
        )


class TestMahalanobis:
    def test_it_is_the_inverse_covariance(self):
        gap = DATA - DATA.mean(0)
        covariance = gap.T @ gap / 39
        assert_close(
            Constant.from_data(DATA).matrix(DATA[:1])[0],
            torch.linalg.inv(covariance),
            rtol=1e-9,
            atol=1e-9,
        )
        with_ridge = Constant.from_data(DATA, ridge=0.3).matrix(DATA[:1])[0]
        assert_close(
            with_ridge,
            torch.linalg.inv(covariance + 0.3 * torch.eye(3).double()),
            rtol=1e-9,
            atol=1e-9,
        )

    def test_distances_do_not_depend_on_the_units_of_the_data(self):
        mix = draw(4, 3, 3) + torch.eye(3)
        x, y = draw(1, 5, 3), draw(2, 5, 3)
        assert_close(
            Constant.from_data(DATA @ mix).distance(x @ mix, y @ mix),
            Constant.from_data(DATA).distance(x, y),
            rtol=1e-9,
            atol=0,
        )

    @pytest.mark.parametrize(
        "data", [DATA[:3], DATA[:, :1].expand(40, 3), torch.cat([DATA, DATA.sum(1, True)], 1)]
    )
    def test_a_singular_covariance_is_refused(self, data):
        with pytest.raises(
            AmbientError, match="vary in every direction.*Give a ridge, or use LowRank"
        ):
            Constant.from_data(data)
        Constant.from_data(data, ridge=1e-3)

    def test_what_is_no_data_is_refused(self):
        for wrong in (DATA[:1], DATA[0], DATA / 0):
            with pytest.raises(AmbientError, match="finite data"):
                Constant.from_data(wrong)


class TestLowRank:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: LowRank(torch.ones(3)), r"factor of shape \(D, r\)"),
            (lambda: LowRank([[1.0]]), "tensor"),
            (lambda: LowRank(torch.ones(3, 1), torch.ones(2)), r"diagonal of shape \(3,\)"),
            (lambda: LowRank(torch.ones(3, 1), -1.0), "not negative"),
            (
                lambda: LowRank(torch.ones(3, 1).double()).check(draw(0, 2, 4)),
                "data of dimension 3, got 4",
            ),
        ],
    )
    def test_what_is_refused(self, make, message):
        with pytest.raises(AmbientError, match=message):
            make()

    def test_without_a_diagonal_only_some_directions_count(self):
        M = Manifold(
            lambda z: torch.cat([z, z.square()], -1), LowRank(torch.eye(2, 1).double(), 0.0)
        )
        z0, z1 = draw(0, 4, 1), draw(1, 4, 1)
        assert_close(M.distance(z0, z1), (z0 - z1).abs()[:, 0], rtol=1e-6, atol=0)

    def test_ten_thousand_dimensions(self):
        a, u = draw(0, 2, 10_000), draw(1, 10_000, 3)
        M = Manifold(lambda z: z @ a, LowRank(u, 2.0))
        g = 2 * a @ a.T + (a @ u) @ (a @ u).T
        assert_close(M.metric(draw(2, 2, 2)), g.expand(2, 2, 2), rtol=1e-10, atol=0)


class TestClassifierFisher:
    weights = draw(5, 3, 4)

    def logits(self, x):
        return (x.flatten(1) @ self.weights).tanh() * 2

    @pytest.mark.parametrize("ridge", [0.0, 0.3])
    def test_it_is_the_fisher_information(self, ridge):
        x = draw(1, 5, 3)
        j = torch.func.vmap(torch.func.jacrev(lambda y: self.logits(y[None])[0]))(x)
        p = self.logits(x).softmax(-1)
        fisher = (
            j.mT @ (p.diag_embed() - p[:, :, None] * p[:, None]) @ j + ridge * torch.eye(3).double()
        )
        assert_close(ClassifierFisher(self.logits, ridge).matrix(x), fisher, **EXACT)

    def test_one_logit_is_a_binary_classifier(self):
        x = draw(1, 5, 3)
        one = ClassifierFisher(lambda x: self.logits(x)[:, :1])
        two = ClassifierFisher(lambda x: torch.nn.functional.pad(self.logits(x)[:, :1], (1, 0)))
        assert_close(one.matrix(x), two.matrix(x), **EXACT)
        assert_close(
            one.distance(x, draw(2, 5, 3)), two.distance(x, draw(2, 5, 3)), rtol=1e-9, atol=0
        )

    def test_distance_of_predictions(self):
        # The identity decodes logits of three classes (one fixed): the whole simplex, d = 2 arccos
        # Σ √(p q).
        M = Manifold(lambda z: z, ClassifierFisher(lambda x: torch.nn.functional.pad(x, (0, 1))))
        z0, z1 = draw(0, 6, 2), draw(1, 6, 2)
        p, q = (torch.nn.functional.pad(z, (0, 1)).softmax(-1) for z in (z0, z1))
        true = 2 * torch.acos((p * q).sqrt().sum(-1))
        r = M.geodesic(z0, z1, rtol=1e-6)
        assert_close(r.length, true, rtol=1e-5, atol=0)
        assert_close(r.lower_bound, true, rtol=1e-9, atol=0)
        assert_close(M.gaussian_curvature(z0), torch.full((6,), 0.25).double(), rtol=1e-9, atol=0)

    def test_certain_predictions_stay_finite(self):
        for dtype in (torch.float32, torch.float64):
            for c in (1, 3):
                metric = ClassifierFisher(lambda x, c=c: 1e4 * x[:, :c], ridge=1.0)
                x = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
                metric.check(x)
                h = metric.matrix(x)
                assert h.isfinite().all()
                assert_close(h[0], torch.eye(3, dtype=dtype), rtol=1e-5, atol=1e-5)

    def test_modules_move_with_the_manifold(self):
        torch.manual_seed(0)
        M = Manifold(lambda z: z, ClassifierFisher(torch.nn.Linear(3, 4).double(), ridge=0.1))
        x = draw(0, 3, 3)
        assert_close(
            M.to(dtype=torch.float32).metric(x.float()), M.metric(x).float(), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: ClassifierFisher(torch.sin, ridge=-1.0), "ridge ≥ 0"),
            (
                lambda: ClassifierFisher(lambda x: x.argmax(-1)).check(draw(0, 2, 3)),
                r"logits of shape \(2, c\), got \(2,\)",
            ),
        ],
    )
    def test_what_is_refused(self, make, message):
        with pytest.raises(AmbientError, match=message):
            make()


def test_a_density_metric_by_its_inner_product():
    x = draw(1, 6, 3) + 5
    metric = Density(DATA, 0.5)
    by_hand = Custom(inner=lambda x, u, v: (metric.diagonal(x) * u * v).sum(-1))
    lift = lambda z: torch.cat([z, z[:, :1] * z[:, 1:]], 1) + 5  # noqa: E731 (one expression)
    z = draw(2, 4, 2) / 2
    for quantity in ("metric", "christoffel", "scalar_curvature"):
        a, b = (getattr(Manifold(lift, m), quantity)(z) for m in (metric, by_hand))
        assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert_close(by_hand.matrix(x), metric.matrix(x), **EXACT)
