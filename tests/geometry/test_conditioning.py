"""Eigenvalues, volumes and curvatures of ill-conditioned Jacobians: truths by construction, J = Q
diag(s) R."""

import math

import pytest
import spaces
import torch

from riemae import Manifold, ambient, scores
from riemae.exceptions import PrecisionWarning, SingularMetricError

F32, F64 = torch.float32, torch.float64


def orthonormal(rows, columns, seed=0):
    return torch.linalg.qr(spaces.rand(torch.Generator().manual_seed(seed), rows, columns).to(F64))[
        0
    ]


def stretched(condition, m=4, size=60, seed=0):
    """A matrix with singular values from 1 down to 1/condition, and these, ascending."""
    s = torch.logspace(-math.log10(condition), 0, m, dtype=F64)
    return orthonormal(size, m, seed) * s @ orthonormal(m, m, seed + 1), s


def linear(matrix):
    return lambda z: z @ matrix.T


def relative(found, true):
    return float((found.double() / true - 1).abs().max())


# With the accuracy that rounding of J itself allows: about eps · cond.
@pytest.mark.parametrize(
    ("dtype", "condition", "accuracy"),
    [
        (F32, 1e2, 1e-4),
        (F32, 1e4, 2e-3),
        (F32, 6e4, 2e-2),
        (F64, 1e4, 1e-11),
        (F64, 1e9, 1e-6),
        (F64, 1e12, 1e-3),
    ],
)
class TestLinearMaps:
    def check(self, M, s, dtype, accuracy, m=4):
        z = spaces.rand(torch.Generator().manual_seed(5), 3, m).to(dtype)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                assert relative(M.eigenvalues(z), s.square()) < 2 * accuracy
                assert (M.log_volume(z) - s.log().sum()).abs().max() < m * accuracy + 1e-5 * (
                    dtype == F32
                )
                assert (
                    relative(scores.condition_number(M, z), (s[-1] / s[0]).square()) < 2 * accuracy
                )
                assert M.eigenvalues(z).dtype == M.log_volume(z).dtype == dtype

    def test_plain(self, dtype, condition, accuracy):
        matrix, s = stretched(condition)
        self.check(Manifold(linear(matrix.to(dtype))), s, dtype, accuracy)

    def test_a_large_offset(self, dtype, condition, accuracy):
        matrix, s = stretched(condition, seed=2)
        self.check(Manifold(lambda z: 1e5 + z @ matrix.to(z).T), s, dtype, accuracy)

    def test_diagonal_ambient(self, dtype, condition, accuracy):
        # weights w and a decoder whose rows are divided by √w
        matrix, s = stretched(condition, seed=3)
        w = torch.logspace(-3, 3, 60, dtype=F64)
        M = Manifold(
            linear((matrix / w.sqrt()[:, None]).to(dtype)), ambient=ambient.Diagonal(w.to(dtype))
        )
        self.check(M, s, dtype, accuracy)

    def test_diagonal_function(self, dtype, condition, accuracy):
        matrix, s = stretched(condition, seed=4)
        w = torch.logspace(-2, 2, 60, dtype=F64)
        M = Manifold(
            linear((matrix / w.sqrt()[:, None]).to(dtype)), ambient=lambda x: w.to(x).expand_as(x)
        )
        self.check(M, s, dtype, accuracy)

    def test_constant_ambient(self, dtype, condition, accuracy):
        # H = L Lᵀ, and the decoder L⁻ᵀ A
        matrix, s = stretched(condition, size=8, seed=5)
        factor = torch.eye(8, dtype=F64) + 0.3 * orthonormal(8, 8, 6).tril(-1)
        M = Manifold(
            linear(torch.linalg.solve(factor.T, matrix).to(dtype)),
            ambient=ambient.Constant((factor @ factor.T).to(dtype)),
        )
        self.check(M, s, dtype, 4 * accuracy)

    def test_matrix_function(self, dtype, condition, accuracy):
        matrix, s = stretched(condition, size=8, seed=7)
        factor = torch.eye(8, dtype=F64) + 0.3 * orthonormal(8, 8, 8).tril(-1)
        h = (factor @ factor.T).to(dtype)
        M = Manifold(
            linear(torch.linalg.solve(factor.T, matrix).to(dtype)),
            ambient=lambda x: h.expand(len(x), 8, 8),
        )
        self.check(M, s, dtype, 4 * accuracy)

    def test_feature_map(self, dtype, condition, accuracy):
        matrix, s = stretched(condition, seed=9)
        turn = orthonormal(70, 60, 10).to(dtype)
        M = Manifold(linear(matrix.to(dtype)), ambient=ambient.FeatureMap(linear(turn)))
        self.check(M, s, dtype, 4 * accuracy)


class TestUnits:
    def test_rescaled_coordinates(self):
        # In any units of the coordinates all digits are right: J = Q diag(t), exactly.
        t = torch.tensor([1e-16, 1e-8, 1.0, 1e10], dtype=F64)
        M, z = Manifold(linear(orthonormal(40, 4) * t)), torch.zeros(2, 4, dtype=F64)
        with torch.no_grad():
            assert relative(M.eigenvalues(z), t.square()) < 1e-12
        assert (M.log_volume(z) - t.log().sum()).abs().max() < 1e-12

    @pytest.mark.parametrize("size", [1e-8, 1e6, 1e12])
    def test_size_of_outputs_in_float32(self, size):
        matrix, s = stretched(30)
        M, z = Manifold(lambda z: size * (z @ matrix.to(z).T)), torch.zeros(1, 4)
        assert relative(M.eigenvalues(z), (size * s).square()) < 1e-4
        assert float(M.log_volume(z)) == pytest.approx(float((size * s).log().sum()), rel=1e-5)

    def test_fisher(self):
        # Gaussians of scale 1: the metric of their means, J = Q diag(s) R.
        matrix, s = stretched(1e9, m=3)
        M = Manifold(lambda z: torch.distributions.Normal(z @ matrix.T, 1.0))
        z = torch.zeros(1, 3, dtype=F64)
        assert relative(M.eigenvalues(z), s.square()) < 1e-6
        assert float(M.log_volume(z)) == pytest.approx(float(s.log().sum()), abs=1e-6)

    def test_latent_metric(self):
        # Relative to G itself all eigenvalues are 1; a sphere's latitudes close to the pole.
        matrix, s = stretched(1e7, m=3)
        M = Manifold(linear(matrix))
        z = torch.zeros(1, 3, dtype=F64)
        scale = torch.tensor([1.0, 100.0, 1e4], dtype=F64)
        found = scores.condition_number(
            M, z, lambda z: torch.diag(scale.square()).expand(len(z), 3, 3)
        )
        truth = torch.linalg.svdvals(matrix / scale)
        assert relative(found, (truth[0] / truth[-1]).square()) < 1e-4
        assert float(scores.vor(M, z)) < 1e-9

    def test_as_before_where_all_is_well(self):
        M, z = Manifold(spaces.sphere), spaces.rand(torch.Generator().manual_seed(0), 9, 2)
        g = M.metric(z)
        assert torch.allclose(M.eigenvalues(z), torch.linalg.eigvalsh(g), rtol=1e-12)
        assert torch.allclose(
            M.log_volume(z), torch.linalg.slogdet(g).logabsdet / 2, rtol=1e-12, atol=1e-13
        )


class TestSingular:
    def maps(self):
        generator = torch.Generator().manual_seed(0)
        tall = spaces.rand(generator, 300, 2)
        wide = spaces.rand(generator, 2, 3)
        return {
            "more coordinates than data": linear(wide),
            "dependent directions": linear(
                torch.cat([tall, tall @ torch.tensor([[1.0], [2.3]], dtype=F64)], 1)
            ),
            "an unused unit": linear(torch.cat([tall, torch.zeros(300, 1, dtype=F64)], 1)),
            "twice the same": linear(tall[:, [0, 1, 1]]),
            "constant": lambda z: 0 * z[:, :1].expand(-1, 7),
        }

    @pytest.mark.parametrize(
        "name",
        [
            "more coordinates than data",
            "dependent directions",
            "an unused unit",
            "twice the same",
            "constant",
        ],
    )
    @pytest.mark.parametrize(
        "metric", [None, lambda x: 1 + x**2, lambda x: torch.diag_embed(2 + x.sin())]
    )
    def test_zero_infinite_and_minus_infinite(self, name, metric):
        M, z = (
            Manifold(self.maps()[name], ambient=metric),
            spaces.rand(torch.Generator().manual_seed(1), 2, 3),
        )
        values = M.eigenvalues(z)
        assert (values[:, 0] == 0).all()
        assert (values >= 0).all()
        assert (M.log_volume(z) == -torch.inf).all()
        assert (M.volume_density(z) == 0).all()
        assert (scores.condition_number(M, z) == torch.inf).all()

    def test_a_singular_point_spoils_no_gradient(self):
        a = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
        M = Manifold(lambda z: a * z**2)  # singular at 0
        z = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64)
        slope = torch.autograd.grad(M.log_volume(z)[0], a)[0]
        assert torch.allclose(slope, 1 / a.detach())
        slope = torch.autograd.grad(M.eigenvalues(z).sum(), a)[0]
        assert torch.allclose(slope, torch.tensor([8.0, 32.0], dtype=F64))  # Σ 4 a² z²

    def test_indefinite(self):
        # Eigenvalues 1 ± x: a metric where it is first looked at, and none further out.
        def h(x):
            a = x[:, :1, None].expand(-1, 2, 2)
            return torch.where(torch.eye(2, dtype=torch.bool), 1.0, a)

        M = Manifold(lambda z: z, ambient=h)
        M.metric(torch.zeros(3, 2, dtype=F64))
        for call in (M.eigenvalues, M.log_volume, M.volume_density):
            with pytest.raises(SingularMetricError, match="negative"):
                call(torch.tensor([[9.0, 0.0]], dtype=F64))


class TestAnnounced:
    @pytest.mark.parametrize(("dtype", "condition"), [(F32, 3e6), (F64, 2e14)])
    def test_a_condition_that_the_dtype_does_not_carry(self, dtype, condition):
        matrix, s = stretched(condition, m=2)
        M, z = Manifold(linear(matrix.to(dtype))), torch.zeros(1, 2, dtype=dtype)
        for call in (
            M.log_volume,
            M.eigenvalues,
            M.volume_density,
            lambda z: scores.condition_number(M, z),
        ):
            with pytest.warns(PrecisionWarning, match="does not carry") as caught:
                call(z)
            assert ("float64" in str(caught[0].message).split("right")[-1]) == (dtype == F32)
            assert caught[0].filename == __file__

    def test_units_are_no_condition(self):
        t = torch.tensor([1e-12, 1.0])
        M = Manifold(lambda z: torch.cat([z * t, z * t], 1))
        assert float(M.log_volume(torch.zeros(1, 2))) == pytest.approx(math.log(2e-12), rel=1e-5)


class TestDerivatives:
    MAP = staticmethod(
        lambda z: torch.stack(
            [z[:, 0].exp(), z[:, 0] * z[:, 1], z[:, 1].sin() + z[:, 0], z[:, 1]], 1
        )
    )

    @pytest.mark.parametrize(
        "metric", [None, lambda x: 1 + x**2, lambda x: torch.diag_embed(2 + x.sin())]
    )
    def test_first_and_second(self, metric):
        M = Manifold(self.MAP, ambient=metric)
        z = torch.tensor([[0.3, -0.7], [1.0, 0.4]], dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(M.log_volume, z)
        assert torch.autograd.gradcheck(M.eigenvalues, z)
        assert torch.autograd.gradgradcheck(M.log_volume, z)
        assert torch.autograd.gradgradcheck(M.eigenvalues, z)

    def test_repeated_eigenvalues(self):
        # λ = 4/(1 + r²)² twice: the derivative of their sum is −32 z/(1 + r²)³.
        M = Manifold(spaces.sphere)
        z = torch.tensor([[0.3, -0.7]], dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(M.eigenvalues(z).sum(), z)
        assert torch.allclose(slope, -32 * z.detach() / (1 + z.detach().square().sum()) ** 3)

    def test_transforms(self):
        M, z = Manifold(self.MAP), torch.tensor([0.3, -0.7], dtype=F64)
        leaf = z.clone().requires_grad_()
        slope = torch.autograd.grad(M.log_volume(leaf), leaf)[0]
        assert torch.allclose(torch.func.grad(M.log_volume)(z), slope)
        assert torch.allclose(torch.func.jacfwd(M.log_volume)(z), slope)
        both = torch.func.vmap(M.eigenvalues)(torch.stack([z, z + 1]))
        assert torch.allclose(both, M.eigenvalues(torch.stack([z, z + 1])))
        second = torch.func.hessian(M.log_volume)(z)
        assert torch.allclose(second, torch.autograd.functional.hessian(M.log_volume, z))


class Cube(torch.autograd.Function):
    """A map that only reverse mode can differentiate."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


@pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")
def test_by_reverse_mode():
    M, z = (
        Manifold(lambda z: Cube.apply(torch.cat([z, z[:, :1] + z[:, 1:]], 1))),
        torch.tensor([[1.0, 2.0]], dtype=F64),
    )
    truth = (
        torch.linalg.svdvals(torch.tensor([[3.0, 0.0], [0.0, 12.0], [27.0, 27.0]], dtype=F64))
        .flip(0)
        .square()
    )
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.allclose(M.eigenvalues(z)[0], truth)
            assert torch.allclose(M.log_volume(z)[0], truth.log().sum() / 2)


class TestCurvature:
    """The unit sphere in sheared coordinates: nothing about it depends on them."""

    @pytest.mark.parametrize(
        ("condition", "accuracy", "metric"),
        [
            (1e2, 1e-10, None),
            (1e4, 1e-7, None),
            (1e6, 1e-4, None),
            (1e4, 1e-7, ambient.Diagonal(torch.ones(3, dtype=F64))),
            (1e4, 1e-7, lambda x: torch.ones_like(x)),
        ],
    )
    def test_sheared_sphere(self, condition, accuracy, metric):
        shear, _ = stretched(condition, m=2, size=2)
        M = Manifold(lambda z: spaces.sphere(z @ shear.T), ambient=metric)
        z = torch.linalg.solve(shear, torch.tensor([[0.3, 0.4], [-0.2, 0.5]], dtype=F64).T).T
        ones = torch.ones(2, dtype=F64)
        assert torch.allclose(M.extrinsic_curvature(z), 4 * ones, rtol=accuracy)
        assert torch.allclose(M.mean_curvature(z).norm(dim=-1), ones, rtol=accuracy)
        if not callable(metric) or isinstance(metric, ambient.AmbientMetric):
            assert torch.allclose(M.gaussian_curvature(z), ones, rtol=accuracy)
            assert torch.allclose(M.scalar_curvature(z), 2 * ones, rtol=accuracy)
            u, v = torch.linalg.inv(shear).T[:, None].expand(2, 2, 2)
            assert torch.allclose(M.sectional_curvature(z, u, v), ones, rtol=accuracy)
            normal = spaces.sphere(z @ shear.T)
            assert torch.allclose(
                M.principal_curvatures(z, normal).abs(), ones[:, None], rtol=accuracy
            )

    def test_float32(self):
        shear, _ = stretched(300, m=2, size=2)
        M = Manifold(lambda z: spaces.sphere(z @ shear.to(z).T))
        z = torch.linalg.solve(shear, torch.tensor([[0.3, 0.4]], dtype=F64).T).T.float()
        assert M.extrinsic_curvature(z).item() == pytest.approx(4, rel=2e-2)
        assert M.gaussian_curvature(z).item() == pytest.approx(1, rel=2e-2)

    def test_dependent_directions_are_refused(self):
        M = Manifold(lambda z: torch.cat([z[:, :1] + z[:, 1:], (z[:, :1] + z[:, 1:]) ** 2], 1))
        z = torch.tensor([[0.3, 0.4]], dtype=F64)
        for call in (
            M.extrinsic_curvature,
            M.gaussian_curvature,
            M.ricci,
            M.mean_curvature,
            M.curvature_form,
        ):
            with pytest.raises(SingularMetricError):
                call(z)
