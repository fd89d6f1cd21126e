"""What a decoder returns: the one tensor in it, and refusals of what is not a row per point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from riemae.differential.jets import Jet
from riemae.distributions.layout import AnyLayout, Members
from riemae.exceptions import DecoderError


def single_tensor(output: Any) -> Any:
    """The one floating tensor of a tuple, a dict, or an output object of that kind.

    Anything else as it is.

    Raises:
        DecoderError: When there are several, and no distributions among them.
    """
    known = (Tensor, Members, Distribution)
    if isinstance(output, known):
        return output
    if isinstance(output, dict):
        parts = {str(name): x for name, x in output.items()}
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        parts = {str(name): x for name, x in zip(names, output, strict=True)}
    else:
        parts = dict(getattr(output, "__dict__", {}))
    if any(isinstance(x, (Members, Distribution)) for x in parts.values()):
        return output
    tensors = {n: x for n, x in parts.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if len(tensors) < 2:
        return next(iter(tensors.values()), output)
    first = next(iter(tensors))
    taken = f"o.{first}"
    if first.isdigit():
        taken = f"o[{first}]"
    if isinstance(output, dict) and not hasattr(output, first):
        taken = f"o[{first!r}]"
    raise DecoderError(
        "Manifold",
        "a decoder that returns one tensor, or distributions",
        f"{type(output).__name__} with the tensors {', '.join(tensors)}",
        f"Say which one is the data: Manifold(decoder, output=lambda o: {taken}).",
    )


def refuse_sparse_or_empty(z: Tensor, x: Tensor) -> None:
    """Refuse outputs of points ``z`` without numbers, or that are not laid out densely.

    Raises:
        DecoderError: For such outputs.
    """
    strided = x.layout == torch.strided
    empty = x.ndim > 1 and not x.numel() and len(z)
    if strided and not empty:
        return
    got = f"{x.layout}"
    if strided:
        got = f"shape {tuple(x.shape)}"
    raise DecoderError(
        "Manifold",
        "a decoder that returns dense tensors with numbers in them",
        got,
        "Let it return x.to_dense(), of at least one number per point.",
    )


def refuse_other_rows(z: Tensor, x: Tensor) -> None:
    """Refuse outputs that are not one row for each of the points ``z``.

    Raises:
        DecoderError: For another number of rows.
    """
    if x.ndim and len(x) == len(z):
        return
    raise DecoderError(
        "Manifold",
        f"a decoder that returns {len(z)} rows for {len(z)} points",
        f"shape {tuple(x.shape)}",
        "The first axis of the output must be the batch, unchanged.",
    )


def refuse_other_structure(found: AnyLayout | None, first: AnyLayout | None) -> None:
    """Refuse outputs that hold something else than those of the first call.

    Raises:
        DecoderError: For another structure.
    """
    if found != first:
        raise DecoderError(
            "Manifold",
            "a decoder that returns the same structure at every call",
            "another one than before",
            "Families and shapes must not depend on the point.",
        )


def refuse_other_shape(x: Tensor, first: torch.Size | None) -> None:
    """Refuse outputs of another shape than those of the first call, where there was one.

    Raises:
        DecoderError: For another shape.
    """
    if first is not None and x.shape[1:] != first:
        raise DecoderError(
            "Manifold",
            f"a decoder that returns outputs of shape {tuple(first)} at every call, as at first",
            str(tuple(x.shape[1:])),
            "Make a new Manifold for a decoder that has changed.",
        )


def without_rows(x: Tensor, invalid: Tensor | None) -> Tensor:  # (k, *shape), (k,) -> (k, *shape)
    """``x``, NaN in rows whose parameters lie outside of their family."""
    if invalid is None:
        return x
    inner_axes = (1,) * (x.ndim - 1)
    mask = invalid.view(-1, *inner_axes)
    if isinstance(x, Jet):
        x.value = torch.where(mask, torch.nan, x.value)
        return x
    return torch.where(mask, torch.nan, x)
