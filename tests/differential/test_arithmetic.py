"""What derivatives of decoders of real shape cost, by the arithmetic that torch is asked for.

Times depend on the machine, and on how well its kernels use it; arithmetic does not.
"""

import sys
from pathlib import Path

import operations
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae import Manifold

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a checkout is needed: the wheel holds no benchmarks", allow_module_level=True)
# Benchmarks are a folder of the checkout, no part of the package: imported once it is in the path.
sys.path.append(str(ROOT))

from benchmarks.zoo_decoders import LATENT, ZOO, built  # noqa: E402

POINTS = 20
# A product of two quantities that both depend on the code has 2m + 1 parts, not m + 1. In a
# hyper-network, whose weights depend on it, that is a third of the decoder; attention has a little.
SWEEP = {"hyper-network": LATENT + 4, "transformer": LATENT + 2.5}


@pytest.fixture(scope="module", params=ZOO)
def case(request):
    decoder = built(request.param)
    z = torch.randn(POINTS, LATENT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its kernel does not say what it computes
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        decoding = operations.arithmetic(lambda: decoder(z))
    torch.backends.mha.set_fastpath_enabled(fast)
    return request.param, Manifold(decoder), z, decoding


def least(call):
    """Of a call that does not look again at what it has found out before."""
    call()
    return min(operations.arithmetic(call) for _ in range(2))


def test_a_pass_with_m_tangents_costs_m_and_two_decodings(case):
    name, manifold, z, decoding = case
    with torch.no_grad():
        spent = least(lambda: manifold.jacobian(z))
    assert spent <= SWEEP.get(name, LATENT + 2) * decoding


def test_an_expansion_costs_four_times_as_much_at_most(case):
    _, manifold, z, decoding = case
    curves = z.view(2, -1, LATENT)
    space = manifold.as_space(z)
    with torch.no_grad():
        spent = least(lambda: space.expand(curves))
    assert spent <= 4 * (LATENT + 2) * decoding
