"""What has been found out about a map, which other maps that are the same function take over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from riemae.differential.modes import Mode


@dataclass
class Trusted:
    """A mode that has been compared with autograd.

    Attributes:
        mode: Which.
        due: The call at which it is compared again; 0 for never.
        large: Whether a large batch has been seen, or cannot be looked at.
        calls: How often it has been asked for.
    """

    mode: Mode
    due: int
    large: bool
    calls: int = 1


@dataclass
class Known:
    """What has been found out about a map; another map that is the same function may take it over.

    Attributes:
        modes: By kind of derivative and by what else matters to it (:meth:`Trust.key`).
        refused: Modes that were trusted once.
        asked: Where autograd has been compared with the map itself.
        cut: Whether autograd's second derivative lacks a part, by dtype and device.
        roundoff: Relative rounding inside, by dtype and device; 0 for that of the dtype.
        rounded: Where it comes from conversions, which the map in float64 does without.
        widths: Those of :class:`~riemae.differential.chunks.Chunks`.
    """

    modes: dict[tuple[Any, ...], Trusted] = field(default_factory=dict)
    refused: dict[tuple[Any, ...], set[Mode]] = field(default_factory=dict)
    asked: set[tuple[Any, ...]] = field(default_factory=set)
    cut: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    roundoff: dict[tuple[Any, ...], float] = field(default_factory=dict)
    rounded: set[tuple[Any, ...]] = field(default_factory=set)
    widths: dict[Any, list[int]] = field(default_factory=dict)

    @property
    def announced(self) -> bool:
        """Whether a mode of which users are warned is among them."""
        return any(trusted.mode.announced for trusted in list(self.modes.values()))

    def copy(self) -> Known:
        """The same, which from now on changes by itself."""
        return Known(
            modes=dict(self.modes),
            refused={key: set(modes) for key, modes in self.refused.items()},
            asked=set(self.asked),
            cut=dict(self.cut),
            roundoff=dict(self.roundoff),
            rounded=set(self.rounded),
            widths=dict(self.widths),
        )
