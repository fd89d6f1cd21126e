"""Functions whose results have no derivatives: they are asked of the values."""

from __future__ import annotations

from typing import Any

from riemae.differential.jets import plain, rule
from riemae.differential.spellings import spellings

QUERIES = """
    size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous
    element_size get_device type is_same_size is_signed is_inference is_nonzero
    storage_offset result_type
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like
    new_zeros new_ones new_empty new_full new_tensor
    item tolist argmax argmin argsort isnan isfinite isinf isclose allclose equal
    eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ logical_not
    sym_size sym_stride sym_numel
    __len__ __repr__ __format__ __bool__ __contains__"""


@rule(*spellings(QUERIES))
def query(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the function says of the values."""
    return func(*plain(args), **plain(kwargs))
