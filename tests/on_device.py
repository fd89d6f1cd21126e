"""What the tests in tests/device share: results are where their inputs are, and how exact they are.

A result on a device is compared with the same call on the CPU, relative to the largest number in
it. Kernels of a device add in another order, and choose another one for every size of a batch, so
the same bits are promised neither of two devices nor of a row alone and among others.
"""

import dataclasses
from functools import partial

import torch
from torch import nn

from riemae import solvers
from riemae.solvers import GeodesicResult

F32, F64 = torch.float32, torch.float64
DTYPES = (F32, F64)
# Differences from the CPU, and between a row alone and in a batch: of values and first derivatives,
# of what needs second derivatives or inverses, and of what is solved to a tolerance. Some hundred
# roundings, some thousand, and the tolerance itself.
AGREEMENT = {
    F32: {"value": 2e-5, "second": 5e-4, "solved": 2e-3},
    F64: {"value": 1e-13, "second": 1e-11, "solved": 2e-4},
}
# The lengths of one geodesic alone and in a batch.
ALONE = {F32: 1e-6, F64: 1e-12}
# To a closed form. What is solved is within the tolerance that it is solved to.
TRUTH = {
    F32: {"value": 5e-6, "second": 2e-4, "solved": 1e-3},
    F64: {"value": 1e-12, "second": 1e-9, "solved": 1e-4},
}
# What is solved for in the tests, by dtype.
RTOL = {F32: 1e-3, F64: 1e-4}


def elsewhere(device):
    """Another device than this one, which every machine has."""
    return torch.device("meta" if device.type == "cpu" else "cpu")


def parts(result):
    """All tensors of a result with their places in it: of tuples, lists, dicts and dataclasses."""
    if isinstance(result, torch.Tensor):
        return {"": result}
    if isinstance(result, torch.distributions.Distribution):
        names = ("loc", "scale", "mean", "variance", "concentration")
        named = {}
        for name in names:
            try:
                named[name] = getattr(result, name)
            except (AttributeError, NotImplementedError):  # not all families have all of them
                continue
        if hasattr(result, "base_dist"):
            named["base"] = result.base_dist
    elif isinstance(result, nn.Module):
        named = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    elif dataclasses.is_dataclass(result):
        named = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    elif isinstance(result, dict):
        named = result
    elif isinstance(result, (tuple, list)):
        named = dict(enumerate(result))
    else:
        return {}
    return {f"{name}.{place}": x for name, y in named.items() for place, x in parts(y).items()}


def assert_placed(result, device, dtype):
    """Every tensor is on the device, and the floating ones have the dtype."""
    found = parts(result)
    assert found
    for place, x in found.items():
        assert x.device == device, f"{place} is on {x.device}"
        assert not x.is_floating_point() or x.dtype == dtype, f"{place} is {x.dtype}"


def assert_near(got, wanted, relative):
    """Two tensors agree relative to the largest number of the second; NaN where the other is."""
    got, wanted = (x.detach().double().cpu() for x in (got, wanted))
    assert got.shape == wanted.shape, f"{tuple(got.shape)}, not {tuple(wanted.shape)}"
    scale = wanted.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(got, wanted, rtol=0.0, atol=relative * scale, equal_nan=True)


def assert_true(got, wanted, kind, scale=1.0):
    """A tensor is a known one, to the accuracy that its dtype has for numbers of this kind."""
    if not isinstance(wanted, torch.Tensor):
        wanted = torch.tensor(wanted, dtype=F64)
    assert_near(got, wanted.expand(got.shape), scale * TRUTH[got.dtype][kind])


# Decoders.


def network(dtype=F64, seed=0, sizes=(2, 8, 8, 5)):
    """A SiLU network with weights of its own seed, made on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layer = nn.Linear(a, b, dtype=F64)
        for p in layer.parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=F64)
            p.data = drawn * (0.8 / a**0.5 if p.ndim == 2 else 0.2)
        layers += [layer, nn.SiLU()]
    return nn.Sequential(*layers[:-1]).to(dtype).eval().requires_grad_(False)


# Points and vectors.


@dataclasses.dataclass(frozen=True)
class Given:
    """Arguments of calls: points, end points and vectors ``(n, m)``, and directions ``(n, D)``."""

    z: torch.Tensor
    end: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    x: torch.Tensor

    @classmethod
    def drawn(cls, n, m, d, device="cpu", dtype=F64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator, dtype=F64)
        z = 0.4 * draw(n, m)
        end = z + 0.5 * nn.functional.normalize(draw(n, m), dim=-1)
        given = cls(z, end, draw(n, m), 0.5 * draw(n, m), draw(n, d))
        return given.map(lambda x: x.to(dtype).to(device))

    def map(self, f):
        fields = dataclasses.fields(self)
        return Given(**{field.name: f(getattr(self, field.name)) for field in fields})

    def row(self, i):
        """One of the points alone."""
        return self.map(lambda x: x[i : i + 1])


def solved(result: GeodesicResult):
    """What of a result is the same on every machine: not how many steps were taken."""
    return result.length, result.curve(torch.linspace(0, 1, 5))


def converged(result: GeodesicResult) -> bool:
    return bool((result.status == solvers.Status.CONVERGED).all())
