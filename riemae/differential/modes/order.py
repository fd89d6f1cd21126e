"""The order in which modes are tried.

1. Taylor mode, with the fused kernels of torch.
2. Taylor mode with portable kernels, which have derivatives where fused ones lack them.
3. Forward mode: ``torch.func``, nested for second derivatives. It takes more kinds of maps.
4. Forward mode with portable kernels.
5. Forward mode, one direction at a time, for what ``torch.func.vmap`` does not take.
6. Reverse mode twice by ``torch.autograd``, for what has no forward mode.
7. Reverse mode twice by ``torch.func``, all directions together, then one at a time: for what is
   inside a caller's ``torch.func``.
8. Reverse mode once, and central differences of it for second derivatives: for maps with a single
   backward pass.

The first that agrees with plain autograd is used
(:mod:`riemae.differential.trust`). The sixth and seventh are announced by a
:class:`~riemae.exceptions.FallbackWarning`; the last, which is approximate, by an
:class:`~riemae.exceptions.ApproximationWarning`. Inside a caller's ``torch.func`` transforms, only
3 to 6 are tried.
"""

from __future__ import annotations

from riemae.differential.modes.base import Mode
from riemae.differential.modes.differences import Differences
from riemae.differential.modes.nested import Nested, Reverse
from riemae.differential.modes.plain import Plain
from riemae.differential.modes.taylor import Taylor

PORTABLE = Taylor("Taylor mode with portable kernels")
NESTED: tuple[Nested, ...] = (
    Nested("forward mode", portable=False),
    Nested("forward mode with portable kernels"),
    Nested("forward mode, one direction at a time", vectorised=False),
    Reverse("reverse mode twice, all directions together", vectorised=True),
    Reverse("reverse mode twice"),
)
PLAIN = Plain("reverse mode twice by torch.autograd")
MODES: tuple[Mode, ...] = (
    Taylor("Taylor mode", portable=False),
    PORTABLE,
    *(mode for mode in NESTED if not mode.announced),
    PLAIN,
    *(mode for mode in NESTED if mode.announced),
    Differences("reverse mode once", vectorised=False),
)
