"""What to say where a decoder fails at the points that it is given."""

from __future__ import annotations

import itertools
import traceback
from typing import Any

from torch import Tensor

from riemae.differential.conditions import Condition
from riemae.differential.trust import INFERENCE
from riemae.exceptions import DecoderError
from riemae.numerics import reach
from riemae.numerics.arithmetic import is_half

# Packages of layers that round activations.
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def explained_failure(
    where: str, function: Any, points: Tensor, condition: Condition | None, reason: Exception
) -> DecoderError:
    """The error for a decoder that fails at its first points.

    Args:
        where: The method that is called.
        function: The decoder.
        points: What it was given.
        condition: One for each point.
        reason: What it raised.
    """
    if isinstance(reason, TypeError) and "positional argument" in str(reason):
        return _wrong_arguments(where, condition, reason)
    shape = tuple(points.shape)
    expected = f"a decoder that accepts points of shape {shape} and dtype {points.dtype}"
    hint = _advice(function, points, reason)
    if condition is not None:
        expected += _with_conditions(condition)
        hint += " Does it take conditions of this form, one for each row?"
    got = f"{type(reason).__name__}: {reason}"
    return DecoderError(where, expected, got, hint)


def refuse_quantized(where: str, function: Any) -> None:
    """Refuse modules whose activations are rounded to whole numbers.

    Args:
        where: The method that is called.
        function: The decoder.

    Raises:
        DecoderError: With the name and the class of the first one.
    """
    for module in reach.modules(function):
        for name, part in module.named_modules():
            if not type(part).__module__.startswith(_QUANTIZED):
                continue
            kind = repr(part).partition("(")[0]
            named = f" {name!r}" if name else ""
            raise DecoderError(
                where,
                "a decoder that computes with floating-point numbers",
                f"a quantized layer, {kind}{named}",
                "It rounds what it gets to 8 bits, by a scale that all points of a batch have in "
                "common: rows depend on each other, and a staircase has no derivative. Give the "
                "network as it was before quantization, or one with weights in half precision.",
            )


def refuse_flex_attention(reason: Exception, points: Tensor) -> None:
    """Explain what FlexAttention raises on a CPU; nothing for other failures.

    Args:
        reason: What the decoder raised.
        points: What it was given.

    Raises:
        DecoderError: When it was raised inside of FlexAttention.
    """
    frames = (frame for frame, _ in traceback.walk_tb(reason.__traceback__))
    inside = any(frame.f_code.co_filename.endswith("flex_attention.py") for frame in frames)
    if points.device.type != "cpu" or not inside or not _is_refusal(reason):
        return
    first = next(iter(str(reason).strip().splitlines()), "")
    raise DecoderError(
        "Manifold",
        "a decoder that torch can differentiate",
        f"flex_attention, which has no derivative on a CPU ({type(reason).__name__}: {first})",
        "Use torch.nn.functional.scaled_dot_product_attention, with what score_mod adds as "
        "attn_mask=, and -inf where mask_mod hides.",
    ) from reason


def _is_refusal(reason: Exception) -> bool:
    """Whether torch does not support the call, or its compiler cannot trace it."""
    compiler = type(reason).__module__.startswith("torch._dynamo")
    return compiler or isinstance(reason, NotImplementedError)


def _wrong_arguments(where: str, condition: Condition | None, reason: TypeError) -> DecoderError:
    """The error for a decoder that takes a condition and got none, or the reverse."""
    if condition is None:
        return DecoderError(
            where,
            "a condition for each point, or one for all: the decoder takes a condition",
            f"none ({reason})",
            "Pass condition=, of shape (*b, *shape) for points of shape (*b, m).",
        )
    return DecoderError(
        where,
        "no condition: the decoder takes points alone",
        f"a condition ({reason})",
        "Leave condition= out, or write the decoder as a function of z and c.",
    )


def _with_conditions(condition: Condition) -> str:
    shapes = []
    for leaf in condition.leaves:
        shape = (len(condition), *leaf.shape[1:])
        shapes.append(f"{shape} and dtype {leaf.dtype}")
    return f", with conditions of shape {', '.join(shapes)}"


def _advice(function: Any, points: Tensor, reason: Exception) -> str:
    """What to try when the decoder fails at its first points."""
    held = _tensors(function)
    message = str(reason)
    if "dtype" in message or "scalar type" in message:
        return _advice_on_dtypes(held, points)
    if any(x.is_inference() for x in held):
        return INFERENCE
    if isinstance(reason, (AttributeError, LookupError)):
        return (
            "Pass what takes a tensor (k, m), such as Manifold(model.decoder), or wrap the "
            "call: Manifold(lambda z: model.decode(z)[0])."
        )
    hint = "Is the last axis of z the latent dimension, and does the decoder take a batch (k, m)?"
    if "must match" in message:
        hint += (
            " What has a row for each point, such as its class, belongs into condition=, for a "
            "decoder f(z, c)."
        )
    return hint


def _tensors(function: Any) -> list[Tensor]:
    """Parameters and buffers of the modules that a function reaches."""
    held: list[Tensor] = []
    for part in reach.modules(function):
        held.extend(itertools.chain(part.parameters(), part.buffers()))
    return held


def _advice_on_dtypes(held: list[Tensor], points: Tensor) -> str:
    floating = {x.dtype for x in held if x.is_floating_point()}
    others = sorted(floating - {points.dtype}, key=str)
    found = ""
    if others:
        names = ", ".join(map(str, others))
        found = f" It refers to networks in {names}."
    half = next(filter(is_half, others), None)
    if half is not None:
        return (
            f"It computes in another dtype than {points.dtype}.{found} Convert points inside, "
            f"Manifold(lambda z: decoder(z.to({half}))), or the networks with .float()."
        )
    return (
        f"It computes in another dtype than {points.dtype}.{found} Give z in the decoder's dtype, "
        "or convert all that it uses, its constants included; M.to(dtype=...) reaches modules and "
        "tensors in closures, defaults, globals and bound methods."
    )
