"""Two descriptions of a module are equal only where nothing changed but the values of weights."""

import copy
import functools
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from riemae.geometry.structure import structure, weights

SCALE = 2.0
OBJECT = object()


class Net(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.inner = inner or nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 3))
        self.register_buffer("shift", torch.ones(3))
        self.offset = torch.ones(3)
        self.power = 1.0
        self.sizes = [2, 3]
        self.options = {"mode": "plain"}
        self.act = F.silu

    def forward(self, z):
        return self.act(self.inner(z)) * self.power * SCALE + self.shift + self.offset


def change_class(net):
    net.inner[1] = nn.Tanh()


def change_hidden_width(net):
    net.inner[0], net.inner[2] = nn.Linear(2, 5), nn.Linear(5, 3)


def change_part(net):
    net.inner[0] = nn.Linear(2, 4)


def change_method(net):
    net.forward = types.MethodType(lambda self, z: z, net)


def change_inner_method(net):
    net.inner[0].forward = lambda z: z


CHANGES = {
    "another class inside": change_class,
    "another width inside": change_hidden_width,
    "a replaced part": change_part,
    "a part more": lambda net: net.inner.append(nn.Tanh()),
    "a part under another name": lambda net: setattr(net, "more", net.inner),
    "training mode": lambda net: net.eval(),
    "training mode of one part": lambda net: net.inner[1].eval(),
    "a number": lambda net: setattr(net, "power", 2.0),
    "a number of another kind": lambda net: setattr(net, "power", 1),
    "a list": lambda net: net.sizes.append(1),
    "a dict": lambda net: net.options.update(mode="other"),
    "a function": lambda net: setattr(net, "act", torch.tanh),
    "a new attribute": lambda net: setattr(net, "flag", True),
    "a tensor's shape": lambda net: setattr(net, "offset", torch.ones(1)),
    "a buffer's dtype": lambda net: setattr(net, "shift", net.shift.double()),
    "dtype": lambda net: net.double(),
    "device": lambda net: net.to("meta"),
    "gradients": lambda net: net.inner[0].weight.requires_grad_(False),
    "a parametrisation": lambda net: parametrizations.weight_norm(net.inner[0]),
    "a forward hook": lambda net: net.inner.register_forward_hook(lambda *args: None),
    "a forward pre-hook": lambda net: net.register_forward_pre_hook(lambda *args: None),
    "a backward hook": lambda net: net.register_full_backward_hook(lambda *args: None),
    "a method of the instance": change_method,
    "a method of a part": change_inner_method,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_shows(change):
    net = Net()
    before = structure(net)
    assert before is not None
    assert structure(net) == before
    assert hash(structure(net)) == hash(before)
    change(net)
    assert structure(net) != before


def test_a_changed_class_shows(monkeypatch):
    net = Net()
    before = structure(net)
    monkeypatch.setattr(Net, "forward", lambda self, z: z)
    assert structure(net) != before
    monkeypatch.undo()
    assert structure(net) == before
    monkeypatch.setattr(nn.Linear, "forward", lambda self, z: z)
    assert structure(net) != before


def test_a_changed_global_shows(monkeypatch):
    net = Net()
    before = structure(net)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert structure(net) != before
    monkeypatch.setitem(globals(), "SCALE", OBJECT)
    assert structure(net) is None


def test_settings_of_torch_show():
    net = Net()
    before = structure(net)
    torch.set_default_dtype(torch.float64)
    try:
        assert structure(net) != before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert structure(net) != before
    hook = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert structure(net) is None
    hook.remove()
    assert structure(net) == before


def test_values_of_weights_are_no_part_of_it():
    net = Net()
    before = structure(net)
    with torch.no_grad():
        net.inner[0].weight.mul_(2)
        net.shift.zero_()
    net.load_state_dict(Net().state_dict())
    net.load_state_dict(Net().state_dict(), assign=True)
    assert structure(net) == before


def test_two_modules_have_two():
    net = Net()
    assert structure(net) != structure(copy.deepcopy(net))


def helper(z):
    return z * SCALE


class Helped(nn.Module):
    def forward(self, z):
        return helper(z)

    @property
    def size(self):
        return len(str(self.training))

    @staticmethod
    def twice(z):
        return z * 2


def test_functions_that_are_called_are_looked_through(monkeypatch):
    net = Helped()
    before = structure(net)
    assert before is not None
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert structure(net) != before
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "helper", lambda z: z)
    assert structure(net) != before


def closed_over(other):
    class Closed(nn.Module):
        def forward(self, z):
            return other(z)

    return Closed()


def attributed(value):
    net = nn.Linear(2, 3)
    net.held = value
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: closed_over(nn.Linear(2, 3)),
        lambda: attributed(object()),
        lambda: attributed([nn.Linear(2, 3)]),
        lambda: attributed(closed_over(nn.Linear(2, 3)).forward.__func__),
        lambda: attributed(functools.partial(F.silu, inplace=False)),
        lambda: attributed(list(range(1000))),
        lambda: torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)),
        lambda: nn.utils.spectral_norm(nn.Linear(2, 3)),
        lambda: nn.LazyLinear(3),
    ],
)
def test_what_cannot_be_looked_at_has_no_description(make):
    assert structure(make()) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(1, 2, 3, padding="same"),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu"),
        lambda: nn.GRU(2, 3),
        lambda: nn.BatchNorm1d(3),
        lambda: parametrizations.orthogonal(nn.Linear(2, 3)),
        Helped,
    ],
)
def test_usual_layers_have_one(make):
    net = make()
    assert structure(net) is not None
    assert structure(net) == structure(net)


def test_weights_are_all_floating_tensors():
    names = [name for name, _ in weights(Net())]
    linear = [f"inner.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")]
    assert sorted(names) == sorted([".shift", ".offset", *linear])


class Listed(nn.Module):
    """Calls modules that it holds in a list."""

    def __init__(self, parts, registered):
        super().__init__()
        self.listed = list(parts)
        if registered:
            self.parts = nn.ModuleList(parts)

    def forward(self, z):
        return sum(part(z) for part in self.listed)


def test_modules_in_a_list_are_known_where_they_are_parts_too():
    parts = [nn.Linear(2, 3), nn.Tanh()]
    net = Listed(parts, registered=True)
    before = structure(net)
    assert before is not None
    assert structure(net) == before
    net.listed[1] = nn.Sigmoid()
    assert structure(net) is None
    assert structure(Listed(parts, registered=False)) is None


def test_an_anonymous_description_is_that_of_other_modules_too():
    one, two = (nn.Tanh() for _ in range(2))
    assert structure(one) != structure(two)
    assert structure(one, anonymous=True) == structure(two, anonymous=True)
    assert structure(one, anonymous=True) != structure(nn.Sigmoid(), anonymous=True)


def test_compiled_modules_have_none():
    assert structure(torch.compile(nn.Linear(2, 3), backend="eager")) is None
    assert structure(nn.Sequential(torch.compile(nn.Linear(2, 3), backend="eager"))) is None
