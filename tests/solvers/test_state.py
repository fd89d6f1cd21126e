"""Numbers of solvers' states on the host, wherever they are kept."""

import numpy as np
import pytest
import torch

from riemae.solvers import state
from riemae.solvers.solver import State
from riemae.solvers.state import PathState, hand_on, numbers, on_host, placed, read, select, update

KINDS = [PathState, State]


@pytest.fixture(params=["shared", "transferred"])
def memory(request, monkeypatch):
    if request.param == "transferred":
        monkeypatch.setattr(state, "_ON_HOST", frozenset())


def some(dtype):
    source = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=source, dtype=torch.float64).to(dtype)


@pytest.mark.usefixtures("memory")
class TestRead:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
    def test_the_same_bits_as_one_by_one(self, dtype):
        x = some(dtype)
        # Odd sizes first: what follows does not start at a multiple of its own size.
        asked = (x[:3, 0] > 0, x, x[:, 2], x.T, x[0, 0], x[:0], x[:1, 3])
        for given, found in zip(asked, read(*asked), strict=True):
            assert found.dtype == on_host(given).dtype
            assert found.shape == given.shape
            assert np.array_equal(found, on_host(given))

    def test_numbers_that_are_none(self):
        x = torch.tensor([torch.nan, torch.inf, -0.0])
        found, _ = read(x, x)
        assert np.array_equal(found, on_host(x), equal_nan=True)
        assert np.signbit(found[2])

    def test_what_has_a_graph(self):
        x = some(torch.float64).requires_grad_()
        found, twice = read(x, 2 * x)
        assert np.array_equal(2 * found, twice)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("kind", KINDS)
class TestStates:
    def nodes(self, dtype=torch.float64):
        return torch.arange(4 * 5 * 2).view(4, 5, 2).to(dtype)

    def test_numbers(self, kind):
        found = kind.start(self.nodes())
        status, steps, index, left = numbers(found, "status", "steps", "index", "decrement")
        assert (status == state.RUNNING).all()
        assert (steps == 0).all()
        assert (index == -1).all()
        assert np.isinf(left).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_decrements_are_rounded_as_the_curves_are(self, kind, dtype):
        found = kind.start(self.nodes(dtype))
        (left,) = numbers(found, "decrement")
        assert torch.from_numpy(left).dtype == dtype

    def test_what_is_known_of_a_curve_goes_with_it(self, kind):
        whole = kind.start(self.nodes())
        hand_on(whole, np.arange(4))
        rows = np.array([1, 3])
        part = select(whole, rows)
        assert numbers(part, "steps")[0].tolist() == [1, 3]
        assert torch.equal(part.nodes, whole.nodes[[1, 3]])
        hand_on(part, np.array([10, 30]))
        part.nodes.zero_()
        update(whole, rows, part)
        assert numbers(whole, "steps")[0].tolist() == [0, 10, 2, 30]
        assert not whole.nodes[[1, 3]].any()
        assert torch.equal(whole.nodes[[0, 2]], self.nodes()[[0, 2]])


def test_an_array_where_a_tensor_is():
    x = np.arange(3)
    assert torch.equal(placed(x, torch.ones(2)), torch.arange(3))
    assert placed(x, torch.ones(2, device="meta")).is_meta
