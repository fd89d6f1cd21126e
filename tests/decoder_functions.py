"""Functions of which random decoders are made: shapes, places, matrices, complex numbers.

Importing this enters them into ``OPERATIONS``.
"""

import torch
from decoder_operations import functions, modules, positive, shaped, unary
from torch import nn
from torch.nn import functional as F

CHANNELS, PIXELS, TOKENS = (3, 4), (3, 2, 2), (4, 3)
PLACES = torch.tensor([3, 0, 0, 7, 11, 5])

# Sizes.

modules(
    "resize",
    PIXELS,
    nearest=lambda: nn.Upsample(scale_factor=2),
    bilinear=lambda: nn.Upsample(size=(3, 5), mode="bilinear"),
    corners=lambda: nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True),
    bicubic=lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    unshuffled=lambda: nn.PixelUnshuffle(2),
    zero_pad=lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    reflection=lambda: nn.ReflectionPad2d(1),
    replication=lambda: nn.ReplicationPad2d((2, 1, 0, 1)),
    circular=lambda: nn.CircularPad2d(1),
    constant=lambda: nn.ConstantPad2d(1, 0.7),
    unfold=lambda: nn.Unfold(2, padding=1),
    channel_shuffle=lambda: nn.ChannelShuffle(3),
    upsample_convolve=lambda: nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 2, 3, padding=1), nn.SiLU()
    ),
)
shaped(
    "resize",
    CHANNELS,
    linear=lambda x: F.interpolate(x, size=6, mode="linear"),
    nearest_exact=lambda x: F.interpolate(x, scale_factor=1.6, mode="nearest-exact"),
    area=lambda x: F.interpolate(x, size=3, mode="area"),
    antialias=lambda x: F.interpolate(x[:, None], size=(2, 2), mode="bilinear", antialias=True),
    trilinear=lambda x: F.interpolate(
        x.view(-1, 1, 3, 2, 2), size=(2, 3, 3), mode="trilinear", align_corners=False
    ),
    pad=lambda x: F.pad(x, (1, 2), value=0.3),
    negative_pad=lambda x: F.pad(x, (-1, 1)),
    circular=lambda x: F.pad(x, (2, 1), mode="circular"),
    reflect=lambda x: F.pad(x, (1, 1), mode="reflect"),
    shuffle=lambda x: F.pixel_shuffle(x.reshape(-1, 4, 3, 1), 2),
    fold=lambda x: F.fold(x.reshape(-1, 4, 3).repeat(1, 1, 3), (4, 4), 2),
    unfold_method=lambda x: x.unfold(-1, 2, 1),
    roll=lambda x: x.roll((1, 2), (1, 2)),
    flip=lambda x: x.flip(1, 2).sin(),
    rot=lambda x: x.rot90(1, (1, 2)),
    sampled=lambda x: F.grid_sample(
        x.view(-1, 3, 2, 2), torch.tanh(x[:, :2].reshape(-1, 2, 2, 2)), align_corners=False
    ),
    warped=lambda x: F.grid_sample(
        torch.linspace(0, 1, 16).to(x).sin().view(1, 1, 4, 4).expand(len(x), -1, -1, -1),
        0.6 * torch.tanh(x.reshape(-1, 3, 2, 2)),
        mode="bicubic",
        align_corners=True,
    ),
    affine=lambda x: F.affine_grid(x.flatten(1)[:, :6].view(-1, 2, 3), (len(x), 1, 2, 3), False),
)
modules(
    "pooling",
    CHANNELS,
    avg=lambda: nn.AvgPool1d(2, stride=1, padding=1),
    max=lambda: nn.MaxPool1d(2),
    max_dilated=lambda: nn.MaxPool1d(2, stride=1, dilation=2),
    adaptive_avg=lambda: nn.AdaptiveAvgPool1d(3),
    adaptive_max=lambda: nn.AdaptiveMaxPool1d(2),
    lp=lambda: nn.LPPool1d(2, 2),
    lp_three=lambda: nn.LPPool1d(3, 3, stride=1),
)
modules(
    "pooling",
    PIXELS,
    avg_images=lambda: nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
    max_images=lambda: nn.MaxPool2d((1, 2)),
    adaptive_images=lambda: nn.AdaptiveAvgPool2d(1),
    adaptive_max_images=lambda: nn.AdaptiveMaxPool2d((1, 2)),
    lp_images=lambda: nn.LPPool2d(2, (2, 1)),
)
shaped(
    "pooling",
    CHANNELS,
    unpool=lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
    maxout=lambda x: x.amax(1),
    mean_max=lambda x: torch.cat([x.mean(-1), x.max(-1)[0], x.min(dim=-1).values], -1),
    attentive=lambda x: (x.softmax(-1) * x).sum(-1),
    generalised_mean=lambda x: positive(x).pow(2.5).mean(-1).pow(1 / 2.5),
)

# Products.

OTHER = torch.linspace(-1, 1, 9).view(3, 3)
functions(
    "product",
    einsum=lambda y: torch.einsum("bij,bkj->bik", y.view(-1, 4, 3), y.view(-1, 4, 3).sin()),
    einsum_three=lambda y: torch.einsum("bi,bj,bi->bij", y[:, :3], y[:, 3:6], y[:, 6:9].cos()),
    einsum_ellipsis=lambda y: torch.einsum("...ij,jk->...ik", y.view(-1, 4, 3), OTHER.to(y)),
    einsum_diagonal=lambda y: torch.einsum("bii->bi", (y[:, :9] * 1.0).view(-1, 3, 3)),
    bmm=lambda y: torch.bmm(y.view(-1, 4, 3), y.view(-1, 3, 4)),
    baddbmm=lambda y: torch.baddbmm(y[:, :9].view(-1, 3, 3), y.view(-1, 3, 4), y.view(-1, 4, 3)),
    outer=lambda y: y[:, :4, None] * y[:, None, 4:8],
    tensordot=lambda y: torch.tensordot(y.view(-1, 4, 3), OTHER.to(y), dims=([2], [0])),
    matvec=lambda y: (y[:, :9].view(-1, 3, 3) @ y[:, 9:, None]).squeeze(-1),
    vecmat=lambda y: torch.linalg.multi_dot([y, torch.ones(12, 3).to(y), OTHER.to(y)]),
    cross=lambda y: torch.cross(y[:, :3], y[:, 3:6], dim=-1),
    linalg_cross=lambda y: torch.linalg.cross(y.view(-1, 4, 3), y.view(-1, 4, 3).roll(1, 1)),
    vecdot=lambda y: torch.linalg.vecdot(y.view(-1, 4, 3), y.view(-1, 4, 3).sin()),
    functional_bilinear=lambda y: F.bilinear(y[:, :3], y[:, 3:6], OTHER.to(y)[None]),
    kron=lambda y: torch.stack([torch.kron(a, b) for a, b in zip(y[:, :3], y[:, 9:], strict=True)]),
    vander=lambda y: torch.linalg.vander(y[:, :3], N=4),
    powers=lambda y: torch.linalg.matrix_power(y[:, :9].view(-1, 3, 3) / 2, 3),
    addbmm_free=lambda y: torch.addmm(y[:, :3], y[:, 3:6], OTHER.to(y), beta=0.5, alpha=2),
    chain=lambda y: torch.chain_matmul(y, torch.ones(12, 2).to(y), torch.ones(2, 3).to(y)),
    inner=lambda y: torch.inner(y.view(-1, 4, 3), OTHER.to(y)),
    cumsum=lambda y: y.cumsum(-1),
    cumprod=lambda y: (1 + y / 4).cumprod(-1),
    logcumsumexp=lambda y: torch.logcumsumexp(y, -1),
    cummax=lambda y: y.cummax(-1)[0],
    prod=lambda y: (1 + y / 3).view(-1, 4, 3).prod(-1),
    diff=lambda y: torch.diff(y, n=2, dim=-1),
    trapezoid=lambda y: torch.cumulative_trapezoid(y.sin(), dx=0.3, dim=-1),
    gradient=lambda y: torch.gradient(y, dim=1)[0],
    sums=lambda y: torch.cat([y.sum(-1, keepdim=True), y.view(-1, 3, 4).mean((1, 2))[:, None]], 1),
    moments=lambda y: torch.stack([y.var(-1), y.std(-1, correction=0), y.logsumexp(1)], -1),
    median=lambda y: y - y.median(-1, keepdim=True)[0],
    quantile=lambda y: torch.quantile(y, torch.tensor([0.2, 0.5]).to(y), dim=-1).T,
    sort=lambda y: y.sort(-1, descending=True)[0],
    topk=lambda y: y.topk(4, -1)[0] * y[:, :4],
    aminmax=lambda y: torch.stack(torch.aminmax(y, dim=-1), -1),
    cov=lambda y: torch.stack([torch.cov(row.view(3, 4)) for row in y]),
    corrcoef=lambda y: torch.vmap(torch.corrcoef)(y.view(-1, 3, 4)),
    cdist=lambda y: torch.cdist(y.view(-1, 4, 3), y.view(-1, 4, 3).cos()),
    cdist_anchors=lambda y: torch.cdist(y, torch.linspace(-1, 1, 36).to(y).view(3, 12)),
    cdist_one=lambda y: torch.cdist(y.view(-1, 4, 3), y.view(-1, 4, 3).cos(), p=1),
    cdist_three=lambda y: torch.cdist(y.view(-1, 4, 3), y.view(-1, 4, 3).cos(), p=3.0),
    rbf=lambda y: torch.exp(
        -(torch.cdist(y, torch.linspace(-1, 1, 36).to(y).view(3, 12)) ** 2) / 9
    ),
    losses=lambda y: torch.stack(
        [
            F.mse_loss(y, y.sin(), reduction="none").mean(-1),
            F.smooth_l1_loss(y, y.square(), reduction="none").sum(-1),
            F.huber_loss(y, torch.zeros_like(y), reduction="none", delta=0.5).sum(-1),
            F.binary_cross_entropy_with_logits(y, torch.full_like(y, 0.3), reduction="none").mean(
                -1
            ),
            F.cross_entropy(y, torch.full((len(y),), 2), reduction="none"),
        ],
        -1,
    ),
    divergence=lambda y: F.kl_div(y.log_softmax(-1), y.roll(1, -1).softmax(-1), reduction="none"),
    entropy=lambda y: -(y.softmax(-1) * y.log_softmax(-1)),
    hinge=lambda y: F.gaussian_nll_loss(
        y[:, :6], y[:, 6:].sin(), positive(y[:, 6:]), reduction="none"
    ),
    nll=lambda y: (
        F.nll_loss(y.log_softmax(-1), torch.full((len(y),), 3), reduction="none")[:, None] * y
    ),
)

# Places.

functions(
    "index",
    list=lambda y: y[:, [3, 0, 0, 7]],
    tensor=lambda y: y[:, PLACES],
    ellipsis=lambda y: y.view(-1, 3, 4)[..., 1::2, None],
    mask=lambda y: y[:, torch.arange(12) % 3 != 0],
    two=lambda y: y.view(-1, 3, 4)[:, [0, 2, 1], [3, 3, 0]],
    rows=lambda y: y.view(-1, 3, 4)[torch.arange(len(y))[:, None], [[0, 2]]],
    index_select=lambda y: torch.index_select(y, 1, PLACES),
    gather=lambda y: y.gather(1, PLACES.expand(len(y), -1)),
    take_along=lambda y: torch.take_along_dim(y, y.argsort(-1), -1),
    take=lambda y: torch.stack([torch.take(row, PLACES) for row in y]),
    select=lambda y: y.select(1, 3)[:, None] * y.narrow(1, 2, 5),
    masked_select=lambda y: y.masked_select(torch.arange(12) % 2 == 0).view(len(y), -1),
    masked_fill=lambda y: y.masked_fill(torch.arange(12) % 2 == 0, 0.5),
    masked_by_data=lambda y: y.masked_fill(y > 0.5, 0.5),
    where=lambda y: torch.where(torch.arange(12) % 2 == 0, y, y.sin()),
    where_data=lambda y: torch.where(y > 0, y.square(), y.exp() - 1),
    where_number=lambda y: torch.where(y > 0, y, 0.1),
    where_method=lambda y: y.sin().where(y < 0.3, y.cos()),
    indicator=lambda y: (y > 0.2) * y + (y <= 0.2).to(y.dtype) * y.sin(),
    scatter=lambda y: torch.zeros_like(y).scatter(1, PLACES[2:].expand(len(y), -1), y[:, :4]),
    scatter_add=lambda y: torch.zeros_like(y).scatter_add(1, PLACES.expand(len(y), -1), y[:, :6]),
    scatter_reduce=lambda y: torch.zeros_like(y).scatter_reduce(
        1, PLACES.expand(len(y), -1), y[:, :6], "mean"
    ),
    index_add=lambda y: y.index_add(1, PLACES, y[:, :6].sin()),
    index_copy=lambda y: y.index_copy(1, PLACES[2:], y[:, :4].cos()),
    index_fill=lambda y: y.index_fill(1, PLACES, 0.2),
    index_put=lambda y: y.index_put(
        (torch.arange(len(y)), torch.full((len(y),), 2)), y[:, 0].sin()
    ),
    masked_scatter=lambda y: y.masked_scatter(torch.arange(12) < 4, y[:, 4:8].contiguous()),
    slice_scatter=lambda y: torch.slice_scatter(y, y[:, :3].sin(), 1, 2, 5),
    select_scatter=lambda y: torch.select_scatter(y, y[:, 0].sin(), 1, 4),
    diagonal_scatter=lambda y: torch.diagonal_scatter(y.view(-1, 3, 4), y[:, :3].exp(), 0, 1, 2),
    embedding=lambda y: F.embedding(PLACES % 3, OTHER.to(y)).flatten()[:12] * y,
    chosen_row=lambda y: OTHER.to(y)[y[:, :3].argmax(-1)] * y[:, :3],
    one_hot=lambda y: F.one_hot(y[:, :4].argmax(-1), 4) * y[:, :4],
    triangle=lambda y: lower_triangular(y),
    tril=lambda y: y.view(-1, 3, 4).tril() @ y.view(-1, 4, 3).triu(1),
    diag_embed=lambda y: torch.diag_embed(y[:, :3]) + OTHER.to(y),
    diagonal=lambda y: (y[:, :9].view(-1, 3, 3) @ OTHER.to(y)).diagonal(dim1=1, dim2=2),
    embedding_by_places=lambda y: torch.stack(
        [F.embedding(PLACES, row[:, None])[:, 0] for row in y]
    ),
    searchsorted=lambda y: splined(y),
)


def lower_triangular(y):
    factor = y.new_zeros(len(y), 3, 3)
    i, j = torch.tril_indices(3, 3)
    factor[:, i, j] = y[:, :6]
    return factor @ factor.mT


def splined(y):
    """Piecewise quadratic, by the interval in which a number lies."""
    knots = torch.linspace(-2, 2, 9).to(y)
    place = torch.searchsorted(knots, y.detach().contiguous()).clamp(1, 8)
    apart = y - knots[place - 1]
    return knots.sin()[place - 1] * apart + knots.cos()[place] * apart.square()


functions(
    "shape",
    cat=lambda y: torch.cat([y[:, :6] * y[:, 6:], y.sin()], -1),
    stack=lambda y: torch.stack([y, y.square()], -1),
    hstack=lambda y: torch.hstack([y[:, :2], y[:, 5:].cos()]),
    dstack=lambda y: torch.dstack([y, y.exp()]),
    chunk=lambda y: y.chunk(3, 1)[0] * y.chunk(3, 1)[2],
    split=lambda y: torch.cat([x.sin() for x in y.split([5, 7], 1)], 1),
    tensor_split=lambda y: torch.cat(y.tensor_split((2, 5), 1)[::-1], 1),
    unbind=lambda y: torch.stack(
        [a * b for a, b in zip(y.unbind(1), y.unbind(1)[::-1], strict=True)], 1
    ),
    unsafe_chunk=lambda y: y.unsafe_chunk(2, 1)[1].tanh(),
    permute=lambda y: y.view(-1, 3, 2, 2).permute(0, 3, 1, 2).reshape(len(y), -1).sin(),
    points_last=lambda y: (y.T.sin() * torch.linspace(1, 2, 12).to(y)[:, None]).T,
    points_in_the_middle=lambda y: y.view(-1, 3, 4).permute(1, 0, 2).square().movedim(1, 0),
    points_joined=lambda y: F.linear(y.reshape(-1, 3), OTHER.to(y)).sin().view(len(y), -1),
    movedim=lambda y: y.view(-1, 3, 4).movedim(1, -1).cumsum(1),
    swapaxes=lambda y: y.view(-1, 3, 4).swapaxes(1, 2).softmax(-1),
    ravel=lambda y: y.ravel().sin().view(-1, 4, 3),
    tile=lambda y: y.tile(1, 2) * y.repeat_interleave(2, 1),
    expand=lambda y: y[:, :, None].expand(-1, -1, 2).sin(),
    squeeze=lambda y: y[:, None].squeeze(1).unsqueeze(-1).cos(),
    unflatten=lambda y: y.unflatten(1, (2, -1)).flatten(1).to(torch.float64).double(),
    meshed=lambda y: torch.cartesian_prod(*[torch.arange(2.0)] * 2).flatten().to(y) + y[:, :8],
    block=lambda y: torch.stack([torch.block_diag(r[:4].view(2, 2), r[4:8].view(2, 2)) for r in y]),
    atleast=lambda y: torch.atleast_3d(y).sin(),
    combinations=lambda y: torch.stack([torch.combinations(row[:4]).prod(-1) for row in y]),
    broadcast=lambda y: torch.add(*torch.broadcast_tensors(y[:, :3, None], y[:, None, 3:6].sin())),
    strided=lambda y: y.contiguous().as_strided((len(y), 6), (12, 2)),
    rolled_batch=lambda y: torch.stack(list(y)).sin(),
    looped=lambda y: torch.stack([row.sin() * row[0] for row in y]),
    vmapped=lambda y: torch.vmap(lambda row: torch.outer(row[:3], row[3:6].sin()))(y),
    detached_scale=lambda y: y / y.detach().abs().amax().clamp_min(1e9) + y,
)

# Complex numbers.


def as_complex(y):
    return torch.complex(y[:, :6], y[:, 6:])


functions(
    "complex",
    spectrum=lambda y: torch.fft.rfft(y).abs(),
    power=lambda y: torch.fft.fft(y).abs().square(),
    real_part=lambda y: torch.fft.fft(y).real,
    angle=lambda y: torch.fft.rfft(y + 2)[:, :2].angle(),
    filtered=lambda y: torch.fft.irfft(torch.fft.rfft(y) * torch.linspace(1, 2, 7).to(y), n=12),
    images=lambda y: torch.fft.ifft2(torch.fft.fft2(y.view(-1, 3, 4)) * 0.7).real,
    ortho=lambda y: torch.fft.rfft(y, norm="ortho").imag,
    exp=lambda y: torch.exp(1j * as_complex(y) / 2).abs(),
    square=lambda y: torch.view_as_real(as_complex(y).square()),
    polar=lambda y: torch.view_as_real(torch.polar(positive(y[:, :6]), y[:, 6:])),
    conj=lambda y: (as_complex(y) * as_complex(y.sin()).conj()).real,
    shifted=lambda y: torch.fft.fftshift(torch.fft.fft(y), dim=-1).abs(),
    matrix=lambda y: (as_complex(y).view(-1, 2, 3) @ as_complex(y).view(-1, 3, 2)).abs(),
    spectral_layer=lambda y: torch.fft.irfft(torch.fft.rfft(y)[:, :3] * (1 + 0.5j), n=12),
)

# Matrices.


def near_identity(y):
    return 2 * torch.eye(3).to(y) + 0.3 * torch.tanh(y[:, :9].view(-1, 3, 3))


def definite(y):
    a = y[:, :9].view(-1, 3, 3)
    return torch.eye(3).to(y) + 0.3 * a @ a.mT


unary("matrix", "inv det eigvalsh svdvals cholesky matrix_exp pinv", torch.linalg, definite)
functions(
    "matrix",
    inverse=lambda y: torch.inverse(near_identity(y)),
    inverse_method=lambda y: near_identity(y).inverse(),
    solve=lambda y: torch.linalg.solve(near_identity(y), y[:, 9:, None]),
    solve_constant=lambda y: torch.linalg.solve(
        OTHER.to(y) + 3 * torch.eye(3).to(y), y[:, :9].view(-1, 3, 3)
    ),
    cholesky_solve=lambda y: torch.cholesky_solve(
        y[:, 9:, None], torch.linalg.cholesky(definite(y))
    ),
    cholesky_inverse=lambda y: torch.cholesky_inverse(torch.linalg.cholesky(definite(y))),
    triangular=lambda y: torch.linalg.solve_triangular(
        near_identity(y).tril(), y[:, 9:, None], upper=False
    ),
    logdet=lambda y: torch.logdet(definite(y))[:, None] * y,
    log_abs_det=lambda y: torch.linalg.slogdet(near_identity(y))[1][:, None] + y,
    det=lambda y: torch.det(near_identity(y))[:, None],
    exponential=lambda y: torch.matrix_exp(y[:, :9].view(-1, 3, 3) / 2),
    rotation=lambda y: torch.matrix_exp(y[:, :9].view(-1, 3, 3) - y[:, :9].view(-1, 3, 3).mT),
    qr=lambda y: torch.linalg.qr(near_identity(y))[1],
    qr_q=lambda y: torch.linalg.qr(near_identity(y))[0],
    lu_solve=lambda y: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(near_identity(y)), y[:, 9:, None]
    ),
    lstsq=lambda y: torch.linalg.lstsq(near_identity(y), y[:, 9:, None]).solution,
    spectral=lambda y: spectral_function(y),
    trace=lambda y: torch.stack([torch.trace(x) for x in near_identity(y)])[:, None] * y,
    matrix_norm=lambda y: torch.linalg.matrix_norm(near_identity(y), 2)[:, None] * y,
    low_rank=lambda y: low_rank(y),
)


def spectral_function(y):
    values, vectors = torch.linalg.eigh(definite(y))
    return (vectors * values.sqrt()[:, None]) @ vectors.mT


def low_rank(y):
    u, s, v = torch.linalg.svd(near_identity(y), full_matrices=False)
    return (u * s.log1p()[:, None]) @ v
