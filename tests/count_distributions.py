"""Stand-ins for classes of other packages, with the same names of packages, classes, arguments and
attributes."""

import torch
from torch import distributions as td
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F


class NegativeBinomial(td.Distribution):
    arg_constraints = {
        "mu": td.constraints.greater_than_eq(0),
        "theta": td.constraints.greater_than_eq(0),
    }
    support = td.constraints.nonnegative_integer

    def __init__(
        self,
        total_count=None,
        probs=None,
        logits=None,
        mu=None,
        theta=None,
        scale=None,
        validate_args=False,
    ):
        if logits is not None:
            mu, theta = logits.exp() * total_count, total_count
        self.mu, self.theta = broadcast_all(mu, theta)
        self.scale = scale
        super().__init__(validate_args=validate_args)

    @property
    def mean(self):
        return self.mu

    def log_prob(self, value):
        mu, theta = self.mu, self.theta
        both = torch.log(theta + mu)
        return (
            theta * (theta.log() - both)
            + value * (mu.log() - both)
            + torch.lgamma(value + theta)
            - torch.lgamma(theta)
            - torch.lgamma(value + 1)
        )


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    arg_constraints = {**NegativeBinomial.arg_constraints, "zi_logits": td.constraints.real}

    def __init__(self, mu=None, theta=None, zi_logits=None, scale=None, validate_args=False):
        super().__init__(mu=mu, theta=theta, scale=scale, validate_args=validate_args)
        self.zi_logits, self.mu, self.theta = broadcast_all(zi_logits, self.mu, self.theta)

    @property
    def mean(self):
        return (-self.zi_logits).sigmoid() * self.mu

    def log_prob(self, value):
        count = F.logsigmoid(-self.zi_logits) + super().log_prob(value)
        return torch.where(value == 0, torch.logaddexp(F.logsigmoid(self.zi_logits), count), count)


class Poisson(td.Poisson):
    def __init__(self, rate, validate_args=None, scale=None):
        super().__init__(rate, validate_args=validate_args)
        self.scale = scale


class ZeroInflatedPoisson(td.Distribution):
    """As in pyro."""

    arg_constraints = {"rate": td.constraints.positive, "gate_logits": td.constraints.real}
    support = td.constraints.nonnegative_integer

    def __init__(self, rate, *, gate=None, gate_logits=None, validate_args=None):
        gate_logits = torch.logit(gate) if gate_logits is None else gate_logits
        self.rate, self.gate_logits = broadcast_all(rate, gate_logits)
        super().__init__(self.rate.shape, validate_args=validate_args)

    @property
    def mean(self):
        return (-self.gate_logits).sigmoid() * self.rate

    def log_prob(self, value):
        count = F.logsigmoid(-self.gate_logits) + td.Poisson(self.rate).log_prob(value)
        return torch.where(
            value == 0, torch.logaddexp(F.logsigmoid(self.gate_logits), count), count
        )


for kind, module in (
    (NegativeBinomial, "scvi.distributions._negative_binomial"),
    (ZeroInflatedNegativeBinomial, "scvi.distributions._negative_binomial"),
    (Poisson, "scvi.distributions._negative_binomial"),
    (ZeroInflatedPoisson, "pyro.distributions.zero_inflated"),
):
    kind.__module__ = module
