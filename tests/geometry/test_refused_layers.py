"""Layers that have no derivative are refused by an error that names them."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from riemae import Manifold
from riemae.exceptions import DecoderError

Z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 4)).eval()


def quantized():
    with warnings.catch_warnings():  # torch.ao is deprecated in favour of torchao
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)


# Quantized layers cannot even be made there.
needs_engine = pytest.mark.skipif(
    torch.backends.quantized.engine == "none", reason="this torch has no quantized kernels"
)


@needs_engine
@pytest.mark.parametrize("call", ["decode", "metric", "christoffel"])
@pytest.mark.parametrize("wrap", [False, True], ids=["a module", "a function"])
def test_quantized_layers_are_named(call, wrap):
    net = quantized()
    decoder = (lambda z: net(z)) if wrap else net
    with pytest.raises(DecoderError, match=r"quantized layer, DynamicQuantizedLinear '0'.*before"):
        getattr(Manifold(decoder), call)(Z)


def test_what_a_network_was_before_works():
    assert Manifold(network()).metric(Z).isfinite().all()


class Attending(nn.Module):
    """Attention among four tokens of each row."""

    def __init__(self, attention):
        super().__init__()
        self.first = network()
        self.attention = attention
        self.last = nn.Linear(4, 3)

    def forward(self, z):
        tokens = self.first(z).view(len(z), 1, 4, 1).expand(-1, -1, -1, 16)
        return self.last(self.attention(tokens, tokens, tokens)[:, 0, :, 0])


@pytest.mark.filterwarnings("ignore")  # torch warns that it runs uncompiled, in words of its own
@pytest.mark.parametrize("call", ["metric", "christoffel"])
def test_flex_attention_on_a_cpu_is_named(call):
    decoder = Attending(flex_attention).eval()
    with pytest.raises(DecoderError, match="flex_attention, which.*scaled_dot_product_attention"):
        getattr(Manifold(decoder), call)(Z)


def test_the_attention_that_the_error_names_works():
    assert Manifold(Attending(scaled_dot_product_attention).eval()).metric(Z).isfinite().all()


def test_other_failures_beside_flex_attention_are_not_taken_for_it():
    def attention(q, k, v):
        return flex_attention(q[..., :2], k, v)  # other widths, which torch refuses by itself

    with pytest.raises(DecoderError, match="accepts points"):
        Manifold(Attending(attention).eval()).metric(Z)
