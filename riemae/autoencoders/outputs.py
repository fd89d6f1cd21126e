"""What the numbers of a decoder stand for under a likelihood: expected data, or distributions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from riemae.autoencoders.likelihoods import Likelihood


class Mean(nn.Module):
    """Codes to expected data."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, z: Tensor, *condition: Any) -> Tensor:  # (k, m) -> (k, *shape)
        """``E[x | z]``, or ``E[x | z, c]``."""
        return self.likelihood.mean(self.decoder(z, *condition))


class Distributions(nn.Module):
    """Codes to distributions of the data."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, z: Tensor, *condition: Any) -> Any:  # (k, m) -> distribution
        """``p(x | z)``, over ``(k, *shape)``, or ``p(x | z, c)``."""
        return self.likelihood.distribution(self.decoder(z, *condition))
