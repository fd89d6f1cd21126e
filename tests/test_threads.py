"""Several threads, each with its own manifold or all with one, give the numbers of a single thread
and leave no setting changed."""

import threading
import warnings
from functools import partial

import pytest
import torch
import torch.distributions as td
from torch import nn

from riemae import Manifold, ambient, solvers
from riemae.autoencoders import AE
from riemae.exceptions import DifferentiationError
from riemae.numerics.threads import Shared, forward_mode, in_forward_mode, jvp

THREADS = 4


def together(*works):
    """Run each in a thread of its own, all starting at the same moment.

    Returns their results, or raises the first error.
    """
    start, out = threading.Barrier(len(works)), [None] * len(works)

    def run(i):
        start.wait()
        try:
            out[i] = works[i]()
        except BaseException as reason:
            out[i] = reason

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in out:
        if isinstance(result, BaseException):
            raise result
    return out


def switches():
    backends = torch.backends
    return {
        "oneDNN": backends.mkldnn.enabled,
        "fast path of attention": backends.mha.get_fastpath_enabled(),
        "flash": backends.cuda.flash_sdp_enabled(),
        "efficient": backends.cuda.mem_efficient_sdp_enabled(),
        "math": backends.cuda.math_sdp_enabled(),
        "validation": td.Distribution._validate_args,
        "all warnings off": ("ignore", None, Warning, None, 0) in warnings.filters,
        "level": torch.autograd.forward_ad._current_level,
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
    }


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(
            4, 2, 8, dropout=0.0, activation="gelu", batch_first=True
        )

    def forward(self, z):
        return self.last(self.layer(self.first(z).view(-1, 2, 4)).flatten(1))


def points(n=4, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def upper(n=4):
    z = points(n, 1)
    return torch.stack([z[:, 0], 0.5 + z[:, 1].abs()], 1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double().eval()


@pytest.fixture(scope="module")
def attention():
    torch.manual_seed(0)
    return Attention().double().eval()


def half_plane():
    return solvers.MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def odd(z):
    return td.Weibull(1 + z[:, :1].square(), 2 + z[:, 1:].square())


def roads(net, attention):
    """Calls that a thread may make, by name."""
    curved = lambda: Manifold(net, ambient=lambda x: 1 + x.square())  # noqa: E731 (one expression)
    softmax = lambda z: net(z).softmax(-1)  # noqa: E731 (one expression)
    return {
        "ambient function, Christoffel symbols": lambda: curved().christoffel(points()),
        "ambient function, curvature": lambda: curved().gaussian_curvature(points()),
        "ambient function, geodesic": lambda: (
            curved().geodesic(points(), points(4, 2), rtol=1e-2).length
        ),
        "feature map": lambda: Manifold(net, ambient=ambient.FeatureMap(lambda x: x.sin())).metric(
            points()
        ),
        "metric space, geodesic": lambda: (
            solvers.geodesic(half_plane(), upper(), upper().flip(0) + 0.1).length
        ),
        "metric space, exp": lambda: solvers.exp(half_plane(), upper(), 0.3 * points()),
        "metric space, Adam": lambda: (
            solvers.geodesic(
                half_plane(),
                upper(1),
                upper(1) + 0.1,
                rtol=1e-2,
                solver=solvers.Adam(max_steps=30),
                throw=False,
            ).length
        ),
        "attention, metric": lambda: Manifold(attention).metric(points()),
        "attention, second derivatives": lambda: Manifold(attention).extrinsic_curvature(points(1)),
        "softmax, Taylor": lambda: Manifold(softmax).taylor(points(), points(4, 3))[2],
        "family by quantiles": lambda: Manifold(odd).metric(points()),
        "exp": lambda: Manifold(net).exp(points(), 0.3 * points(4, 4)),
        "graph": lambda: Manifold(net).graph(points(12), k=3).distances(),
        "distance, gradient": lambda: slope(net),
    }


def slope(net):
    a = points(1).requires_grad_()
    return torch.autograd.grad(Manifold(net).distance(a, points(1, 2)).sum(), a)[0]


ROADS = list(roads(None, None))


@pytest.mark.filterwarnings("ignore:Weibull has no closed form")
@pytest.mark.parametrize("name", ROADS)
def test_every_road(name, net, attention):
    road = roads(net, attention)[name]
    expected, before = road().detach(), switches()
    for out in together(*[road] * THREADS):
        torch.testing.assert_close(out.detach(), expected, rtol=1e-9, atol=1e-12)
    assert switches() == before


@pytest.mark.filterwarnings("ignore:Weibull has no closed form")
def test_all_roads_at_once(net, attention):
    every = roads(net, attention)
    expected, before = {name: road().detach() for name, road in every.items()}, switches()
    state = torch.get_rng_state()
    orders = [ROADS[i::THREADS] for i in range(THREADS)]
    for names, out in zip(
        orders, together(*[partial(_one_after_another, every, o) for o in orders]), strict=True
    ):
        for name, value in zip(names, out, strict=True):
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12, msg=name)
    assert switches() == before
    assert torch.equal(torch.get_rng_state(), state)


def _one_after_another(every, names):
    return [every[name]().detach() for name in names]


@pytest.mark.parametrize(
    "make", [lambda n, a: Manifold(n), lambda n, a: Manifold(n, ambient=lambda x: 1 + x.square())]
)
def test_one_manifold_for_all(make, net, attention):
    expected = make(net, attention).christoffel(points())
    M = make(net, attention)
    for out in together(*[lambda: [M.christoffel(points()) for _ in range(5)]] * THREADS):
        for value in out:
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


def test_a_manifold_whose_decoder_is_wrong_is_refused_in_every_thread(net):
    M = Manifold(lambda z: torch.cat([z, z.detach().square()], -1))
    assert together(*[partial(_refused, M)] * THREADS) == ["DifferentiationError"] * THREADS


def _refused(M):
    try:
        return M.metric(points())
    except DifferentiationError as reason:
        return type(reason).__name__


def test_trainers_find_the_weights_of_one_thread_alone():
    x = points(40, 7).float()
    x = torch.cat([x, x.square()], 1)

    def fit(seed):
        model = AE(latent_dim=2, hidden=(8,), epochs=2, seed=seed).fit(x)
        return torch.cat([p.detach().flatten() for p in model.decoder_.parameters()])

    seeds = range(3)
    expected = [fit(seed) for seed in seeds]
    for out, alone in zip(together(*[partial(fit, seed) for seed in seeds]), expected, strict=True):
        assert torch.equal(out, alone)


class TestPieces:
    def test_forward_mode_of_others_is_not_ours(self):
        seen, inside, leave = [], threading.Event(), threading.Event()

        def stay():
            def f(x):
                inside.set()
                leave.wait(10)
                return x.square()

            return jvp(f, (torch.ones(1),), (torch.ones(1),))[1]

        def look():
            inside.wait(10)
            seen.append(in_forward_mode())
            leave.set()

        assert together(stay, look)[0].item() == 2
        assert seen == [False]

    def test_levels_of_the_caller_are_seen(self):
        assert not in_forward_mode()
        with torch.autograd.forward_ad.dual_level():
            assert in_forward_mode()
        with forward_mode():
            assert not in_forward_mode()
            with torch.autograd.forward_ad.dual_level():
                pass

    def test_a_shared_context_is_entered_once_and_left_with_the_last(self):
        told = []

        class Context:
            def __enter__(self):
                told.append("in")

            def __exit__(self, *reason):
                told.append("out")

        shared = Shared(Context)
        with shared():
            with shared():
                pass
            assert told == ["in"]
        assert told == ["in", "out"]
        with pytest.raises(ZeroDivisionError), shared():
            raise ZeroDivisionError
        assert told == ["in", "out"] * 2

    def test_a_shared_context_that_cannot_be_entered_leaves_the_others(self):
        told = []

        class Context:
            def __enter__(self):
                told.append("in")

            def __exit__(self, *reason):
                told.append("out")

        def broken():
            raise ZeroDivisionError

        shared = Shared(Context, broken)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), shared():
                pass
        assert told == ["in", "out"] * 2
