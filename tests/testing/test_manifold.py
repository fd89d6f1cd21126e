"""The shipped contract: it passes for sound manifolds, and every law that is broken on purpose is
named."""

import pytest
import spaces
import torch
from spaces import rand
from torch import nn

from riemae import Manifold, ambient
from riemae.exceptions import (
    ContractError,
    DecoderError,
    DifferentiationError,
    DTypeError,
    FallbackWarning,
    NonFiniteError,
    ShapeError,
    SingularMetricError,
)
from riemae.testing import check_manifold

LAWS = {
    "metric",
    "metric product",
    "adjoint",
    "taylor",
    "connection",
    "acceleration",
    "reparametrisation",
    "batch",
    "dtype",
    "inputs",
}

# The method for second derivatives does not matter here.
SLOWER_WAY = pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


def network(seed, *layers):
    """A decoder with its own seed: no test depends on the order of the others."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers)).double().eval()


NETWORKS = {
    "tanh": network(0, lambda: nn.Linear(2, 16), nn.Tanh, lambda: nn.Linear(16, 5)),
    "silu, layer norm": network(
        1,
        lambda: nn.Linear(3, 12),
        lambda: nn.LayerNorm(12),
        nn.SiLU,
        lambda: nn.Linear(12, 7),
        nn.Softplus,
    ),
    "batch norm": network(
        2, lambda: nn.Linear(2, 8), lambda: nn.BatchNorm1d(8), nn.GELU, lambda: nn.Linear(8, 4)
    ),
    "images": network(
        3,
        lambda: nn.Linear(2, 8),
        nn.ELU,
        lambda: nn.Unflatten(1, (2, 2, 2)),
        lambda: nn.ConvTranspose2d(2, 1, 3, 2),
        nn.Sigmoid,
    ),
    "curve": network(4, lambda: nn.Linear(1, 8), nn.Tanh, lambda: nn.Linear(8, 3)),
    "linear": network(5, lambda: nn.Linear(2, 5)),
}
# On data in R³, positive definite and far from flat.
AMBIENTS = {
    "diagonal": ambient.Diagonal(torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)),
    "constant": ambient.Constant(torch.eye(3).double() + 0.5),
    "features": ambient.FeatureMap(torch.sinh),
    "conformal": ambient.Custom(
        diagonal=lambda x: (1 + x.square().sum(-1, keepdim=True)).expand_as(x)
    ),
    "matrix": ambient.Custom(matrix=lambda x: x[:, :, None] * x[:, None] + 2 * torch.eye(3).to(x)),
    "operator": ambient.Custom(operator=lambda x, v: v + x * (x * v).sum(-1, keepdim=True)),
}


class TestSoundManifolds:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize(
        "known", spaces.MANIFOLDS, ids=[known.name for known in spaces.MANIFOLDS]
    )
    def test_catalogue(self, known, dtype):
        points = known.points(torch.Generator().manual_seed(0), 5)
        report = check_manifold(known.space().to(dtype=dtype), points.to(dtype))
        assert set(report) == LAWS
        assert all(
            0 <= deviation <= (1e-8 if dtype == torch.float64 else 2e-3)
            for deviation in report.values()
        )

    @SLOWER_WAY
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_networks(self, name, dtype):
        M = Manifold(NETWORKS[name]).to(dtype=dtype)
        check_manifold(M, draw(1, 4, NETWORKS[name][0].in_features).to(dtype))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("name", AMBIENTS)
    @pytest.mark.parametrize("decoder", [spaces.torus, spaces.paraboloid])
    def test_ambient_metrics(self, decoder, name, dtype):
        check_manifold(Manifold(decoder, AMBIENTS[name]).to(dtype=dtype), draw(2, 4, 2).to(dtype))

    def test_one_point_and_another_seed(self):
        M, z = Manifold(spaces.sphere), draw(3, 1, 4)
        assert check_manifold(M, z, generator=1) == check_manifold(M, z, generator=1)
        assert check_manifold(M, z, generator=1) != check_manifold(M, z, generator=2)

    def test_codes_that_are_not_flat_and_an_output_among_others(self):
        layers = nn.Sequential(nn.Flatten(), NETWORKS["tanh"])
        M = Manifold(
            lambda z: {"data": layers(z), "rest": z.sum((1, 2))},
            latent_shape=(2, 1),
            output=lambda found: found["data"],
        )
        z = draw(12, 3, 2)
        report = check_manifold(M, z.unflatten(-1, (2, 1)))
        assert report == check_manifold(M, z)
        assert set(report) == LAWS

    def test_flat_tangents_in_place_of_shaped_ones_break_the_contract(self):
        class Flat(Manifold):
            def acceleration(self, z, v):
                return super().acceleration(z, v).flatten(1)

        M = Flat(nn.Sequential(nn.Flatten(), NETWORKS["tanh"]), latent_shape=(2, 1))
        with pytest.raises(ContractError, match="dtype off by inf"):
            check_manifold(M, draw(12, 3, 2))

    def test_it_changes_neither_points_nor_gradients(self):
        decoder, z = NETWORKS["tanh"], draw(4, 3, 2).requires_grad_()
        kept = z.detach().clone()
        check_manifold(Manifold(decoder), z)
        assert torch.equal(z, kept)
        assert z.grad is None
        assert all(p.grad is None for p in decoder.parameters())

    def test_it_is_silent_about_trainable_parameters_and_needs_no_gradient_mode(self):
        # torch shows some warnings once per process by default; here it shows them every time.
        torch.set_warn_always(True)
        try:
            check_manifold(Manifold(NETWORKS["tanh"]), draw(5, 3, 2))
            with torch.no_grad():
                check_manifold(Manifold(NETWORKS["tanh"]), draw(5, 3, 2))
        finally:
            torch.set_warn_always(False)


def broken_laws(M, z):
    kept = z.clone()
    with pytest.raises(ContractError, match="every law to hold to 1e-08") as caught:
        check_manifold(M, z)
    z.copy_(kept)
    named = {part.split(" off by ")[0] for part in caught.value.got.split(", ")}
    assert named <= LAWS
    return named


def broken(**methods):
    """The unit sphere with some methods replaced; each gets the true result first."""

    def replace(name, change):
        def method(self, *args):
            return change(getattr(Manifold, name)(self, *args), *args)

        return method

    kind = type(
        "Broken", (Manifold,), {name: replace(name, change) for name, change in methods.items()}
    )
    return kind(spaces.sphere)


def doubled(x, *args):
    return 2 * x


def slightly_off(x, *args):
    return x * (1 + 1e-6)


class TestBrokenMethods:
    z = draw(6, 5, 2)

    @pytest.mark.parametrize(
        ("law", "methods"),
        [
            ("metric", {"metric": lambda g, z: g + torch.tensor([[0.0, 1e-3], [-1e-3, 0.0]])}),
            ("metric", {"metric": lambda g, z: -g}),
            ("metric", {"metric": lambda g, z: g - 5 * torch.eye(2)}),
            ("metric product", {"metric_product": doubled}),
            ("metric product", {"metric_product": lambda x, z, v: x.flip(-1)}),
            ("metric product", {"metric_product": lambda x, z, v: v}),
            ("metric product", {"inner": doubled}),
            ("metric product", {"inner": lambda x, z, u, v: -x}),
            ("metric product", {"norm": lambda x, z, v: x**2}),
            ("metric product", {"norm": lambda x, z, v: v.norm(dim=-1)}),
            ("adjoint", {"pushforward": doubled}),
            ("adjoint", {"pullback": doubled}),
            ("adjoint", {"pullback": lambda x, z, w: -x}),
            ("adjoint", {"jacobian": lambda j, z: j.flip(-1)}),
            ("taylor", {"pushforward": doubled, "pullback": doubled, "jacobian": doubled}),
            ("taylor", {"decode": lambda x, z: x * 1.01}),
            ("connection", {"christoffel": doubled}),
            ("connection", {"christoffel": lambda gamma, z: -gamma}),
            ("connection", {"christoffel": lambda gamma, z: gamma.transpose(1, 2)}),
            ("connection", {"christoffel": lambda gamma, z: 0 * gamma}),
            ("acceleration", {"acceleration": lambda a, z, v: -a}),
            ("acceleration", {"acceleration": doubled}),
            ("acceleration", {"acceleration": lambda a, z, v: 0 * a}),
            ("reparametrisation", {"acceleration": lambda a, z, v: -a}),
            ("reparametrisation", {"norm": doubled}),
            ("batch", {"metric": lambda g, z: g * (1 + z[0].square().sum())}),
            ("batch", {"metric": lambda g, z: g.flip(0)}),
            ("batch", {"metric": lambda g, z: g * len(z)}),
        ],
    )
    def test_law_is_named(self, law, methods):
        assert law in broken_laws(broken(**methods), self.z)

    @pytest.mark.parametrize(
        ("law", "name"),
        [
            ("metric product", "metric_product"),
            ("metric product", "inner"),
            ("metric product", "norm"),
            ("adjoint", "pushforward"),
            ("adjoint", "pullback"),
            ("connection", "christoffel"),
            ("acceleration", "acceleration"),
        ],
    )
    def test_an_error_of_a_millionth_is_seen_in_float64(self, law, name):
        assert law in broken_laws(broken(**{name: slightly_off}), self.z)

    def test_a_sound_law_is_not_blamed(self):
        # Twice the metric, consistently: all laws hold except that it is the pull-back.
        twice = broken(
            metric=doubled, metric_product=doubled, inner=doubled, norm=lambda x, z, v: x * 2**0.5
        )
        assert broken_laws(twice, self.z) == {"reparametrisation"}
        assert broken_laws(broken(inner=doubled), self.z) == {"metric product"}
        assert broken_laws(broken(pullback=doubled), self.z) == {"adjoint"}

    def test_torsion(self):
        # A totally antisymmetric torsion in three dimensions preserves inner products and does not
        # change geodesics.
        epsilon = torch.linalg.cross(
            torch.eye(3)[:, None].expand(3, 3, 3), torch.eye(3)[None].expand(3, 3, 3)
        ).double()
        z = draw(7, 4, 3)
        raised = torch.einsum(
            "bkl,lij->bkij", torch.linalg.inv(Manifold(spaces.sphere).metric(z)), epsilon
        )
        assert "connection" in broken_laws(broken(christoffel=lambda gamma, z: gamma + raised), z)

    @pytest.mark.parametrize(
        "name",
        "decode jacobian pushforward pullback metric metric_product inner norm".split()
        + ["christoffel", "acceleration"],
    )
    def test_a_change_of_dtype(self, name):
        assert "dtype" in broken_laws(broken(**{name: lambda x, *args: x.float()}), self.z)

    @pytest.mark.parametrize(
        "name", ["metric", "norm", "metric_product", "christoffel", "acceleration", "inner"]
    )
    def test_a_change_of_shape(self, name):
        assert "dtype" in broken_laws(broken(**{name: lambda x, *args: x[:, None]}), self.z)

    @pytest.mark.parametrize(
        "name", ["decode", "metric", "norm", "metric_product", "christoffel", "acceleration"]
    )
    def test_points_changed_in_place(self, name):
        def spoil(x, z, *args):
            z.data.add_(1e-3)
            return x

        assert "inputs" in broken_laws(broken(**{name: spoil}), self.z)

    @pytest.mark.parametrize(
        "name", ["pushforward", "pullback", "norm", "metric_product", "inner", "acceleration"]
    )
    def test_tangents_changed_in_place(self, name):
        def spoil(x, z, v, *args):
            v.data.mul_(1 + 1e-6)
            return x

        assert "inputs" in broken_laws(broken(**{name: spoil}), self.z)


def by_hand(push, pull):
    """The decoder (z₀, z₁) ↦ (z₀, z₁, z₀² + z₁²) with hand-written derivatives of the squares."""

    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z):
            return z**2

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, w):
            return pull(ctx.saved_tensors[0], w)

        @staticmethod
        def jvp(ctx, v):
            return push(ctx.saved_tensors[0], v)

    return lambda z: torch.cat([z, Square.apply(z).sum(-1, keepdim=True)], -1)


def right(z, v):
    return 2 * z * v


def rotations(z):  # (k, 2) -> (k, 6): turns about two axes; flat, though the data move on circles
    u, v = z.unbind(-1)
    return torch.stack([u.cos(), u.sin(), v.cos(), v.sin(), (u + 0.3).cos(), (u + 0.3).sin()], -1)


@pytest.mark.parametrize(
    "decoder", [lambda z: z, lambda z: torch.cat([z, z.flip(-1)], -1), rotations]
)
def test_a_constant_metric_passes(decoder):
    # Its connection is rounding, or does not depend on the points; neither breaks a law.
    check_manifold(Manifold(decoder), draw(0, 4, 2))


@SLOWER_WAY
class TestHandWrittenDerivatives:
    z = draw(8, 4, 2)

    def test_right_ones_pass(self):
        check_manifold(Manifold(by_hand(right, right)), self.z)

    @pytest.mark.parametrize(
        ("push", "pull"),
        [
            (right, lambda z, w: 3 * z * w),
            (lambda z, v: z * v, lambda z, w: z * w),
            (lambda z, v: 2.05 * z * v, lambda z, w: 2.05 * z * w),
        ],
        ids=["wrong backward", "both halved", "both 2.5 % too large"],
    )
    def test_wrong_ones_are_named(self, push, pull):
        with pytest.raises(DifferentiationError, match="the backward of Square"):
            check_manifold(Manifold(by_hand(push, pull)), self.z)

    def test_a_wrong_jvp_beside_a_right_backward_is_not_used(self):
        M = Manifold(by_hand(lambda z, v: 3 * z * v, right))
        with pytest.warns(FallbackWarning, match="contradicts"):
            check_manifold(M, self.z)
        # J is the identity above 2 zᵀ
        torch.testing.assert_close(
            M.metric(self.z), torch.eye(2) + 4 * self.z[:, :, None] * self.z[:, None]
        )


class TestBrokenDecoders:
    def test_a_kink_breaks_taylor(self):
        # |z| at 0, where torch takes the slope 0: the remainder falls like h, not like h².
        kinked = Manifold(lambda z: torch.cat([z, z.abs()], -1))
        assert "taylor" in broken_laws(kinked, torch.zeros(2, 2).double())

    def test_coupled_rows_that_two_points_do_not_show(self):
        def coupled(z):
            x = spaces.paraboloid(z)
            return x + x.roll(1, 0) if len(z) > 2 else x

        with pytest.raises(DecoderError, match="other rows"):
            check_manifold(Manifold(coupled), draw(9, 4, 2))

    @SLOWER_WAY
    def test_float32_sees_gross_errors(self):
        half = Manifold(by_hand(lambda z, v: 4 * z * v, lambda z, w: 4 * z * w))
        with pytest.raises(DifferentiationError, match="the backward of Square"):
            check_manifold(half, torch.ones(2, 2))

    def test_singular(self):
        curve = network(
            6, lambda: nn.Linear(2, 1), lambda: nn.Linear(1, 8), nn.Tanh, lambda: nn.Linear(8, 3)
        )
        with pytest.raises(SingularMetricError, match="(?i)tangent directions"):
            check_manifold(Manifold(curve), draw(10, 4, 2))

    def test_training_mode(self):
        with pytest.raises(DecoderError, match=r"decoder\.eval\(\)"):
            check_manifold(
                Manifold(nn.Sequential(nn.Linear(2, 5), nn.Dropout())), torch.zeros(2, 2)
            )


class TestWrongPoints:
    M = Manifold(spaces.sphere, latent_dim=2)

    @pytest.mark.parametrize("shape", [(), (2,), (0, 2), (3, 4, 2)])
    def test_no_list_of_points(self, shape):
        with pytest.raises(ShapeError, match=r"points of shape \(k, m\)"):
            check_manifold(self.M, torch.zeros(shape))

    def test_wrong_dimension(self):
        with pytest.raises(ShapeError, match=r"\(\*b, 2\), got \(4, 3\)"):
            check_manifold(self.M, torch.zeros(4, 3))

    @pytest.mark.parametrize(
        "z", [torch.zeros(3, 2).half(), torch.zeros(3, 2).long(), torch.zeros(3, 2).numpy()]
    )
    def test_wrong_type(self, z):
        with pytest.raises(DTypeError):
            check_manifold(self.M, z)

    def test_not_finite(self):
        with pytest.raises(NonFiniteError, match="1 of 2 points"):
            check_manifold(self.M, torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]))
