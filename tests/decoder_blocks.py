"""Writing in place, and small architectures, of which random decoders are made."""

import math

import torch
from decoder_functions import PLACES
from decoder_operations import functions, positive, weighted
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Writing into tensors of one's own.


def own(name, *args, **kwargs):
    def f(y):
        y = y * 1.0
        getattr(y, name)(*args, **kwargs)
        return y

    return f


PLAIN = "sin_ tanh_ exp_ neg_ abs_ relu_ sigmoid_ square_ erf_ atan_ sinh_ expm1_ cos_ reciprocal_"
functions("in place", **{name: own(name) for name in PLAIN.split()})
functions(
    "in place",
    add=own("add_", 0.3),
    mul=own("mul_", 1.5),
    clamp=own("clamp_", -0.6, 0.9),
    zero=lambda y: own_part(y, lambda part: part.zero_()),
    fill=lambda y: own_part(y, lambda part: part.fill_(0.3)),
    copy=lambda y: own_part(y, lambda part: part.copy_(y[:, :3].sin())),
    columns=lambda y: own_part(y, lambda part: part.mul_(2).sin_()),
    add_itself=lambda y: (y * 1.0).add_(y.sin(), alpha=0.5),
    sub=lambda y: (y * 1.0).sub_(y.square() / 3),
    addcmul=lambda y: (y * 1.0).addcmul_(y.sin(), y.cos(), value=0.4),
    lerp=lambda y: (y * 1.0).lerp_(y.sin(), 0.4),
    masked=lambda y: (y * 1.0).masked_fill_(y > 0.5, 0.5),
    index_add=lambda y: (y * 1.0).index_add_(1, PLACES, y[:, :6].sin()),
    scatter=lambda y: (y * 1.0).scatter_(1, PLACES[3:].expand(len(y), -1), y[:, :3].sin()),
    item=lambda y: assigned(y, (slice(None), 2), lambda y: y[:, 0] * y[:, 1]),
    items=lambda y: assigned(y, (slice(None), slice(0, 4)), lambda y: y[:, 4:8].sin()),
    mask_item=lambda y: assigned(y, y > 0.4, lambda y: 0.4),
    buffer=lambda y: buffered(y),
    power=lambda y: positive(y).pow_(1.5),
    div=lambda y: (y * 1.0).div_(positive(y)),
    log=lambda y: positive(y).log_(),
    sqrt=lambda y: positive(y).sqrt_(),
    functional=lambda y: F.elu(y * 1.0, inplace=True),
    hardtanh=lambda y: F.hardtanh(y * 1.0, inplace=True),
    dropout=lambda y: F.dropout(y * 1.0, 0.5, training=False, inplace=True),
    transpose=lambda y: (y * 1.0).view(-1, 3, 4).transpose_(1, 2).sin(),
    iadd=lambda y: augmented(y),
)


def own_part(y, write):
    out = y * 1.0
    write(out[:, 1:4])
    return out


def assigned(y, place, value):
    out = y.clone()
    out[place] = value(y)
    return out


def buffered(y):
    out = torch.zeros(len(y), 12, dtype=y.dtype)
    out[:, ::2] = y[:, :6]
    out[:, 1::2] += y[:, 6:].sin()
    return out


def augmented(y):
    y = y.clone()
    y += 0.2
    y *= y.detach().new_tensor(1.5)
    y -= 0.1
    y /= 1.1
    return y


# Small architectures.

weighted(
    "block",
    fourier=(lambda y, w: torch.cat([(y @ w).sin(), (y @ w).cos()], -1), (12, 5)),
    hyper=(lambda y, w: torch.einsum("bij,bj->bi", (y @ w).view(-1, 4, 3), y[:, :3]), (12, 12)),
    film=(lambda y, w: (1 + (y @ w).tanh()) * y + (y @ w.T).sin(), (12, 12)),
    fixed_point=(lambda y, w: iterated(lambda x: torch.tanh(x @ w * 0.3 + y), y, 5), (12, 12)),
    ode=(lambda y, w: iterated(lambda x: x + 0.2 * torch.tanh(x @ w), y, 4), (12, 12)),
    checkpointed=(
        lambda y, w: checkpoint(lambda y: (y @ w).sin(), y, use_reentrant=False),
        (12, 6),
    ),
    coordinates=(lambda y, w: at_coordinates(y, w), (6, 14)),
    low_rank=(lambda y, u, v: y + (y @ u).relu() @ v, (12, 2), (2, 12)),
    coupling=(lambda y, w: coupled(y, w), (6, 12)),
    mixture=(lambda y, w: mixture(y, w), (3, 12, 4)),
    score=(lambda y, w: slope_of_energy(y, w), (12, 4)),
    rbf=(lambda y, w: torch.exp(-(y[:, None] - w).square().sum(-1) / 8), (5, 12)),
    quantised=(lambda y, w: y + w[(y @ w.T).argmax(-1)], (4, 12)),
    hypernetwork_conv=(lambda y, w: grouped_weights(y, w), (12, 6)),
    graph=(lambda y, w: message_passed(y, w), (3, 3)),
    highway=(lambda y, w: torch.lerp(y, (y @ w).tanh(), (y @ w.T).sigmoid()), (12, 12)),
    modulated=(lambda y, w: modulated(y, w), (12, 4, 3)),
    time_embedding=(lambda y, w: (y + embedded(torch.arange(3.0)).flatten()) @ w, (12, 12)),
    conditioned=(lambda y, w: embedded(y[:, 0]) * (y @ w), (12, 4)),
)


def iterated(step, x, times):
    for _ in range(times):
        x = step(x)
    return x


def embedded(t):  # (k,) -> (k, 4)
    rates = torch.exp(-math.log(100) * torch.arange(2).to(t) / 2)
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def at_coordinates(y, w):
    """A coordinate network: the code beside each of four coordinates."""
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 2)] * 2).to(y)
    codes = y[:, None].expand(-1, len(grid), -1)
    return torch.sin(torch.cat([codes, grid.expand(len(y), -1, -1)], -1) @ w.T)


def coupled(y, w):
    kept, moved = y.chunk(2, -1)
    scale, shift = (kept @ w).chunk(2, -1)
    return torch.cat([kept, moved * scale.tanh().exp() + shift], -1)


def mixture(y, w):
    shares = y[:, :3].softmax(-1)
    return torch.einsum("be,eij,bi->bj", shares, w, y)


def slope_of_energy(y, w):
    """The gradient of an energy, by ``torch.func``."""
    return torch.vmap(torch.func.grad(lambda row: torch.logsumexp(row @ w, 0)))(y)


def grouped_weights(y, w):
    """A convolution whose weights depend on the point, by groups."""
    k = len(y)
    kernels = (y @ w).reshape(2 * k, 1, 3)
    signal = y[:, :8].reshape(1, 2 * k, 4)
    return F.conv1d(signal, kernels, groups=2 * k, padding=1).reshape(k, -1)


def message_passed(y, w):
    neighbours = torch.tensor([[1, 2], [0, 3], [3, 0], [2, 1]])
    nodes = y.view(-1, 4, 3)
    return (nodes + F.silu(nodes[:, neighbours] @ w).mean(2)) @ w


def modulated(y, w):
    weights = w * (1 + y[:, :, None, None])
    weights = weights * torch.rsqrt(weights.square().sum((1, 3), keepdim=True) + 1e-6)
    return torch.einsum("biop,bi->bop", weights, y)
