"""Whether a call runs inside ``torch.func`` or ``torch.compile``, where some calls cannot work."""

from __future__ import annotations

import torch

from riemae.exceptions import DifferentiationError
from riemae.numerics.threads import in_forward_mode


def transforms() -> list[str]:
    """The active ``torch.func`` transforms, outermost first: ``"Grad"``, ``"Jvp"``, ``"Vmap"``."""
    refuse_compiling()
    stack = torch._C._functorch.get_interpreter_stack()
    return [] if stack is None else [interpreter.key().name for interpreter in stack]


def transformed() -> bool:
    """Whether a ``torch.func`` transform or a forward-mode level is at work."""
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None or in_forward_mode()


def refuse_compiling() -> None:
    """Refuse ``torch.compile`` around a call that differentiates a map, decides on values, or both.

    Raises:
        DifferentiationError: While torch.compile traces the call.
    """
    if torch.compiler.is_compiling():
        raise DifferentiationError(
            "torch.compile",
            "a decoder to compile",
            "a call that differentiates it",
            "Compile the decoder, Manifold(torch.compile(decoder)), or put torch.compiler.disable "
            "around the call.",
        )


def refuse_transforms(
    where: str, hint: str, kinds: tuple[str, ...] = ("Grad", "Jvp", "Vmap")
) -> None:
    """Refuse transforms in which values are hidden, or would silently lose their derivatives.

    Raises:
        DifferentiationError: Inside one of ``kinds``.
    """
    found = [kind for kind in transforms() if kind in kinds]
    if found:
        raise DifferentiationError(
            where, "plain tensors", f"tensors of torch.func's {found[-1].lower()}", hint
        )


def refuse_vmap(where: str) -> None:
    """Refuse ``torch.func.vmap``, for what decides on values and batches by itself."""
    hint = (
        "It takes leading batch axes as it is: call it on (*b, m) in place of vmap, and jacrev in "
        "place of jacfwd."
    )
    refuse_transforms(where, hint, ("Vmap",))
