"""Taylor mode operation by operation, against torch.autograd.functional."""

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae.differential.jets import Jet
from riemae.differential.modes import MODES, Nested, Taylor, basis
from riemae.differential.tape import Pairs, Tape

K, M = 3, 4
C = torch.linspace(0.3, 1.1, 12, dtype=torch.float64).view(3, 4)
IMAGE = torch.linspace(-1, 1, 18, dtype=torch.float64).view(2, 1, 3, 3)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_place(z):
    y = z * 2
    y += 1
    y.mul_(z).sin_()
    return y


def broadcast(z):
    a, b = torch.broadcast_tensors(z.sin(), C[0])
    return a.mul(b).add_(z).square_()


def halves(z):
    a, b = z.chunk(2, -1)
    return torch.cat([a * b, a / (2 + b.cos()), 1 / (3 + a), 2 - b], -1)


def attention(z):
    t = z.unflatten(1, (2, 2))
    return ((t @ t.mT / 2).softmax(-1) @ t).flatten(1)


def seeded(make):
    """A layer in evaluation mode, float64, whose weights come from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return make().double().eval().requires_grad_(False)


def time_first(layer):
    """A recurrent layer over three steps, the points on the second axis."""

    def f(z):
        steps = torch.stack([z.sin(), z.square(), z.cos()])
        return layer(steps)[0].square().permute(1, 2, 0).flatten(1)

    return f


def time_second(layer):
    return lambda z: layer(z.unflatten(1, (2, 2)))[0].sin().flatten(1)


RNN, GRU, LSTM = torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM
MHA = torch.nn.MultiheadAttention
ENCODER = torch.nn.TransformerEncoderLayer
RECURRENT = {
    "GRU": time_first(seeded(lambda: GRU(4, 3))),
    "GRU, batch first": time_second(seeded(lambda: GRU(2, 3, batch_first=True))),
    "GRU, two layers, both directions": time_first(
        seeded(lambda: GRU(4, 3, num_layers=2, bidirectional=True))
    ),
    "LSTM": time_first(seeded(lambda: LSTM(4, 3))),
    "LSTM, without biases": time_second(seeded(lambda: LSTM(2, 3, bias=False, batch_first=True))),
    "LSTM, projected": time_first(seeded(lambda: LSTM(4, 3, num_layers=2, proj_size=2))),
    "RNN": time_first(seeded(lambda: RNN(4, 3, bidirectional=True))),
    "RNN, ReLU": time_first(seeded(lambda: RNN(4, 3, nonlinearity="relu"))),
    "the same input at every step": lambda z,
    layer=seeded(  # noqa: B008 (made once)
        lambda: GRU(4, 3, batch_first=True)
    ): layer(z[:, None].repeat(1, 3, 1))[0].flatten(1),
    "GRU cell": lambda z, cell=seeded(lambda: torch.nn.GRUCell(4, 3)): cell(z.sin(), z[:, :3]),  # noqa: B008 (made once)
    "LSTM cell": lambda z, cell=seeded(lambda: torch.nn.LSTMCell(4, 3)): torch.cat(  # noqa: B008 (made once)
        cell(z.sin(), (z[:, :3], z[:, 1:])), -1
    ),
    "RNN cell": lambda z, cell=seeded(lambda: torch.nn.RNNCell(4, 3)): cell(z.sin(), z[:, :3]),  # noqa: B008 (made once)
}


def tokens(z):
    return torch.stack([z, z.sin(), z.square() / 2], 1)  # (k, 3, 4)


def encoder(**options):
    layer = seeded(lambda: ENCODER(4, 2, 8, activation="gelu", **options))
    if options.get("batch_first"):
        return lambda z: layer(tokens(z)).flatten(1)
    return lambda z: layer(tokens(z).transpose(0, 1)).sin().transpose(0, 1).flatten(1)


def heads(mask=None, padding=None, **options):
    layer = seeded(lambda: MHA(4, 2, batch_first=True, **options))

    def f(z):
        x = tokens(z)
        hidden = None if padding is None else padding.expand(len(z), -1)
        out, shares = layer(x, x, x, attn_mask=mask, key_padding_mask=hidden)
        return torch.cat([out.flatten(1), shares.flatten(1)], 1)

    return f


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)


def fused(**options):
    def f(z):
        x = tokens(z).unflatten(-1, (2, 2)).transpose(1, 2)  # (k, heads, tokens, 2)
        return F.scaled_dot_product_attention(x, x.sin(), x.cos(), **options).flatten(1)

    return f


ATTENTION = {
    "encoder layer": encoder(batch_first=True),
    "encoder layer, norm first": encoder(batch_first=True, norm_first=True),
    "encoder layer, sequence first": encoder(),
    "heads": heads(),
    "heads, causal": heads(mask=CAUSAL),
    "heads, added mask": heads(mask=C[:, :3]),
    "heads, padding": heads(padding=torch.tensor([[False, False, True]])),
    "heads, both masks": heads(mask=CAUSAL, padding=torch.tensor([[False, True, False]])),
    "heads, keys of other sizes": lambda z,
    layer=seeded(  # noqa: B008 (made once)
        lambda: MHA(4, 2, kdim=2, vdim=3, batch_first=True, bias=False)
    ): layer(tokens(z), tokens(z)[..., :2], tokens(z)[..., 1:], need_weights=False)[0].flatten(1),
    "heads, with a bias for keys": heads(add_bias_kv=True, mask=CAUSAL),
    "heads, one more key of zeros": heads(add_zero_attn=True, add_bias_kv=True),
    "fused attention": fused(),
    "fused attention, causal": fused(is_causal=True),
    "fused attention, scaled and masked": fused(scale=0.3, attn_mask=~CAUSAL),
    "fused attention, added mask": fused(attn_mask=C[:, :3]),
    "fused attention, shared keys": lambda z: F.scaled_dot_product_attention(
        tokens(z).unflatten(-1, (2, 2)).transpose(1, 2),
        tokens(z)[:, None, :, :2],
        tokens(z)[:, None, :, 2:],
        enable_gqa=True,
    ).flatten(1),
}


def image(z):
    return torch.stack([z.unflatten(1, (2, 2)), z.sin().unflatten(1, (2, 2))], 1)  # (k, 2, 2, 2)


NORMALISED = {
    "layer norm, two axes": lambda z: F.layer_norm(
        image(z), (2, 2), C[:2, :2].contiguous(), C[1:, 2:].contiguous()
    ).flatten(1),
    "layer norm, points second": lambda z: (
        F.layer_norm(tokens(z).transpose(0, 1), (4,), C[0], C[1])
        .square()
        .transpose(0, 1)
        .flatten(1)
    ),
    "RMS norm": lambda z: F.rms_norm(tokens(z), (4,), C[0]).flatten(1),
    "RMS norm, eps": lambda z: F.rms_norm(z, (4,), eps=0.1),
    "group norm, images": lambda z: F.group_norm(
        torch.cat([image(z), image(z.cos())], 1), 2, C[0], C[1]
    ).flatten(1),
    "group norm, channels last": lambda z: F.group_norm(
        image(z).to(torch.float64).contiguous(memory_format=torch.channels_last),
        1,
        C[0, :2],
        C[1, :2],
    ).flatten(1),
    "batch norm, images": lambda z: (
        F.batch_norm(image(z), C[0, :2], C[1, :2], C[2, :2], C[2, 2:]).square().flatten(1)
    ),
    "batch norm by torch": lambda z: (
        torch.batch_norm(image(z), C[0, :2], C[1, :2], C[2, :2], C[2, 2:], False, 0.1, 1e-5, False)
        .square()
        .flatten(1)
    ),
    "softmax, other axes": lambda z: (
        tokens(z).softmax(1) + F.softmin(tokens(z), -1) * tokens(z).log_softmax(-2)
    ).flatten(1),
    "softmax, points second": lambda z: (
        (z.sin().T.softmax(0) * z.T.log_softmax(0)).T + z.T.logsumexp(0)[:, None]
    ),
    "log-sum-exp": lambda z: torch.cat(
        [tokens(z).logsumexp((1, 2), keepdim=True)[:, 0], tokens(z).logsumexp(1)], -1
    ),
    "normalised": lambda z: F.normalize(z.sin()) + F.normalize(z, p=3.0, dim=-1),
    "lengths": lambda z: torch.stack(
        [z.norm(dim=-1), torch.linalg.vector_norm(z.sin(), dim=1), torch.norm(z, 3, -1)], -1
    ),
    "lengths of other kinds": lambda z: (
        torch.stack(
            [z.sin().norm(1, -1), torch.linalg.vector_norm(z, torch.inf, -1), z.var(-1), z.std(1)],
            -1,
        )
        + z.var(1, unbiased=False, keepdim=True)
        + z.sin().var(dim=-1, correction=0.5, keepdim=True)
    ),
    "cosine similarity": lambda z: F.cosine_similarity(tokens(z), C, dim=-1),
    "gates": lambda z: F.glu(z) + F.glu(tokens(z), 2).flatten(1)[:, :2],
}
PICKED = {
    "maxima": lambda z: torch.stack(
        [z.sin().max(-1).values, z.amax(1), z.cos().amin(-1), z.min(dim=1)[0].square()], -1
    ),
    "the larger of a point and a constant": lambda z: (
        torch.max(z, C[0] - 0.5).square() + z.min(other=C[1]) * z
    ),
    "maxima of two": lambda z: torch.maximum(z, z.sin() * 2) * torch.fmin(z, z.square()),
    "order": lambda z: z.sin().sort(-1).values * z.topk(4, dim=1).values + z.sin().cummax(1)[0],
    "ranks": lambda z: torch.stack([z.kthvalue(2).values, z.square().median(-1).values], -1),
    "max pooling": lambda z: F.max_pool2d(image(z).repeat(1, 1, 2, 2), 2, 1).square().flatten(1),
    "adaptive pooling": lambda z: F.adaptive_max_pool1d(tokens(z), 2).sin().flatten(1),
    "masks": lambda z: z.sin().masked_fill(C[0] > 0.5, 2.0) * F.pad(z, (1, -1), value=3.0),
    "reflected": lambda z: F.pad(tokens(z), (1, 1), mode="reflect").sin().flatten(1),
    "dropout that is off": lambda z: F.dropout(z.sin(), 0.5, training=False) * z,
}
SUMS_OF_PRODUCTS = {
    "einsum of one": lambda z: torch.einsum("bi,ji->bj", z.sin(), C).square(),
    "einsum, implicit": lambda z: torch.einsum("bi,ji", z.sin(), C).square(),
    "einsum, ellipsis": lambda z: torch.einsum("...i,ji->...j", tokens(z), C).sin().flatten(1),
    "einsum of three": lambda z: torch.einsum(
        "bti,bsi,sj->btj", tokens(z), tokens(z.sin()), C
    ).flatten(1),
    "einsum, sums of one alone": lambda z: torch.einsum("bti,bsj->bt", tokens(z), tokens(z.sin())),
    "einsum, points elsewhere": lambda z: (
        torch.einsum("ib,bti->tb", z.T.sin(), tokens(z)).square().T
    ),
    "bilinear": lambda z: F.bilinear(z[:, 1:], z.sin(), C.repeat(2, 1, 1), C[0, :2]),
    "sums and products": lambda z: (
        torch.addmm(C[0], z, C.T @ C, beta=0.5, alpha=2.0)
        + torch.addcmul(z, z.sin(), z, value=0.5)
        + torch.addcdiv(z, z.sin(), 2 + z.cos())
        + torch.lerp(z, z.sin(), z.sigmoid())
    ),
    "products, points second": lambda z: (
        ((z.T.sin()[:, None] * z.T[None]).cos() @ torch.eye(len(z)).to(z)).flatten(0, 1).T
    ),
    "products that broadcast": lambda z: (
        (z[:, None, :] * z.sin()[:, :, None]) @ (z[:, :, None] * C[0])
    ).flatten(1),
}
PLACES = {
    "points last": lambda z: z.T.sin().mul(z.T).T,
    "points in the middle": lambda z: (
        torch.stack([z.sin(), z, z.cos()]).square().transpose(0, 1).flatten(1)
    ),
    "points merged with heads": lambda z: (
        tokens(z)
        .transpose(0, 1)
        .reshape(-1, 4)
        .sin()
        .square()
        .unflatten(0, (3, -1))
        .transpose(0, 1)
        .flatten(1)
    ),
    "steps taken one by one": lambda z: (
        torch.cat([x.square() for x in torch.stack([z, z.sin()])[:, :, :2].split(1)], 0)
        .transpose(0, 1)
        .flatten(1)
    ),
    "batch doubled": lambda z: sum(torch.cat([z.sin(), z], 0).square().chunk(2, 0)),
    "expanded in front": lambda z: (z.expand(2, -1, -1).sin() * z).square().sum(0),
    "a broadcast constant in front": lambda z: (C[:, None] * z.sin()).square().mean(0),
}

# Smooth maps (k, 4) -> (k, D), one for each kind of rule. Not among them: linalg.solve, whose own
# second derivative is wrong in torch 2.13; such a map is refused when it is first looked at.
SMOOTH = {
    **RECURRENT,
    **ATTENTION,
    **NORMALISED,
    **PICKED,
    **SUMS_OF_PRODUCTS,
    **PLACES,
    **{
        name: getattr(F, name)
        for name in "silu gelu elu softplus mish selu celu logsigmoid softsign tanhshrink".split()
    },
    **{
        name: getattr(torch, name)
        for name in ("tanh", "sigmoid", "sin", "cos", "exp", "square", "erf", "atan", "sinh")
    },
    "special functions of any number": lambda z: (
        torch.special.expit(z) + torch.special.i1(z) * torch.special.ndtr(z)
    ),
    "special functions of shares": lambda z: (
        torch.special.ndtri(z.sigmoid()) + torch.special.logit(z.sigmoid())
    ),
    "special functions of positive numbers": lambda z: (
        torch.special.entr(1 + z.square())
        + torch.special.gammaln(1 + z.square()) * torch.special.xlog1py(z.square(), 2.0)
    ),
    "gelu tanh": lambda z: F.gelu(z, approximate="tanh"),
    "softplus beta": lambda z: F.softplus(z, beta=2.0),
    "powers": lambda z: (
        z**3 + (z**2 + 1) ** 0.5 + 2**z + (z.square() + 1).rsqrt() + z.exp().reciprocal()
    ),
    "logarithms": lambda z: (
        (z.square() + 1).log() + z.square().log1p() + torch.expm1(z) - z.exp().sqrt()
    ),
    "sums": lambda z: 1 + z - (3 - z) + torch.add(z, z.sin(), alpha=2) - z.neg(),
    "broadcast sum": lambda z: (z[:, None] + C).flatten(1).sin(),
    "broadcast product": lambda z: (z.unsqueeze(1) * C * z.sin()[:, None]).flatten(1),
    "outer product": lambda z: (z[:, :, None] * z[:, None]).flatten(1),
    "matrix products": lambda z: (z @ C.T) @ C * z + F.linear(z.sin(), C, C[:, 0]) @ C,
    "constant times point": lambda z: (C @ z[..., None].sin())[..., 0],
    "batched product": lambda z: (z[:, :, None] @ z.cos()[:, None] @ z[:, :, None])[..., 0],
    "einsum": lambda z: torch.einsum("ki,kj,ij->kj", z, z.sin(), C.T @ C),
    "quotients": lambda z: z / 2 + z / (1 + z.square()) + 1 / (2 + z.cos()) + C[0] / (1 + z.exp()),
    "shapes": lambda z: (
        z.sin().view(-1, 2, 2).mT.permute(0, 2, 1).flatten(1).movedim(0, 1).T.reshape(len(z), 4)
    ),
    "pieces": halves,
    "stack": lambda z: torch.stack([z.sin(), z.square(), torch.ones_like(z)], 1).flatten(1),
    "axes": lambda z: torch.cat(
        [
            z.split(3, -1)[1].sin(),
            z.T.unbind()[0][:, None].square(),
            z.unflatten(1, (2, 2)).chunk(2, 1)[1][:, 0].exp(),
            z.narrow(1, 1, 2).cos() * z.select(1, -1)[:, None],
            z.unflatten(1, (2, 2)).square().sum(dim=1, keepdim=True)[:, 0, None, 1],
            z.flip(0, 1).flip(0).sin(),
        ],
        dim=1,
    ),
    "index": lambda z: z.sin()[:, [2, 0, 0]] * z[:, 1:4] + z[..., :1],
    "reductions": lambda z: torch.stack(
        [z.sin().sum(-1), z.square().mean(1), z.exp().sum(-1).sqrt(), z.logsumexp(-1)], -1
    ),
    "cumulative": lambda z: (
        z.sin().cumsum(-1) + z.roll(1, -1).square() + F.pad(z.exp().diff(dim=-1), (0, 1))
    ),
    "softmax": lambda z: z.softmax(-1) * z.log_softmax(-1),
    "attention": attention,
    "layer norm": lambda z: F.layer_norm(z, (4,), C[0], C[1]),
    "instance norm": lambda z: F.instance_norm(
        z.sin().unflatten(1, (2, 2)), weight=C[0, :2], bias=C[1, :2]
    ).flatten(1),
    "instance norm, known statistics": lambda z: F.instance_norm(
        z.sin().unflatten(1, (2, 2)), C[0, :2], C[1, :2], use_input_stats=False
    ).flatten(1),
    "group norm": lambda z: F.group_norm(z, 2),
    "batch norm": lambda z: F.batch_norm(z.sin(), C[0], C[1]).square(),
    "convolution": lambda z: (
        F.conv2d(z.view(-1, 1, 2, 2).sin(), IMAGE, C[0, :2], padding=1).flatten(1).square()
    ),
    # Style-based generators: each point has weights of its own, as a group of one image.
    "convolution with weights of the points": lambda z: (
        F.conv2d(
            z.sin().repeat(1, 4).view(1, -1, 4, 4),
            (z.exp()[:, :, None, None] * IMAGE[:1]).flatten(0, 1)[:, None],
            stride=(2, 1),
            padding=(1, 0),
            groups=len(z),
        )
        .view(len(z), -1)
        .square()
    ),
    "transposed with weights of the points": lambda z: F.conv_transpose2d(
        z.sin().view(1, -1, 2, 2),
        (z.exp()[:, :, None, None] * IMAGE[1:]).flatten(0, 1).unflatten(0, (-1, 4)),
        stride=2,
        padding=1,
        output_padding=1,
        groups=len(z),
    ).view(len(z), -1),
    "sequences with weights of the points": lambda z: (
        F.conv1d(
            C[:1].repeat(1, len(z)).view(1, len(z), 4).square(),
            z.sin().view(2 * len(z), 1, 2),
            z[:, :2].flatten().square(),
            dilation=2,
            groups=len(z),
        )
        .view(len(z), -1)
        .exp()
    ),
    "transposed sequences with weights of the points": lambda z: F.conv_transpose1d(
        z.sin().view(1, len(z), 4), z.cos().view(len(z), 2, 2), stride=2, groups=len(z)
    ).view(len(z), -1),
    "tensors by their names": lambda z: torch.cat(
        tensors=[
            F.linear(input=z, weight=C, bias=C[:, 0]).sin(),
            F.gelu(input=torch.mul(input=z, other=z.cos())),
            torch.sum(input=F.conv1d(z[:, None].exp(), weight=C[:1, None, :2]), dim=1),
            torch.matmul(z.sin(), other=C.mT),
        ],
        dim=-1,
    ),
    "local response norm": lambda z: F.local_response_norm(
        z.exp().view(-1, 4, 1), 3, alpha=0.5, k=0.7
    ).flatten(1),
    "transposed": lambda z: (
        F.conv_transpose1d(z[:, None].sin(), C[:1, None, :2], bias=C[0, :1]).flatten(1).square()
    ),
    "upsampling": lambda z: (
        F.interpolate(z.view(-1, 1, 2, 2).sin(), scale_factor=2, mode="bilinear").flatten(1).exp()
    ),
    "linear algebra": lambda z: torch.linalg.inv(
        torch.eye(4).to(z) * 5 + z[:, :, None] * z[:, None]
    ).flatten(1),
    "where": lambda z: torch.where(z > 0, z.sin(), z.square()),
    "where, broadcast": lambda z: (
        torch.where(C[0] > 0.5, z[:, :1].sin(), 2.0) + torch.where(z > 0, z[:, :1], z) * z
    ),
    "where, method": lambda z: z.sin().where(z > 0, z.square()),
    "where, constants": lambda z: (
        torch.where(z < 0, C[0], z * z) + torch.where(z < 0, z.exp(), 0.0)
    ),
    "broadcast together": lambda z: sum(torch.broadcast_tensors(z[:, :1].sin(), C[0], z.square())),
    "broadcast, written to": broadcast,
    "piecewise linear": lambda z: (
        F.relu(z.sin()) + z.square().clamp(max=1.0) + F.leaky_relu(z.cos(), inplace=True)
    ),
    "in place": in_place,
    "constants of its kind": lambda z: (
        z.sin() + z.new_ones(4) + torch.zeros_like(z) + len(z) + z.size(-1) + z.shape[0]
    ),
    "type": lambda z: z.to(torch.float64).double().sin().type_as(z),
}


def truth(f, z):
    """Value, J ``(k, D, m)`` and second derivatives ``(k, D, m, m)``, one point and one output at a
    time."""
    x = f(z)
    single = lambda p, d: f(p[None])[0, d]  # noqa: E731
    j = torch.stack([torch.autograd.functional.jacobian(lambda p: f(p[None])[0], p) for p in z])
    second = [
        torch.stack([hessian(lambda p, d=d: single(p, d), p) for d in range(x.shape[1])]) for p in z
    ]
    return x, j, torch.stack(second)


@cache
def known(name):
    f, z = SMOOTH[name], draw(K, M, seed=3)
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that torch differentiates twice
        return (f, z, *truth(f, z))


@pytest.fixture(params=SMOOTH)
def case(request):
    return known(request.param)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


MODE = MODES[0]


class TestRules:
    @pytest.mark.parametrize("create_graph", [False, True], ids=["no_grad", "grad"])
    def test_one_pass_gives_all_derivatives(self, case, create_graph):
        f, z, x, j, h = case
        pairs = Pairs.all(M)
        with MODE.active(True):
            value, first, second = MODE.forward(f, z, basis(z), pairs, create_graph)
        close(value, x)
        close(first.movedim(0, -1), j)
        close(pairs.full(second.movedim(0, -1)), h)

    def test_first_order_alone(self, case):
        f, z, x, j, _ = case
        with MODE.active(False):
            value, first = MODE.forward(f, z, basis(z), None, False)
        close(value, x)
        close(first.movedim(0, -1), j)

    def test_one_tangent_alone(self, case):
        f, z, x, j, _ = case
        u = draw(K, M, seed=4)
        with MODE.active(False):
            value, first = MODE.forward(f, z, u[None], None, False)
        close(value, x)
        close(first[0], (j @ u[..., None])[..., 0])

    @pytest.mark.parametrize(
        "pairs", [Pairs([0], [0]), Pairs([0], [1]), Pairs([1, 0], [1, 2])], ids=["uu", "uv", "two"]
    )
    def test_chosen_pairs_of_any_directions(self, case, pairs):
        f, z, _, _, h = case
        u = draw(3, K, M, seed=5)
        with MODE.active(True):
            second = MODE.forward(f, z, u, pairs, False)[2]
        close(
            second,
            torch.stack(
                [
                    torch.einsum("kdab,ka,kb->kd", h, u[i], u[j])
                    for i, j in zip(pairs.i, pairs.j, strict=True)
                ]
            ),
        )

    @pytest.mark.parametrize("create_graph", [False, True], ids=["no_grad", "grad"])
    def test_the_reverse_pass_gives_the_contraction(self, case, create_graph):
        f, z, x, j, h = case
        a = draw(2, *x.shape, seed=7)
        with MODE.active(True):
            value, first, forms = MODE.expansion(f, z, lambda x, j: a, create_graph)
        close(value, x)
        close(first.movedim(0, -1), j)
        close(forms, torch.einsum("kdij,skd->skij", h, a))

    @pytest.mark.parametrize("name", [*RECURRENT, *ATTENTION, *SUMS_OF_PRODUCTS, *PLACES])
    def test_a_point_alone_bends_as_among_others(self, name):
        f = SMOOTH[name]
        alone = draw(1, M, seed=3)
        many = torch.cat([draw(4, M, seed=4), alone])
        with MODE.active(True):
            forms = [
                MODE.expansion(f, z, lambda x, j: torch.ones_like(x)[None], False)[2]
                for z in (alone, many)
            ]
        close(forms[0][0, 0], forms[1][0, -1])

    def test_products_with_the_metric(self, case):
        f, z, x, j, _ = case
        v = draw(K, M, seed=8)
        with MODE.active(True):
            value, tangent, pulled = MODE.gram(f, z, v, lambda x, t: 2 * t, False)
        jv = torch.einsum("kdi,ki->kd", j, v)
        close(value, x)
        close(tangent, jv)
        close(pulled, 2 * torch.einsum("kdi,kd->ki", j, jv))

    def test_second_derivatives_are_differentiable(self, case):
        f, z, x, _, _ = case
        w = draw(*x.shape, seed=9)
        v = draw(1, K, M, seed=10)

        def second(z):
            with MODE.active(True):
                return (w * MODE.forward(f, z, v, Pairs([0], [0]), True)[2][0]).sum()

        point = z.clone().requires_grad_()
        total = second(point)
        slope = torch.autograd.grad(total, point)[0] if total.requires_grad else torch.zeros_like(z)
        e, step = draw(K, M, seed=11), 1e-5
        difference = (second(z + step * e) - second(z - step * e)) / (2 * step)
        assert abs(float((slope * e).sum() - difference)) <= 1e-6 * (1 + abs(float(difference)))


@pytest.mark.parametrize("name", ["maximum", "minimum", "fmax", "fmin"])
def test_extremes_of_two_treat_nan_as_torch_does(name):
    op = getattr(torch, name)
    a = torch.tensor([[torch.nan, 1.0, torch.nan, 2.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, torch.nan, torch.nan, 3.0]], dtype=torch.float64)
    x = op(Jet(a, torch.ones(1, 1, 4, dtype=torch.float64), None, Tape(False, 1)), b)
    torch.testing.assert_close(x.value, op(a, b), equal_nan=True)


class TestRefusals:
    MAPS = {
        "writing into a slice": lambda z: (y := z.clone(), y[:, 0].zero_(), y)[-1],
        "leaving the graph": lambda z: z.detach().sin(),
        "leaving torch": lambda z: torch.from_numpy(z.numpy()),
    }

    @pytest.mark.parametrize("name", MAPS)
    def test_says_so(self, name):
        z = draw(K, M)
        with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
            MODE.forward(self.MAPS[name], z, basis(z), None, False)

    def test_a_jet_has_no_storage_to_compute_on(self):
        z = draw(K, M)
        jet = Jet(z, basis(z), None, Tape(False, K))
        with (
            pytest.raises(NotImplementedError, match="Taylor"),
            torch._C.DisableTorchFunctionSubclass(),
        ):
            jet.sin()

    def test_a_jet_looks_like_its_value(self):
        z = draw(K, M)
        jet = Jet(z, basis(z), None, Tape(False, K))
        assert (jet.shape, jet.dtype, jet.device, jet.ndim, len(jet)) == (
            z.shape,
            z.dtype,
            z.device,
            2,
            K,
        )
        assert (jet.size(1), jet.numel(), jet.is_floating_point(), jet.argmax().item()) == (
            M,
            K * M,
            True,
            z.argmax(),
        )


class TestPairs:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_all_pairs_fill_a_symmetric_form(self, k):
        form = draw(k, k)
        form = form + form.T
        pairs = Pairs.all(k)
        assert len(pairs) == k * (k + 1) // 2
        close(pairs.full(form[pairs.i, pairs.j]), form)

    def test_runs_cover_the_pairs(self):
        pairs = Pairs([0, 0, 2, 2, 1], [1, 2, 0, 3, 4])
        covered = [(i, j) for i, js, _ in pairs.runs for j in range(js.start, js.stop)]
        assert covered == list(zip(pairs.i, pairs.j, strict=True))


def test_parts_in_another_precision():
    """Derivatives have the dtype of the points, whatever parts of the map compute in."""
    net = nn.Sequential(nn.Linear(M, 8), nn.Tanh(), nn.Linear(8, 5)).requires_grad_(False)

    def f(z):
        return (net(z).double().softmax(-1) * 3).log().to(z)

    z = draw(K, M, seed=4).float()
    wide = copy.deepcopy(net).double()
    x, j, h = truth(lambda z: (wide(z).softmax(-1) * 3).log(), z.double())
    a = draw(K, 5, seed=5).float()
    with MODE.active(True):
        value, first, second = MODE.forward(f, z, basis(z), Pairs.all(M), False)
        _, _, forms = MODE.expansion(f, z, lambda x, j: a[None], False)
    found = (value, first.movedim(0, -1), Pairs.all(M).full(second.movedim(0, -1)), forms[0])
    bent = torch.einsum("kdij,kd->kij", h, a.double())
    for ours, theirs in zip(found, (x, j, h, bent), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_taylor_mode_comes_first():
    assert isinstance(MODES[0], Taylor)
    assert all(isinstance(mode, Nested) for mode in MODES[2:])
