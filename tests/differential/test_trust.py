"""What is trusted, and when: derivatives, rows, chance, units, and the functions of the user beside
the decoder."""

import functools
import warnings

import pytest
import torch
import torch.distributions as td
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from riemae import Manifold, ambient, differential, solvers
from riemae.differential.derivatives import Differential
from riemae.differential.jets import Jet
from riemae.exceptions import (
    AmbientError,
    DecoderError,
    DifferentiationError,
    FallbackWarning,
    MetricError,
    NonFiniteError,
    SingularMetricError,
)

F64 = torch.float64
ORIGIN = torch.zeros(1, 2, dtype=F64)
W = torch.tensor([[0.7, -1.2, 0.4, 0.9, -0.3, 1.1], [0.5, 0.8, -0.6, 0.2, 1.3, -0.7]], dtype=F64)
Z = torch.tensor([[0.9, -0.4], [-1.3, 0.6], [0.2, 1.7]], dtype=F64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(dtype=F64, out=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, out)).to(dtype).eval()


def first(f, z):
    return torch.stack([jacobian(lambda p: f(p[None])[0], p) for p in z])


def second(f, z):
    return torch.stack(
        [jacobian(lambda p: jacobian(lambda q: f(q[None])[0], p, create_graph=True), p) for p in z]
    )


def close(a, b, rtol=1e-8):
    assert float((a - b).detach().abs().max()) <= rtol * float(b.detach().abs().max())


def beside(*parts):
    return torch.cat(parts, -1)


# What Taylor mode must not drop. Each map is the identity beside something that a first look at the
# origin may miss.


def clamped_max(z):
    y = z @ W - 0.4
    y.clamp_max_(0.3)
    return beside(z, y)


def hard_threshold(z):
    y = z @ W + 0.8
    F.threshold_(y, 0.5, 0.1)
    return beside(z, y)


def celu(z):
    y = z @ W + 0.8
    F.celu(y, 0.7, inplace=True)
    return beside(z, y.square())


def remainder(z):
    y = z @ W
    y.remainder_(5.0)
    return beside(z, y)


def leaky(z):
    y = z @ W + 0.6
    F.leaky_relu_(y, 0.2)
    return beside(z, y)


def lerped(z):
    y = z @ W
    y.lerp_(z.square().repeat(1, 3), 0.3)
    return beside(z, y)


def last_columns(z):
    y = (z @ W).sin()
    y[:, 3:].pow_(2)
    return beside(z, y)


def unfolded(z):
    y = z @ W
    y.view(-1, 2, 3).permute(0, 2, 1).exp_()
    return beside(z, y)


def narrowed(z):
    y = z @ W
    y.narrow(1, 1, 2).sub_(z.square())
    return beside(z, y * y)


def diagonal(z):
    y = z[:, :, None] * z[:, None]
    y.diagonal(dim1=1, dim2=2).mul_(3)
    return beside(z, y.flatten(1))


def alias(z):
    y = z @ W
    same = y.contiguous()
    y *= 2
    return beside(z, same.square())


def convolved(z):
    y = z @ W
    return beside(z, torch.fft.ifft(torch.fft.fft(y) * torch.fft.fft(y.flip(-1))).real)


def phase(z):
    y = z @ W
    return beside(z, torch.polar(1 + y[:, :3].square(), y[:, 3:]).real)


def quaternion(z):
    y = torch.view_as_complex((z @ W).view(-1, 3, 2))
    return beside(z, (y * y.conj().roll(1, -1)).abs().square())


def eigen(z):
    y = (z @ W)[:, :4].reshape(-1, 2, 2)
    return beside(z, torch.linalg.matrix_power(y.to(torch.complex128) * 1j, 2).real.flatten(1))


def cosine_transform(z):
    return beside(z, torch.fft.hfft(torch.complex((z @ W)[:, :3], (z @ W)[:, 3:].sin()), n=4))


def appended(z):
    return beside(z, torch.diff(z @ W, dim=-1, append=z.square()))


def added(z):
    return beside(z, torch.add(z @ W, (z @ W).square(), alpha=0.5))


def bias(z):
    return beside(z, torch.addcmul(z @ W, z.repeat(1, 3), (z @ W).sin(), value=0.7))


DROPPED = {
    f.__name__: f
    for f in (
        *(clamped_max, hard_threshold, celu, remainder, leaky, lerped),  # in place
        *(last_columns, unfolded, narrowed, diagonal, alias),  # in place, through other eyes
        *(convolved, phase, quaternion, eigen, cosine_transform),  # complex
        *(appended, added, bias),  # jets among the options
    )
}


@functools.cache
def true_derivatives(name):
    """First and second ones at ``Z``."""
    with torch.enable_grad():
        return first(DROPPED[name], Z), second(DROPPED[name], Z)


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_a_first_look_at_the_origin_does_not_spoil_later_derivatives(name, grad):
    d = Differential(DROPPED[name])
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        d.hessian(ORIGIN)
        j, h = true_derivatives(name)
        close(d.jacobian(Z), j)
        close(d.hessian(Z), h, 1e-7)


LINEAR_ALGEBRA = {
    "slogdet": lambda z, a: torch.linalg.slogdet(a)[1][:, None],
    "logdet": lambda z, a: torch.logdet(a)[:, None],
    "solve": lambda z, a: torch.linalg.solve(a, z[..., None])[..., 0],
    "det of a product": lambda z, a: torch.linalg.det(a @ a)[:, None],
    "solve_triangular": lambda z, a: torch.linalg.solve_triangular(
        a.triu(), z[..., None], upper=True
    )[..., 0],
    "cholesky": lambda z, a: torch.linalg.cholesky(a).flatten(1),
    "norm": lambda z, a: a.norm(dim=(1, 2))[:, None],
}


@pytest.mark.parametrize("name", LINEAR_ALGEBRA)
def test_second_derivatives_of_linear_algebra_are_those_of_plain_autograd(name):
    def f(z):
        a = (z @ W[:, :4]).view(-1, 2, 2)
        return beside(z, LINEAR_ALGEBRA[name](z, 2 * torch.eye(2, dtype=F64) + a @ a.mT))

    d = Differential(f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        d.hessian(ORIGIN)
        close(d.hessian(Z), second(f, Z), 1e-7)


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e-5, 1.0, 1e6, 1e8])
@pytest.mark.parametrize("name", ["convolved", "last_columns", "clamped_max", "appended", "leaky"])
def test_units_change_neither_trust_nor_results_in_float32(name, unit):
    def scaled(z):
        return unit * DROPPED[name](z.double()).to(z.dtype)

    z = Z.float()
    d = Differential(scaled)
    expected = unit * true_derivatives(name)[0]
    close(d.jacobian(z).double(), expected, 1e-4)
    v = z.flip(-1)
    products = d.gram_product(z, v)[2].double() / unit**2
    j = expected / unit
    close(products, torch.einsum("kdi,kdj,kj->ki", j, j, v.double()), 1e-3)


@pytest.mark.parametrize("unit", [1e-10, 1e6, 1e14])
def test_products_with_the_metric_in_any_units(unit):
    big, z = net(), Z
    M = Manifold(lambda z: unit * big(z))
    close(M.metric_product(z, z) / unit**2, Manifold(big).metric_product(z, z), 1e-8)


def test_a_branch_that_appears_later_is_refused_by_taylor_mode_and_still_right():
    def f(z):
        y = z @ W
        if bool((z.detach() > 50).any()):
            y[:, :2].mul_(2)
        return beside(z, y.square())

    d = Differential(f)
    d.jacobian(Z)
    far = 60 + Z
    close(d.jacobian(far), first(f, far))
    assert torch.equal(d.jacobian(Z), d.jacobian(Z))


def test_a_mode_that_turns_wrong_is_found_and_replaced():
    # A map with a state: from some call on, a part of it is hidden from jets, but not from
    # autograd.
    state = {"hidden": False}

    def f(z):
        y = z @ W
        hidden = state["hidden"] and isinstance(y, Jet)
        return beside(z, y.value**2 if hidden else y**2)

    d = Differential(f)
    for _ in range(3):
        d.jacobian(Z)
    state["hidden"] = True
    for _ in range(4):
        d.jacobian(Z)
    with pytest.warns(FallbackWarning, match="Taylor mode fails for this map.*compute them again"):
        last = d.jacobian(Z)  # the eighth call is looked at
    close(last, first(f, Z))


# The derivative that autograd reports is not that of the map.


@torch.no_grad()
def without_gradients(z):
    return net()(z)


@torch.inference_mode()
def in_inference_mode(z):
    return net()(z)


class Reversal(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: x.view_as(x))
    backward = staticmethod(lambda ctx, g: -0.5 * g)


class Twice(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: (ctx.save_for_backward(x), x.sin())[1])
    backward = staticmethod(lambda ctx, g: 2 * g * ctx.saved_tensors[0].cos())


class Rounded(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: x.round())
    backward = staticmethod(lambda ctx, g: g)


def codebook(z):
    codes = torch.linspace(-2, 2, 12, dtype=z.dtype).view(6, 2)
    nearest = codes[(z[:, None] - codes).square().sum(-1).argmin(-1)]
    return net()(z + (nearest - z).detach())


def partly(z):
    with torch.no_grad():
        scale = z.norm(dim=-1, keepdim=True)
    return net()(z) * scale


UNTRUE = {
    "no_grad": (without_gradients, r"torch\.no_grad\(\).*requires_grad_\(False\)"),
    "inference mode": (in_inference_mode, r"inference_mode"),
    "a factor under no_grad": (partly, r"no_grad"),
    "detached half": (
        lambda z: beside(z[:, :1], z[:, 1:].detach().exp(), z.square()),
        r"detach\(\)",
    ),
    "data": (lambda z: beside(z, z.data.sin() * z), r"\.data"),
    "numbers": (
        lambda z: torch.stack([z[i] * float(z.detach()[i].norm()) for i in range(len(z))]),
        r"float\(\)",
    ),
    "a list": (lambda z: z * torch.tensor(z.detach().square().tolist(), dtype=z.dtype), r"tolist"),
    "reversal": (lambda z: net()(Reversal.apply(z)), r"backward of Reversal"),
    "another backward": (lambda z: net()(Twice.apply(z)), r"backward of Twice"),
    "straight through": (lambda z: net()(Rounded.apply(4 * z)), r"constant.*continuous latent"),
    "finite scalars": (
        lambda z: net()(z + ((3 * z.tanh()).round() / 3 - z).detach()),
        r"constant.*continuous latent",
    ),
    "codebook": (codebook, r"argmin.*continuous latent"),
}


@pytest.mark.parametrize("name", UNTRUE)
@pytest.mark.parametrize("z", [ORIGIN, Z], ids=["origin", "points"])
def test_a_derivative_that_is_not_that_of_the_map_is_refused_with_its_cause(name, z):
    f, message = UNTRUE[name]
    with pytest.raises(DifferentiationError, match=f"(?s){message}"):
        Manifold(f).metric(z)
    with pytest.raises(DifferentiationError, match="autograd"):
        Manifold(f).length(torch.stack([Z[:1], Z[1:2]], 1))


SOUND = {
    "relu": lambda z: F.relu(z @ W * 3 + 0.1),
    "steep": lambda z: (30 * (z @ W)).sin(),
    "kinks at the origin": lambda z: beside(z, z.abs(), F.leaky_relu(z @ W)),
    "a step": lambda z: beside(z, (z[:, :1] > 0).to(z)),
    "constant in one direction": lambda z: beside(z[:, :1], z[:, :1].sin()),
    "detached maximum": lambda z: beside(
        z, (z @ W - (z @ W).amax(-1, keepdim=True).detach()).softmax(-1)
    ),
    "offset": lambda z: 1e4 + z @ W,
    "many pieces": lambda z: (
        (z @ W.repeat(1, 50) + torch.linspace(-3, 3, 300).to(z)).abs().view(len(z), 6, 50).sum(-1)
    ),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SOUND)
def test_sound_decoders_are_not_refused(name, dtype):
    f = SOUND[name]

    def cast(z):
        return f(z) if z.dtype == F64 else f(z.double()).to(z.dtype)

    for z in (ORIGIN + 0.01, Z):
        j = first(f, z)
        close(Manifold(cast).metric(z.to(dtype)).double(), j.mT @ j, 1e-8 if dtype == F64 else 1e-3)


# Rows and chance.


def reused(buffer):
    def f(z):
        out = buffer[: len(z)]
        out.copy_(net()(z) + torch.rand(len(z), 1, dtype=F64))
        return out

    return f


COUPLED = {
    "ranks": lambda z: net()(z) + net()(z).argsort(0).to(z),
    "running maximum": lambda z: net()(z).cummax(0)[0],
    "largest clipped": lambda z: net()(z).clamp(min=net()(z).min() + 1e-3),
    "position": lambda z: net()(z) * (1 + 1e-3 * torch.arange(len(z)).to(z)[:, None]),
    "large batches": lambda z: net()(z) - (net()(z).mean(0) if len(z) > 11 else 0),
    "neighbour": lambda z: net()(z) + 0.1 * net()(z).roll(1, 0) * (len(z) > 2),
    "outliers": lambda z: net()(z) + F.relu(z.sum(-1).max() - 3),
    "one region": lambda z: torch.where(
        z[:, 1:] > 1.5, net()(z) + z.mean(0, keepdim=True)[:, :1], net()(z)
    ),
}


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("z", [ORIGIN, Z], ids=["origin", "points"])
def test_rows_that_notice_each_other_are_refused(name, z):
    with pytest.raises(DecoderError, match="row alone.*other rows"):
        Manifold(COUPLED[name]).metric(z)
    with pytest.raises(DifferentiationError, match="row alone.*other rows"):
        differential.jacobian(COUPLED[name], z)


def test_rows_that_notice_each_other_in_large_batches_alone_are_refused_there():
    M = Manifold(lambda z: net()(z) + (net()(z).mean(0) if len(z) >= 20 else 0))
    M.metric(Z)
    many = torch.randn(100, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DecoderError, match="row alone"):
        Manifold(lambda z: net()(z) + (net()(z).mean(0) if len(z) >= 12 else 0)).metric(many)


def test_a_random_decoder_that_reuses_its_memory_is_refused():
    with pytest.raises(DecoderError, match="deterministic"):
        Manifold(reused(torch.zeros(64, 3, dtype=F64))).metric(Z)


def test_a_sound_decoder_that_reuses_its_memory_is_not():
    buffer = torch.zeros(64, 3, dtype=F64)
    layer = net()

    def f(z):
        if z.requires_grad or type(z) is not torch.Tensor or len(z) > 64 or torch.is_grad_enabled():
            return layer(z)
        out = buffer[: len(z)]
        out.copy_(layer(z))
        return out

    assert Manifold(f).decode(Z).shape == (3, 3)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.width = net(), 3

    def forward(self, z):
        return F.dropout(self.net(z), training=self.training)[:, : self.width]


def test_a_decoder_that_changes_after_its_first_use_is_refused():
    decoder = Dropping().eval()
    M = Manifold(decoder)
    before = M.metric(Z)
    decoder.train()
    with pytest.raises(DecoderError, match="deterministic"):
        M.metric(Z)
    decoder.eval()
    assert torch.equal(M.metric(Z), before)
    decoder.width = 2
    with pytest.raises(DecoderError, match=r"shape \(3,\) at every call"):
        M.decode(Z)


def test_single_precision_behind_points_in_double_is_carried():
    single, double = net(torch.float32, out=200), net(out=200)
    M = Manifold(lambda z: single(z.float()).double())
    close(M.metric(Z), Manifold(double).metric(Z), 1e-5)
    result = M.geodesic(Z[:1], Z[1:2])
    truth = Manifold(double).geodesic(Z[:1], Z[1:2], rtol=1e-8).length
    assert bool(result.converged)
    assert bool((result.length - truth).abs() <= result.error)
    sharp = M.geodesic(Z[:1], Z[1:2], rtol=1e-9, throw=False)
    assert sharp.status.tolist() == [solvers.Status.PRECISION]
    assert bool((sharp.length - truth).abs() <= sharp.error)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 2, 0], [2, 2]])
@pytest.mark.parametrize(
    "f",
    [
        lambda z: beside(z, z[:, :1].log()),
        lambda z: beside(z, (z[:, :1] - 0.1).sqrt()),
        lambda z: td.Normal(z, z[:, :1].expand_as(z)),
        lambda z: td.Poisson(beside(z[:, :1], z[:, 1:].exp())),
        lambda z: td.Independent(td.Gamma(z[:, :1], z[:, 1:].exp()), 1),
    ],
    ids=["log", "sqrt", "normal", "poisson", "gamma"],
)
def test_statuses_do_not_depend_on_the_order_of_the_pairs(f, order):
    starts = torch.tensor([[1.0, 0.0], [1.5, 0.4], [-1.0, 0.0]], dtype=F64)[order]
    status = (
        Manifold(f)
        .geodesic(starts, torch.tensor([2.0, 1.0], dtype=F64), rtol=1e-3, throw=False)
        .status
    )
    assert [bool(s) for s in status] == [i == 2 for i in order]


def test_autocast_changes_nothing():
    M, x = Manifold(net(torch.float32)), Z.float()
    calls = {
        "metric": lambda M: M.metric(x),
        "decode": lambda M: M.decode(x),
        "distance": lambda M: M.distance(x, x + 0.5, rtol=1e-3),
        "exp": lambda M: M.exp(x, x / 4),
        "christoffel": lambda M: M.christoffel(x),
        "extrinsic_curvature": lambda M: M.extrinsic_curvature(x),
    }
    for name, call in calls.items():
        plain = call(M)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(call(M), plain), name
            assert torch.equal(call(Manifold(net(torch.float32))), plain), name
            assert torch.is_autocast_enabled("cpu")
            assert torch.equal(differential.jacobian(net(torch.float32), x), M.jacobian(x))


# Functions of the user beside the decoder.


@torch.no_grad()
def frozen(x):
    return 1 + x**2


BAD_METRICS = {
    "coupled": (lambda x: (1 + x.var(0, unbiased=False)).expand_as(x), "row alone"),
    "ordered": (lambda x: 1 + x.cumsum(0) ** 2, "row alone"),
    "random": (lambda x: 1 + torch.rand(len(x), x.shape[1], dtype=x.dtype), "deterministic"),
    "no_grad": (frozen, "no_grad"),
    "detached": (lambda x: (1 + x.detach() ** 2) * x[:, :1].cosh(), "detach"),
    "numbers": (lambda x: torch.tensor((1 + x.detach() ** 2).tolist(), dtype=x.dtype), "tolist"),
    "reversed": (lambda x: 1 + Twice.apply(x) ** 2, "Twice"),
    "negative": (lambda x: -1 - x**2, "positive"),
    "indefinite": (lambda x: torch.tensor([1.0, 1.0, -9.0], dtype=x.dtype).diag(), "positive"),
}
NO_FEATURES = {
    "no_grad": (torch.no_grad()(lambda x: x**3), "no_grad"),
    "detached": (lambda x: x * x.detach(), "detach"),
    "coupled": (lambda x: x - x.mean(0), "row alone"),
    "random": (lambda x: x * torch.rand(1, dtype=x.dtype), "deterministic"),
    "reversed": (lambda x: Reversal.apply(x) + x, "Reversal"),
}


@pytest.mark.parametrize("name", BAD_METRICS)
def test_ambient_functions_that_are_no_metrics_are_refused(name):
    f, message = BAD_METRICS[name]
    with pytest.raises(AmbientError, match=message):
        Manifold(net(), ambient=f).christoffel(Z)


@pytest.mark.parametrize("make", [ambient.FeatureMap, ambient.ClassifierFisher])
@pytest.mark.parametrize("name", NO_FEATURES)
def test_feature_maps_that_are_no_maps_are_refused(name, make):
    f, message = NO_FEATURES[name]
    with pytest.raises(AmbientError, match=message):
        Manifold(net(), ambient=make(f)).metric(Z)


def affine_invariant(x, u, v):
    x = torch.linalg.inv(x.view(-1, 3, 3))
    return torch.einsum("kij,kjl,klm,kmi->k", x, u.view(-1, 3, 3), x, v.view(-1, 3, 3))


def affine_operator(x, v):
    x = torch.linalg.inv(x.view(-1, 3, 3))
    return (x @ v.view(-1, 3, 3) @ x).mT.flatten(1)


@pytest.mark.parametrize(
    "form", [{"inner": affine_invariant}, {"operator": affine_operator}], ids=["inner", "operator"]
)
def test_a_metric_needs_to_be_positive_along_the_decoded_manifold_alone(form):
    # Positive on symmetric matrices: exp(diag(a, b, c)) pulls it back to the Euclidean metric.
    M = Manifold(lambda z: z.exp().diag_embed().flatten(1), ambient=ambient.Custom(**form))
    turned = torch.linalg.qr(torch.arange(9.0).view(3, 3).double().cos())[0]
    N = Manifold(
        lambda z: (turned * z.exp()[:, None] @ turned.T).flatten(1), ambient=ambient.Custom(**form)
    )
    for seed in range(12):
        z = torch.randn(2, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
        for manifold in (M, N):
            fresh = Manifold(manifold.decoder, ambient=manifold.ambient)
            close(fresh.metric(z), torch.eye(3, dtype=F64).expand(2, 3, 3), 1e-6)


def test_negative_lengths_are_no_lengths():
    M = Manifold(lambda z: z, ambient=lambda x: x[:, :1].expand_as(x))
    inside, outside = torch.tensor([[1.0, 0.0]], dtype=F64), torch.tensor([[-1.0, 0.0]], dtype=F64)
    assert torch.equal(M.metric(inside)[0], torch.eye(2, dtype=F64))
    assert bool(M.norm(outside, inside).isnan().all())
    for call in (M.metric, M.volume_density, M.eigenvalues):
        with pytest.raises(SingularMetricError, match="negative"):
            call(outside)
    assert M.geodesic(inside, outside, throw=False).status.item() != 0


def spd(z):
    return torch.eye(2).to(z).expand(len(z), 2, 2)


BAD_TENSORS = {
    "asymmetric": (
        lambda z: spd(z) + z[:, 0, None, None] * torch.ones(2, 2).to(z).triu(1),
        "symmetric",
    ),
    "negative": (lambda z: -spd(z) * z[:, :1, None].cosh(), "positive"),
    "indefinite": (lambda z: spd(z) - 3 * torch.ones(2, 2).to(z), "positive"),
    "coupled": (lambda z: spd(z) * (1 + z.square().mean()), "row alone"),
    "random": (lambda z: spd(z) * (1 + torch.rand(len(z), 1, 1, dtype=z.dtype)), "deterministic"),
    "no_grad": (torch.no_grad()(lambda z: spd(z) * (1 + z[:, :1, None] ** 2)), "no_grad"),
    "detached": (lambda z: spd(z) * (1 + z.detach()[:, :1, None] ** 2), "detach"),
    "numpy": (
        lambda z: spd(z) * torch.from_numpy(1 + z.detach().numpy()[:, :1, None] ** 2),
        "numpy",
    ),
    "reversed": (lambda z: spd(z) * (1 + Twice.apply(z)[:, :1, None] ** 2), "Twice"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_functions_that_are_no_metric_tensors_are_refused(name):
    f, message = BAD_TENSORS[name]
    z, v = Z, Z.flip(-1)
    calls = (
        lambda S: solvers.geodesic(S, z, v),
        lambda S: solvers.exp(S, z, v),
        lambda S: solvers.length(S, torch.stack([z, v], 1)),
        lambda S: S.metric(z),
    )
    for call in calls:
        with pytest.raises(MetricError, match=message):
            call(solvers.MetricSpace(f))


def test_a_metric_tensor_is_looked_at_once():
    calls = []

    def g(z):
        calls.append(len(z))
        return spd(z) / z[:, 1:, None] ** 2

    S = solvers.MetricSpace(g)
    S.metric(Z.abs() + 1)
    first_use = len(calls)
    S.metric(Z.abs() + 1)
    assert len(calls) == first_use + 1
    assert solvers.MetricSpace(g) == S


HEADS = {
    "normal": lambda z: td.Normal(z[:, 1:], 1 + z[:, :1]),
    "beta": lambda z: td.Beta(1 + z[:, :1], z[:, 1:].exp()),
    "laplace beside poisson": lambda z: (td.Laplace(z, 1 + z[:, :1]), td.Poisson(z.exp())),
    "bernoulli": lambda z: td.Bernoulli(probs=(1 + z[:, :1]) / 4),
    "multivariate normal": lambda z: td.MultivariateNormal(z, scale_tril=(1 + z).diag_embed()),
    "exponential": lambda z: td.Independent(td.Exponential(1 + z), 1),
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_outside_of_their_family_are_no_numbers(name):
    M = Manifold(HEADS[name])
    inside, outside = torch.tensor([[0.1, 0.2]], dtype=F64), torch.tensor([[-5.0, 0.0]], dtype=F64)
    assert bool(M.metric(inside).isfinite().all())
    with pytest.raises(NonFiniteError):
        M.metric(outside)
    status = M.geodesic(torch.cat([inside, outside, inside]), outside + 0.5, throw=False).status
    assert bool((status != 0).all())


# Maps that torch.func does not take, and plain autograd does.


class OldCube(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: (ctx.save_for_backward(x), x + x**3 / 3)[1])
    backward = staticmethod(lambda ctx, g: g * (1 + ctx.saved_tensors[0] ** 2))


def score(z):
    with torch.enable_grad():
        y = z if z.requires_grad else z.detach().requires_grad_()
        return torch.autograd.grad((y @ W).sin().sum() + y.square().sum(), y, create_graph=True)[0]


def hooked():
    layer = net()
    layer[1].register_full_backward_hook(lambda module, inputs, outputs: None)
    return layer


PLAIN = {
    "old function": lambda z: OldCube.apply(z @ W),
    "old function inside": lambda z: (OldCube.apply(z @ W) @ W.T).sin(),
    "a layer in between": lambda z: net(out=4)(OldCube.apply(z)),
    "gradient of an energy": score,
    "hook": hooked(),
}


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", PLAIN)
def test_what_plain_autograd_differentiates_twice_is_differentiated(name, grad):
    f, d = PLAIN[name], Differential(PLAIN[name])
    j, h = first(f, Z), second(f, Z)
    a = torch.linspace(-1, 2, 3 * j.shape[1], dtype=F64).view(3, -1)
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        close(d.jacobian(Z), j)
        close(d.vjp(Z, a)[1], torch.einsum("kdi,kd->ki", j, a))
        close(d.gram_product(Z, Z)[2], torch.einsum("kdi,kdj,kj->ki", j, j, Z))
        close(d.hessian(Z), h)
        close(d.contraction(Z, a), torch.einsum("kdij,kd->kij", h, a))
        close(
            d.second_derivative(Z, Z, Z.flip(-1)), torch.einsum("kdij,ki,kj->kd", h, Z, Z.flip(-1))
        )


def points(n):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(5), dtype=F64)


class TestNothingIsTrustedBecauseItWasRefusedOnce:
    """The second call after a refusal: what was found wrong stays wrong."""

    @staticmethod
    def refused(call, error, times=3):
        for _ in range(times):
            with pytest.raises(error):
                call()

    @pytest.mark.parametrize(
        "f",
        [
            lambda z: beside(z, z.detach().square()),
            lambda z: beside(z, z + (z.round() - z).detach()),
            lambda z: beside(z, torch.tensor(z.tolist(), dtype=z.dtype).square()),
            torch.no_grad()(lambda z: beside(z, z.square())),
            lambda z: beside(z, z.detach().clone().requires_grad_().square()),
        ],
        ids=["detach", "straight-through", "tolist", "no_grad", "leaf"],
    )
    @pytest.mark.parametrize("call", ["metric", "christoffel", "curvature_form"])
    def test_derivatives(self, f, call):
        M, z = Manifold(f), points(4)
        self.refused(lambda: getattr(M, call)(z), DifferentiationError)

    @pytest.mark.parametrize("n", [4, 400])
    def test_rows(self, n):
        smooth = net()
        M = Manifold(lambda z: smooth(z) + 0.1 * len(z))
        self.refused(lambda: M.metric(points(n)), DecoderError)

    def test_rows_that_only_a_large_batch_shows(self):
        smooth = net()
        M = Manifold(
            lambda z: smooth(z) + torch.where(z.abs().amax(-1, keepdim=True) > 20, z.mean(), 0)
        )
        M.metric(points(4))
        self.refused(lambda: M.metric(30 * points(400)), DecoderError)

    def test_an_ambient_metric(self):
        M = Manifold(net(), ambient=lambda x: 1 + x.detach().square())
        self.refused(lambda: M.metric(points(4)), AmbientError)

    def test_a_metric_space(self):
        space = solvers.MetricSpace(lambda z: torch.diag_embed(1 + z.detach().square()))
        self.refused(lambda: solvers.geodesic(space, points(2), points(2) + 1), MetricError)


def test_no_points_are_never_looked_at_again():
    """However many calls there were: the standing check has no points to draw from."""
    M = Manifold(lambda z: torch.cat([z.sin(), z.square()], -1))
    M.metric(torch.ones(2, 2, dtype=torch.float64))
    for _ in range(70):
        assert M.metric(torch.ones(0, 2, dtype=torch.float64)).shape == (0, 2, 2)


@pytest.mark.parametrize(("dtype", "far"), [(torch.float64, 1e6), (torch.float64, 1e8)])
@pytest.mark.parametrize("f", [lambda z: z + 0.45 * (2 * z).sin(), lambda z: z + (3 * z).cos()])
def test_a_map_that_swings_is_not_refused_far_from_the_origin(f, dtype, far):
    """Differences over a step that is long there see the slope without its swings."""
    z = far * torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    M = Manifold(f)
    z = z.to(dtype)
    M.metric(z[:4])
    slope = torch.func.vmap(torch.func.jacrev(lambda p: f(p)))(z)
    torch.testing.assert_close(M.metric(z), slope.mT @ slope)


@pytest.mark.parametrize("far", [1.0, 1e6])
def test_a_detached_swing_is_refused_there_too(far):
    z = far * torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(DifferentiationError, match="detach"):
        Manifold(lambda z: 0.1 * z + far * (z / far).detach().exp()).metric(z)
