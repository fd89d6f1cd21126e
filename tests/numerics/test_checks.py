"""Checks of arguments: what passes, and what the errors say."""

import re

import pytest
import torch

from riemae.exceptions import DeviceError, DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.numerics.checks import (
    expect_choice,
    expect_finite,
    expect_like,
    expect_range,
    expect_shape,
    expect_tensor,
)
from riemae.numerics.random import as_generator

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    "check",
    [
        lambda: expect_choice("f", "kind", "a", ("a", "b")),
        lambda: expect_range("f", "k", 3, 1, integer=True),
        lambda: expect_range("f", "k", 1, 1, 1),
        lambda: expect_range("f", "x", 0.5, 0, 1, above=True),
        lambda: expect_range("f", "x", -1e300),
        lambda: expect_tensor("f", "x", X),
        lambda: expect_shape("f", "x", X, (3, 2)),
        lambda: expect_shape("f", "x", X, ("n", "m")),
        lambda: expect_shape("f", "x", X, ("*b", 2)),
        lambda: expect_shape("f", "x", X[0], ("*b", 2)),
        lambda: expect_shape("f", "x", torch.tensor(1.0), ()),
        lambda: expect_like("f", "x", X, "z", X),
        lambda: expect_finite("f", "x", X),
        lambda: expect_finite("f", "x", torch.tensor([3e38, 3e38, -3e38])),  # whose sum overflows
    ],
)
def test_what_is_right_passes(check):
    assert check() is None


@pytest.mark.parametrize(
    ("check", "error", "text"),
    [
        (
            lambda: expect_choice("f", "kind", "c", ("a", "b")),
            OptionError,
            "f: expected kind among 'a', 'b', got 'c'. Try kind='a'.",
        ),
        (
            lambda: expect_range("f", "k", 0, 1),
            OptionError,
            "k of at least 1, got 0. Choose another k.",
        ),
        (lambda: expect_range("f", "k", 0, 0, above=True), OptionError, "k > 0, got 0"),
        (lambda: expect_range("f", "k", 3, 0, 2), OptionError, "k in [0, 2], got 3"),
        (lambda: expect_range("f", "k", 0, 0, 2, above=True), OptionError, "k in (0, 2], got 0"),
        (lambda: expect_range("f", "k", 3, high=2), OptionError, "k of at most 2, got 3"),
        (
            lambda: expect_range("f", "k", float("nan")),
            OptionError,
            "k as a finite number, got nan",
        ),
        (
            lambda: expect_range("f", "k", float("inf"), 0),
            OptionError,
            "k of at least 0, finite, got inf",
        ),
        (
            lambda: expect_range("f", "k", True, 0),
            OptionError,
            "k of at least 0, a number, got True",
        ),
        (
            lambda: expect_range("f", "k", 2.0, 1, integer=True),
            OptionError,
            "k of at least 1, a whole number, got 2.0",
        ),
        (
            lambda: expect_range("f", "k", "2", integer=True),
            OptionError,
            "k as a whole number, got '2'",
        ),
        (lambda: expect_tensor("f", "x", [1]), DTypeError, "x as a torch tensor, got list"),
        (lambda: expect_shape("f", "x", X, ("n", 3)), ShapeError, "x of shape (n, 3), got (3, 2)"),
        (lambda: expect_shape("f", "x", X, ("n",)), ShapeError, "x of shape (n,), got (3, 2)"),
        (
            lambda: expect_shape("f", "x", X[0, 0], ("*b", 2)),
            ShapeError,
            "x of shape (*b, 2), got ()",
        ),
        (
            lambda: expect_like("f", "x", X.double(), "z", X),
            DTypeError,
            "x of z's dtype torch.float32, got torch.float64. Convert one of them: x.to(z.dtype).",
        ),
        (
            lambda: expect_like("f", "x", X.to("meta"), "z", X),
            DeviceError,
            "x on z's device cpu, got meta. Move one of them: x.to(z.device).",
        ),
        (
            lambda: expect_finite("f", "x", torch.tensor([0.0, torch.nan, torch.inf])),
            NonFiniteError,
            "finite x, got NaN or infinity at 2 places (first: [[1], [2]]). Look at x there.",
        ),
        (lambda: as_generator("f", "0"), DTypeError, "a torch.Generator, a seed or None, got '0'"),
        (
            lambda: as_generator("f", True),
            DTypeError,
            "a torch.Generator, a seed or None, got True",
        ),
    ],
)
def test_errors_say_where_expected_got_and_try(check, error, text):
    with pytest.raises(error, match=re.escape(text)) as raised:
        check()
    assert raised.value.where == "f"
    assert raised.value.hint


def test_a_seed_is_a_generator():
    mine = torch.Generator()
    assert as_generator("f", None) is None
    assert as_generator("f", mine) is mine
    draw = torch.rand(3, generator=as_generator("f", 7))
    assert torch.equal(draw, torch.rand(3, generator=torch.Generator().manual_seed(7)))
