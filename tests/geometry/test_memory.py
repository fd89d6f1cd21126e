"""What probes find out about a module is taken over by other manifolds of the same module, as long
as nothing of it has changed but the values of its weights."""

import copy
import gc
import threading
import warnings
import weakref

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from riemae import Ensemble, Manifold
from riemae.ambient import (
    Diagonal,
    FeatureMap,
    FisherRao,
    register_family,
    unregister_family,
)
from riemae.exceptions import AmbientError, DecoderError, NonFiniteError, SmoothnessWarning
from riemae.geometry.memory import MEMORY

Z = torch.tensor([[0.3, -0.2], [1.0, 0.5], [-0.4, 0.8]], dtype=torch.float64)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3))
        return nn.Sequential(*layers).double().eval()


class Products(TorchDispatchMode):
    """Counts products with the first weight, one for each pass through the decoder."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.silu.default
        return func(*args, **(kwargs or {}))


def passes(call):
    """Passes of plain values through the activation of :func:`network` during a call."""
    with Products() as seen:
        call()
    return seen.count


def metric(net, z=Z, **options):
    return Manifold(net, **options).metric(z)


@pytest.fixture
def known():
    """A network that a manifold has looked at, and the passes of a warm call."""
    net = network()
    M = Manifold(net)
    M.metric(Z)
    return net, passes(lambda: M.metric(Z))


def test_the_second_manifold_decodes_as_often_as_a_warm_one(known):
    net, warm = known
    assert passes(lambda: metric(copy.deepcopy(net))) > warm + 10
    assert passes(lambda: metric(net)) == warm


def test_results_are_the_same_bits(known):
    net, _ = known
    first = Manifold(copy.deepcopy(net))
    again = Manifold(net)
    for name in ("metric", "jacobian", "eigenvalues", "extrinsic_curvature", "christoffel"):
        assert torch.equal(getattr(first, name)(Z), getattr(again, name)(Z)), name


def test_a_training_loop_probes_once():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def step():
        optimizer.zero_grad()
        Manifold(net).distortion(Z).backward()
        optimizer.step()

    counts = [passes(step) for _ in range(6)]
    assert counts[0] > counts[1] + 10
    assert set(counts[1:]) == {counts[1]}


@pytest.mark.parametrize("call", ["christoffel", "extrinsic_curvature", "riemann"])
def test_every_kind_of_derivative_is_chosen_once(call):
    net = network()
    M = Manifold(net)
    first = passes(lambda: getattr(M, call)(Z))
    warm = passes(lambda: getattr(M, call)(Z))
    assert passes(lambda: getattr(Manifold(net), call)(Z)) == warm < first / 10


def test_another_ambient_metric_is_looked_at_but_not_the_decoder(known):
    net, warm = known
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = passes(lambda: metric(net, ambient=Diagonal(weights)))
    new = passes(lambda: metric(copy.deepcopy(net), ambient=Diagonal(weights)))
    assert found < new - 10


CHANGES = {
    "a replaced part": lambda net: net.__setitem__(0, nn.Linear(2, 8).double()),
    "an appended part": lambda net: net.append(nn.Identity()),
    "training mode": lambda net: net.train(),
    "a flag": lambda net: setattr(net, "flag", 1),
    "a flag of a part": lambda net: setattr(net[1], "flag", 1),
    "a hook": lambda net: net.register_forward_hook(lambda *args: None),
    "a patched method": lambda net: setattr(net, "forward", nn.Sequential.forward.__get__(net)),
    "fewer gradients": lambda net: net[0].requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_module_is_probed_again(known, change):
    net, warm = known
    assert passes(lambda: metric(net)) == warm
    change(net)
    assert passes(lambda: metric(net)) > warm + 10


def test_other_points_are_probed(known):
    net, warm = known
    other = network().float()
    metric(other, Z.float())
    assert passes(lambda: metric(other.double())) > warm + 10
    assert passes(lambda: metric(net, chunk_size=2)) > warm + 10


def test_modules_never_share(known):
    net, warm = known

    class Equal(nn.Sequential):
        def __eq__(self, other):
            return True

        def __hash__(self):
            return 1

    assert passes(lambda: metric(copy.deepcopy(net))) > warm + 10
    one, two = (Equal(*network()).double().eval() for _ in range(2))
    metric(one)
    assert passes(lambda: metric(two)) > warm + 10


def test_methods_of_a_module_never_share():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, z):
            return self.net(z)

        def coupled(self, z):
            return self.net(z - z.mean(0))

    two = Two().eval()
    metric(two)
    metric(two.forward)
    with pytest.raises(DecoderError, match="other rows"):
        metric(two.coupled)


@pytest.mark.parametrize("wrap", ["lambda", "output"])
def test_functions_are_probed_every_time(known, wrap):
    net, warm = known
    for _ in range(2):
        if wrap == "lambda":
            found = passes(lambda: metric(lambda z: net(z)))
        else:
            found = passes(lambda: metric(net, output=lambda x: x))
        assert found > warm + 10


class Gated(nn.Module):
    """Rows notice each other once the gate has opened."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z):
        x = self.net(z)
        return x + self.gate * x.mean(0)


def test_a_weight_that_was_zero_hides_nothing():
    gated = Gated().eval()
    metric(gated)
    metric(gated)
    with torch.no_grad():
        gated.gate.fill_(1.0)
    with pytest.raises(DecoderError, match="other rows"):
        metric(gated)
    gated.load_state_dict(Gated().state_dict())
    metric(gated)
    gated.gate.data.fill_(1.0)
    with pytest.raises(DecoderError, match="other rows"):
        metric(gated)


class Branched(nn.Module):
    """Rows notice each other where a weight is large."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.switch = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, z):
        x = self.net(z)
        return x + x.mean(0) if self.switch > 2 else x


def test_a_decoder_is_probed_again_now_and_then():
    branched = Branched().eval()
    metric(branched)
    with torch.no_grad():
        branched.switch.fill_(3.0)
    with pytest.raises(DecoderError, match="other rows"):  # noqa: PT012
        for _ in range(8):
            metric(branched)


def test_probes_become_rare():
    net = network()
    counts = [passes(lambda: metric(net)) for _ in range(70)]
    usual = min(counts)
    probed = [i + 1 for i, count in enumerate(counts) if count > usual + 10]
    assert probed == [1, 8, 64]


def test_a_large_batch_is_looked_at_once():
    net = network()
    many = Z.repeat(40, 1) + torch.arange(120, dtype=torch.float64)[:, None] / 100
    metric(net)
    first = passes(lambda: metric(net, many))
    second = passes(lambda: metric(net, many))
    assert second < first


class Counting(nn.Module):
    """Changes at every call."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.calls = 0

    def forward(self, z):
        self.calls += 1
        return self.net(z)


def test_a_module_that_changes_as_it_is_called_is_probed_every_time(known):
    _, warm = known
    net = Counting().eval()
    metric(net)
    assert passes(lambda: metric(net)) > warm + 10


def test_a_manifold_that_outlives_a_change_tells_others_nothing():
    net = network()
    old = Manifold(net)
    old.metric(Z)
    net[1].inplace = True
    old.christoffel(Z)  # chooses a mode for the changed module
    net[1].inplace = False
    M = Manifold(net)
    M.metric(Z)
    warm = Manifold(copy.deepcopy(net))
    warm.christoffel(Z)
    warm = passes(lambda: warm.christoffel(Z))
    assert passes(lambda: M.christoffel(Z)) > warm


def test_values_that_are_not_finite_are_still_refused(known):
    net, _ = known
    with torch.no_grad():
        net[2].bias[0] = torch.nan
    with pytest.raises(NonFiniteError):
        metric(net)
    with pytest.raises(NonFiniteError):
        metric(net, ambient=Diagonal(torch.ones(3, dtype=torch.float64)))


def test_kinks_are_announced_by_every_manifold():
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    for _ in range(3):
        with pytest.warns(SmoothnessWarning):
            Manifold(net).extrinsic_curvature(Z, ridge=1e-3)


def test_a_smooth_module_is_looked_at_for_kinks_once():
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = passes(lambda: Manifold(net).extrinsic_curvature(Z))
        second = passes(lambda: Manifold(net).extrinsic_curvature(Z))
    assert second < first / 5


def test_a_module_is_freed_and_forgotten():
    net = network()
    reference = weakref.ref(net)
    Manifold(net).metric(Z)
    Manifold(net).metric(Z)
    count = len(MEMORY)
    del net
    gc.collect()
    assert reference() is None
    assert len(MEMORY) < count


def test_a_module_of_a_class_of_its_own_is_freed():
    class Own(nn.Sequential):
        def forward(self, z):
            return super().forward(z)

    net = Own(*network()).eval()
    reference = weakref.ref(net)
    metric(net)
    del net
    gc.collect()
    assert reference() is None


def test_nothing_is_written_into_modules(known):
    net, _ = known
    fresh = network()
    for part, other in zip(net.modules(), fresh.modules(), strict=True):
        assert vars(part).keys() == vars(other).keys()


def test_threads_find_out_together():
    net = network()
    expected = metric(copy.deepcopy(net))
    found = []

    def work():
        found.append(metric(net))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(g, expected) for g in found)


class Head(nn.Module):
    """A decoder that returns distributions."""

    def __init__(self, kind, parts):
        super().__init__()
        self.net = network()
        self.kind = kind
        self.parts = parts

    def forward(self, z):
        x = self.net(z)
        return self.kind(*(x, x.exp())[: self.parts])


def heads():
    normal, poisson = Head(td.Normal, 2), Head(td.Poisson, 1)
    poisson.net.append(nn.Softplus())
    return {
        "normal": normal,
        "poisson": poisson,
        "ensemble": Ensemble([normal, Head(td.Normal, 2)]),
    }


WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
SCALE = 1.0


def stretched(x):
    return SCALE * (1 + x.square())


AMBIENTS = {
    "an object": lambda: Diagonal(WEIGHTS),
    "a tensor": lambda: WEIGHTS,
    "a function": lambda: stretched,
    "a network": lambda: FeatureMap(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()),
    "named": lambda: FisherRao("poisson"),
}


def look(net, **options):
    """First and second derivatives."""
    M = Manifold(net, **options)
    return torch.cat([M.metric(Z), M.christoffel(Z).flatten(1, 2)], 1)


@pytest.mark.parametrize("name", ["normal", "poisson", "ensemble"])
def test_decoders_of_distributions_are_known_again(name):
    net = heads()[name].eval()
    expected = look(net)
    M = Manifold(net)
    warm = passes(lambda: (M.metric(Z), M.christoffel(Z)))
    warm = passes(lambda: (M.metric(Z), M.christoffel(Z)))
    assert passes(lambda: look(net)) <= warm
    assert torch.equal(look(net), expected)


@pytest.mark.parametrize("make", AMBIENTS.values(), ids=AMBIENTS)
def test_ambient_metrics_are_known_again(make):
    net = network()
    if make is AMBIENTS["named"]:
        net.append(nn.Softplus())
    ambient = make()
    expected = look(net, ambient=ambient)
    M = Manifold(net, ambient=ambient)
    warm = passes(lambda: (M.metric(Z), M.christoffel(Z)))
    warm = passes(lambda: (M.metric(Z), M.christoffel(Z)))
    # A tensor makes a metric of its own each time, which is looked at.
    allowed = 2 if isinstance(ambient, torch.Tensor) else 0
    assert passes(lambda: look(net, ambient=ambient)) <= warm + allowed
    assert torch.equal(look(net, ambient=ambient), expected)


def test_a_changed_ambient_metric_is_looked_at_again(monkeypatch):
    net = network()
    look(net, ambient=stretched)
    look(net, ambient=stretched)
    monkeypatch.setitem(globals(), "SCALE", -1.0)
    with pytest.raises(AmbientError):
        look(net, ambient=stretched)


def test_a_changed_network_of_an_ambient_metric_is_looked_at_again():
    net = network()
    inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    ambient = FeatureMap(inner)
    look(net, ambient=ambient)
    usual = passes(lambda: look(net, ambient=ambient))
    inner[1] = nn.Sigmoid()
    assert passes(lambda: look(net, ambient=ambient)) > usual + 10


def test_an_ambient_metric_that_closes_over_something_is_looked_at_every_time():
    net = network()
    weight = torch.ones(3, dtype=torch.float64)

    def ambient(x):
        return weight.expand_as(x)

    for _ in range(2):
        metric(net, ambient=ambient)
    weight.neg_()
    with pytest.raises(AmbientError):
        metric(net, ambient=ambient)


def test_ambient_metrics_are_refused_beside_known_ones():
    net = network()
    metric(net, ambient=stretched)
    with pytest.raises(AmbientError):
        metric(net, ambient=lambda x: -1 - x.square())
    with pytest.raises(AmbientError):
        metric(net, ambient=torch.ones(4, dtype=torch.float64))


class Warmed(nn.Module):
    """Has a parameter without a row for each point, which may change with the weights."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.temperature = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, z):
        return td.RelaxedBernoulli(self.temperature, logits=self.net(z))


def test_constants_that_are_learned_are_read_by_every_manifold():
    net = Warmed().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        M = Manifold(net)
        M.metric(Z)
        warm = passes(lambda: M.metric(Z))
        assert passes(lambda: metric(net)) > warm + 10


def test_a_family_that_was_registered_since_is_used():
    net = heads()["normal"].eval()
    before = metric(net)
    metric(net)

    def information(p):
        return torch.diag_embed(torch.stack([torch.ones_like(p["loc"])] * 2, -1))

    register_family("own", td.Normal, ("loc", "scale"), information)
    try:
        assert not torch.equal(metric(net), before)
    finally:
        unregister_family("own")
    assert torch.equal(metric(net), before)


@pytest.mark.parametrize("ambient", [None, Diagonal(WEIGHTS), stretched])
def test_manifolds_are_freed_at_once(ambient):
    net = network()
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            M = Manifold(net, ambient=ambient)
            M.metric(Z)
            reference = weakref.ref(M._pullback)
            del M
            assert reference() is None
    finally:
        gc.enable()


def test_an_ambient_metric_is_freed_while_its_decoder_lives():
    net = network()
    ambient = FeatureMap(nn.Linear(3, 4).double())
    reference = weakref.ref(ambient)
    for _ in range(2):
        metric(net, ambient=ambient)
    del ambient
    gc.collect()
    assert reference() is None
