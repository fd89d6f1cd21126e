"""Decoders of real shape: derivatives, and gradients through losses, against independent truths."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae import Manifold
from riemae.autoencoders import encoder_losses, losses
from riemae.differential import trust
from riemae.differential.modes import PLAIN
from riemae.exceptions import OptionError
from riemae.geometry import memory

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


# What a training minimises of a decoder: all losses that look at it.
LOSSES = {
    "relaxed distortion": lambda M, z, g: losses.relaxed_distortion(M, z, generator=g),
    "conformal distortion": lambda M, z, g: losses.conformal_distortion(M, z, generator=g),
    "extrinsic curvature": lambda M, z, g: losses.extrinsic_curvature(M, z, generator=g),
    "intrinsic curvature": lambda M, z, g: losses.intrinsic_curvature(M, z, share=1, generator=g),
    "linear neighbourhoods": lambda M, z, g: neighbourhoods(M, z, 1),
    "quadratic neighbourhoods": lambda M, z, g: neighbourhoods(M, z, 2),
    "bi-Lipschitz": lambda M, z, g: encoder_losses.bi_lipschitz(M, z, bound=1.01),
    "Jacobian matching": lambda M, z, g: encoder_losses.jacobian_matching(
        M, z, lambda x: x.flatten(1)[:, :LATENT].sin(), generator=g
    ),
}


def neighbourhoods(manifold, z, order):
    near = z.flip(0)
    x = manifold.decode(near).detach()
    return losses.neighborhood_reconstruction(manifold, z, near, x, order=order)


# Curvature by autograd alone takes minutes where there are thousands of outputs.
FEWER_OUTPUTS = {"latent diffusion": {"side": 2}, "Gaussian": {"size": 6}}


@pytest.mark.parametrize("name", ZOO)
def test_gradients_through_every_loss_are_those_of_autograd(name, monkeypatch):
    decoder = built(name, **FEWER_OUTPUTS.get(name, {})).requires_grad_()
    z = draw(2, LATENT, seed=5)

    def gradients(loss):
        value = loss(Manifold(decoder), z, torch.Generator().manual_seed(6))
        found = torch.autograd.grad(
            value, list(decoder.parameters()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([value.detach().view(1), *(x.flatten() for x in found)])

    found = {what: gradients(loss) for what, loss in LOSSES.items()}
    # The same losses with derivatives by torch.autograd, which differentiates the graph of the
    # decoder's own operations, and the graph of that.
    monkeypatch.setattr(trust, "MODES", (replace(PLAIN, announced=False),))
    monkeypatch.setattr(trust.Trust, "_tried", lambda *_: True)  # what is compared with is trusted
    monkeypatch.setattr(memory, "MEMORY", memory.Memory())
    for what, loss in LOSSES.items():
        expected = gradients(loss)
        if name == "coupling flow" and "curvature" in what:  # onto all of R^8: there is none
            assert max(float(found[what].norm()), float(expected.norm())) < 1e-8, what
            continue
        assert float(expected.norm()) > 0, what
        gap = float((found[what] - expected).norm() / expected.norm())
        assert gap < 1e-7, (what, gap)


@pytest.mark.parametrize("options", [{"estimator": "planes"}, {"ridge": 0.1}])
def test_what_needs_a_feature_map_says_so_for_two_heads(options):
    manifold = Manifold(built("Gaussian", size=6))
    with pytest.raises(OptionError, match="feature map"):
        losses.intrinsic_curvature(manifold, draw(2, LATENT), **options)
