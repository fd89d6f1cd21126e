"""Operations of which random decoders are made: each a factory of modules ``(k, 12) -> (k, n)``.

Twelve numbers are three channels of four places, three channels of 2 × 2 pixels, or four tokens of
three numbers. Weights come from torch's seed.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

WIDTH = 12
OPERATIONS = {}


class Function(nn.Module):
    """A function of ``(k, 12)``, which may take parameters of its own."""

    def __init__(self, f, *parameters):
        super().__init__()
        self.f = f
        self.own = nn.ParameterList([nn.Parameter(x) for x in parameters])

    def forward(self, y):
        return self.f(y, *self.own)


class Shaped(nn.Module):
    """A function of ``(k, *shape)``; of several results, the first."""

    def __init__(self, shape, f):
        super().__init__()
        self.shape, self.f = shape, f

    def forward(self, y):
        out = self.f(y.reshape(-1, *self.shape))
        return out[0] if isinstance(out, tuple) else out


def functions(kind, **found):
    for name, f in found.items():
        OPERATIONS[f"{kind}: {name}"] = lambda f=f: Function(f)


def modules(kind, shape, **found):
    for name, make in found.items():
        OPERATIONS[f"{kind}: {name}"] = lambda make=make: Shaped(shape, make())


def shaped(kind, shape, **found):
    for name, f in found.items():
        OPERATIONS[f"{kind}: {name}"] = lambda f=f: Shaped(shape, f)


def weighted(kind, **found):
    """Functions with parameters: (function, shapes)."""
    for name, (f, *shapes) in found.items():

        def make(f=f, shapes=shapes):
            return Function(f, *(torch.randn(shape) / shape[-1] ** 0.5 for shape in shapes))

        OPERATIONS[f"{kind}: {name}"] = make


def unary(kind, names, owner, to=lambda y: y):
    for name in names.split():
        f = getattr(owner, name)
        OPERATIONS[f"{kind}: {name}"] = lambda f=f: Function(lambda y: f(to(y)))


def positive(y):
    return 0.5 + y.square()


def proportion(y):
    return 0.1 + 0.8 * torch.sigmoid(y)


# Layers.

modules(
    "linear",
    (12,),
    plain=lambda: nn.Linear(12, 7),
    unbiased=lambda: nn.Linear(12, 12, bias=False),
    tokens=lambda: nn.Sequential(nn.Unflatten(1, (4, 3)), nn.Linear(3, 5)),
    identity=lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.3), nn.AlphaDropout(0.2)),
    weight_norm=lambda: parametrizations.weight_norm(nn.Linear(12, 8)),
    spectral_norm=lambda: parametrizations.spectral_norm(nn.Linear(12, 8)),
    orthogonal=lambda: parametrizations.orthogonal(nn.Linear(12, 8)),
    symmetric=lambda: parametrized(nn.Linear(12, 12)),
    old_spectral_norm=lambda: nn.utils.spectral_norm(nn.Linear(12, 8)),
)
modules(
    "conv",
    (3, 4),
    one=lambda: nn.Conv1d(3, 4, 3, padding=1),
    dilated=lambda: nn.Conv1d(3, 4, 2, dilation=2),
    strided=lambda: nn.Conv1d(3, 5, 2, stride=2),
    depthwise=lambda: nn.Conv1d(3, 6, 3, padding=1, groups=3),
    same=lambda: nn.Conv1d(3, 4, 4, padding="same"),
    circular=lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"),
    reflect=lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="reflect"),
    transposed=lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1),
    transposed_grouped=lambda: nn.ConvTranspose1d(3, 6, 2, groups=3, dilation=2),
    weight_norm=lambda: parametrizations.weight_norm(nn.Conv1d(3, 4, 3)),
)
modules(
    "conv2d",
    (3, 2, 2),
    two=lambda: nn.Conv2d(3, 4, 2, padding=1),
    dilated=lambda: nn.Conv2d(3, 4, 2, padding=1, dilation=2, bias=False),
    depthwise=lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3),
    transposed=lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1),
    transposed_grouped=lambda: nn.ConvTranspose2d(3, 3, 2, stride=2, groups=3),
    replicate=lambda: nn.Conv2d(3, 2, 3, padding=1, padding_mode="replicate"),
    three=lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2, padding=1)),
    separable=lambda: nn.Sequential(nn.Conv2d(3, 3, 2, groups=3), nn.Conv2d(3, 6, 1)),
)


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).mT


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


# Functions of single numbers.

SMOOTH = """Tanh Sigmoid SiLU Mish Softplus Softsign Tanhshrink LogSigmoid GELU ELU CELU SELU
    Hardswish Hardsigmoid Hardtanh ReLU ReLU6 LeakyReLU PReLU Softshrink Hardshrink RReLU"""
modules("activation", (12,), **{name: getattr(nn, name) for name in SMOOTH.split()})
modules(
    "activation",
    (12,),
    gelu_tanh=lambda: nn.GELU(approximate="tanh"),
    softplus_beta=lambda: nn.Softplus(beta=3, threshold=4),
    elu_alpha=lambda: nn.ELU(0.7),
    celu_alpha=lambda: nn.CELU(0.6),
    threshold=lambda: nn.Threshold(0.1, -0.2),
    prelu_channels=lambda: nn.PReLU(12),
    glu=lambda: nn.GLU(),
    softmax=lambda: nn.Softmax(-1),
    softmin=lambda: nn.Softmin(1),
    log_softmax=lambda: nn.LogSoftmax(1),
    relu_inplace=lambda: nn.Sequential(nn.Linear(12, 12), nn.ReLU(inplace=True)),
    silu_inplace=lambda: nn.Sequential(nn.Linear(12, 12), nn.SiLU(inplace=True)),
    elu_inplace=lambda: nn.Sequential(nn.Linear(12, 12), nn.ELU(inplace=True)),
    hardswish_inplace=lambda: nn.Sequential(nn.Linear(12, 12), nn.Hardswish(inplace=True)),
    leaky_inplace=lambda: nn.Sequential(nn.Linear(12, 12), nn.LeakyReLU(0.2, inplace=True)),
    softmax2d=lambda: nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Softmax2d()),
)
functions(
    "gate",
    swiglu=lambda y: F.silu(y[:, :6]) * y[:, 6:],
    geglu=lambda y: F.gelu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    reglu=lambda y: F.relu(y[:, ::2]) * y[:, 1::2],
    tanh_gate=lambda y: torch.tanh(y[:, :6]) * torch.sigmoid(y[:, 6:]),
    bilinear_gate=lambda y: y[:, :6] * y[:, 6:],
    squared_relu=lambda y: F.relu(y).square(),
    softmax_times=lambda y: y.softmax(-1) * y,
    snake=lambda y: y + torch.sin(2 * y).square() / 2,
    gaussian=lambda y: torch.exp(-(y**2) / 2),
    softcap=lambda y: 3 * torch.tanh(y / 3),
    siren=lambda y: torch.sin(3 * y),
)
UNARY = """sin cos tanh sigmoid exp expm1 atan sinh cosh asinh erf erfc square abs neg sinc positive
    exp2 deg2rad relu frac i0 trunc sgn"""
unary("elementary", UNARY, torch)
unary("positive", "sqrt rsqrt log log2 log10 log1p reciprocal lgamma digamma", torch, positive)
unary("proportion", "logit asin acos atanh tan erfinv", torch, proportion)
unary("acosh", "acosh", torch, lambda y: 1 + positive(y))
unary("special", "expit i0e i1 i1e log_ndtr ndtr erfcx sinc exp2 log1p", torch.special, positive)
unary("special p", "entr ndtri psi gammaln", torch.special, proportion)
functions(
    "elementary",
    cube=lambda y: y.pow(3) / 3,
    power=lambda y: positive(y) ** 1.7,
    negative_power=lambda y: positive(y) ** -2,
    base=lambda y: 2.0**y,
    tensor_power=lambda y: positive(y[:, :6]) ** y[:, 6:],
    float_power=lambda y: torch.float_power(positive(y), 0.5),
    powers=lambda y: torch.pow(y[:, None], torch.arange(3)[:, None]),
    over=lambda y: 1 / positive(y),
    ratio=lambda y: y[:, :6] / positive(y[:, 6:]),
    true_divide=lambda y: torch.true_divide(y, positive(y.flip(-1))),
    atan2=lambda y: torch.atan2(y[:, :6], y[:, 6:]),
    hypot=lambda y: torch.hypot(y[:, :6], y[:, 6:]),
    logaddexp=lambda y: torch.logaddexp(y[:, :6], y[:, 6:]),
    logaddexp2=lambda y: torch.logaddexp2(y, y.roll(1, -1)),
    copysign=lambda y: torch.copysign(y.sin(), y.roll(1, -1)),
    fmod=lambda y: torch.fmod(y, 0.7),
    remainder=lambda y: y % 0.9,
    remainders=lambda y: torch.remainder(y[:, :6], positive(y[:, 6:])),
    lerp=lambda y: torch.lerp(y, y.sin(), 0.3),
    lerp_tensor=lambda y: torch.lerp(y, y.sin(), torch.sigmoid(y)),
    addcmul=lambda y: torch.addcmul(y, y.sin(), y.cos(), value=0.5),
    addcdiv=lambda y: torch.addcdiv(y, y.sin(), positive(y), value=0.5),
    clamp=lambda y: y.clamp(-0.8, 0.6),
    clamp_tensors=lambda y: torch.clamp(y, torch.linspace(-1, 0, 12).to(y), y.square()),
    nan_to_num=lambda y: y.nan_to_num(),
    maximum=lambda y: torch.maximum(y, y.roll(1, -1).sin()),
    fmin=lambda y: torch.fmin(y, y.new_tensor(0.2)),
    xlogy=lambda y: torch.xlogy(y, positive(y.flip(-1))),
    xlog1py=lambda y: torch.special.xlog1py(y, positive(y)),
    polygamma=lambda y: torch.polygamma(1, positive(y)),
    multigammaln=lambda y: torch.special.multigammaln(1 + positive(y), 2),
    rsub=lambda y: torch.rsub(y, 1.0, alpha=2),
    add_alpha=lambda y: torch.add(y, y.sin(), alpha=0.3),
    sub_alpha=lambda y: torch.sub(y.cos(), y, alpha=0.3),
    heaviside=lambda y: y * torch.heaviside(y.detach(), torch.tensor(0.5).to(y)),
    ldexp=lambda y: torch.ldexp(y, torch.arange(12.0) % 3 - 1),
    square_root_of_one_minus=lambda y: torch.sqrt(1.2 - y.tanh().square()),
    zeta=lambda y: torch.special.zeta(2.5, positive(y)),
    gammainc=lambda y: torch.special.gammainc(torch.tensor(1.5).to(y), positive(y)),
    gammaincc=lambda y: torch.special.gammaincc(torch.tensor(2.5).to(y), positive(y)),
)

# Norms.

modules(
    "norm",
    (12,),
    layer=lambda: nn.LayerNorm(12),
    layer_plain=lambda: nn.LayerNorm(12, elementwise_affine=False, eps=1e-2),
    rms=lambda: nn.RMSNorm(12),
    rms_eps=lambda: nn.RMSNorm(12, eps=1e-3),
    batch=lambda: tracked(nn.BatchNorm1d(12)),
    group_flat=lambda: nn.GroupNorm(4, 12),
)
modules(
    "norm",
    (3, 4),
    layer_tokens=lambda: nn.LayerNorm(4),
    layer_two_axes=lambda: nn.LayerNorm((3, 4)),
    group=lambda: nn.GroupNorm(3, 3),
    instance=lambda: nn.InstanceNorm1d(3, affine=True),
    instance_tracked=lambda: tracked(nn.InstanceNorm1d(3, track_running_stats=True)),
    batch_channels=lambda: tracked(nn.BatchNorm1d(3, affine=False)),
    rms_two_axes=lambda: nn.RMSNorm((3, 4)),
)
modules(
    "norm",
    (3, 2, 2),
    group_images=lambda: nn.GroupNorm(1, 3),
    instance_images=lambda: nn.InstanceNorm2d(3),
    batch_images=lambda: tracked(nn.BatchNorm2d(3)),
    local_response=lambda: nn.LocalResponseNorm(2),
)
functions(
    "norm",
    normalize=lambda y: F.normalize(y, dim=-1),
    normalize_three=lambda y: F.normalize(y, p=3.0, dim=-1),
    normalize_channels=lambda y: F.normalize(y.view(-1, 3, 4), dim=1),
    by_hand=lambda y: (y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 0.1),
    var_mean=lambda y: (
        (y - torch.var_mean(y, -1, keepdim=True)[1]) / torch.var_mean(y, -1)[0][:, None]
    ),
    std_mean=lambda y: y / torch.std_mean(y, dim=-1, keepdim=True)[0],
    functional_batch=lambda y: F.batch_norm(y, torch.zeros(12).to(y), torch.ones(12).to(y)),
    cosine=lambda y: F.cosine_similarity(
        y.view(-1, 4, 3), y.view(-1, 4, 3).roll(1, 1).sin(), dim=-1
    ),
    vector_norm=lambda y: y / (1 + torch.linalg.vector_norm(y, dim=-1, keepdim=True)),
    norm_method=lambda y: y / (1 + y.norm(p=3, dim=1, keepdim=True)),
    matrix_norm=lambda y: y / torch.linalg.matrix_norm(y.view(-1, 3, 4)).unsqueeze(-1),
    nuclear=lambda y: y + torch.linalg.matrix_norm(y.view(-1, 3, 4), "nuc").unsqueeze(-1),
    pairwise=lambda y: F.pairwise_distance(y.view(-1, 4, 3), y.view(-1, 4, 3).cos()),
    renorm=lambda y: torch.renorm(y, 2, 0, 1.5),
    logits=lambda y: y - y.logsumexp(-1, keepdim=True),
    gumbel_free=lambda y: F.softmax(y / 0.5, dim=-1, dtype=torch.float64),
    linalg_norm=lambda y: y * torch.linalg.norm(y.view(-1, 3, 4), dim=(1, 2))[:, None],
    dist=lambda y: torch.stack([torch.dist(row, row.sin()) for row in y])[:, None] * y,
)


def tracked(norm):
    """With statistics as after training."""
    with torch.no_grad():
        norm.running_mean.normal_().mul_(0.3)
        norm.running_var.uniform_(0.5, 2)
    return norm
