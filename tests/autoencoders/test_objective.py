"""How often a training step evaluates the decoder: terms share a pass with the reconstruction."""

import pytest
import spaces
import torch
from torch import nn

from riemae import Manifold
from riemae.autoencoders import Objective, Term, Variation
from riemae.numerics.random import gaussian


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def networks(d=5, m=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        e = nn.Sequential(nn.Linear(d, 8), nn.SiLU(), nn.Linear(8, m))
        f = nn.Sequential(nn.Linear(m, 8), nn.SiLU(), nn.Linear(8, d))
    return e.double(), f.double()


def passes(objective, x):
    """How often a step evaluates the decoder, after a first step, which examines it."""
    objective(x, generator=gen())
    seen = []
    hook = objective.decoder.register_forward_hook(lambda *_: seen.append(1))
    objective(x, generator=gen())
    hook.remove()
    return len(seen)


class TestOnePass:
    def setup_method(self):
        self.x = spaces.rand(gen(), 12, 5)
        self.e, self.f = networks()

    @pytest.mark.parametrize("estimator", ["exact", "hutchinson", "auto"])
    def test_curvature_decodes_for_the_reconstruction(self, estimator):
        # As often as a plain step.
        term = Term(0.1, options={"estimator": estimator})
        objective = Objective(self.e, self.f, self.x, terms={"extrinsic_curvature": term})
        assert passes(objective, self.x) == passes(Objective(self.e, self.f, self.x), self.x) == 1

    def test_nothing_but_the_cost_changes(self):
        objective = Objective(
            self.e, self.f, self.x, terms={"extrinsic_curvature": 0.1, "conformal_distortion": 0.2}
        )
        loss, parts = objective(self.x, generator=gen())
        assert list(parts)[0] == "reconstruction"
        M, z = Manifold(self.f), self.e(self.x)
        spread = (self.x - self.x.mean(0)).square().sum(1).mean()
        fit = (self.x - self.f(z)).square().sum(1).mean() / spread
        # The ridge of training, 1e-4 of the mean eigenvalue, in both metrics of Tr(G⁻¹ C).
        curvature = M.extrinsic_curvature(z, ridge=1e-4).mean() * spread
        expected = fit + 0.1 * curvature + 0.2 * parts["conformal_distortion"]
        assert torch.allclose(parts["reconstruction"], fit, rtol=1e-12)
        assert torch.allclose(parts["extrinsic_curvature"], curvature, rtol=1e-12)
        assert torch.allclose(loss, expected, rtol=1e-12)
        parameters = [*self.e.parameters(), *self.f.parameters()]
        dense = fit + 0.1 * curvature + 0.2 * objective.term("conformal_distortion", z, gen())
        for ours, theirs in zip(
            *(torch.autograd.grad(y, parameters) for y in (loss, dense)), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)

    def test_the_reconstruction_is_from_the_corrupted_code(self):
        variation = Variation(corruption=0.5)
        objective = Objective(
            self.e, self.f, self.x, terms={"extrinsic_curvature": 0.1}, variation=variation
        )
        seen = self.x + 0.5 * objective.spread * gaussian(self.x, gen(3))
        fit = (self.x - self.f(self.e(seen))).square().sum(1).mean() / objective.null
        assert torch.allclose(
            objective(self.x, generator=gen(3))[1]["reconstruction"], fit, rtol=1e-12
        )

    def test_other_likelihoods_keep_their_parameters(self):
        # Terms need expected data and the likelihood needs logits, so no pass is shared.
        x = (self.x > 0).double()
        for ambient in (None, "fisher"):
            objective = Objective(
                self.e,
                self.f,
                x,
                likelihood="bernoulli",
                ambient=ambient,
                terms={"extrinsic_curvature": 0.1},
            )
            parts = objective(x, generator=gen())[1]
            assert torch.allclose(
                parts["reconstruction"], objective.unexplained(x).mean(), rtol=1e-12
            )

    def test_a_loss_of_ones_own_can_decode_too(self):
        def size(M, z, decoded=False):
            x = M.decode(z)
            value = x.square().mean()
            return (value, x) if decoded else value

        objective = Objective(self.e, self.f, self.x, terms={"size": Term(0.1, size)})
        loss, parts = objective(self.x)
        assert passes(objective, self.x) == 1
        assert torch.allclose(parts["size"], self.f(self.e(self.x)).square().mean())
        assert torch.allclose(parts["reconstruction"], objective.unexplained(self.x).mean())
        assert torch.allclose(loss, parts["reconstruction"] + 0.1 * parts["size"])
