"""The step of a training with ``torch.compile``: networks, and passes that find derivatives.

What is compiled is checked before it is used: at the first step the loss and its gradient are
computed both ways. Where they differ, or torch cannot compile, training goes on without, which a
warning announces.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from riemae.exceptions import FallbackWarning, RiemaeError, stack_level
from riemae.numerics.compiling import Compiling, compiling_aloud, in_words, refuse_without_compiler
from riemae.numerics.memory import is_shortage
from riemae.numerics.random import restored
from riemae.numerics.tolerances import tolerance


@dataclass
class CompiledStep:
    """What the networks of one objective are compiled to.

    Attributes:
        compiling: What ``torch.compile`` is called with; results are differentiated once.
        checked: Whether the first step has been made both ways.
        reason: Why nothing is compiled; None where nothing stood in the way.
    """

    compiling: Compiling
    checked: bool = False
    reason: str | None = None
    _networks: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    _by_itself: bool = False

    @classmethod
    def of(cls, where: str, given: Any) -> CompiledStep | None:
        """From an argument ``compile=``: see :meth:`Compiling.of`."""
        compiling = Compiling.of(where, given)
        return None if compiling is None else cls(replace(compiling, once=True))

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled does not travel.
        return {"compiling": self.compiling}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Begun anew; mypy has no way to allow that, because a subclass may take other arguments.
        self.__init__(state["compiling"])  # type: ignore[misc]

    @property
    def active(self) -> bool:
        """Whether compiled parts are used now."""
        return self.reason is None and not self._by_itself

    def network(self, name: str, module: nn.Module) -> Callable[..., Tensor]:
        """A network of the objective, compiled."""
        if not self.active:
            return module
        if name not in self._networks:
            self._networks[name] = _Network(self.compiling.compiled(module))
        return self._networks[name]

    def check(
        self, module: nn.Module, generator: torch.Generator | None, loss: Callable[[], Tensor]
    ) -> None:
        """Make one step both ways, without a trace; if they differ, nothing compiled is used.

        Args:
            module: Whose parameters are trained.
            generator: Source of the loss's randomness.
            loss: The loss of the first batch.

        Raises:
            OptionError: Where there is no compiler.
            RiemaeError: What the loss itself raises.
        """
        self.checked = True
        ends = [p for p in module.parameters() if p.requires_grad]

        def step() -> list[Tensor]:
            with _untouched(module, generator):
                value = loss()
                slopes = torch.autograd.grad(value, ends, allow_unused=True, materialize_grads=True)
            return [value.detach(), *slopes]

        self._by_itself = True
        try:
            expected = step()
        finally:
            self._by_itself = False
        try:
            found = step()
        except RiemaeError:
            raise
        except Exception as reason:  # of any kind: those of compilers are not documented
            if is_shortage(reason):
                raise
            refuse_without_compiler(self.compiling, reason)
            self._refuse(in_words(reason))
            return
        if not all(map(_agree, found, expected)):
            self._refuse("a compiled step gives other numbers")

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        self._networks.clear()
        warnings.warn(
            f"compile={self.compiling.given!r} does not hold for this training: {reason}. It goes "
            "on without, with the same numbers.",
            FallbackWarning,
            stacklevel=stack_level(),
        )


@dataclass
class _Network:
    """A compiled network, which is compiled anew for batches of another size."""

    call: Callable[..., Tensor]
    seen: set[tuple[Any, ...]] = field(default_factory=set)

    def __call__(self, *rows: Tensor) -> Tensor:
        kind = tuple((x.shape, x.dtype, x.requires_grad) for x in rows)
        if kind in self.seen:
            return self.call(*rows)
        with compiling_aloud():
            found = self.call(*rows)
        self.seen.add(kind)
        return found


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether numbers are those of another order of the same sums."""
    limit = tolerance(theirs.dtype if theirs.dtype == torch.float64 else torch.float32).check
    size = theirs.double().norm()
    return bool((ours.double() - theirs.double()).norm() <= limit * size + limit)


@contextmanager
def _untouched(module: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """A context after which buffers and sources of randomness are as they were."""
    buffers = [(x, x.clone()) for x in module.buffers()]
    drawn = None if generator is None else generator.get_state()
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with restored(device):
            yield
    finally:
        with torch.no_grad():
            for x, before in buffers:
                x.copy_(before)
        if generator is not None and drawn is not None:
            generator.set_state(drawn)
