"""Compiled passes: the numbers of the same passes by themselves, few compilations, and what is said
where torch cannot compile. Backends that compile nothing keep this short; one test compiles."""

import copy
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn

from riemae import Manifold, ambient
from riemae.differential.compiled import block_size
from riemae.differential.recording import cut, recorded
from riemae.exceptions import DTypeError, FallbackWarning, OptionError
from riemae.numerics.compiling import Compiling


class Counting:
    """A backend that compiles nothing and counts what it gets."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


class Net(nn.Module):
    """Attributes, branches and a method, in a module."""

    def __init__(self, m=3, scale=1.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(m, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, 5))
        self.scale = scale

    def forward(self, z):
        return self.scale * self.layers(z)

    def doubled(self, z):
        return 2 * self.layers(z)

    def with_condition(self, z, c):
        return self.layers(z) * c.exp()


@pytest.fixture(autouse=True)
def clean():
    torch.compiler.reset()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.compiler.reset()


def points(k, m=3, dtype=torch.float64):
    return torch.randn(k, m, dtype=dtype, generator=torch.Generator().manual_seed(k))


def net(dtype=torch.float64, **options):
    return Net(**options).to(dtype).eval().requires_grad_(False)


def compiler_of(manifold):
    return manifold._pullback.first_order.compiler


QUANTITIES = {
    "metric": lambda M, z: M.metric(z),
    "jacobian": lambda M, z: M.jacobian(z),
    "christoffel": lambda M, z: M.christoffel(z),
    "pullback": lambda M, z: M.pullback(z, M.decode(z)),
    "metric_product": lambda M, z: M.metric_product(z, z),
    "acceleration": lambda M, z: M.acceleration(z, z),
    "scalar_curvature": lambda M, z: M.scalar_curvature(z),
    "curvature_form": lambda M, z: M.curvature_form(z),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_numbers_are_those_without(dtype):
    f, z = net(dtype), points(5, dtype=dtype)
    plain, compiled = Manifold(f), Manifold(f, compile="eager")
    limit = 1e-10 if dtype == torch.float64 else 1e-3
    # Without gradient mode, recording has to switch it on for itself.
    with torch.set_grad_enabled(dtype == torch.float32):
        for name, quantity in QUANTITIES.items():
            expected = quantity(plain, z)
            assert bool(expected.any()), name
            torch.testing.assert_close(quantity(compiled, z), expected, rtol=limit, atol=limit)
    assert compiler_of(compiled).reason is None


@pytest.mark.parametrize("method", [nn.Module.__call__, Net.doubled])
def test_modules_and_their_methods_are_compiled(method):
    f = net()
    function = f if method is nn.Module.__call__ else f.doubled
    manifold = Manifold(function, compile="eager")
    torch.testing.assert_close(manifold.metric(points(4)), Manifold(function).metric(points(4)))
    assert compiler_of(manifold).made == 1
    assert compiler_of(manifold).reason is None


def test_functions_without_closures_are_compiled():
    def bowl(z):
        return torch.cat([z, z.square().sum(-1, keepdim=True)], -1)

    manifold = Manifold(bowl, compile="eager")
    z = points(4)
    identity = torch.eye(3, dtype=z.dtype)
    torch.testing.assert_close(manifold.metric(z), identity + 4 * z[:, :, None] * z[:, None])
    assert compiler_of(manifold).made == 1


def test_any_number_of_points_takes_two_compilations():
    backend = Counting()
    manifold = Manifold(net(), compile={"backend": backend})
    exact = Manifold(manifold.decoder)
    for k in (1, 2, 7, 16, 31, 32, 33, 64, 65, 150):
        z = points(k)
        torch.testing.assert_close(manifold.metric(z), exact.metric(z), rtol=1e-10, atol=1e-12)
    assert backend.graphs == 2


def test_a_geodesic_is_the_same_one():
    backend = Counting()
    manifold = Manifold(net(), compile={"backend": backend})
    a, b = points(6).chunk(2)
    found = manifold.geodesic(a, b)
    expected = Manifold(manifold.decoder).geodesic(a, b)
    torch.testing.assert_close(found.length, expected.length, rtol=1e-6, atol=0)
    graphs = backend.graphs
    assert 3 <= graphs <= 16
    manifold.geodesic(b, a)
    assert backend.graphs == graphs
    assert "passes by torch.compile (Counting)" in str(manifold.explain(a))


def test_values_of_weights_are_followed_and_other_changes_noticed():
    f = net()
    manifold, exact = Manifold(f, compile="eager"), Manifold(f)
    z = points(4)

    def agree():
        torch.testing.assert_close(manifold.metric(z), exact.metric(z), rtol=1e-10, atol=1e-12)

    agree()
    made = compiler_of(manifold).made
    f.layers[0].weight.mul_(2)
    agree()
    assert compiler_of(manifold).made == made
    f.layers[0].weight = nn.Parameter(f.layers[0].weight / 3, requires_grad=False)
    agree()
    assert compiler_of(manifold).made == made + 1
    f.scale = 5.0
    agree()
    assert compiler_of(manifold).made == made + 2
    f.load_state_dict(copy.deepcopy(f.state_dict()), assign=True)
    agree()


def test_conditions_are_arguments_of_a_pass():
    f, z = net(), points(6)
    condition = points(6, 1)
    manifold = Manifold(f.with_condition, compile="eager")
    exact = Manifold(f.with_condition)
    for c in (condition, condition.flip(0), condition[:1]):
        found = manifold.metric(z, condition=c)
        torch.testing.assert_close(found, exact.metric(z, condition=c), rtol=1e-10, atol=1e-12)
    assert compiler_of(manifold).made == 1


def test_distributions_and_features_are_compiled():
    class Poisson(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, z):
            return torch.distributions.Poisson(self.net(z).exp())

    f, z = Poisson(), points(4)
    manifold = Manifold(f, compile="eager")
    torch.testing.assert_close(manifold.metric(z), Manifold(f).metric(z), rtol=1e-10, atol=1e-12)
    assert compiler_of(manifold).made == 1


def test_what_is_differentiated_is_not_compiled():
    f = net().requires_grad_()
    manifold, exact = Manifold(f, compile="eager"), Manifold(f)
    z = points(3).requires_grad_()
    (found,) = torch.autograd.grad(manifold.metric(z).square().sum(), z)
    (expected,) = torch.autograd.grad(exact.metric(z).square().sum(), z)
    torch.testing.assert_close(found, expected)
    assert compiler_of(manifold).made == 0
    with torch.no_grad():
        manifold.metric(z)
    assert compiler_of(manifold).made == 1


def test_copies_keep_the_option():
    manifold = Manifold(net(), compile="eager")
    z = points(3)
    manifold.metric(z)
    copies = [copy.deepcopy(manifold), pickle.loads(pickle.dumps(manifold)), manifold.to("cpu")]
    for twin in copies:
        assert twin.compile == "eager"
        torch.testing.assert_close(twin.metric(z), manifold.metric(z))
        assert compiler_of(twin).made == 1


class Reading(Net):
    """A number read out of a weight: a record of it would not follow the weight."""

    def forward(self, z):
        return super().forward(z) * float(self.layers[0].weight[0, 0])


class Cached(Net):
    """Keeps a tensor from one call to the next."""

    def forward(self, z):
        self.last = z.detach().sum()
        return super().forward(z)


def broken(graph, inputs):
    raise ValueError("this backend is broken")


def wrong(graph, inputs):
    def call(*args):
        return tuple(x * 1.001 for x in graph.forward(*args))

    return call


def closure():
    f = net()
    return lambda z: f(z)


@pytest.mark.parametrize(
    ("f", "backend", "reason"),
    [
        (lambda: Reading().double().eval().requires_grad_(False), "eager", "value"),
        (closure, "eager", "unnoticed"),
        (net, broken, "this backend is broken"),
        (net, wrong, "other numbers"),
    ],
)
def test_what_cannot_be_compiled_runs_by_itself_and_says_so(f, backend, reason):
    f = f()
    z = points(4)
    manifold = Manifold(f, compile={"backend": backend})
    with pytest.warns(FallbackWarning, match=reason) as caught:
        found = manifold.metric(z)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    torch.testing.assert_close(found, Manifold(f).metric(z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once only
        manifold.christoffel(z)
        said = manifold.explain(z)
    assert reason in said.compiled
    assert "compiled: no: " in str(said)


def test_a_module_that_keeps_tensors_is_not_compiled_in_silence():
    f = Cached().double().eval().requires_grad_(False)
    z = points(4)
    manifold = Manifold(f, compile="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        torch.testing.assert_close(manifold.metric(z), Manifold(f).metric(z))
        manifold.metric(2 * z)
    assert type(f.last) is torch.Tensor


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (3, DTypeError),
        ("no such backend", OptionError),
        ({"mode": "no such mode"}, OptionError),
        ({"fullgraph": True}, OptionError),
        ({"mode": "default", "options": {}}, OptionError),
    ],
)
def test_options_that_mean_nothing(given, error):
    with pytest.raises(error, match="compile"):
        Manifold(net(), compile=given)


def test_without_a_compiler_there_is_advice(monkeypatch):
    class InvalidCxxCompiler(RuntimeError):
        pass

    def missing(graph, inputs):
        raise InvalidCxxCompiler("No working C++ compiler found in CXX")

    manifold = Manifold(net(), compile={"backend": missing})
    with pytest.raises(OptionError, match="Install g") as caught:
        manifold.metric(points(3))
    assert "No working C++ compiler" in str(caught.value)


def test_settings_of_dynamo_are_left_alone():
    from torch import _dynamo

    before = _dynamo.config.get_config_copy()
    Manifold(net(), compile="eager").christoffel(points(3))
    assert _dynamo.config.get_config_copy() == before


def test_without_the_option_no_compiler_is_imported():
    code = """
        import sys, torch
        from riemae import Manifold
        f = torch.nn.Linear(2, 3).eval().requires_grad_(False)
        Manifold(f).geodesic(torch.zeros(2), torch.ones(2))
        assert "torch._dynamo" not in sys.modules
        assert "torch._inductor" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


class Replaying:
    """Stands for ``torch.compile`` with CUDA graphs: all calls of a pass give the same memory."""

    def __init__(self):
        self.modes = []

    def __call__(self, f, mode=None, **options):
        self.modes.append(mode)
        memory = []

        def call(*rows):
            found = f(*rows)
            if not memory:
                memory.extend(x.clone() for x in found)
            for own, new in zip(memory, found, strict=True):
                own.copy_(new)
            return tuple(memory)

        return call


def test_results_of_graphs_are_kept_from_their_next_replay(monkeypatch):
    replaying = Replaying()
    monkeypatch.setattr(torch, "compile", replaying)
    f = net()
    M = Manifold(f, compile={"mode": "reduce-overhead"})
    z = points(200)  # four blocks
    first = M.jacobian(z[:100])
    again = M.jacobian(z[100:])
    plain = Manifold(f)
    torch.testing.assert_close(torch.cat([first, again]), plain.jacobian(z))
    torch.testing.assert_close(M.christoffel(z[:100]), plain.christoffel(z[:100]))
    z0, z1 = points(2), points(2) + 1
    assert_same = torch.testing.assert_close
    assert_same(M.geodesic(z0, z1).length, plain.geodesic(z0, z1).length)
    assert set(replaying.modes) == {"reduce-overhead"}


def test_graphs_are_the_default_for_few_points_on_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    default = Compiling.of("test", True)
    assert default.with_graphs(cuda).options == {"mode": "reduce-overhead"}
    assert default.with_graphs(cuda).replays
    assert default.with_graphs(cpu) is default
    for given in ("eager", {"mode": "max-autotune-no-cudagraphs"}):
        asked = Compiling.of("test", given)
        assert asked.with_graphs(cuda) is asked
        assert not asked.replays
    assert Compiling.of("test", {"options": {"triton.cudagraphs": True}}).replays


def test_sizes_of_blocks():
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert [block_size(k, 1000, cpu) for k in (1, 16, 32, 33, 500)] == [16, 16, 16, 64, 64]
    assert [block_size(k, 20, cpu) for k in (1, 500)] == [16, 16]
    assert block_size(500, 4, cpu) == 4
    assert [block_size(k, 10**6, other) for k in (1, 65, 10**5)] == [64, 1024, 8192]


def test_a_record_in_two_parts():
    weight = nn.Parameter(points(3))

    def joint(z, a, c):
        x = (z @ weight).tanh()
        y = x.clone()
        y.add_(1)  # written in place
        slope = (1 - x.square()) * a
        return x, y, slope @ weight.mT * c, weight.sum()

    z, a, c = points(4), points(5)[:4], points(6)[:4]
    record = recorded(joint, [z, a, c])
    first, second = cut(record, 2, place=1)
    x, y, *kept = first(z, c)
    expected = joint(z, a, c)
    for ours, theirs in zip((x, y, *second(*kept, a)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(first(z, c)[0], joint(z, a, c)[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
def test_compiled_by_the_default_backend():
    f, z = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double(), points(4, 2)
    f = f.eval().requires_grad_(False)
    manifold = Manifold(f, ambient.Euclidean(), compile=True)
    torch.testing.assert_close(manifold.metric(z), Manifold(f).metric(z), rtol=1e-12, atol=1e-14)
    assert "1 passes by torch.compile (inductor), in blocks of 16" in compiler_of(manifold).report()
