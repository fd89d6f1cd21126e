"""The Info-Riemannian metric: the dense formula, its invariances, and the sizes of motions."""

import weakref

import pytest
import torch
from spaces import rand
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from riemae import Manifold
from riemae.ambient import InfoRiemannian
from riemae.ambient.clouds import _noise
from riemae.exceptions import AmbientError, OptionError
from riemae.testing import check_manifold

EXACT = {"rtol": 1e-11, "atol": 1e-12}


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


def sphere_cloud(n, seed=0):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def bound(metric, *shape):
    return metric.bind(None, torch.Size(shape))


def evaluation_points(x, metric):  # (n, d) -> (q, d)
    if metric.evaluate == "cloud":
        return x
    noise = metric.bandwidth * torch.as_tensor(_noise(x.shape[1], metric.draws, metric.seed))
    return (x[:, None] + noise).flatten(0, 1)


def dense(x, metric):
    """``H_(ia)(kb) = E_q w_i w_k (q − x_i)_a (q − x_k)_b/σ⁴``, entry by entry.

    Σ² in place of σ⁴ at the cloud.
    """
    q = evaluation_points(x, metric)
    gap = q[:, None] - x
    w = (-gap.square().sum(-1) / (2 * metric.bandwidth**2)).softmax(-1)
    power = 4 if metric.evaluate == "kde" else 2
    h = torch.einsum("qi,qk,qia,qkb->iakb", w, w, gap, gap) / len(q) / metric.bandwidth**power
    return h.reshape(x.numel(), x.numel())


def by_scores(x, metric):
    """The same from its definition: the outer product of ∂ log p(q; X)/∂X, by autograd."""

    def log_density(y, q):
        return torch.logsumexp(-(q - y).square().sum(-1) / (2 * metric.bandwidth**2), 0)

    scores = torch.stack(
        [torch.func.grad(log_density)(x, q).flatten() for q in evaluation_points(x, metric)]
    )
    return scores.T @ scores / len(scores)


SETTINGS = [{}, {"draws": 3, "seed": 5}, {"evaluate": "cloud"}, {"neighbors": 9}, {"neighbors": 50}]


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
class TestDenseFormula:
    def case(self, settings, d):
        x = draw(0, 2, 9, d) + 3  # off the origin
        return x, bound(InfoRiemannian(0.7, **settings), 9, d)

    def test_matrix(self, settings, d):
        x, metric = self.case(settings, d)
        assert_close(
            metric.matrix(x.flatten(1)), torch.stack([dense(y, metric) for y in x]), **EXACT
        )

    def test_products(self, settings, d):
        x, metric = self.case(settings, d)
        h, v, columns = (
            torch.stack([dense(y, metric) for y in x]),
            draw(1, 2, 9 * d),
            draw(2, 2, 9 * d, 3),
        )
        flat = x.flatten(1)
        assert_close(metric.product(flat, v), (h @ v[..., None])[..., 0], **EXACT)
        assert_close(metric.apply_to(flat, columns), h @ columns, **EXACT)
        assert_close(metric.squared_norm(flat, v), torch.einsum("ki,kij,kj->k", v, h, v), **EXACT)
        assert_close(
            metric.factor_product(flat, v).square().sum(-1), metric.squared_norm(flat, v), **EXACT
        )

    def test_chunks_change_nothing(self, settings, d, monkeypatch):
        x, metric = self.case(settings, d)
        whole = metric.matrix(x.flatten(1))
        monkeypatch.setattr("riemae.ambient.clouds._WEIGHTS", 100)
        assert_close(metric.matrix(x.flatten(1)), whole, **EXACT)

    def test_check_accepts_a_semidefinite_metric(self, settings, d):
        x, metric = self.case(settings, d)
        metric.check(x)
        if "draws" not in settings:
            h = metric.matrix(x.flatten(1))
            assert (
                torch.linalg.eigvalsh(h).amin(-1) < 1e-12 * torch.linalg.eigvalsh(h).amax(-1)
            ).all() == (
                settings.get("evaluate") == "cloud"  # rank at most n < n d
            )


def test_it_is_the_fisher_information_of_the_density():
    x, metric = draw(0, 8, 3), bound(InfoRiemannian(0.6), 8, 3)
    assert_close(metric.matrix(x.flatten()[None])[0], by_scores(x, metric), **EXACT)


def test_few_evaluation_points_stand_for_the_expectation():
    x, g = draw(0, 8, 2), torch.Generator().manual_seed(1)
    q = x[torch.randint(8, (400_000,), generator=g)] + 0.6 * torch.randn(
        400_000, 2, generator=g, dtype=x.dtype
    )

    def sampled(q):
        gap = q[:, None] - x
        w = (-gap.square().sum(-1) / (2 * 0.6**2)).softmax(-1)
        s = (w[..., None] * gap).flatten(1) / 0.6**2
        return s.T @ s / len(q)

    true = sampled(q)
    error = lambda h: float((h - true).norm() / true.norm())  # noqa: E731 (one expression)
    few, many = (
        bound(InfoRiemannian(0.6, draws=n), 8, 2).matrix(x.flatten()[None])[0] for n in (1, 256)
    )
    assert error(many) < 0.06
    assert (
        error(many) < error(few) < error(sampled(q[: 4 * 8])) / 2
    )  # as many independent draws as draws=1 has


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("draws", [1, 4])
def test_the_noise_has_the_moments_of_a_gaussian(d, draws):
    noise = torch.as_tensor(_noise(d, draws, 0))
    assert noise.shape == (2 * d * draws, d)
    assert_close(noise.mean(0), torch.zeros(d).double(), **EXACT)
    assert_close(noise.T @ noise / len(noise), torch.eye(d).double(), **EXACT)
    assert_close(
        torch.einsum("qi,qj,qk->ijk", noise, noise, noise), torch.zeros(d, d, d).double(), **EXACT
    )


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
class TestInvariance:
    def test_permutation(self, settings):
        x, v, metric = (
            draw(0, 1, 12, 3),
            draw(1, 1, 12, 3),
            bound(InfoRiemannian(0.5, **settings), 12, 3),
        )
        order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
        product = metric.product(x.flatten(1), v.flatten(1)).view_as(x)
        moved = metric.product(x[:, order].flatten(1), v[:, order].flatten(1)).view_as(x)
        assert_close(moved, product[:, order], **EXACT)

    def test_translation_and_units(self, settings):
        x, v, metric = draw(0, 1, 36), draw(1, 1, 36), bound(InfoRiemannian(0.5, **settings), 12, 3)
        there = (x.view(1, 12, 3) + torch.tensor([100.0, -50.0, 7.0])).flatten(1)
        assert_close(metric.squared_norm(there, v), metric.squared_norm(x, v), rtol=1e-10, atol=0)
        # A log-likelihood has no unit: a cloud and its bandwidth in other units have the same
        # metric.
        other = bound(InfoRiemannian(0.5 * 1e3, **settings), 12, 3)
        power = 1e6 if settings.get("evaluate") == "cloud" else 1  # where the authors drop one 1/σ²
        assert_close(
            other.squared_norm(1e3 * x, 1e3 * v),
            power * metric.squared_norm(x, v),
            rtol=1e-10,
            atol=0,
        )

    def test_nothing_but_seed_and_settings_matters(self, settings):
        x, v = draw(0, 1, 36), draw(1, 1, 36)
        a, b = (bound(InfoRiemannian(0.5, **settings), 12, 3).product(x, v) for _ in range(2))
        assert torch.equal(a, b)


class TestWhatItMeasures:
    def ratio(self, **settings):
        x = sphere_cloud(256)[None]
        metric = bound(InfoRiemannian.from_clouds(x, **settings), 256, 3)
        spin = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]).double().expand_as(x), x)
        return float(
            metric.squared_norm(x.flatten(1), x.flatten(1))
            / metric.squared_norm(x.flatten(1), spin.flatten(1))
        )

    def test_scaling_a_sphere_weighs_more_than_turning_it(self):
        assert 15 < self.ratio() < 40  # about 27 : 1

    def test_at_the_cloud_itself_it_is_the_wrong_way_round(self):
        assert 1 / 200 < self.ratio(factor=0.5, evaluate="cloud") < 1 / 50  # 1 : 100

    def test_a_point_that_turns_about_its_twin_is_invisible(self):
        # Two coinciding points that part in opposite directions leave the density's mean, to first
        # order all of it.
        x, v = (
            torch.zeros(1, 6).double(),
            torch.tensor([[1.0, 2.0, 3.0, -1.0, -2.0, -3.0]]).double(),
        )
        metric = bound(InfoRiemannian(0.5), 2, 3)
        assert_close(metric.squared_norm(x, v), torch.zeros(1).double())
        # Together they are one Gaussian, whose mean has Fisher information I/σ².
        assert_close(
            metric.squared_norm(x, torch.ones(1, 6).double()),
            torch.tensor([3 / 0.25]).double(),
            **EXACT,
        )

    def test_far_points_are_gaussians_of_their_own(self):
        # Then H = I/(n σ²): each mean has the information 1/σ² of a share 1/n of the mass.
        x = torch.tensor([[0.0, 0, 0, 100, 0, 0, 0, 100, 0]]).double()
        for settings in ({}, {"neighbors": 1}):
            h = bound(InfoRiemannian(0.5, **settings), 3, 3).matrix(x)[0]
            assert_close(h, torch.eye(9).double() / (3 * 0.25), rtol=1e-10, atol=1e-10)

    def test_fewer_neighbours_lose_what_their_weights_were(self):
        x, v = 3 * sphere_cloud(100).flatten()[None], draw(1, 1, 300)
        true = bound(InfoRiemannian(0.3), 100, 3).product(x, v)
        errors = [
            float(
                (bound(InfoRiemannian(0.3, neighbors=p), 100, 3).product(x, v) - true).norm()
                / true.norm()
            )
            for p in (4, 8, 16, 32)
        ]
        assert errors[0] > errors[1] > errors[2] > errors[3]
        assert errors[3] < 1e-7


BALL = sphere_cloud(30)


def shape(z):  # (k, 2) -> (k, 30, 3): an ellipsoid with two half axes
    return (
        BALL.to(z)
        * torch.stack([z[:, 0].exp(), z[:, 1].exp(), torch.ones_like(z[:, 0])], -1)[:, None]
    )


class TestManifold:
    M = Manifold(shape, InfoRiemannian(0.8))

    @pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
    def test_laws(self, settings):
        # With a neighbourhood that no derivative changes, all laws hold. A smaller one may change
        # within a check.
        settings = settings | ({"neighbors": 29} if "neighbors" in settings else {})
        check_manifold(Manifold(shape, InfoRiemannian(0.8, **settings)), draw(0, 3, 2))

    def test_float32(self):
        check_manifold(Manifold(shape, InfoRiemannian(0.8)), draw(0, 3, 2).float())

    def test_the_derivative_sees_evaluation_points_move(self):
        x, v, step = draw(0, 1, 12), draw(1, 1, 12), draw(2, 1, 12)
        metric = bound(InfoRiemannian(0.7), 4, 3)
        norm = lambda y: metric.squared_norm(y, v)  # noqa: E731 (one expression)
        slope = torch.func.jvp(norm, (x,), (step,))[1]
        h = 1e-5
        assert_close(slope, (norm(x + h * step) - norm(x - h * step)) / (2 * h), rtol=1e-8, atol=0)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(norm(leaf).sum(), leaf)
        assert_close((gradient * step).sum(-1), slope, **EXACT)

    def test_lengths_do_not_depend_on_the_chart(self):
        other = Manifold(lambda y: shape(y.sinh() / 2), InfoRiemannian(0.8))
        z0, z1 = draw(0, 3, 2) / 2, draw(1, 3, 2) / 2
        d = self.M.distance(z0, z1, rtol=1e-6)
        assert_close(
            other.distance((2 * z0).asinh(), (2 * z1).asinh(), rtol=1e-6), d, rtol=4e-6, atol=0
        )

    def test_points_without_their_names(self):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
        other = Manifold(lambda z: shape(z)[:, order], InfoRiemannian(0.8))
        assert_close(other.metric(draw(0, 4, 2)), self.M.metric(draw(0, 4, 2)), **EXACT)

    def test_no_distance_is_known_in_the_ambient_space(self):
        assert self.M.geodesic(draw(0, 2), draw(1, 2) / 2).lower_bound.isnan()

    @pytest.mark.parametrize("call", ["metric", "christoffel"])
    def test_first_use_inside_vmap_or_with_no_points(self, call):
        fresh = Manifold(shape, InfoRiemannian(0.8))
        z = draw(0, 4, 2)
        assert len(getattr(fresh, call)(z[:0])) == 0
        fresh = Manifold(shape, InfoRiemannian(0.8))
        assert_close(
            torch.func.vmap(getattr(fresh, call))(z), getattr(self.M, call)(z), rtol=1e-9, atol=1e-9
        )


class _Largest(TorchDispatchMode):
    """The largest number of elements that was alive at once, and that of one tensor."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out._base is None:
            size = out.untyped_storage().nbytes() // out.element_size()
            self.alive += size
            self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
            weakref.finalize(out, self._gone, size)
        return out

    def _gone(self, size):
        self.alive -= size


@pytest.mark.parametrize("settings", [{}, {"evaluate": "cloud"}, {"neighbors": 32}], ids=str)
def test_memory_stays_far_below_the_matrix(settings):
    n = 1500
    x, v = draw(0, 1, 3 * n), draw(1, 1, 3 * n)
    metric = bound(InfoRiemannian(0.2, **settings), n, 3)
    with torch.no_grad(), _Largest() as memory:
        metric.product(x, v)
    assert memory.largest < n * n  # chunks of 2²⁰ weights; the matrix has 9 n² = 20 million entries
    assert memory.peak < 3 * n * n


class TestBandwidth:
    def test_rule(self):
        # On a line with gaps 1, 1, 2, 5 the nearest neighbours are 1, 1, 1, 2, 5 away: the median
        # is 1.
        line = torch.tensor([0.0, 1, 2, 4, 9])[:, None] * torch.tensor(
            [3.0, 4.0]
        )  # steps of length 5
        clouds = torch.stack([line, 3 * line]).double()
        assert_close(InfoRiemannian.from_clouds(clouds).bandwidth, 2 * (5 + 15) / 2)
        assert_close(
            InfoRiemannian.from_clouds(clouds, factor=0.5, evaluate="cloud").bandwidth,
            0.5 * (5 + 15) / 2,
        )

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: InfoRiemannian(0.0), AmbientError, "positive bandwidth.*from_clouds"),
            (lambda: InfoRiemannian(float("nan")), AmbientError, "positive bandwidth"),
            (
                lambda: InfoRiemannian(1.0, evaluate="here"),
                OptionError,
                "evaluate among 'kde', 'cloud'",
            ),
            (lambda: InfoRiemannian(1.0, draws=0), OptionError, "draws of at least 1"),
            (lambda: InfoRiemannian(1.0, neighbors=0), OptionError, "neighbors of at least 1"),
            (
                lambda: InfoRiemannian.from_clouds(torch.zeros(4, 3)),
                AmbientError,
                r"\(N, n, d\).*got \(4, 3\)",
            ),
            (
                lambda: InfoRiemannian.from_clouds(torch.zeros(2, 4, 3)),
                AmbientError,
                "repeated points.*torch.unique",
            ),
            (
                lambda: InfoRiemannian.from_clouds(draw(0, 3, 5, 2).repeat_interleave(2, 1)),
                AmbientError,
                r"from_clouds: .*repeated points.*InfoRiemannian\(bandwidth=0.1\)",
            ),
            (
                lambda: InfoRiemannian.from_clouds(torch.full((2, 4, 3), torch.nan)),
                AmbientError,
                "finite clouds",
            ),
            (
                lambda: InfoRiemannian.from_clouds(draw(0, 2, 4, 3), factor=0.0),
                OptionError,
                "positive factor",
            ),
            (
                lambda: InfoRiemannian.from_clouds(draw(0, 2, 4, 3), factor=-1.0),
                OptionError,
                "positive factor",
            ),
            (
                lambda: InfoRiemannian(1.0).product(torch.zeros(1, 6), torch.zeros(1, 6)),
                AmbientError,
                r"to know the shape.*bind\(None, shape\)",
            ),
            (
                lambda: InfoRiemannian(1.0).check(torch.zeros(2, 6)),
                AmbientError,
                r"clouds \(n, d\)",
            ),
        ],
    )
    def test_what_is_refused(self, make, error, message):
        with pytest.raises(error, match=message):
            make()

    def test_one_metric_for_decoders_of_several_shapes(self):
        metric, z = InfoRiemannian(1.0), draw(0, 1, 2)
        for shape in ((1, 2), (2, 1)):
            M = Manifold(lambda z, shape=shape: z.view(-1, *shape), metric)
            M.metric(z)
            assert M.ambient.data_shape == shape
        assert metric.data_shape is None

    def test_data_of_another_shape_than_it_is_bound_to(self):
        metric, x = bound(InfoRiemannian(1.0), 4, 3), torch.zeros(1, 6)
        with pytest.raises(AmbientError, match=r"data of shape \(4, 3\), got \(6,\).*bind"):
            metric.product(x, x)

    def test_repr(self):
        assert (
            repr(InfoRiemannian(0.5, neighbors=7))
            == "InfoRiemannian(bandwidth=0.5, evaluate='kde', neighbors=7)"
        )
