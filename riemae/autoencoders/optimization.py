"""Optimisers, schedules of the learning rate, and schedules of weights: by name, or of your own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_range

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer], Any]
Factor = Callable[[float], float]

CLIP = 1.0  # largest norm of the gradient where geometric terms are trained
_WARM_STEPS = 100  # over which the learning rate rises from 0, as long as Adam's mean lasts
_PATIENCE = 10  # epochs without a lower loss after which "plateau" halves the learning rate
_CYCLES = 4  # of "cyclical" (Fu et al. 2019)

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SCHEDULES = ("constant", "cosine", "plateau", "warmup", "warmup_cosine")
# These depend on the number of epochs, so a run that is resumed must have the same.
_UNTIL_THE_END = ("cosine", "warmup_cosine")


def _linear(progress: float) -> float:
    return min(1.0, 2 * progress)


def _cosine(progress: float) -> float:
    return (1 - math.cos(math.pi * progress)) / 2


def _cyclical(progress: float) -> float:
    within = progress * _CYCLES % 1.0
    return min(1.0, 2 * within)


FACTORS: dict[str, Factor] = {"linear": _linear, "cosine": _cosine, "cyclical": _cyclical}


@dataclass(frozen=True)
class Steps:
    """How the steps of a training are made.

    Attributes:
        lr: Learning rate.
        weight_decay: Decoupled weight decay of Adam; of the others as in ``torch.optim``.
        optimizer: A name of ``OPTIMIZERS``, or a function of the parameters.
        schedule: A name of ``SCHEDULES``, or a function of the optimizer, for the learning rate.
        clip: Largest norm of the gradient; None for no limit; ``"auto"`` is 1 where geometric
            terms are trained, and no limit elsewhere.
        warmup: Steps over which the weights of all geometric terms rise from 0.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: str | MakeOptimizer = "adam"
    schedule: str | MakeSchedule = "constant"
    clip: float | str | None = "auto"
    warmup: int = 0

    def check(self, where: str) -> None:
        """Refuse values that no training can use.

        Args:
            where: The call that asks, for the error.

        Raises:
            OptionError: For the first of them.
        """
        expect_range(where, "lr", self.lr, 0, above=True, hint="Try lr=1e-3.")
        hint = "Try weight_decay=0."
        expect_range(where, "weight_decay", self.weight_decay, 0, hint=hint)
        expect_range(where, "warmup", self.warmup, 0, integer=True, hint="Try warmup=0.")
        _expect_known(where, "optimizer", self.optimizer, OPTIMIZERS)
        _expect_known(where, "schedule", self.schedule, SCHEDULES)
        if self.clip is not None and self.clip != "auto":
            hint = "Use None for no limit."
            expect_range(where, "clip", self.clip, 0, above=True, hint=hint)

    def limit(self, geometric: bool) -> float | None:
        """The largest norm of the gradient, or None for no limit.

        Args:
            geometric: Whether there are geometric terms.
        """
        if isinstance(self.clip, str):
            return CLIP if geometric else None
        return self.clip

    @property
    def depends_on_epochs(self) -> bool:
        """Whether another number of epochs changes the steps from the beginning."""
        return self.schedule in _UNTIL_THE_END

    def optimizer_of(self, parameters: Iterable[nn.Parameter], fused: bool) -> Optimizer:
        """A new optimizer.

        Args:
            parameters: To be trained.
            fused: Whether the step of Adam may be one kernel.

        Raises:
            OptionError: When a function of the user returns anything else.
        """
        if isinstance(self.optimizer, str):
            options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
            if self.optimizer == "adam":
                # Small networks train 1.5 times faster with a fused step.
                options["fused"] = fused or None
            if self.optimizer == "sgd":
                options |= {"momentum": 0.9, "nesterov": True}
            return OPTIMIZERS[self.optimizer](parameters, **options)
        made = self.optimizer(parameters)
        if not isinstance(made, Optimizer):
            hint = "Try functools.partial(torch.optim.SGD, lr=0.1)."
            got = type(made).__name__
            raise OptionError("optimizer", "a function that returns an Optimizer", got, hint)
        return made

    def schedule_of(
        self, optimizer: Optimizer, epochs: int | None, steps: float, monitor: str
    ) -> dict[str, Any] | None:
        """Lightning's description of the schedule of the learning rate; None when it has none.

        Args:
            optimizer: Whose rate it changes.
            epochs: Of the whole training, or None when it has no end.
            steps: Of the whole training; infinite when they are not known.
            monitor: The loss that a schedule of the user's may watch.

        Raises:
            OptionError: When the schedule needs an end and there is none, or a function of the user
                returns anything but a scheduler.
        """
        if not isinstance(self.schedule, str):
            made = self.schedule(optimizer)
            if not callable(getattr(made, "step", None)):
                hint = "Try functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)."
                got = type(made).__name__
                raise OptionError("schedule", "a function that returns a scheduler", got, hint)
            return {"scheduler": made, "monitor": monitor}
        if self.schedule in ("constant", "plateau"):
            return None
        ends = steps if self.schedule == "warmup_cosine" else epochs or 0
        if self.depends_on_epochs and not 1 <= ends < math.inf:
            raise OptionError(
                "GeometricModule",
                f"max_epochs for schedule={self.schedule!r}, and batches that can be counted",
                f"max_epochs={epochs} and {steps} steps",
                "Give Trainer(max_epochs=…), or take schedule='constant'.",
            )
        if self.schedule == "cosine":
            falling = lr_scheduler.CosineAnnealingLR(optimizer, int(ends))
            return {"scheduler": falling}
        end = steps if self.schedule == "warmup_cosine" else None
        by_step = lr_scheduler.LambdaLR(optimizer, _Rise(end))
        return {"scheduler": by_step, "interval": "step"}

    def plateau_of(self, optimizer: Optimizer) -> lr_scheduler.ReduceLROnPlateau | None:
        """The schedule ``"plateau"``, or None when there is another one.

        Lightning would step it after a checkpoint is written, and not at all when it resumes.

        Args:
            optimizer: Whose rate it changes.
        """
        if self.schedule != "plateau":
            return None
        return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=_PATIENCE)


class _Rise:
    """A factor that rises from 0 in steps, and then stays, or falls to 0 at the end."""

    def __init__(self, end: float | None) -> None:
        self.end = end

    def __call__(self, step: int) -> float:
        if step < _WARM_STEPS:
            return (step + 1) / _WARM_STEPS
        if self.end is None:
            return 1.0
        left = max(self.end - _WARM_STEPS, 1.0)
        return (1 + math.cos(math.pi * min(1.0, (step - _WARM_STEPS) / left))) / 2


def as_factor(where: str, schedule: str | Factor | None) -> Factor | None:
    """The function of a schedule of a weight; None for a constant weight.

    Args:
        where: Whose weight it is, for the error.
        schedule: A name of ``FACTORS``; a function of the progress of the training, which runs
            from 0 to 1; or None.

    Raises:
        OptionError: For anything else.
    """
    if schedule is None or (callable(schedule) and not isinstance(schedule, str)):
        return schedule
    _expect_known(where, "schedule", schedule, FACTORS)
    return FACTORS[schedule]


def _expect_known(where: str, name: str, value: Any, known: Iterable[str]) -> None:
    names = list(known)
    if callable(value) or (isinstance(value, str) and value in names):
        return
    listed = ", ".join(map(repr, names))
    hint = f"Try {name}={names[0]!r}."
    raise OptionError(where, f"{name} among {listed}, or a function", repr(value), hint)
