"""Priors of variational autoencoders: densities on the latent space that can be sampled.

===========  =======================================================================================
name         density
===========  =======================================================================================
normal       the standard normal; its divergence is known in closed form
mixture      ``Σ w_c N(μ_c, diag σ_c²)`` with learned weights, means and deviations
vamp         the VampPrior (Tomczak & Welling 2018), ``Σ w_c q(z | u_c)``: the mixture of what the
             encoder says of learned pseudo-inputs u_c, which start as samples of the data
===========  =======================================================================================

For the last two the divergence of a sample is estimated by its own code, ``log q(z|x) − log p(z)``:
unbiased, and negative in single draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from riemae.numerics.checks import expect_choice, expect_range
from riemae.numerics.random import gaussian

PRIORS = ("normal", "mixture", "vamp")
Encoder = Callable[[Tensor], Tensor]


def log_normal(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:  # (…, m) -> (…)
    """Logarithm of a normal density with independent entries."""
    square = (z - mean).square() * (-log_variance).exp()
    return -(square + log_variance + math.log(2 * math.pi)).sum(-1) / 2


class Mixture(nn.Module):
    """A mixture of normal distributions with diagonal covariances.

    Args:
        components: Their number.
        latent_dim: m.
    """

    def __init__(self, components: int, latent_dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(components, latent_dim, generator=generator)
        self.means = nn.Parameter(means)
        self.log_variances = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def components(self, encoder: Encoder) -> tuple[Tensor, Tensor]:  # -> (c, m), (c, m)
        """Means and log variances.

        Args:
            encoder: Not used.
        """
        return self.means, self.log_variances

    def log_density(self, z: Tensor, encoder: Encoder) -> Tensor:  # (k, m) -> (k,)
        """Logarithm of the density.

        Args:
            z: Codes.
            encoder: Data to means and log variances ``(k, 2m)``.
        """
        means, log_variances = self.components(encoder)
        each = log_normal(z[:, None], means, log_variances)  # (k, c)
        return (each + self.logits.log_softmax(0)).logsumexp(1)

    def sample(self, n: int, encoder: Encoder, generator: torch.Generator | None) -> Tensor:
        """Codes ``(n, m)``.

        Args:
            n: Their number.
            encoder: As in :meth:`log_density`.
            generator: Source of the randomness.
        """
        means, log_variances = self.components(encoder)
        shares = self.logits.softmax(0)
        device = shares.device if generator is None else generator.device
        chosen = torch.multinomial(shares.to(device), n, replacement=True, generator=generator)
        chosen = chosen.to(means.device)
        spread = (log_variances[chosen] / 2).exp()
        return means[chosen] + spread * gaussian(spread, generator)


class Vamp(Mixture):
    """The VampPrior.

    Args:
        components: Number of pseudo-inputs.
        data: ``(n, *shape)``, from which they are taken, evenly spread over its order.
    """

    def __init__(self, components: int, data: Tensor) -> None:
        nn.Module.__init__(self)
        rows = torch.linspace(0, len(data) - 1, components).round().long()
        self.inputs = nn.Parameter(data[rows.to(data.device)].detach().clone())
        self.logits = nn.Parameter(torch.zeros(components).to(data))

    def components(self, encoder: Encoder) -> tuple[Tensor, Tensor]:  # -> (c, m), (c, m)
        """What the encoder says of the pseudo-inputs.

        Args:
            encoder: Data to means and log variances.
        """
        means, log_variances = encoder(self.inputs).chunk(2, -1)
        return means, log_variances


def check_prior(where: str, name: str, components: int) -> None:
    """Refuse an unknown prior.

    Args:
        where: The call that asks, for the error.
        name: Of the prior.
        components: Of the mixture.

    Raises:
        OptionError: For an unknown name, or fewer than one component.
    """
    expect_choice(where, "prior", name, PRIORS)
    expect_range(where, "components", components, 1, integer=True, hint="Try components=10.")


def prior_of(name: str, components: int, data: Tensor, latent_dim: int) -> Mixture | None:
    """A new prior in the dtype of the data; None for the standard normal.

    Args:
        name: Of the prior.
        components: Of the mixture.
        data: What the autoencoder is trained on.
        latent_dim: m.
    """
    if name == "normal":
        return None
    if name == "vamp":
        return Vamp(components, data)
    return Mixture(components, latent_dim).to(data)
