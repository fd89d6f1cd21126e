"""Sums over groups, on the processor and as a device takes them."""

import pytest
import torch
from stand_in import StandIn

from riemae.numerics.sums import summed

F64 = torch.float64
OF = torch.tensor([3, 0, 3, 1, 0])


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)], ids=str)
def test_as_a_loop(shape):
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    rows = [sum((x[i] for i in range(5) if OF[i] == c), torch.zeros(shape)) for c in range(5)]
    torch.testing.assert_close(summed(x, OF, 5), torch.stack(rows).double())
    with StandIn() as stand_in:
        there = summed(stand_in.there(x), stand_in.there(OF.clone()), 5)
        assert there.device == stand_in.device
    torch.testing.assert_close(there, torch.stack(rows).double())


def test_derivatives():
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: summed(x.sin(), OF, 4), x)
    assert torch.autograd.gradgradcheck(lambda x: summed(x.sin(), OF, 4), x)


def test_no_entries():
    assert torch.equal(summed(torch.ones(0, 2), torch.zeros(0).long(), 3), torch.zeros(3, 2))
