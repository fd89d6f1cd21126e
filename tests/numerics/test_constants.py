"""Constants are made once, and only where they may be kept."""

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from riemae.numerics.constants import constant


class Squares:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, n):
        self.calls += 1
        return np.arange(n) ** 2.0


def test_made_once_per_dtype():
    squares = Squares()
    x = torch.ones(2, dtype=torch.float64)
    first = constant(squares, (4,), x)
    assert first is constant(squares, (4,), x)
    assert squares.calls == 1
    assert first.tolist() == [0, 1, 4, 9]
    rough = constant(squares, (4,), x.float())
    assert rough.dtype == torch.float32
    assert len(constant(squares, (5,), x)) == 5
    assert squares.calls == 3


def test_serves_for_gradients_when_it_was_made_without():
    squares = Squares()
    with torch.inference_mode():
        constant(squares, (3,), torch.ones(1))
    x = torch.ones(3, requires_grad=True)
    (constant(squares, (3,), torch.ones(1)) * x).sum().backward()
    assert x.grad.tolist() == [0, 1, 4]


def test_fake_tensors_are_not_kept():
    squares = Squares()
    with FakeTensorMode() as fake:
        like = fake.from_tensor(torch.ones(1))
        constant(squares, (3,), like)
    assert type(constant(squares, (3,), torch.ones(1))) is torch.Tensor
