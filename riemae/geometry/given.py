"""A decoder at one condition, which is a decoder of points alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import DecoderError, DTypeError


class AtCondition(nn.Module):
    """``z -> decoder(z, c)`` with the same ``c`` for every point.

    Parameters and buffers of the decoder are its own, and tensors of the condition are buffers, so
    that all of them move together.

    Args:
        decoder: A module, a bound method of one, or a function of points and conditions.
        condition: One condition.
    """

    def __init__(self, decoder: Callable[..., Any], condition: Condition) -> None:
        super().__init__()
        self.decoder = decoder
        owner = getattr(decoder, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.condition = condition
        for k, leaf in enumerate(condition.leaves):
            self.register_buffer(f"condition_{k}", leaf, persistent=False)
        name = getattr(decoder, "__qualname__", type(decoder).__name__)
        self.__qualname__ = f"{name} at one condition"
        # Of the module's modes, the decoder's are those that count.
        inner = decoder if isinstance(decoder, nn.Module) else self.owner
        self.training = inner.training if inner is not None else False

    def forward(self, z: Tensor) -> Any:  # (k, *code) -> (k, *shape)
        """Decode points."""
        leaves = [getattr(self, f"condition_{k}") for k in range(len(self.condition.leaves))]
        rows = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return self.decoder(z, self.condition.holding(leaves).chosen(rows).values())


def at_condition(where: str, decoder: Callable[..., Any], condition: Conditions) -> AtCondition:
    """The decoder under this condition alone.

    Args:
        where: Who asks.
        decoder: Of points and conditions.
        condition: ``(1, *shape)``, in the structure in which the decoder takes conditions; an
            integer is a label.

    Raises:
        DecoderError: When the decoder takes no condition.
        DTypeError: For a condition that is none.
        OptionError: For several conditions.
        ShapeError: When its first axis is not 1.
    """
    if isinstance(condition, int) and not isinstance(condition, bool):
        condition = torch.tensor([condition])
    hint = "Give what the decoder takes for one point, with an axis of length 1 in front."
    if condition is None:
        raise DTypeError(where, "a condition", "None", hint)
    _expect_taken(where, decoder)
    one = torch.Size([1])
    found = Condition.of(where, condition, one, _device(condition))
    assert found is not None  # None was refused
    return AtCondition(decoder, found.single(where))


def _expect_taken(where: str, decoder: Callable[..., Any]) -> None:
    """Refuse a decoder of points alone, as far as its signature tells.

    Raises:
        DecoderError: When it cannot be called with a condition.
    """
    called = decoder.forward if isinstance(decoder, nn.Module) else decoder
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # written in C: the first call tells
        return
    try:
        signature.bind(None, None)
    except TypeError as reason:
        raise DecoderError(
            where,
            "a decoder f(z, c), which takes a condition",
            f"one that takes {signature}",
            "Leave the condition out, or write the decoder as a function of z and c.",
        ) from reason


def _device(condition: Any) -> torch.device:
    """Where the condition's first tensor lives; the others have to be there too."""
    while isinstance(condition, (dict, tuple, list)) and condition:
        parts = list(condition.values()) if isinstance(condition, dict) else list(condition)
        condition = parts[0]
    return condition.device if isinstance(condition, Tensor) else torch.device("cpu")
