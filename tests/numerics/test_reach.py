"""All that a decoder refers to is found, moved and copied: closures, globals, defaults, methods,
computed weights."""

import copy
import functools

import pytest
import torch
from torch import nn

from riemae import Ensemble, Manifold, ambient
from riemae.autoencoders import AE
from riemae.exceptions import DecoderError, DifferentiationError
from riemae.numerics import reach


def network(inputs=2, outputs=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs)).eval()


NET = network()
DOUBLE = copy.deepcopy(NET).double()
CENTRES = torch.linspace(-1, 1, 10).view(5, 2)


class Model:
    """Not a module itself, like the models of many packages."""

    def __init__(self):
        self.module = network()

    def decode(self, z):
        return self.module(z)


MODEL = Model()


class Constant(nn.Module):
    """A constant that is not a buffer, and a function that refers to a tensor."""

    def __init__(self):
        super().__init__()
        self.net, self.shift = network(), torch.ones(4)
        scale = torch.full((4,), 2.0)
        self.last = lambda x: x * scale

    def forward(self, z):
        return self.last(self.net(z) + self.shift)


def helper(z):
    return NET(z)


def closure(net):
    return lambda z: net(z)


def twice(f):
    return lambda z: 2 * f(z)


def listed(nets):
    return lambda z: nets[0](z) + nets[1]["b"](z)


def recursive():
    net = network()

    def f(z, depth=2):
        return net(z) if not depth else f(z, depth - 1)

    return f


KINDS = {
    "module": NET,
    "bound method of a module": NET.forward,
    "global": lambda z: NET(z),
    "tensor": lambda z: (z @ CENTRES.mT).tanh(),
    "closure": closure(network()),
    "closures of closures": twice(twice(closure(network()))),
    "helper": lambda z: helper(z)[:, :3],
    "partial": functools.partial(lambda net, z: net(z), network()),
    "default": lambda z, net=network(): net(z),  # noqa: B008 (what is to be found)
    "keyword": lambda z, *, net=network(): net(z),  # noqa: B008
    "bound method of an object": MODEL.decode,
    "object": lambda z: MODEL.decode(z),
    "list and dict": listed([network(), {"b": network()}]),
    "constants of a module": Constant().eval(),
    "recursion": recursive(),
    "comprehension": lambda z: sum(f(z) for f in [NET, MODEL.module]),
}


def points(n=3, dtype=torch.float32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_to_another_dtype(kind):
    f, z = KINDS[kind], points()
    M = Manifold(f)
    before = M.metric(z)
    N = M.to(dtype=torch.float64)
    after = N.metric(z.double())
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before, rtol=1e-5, atol=1e-6)
    # The numbers have float64's accuracy, and are not converted from float32.
    assert float((after - before.double()).detach().abs().max()) > 0
    # The original stays.
    assert torch.equal(M.metric(z), before)
    assert NET[0].weight.dtype == MODEL.module[0].weight.dtype == CENTRES.dtype == torch.float32
    assert torch.equal(Manifold(f).metric(z), before)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "tensor"])
def test_modules_are_found(kind):
    found = reach.modules(KINDS[kind])
    assert found
    assert all(isinstance(m, nn.Module) for m in found)


def test_a_network_that_two_functions_share_is_copied_once():
    net = network()
    pair = reach.moved((closure(net), twice(closure(net))), dtype=torch.float64)
    first, second = (reach.modules(f)[0] for f in pair)
    assert first is second
    assert first is not net


def test_functions_without_tensors_are_shared():
    assert reach.moved(torch.sin) is torch.sin
    f = lambda z: z.sin()  # noqa: E731 (one expression)
    assert reach.moved(f, dtype=torch.float64) is f


def test_ambient_functions_come_along():
    weights = torch.linspace(1, 2, 4)
    M = Manifold(NET, ambient=lambda x: weights.expand_as(x))
    z = points()
    torch.testing.assert_close(M.to(dtype=torch.float64).metric(z.double()).float(), M.metric(z))
    assert weights.dtype == torch.float32
    phi = Manifold(NET, ambient=ambient.FeatureMap(closure(network(4, 3))))
    torch.testing.assert_close(
        phi.to(dtype=torch.float64).metric(z.double()).float(), phi.metric(z)
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
class TestComputedWeights:
    """``torch.nn.utils.weight_norm`` holds weights that are not leaves."""

    def decoder(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(
                nn.utils.weight_norm(nn.Linear(2, 8)), nn.Tanh(), nn.Linear(8, 4)
            ).eval()

    def test_to(self):
        M, z = Manifold(self.decoder()), points()
        torch.testing.assert_close(
            M.to(dtype=torch.float64).metric(z.double()).float(), M.metric(z)
        )

    def test_ensemble(self):
        decoder, z = self.decoder(), points()
        other = {name: 1.5 * x for name, x in decoder.state_dict().items()}
        E = Ensemble.from_states(decoder, [decoder.state_dict(), other])
        first = Manifold(E).members[0].metric(z)
        torch.testing.assert_close(first, Manifold(decoder).metric(z))

    def test_autoencoder(self):
        decoder = self.decoder()
        kept = {name: x.clone() for name, x in decoder.state_dict().items()}
        model = AE(latent_dim=2, decoder=decoder, hidden=(8,), epochs=1).fit(torch.randn(32, 4))
        assert model.manifold_.metric(points()).isfinite().all()
        for name, x in decoder.state_dict().items():
            assert torch.equal(x, kept[name])


class TestSentences:
    def test_another_dtype(self):
        with pytest.raises(
            DecoderError, match=r"another dtype than torch\.float64.*torch\.float32.*M\.to"
        ):
            Manifold(lambda z: NET(z)).metric(points(dtype=torch.float64))

    def test_weights_of_inference_mode(self):
        with torch.inference_mode():
            net = nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 3))
        for call in (Manifold(net).metric, Manifold(lambda z: net(z)).metric):
            with pytest.raises(DifferentiationError, match="inference_mode.*load_state_dict"):
                call(points())

    def test_points_of_inference_mode(self):
        with torch.inference_mode():
            z = points() * 1
        torch.testing.assert_close(Manifold(NET).decode(z), NET(points()))
        torch.testing.assert_close(Manifold(NET).metric(z), Manifold(NET).metric(points()))

    @pytest.mark.parametrize(
        ("f", "exact", "spacing"),
        [
            (lambda z: NET(z.float()).double().bfloat16().double(), lambda z: DOUBLE(z), 2**-7),
            (lambda z: z.half().double().sin(), torch.sin, 2**-10),
            (
                lambda z: torch.cat([z, z.float().exp().double()], -1),
                lambda z: torch.cat([z, z.exp()], -1),
                2**-23,
            ),
        ],
        ids=["bfloat16", "float16", "float32"],
    )
    def test_rounding_inside_is_carried(self, f, exact, spacing):
        z = points(dtype=torch.float64)
        found, true = Manifold(f).metric(z), Manifold(exact).metric(z)
        assert bool(((found - true).abs().amax() <= 4 * spacing * true.abs().amax()).all())

    def test_closed_over_conditions(self):
        c = torch.ones(3, 4)
        net = network(6)
        with pytest.raises(DecoderError, match=r"condition=.*f\(z, c\)"):
            Manifold(lambda z: net(torch.cat([z, c], 1))).distance(points(3), points(3) + 1)

    @pytest.mark.parametrize("output", [lambda x: {"sample": x}, lambda x: (x,), lambda x: [x]])
    def test_one_tensor_in_a_container_is_taken(self, output):
        torch.testing.assert_close(
            Manifold(lambda z: output(NET(z))).metric(points()), Manifold(NET).metric(points())
        )

    @pytest.mark.parametrize(
        ("f", "text"),
        [
            (lambda z: z["latent"], "wrap the call"),
            (lambda z: z.latent, "wrap the call"),
            (lambda z: {"a": NET(z), "b": z}, "dict with the tensors a, b"),
            (lambda z: z.to_sparse(), "dense"),
            (lambda z: z[:, :0], "numbers in them"),
        ],
        ids=["key", "attribute", "two tensors", "sparse", "no numbers"],
    )
    def test_what_is_no_decoder(self, f, text):
        with pytest.raises(DecoderError, match=text):
            Manifold(f).metric(points())
