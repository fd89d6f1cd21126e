"""Conditions of a decoder as a user types them: ``--condition batch=3``."""

from __future__ import annotations

from typing import Any

import rich_click as click
import torch
from torch import Tensor

from riemae.cli.failures import ARGUMENTS

_HINT = (
    "Try --condition 3 for a label, --condition 0.5,1.2 for numbers, or --condition batch=3 for a "
    "decoder that takes conditions by name."
)


class Conditions(click.ParamType):
    """A label, a number or several numbers, with or without a name."""

    name = "condition"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str | None, Tensor]:
        """The name, if any, and the tensor for one point.

        Args:
            value: As typed.
            param: The option.
            ctx: The context.
        """
        if isinstance(value, tuple):
            return value
        name, named, text = str(value).rpartition("=")
        words = [word.strip() for word in text.split(",")]
        single = len(words) == 1
        if len(words) > 1 and not words[-1]:  # as in Python, "0.5," is a list of one number
            words = words[:-1]
        numbers = _integers(words) or _floats(words)
        if numbers is None or (named and not name.strip()):
            self.fail(f"{value!r} is neither VALUE nor NAME=VALUE with numbers. {_HINT}")
        return (name.strip() or None), torch.tensor(numbers[0] if single else numbers)[None]


def _integers(words: list[str]) -> list[int] | None:
    try:
        return [int(word) for word in words]
    except ValueError:
        return None


def _floats(words: list[str]) -> list[float] | None:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if all(abs(x) < float("inf") for x in numbers) else None


def condition_option(function: Any) -> Any:
    """Decorator: the condition under which the decoder is looked at, as ``condition=``."""
    return click.option(
        "--condition",
        type=Conditions(),
        multiple=True,
        metavar="[NAME=]VALUE",
        panel=ARGUMENTS,
        callback=_joined,
        help="Of a decoder f(z, c): a label (3), numbers (0.5,1.2), or one of either by name "
        "(batch=3), which may be repeated.",
    )(function)


def _joined(ctx: Any, param: Any, given: tuple[tuple[str | None, Tensor], ...]) -> Any:
    """What the decoder gets for one point: a tensor, a dict of them, or None.

    Raises:
        BadParameter: When only some have names, or a name comes twice.
    """
    if not given:
        return None
    names = [name for name, _ in given]
    if names == [None]:
        return given[0][1]
    if None in names:
        raise click.BadParameter(f"give one condition, or each of them a name. {_HINT}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"{twice!r} twice. {_HINT}")
    return dict(given)


def placed(condition: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A condition on the device; labels stay integers, and other numbers get the dtype.

    Args:
        condition: A tensor, or a dict of tensors.
        device: Where the decoder is.
        dtype: In which it computes.
    """
    if isinstance(condition, dict):
        return {name: placed(value, device, dtype) for name, value in condition.items()}
    return condition.to(device, dtype if condition.is_floating_point() else None)
