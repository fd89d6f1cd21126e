"""What ``torch.func`` is doing around a call: some cannot work inside its transforms, and say so."""

from __future__ import annotations

import torch

from riemae.solvers.exceptions import DifferentiationError


def transforms() -> list[str]:
    """The ``torch.func`` transforms at work, the outermost first: ``"Grad"``, ``"Jvp"``, ``"Vmap"``."""
    stack = torch._C._functorch.get_interpreter_stack()
    return [] if stack is None else [interpreter.key().name for interpreter in stack]


def refuse_transforms(where: str, hint: str, kinds: tuple[str, ...] = ("Grad", "Jvp", "Vmap")) -> None:
    """Refuse transforms in which values cannot be looked at, or would silently lose their derivatives.

    Raises:
        DifferentiationError: Inside one of ``kinds``.
    """
    found = [kind for kind in transforms() if kind in kinds]
    if found:
        raise DifferentiationError(where, "plain tensors", f"tensors of torch.func's {found[-1].lower()}", hint)


def refuse_vmap(where: str) -> None:
    """Refuse ``torch.func.vmap``, for what decides on values and batches by itself."""
    hint = "It takes leading batch axes as it is: call it on (*b, m) in place of vmap, and jacrev in place of jacfwd."
    refuse_transforms(where, hint, ("Vmap",))
