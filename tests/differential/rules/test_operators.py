"""Programs of ``torch.export``, whose operators go by other names, have the rules of functions."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from riemae import Manifold
from riemae.differential.derivatives import Differential


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 16),
            nn.Unflatten(1, (4, 2, 2)),
            nn.GroupNorm(2, 4),
            nn.GELU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.ConvTranspose2d(4, 2, 4, 2, 1),
            nn.ReflectionPad2d(1),
            nn.InstanceNorm2d(2, affine=True),
            nn.UpsamplingBilinear2d(scale_factor=2),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(3),
        )

    def forward(self, z):
        return self.layers(z)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 12)
        self.norm = nn.LayerNorm(3)
        self.mix = nn.Linear(3, 9)
        self.register_buffer("places", torch.tensor([3, 0, 2]))

    def forward(self, z):
        t = self.norm(self.embed(z).unflatten(1, (4, 3)))
        q, k, v = self.mix(t)[:, None].chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0] + t[:, self.places[[0, 1, 2, 0]]]
        gate, value = mixed[:, 1:, :].split([1, 2], -1)
        normed = torch.linalg.vector_norm(value, dim=-1, keepdim=True) * F.silu(gate)
        return torch.cat([normed, value.softmax(-1).pow(2)], -1)


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(2, 5, batch_first=True)

    def forward(self, z):
        y, _ = self.cells(torch.stack([z, z.sin(), 2 * z], 1))
        return torch.log_softmax(y.flatten(1), -1) / (
            1 + y.square().sum((1, 2), keepdim=True)[:, 0]
        )


def built(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().double().eval().requires_grad_(False)


def points(k):
    return torch.randn(k, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exported(net, core):
    dynamic = ({0: torch.export.Dim("b", min=2, max=1024)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its export
        program = torch.export.export(net, (points(3),), dynamic_shapes=dynamic)
        return (program.run_decompositions() if core else program).module()


@pytest.mark.parametrize("core", [False, True], ids=["as traced", "core operators"])
@pytest.mark.parametrize("kind", [Images, Tokens, Steps])
def test_an_exported_decoder_is_differentiated_as_the_module_is(kind, core):
    net = built(kind)
    z = points(4)
    own, theirs = Differential(exported(net, core)), Differential(net)
    for ours, expected in zip(own.second_jet(z), theirs.second_jet(z), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    # And against autograd alone.
    for k in range(2):
        by_autograd = torch.autograd.functional.jacobian(lambda p: net(p[None])[0].flatten(), z[k])
        torch.testing.assert_close(own.jacobian(z)[k], by_autograd, rtol=1e-9, atol=1e-9)
    modes, without_rule = own.modes(z)
    expected_modes, known = theirs.modes(z)
    assert {kind: type(mode) for kind, mode in modes.items()} == {
        kind: type(mode) for kind, mode in expected_modes.items()
    }
    assert known == []
    assert core or without_rule == []


def test_normalisation_by_the_native_function_is_not_refused():
    weight = torch.linspace(0.5, 1.5, 3, dtype=torch.float64)

    def by_statistics(z):
        y = torch.stack([z, z.sin(), z * z.flip(-1)], 1)
        return torch.instance_norm(y, weight, -weight, None, None, True, 0.1, 1e-2, False)

    def by_hand(z):
        y = torch.stack([z, z.sin(), z * z.flip(-1)], 1)
        spread = y.var(-1, keepdim=True, correction=0) + 1e-2
        standard = (y - y.mean(-1, keepdim=True)) / spread.sqrt()
        return standard * weight[:, None] - weight[:, None]

    z = points(5)
    for ours, expected in (
        (Manifold(by_statistics).jacobian(z), Manifold(by_hand).jacobian(z)),
        (Manifold(by_statistics).metric(z), Manifold(by_hand).metric(z)),
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
