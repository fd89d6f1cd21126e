"""Chains of layers: their derivatives, what counts as one, and that nothing of a module is kept."""

import pytest
import torch
from torch import nn
from torch.func import hessian, jacfwd, vmap
from torch.nn.utils import parametrizations, prune

from riemae import Manifold
from riemae.autoencoders.networks import Colour, build_decoder
from riemae.differential.chain import chain_of
from riemae.differential.derivatives import Differential
from riemae.differential.tape import Pairs
from riemae.exceptions import DecoderError

ACTIVATIONS = {
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": lambda: nn.Softplus(beta=2.0, threshold=1.0),
    "gelu": nn.GELU,
    "elu": lambda: nn.ELU(alpha=0.7),
}


def mlp(activation=nn.SiLU, dtype=torch.float64, outputs=5):
    torch.manual_seed(3)
    layers = [nn.Linear(3, 17), activation(), nn.Linear(17, 9, bias=False), activation()]
    return nn.Sequential(*layers, nn.Linear(9, outputs)).to(dtype)


def coloured():
    colour = Colour((2, 3)).double()
    colour.center.copy_(torch.arange(6.0).view(2, 3))
    colour.scale.fill_(2.5)
    return nn.Sequential(mlp(outputs=6), colour)


DECODERS = {
    **{name: (lambda kind=kind: mlp(kind)) for name, kind in ACTIVATIONS.items()},
    "one layer": lambda: nn.Sequential(nn.Linear(3, 4)).double(),
    "no layer with weights": lambda: nn.Sequential(nn.Tanh(), nn.SiLU()),
    "activation last": lambda: nn.Sequential(mlp(), nn.Sequential(nn.Sequential(nn.Tanh()))),
    "autoencoder's": coloured,
}


@pytest.fixture
def z():
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=DECODERS)
def net(request):
    return DECODERS[request.param]()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_every_pass_agrees_with_torch_func(net, z):
    def flat(point):
        return net(point[None]).reshape(-1)

    assert chain_of(net, z) is not None
    map_ = Differential(net)
    x = net(z).detach().flatten(1)
    j = vmap(jacfwd(flat))(z).detach()
    h = vmap(hessian(flat))(z).detach()
    u = torch.randn_like(z)
    v = torch.randn_like(z)
    w = torch.randn_like(x)
    m = z.shape[1]
    along_u = (j @ u[..., None])[..., 0]
    bent = torch.einsum("bdij,bi,bj->bd", h, u, v)
    with torch.no_grad():
        close(map_.value(z), x)
        for found, expected in zip(map_.value_and_jacobian(z), (x, j), strict=True):
            close(found, expected)
        close(map_.jvp(z, u)[1], along_u)
        close(map_.vjp(z, w)[1], torch.einsum("bdi,bd->bi", j, w))
        _, tangent, pulled = map_.gram_product(z, u)
        close(tangent, along_u)
        close(pulled, torch.einsum("bdi,bd->bi", j, along_u))
        close(map_.second_derivative(z, u, v), bent)
        close(map_.hessian(z), h)
        # A direction of one's own in front of the coordinates, and pairs with one of them.
        both = torch.cat([u[:, None], torch.eye(m, dtype=z.dtype).expand(len(z), m, m)], 1)
        _, first, second = map_.jets(z, both, Pairs([0, 0], [0, 2]))
        close(first, torch.cat([along_u[..., None], j], -1))
        close(second[..., 0], torch.einsum("bdij,bi,bj->bd", h, u, u))
        close(second[..., 1], torch.einsum("bdij,bi->bdj", h, u)[..., 1])
    close(map_.contraction(z, w), torch.einsum("bd,bdij->bij", w, h))
    found = map_.expansion(z, torch.sin)
    close(found[1], j)
    close(found[2], torch.einsum("bd,bdij->bij", torch.sin(x), h))


def test_the_numbers_are_those_of_jets(net, z):
    by_jets = Differential(lambda z: net(z))
    by_chain = Differential(net)
    assert chain_of(lambda z: net(z), z) is None
    with torch.no_grad():
        for ours, theirs in zip(by_chain.second_jet(z), by_jets.second_jet(z), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)
        assert torch.equal(by_chain.value(z), by_jets.value(z))


def test_gradients_reach_points_and_weights(z):
    net = mlp()
    map_ = Differential(net)
    z.requires_grad_()
    found = torch.autograd.grad(map_.jacobian(z).square().sum(), [z, net[0].weight])
    expected_j = vmap(jacfwd(lambda point: net(point)))(z)
    expected = torch.autograd.grad(expected_j.square().sum(), [z, net[0].weight])
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)
    (slope,) = torch.autograd.grad(map_.value(z).sum(), z)
    close(slope, torch.autograd.grad(net(z).sum(), z)[0])


def test_single_precision(z):
    net = mlp(dtype=torch.float32)
    with torch.no_grad():
        found = Differential(net).value_and_jacobian(z.float())
    assert found[1].dtype == torch.float32
    expected = vmap(jacfwd(net))(z.float())
    torch.testing.assert_close(found[1], expected.detach(), rtol=1e-4, atol=1e-5)


def test_nothing_that_was_given_is_overwritten(net, z):
    u = torch.randn(6, 1, 3, dtype=torch.float64)
    v = torch.randn_like(z)
    given = [x.clone() for x in (z, u, v)]
    map_ = Differential(net)
    with torch.no_grad():
        map_.jets(z, u.expand(6, 2, 3).contiguous())
        map_.jets(z, u)
        map_.gram_product(z, v)
        map_.taylor(z, v)
    for x, before in zip((z, u, v), given, strict=True):
        assert torch.equal(x, before)


# What is no chain.


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x).sin()


class OwnSequence(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(register):
    net = mlp()
    getattr(net[2], register)(lambda *given: None)
    return net


def with_own_forward():
    net = mlp()
    net[1].forward = torch.cos
    return net


def pruned():
    net = mlp()
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


def parametrised():
    net = mlp()
    parametrizations.weight_norm(net[0])
    return net


def compiled_in_place():
    net = mlp()
    net[0].compile(backend="eager")
    return net


OTHERS = {
    "forward hook": lambda: hooked("register_forward_hook"),
    "forward pre-hook": lambda: hooked("register_forward_pre_hook"),
    "backward hook": lambda: hooked("register_full_backward_hook"),
    "own forward": with_own_forward,
    "pruned": pruned,
    "parametrised": parametrised,
    "compiled": compiled_in_place,
    "subclass of a layer": lambda: nn.Sequential(Own(3, 4)).double(),
    "subclass of the sequence": lambda: OwnSequence(nn.Linear(3, 4)).double(),
    "another layer": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).double(),
    "approximate gelu": lambda: mlp(lambda: nn.GELU(approximate="tanh")),
    "other width": lambda: nn.Sequential(nn.Linear(4, 4)).double(),
    "other dtype": lambda: mlp(dtype=torch.float32),
    "nothing": nn.Sequential,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_chain(name, z):
    assert chain_of(OTHERS[name](), z) is None


def test_no_chain_where_torch_does_more(z, monkeypatch):
    net = mlp()
    with torch.autocast("cpu"):
        assert chain_of(net, z) is None
    inside = []
    vmap(lambda point: inside.append(chain_of(net, point[None])) or point)(z)
    assert inside == [None]
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    assert chain_of(net, z) is None
    handle.remove()
    assert chain_of(net, z) is not None
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert chain_of(net, z) is None


# Nothing is remembered.


def test_changes_of_a_module_are_noticed(z):
    net = mlp().requires_grad_(False)
    manifold = Manifold(net)

    def expected():
        j = vmap(jacfwd(net))(z)
        return j.mT @ j

    close(manifold.metric(z), expected())
    net[0].weight.mul_(1.5)
    close(manifold.metric(z), expected())
    net[4].weight = nn.Parameter(torch.randn_like(net[4].weight), requires_grad=False)
    close(manifold.metric(z), expected())
    net[1] = nn.Tanh()
    close(manifold.metric(z), expected())
    net[2].register_forward_hook(lambda layer, given, out: out.sin())
    close(manifold.metric(z), expected())
    net[4] = nn.Linear(9, 7).double()
    with pytest.raises(DecoderError, match="shape"):
        manifold.metric(z)


def test_a_decoder_of_an_autoencoder_is_a_chain(z):
    center = torch.randn(4, 4, dtype=torch.float64)
    net = build_decoder(center, torch.tensor(2.0).double(), 3, (16, 16), "softplus").double()
    manifold = Manifold(net)
    manifold.metric(z)
    assert chain_of(net, z) is not None
    assert manifold.decode(z).shape == (6, 4, 4)
    assert torch.equal(manifold.decode(z), net(z))


def test_a_chain_makes_no_jets(z, monkeypatch):
    def refused(*given):
        raise AssertionError("a jet")

    net = mlp()
    by_chain = Differential(net)
    by_jets = Differential(lambda z: net(z))
    with torch.no_grad():
        for map_ in (by_chain, by_jets):
            map_.expansion(z, torch.sin)
            map_.jacobian(z)
        monkeypatch.setattr("riemae.differential.modes.taylor.Jet", refused)
        by_chain.expansion(z, torch.sin)
        by_chain.jacobian(z)
        with pytest.raises(AssertionError, match="a jet"):
            by_jets.jacobian(z)


# Closed forms.


@pytest.mark.parametrize("name", ["softplus", "gelu", "elu"])
def test_closed_forms_on_both_sides(name):
    function = ACTIVATIONS[name]()
    x = torch.tensor([[-30.0], [-2.0], [-0.1], [0.3], [0.6], [2.0], [30.0]], dtype=torch.float64)
    start = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(start).sum(), start, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), start)
    ones = torch.ones_like(x)
    for map_ in (Differential(nn.Sequential(function)), Differential(lambda z: function(z))):
        with torch.no_grad():
            close(map_.jacobian(x)[:, 0], slope.detach())
            close(map_.taylor(x, ones)[2], bend)
