"""Random networks in any units, either dtype and of any steepness: none is refused, and the metric
is autograd's."""

import os
import random

import pytest
import torch
from torch import nn
from torch.func import jacfwd, vmap

from riemae import Manifold

TIMES = int(os.environ.get("RIEMAE_FUZZ", "1"))
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.SiLU, nn.ELU, nn.GELU, nn.Softplus, nn.Sigmoid)


class Scaled(nn.Module):
    """``unit · (net(gain · z) + offset)``."""

    def __init__(self, net, gain, unit, offset):
        super().__init__()
        self.net, self.gain, self.unit, self.offset = net, gain, unit, offset

    def forward(self, z):
        return self.unit * (self.net(self.gain * z) + self.offset)


def network(seed):
    """A random decoder, points, and what they are."""
    rng = random.Random(seed)
    dtype = rng.choice([torch.float32, torch.float64])
    m, width, out, depth = (
        rng.choice([1, 2, 3, 6]),
        rng.choice([4, 16, 64]),
        rng.choice([1, 3, 20]),
        rng.randint(0, 3),
    )
    out = max(out, m)
    activation = rng.choice(ACTIVATIONS)
    sizes = [m, *[width] * depth, out]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [
            layer
            for a, b in zip(sizes, sizes[1:], strict=False)
            for layer in (nn.Linear(a, b), activation())
        ]
        net = nn.Sequential(*layers[:-1])
        z = torch.randn(rng.choice([1, 2, 5, 80]), m, dtype=torch.float64)
    gain, unit = 10 ** rng.uniform(-1.5, 1.2), 10 ** rng.uniform(-12, 8)
    offset, spread = rng.choice([0.0, 0.0, 1.0, 30.0]), rng.choice([0.0, 1e-3, 1.0, 3.0])
    scales = f"gain {gain:.2g}, unit {unit:.2g}, +{offset}, {spread}"
    name = f"{seed}: {dtype}, {sizes}, {activation.__name__}, {scales}"
    return Scaled(net, gain, unit, offset).to(dtype).eval(), (spread * z).to(dtype), name


@pytest.mark.parametrize("block", range(4))
def test_no_sound_decoder_is_refused(block):
    count = 10 * TIMES
    for seed in range(block * count, (block + 1) * count):
        f, z, name = network(seed)
        g = Manifold(f).metric(z)
        exact = f.double()
        j = vmap(jacfwd(lambda p, f=exact: f(p[None])[0]))(z.double()).detach() / f.unit
        limit = (
            1e-8 if z.dtype == torch.float64 else 2e-2
        )  # in float32 activations may round to their other side
        size = float((j.mT @ j).abs().max())
        off = float((g.detach().double() / f.unit**2 - j.mT @ j).abs().max())
        assert off <= limit * size + 1e-12, name
