"""No object of the user is changed: modules that store, write in place and cache, points, and
results."""

import copy
import gc
import inspect
import warnings
import weakref

import pytest
import torch
from torch import nn

from riemae import Manifold, ambient, solvers
from riemae.differential.jets import Jet
from riemae.exceptions import FallbackWarning, SmoothnessWarning

F64 = torch.float64


def points(n=4, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Plain(nn.Module):
    """A decoder that does nothing unusual."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.grid = torch.arange(4.0)
        self.eval()

    def forward(self, z):
        return self.net(z)


class Converts(Plain):
    """Holds a constant, which is converted like the points."""

    def forward(self, z):
        self.grid = self.grid.to(z)
        return self.net(z) + self.grid


class ConvertsByType(Plain):
    def forward(self, z):
        self.grid = self.grid.type_as(z)
        return self.net(z) + self.grid


class CachesByShape(Plain):
    """Makes a constant like its input, once for every batch size."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, z):
        key = len(z), z.dtype
        if key not in self.kept:
            self.kept[key] = torch.ones_like(z[:, :1])
        return self.net(z) * self.kept[key]


class KeepsFeatures(Plain):
    """Stores its last input, as models with hooks do."""

    def forward(self, z):
        self.last = self.net[:2](z).detach().mean()
        return self.net(z)


class Buffer(Plain):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def forward(self, z):
        self.scale = self.scale.to(z.dtype)
        return self.net(z) * self.scale


class Clamps(Plain):
    """Writes in place into its input."""

    def forward(self, z):
        return self.net(z.clamp_(-1.5, 1.5))


class Shifts(Plain):
    def forward(self, z):
        z += 0.5
        return self.net(z)


class Standardises(Plain):
    def forward(self, z):
        z.sub_(0.5).div_(2)
        return self.net(z)


class WritesRows(Plain):
    def forward(self, z):
        z[:, 0] += z[:, 1].clone()
        return self.net(z)


class WritesIntoAView(Plain):
    def forward(self, z):
        z[:, :1].mul_(2)
        return self.net(z)


class Reshapes(Plain):
    """Changes the shape of its input in place, and back."""

    def forward(self, z):
        z.unsqueeze_(1)
        return self.net(z).squeeze(1)


class WantsGradients(Plain):
    def forward(self, z):
        z.requires_grad_()
        return self.net(z)


class All(Plain):
    """Stores, caches, and writes in place."""

    def forward(self, z):
        self.grid = self.grid.to(z)
        if not hasattr(self, "kept"):
            self.kept = torch.ones_like(z[:1, :1])
        z += 0.5
        self.last = z.detach().mean()
        return self.net(z.clamp_(-3, 3)) * self.kept + self.grid


STORING = [Converts, ConvertsByType, CachesByShape, KeepsFeatures, Buffer]
WRITING = [Clamps, Shifts, Standardises, WritesRows, WritesIntoAView, Reshapes, WantsGradients]


def calls():
    """Every public method that takes points, with small arguments."""
    z, v, w = (
        points(),
        points(4, 1),
        torch.randn(4, 4, generator=torch.Generator().manual_seed(2), dtype=F64),
    )
    a, b = points(2, 3), points(2, 4)
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731 (one expression)
    given = {
        "pushforward": (z, v),
        "pullback": (z, w),
        "taylor": (z, v),
        "metric_product": (z, v),
        "inner": (z, v, v),
        "norm": (z, v),
        "acceleration": (z, v),
        "second_fundamental_form": (z, v, v),
        "sectional_curvature": (z, v, points(4, 5)),
        "shape_operator": (z, w),
        "length": (torch.stack([a, b], 1),),
        "energy": (torch.stack([a, b], 1),),
        "geodesic": (a, b),
        "distance": (a, b),
        "exp": (a, 0.1 * b),
        "log": (a, a + 0.1 * b),
        "transport": (torch.stack([a, b], 1), b),
        "jacobi_field": (a[0], 0.1 * b[0], b[0]),
        "second_variation": (a[0], 0.1 * b[0]),
        "conjugate_points": (a[0], 0.1 * b[0]),
        "distance_matrix": (a,),
        "volume": (torch.stack([a.amin(0), a.amin(0) + 1], 1),),
        **dict.fromkeys(
            ("squared_chords", "energy_and_gradient", "products", "residual"),
            (torch.stack([a, b, z[:2]], 1),),
        ),
    }
    loose = {"exp", "log", "jacobi_field", "second_variation", "conjugate_points"}
    skipped = {
        "to",
        "members",
        "graph",
        "distribution",
        "ambient_distance",
        "embedded",
        "expand",
        "velocities",
    }
    for name, method in vars(Manifold).items():
        if name.startswith("_") or not inspect.isfunction(method) or name in skipped:
            continue
        required = [
            p
            for p in list(inspect.signature(method).parameters.values())[1:]
            if p.default is p.empty
        ]
        if name in given:
            short = {"t": 0.01} if "t" in inspect.signature(method).parameters else {}
            yield name, given[name], {"rtol": 1e-3, **short} if name in loose else {}
        elif len(required) == 1:
            options = (
                {"generator": generator()}
                if "generator" in inspect.signature(method).parameters
                else {}
            )
            yield name, (z,), options


CALLS = list(calls())
SLOW = {"jacobi_field", "second_variation", "conjugate_points"}


def state(module):
    """Types, values and flags of all that a module holds."""
    held = {}
    for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
        if isinstance(value, torch.Tensor):
            held[name] = (type(value), value.dtype, value.requires_grad, value.detach().clone())
    for name, value in module.state_dict().items():
        held[f"state {name}"] = (type(value), value.dtype, False, value.clone())
    return held


def assert_plain(x, where):
    if isinstance(x, torch.Tensor):
        assert type(x) is not Jet, where
        assert type(x) in (torch.Tensor, nn.Parameter), where
    elif isinstance(x, dict):
        for value in x.values():
            assert_plain(value, where)
    elif isinstance(x, (tuple, list)):
        for value in x:
            assert_plain(value, where)


@pytest.mark.parametrize("kind", [All, Plain, *STORING, *WRITING], ids=lambda kind: kind.__name__)
def test_every_method(kind):
    decoder = kind()
    decoder(points())  # its cache is filled
    before = state(decoder)
    twin = kind()
    M, reference = Manifold(decoder), Manifold(lambda z: twin(z.clone()))
    assert len(CALLS) > 25
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        warnings.simplefilter("ignore", SmoothnessWarning)
        for name, given, options in CALLS:
            if name in SLOW and kind is not All:
                continue
            kept = [x.clone() for x in given]
            try:
                out = getattr(M, name)(*given, **options)
            except Exception as reason:
                # The kind of refusal that a plain decoder meets, if any: metrics may be singular at
                # a clamp.
                with pytest.raises(type(reason)):
                    getattr(reference, name)(*kept, **options)
                out = ()
            for x, y in zip(given, kept, strict=True):
                assert torch.equal(x, y), name
                assert (x.shape, x.requires_grad) == (y.shape, False), name
            assert_plain(out, name)
            assert_plain(list(vars(decoder).values()), name)
    after = state(decoder)
    assert after.keys() == before.keys()
    for name in before:
        assert after[name][:3] == before[name][:3], name
        if name != "last":
            assert torch.equal(after[name][3], before[name][3]), name
    assert type(decoder(points())) is torch.Tensor
    copy.deepcopy(decoder)


def spectrum(kind):
    """The power spectrum of its output, which only ``torch.func`` differentiates."""

    class Spectrum(kind):
        def forward(self, z):
            return torch.fft.fft(super().forward(z)).abs().square()

    return Spectrum()


class Computes(Plain):
    """A weight that a hook computes in every call, as those of spectral norm are."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net[0] = nn.utils.spectral_norm(nn.Linear(2, 8)).double()
        self.eval().requires_grad_(False)


class KeepsLists(Plain):
    def __init__(self):
        super().__init__()
        self.kept = [{"grid": torch.arange(4.0)}, (torch.ones(4),)]

    def forward(self, z):
        self.kept[0]["grid"] = self.kept[0]["grid"].to(z)
        self.kept[1] = (self.kept[1][0].to(z),)
        return self.net(z) * self.kept[0]["grid"] + self.kept[1][0]


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [*((kind, False) for kind in (*STORING, Computes, KeepsLists)), (All, True)],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_no_wrapped_tensor_is_left_in_a_module(kind, hidden):
    decoder, twin = spectrum(kind), spectrum(kind)
    decoder(points())  # its cache is filled
    before = state(decoder)
    M = Manifold((lambda z: decoder(z)) if hidden else decoder)
    reference = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: twin(1 * p[None])[0], p) for p in points()]
    )
    for call in (
        lambda: M.scalar_curvature(points()),
        lambda: M.metric(points().requires_grad_()).sum().backward(),
        lambda: M.length(torch.stack([points(2, 1), points(2, 2)], 1), rtol=1e-2),
    ):
        call()
        copy.deepcopy(decoder)  # wrapped tensors refuse it
        after = state(decoder)
        for name in before:
            assert after[name][:3] == before[name][:3], name
            if name != "last":
                assert torch.equal(after[name][3], before[name][3]), name
    torch.testing.assert_close(M.metric(points()), reference.mT @ reference)


def test_no_module_is_kept_alive_by_a_callers_transforms():
    decoder = Plain()
    M, known = Manifold(decoder), weakref.ref(decoder)
    torch.func.jacrev(M.metric)(points())
    del decoder, M
    gc.collect()
    assert known() is None


def test_objects_without_weak_references_are_decoders_too():
    class Slots:
        __slots__ = ()

        def __call__(self, z):
            return torch.fft.fft(z).abs().square()

    j = torch.stack([torch.autograd.functional.jacobian(Slots(), p) for p in points()])
    torch.testing.assert_close(Manifold(Slots()).metric(points()), j.mT @ j)


def test_no_wrapped_tensor_is_left_in_an_ambient_network():
    net, network = Plain(), spectrum(Converts)
    network.net[0] = nn.Linear(4, 8).double()
    M = Manifold(net, ambient=ambient.FeatureMap(network))
    M.metric(points())
    copy.deepcopy(network)
    space = solvers.MetricSpace(lambda y: torch.diag_embed(1 + spectral(y)[:, :2]))
    spectral = spectrum(Converts)
    space.metric(points())
    solvers.geodesic(space, points(1, 1), points(1, 2), throw=False)
    copy.deepcopy(spectral)


@pytest.mark.parametrize("kind", WRITING, ids=lambda kind: kind.__name__)
def test_right_numbers_of_decoders_that_write(kind):
    twin = kind()
    f = lambda z: twin(z.clone())  # noqa: E731 (one expression)
    j = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: f(p[None])[0], p) for p in points()]
    )
    M = Manifold(kind())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        torch.testing.assert_close(M.metric(points()), j.mT @ j)
        torch.testing.assert_close(M.decode(points()), f(points()))
        expected = Manifold(f).geodesic(points(2, 1), points(2, 2), throw=False)
        found = M.geodesic(points(2, 1), points(2, 2), throw=False)
    torch.testing.assert_close(found.length, expected.length)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.square_().add_(1),
        lambda x: x.abs_().add_(1),
        lambda x: x.clamp_(min=0.5),
        lambda x: x.mul_(x).add_(1),
        lambda x: x.exp_(),
    ],
    ids=["square", "abs", "clamp", "mul", "exp"],
)
def test_ambient_functions_that_write(write):
    net, z = Plain(), points()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        found = Manifold(net, ambient=write)
        expected = Manifold(net, ambient=lambda x: write(x.clone()))
        torch.testing.assert_close(found.metric(z), expected.metric(z))
        torch.testing.assert_close(found.decode(z), net(z))
        torch.testing.assert_close(found.christoffel(z), expected.christoffel(z))


def test_other_functions_that_write():
    net, z = Plain(), points()
    phi = Manifold(net, ambient=ambient.FeatureMap(lambda x: x.tanh_()))
    torch.testing.assert_close(
        phi.metric(z), Manifold(net, ambient=ambient.FeatureMap(torch.tanh)).metric(z)
    )
    torch.testing.assert_close(phi.decode(z), net(z))
    space = solvers.MetricSpace(lambda y: torch.diag_embed(y.square_().add_(1)))
    plain = solvers.MetricSpace(lambda y: torch.diag_embed(y.square().add(1)))
    kept = z.clone()
    r = solvers.geodesic(space, z[:2], z[2:])
    torch.testing.assert_close(r.length, solvers.geodesic(plain, z[:2], z[2:]).length)
    assert torch.equal(z, kept)


def test_parameters_as_points():
    z = nn.Parameter(points())
    M = Manifold(Shifts())
    M.metric(z).sum().backward()
    torch.testing.assert_close(z.detach(), points())
    assert z.grad is not None
