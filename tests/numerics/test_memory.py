"""Memory: what is asked for at once, which solver that decides, and errors with advice."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from riemae import Manifold, solvers
from riemae.differential import chunks
from riemae.exceptions import MemoryLimitError, RiemaeError
from riemae.geometry import smoothness
from riemae.numerics import memory
from riemae.numerics.memory import is_shortage, total_memory, within_memory
from riemae.solvers import choice, path

CPU = torch.device("cpu")


class Largest(TorchDispatchMode):
    """The largest storage, in numbers of eight bytes, that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and type(x) is torch.Tensor:
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // 8)
        return out


def mlp(m, width, out):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(m, width), nn.SiLU(), nn.Linear(width, out))
        return nn.Sequential(*layers).double().requires_grad_(False)


def test_total_memory():
    known = total_memory(CPU)
    assert 2**28 < known < 2**46
    assert known == total_memory(CPU)  # whatever is free


def test_limit_of_a_container(tmp_path, monkeypatch):
    whole = total_memory(CPU)
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (str(limit), str(tmp_path / "missing")))
    for text, wanted in (("max\n", whole), ("123456789\n", 123456789), (f"{2**62}\n", whole)):
        limit.write_text(text)
        memory._of_the_machine.cache_clear()
        assert total_memory(CPU) <= whole if wanted == whole else total_memory(CPU) == wanted
    memory._of_the_machine.cache_clear()


def test_shortages():
    said = "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"
    for reason in (RuntimeError(said), torch.OutOfMemoryError("CUDA"), MemoryError()):
        assert is_shortage(reason)
    for reason in (RuntimeError("shape"), ValueError(said), None):
        assert not is_shortage(reason)


def too_much(z):
    return torch.empty(2**55, dtype=z.dtype) + z  # more than an address space


@pytest.mark.parametrize("call", ["metric", "geodesic", "decode"])
def test_typed_error(call):
    """Whoever notices first: the probe at the first points, or the call itself."""
    space = Manifold(too_much)
    z = torch.zeros(1, 2, dtype=torch.float64)
    arguments = (z, z + 1) if call == "geodesic" else (z,)
    with pytest.raises(MemoryLimitError, match="chunk_size.*NewtonCG.*float32") as found:
        getattr(space, call)(*arguments)
    assert found.value.where == f"Manifold.{call}"
    assert isinstance(found.value, (MemoryError, RiemaeError))
    assert isinstance(found.value.__cause__, RuntimeError)
    assert is_shortage(found.value.__cause__)


def test_typed_error_of_solvers():
    def tensor(z):
        if len(z) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return torch.eye(2).to(z).expand(len(z), 2, 2) * (1 + z[:, :1, None] ** 2)

    z0 = torch.zeros(8, 2, dtype=torch.float64)
    with pytest.raises(MemoryLimitError, match="Tried to allocate 20.00 GiB") as found:
        solvers.geodesic(solvers.MetricSpace(tensor), z0, z0 + 1)
    assert isinstance(found.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_stay():
    @within_memory
    def fails():
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason") as found:
        fails()
    assert not isinstance(found.value, MemoryLimitError)


@pytest.mark.parametrize(
    ("total", "expected"), [(2**40, solvers.Newton), (2**20, solvers.NewtonCG)]
)
def test_choice_of_the_solver(total, expected, monkeypatch):
    """By (1 + 2m) times the widest layer at 16 points, against a sixteenth of the memory."""
    chosen = []
    solve = path._solve

    def seen(space, taken, *rest, **options):
        chosen.append(taken.solver)
        return solve(space, taken, *rest, **options)

    monkeypatch.setattr(choice, "total_memory", lambda device: total)
    monkeypatch.setattr(path, "_solve", seen)
    z0 = torch.zeros(1, 3, dtype=torch.float64)
    r = Manifold(mlp(3, 300, 20)).geodesic(z0, z0 + 1)
    assert bool(r.converged.all())
    assert [type(solver) for solver in chosen] == [expected]


def test_the_rule(monkeypatch):
    space = Manifold(mlp(3, 300, 20)).as_space(torch.zeros(1, 3, dtype=torch.float64))
    z = torch.zeros(4, 3, dtype=torch.float64)
    wanted = 16 * 7 * 300 * 8  # points, passes, the widest layer, bytes
    for total, fits in ((16 * wanted, True), (16 * wanted - 16, False)):
        monkeypatch.setattr(choice, "total_memory", lambda device, total=total: total)
        point = choice._first_finite(z)
        assert choice._fits(space, point, 3) is fits
        nothing = choice._first_finite(z * torch.nan)
        assert choice._fits(space, nothing, 3)


def test_fewer_points_at_once(monkeypatch):
    """Eight points of a wide layer at least, unless that is a sixteenth of the memory."""
    space = Manifold(mlp(3, 4000, 20)).as_space(torch.zeros(1, 3, dtype=torch.float64))
    z = torch.zeros(64, 3, dtype=torch.float64)
    passes = 1000
    per_point = 4000 * passes * 8
    assert space.immersion.chunk(z, passes) == 8
    for total, rows in ((16 * 5 * per_point, 5), (per_point, 1), (16 * 99 * per_point, 8)):
        monkeypatch.setattr(chunks, "total_memory", lambda device, total=total: total)
        assert space.immersion.chunk(z, passes) == rows


def test_many_latent_dimensions(monkeypatch):
    """Hutchinson's curvature never holds all m² second derivatives of the data, nor its check."""
    monkeypatch.setattr(smoothness, "_NUMBERS_AT_ONCE", 2**16)
    m, out = 64, 200
    space = Manifold(mlp(m, 128, out))
    z = torch.randn(4, m, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with Largest() as largest, torch.no_grad():
        space.extrinsic_curvature(z, estimator="hutchinson", samples=4, generator=0)
    assert largest.numbers < 4 * out * m * m / 10


def test_second_order_in_blocks(monkeypatch):
    """The same norm block by block, and by the Hessian of every output."""
    net = mlp(5, 16, 7)
    space = Manifold(net).as_space(torch.zeros(1, 5, dtype=torch.float64))
    z = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = smoothness._second_order(space.immersion, z)
    monkeypatch.setattr(smoothness, "_NUMBERS_AT_ONCE", 1)
    parts = smoothness._second_order(space.immersion, z)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)
    hessians = torch.stack([torch.func.hessian(net)(point) for point in z])
    torch.testing.assert_close(whole[2], hessians.flatten(1).norm(dim=-1))
