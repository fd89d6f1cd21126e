"""Every method on a device: as on the CPU, where its points are, alone and in a batch."""

import inspect
from pathlib import Path

import pytest
import torch
from device_calls import CALLS, ELSEWHERE
from on_device import (
    AGREEMENT,
    F32,
    F64,
    Given,
    assert_near,
    assert_placed,
    elsewhere,
    network,
    parts,
)
from spaces import sphere

from riemae import Manifold, scores, solvers
from riemae.exceptions import DeviceError

# Name of a decoder: how it is made in a dtype, and D.
DECODERS = {"sphere": (lambda dtype: sphere, 3), "network": (network, 5)}
CASES = [
    pytest.param(name, decoder, dtype, id=f"{name}-{decoder}-{str(dtype)[6:]}")
    for name, call in CALLS.items()
    for decoder, dtype in (("sphere", F64), ("network", F32))
    if not call.slow
]


def manifold(decoder, dtype, device):
    f = DECODERS[decoder][0](dtype)
    return Manifold(f.to(device) if isinstance(f, torch.nn.Module) else f)


@pytest.mark.parametrize(("name", "decoder", "dtype"), CASES)
def test_as_on_the_cpu_where_the_points_are(name, decoder, dtype, device):
    if device.type == "cpu" and dtype == torch.float64:
        pytest.skip("float64 on the processor is what all other tests are about")
    call = CALLS[name]
    given = Given.drawn(3, 2, DECODERS[decoder][1], "cpu", dtype)
    there = given.map(lambda x: x.to(device))
    M = manifold(decoder, dtype, device)
    result = call.run(M, there)
    assert_placed(result, device, dtype)
    allowed = AGREEMENT[dtype][call.kind]
    if device.type != "cpu":
        expected = parts(call.run(manifold(decoder, dtype, "cpu"), given))
        found = parts(result)
        assert found.keys() == expected.keys()
        for place, x in found.items():
            assert_near(x, expected[place], allowed)
    if not call.rows:
        return
    alone = parts(call.run(M, there.row(1)))
    for place, x in parts(result).items():
        assert_near(alone[place], x[1:2], allowed)


@pytest.mark.parametrize("name", CALLS)
def test_points_elsewhere_are_refused(name, device):
    M = manifold("network", torch.float32, device)
    away = Given.drawn(3, 2, 5, elsewhere(device), torch.float32)
    with pytest.raises(DeviceError, match="Try|Move"):
        CALLS[name].run(M, away)


# Of methods that take points and something else: which of their arguments stay behind.
SECOND = {
    "pushforward": ("v",),
    "pullback": ("x",),
    "taylor": ("v",),
    "metric_product": ("v",),
    "inner": ("u", "v"),
    "norm": ("v",),
    "acceleration": ("v",),
    "second_fundamental_form": ("u", "v"),
    "principal_curvatures": ("x",),
    "sectional_curvature": ("u",),
    "geodesic": ("end",),
    "distance": ("end",),
    "exp": ("v",),
    "log": ("end",),
    "shoot": ("v",),
    "jacobi_field": ("v", "u"),
    "conjugate_points": ("v",),
    "transport": ("u",),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", SECOND)
def test_vectors_elsewhere_are_refused(name, decoder, device):
    M = manifold(decoder, torch.float32, device)
    given = Given.drawn(3, 2, DECODERS[decoder][1], device, torch.float32)
    M.metric(given.z)
    for argument in SECOND[name]:
        moved = {argument: getattr(given, argument).to(elsewhere(device))}
        mixed = Given(**{**vars(given), **moved})
        with pytest.raises(DeviceError, match="Try|Move"):
            CALLS[name].run(M, mixed)


def test_no_public_method_is_forgotten():
    public = {name for name, _ in inspect.getmembers(Manifold) if not name.startswith("_")}
    named = {name.split(",")[0] for name in CALLS} | ELSEWHERE
    assert named == public


@pytest.mark.parametrize("module", [scores, solvers], ids=["scores", "solvers"])
def test_no_public_function_is_forgotten(module):
    """Functions, and solvers with their settings, are called somewhere in these tests."""
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    name = module.__name__.rsplit(".", 1)[-1]
    for public in module.__all__:
        thing = getattr(module, public)
        solver = thing.__class__ is type and "solvers.methods" in thing.__module__
        if inspect.isfunction(thing) or solver:
            assert f"{name}.{public}(" in text, public
