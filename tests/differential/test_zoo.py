"""Decoders of real shape: derivatives, and gradients through losses, against independent truths."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae import Manifold

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a checkout is needed: the wheel holds no benchmarks", allow_module_level=True)
sys.path.append(str(ROOT))  # benchmarks are a folder of the checkout, not a part of the package

from benchmarks.zoo_decoders import LATENT, ZOO, built  # noqa: E402

# Those that return distributions: their values are parameters.
DISTRIBUTIONS = ("counts", "Gaussian")
POINTS = 3


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module", params=ZOO)
def case(request):
    decoder = built(request.param)
    return request.param, decoder, Manifold(decoder)


def test_the_jacobian_is_that_of_autograd(case):
    name, decoder, manifold = case
    z = draw(POINTS, LATENT).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        x = (manifold.decode(z) if name in DISTRIBUTIONS else decoder(z)).flatten(1)
    j = manifold.jacobian(z.detach())
    for seed in range(3):  # along covectors: one reverse pass each
        w = draw(*x.shape, seed=seed)
        (pulled,) = torch.autograd.grad(x, z, w, retain_graph=True)
        along = torch.einsum("kd,kdi->ki", w, j)
        torch.testing.assert_close(along, pulled, rtol=1e-8, atol=1e-9)


def test_second_derivatives_are_differences_of_first_ones(case):
    _, _, manifold = case
    z, v = draw(POINTS, LATENT, seed=1), draw(POINTS, LATENT, seed=2)
    step = 1e-5
    ahead = manifold.pushforward(z + step * v, v)
    behind = manifold.pushforward(z - step * v, v)
    bend = 2 * manifold.taylor(z, v)[2]
    scale = float(bend.abs().max()) + float(ahead.abs().max())
    torch.testing.assert_close(
        bend, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-7 * scale, check_stride=False
    )


def test_every_operation_has_a_rule(case):
    _, _, manifold = case
    said = manifold.explain(draw(POINTS, LATENT))
    assert said.generic == ()
    assert said.modes["jacobian"] == said.modes["contraction"] == "Taylor mode"
    assert "every operation has a rule" in str(said) or said.modes["vjp"] != "Taylor mode"


@pytest.mark.parametrize("loss", ["distortion", "curvature"])
def test_gradients_through_losses_are_differences_of_the_loss(case, loss):
    name, _, _ = case
    decoder = built(name).requires_grad_()
    manifold = Manifold(decoder)
    z = draw(2, LATENT, seed=3)

    def value():
        if loss == "distortion":
            return manifold.distortion(z, kind="scaled_isometry")
        return manifold.extrinsic_curvature(z, estimator="hutchinson", generator=0).mean()

    parameter = next(iter(decoder.parameters()))
    (slope,) = torch.autograd.grad(value(), parameter)
    direction = draw(*parameter.shape, seed=4) * float(parameter.detach().std())
    step = 1e-5
    with torch.no_grad():
        parameter += step * direction
        ahead = float(value())
        parameter -= 2 * step * direction
        behind = float(value())
    difference = (ahead - behind) / (2 * step)
    assert abs(float((slope * direction).sum()) - difference) <= 1e-5 * (1e-3 + abs(difference))
