"""What a training step and a warm call may ask of torch: operations, and numbers read back.

An operation costs a launch on an accelerator; a number that is read back makes it wait. The limits
are about a twentieth above what is needed at present.
"""

import pytest
import torch
from operations import counted
from torch import nn

from riemae import Manifold
from riemae.autoencoders import AE
from riemae.autoencoders.module import GeometricModule
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.terms import Variation
from riemae.exceptions import NonFiniteError, SingularMetricError

DATA = 12
LIMITS = {  # operations, forward and backward, and reads
    "AE": (160, 0),
    "IRAE": (470, 1),
    "IRAE by probes": (560, 1),
    "NRAE(1)": (375, 1),
    "NRAE(2)": (580, 1),
    "MECAE": (905, 1),
    "MICAE": (1070, 1),
}
VARIANTS = {
    "AE": {},
    "IRAE": {"terms": {"relaxed_distortion": 0.1}},
    "IRAE by probes": {"terms": {"relaxed_distortion": 0.1}, "m": 3},
    "NRAE(1)": {"variation": Variation(order=1)},
    "NRAE(2)": {"variation": Variation(order=2)},
    "MECAE": {"terms": {"extrinsic_curvature": 0.1}},
    "MICAE": {"terms": {"intrinsic_curvature": 0.1}},
}
CALLS = {  # of a manifold, in float64, without gradient
    "metric": (82, 3),
    "distortion": (93, 2),
    "riemann": (280, 4),
    "scalar_curvature": (300, 4),
    "extrinsic_curvature": (330, 4),
}


def mlp(*widths):
    layers = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def objective(terms=None, variation=None, m=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(32, DATA)
        coders = mlp(DATA, 16, 16, 16, 16, m), mlp(m, 16, 16, 16, 16, DATA)
    return Objective(*coders, x, terms=terms, variation=variation), x


def step(loss_of, x):
    generator = torch.Generator().manual_seed(1)
    loss = loss_of(x, x.roll(1, 0), generator)[0]
    loss.backward()
    return loss


@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_step_stays_within_its_budget(name):
    of, x = objective(**VARIANTS[name])
    for _ in range(10):  # modes are looked at again at the eighth call
        step(of, x)
    counts = counted(lambda: step(of, x))
    operations, reads = LIMITS[name]
    assert counts["reads"] <= reads
    assert counts["operations"] <= operations


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "AE"])
def test_checks_in_one_look_change_no_bit(name, monkeypatch):
    of, x = objective(**VARIANTS[name])
    step(of, x)
    of.zero_grad()
    loss = step(of, x)
    gradients = [p.grad.clone() for p in of.parameters()]
    of.zero_grad()
    monkeypatch.setattr("riemae.autoencoders.objective.in_one_look", lambda f, generator: f())
    assert torch.equal(step(of, x), loss)
    again = [p.grad for p in of.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))


def test_derivatives_where_the_decoder_has_no_value_are_not_used():
    of, x = objective(**VARIANTS["IRAE"])
    step(of, x)
    with torch.no_grad():
        of.decoder[-1].bias[0] = torch.nan
    assert step(of, x).isnan()


@pytest.mark.parametrize("name", ["NRAE(1)", "MECAE"])
def test_values_that_are_not_finite_are_named_as_ever(name):
    of, x = objective(**VARIANTS[name])
    step(of, x)
    with torch.no_grad():
        of.decoder[-1].bias[0] = torch.nan
    with pytest.raises((NonFiniteError, SingularMetricError), match="points"):
        step(of, x)


def test_a_singular_metric_is_named_as_ever():
    of, x = objective(terms={"extrinsic_curvature": 0.1})
    of.terms["extrinsic_curvature"].options["ridge"] = 0.0
    step(of, x)
    with torch.no_grad():
        of.decoder[0].weight[:, 1] = 0
    with pytest.raises(SingularMetricError, match="32 of 32"):
        step(of, x)


def test_a_step_of_the_module_reads_the_loss_besides():
    of, x = objective(terms={"relaxed_distortion": 0.1})
    module = GeometricModule.of(of)
    module.history = {"loss": [1.0]}
    for _ in range(10):
        module.training_step(x, 0)
    assert counted(lambda: module.training_step(x, 0))["reads"] <= 2


@pytest.mark.parametrize("name", CALLS)
def test_a_warm_call_stays_within_its_budget(name):
    _, x = objective()
    decoder = mlp(2, 16, 16, 16, 16, DATA).double().eval().requires_grad_(False)
    z = x[:, :2].double()
    M = Manifold(decoder)
    for _ in range(2):
        getattr(M, name)(z)
    operations, reads = CALLS[name]
    counts = counted(lambda: getattr(M, name)(z))
    assert counts["reads"] <= reads
    assert counts["operations"] <= operations


def test_a_fit_asks_for_little_more_than_a_plain_loop():
    """Same networks, batches and optimizer: 1.3 times the operations at most."""
    x = torch.randn(320, DATA, generator=torch.Generator().manual_seed(0))
    options = {"latent_dim": 2, "hidden": (16, 16), "batch_size": 32, "device": "cpu"}
    short, long = (AE(epochs=epochs, **options) for epochs in (1, 3))
    first = counted(lambda: short.fit(x))["operations"]
    both = counted(lambda: long.fit(x))["operations"]
    fit = (both - first) / 20  # per step

    of = long.objective_.requires_grad_().train()
    encoder, decoder = of.encoder, of.decoder
    optimizer = torch.optim.AdamW(of.parameters(), lr=1e-3, fused=True)

    def loop():
        order = torch.randperm(len(x))
        for i in range(0, len(x), 32):
            batch = x[order[i : i + 32]]
            loss = (decoder(encoder(batch)) - batch).square().sum(1).mean() / of.null
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    loop()
    plain = counted(loop)["operations"] / 10
    assert fit <= 1.3 * plain
