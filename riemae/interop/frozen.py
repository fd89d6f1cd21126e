"""Networks of other libraries as decoders: copied, in evaluation mode, without gradients."""

from __future__ import annotations

from typing import Any

from torch import nn

from riemae.exceptions import DTypeError
from riemae.numerics.reach import copied

__all__ = ["frozen"]


def frozen(where: str, module: Any, expected: str, *needed: str) -> nn.Module:
    """A copy of a module that nothing trains any more; the original stays as it is.

    Args:
        where: The call, for the error.
        module: The network.
        expected: What it should be, for the error.
        needed: Attributes that it must have.

    Raises:
        DTypeError: When it is not a module, or lacks one of them.
    """
    missing = [name for name in needed if not hasattr(module, name)]
    if not isinstance(module, nn.Module) or missing:
        got = type(module).__name__
        if missing:
            got += f" without {', '.join(missing)}"
        raise DTypeError(where, expected, got, "Give the model itself, trained.")
    copy: nn.Module = copied(module)
    return copy.eval().requires_grad_(False)
