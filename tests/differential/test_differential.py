"""Derivatives of any decoder against torch.autograd.functional, closed forms and finite
differences."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.functional import jacobian as reference_jacobian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae import differential
from riemae.differential.derivatives import Differential
from riemae.exceptions import DifferentiationError, FallbackWarning, ShapeError

ACTIVATIONS = [nn.SiLU, nn.ELU, nn.GELU, nn.Tanh, nn.Softplus, nn.Mish, nn.PReLU]
K, M = 3, 3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread, because tensors are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def deviation(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return float((a - b).detach().abs().max() / (1 + b.detach().abs().max()))


def assert_equal(results, expected, tol):
    deviations = {key: deviation(x, expected[key]) for key, x in results.items()}
    assert all(size <= tol for size in deviations.values()), deviations


# Decoders of R^3.


def mlp(activation=nn.Tanh, m=M, width=7):
    return nn.Sequential(nn.Linear(m, width), activation(), nn.Linear(width, 4))


def normed(norm):
    return nn.Sequential(
        nn.Linear(M, 6), nn.Unflatten(1, (2, 3)), norm, nn.Tanh(), nn.Flatten(), nn.Linear(6, 2)
    )


def convolutional():
    norm = nn.BatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
    upsampled = [
        nn.Linear(M, 8),
        nn.Unflatten(1, (2, 2, 2)),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ]
    return nn.Sequential(
        *upsampled, nn.Conv2d(2, 3, 3, padding=1), norm, nn.SiLU(), nn.Conv2d(3, 1, 1)
    )


def transposed():
    first = [
        nn.Linear(M, 4),
        nn.Unflatten(1, (1, 2, 2)),
        nn.ConvTranspose2d(1, 2, 2, stride=2),
        nn.Tanh(),
    ]
    return nn.Sequential(*first, nn.ConvTranspose2d(2, 1, 1))


class Tokens(nn.Module):
    """Latent points as sequences of three tokens."""

    def __init__(self, layer, width):
        super().__init__()
        self.tokens, self.layer = nn.Linear(M, 3 * width), layer

    def forward(self, z):
        out = self.layer(self.tokens(z).unflatten(1, (3, -1)))
        return out[0] if isinstance(out, tuple) else out


def attention(t):
    t = t[:, None]
    return F.scaled_dot_product_attention(t, t.sin(), t)[:, 0]


def transformer():
    return Tokens(nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True), 4)


def spectral():
    wrap = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(wrap(nn.Linear(M, 6)), nn.Tanh(), wrap(nn.Linear(6, 4)))


def affine(z):
    return z @ torch.arange(12).view(3, 4).to(z) / 5 + 1


def polynomial(z):
    x, y, w = z.unbind(-1)
    return torch.stack([x**3 * y, x * y * w, w**2, 2 * x - y], -1)


CATALOGUE = {
    **{
        f"mlp {activation.__name__}": functools.partial(mlp, activation)
        for activation in ACTIVATIONS
    },
    "convolutional": convolutional,
    "transposed convolution": transposed,
    "layer norm": lambda: normed(nn.LayerNorm(3)),
    "group norm": lambda: normed(nn.GroupNorm(2, 2)),
    "instance norm": lambda: normed(nn.InstanceNorm1d(2)),
    "attention": lambda: Tokens(attention, 4),
    "transformer": transformer,
    "frozen transformer": lambda: transformer().requires_grad_(False),
    "gru": lambda: Tokens(nn.GRU(2, 3, batch_first=True), 2),
    "lstm": lambda: Tokens(nn.LSTM(2, 3, batch_first=True), 2),
    "spectral norm": spectral,
    "compiled": mlp,
    "traced": mlp,
    "affine": lambda: affine,
    "constant along one axis": lambda: lambda z: torch.stack([z[:, 0] ** 2, z[:, 1].sin()], -1),
    "constant": lambda: lambda z: z.new_ones(len(z), 2),
    "polynomial": lambda: polynomial,
    "needs contiguous points": lambda: lambda z: z.view(-1).sin().view(-1, M),
    "one number a point": lambda: lambda z: z.prod(-1),
    "image": lambda: lambda z: torch.einsum("ki,kj->kij", z, z.cos())[:, None],
}
COMPILERS = {
    "compiled": lambda net: torch.compile(net, backend="aot_eager"),
    "traced": lambda net: torch.jit.trace(net, next(net.parameters()).new_zeros(2, M)),
}


def build(name, dtype=torch.float64):
    """A decoder, and the same one without a compiler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eager = CATALOGUE[name]()
    if isinstance(eager, nn.Module):
        eager.to(dtype).eval()
    return COMPILERS.get(name, lambda net: net)(eager), eager


def true_derivatives(f, z):
    """J ``(k, D, m)`` and all second derivatives ``(k, D, m, m)``, one point at a time."""
    first = functools.partial(
        reference_jacobian, lambda p: f(p[None])[0].flatten(), create_graph=True
    )
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
    ):  # the fused kernel has no second derivative
        return torch.stack([first(p) for p in z]).detach(), torch.stack(
            [reference_jacobian(first, p) for p in z]
        )


@functools.cache
def truth(name):
    z = draw(K, M)
    return (z, *true_derivatives(build(name)[1], z))


def check_first_order(d, f, z, j, tol=1e-12):
    v, a = draw(*z.shape, seed=1, dtype=z.dtype), draw(*j.shape[:2], seed=2, dtype=z.dtype)
    (x, jacobian), (y, jv), (w, ja) = d.value_and_jacobian(z), d.jvp(z, v), d.vjp(z, a)
    results = {
        "value": d.value(z),
        "x": x,
        "y": y,
        "w": w,
        "jacobian": jacobian,
        "jvp": jv,
        "vjp": ja,
    }
    expected = dict.fromkeys(results, f(z).reshape(len(z), -1))
    expected |= {
        "jacobian": j,
        "jvp": torch.einsum("kdi,ki->kd", j, v),
        "vjp": torch.einsum("kdi,kd->ki", j, a),
    }
    assert_equal(results, expected, tol)
    return results


def check_second_order(d, f, z, j, h, tol=1e-12):
    u, v = (draw(*z.shape, seed=seed, dtype=z.dtype) for seed in (1, 2))
    a = draw(*h.shape[:2], seed=3, dtype=z.dtype)
    results = {
        "uv": d.second_derivative(z, u, v),
        "a": d.contraction(z, a),
        "hessian": d.hessian(z),
    }
    results |= dict(zip("xjh", d.second_jet(z), strict=True))
    expected = {
        "uv": torch.einsum("kdij,ki,kj->kd", h, u, v),
        "a": torch.einsum("kdij,kd->kij", h, a),
        "hessian": h,
    }
    expected |= {"x": f(z).reshape(len(z), -1), "j": j, "h": h}
    assert_equal(results, expected, tol)
    return results


def check_all(d, f, z, j, h):
    check_first_order(d, f, z, j)
    check_second_order(d, f, z, j, h)


# Whether gradients are recorded has nothing to do with the precision. The truth for float32 is that
# for float64, whose weights are the same.
@pytest.mark.parametrize(
    ("dtype", "grad"),
    [(torch.float64, False), (torch.float64, True), (torch.float32, False)],
    ids=["float64-no_grad", "float64-grad", "float32-no_grad"],
)
@pytest.mark.parametrize("name", CATALOGUE)
class TestCatalogue:
    def test_first_derivatives_equal_autograd(self, name, dtype, grad):
        z, j, _ = (x.to(dtype) for x in truth(name))
        f, eager = build(name, dtype)
        with torch.set_grad_enabled(grad):
            results = check_first_order(Differential(f), eager, z, j, TOLERANCE[dtype])
        assert grad or not any(x.requires_grad for x in results.values())

    def test_second_derivatives_equal_autograd(self, name, dtype, grad):
        z, j, h = (x.to(dtype) for x in truth(name))
        f, eager = build(name, dtype)
        with torch.set_grad_enabled(grad):
            results = check_second_order(Differential(f), eager, z, j, h, TOLERANCE[dtype])
        assert grad or not any(x.requires_grad for x in results.values())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
def test_compiled_decoders_do_not_make_torch_compile_riemae(dtype):
    # Torch limits recompilations per function, and a hook of riemae in every layer would soon reach
    # the limit. What other tests have compiled counts too, until it is forgotten.
    torch._dynamo.reset()
    layers = [layer for _ in range(10) for layer in (nn.Linear(M, M), nn.Tanh())]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        f = torch.compile(nn.Sequential(*layers).to(dtype), backend="eager")
        assert Differential(f).jacobian(draw(K, M, dtype=dtype)).shape == (K, M, M)


class TestDifferentiableAgain:
    @pytest.mark.parametrize(
        "name", ["mlp Tanh", "mlp SiLU", "attention", "layer norm", "polynomial"]
    )
    def test_gradcheck(self, name):
        d = Differential(build(name)[0])
        z, u, v = (draw(2, M, seed=seed).requires_grad_() for seed in range(3))
        a = draw(2, d.value(z).shape[1], seed=3).requires_grad_()
        inputs = {
            "jacobian": (z,),
            "jvp": (z, v),
            "vjp": (z, a),
            "second_derivative": (z, u, v),
            "contraction": (z, a),
        }
        for call, arguments in inputs.items():
            assert torch.autograd.gradcheck(getattr(d, call), arguments), call

    @pytest.mark.parametrize("chunk_size", [None, 2])
    @pytest.mark.parametrize(
        "name", [name for name in CATALOGUE if " norm" in name or "mlp" in name] + ["transformer"]
    )
    def test_parameter_gradients_of_an_isometry_loss_equal_autograd(self, name, chunk_size):
        net = build(name)[0]
        z, v = draw(5, M), draw(5, M, seed=1)

        def gradients(jv, gv):  # of mean |Gv|² / (mean vᵀGv)²
            loss = gv.square().sum(-1).mean() / jv.square().sum(-1).mean() ** 2
            return torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)

        d = Differential(net, chunk_size)
        jv = d.jvp(z, v)[1]
        ours = gradients(jv, d.vjp(z, jv)[1])
        with sdpa_kernel(SDPBackend.MATH):
            j = [
                reference_jacobian(lambda p: net(p[None]).flatten(), p, create_graph=True)
                for p in z
            ]
        jv = [j @ v for j, v in zip(j, v, strict=True)]
        theirs = gradients(
            torch.stack(jv), torch.stack([j.T @ w for j, w in zip(j, jv, strict=True)])
        )
        assert max(float(g.abs().max()) for g in theirs) > 1e-3
        assert_equal(dict(enumerate(ours)), dict(enumerate(theirs)), 1e-10)

    @pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
    @pytest.mark.parametrize("name", ["mlp SiLU", "attention", "layer norm", "lstm"])
    def test_pushforward_of_a_gradient_is_its_hessian_product(self, name, grad):
        # E = |f|²/2 has ∇E = Jᵀf and ∇²E v = JᵀJv + f·∂²f v
        z, j, h = truth(name)
        d, v = Differential(build(name)[0]), draw(K, M, seed=1)
        x = build(name)[0](z).detach().flatten(1)
        with torch.set_grad_enabled(grad):
            slope = d.pushforward(torch.func.grad(lambda z: d.value(z).square().sum() / 2), z, v)
        expected = torch.einsum("kdi,kdj,kj->ki", j, j, v) + torch.einsum("kd,kdij,kj->ki", x, h, v)
        assert deviation(slope, expected) <= 1e-12

    def test_under_vmap_and_reverse_mode_of_the_caller(self):
        z, j, h = truth("mlp Tanh")
        d = Differential(build("mlp Tanh")[0])
        assert deviation(torch.func.vmap(lambda p: d.jacobian(p[None])[0])(z), j) <= 1e-12
        assert deviation(torch.func.jacrev(lambda p: d.jacobian(p[None])[0])(z[0]), h[0]) <= 1e-12

    def test_in_inference_mode(self):
        z, j, h = truth("mlp SiLU")
        f = build("mlp SiLU")[0]
        with torch.inference_mode():
            check_all(Differential(f), f, z, j, h)


class Sine(torch.autograd.Function):
    """sin with a backward that can be differentiated again, and no forward mode."""

    forward = staticmethod(lambda x: x.sin())
    setup_context = staticmethod(lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    backward = staticmethod(lambda ctx, g: g * ctx.saved_tensors[0].cos())


class VectorisedSine(Sine):
    generate_vmap_rule = True


class OldSine(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: (ctx.save_for_backward(x), x.sin())[1])
    backward = staticmethod(lambda ctx, g: g * ctx.saved_tensors[0].cos())


def table(z):
    """Look-up in an image; torch has no forward mode for it."""
    image = torch.arange(36).to(z).sin().view(1, 1, 6, 6).expand(len(z), -1, -1, -1)
    return F.grid_sample(image, z[:, :2].tanh().view(-1, 1, 1, 2), align_corners=False)


class TestFallback:
    MAPS = {
        "function": lambda z: Sine.apply(affine(z)),
        "function with vmap": lambda z: VectorisedSine.apply(affine(z)),
        "grid_sample": table,
    }

    @pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
    @pytest.mark.parametrize("name", MAPS)
    def test_warns_once_for_each_decoder_and_is_exact(self, name, grad):
        f, z = self.MAPS[name], draw(K, M)
        j, h = true_derivatives(f, z)
        for _ in range(2):
            d = Differential(f)
            with (
                torch.set_grad_enabled(grad),
                pytest.warns(FallbackWarning, match="reverse mode twice") as seen,
            ):
                check_all(d, f, z, j, h)
            check_all(d, f, z, j, h)  # a second warning would be an error here
            assert len(seen) == 1

    def test_warning_points_at_the_caller(self):
        # Python's default filter shows a warning once per line. From a line of riemae, only that of
        # the first decoder would be shown.
        with pytest.warns(FallbackWarning) as seen:
            Differential(table).jacobian(draw(K, M))
        assert seen[0].filename == __file__

    def test_reverse_products_need_no_fallback(self):
        z, a = draw(K, M), draw(K, 4)
        pulled = Differential(self.MAPS["function"]).vjp(z, a)[
            1
        ]  # a warning would be an error here
        assert (
            deviation(pulled, (a * affine(z).cos()) @ (torch.arange(12).view(3, 4).double() / 5).T)
            <= 1e-12
        )

    @pytest.mark.parametrize("call", ["jacobian", "jvp", "vjp", "second_derivative", "contraction"])
    def test_what_torch_cannot_differentiate_is_refused_with_every_reason(self, call):
        def nearest(z):  # leaves torch
            return torch.eye(3).to(z)[torch.from_numpy(z.detach().numpy().argmax(-1))]

        arguments = [draw(K, M)] * {"jacobian": 1, "second_derivative": 3}.get(call, 2)
        with pytest.raises(
            DifferentiationError, match=r"storage.*\(.*forward mode.*reverse mode twice"
        ):
            getattr(differential, call)(nearest, *arguments)

    def test_old_style_functions_are_followed_through_their_forward(self):
        z = draw(K, M)
        j, h = true_derivatives(OldSine.apply, z)
        d = Differential(OldSine.apply)
        check_first_order(d, OldSine.apply, z, j)
        assert deviation(d.hessian(z), h) <= 1e-12
        with pytest.warns(
            FallbackWarning, match="setup_context"
        ):  # there is no reverse pass through its inside
            form = d.contraction(z, z)
        assert deviation(form, torch.einsum("kdij,kd->kij", h, z)) <= 1e-12

    def test_switches_are_restored_when_nothing_works(self):
        def switches():
            cuda, fast = torch.backends.cuda, torch.backends.mha.get_fastpath_enabled()
            return (
                torch.backends.mkldnn.enabled,
                cuda.flash_sdp_enabled(),
                cuda.math_sdp_enabled(),
                fast,
            )

        before = switches()
        with pytest.raises(DifferentiationError, match="numpy"):
            differential.jacobian(
                lambda z: torch.from_numpy(z.numpy() ** 2), draw(K, M).requires_grad_()
            )
        assert switches() == before


def everything(f, z, u, v, a, chunk_size=None):
    (x, jv), (_, ja) = differential.jvp(f, z, v, chunk_size), differential.vjp(f, z, a, chunk_size)
    return {
        "value": x,
        "jvp": jv,
        "vjp": ja,
        "jacobian": differential.jacobian(f, z, chunk_size),
        "second": differential.second_derivative(f, z, u, v, chunk_size),
        "contraction": differential.contraction(f, z, a, chunk_size),
    }


class TestShapes:
    @pytest.mark.parametrize("batch", [(), (0,), (1,), (2,), (2, 3), (2, 0, 3)], ids=str)
    @pytest.mark.parametrize(
        ("name", "shape"),
        [("mlp Tanh", (4,)), ("convolutional", (1, 4, 4)), ("one number a point", ())],
    )
    def test_leading_axes_come_first_and_data_axes_stay(self, name, shape, batch):
        f = build(name)[0]
        z, u, v = (draw(*batch, M, seed=seed) for seed in range(3))
        a = draw(*batch, *shape, seed=3)
        out = everything(f, z, u, v, a)
        tails = {"vjp": (M,), "jacobian": (*shape, M), "contraction": (M, M)}
        assert all(x.shape == (*batch, *tails.get(key, shape)) for key, x in out.items())
        if z.numel():
            flat, u, v = (x.reshape(-1, M) for x in (z, u, v))
            a = a.reshape(len(flat), -1)
            j, h = true_derivatives(f, flat)
            expected = {
                "value": f(flat),
                "jacobian": j,
                "jvp": (j @ v[..., None]),
                "vjp": (a[:, None] @ j),
            }
            expected |= {
                "second": torch.einsum("kdij,ki,kj->kd", h, u, v),
                "contraction": torch.einsum("kdij,kd->kij", h, a),
            }
            assert_equal(
                out, {key: x.reshape(out[key].shape) for key, x in expected.items()}, 1e-12
            )

    @given(
        k=st.integers(0, 6),
        m=st.integers(1, 5),
        data=st.integers(1, 5),
        chunk_size=st.none() | st.integers(1, 7),
    )
    @settings(derandomize=True, deadline=None, max_examples=25)
    def test_linear_maps_of_any_size_have_their_matrix(self, k, m, data, chunk_size):
        matrix, z, a = draw(data, m), draw(k, m, seed=1), draw(k, data, seed=2)
        d = Differential(lambda z: z @ matrix.T, chunk_size)
        assert torch.equal(d.jacobian(z), matrix.expand(k, data, m))
        assert torch.allclose(d.vjp(z, a)[1], a @ matrix, rtol=1e-12, atol=1e-12)
        assert torch.equal(d.hessian(z), torch.zeros(k, data, m, m, dtype=z.dtype))

    WRONG = {
        "mean": (lambda z: z.mean(0, keepdim=True), (2, 3)),  # of one point, this is a map
        "first": (lambda z: z[:1], (2, 3)),
        "sum": (lambda z: z.sum(), (1, 2, 3)),
        "twice": (lambda z: z.repeat(2, 1), (0, 1, 2, 3)),
        "tuple": (lambda z: (z, z), (0, 1, 2, 3)),
    }

    @pytest.mark.parametrize(
        ("name", "k"), [(name, k) for name, (_, ks) in WRONG.items() for k in ks]
    )
    def test_outputs_of_the_wrong_batch_are_refused(self, name, k):
        with pytest.raises(ShapeError, match="batch"):
            differential.jacobian(self.WRONG[name][0], draw(k, 2))

    @pytest.mark.parametrize("wrong", [(4, 3), (4, 4), (1, 4), (12,)], ids=str)
    def test_vectors_of_another_shape_are_refused(self, wrong):
        z = draw(K, M)  # to R^4
        with pytest.raises(ShapeError):
            differential.vjp(affine, z, draw(*wrong))
        with pytest.raises(ShapeError):
            differential.contraction(affine, z, draw(*wrong))
        with pytest.raises(ShapeError):
            differential.jvp(affine, z, draw(*wrong))

    def test_one_direction_may_serve_all_points(self):
        z, v = draw(K, M), draw(M, seed=1)
        assert torch.equal(
            differential.jvp(polynomial, z, v)[1],
            differential.jvp(polynomial, z, v.expand(K, M))[1],
        )

    def test_meta_device(self):
        z, a = (torch.empty(5, n, dtype=torch.float64, device="meta") for n in (M, 4))
        out = everything(build("mlp Tanh")[0].to("meta"), z, z, z, a)
        assert all(x.is_meta for x in out.values())
        assert [tuple(out[key].shape) for key in ("jacobian", "vjp", "contraction")] == [
            (5, 4, M),
            (5, M),
            (5, M, M),
        ]


class TestChunks:
    @pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("name", ["mlp Mish", "convolutional"])
    def test_any_size_gives_the_same_result_and_is_obeyed(self, name, chunk_size):
        net, seen = build(name)[0], []
        z, u, v = (draw(7, M, seed=seed) for seed in range(3))
        a = draw(*net(z).shape, seed=3)
        chunked = everything(lambda z: (seen.append(len(z)), net(z))[1], z, u, v, a, chunk_size)
        assert_equal(chunked, everything(net, z, u, v, a), 1e-13)
        assert max(seen) == min(7, chunk_size)

    def test_default_is_where_the_processor_is_fastest(self):
        # Measured: 256 to 1,024 points at width 256 with 8 tangents in float64. Never so few that
        # overhead rules, unless memory does.
        assert 256 <= Differential(mlp(width=256).double()).chunk(draw(K, M), 8) <= 1024
        assert Differential(lambda z: z.repeat(1, 10**5)).chunk(draw(K, M), 20) >= 8
        assert 1 <= Differential(lambda z: z.repeat(1, 10**6)).chunk(draw(K, M), 1000) < 8

    @pytest.mark.parametrize(("size", "rows"), [(8, 8), (10, 8), (13, 16), (3, 8)])
    def test_no_chunk_but_the_last_is_padded(self, size, rows):
        seen = []
        wave = lambda z: (z @ z.new_ones(4, 16)).sin()  # noqa: E731
        watched = lambda z: (seen.append(len(z)), wave(z))[1]  # noqa: E731
        z = draw(48, 4)
        map_ = Differential(watched, size).batch_invariant()
        map_.jacobian(z)
        seen.clear()
        j = map_.jacobian(z)
        assert set(seen) == {rows}
        assert len(seen) == 48 // rows
        assert torch.equal(j, Differential(wave).batch_invariant().jacobian(z))

    @pytest.mark.parametrize("chunk_size", [2, 3, 6])
    def test_expansions_along_covectors_that_see_all_points(self, chunk_size):
        seen = []
        net = mlp(width=16).double()
        watched = lambda z: (seen.append(len(z)), net(z))[1]  # noqa: E731
        z = draw(7, M)
        covector = lambda x: x.roll(1, 0) - x  # noqa: E731
        chunked = Differential(watched, chunk_size).expansion(z, covector)
        assert max(seen) == chunk_size
        whole = Differential(net, 7).expansion(z, covector)
        for found, expected in zip(chunked, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)

    def test_shrinks_with_the_memory_of_a_point(self):
        narrow, wide = (Differential(mlp(width=width).double()) for width in (64, 256))
        z = draw(K, M)
        assert narrow.chunk(z, 8) == 4 * wide.chunk(z, 8)
        assert wide.chunk(z, 1) == 8 * wide.chunk(z, 8)
        assert Differential(mlp(width=256)).chunk(z.float(), 8) == 2 * wide.chunk(z, 8)

    def test_shrinks_with_the_latent_dimension(self):
        def largest(m):
            net, seen = mlp(m=m, width=256).double(), []
            Differential(lambda z: (seen.append(len(z)), net(z))[1]).jacobian(draw(1500, m))
            return max(seen)

        assert 16 <= largest(31) < largest(7) < largest(3)

    def test_parameters_are_no_width(self):
        # The product of the weights is the largest tensor, but it does not grow with the batch.
        left, right = draw(M, 500), draw(500, 500)
        inside, outside = (
            Differential(lambda z: z @ (left @ right)),
            Differential(lambda z: z @ left),
        )
        assert inside.chunk(draw(K, M), 4) == outside.chunk(draw(K, M), 4)
        # A map whose operations change with the batch is judged by its output.
        changing = Differential(lambda z: z @ left if len(z) < 2 else (z @ left).sin().asin())
        assert changing.chunk(draw(K, M), 4) == outside.chunk(draw(K, M), 4)


@pytest.mark.parametrize(
    "name", ["mlp Tanh", "mlp Mish", "convolutional", "transformer", "gru", "polynomial"]
)
def test_taylor_remainders_fall_like_the_first_power_left_out(name):
    d = Differential(build(name)[0])
    z, v = draw(K, M), draw(K, M, seed=1)
    with torch.no_grad():
        (x, jv), bend = d.jvp(z, v), d.second_derivative(z, v, v)
        a = draw(*x.shape, seed=2)
        pulled, form = d.vjp(z, a)[1], d.contraction(z, a)
        remainders = []
        for h in (2.0**-7, 2.0**-9):
            gap = d.value(z + h * v) - x
            linear, square = (
                (a * gap).sum(-1) - h * (pulled * v).sum(-1),
                torch.einsum("kij,ki,kj->k", form, v, v),
            )
            rests = (gap - h * jv, gap - h * jv - h**2 / 2 * bend, linear - h**2 / 2 * square)
            remainders.append(torch.stack([rest.norm() for rest in rests]))
    slopes = (remainders[0] / remainders[1]).log2() / 2
    assert torch.allclose(slopes, torch.tensor([2.0, 3.0, 3.0], dtype=slopes.dtype), atol=0.1), (
        slopes
    )
