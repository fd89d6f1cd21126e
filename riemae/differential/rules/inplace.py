"""Functions that write in place: ``x.op_()`` is ``x = x.op()``, unless other jets share the memory.

A function that cannot be carried this way is refused, since its result would be silently wrong.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from riemae.differential.jets import Jet, Rule, name_of, refused, rule, taken_over, written
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]

# The operators x += y and its like reach a jet under the names add_ and its like.
OPERATORS = {
    "add_": "__iadd__",
    "sub_": "__isub__",
    "mul_": "__imul__",
    "div_": "__itruediv__ __idiv__",
    "pow_": "__ipow__",
}
WRITING = """
    add_ sub_ mul_ div_ pow_ neg_ abs_ clamp_ clamp_min_ clamp_max_ relu_ tanh_ sigmoid_ exp_ expm1_
    log_ log1p_ sin_ cos_ square_ sqrt_ rsqrt_ reciprocal_ erf_ erfc_ atan_ sinh_ cosh_ asinh_"""
TURNING = "unsqueeze_ squeeze_ transpose_ t_ swapaxes_ swapdims_"
REFUSED = """
    detach data_ptr numpy __array__ as_strided set_ resize_ requires_grad_ __setitem__ __imod__
    __ifloordiv__ __imatmul__ __iand__ __ior__ __ixor__ __ilshift__ __irshift__"""


def _in_place(plain: Any) -> Rule:
    """Writes the result of ``plain``."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        if not isinstance(args[0], Jet):
            raise NotImplementedError(
                f"{name_of(func)} writes a point's derivatives into a constant"
            )
        return written(func, args[0], Jet.__torch_function__(plain, (), args, kwargs))

    return apply


def _turned_in_place(plain: Any) -> Rule:
    """``x.transpose_()`` and its like: another shape, the same memory."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        taken_over(args[0], Jet.__torch_function__(plain, (), args, kwargs))
        return args[0]

    return apply


for _name in WRITING.split():
    rule(*spellings(_name, OPERATORS.get(_name, "")))(_in_place(getattr(Tensor, _name[:-1])))
for _name in TURNING.split():
    rule(*spellings(_name))(_turned_in_place(getattr(Tensor, _name[:-1])))
rule(*spellings(REFUSED))(refused)
