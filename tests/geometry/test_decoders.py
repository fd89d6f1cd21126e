"""What a manifold accepts as a decoder; everything else raises a typed error before anything wrong
is computed."""

import copy
import functools
import re

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from riemae import Manifold
from riemae.differential.derivatives import Differential
from riemae.exceptions import (
    DecoderError,
    DeviceError,
    DifferentiationError,
    DTypeError,
    NonFiniteError,
    ShapeError,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def seeded(make):
    """A module of float64 whose weights do not depend on other tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


def net(*layers, m=2, out=3):
    return seeded(lambda: nn.Sequential(nn.Linear(m, out), *(layer() for layer in layers)))


def pulled_back(f, z):
    """JᵀJ by torch.autograd.functional, one point at a time."""
    jacobians = [jacobian(lambda p: f(p[None]).flatten(), p) for p in z]
    return torch.stack([j.T @ j for j in jacobians])


def assert_close(a, b):
    assert torch.allclose(a, b, rtol=1e-10, atol=1e-12), (a - b).abs().max()


def assert_accepted(f, z):
    assert_close(Manifold(f).metric(z), pulled_back(f, z))


def assert_refused(f, z, error=DecoderError, match=None):
    """The refusal, whose message gives the reason and a remedy."""
    with pytest.raises(error, match=match) as caught:
        Manifold(f).metric(z)
    assert caught.value.where.startswith("Manifold")
    assert caught.value.hint


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = net(m=3, out=2), net(lambda: nn.BatchNorm1d(3), nn.Tanh)

    def decode(self, z):
        return self.decoder(z)


class Unbatched(nn.Module):
    """A recurrent layer without a batch axis takes (k, m) for one sequence of k steps."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(2, 3)

    def forward(self, z):
        return self.cell(z)[0]


class TestTrainingMode:
    LAYERS = {
        "dropout": lambda: nn.Dropout(0.5),
        "alpha dropout": lambda: nn.AlphaDropout(0.5),
        "rrelu": nn.RReLU,
        "batch norm": lambda: nn.BatchNorm1d(3),
        "nested batch norm": lambda: nn.Sequential(
            nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3))
        ),
        "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(
            nn.Linear(3, 3)
        ),  # iterates at each call
    }

    FORMS = {"module": lambda f: f, "bound method": lambda f: f.forward, "script": torch.jit.script}
    CASES = [(layer, form) for layer in LAYERS for form in ("module", "bound method", "script")]

    @pytest.mark.parametrize(
        ("layer", "form"), [case for case in CASES if case != ("spectral norm", "script")]
    )
    def test_is_refused_and_no_statistics_change(self, layer, form):
        module = net(self.LAYERS[layer])
        before = copy.deepcopy(module.state_dict())
        f = self.FORMS[form](module)
        assert_refused(f, draw(5, 2), match=r"decoder\.eval\(\)")
        after = (f if form == "script" else module).state_dict()
        assert all(torch.equal(x, before[key]) for key, x in after.items())

    @pytest.mark.parametrize("layer", LAYERS)
    def test_the_same_in_evaluation_mode_is_accepted(self, layer):
        assert_accepted(net(self.LAYERS[layer]).eval(), draw(5, 2))

    @pytest.mark.parametrize(
        "layer",
        [lambda: nn.Dropout(0.0), nn.Tanh, lambda: nn.LayerNorm(3)],
        ids=["p=0", "tanh", "layer norm"],
    )
    def test_harmless_layers_may_stay_in_training_mode(self, layer):
        assert_accepted(net(layer).train(), draw(5, 2))

    def test_decode_method_of_a_model(self):
        vae = VAE()
        assert_refused(vae.decode, draw(5, 2), match="BatchNorm1d 'decoder.1' in training mode")
        assert int(vae.decoder[1].num_batches_tracked) == 0
        assert_accepted(vae.eval().decode, draw(5, 2))


class TestCoupledAndRandom:
    COUPLED = {
        "mean": lambda z: z - z.mean(0),
        "standardised": lambda z: (z - z.mean(0)) / z.std(0, correction=0),
        "softmax": lambda z: z.softmax(0),
        "cumulative sum": lambda z: z.cumsum(0),
        "reversed": lambda z: z.flip(0),
        "batch statistics": net(lambda: nn.BatchNorm1d(3, track_running_stats=False)).eval(),
        "attention": lambda z: nn.functional.scaled_dot_product_attention(z, z, z),
        "unbatched gru": seeded(Unbatched),
    }

    @pytest.mark.parametrize("points", ["one", "two", "five", "equal"])
    @pytest.mark.parametrize("name", COUPLED)
    def test_batch_coupled_functions_are_refused(self, name, points):
        z = {
            "one": draw(1, 2),
            "two": draw(2, 2),
            "five": draw(5, 2),
            "equal": draw(1, 2).expand(3, 2),
        }[points]
        assert_refused(self.COUPLED[name], z, match="row alone.*other rows")

    @pytest.mark.parametrize(
        "f",
        [
            lambda z: z + torch.randn_like(z),
            lambda z: nn.functional.dropout(z.exp(), 0.5),
            lambda z: z * torch.rand(1).to(z),
        ],
        ids=["noise", "dropout", "one number"],
    )
    def test_random_functions_are_refused_and_the_global_generator_stays(self, f):
        before = torch.get_rng_state()
        assert_refused(f, draw(64, 2).repeat(1, 32), match="deterministic.*two different outputs")
        assert torch.equal(torch.get_rng_state(), before)

    def test_probe_of_a_good_decoder_leaves_the_global_generator(self):
        before = torch.get_rng_state()
        assert_accepted(net(lambda: nn.Dropout(0.5)).eval(), draw(3, 2))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
    def test_what_is_noise_depends_on_the_size_of_the_output(self, scale):
        assert_accepted(lambda z: z.sin() * scale, draw(3, 2))
        assert_refused(lambda z: (z - z.mean(0)) * scale, draw(3, 2), match="other rows")


class TestOutputs:
    @pytest.mark.parametrize(
        ("f", "got"),
        [
            (lambda z: (z, z), "tuple"),
            (lambda z: {"mean": z, "scale": z}, "dict"),
            (lambda z: (z, torch.distributions.Normal(z, 1.0)), "tuple of Normal, Tensor"),
            (lambda z: z.numpy(), "ndarray"),
            (lambda z: None, "NoneType"),
        ],
        ids=["tuple", "dict", "mixed tuple", "numpy", "none"],
    )
    def test_no_tensor(self, f, got):
        assert_refused(f, draw(3, 2), match=f"one tensor.*got {got}")

    @pytest.mark.parametrize(
        "f",
        [
            lambda z: z[:1],
            lambda z: z.sum(),
            lambda z: z.mean(0, keepdim=True),
            lambda z: z.repeat(2, 1),
            lambda z: z.reshape(-1),
            lambda z: z.new_ones(7, 3),
        ],
        ids=["first", "sum", "mean", "twice", "flattened", "fixed"],
    )
    def test_another_number_of_rows(self, f):
        assert_refused(f, draw(3, 2), match="rows for . points.*first axis.*batch")

    def test_a_fixed_number_of_rows_that_happens_to_be_the_probes(self):
        assert_refused(lambda z: z.new_ones(2, 3) * z.sum(), draw(5, 2))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128])
    def test_another_dtype(self, dtype):
        assert_refused(
            lambda z: z.to(dtype),
            draw(3, 2),
            DTypeError,
            match=f"keeps the dtype torch.float64, got {dtype}",
        )

    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_nan_and_infinity_name_the_point(self, k):
        z = draw(k, 2).abs()
        z[0, 0] = -1.0
        assert_refused(torch.log, z, NonFiniteError, match=r"NaN or infinity at z = \[-1\.0, ")
        assert_refused(
            lambda z: 1 / (z + 1), z, NonFiniteError, match=r"NaN or infinity at z = \[-1\.0, "
        )

    def test_a_point_beside_the_domain_is_judged_by_itself(self):
        # Of one point the probe makes two; the second may leave the decoder's domain.
        assert_accepted(lambda z: (1 - z).sqrt(), torch.tensor([[0.999, 0.5]], dtype=torch.float64))

    def test_one_number_a_point_is_a_data_space_of_one_dimension(self):
        z = draw(4, 1)
        assert_close(Manifold(lambda z: z[:, 0] ** 2).metric(z), 4 * z[..., None] ** 2)


class TestInputs:
    @pytest.mark.parametrize("decoder", [3, "decoder", None, nn.Linear, torch.zeros(2, 3)], ids=str)
    def test_what_cannot_be_called(self, decoder):
        with pytest.raises(
            DTypeError, match="(?s)maps latent points.*nn.Module instance or a function"
        ):
            Manifold(decoder)

    def test_wrong_latent_dimension(self):
        class Asserting(nn.Module):
            def forward(self, z):
                assert z.shape[-1] == 3, "three latent dimensions"
                return z

        for f, reason in (
            (net(m=3), "cannot be multiplied"),
            (Asserting(), "three latent dimensions"),
        ):
            assert_refused(
                f,
                draw(5, 2),
                match=rf"(?s)shape \(2, 2\).*{reason}.*last axis of z the latent dimension",
            )
        with pytest.raises(ShapeError, match=r"shape \(\*b, 3\), got \(5, 2\)"):
            Manifold(net(m=3), latent_dim=3).metric(draw(5, 2))

    @pytest.mark.parametrize(
        "form", [lambda f: f, lambda f: f.forward], ids=["module", "bound method"]
    )
    def test_parameters_of_another_dtype_or_device(self, form):
        z = draw(5, 2)
        assert_refused(
            form(net().float()),
            z,
            DTypeError,
            match=r"torch.float32, got torch.float64.*M\.to\(dtype",
        )
        assert_refused(form(net().to("meta")), z, DeviceError, match=r"device meta, got cpu")
        assert_refused(form(net()), z.to("meta"), DeviceError, match=r"device cpu, got meta")

    def test_a_function_of_another_dtype_is_refused_with_torchs_reason(self):
        single = net().float()
        assert_refused(lambda z: single(z), draw(5, 2), match="dtype torch.float64.*RuntimeError")

    @pytest.mark.parametrize("k", [0, 1, 2, 3])
    def test_any_number_of_points(self, k):
        f, z = net(nn.Tanh, lambda: nn.Linear(3, 4)), draw(k, 2)
        metric = Manifold(f).metric(z)
        assert metric.shape == (k, 2, 2)
        if k:
            assert_close(metric, pulled_back(f, z))

    def test_no_points_need_no_domain(self):
        assert Manifold(lambda z: 1 / z).metric(torch.zeros(0, 2)).shape == (0, 2, 2)

    def test_one_point_without_batch_axis(self):
        f, z, v = net(nn.Tanh), draw(2), draw(2, seed=1)
        j = jacobian(lambda p: f(p[None])[0], z)
        assert_close(Manifold(f).pushforward(z, v), j @ v)
        assert_close(Manifold(f).metric_product(z, v), j.T @ j @ v)

    def test_decoders_that_view_their_input_get_contiguous_points(self):
        assert_accepted(lambda z: z.view(-1).sin().view(-1, 2), draw(5, 2))

    def test_callables_of_all_kinds(self):
        class Plain:
            def __call__(self, z):
                return z.sin()

            def method(self, z):
                return z.cos()

        for f in (
            Plain(),
            Plain().method,
            torch.sin,
            functools.partial(torch.mul, other=torch.tensor([2.0, 3.0]).double()),
        ):
            assert_accepted(f, draw(3, 2))

    def test_another_manifold_inside(self):
        # It is called with many points at once inside vmap, where its look at them cannot draw.
        f = net(nn.Tanh, out=4)
        inner = Manifold(lambda z: torch.distributions.Poisson(f(z).exp()))
        outer = Manifold(lambda z: inner.distribution(z).mean)
        z = draw(700, 2)
        outer.metric(z[:4])
        assert_close(outer.metric(z)[:3], pulled_back(lambda y: f(y).exp(), z[:3]))
        v = z.flip(1)
        assert_close(outer.norm(z, v)[:3], Manifold(lambda y: f(y).exp()).norm(z[:3], v[:3]))

    def test_an_error_of_the_decoder_itself_is_chained(self):
        def broken(z):
            raise ValueError("no codebook loaded")

        with pytest.raises(DecoderError, match="ValueError: no codebook loaded") as caught:
            Manifold(broken).metric(draw(3, 2))
        assert isinstance(caught.value.__cause__, ValueError)


class TestTorchScript:
    """Nested derivatives of optimised TorchScript are silently wrong (pytorch#73972, #84681)."""

    FORMS = {"script": torch.jit.script, "freeze": lambda f: torch.jit.freeze(torch.jit.script(f))}
    # The optimiser uses earlier calls.
    PRELUDES = {
        "fresh": lambda f, z: None,
        "used": lambda f, z: [f(z) for _ in range(3)],
        "trained": lambda f, z: [f(z.clone().requires_grad_()).sum().backward() for _ in range(3)],
    }

    @staticmethod
    def eager():
        class Net(
            nn.Module
        ):  # a new class each time, because torch shares compiled code between equal ones
            def __init__(self):
                super().__init__()
                self.first, self.last = nn.Linear(2, 5), nn.Linear(5, 4)

            def forward(self, z):
                return self.last(torch.tanh(self.first(z)))

        return seeded(Net).eval()

    def prepared(self, form, prelude):
        eager, z = self.eager(), draw(3, 2)
        first = functools.partial(jacobian, lambda p: eager(p[None])[0], create_graph=True)
        j, h = (
            torch.stack([f(p) for p in z]).detach()
            for f in (first, functools.partial(jacobian, first))
        )
        scripted = self.FORMS[form](eager)
        self.PRELUDES[prelude](scripted, z)
        return scripted, z, j, h

    @pytest.mark.parametrize("prelude", PRELUDES)
    @pytest.mark.parametrize("form", FORMS)
    def test_derivatives_are_those_of_the_eager_module(self, form, prelude):
        scripted, z, j, h = self.prepared(form, prelude)
        d, a = Differential(scripted), draw(3, 4, seed=1)
        assert_close(d.jacobian(z), j)
        assert_close(d.second_derivative(z, z, z), torch.einsum("kdij,ki,kj->kd", h, z, z))
        assert_close(d.contraction(z, a), torch.einsum("kdij,kd->kij", h, a))

    @pytest.mark.parametrize("prelude", PRELUDES)
    @pytest.mark.parametrize("form", FORMS)
    def test_geometry_is_that_of_the_eager_module(self, form, prelude):
        scripted, z, j, h = self.prepared(form, prelude)
        metric = j.mT @ j
        assert_close(Manifold(scripted).metric(z), metric)
        # Γ = G⁻¹ Jᵀ ∂²f
        lowered = torch.einsum("kdl,kdij->klij", j, h).flatten(2)
        assert_close(
            Manifold(scripted).christoffel(z).flatten(2), torch.linalg.solve(metric, lowered)
        )

    @pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")
    def test_in_a_closure_it_is_right_or_refused(self):
        scripted, z, _, h = self.prepared("script", "used")
        try:
            second = Differential(lambda z: scripted(z)).second_derivative(z, z, z)
        except DifferentiationError:
            return
        assert_close(second, torch.einsum("kdij,ki,kj->kd", h, z, z))


class TestTo:
    def test_moves_a_copy_of_a_module(self):
        f = net(nn.Tanh).float()
        M = Manifold(f)
        moved = M.to(dtype=torch.float64)
        assert moved.metric(draw(3, 2)).dtype == torch.float64
        assert M.metric(draw(3, 2).float()).dtype == torch.float32
        assert next(f.parameters()).dtype == torch.float32
        assert M.decoder is f
        assert_close(moved.metric(draw(3, 2)), pulled_back(copy.deepcopy(f).double(), draw(3, 2)))

    def test_moves_a_copy_behind_a_bound_method(self):
        vae = VAE().eval().float()
        moved = Manifold(vae.decode).to(dtype=torch.float64)
        assert moved.metric(draw(3, 2)).dtype == torch.float64
        assert moved.decoder.__self__ is not vae
        assert {p.dtype for p in vae.parameters()} == {torch.float32}

    def test_the_copy_does_not_follow_the_original(self):
        f = net(nn.Tanh)
        moved, before = Manifold(f).to(dtype=torch.float64), pulled_back(f, draw(3, 2))
        with torch.no_grad():
            f[0].weight.zero_()
        assert_close(moved.metric(draw(3, 2)), before)

    def test_functions_are_taken_over(self):
        f = lambda z: z.sin()  # noqa: E731
        moved = Manifold(f, latent_dim=2).to(dtype=torch.float64)
        assert moved.decoder is f
        assert moved.latent_dim == 2
        assert moved.metric(draw(3, 2)).dtype == torch.float64

    def test_to_the_meta_device(self):
        moved = Manifold(net(nn.Tanh)).to("meta")
        assert moved.metric(draw(3, 2).to("meta")).shape == (3, 2, 2)
        with pytest.raises(DeviceError, match="device meta, got cpu"):
            moved.metric(draw(3, 2))

    @pytest.mark.parametrize("used", [False, True])
    def test_compiled_and_parametrised_modules(self, used):
        spectral = nn.utils.parametrizations.spectral_norm(net()[0]).eval().float()
        plain, z = net(nn.Tanh).float(), draw(3, 2)
        for f, eager in ((torch.compile(plain, backend="eager"), plain), (spectral, spectral)):
            M = Manifold(f)
            if used:
                M.metric(z.float())
            assert_close(
                M.to(dtype=torch.float64).metric(z), pulled_back(copy.deepcopy(eager).double(), z)
            )

    def test_the_compiler_does_not_follow_what_a_probe_does(self):
        torch.compiler.reset()
        followed = []

        def backend(graph, inputs):
            followed.extend(str(node.stack_trace) for node in graph.graph.nodes)
            return graph.forward

        compiled = torch.compile(net(nn.SiLU).float(), backend=backend)
        Manifold(compiled).metric(draw(3, 2).float())
        assert followed
        assert not [trace for trace in followed if "__torch_dispatch__" in trace]


class TestRepr:
    def test_the_shape_of_data_is_known_from_the_first_use_on(self):
        M = Manifold(net(lambda: nn.Unflatten(1, (3, 1, 1))))
        assert M.data_shape is None
        M.metric(draw(3, 2))
        assert M.data_shape == (3, 1, 1)

    def test_fills_in_what_is_known(self):
        M = Manifold(net(lambda: nn.Unflatten(1, (3, 1, 1))))
        assert repr(M) == "Manifold(Sequential: R^? -> R^?, ambient=Euclidean())"
        M.metric(draw(3, 2))
        assert repr(M) == "Manifold(Sequential: R^2 -> R^3×1×1, ambient=Euclidean())"
        assert repr(Manifold(net(), latent_dim=2)).startswith("Manifold(Sequential: R^2 -> R^?")

    def test_names_functions_and_methods(self):
        def swiss(z):
            return z

        assert re.search(r"Manifold\(\S*swiss: R\^\?", repr(Manifold(swiss)))
        assert repr(Manifold(VAE().decode)).startswith("Manifold(VAE.decode: R^?")
