"""Twelve decoders of the shapes that people bring, with random weights from a seed.

Sizes are small enough for two CPU cores. Weights are torch's own initialisation, with normalising
statistics and latent gains drawn so that codes of variance 1 matter: geodesics bend, but do not
fold at every turn. Those of :data:`HARD` are not among the twelve: they do fold.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, NegativeBinomial, Normal
from torch.nn import functional as F

LATENT = 8  # dimension of the codes of every decoder here


class ConvolutionalVAE(nn.Module):
    """Transposed convolutions with batch norm in evaluation mode, 3 × 32 × 32."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 64 * 4 * 4)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (64, 4, 4)),
            *self._up(64, 32),
            *self._up(32, 16),
            nn.ConvTranspose2d(16, 3, 4, 2, 1),
            nn.Sigmoid(),
        )

    @staticmethod
    def _up(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        norm = nn.BatchNorm2d(outputs)
        nn.init.uniform_(norm.running_var, 0.02, 0.1)
        nn.init.normal_(norm.running_mean, std=0.05)
        return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), norm, nn.SiLU()

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 3, 32, 32)``."""
        return self.layers(self.start(z))


class ResidualBlock(nn.Module):
    """Group norm, SiLU and convolution, twice, and a skip around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU())
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.between = nn.Sequential(nn.GroupNorm(4, outputs), nn.SiLU())
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, h, w) -> (b, c', h, w)``."""
        return self.skip(x) + self.second(self.between(self.first(self.before(x))))


class PixelAttention(nn.Module):
    """Self-attention among the pixels of an image, with a skip around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.projections = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, h, w) -> (b, c, h, w)``."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.projections(tokens)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.out(mixed).transpose(1, 2).reshape(x.shape)


class LatentDiffusion(nn.Module):
    """As the decoders of latent diffusion: residual blocks, attention, nearest upsampling.

    Args:
        side: Pixels of the innermost maps; images have four times as many.
    """

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 4 * side * side)
        self.layers = nn.Sequential(
            nn.Unflatten(1, (4, side, side)),
            nn.Conv2d(4, 16, 3, padding=1),
            ResidualBlock(16, 16),
            PixelAttention(16),
            ResidualBlock(16, 16),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 8, 3, padding=1),
            ResidualBlock(8, 8),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(8, 8, 3, padding=1),
            ResidualBlock(8, 8),
            nn.GroupNorm(4, 8),
            nn.SiLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 3, 4 * side, 4 * side)``."""
        return self.layers(self.start(z))


class UNet(nn.Module):
    """Down, up, and the skips between: instance norm, average pooling, bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 8 * 16 * 16)
        self.down = self._block(8, 16)
        self.bottom = self._block(16, 32)
        self.up = self._block(32 + 16, 16)
        self.out = nn.Conv2d(16 + 8, 1, 3, padding=1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.InstanceNorm2d(outputs, affine=True),
            nn.GELU(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 1, 16, 16)``."""
        top = self.start(z).reshape(-1, 8, 16, 16)
        middle = self.down(F.avg_pool2d(top, 2))
        bottom = self.bottom(F.avg_pool2d(middle, 2))
        raised = F.interpolate(bottom, scale_factor=2, mode="bilinear", align_corners=False)
        middle = self.up(torch.cat([raised, middle], 1))
        raised = F.interpolate(middle, scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(torch.cat([raised, top], 1))


class Transformer(nn.Module):
    """Sixteen tokens, two encoder layers with layer norm and GELU, one head for the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(LATENT, 16 * 32)
        self.places = nn.Parameter(0.5 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 8)

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 16, 8)``."""
        x = self.tokens(z).unflatten(-1, (16, 32)) + self.places
        return self.out(self.layers(x))


class Recurrent(nn.Module):
    """A GRU or an LSTM that is given the code at each of sixteen steps."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.cells = kind(LATENT, 64, batch_first=True)
        self.out = nn.Linear(64, 12)

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 16, 12)``."""
        steps, _ = self.cells(z[:, None].repeat(1, 16, 1))
        return self.out(steps)


class CoordinateNetwork(nn.Module):
    """A SIREN over pixel coordinates whose first layer also takes the code, 16 × 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        axis = torch.linspace(-1, 1, 16)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
        self.register_buffer("grid", grid)
        self.place = self._sine_layer(2, 64, frequency=10.0)
        self.code = nn.Linear(LATENT, 64)
        self.hidden = nn.ModuleList([self._sine_layer(64, 64) for _ in range(2)])
        self.out = nn.Linear(64, 1)

    @staticmethod
    def _sine_layer(inputs: int, outputs: int, frequency: float = 1.0) -> nn.Linear:
        layer = nn.Linear(inputs, outputs)
        bound = frequency / inputs if frequency > 1 else math.sqrt(6 / inputs)
        nn.init.uniform_(layer.weight, -bound, bound)
        return layer

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 256)``."""
        x = torch.sin(self.place(self.grid) + self.code(z)[:, None])
        for layer in self.hidden:
            x = torch.sin(layer(x))
        return self.out(x).squeeze(-1)


class HyperNetwork(nn.Module):
    """The code gives the weights of a small network, which is evaluated at 16 × 16 places.

    Weights have the variance that layers of their width need (Chang, Flokas, Lipson, Principled
    weight initialization for hypernetworks, ICLR 2020), and it is in the last layer's bias: codes
    vary weights about those of one network, as in the hyper-networks of Sitzmann et al., Implicit
    neural representations with periodic activation functions, NeurIPS 2020.

    Args:
        based: False leaves the bias at torch's initialisation, so that weights vary about 0. Hidden
            units are then nearly linear, and images of the eight dimensions of codes lie within a
            percent of nine dimensions, where they fold: a hard case.
    """

    def __init__(self, based: bool = True) -> None:
        super().__init__()
        self.register_buffer("inputs", torch.randn(256, 2))
        self.weights = nn.Sequential(
            nn.Linear(LATENT, 128), nn.SiLU(), nn.Linear(128, 2 * 32 + 32 + 32 * 3)
        )
        if based:
            last = self.weights[2]
            first, bias, second = last.bias.detach().split([64, 32, 96])
            nn.init.normal_(first, std=1 / math.sqrt(2))
            nn.init.uniform_(bias, -1 / math.sqrt(2), 1 / math.sqrt(2))
            nn.init.normal_(second, std=1 / math.sqrt(32))

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 256, 3)``."""
        first, bias, second = self.weights(z).split([64, 32, 96], -1)
        hidden = torch.matmul(self.inputs, first.unflatten(-1, (2, 32))) + bias[:, None]
        return torch.einsum("bnh,bho->bno", torch.tanh(hidden), second.unflatten(-1, (32, 3)))


class CouplingFlow(nn.Module):
    """Eight affine couplings: a diffeomorphism of the codes' space, so distances are chords."""

    def __init__(self) -> None:
        super().__init__()
        half = LATENT // 2
        self.halves = nn.ModuleList(
            nn.Sequential(
                nn.Linear(half, 128),
                nn.Tanh(),
                nn.Linear(128, 128),
                nn.Tanh(),
                nn.Linear(128, LATENT),
            )
            for _ in range(8)
        )

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 8)``."""
        left, right = z.chunk(2, -1)
        for net in self.halves:
            scale, shift = net(left).chunk(2, -1)
            left, right = right * torch.exp(torch.tanh(scale)) + shift, left
        return torch.cat([left, right], -1)


class NeuralODE(nn.Module):
    """Eight Runge–Kutta steps of a field in 16 dimensions, and a linear read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(LATENT, 16)
        self.field = nn.Sequential(nn.Linear(16, 64), nn.Softplus(), nn.Linear(64, 16))
        self.out = nn.Linear(16, 32)

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 32)``."""
        y = self.start(z)
        h = 1 / 8
        for _ in range(8):
            k1 = self.field(y)
            k2 = self.field(y + h / 2 * k1)
            k3 = self.field(y + h / 2 * k2)
            k4 = self.field(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.out(y)


class CountDecoder(nn.Module):
    """As scVI's: expected frequencies by softmax, a library size, a dispersion per gene."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(128)
        nn.init.uniform_(norm.running_var, 0.2, 0.5)
        self.body = nn.Sequential(nn.Linear(LATENT, 128), norm, nn.SiLU())
        self.scale = nn.Linear(128, 2000)
        self.log_dispersion = nn.Parameter(torch.randn(2000))

    def forward(self, z: Tensor) -> Distribution:
        """``(b, 8)`` to negative binomials ``(b, 2000)`` with a fixed dispersion per gene."""
        log_mean = math.log(10_000) + torch.log_softmax(3 * self.scale(self.body(z)), -1)
        dispersion = self.log_dispersion.exp().expand_as(log_mean)
        return NegativeBinomial(dispersion, logits=log_mean - self.log_dispersion)


class GaussianDecoder(nn.Module):
    """A mean and a standard deviation, from two heads.

    Args:
        size: Variables.
    """

    def __init__(self, size: int = 784) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(LATENT, 256), nn.ELU(), nn.Linear(256, 256), nn.Tanh())
        self.mean = nn.Linear(256, size)
        self.deviation = nn.Linear(256, size)

    def forward(self, z: Tensor) -> Distribution:
        """``(b, 8)`` to normal distributions ``(b, size)``."""
        x = self.body(z)
        return Normal(self.mean(x), 0.1 + F.softplus(self.deviation(x)))


ZOO: dict[str, Callable[..., nn.Module]] = {
    "convolutional VAE": ConvolutionalVAE,
    "latent diffusion": LatentDiffusion,
    "U-Net": UNet,
    "transformer": Transformer,
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "coordinate network": CoordinateNetwork,
    "hyper-network": HyperNetwork,
    "coupling flow": CouplingFlow,
    "neural ODE": NeuralODE,
    "counts": CountDecoder,
    "Gaussian": GaussianDecoder,
}


class RandomSIREN(nn.Module):
    """Sines of frequency 3 of the code, three layers: the hard case."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (LATENT, 64, 64, 64)
        layers = zip(sizes, sizes[1:], strict=False)
        self.hidden = nn.ModuleList([nn.Linear(a, b) for a, b in layers])
        for i, layer in enumerate(self.hidden):
            bound = 1 / layer.in_features if i == 0 else math.sqrt(6 / layer.in_features) / 3
            nn.init.uniform_(layer.weight, -bound, bound)
        self.out = nn.Linear(64, 32)

    def forward(self, z: Tensor) -> Tensor:
        """``(b, 8) -> (b, 32)``."""
        for layer in self.hidden:
            z = torch.sin(3 * layer(z))
        return self.out(z)


HARD: dict[str, Callable[..., nn.Module]] = {
    "random SIREN": RandomSIREN,
    "hyper-network about 0": lambda: HyperNetwork(based=False),
}


def built(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: int) -> nn.Module:
    """A decoder of the zoo, in evaluation mode, without gradients of its parameters.

    Args:
        name: A key of :data:`ZOO` or :data:`HARD`.
        dtype: Of its parameters.
        seed: Of its weights; the caller's random state stays as it is.
        **sizes: Where the class has some.
    """
    make = {**ZOO, **HARD}[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**sizes).to(dtype).requires_grad_(False).eval()
