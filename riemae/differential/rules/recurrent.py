"""Recurrent layers and cells, unrolled step by step: fused kernels have no forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from riemae.differential.jets import composition
from riemae.differential.spellings import spellings

# (projected input (b, g), states, recurrent weight, recurrent bias, projection) -> states; the
# first is the output.
Step = Callable[[Any, tuple[Any, ...], Any, Any, Any], tuple[Any, ...]]


def _lstm_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, projection: Any = None
) -> tuple[Any, ...]:
    hidden, cell = states
    gates = x + F.linear(hidden, weight, bias)
    entry, forget, candidate, exit_ = gates.split(cell.shape[-1], -1)
    kept = forget.sigmoid() * cell
    added = entry.sigmoid() * candidate.tanh()
    cell = kept + added
    hidden = exit_.sigmoid() * cell.tanh()
    return (hidden if projection is None else F.linear(hidden, projection)), cell


def _gru_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    (hidden,) = states
    n = hidden.shape[-1]
    recurrent = F.linear(hidden, weight, bias)
    entering = x[..., : 2 * n]
    returning = recurrent[..., : 2 * n]
    gates = (entering + returning).sigmoid()
    reset, update = gates.split(n, -1)
    remembered = reset * recurrent[..., 2 * n :]
    candidate = (x[..., 2 * n :] + remembered).tanh()
    kept = update * (hidden - candidate)
    return (candidate + kept,)


def _tanh_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    return ((x + F.linear(states[0], weight, bias)).tanh(),)


def _relu_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    return ((x + F.linear(states[0], weight, bias)).relu(),)


class Arguments(NamedTuple):
    """What torch's functions of recurrent layers are called with."""

    x: Any
    start: Any
    weights: Any
    has_biases: Any
    layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


@dataclass(frozen=True)
class Layer:
    """A recurrent layer, unrolled.

    Attributes:
        step: What it does at one time.
        states: How many states it carries.
    """

    step: Step
    states: int

    def __call__(self, func: Any, *args: Any) -> Any:  # (t, b, e) -> (t, b, h), last states
        """As the function of torch, with its arguments."""
        given = Arguments(*args)
        packed = not isinstance(given.has_biases, bool)
        if packed or (given.train and given.dropout > 0):
            return func(*args)
        begin = tuple(given.start) if self.states > 1 else (given.start,)
        count = 2 if given.bidirectional else 1
        own = _directions(given.weights, given.has_biases, given.layers * count)
        time = 1 if given.batch_first else 0
        outputs = list(given.x.unbind(time))
        ends: list[tuple[Any, ...]] = []
        for first in range(0, len(own), count):
            places = range(first, first + count)
            initial = [tuple(parts[place] for parts in begin) for place in places]
            outputs, last = self._through(outputs, initial, own[first : first + count])
            ends.extend(last)
        kept = (torch.stack(states) for states in zip(*ends, strict=True))
        return torch.stack(outputs, time), *kept

    def _through(
        self, inputs: list[Any], initial: list[tuple[Any, ...]], parameters: list[list[Any]]
    ) -> tuple[list[Any], list[tuple[Any, ...]]]:
        """One layer, forwards and perhaps backwards: its outputs, and the last states."""
        found, last = self._run(inputs, initial[0], parameters[0])
        if len(parameters) == 1:
            return found, [last]
        reverse = inputs[::-1]
        back, behind = self._run(reverse, initial[1], parameters[1])
        both_ways = zip(found, back[::-1], strict=True)
        joined = [torch.cat(both, -1) for both in both_ways]
        return joined, [last, behind]

    def _run(
        self, inputs: list[Any], states: tuple[Any, ...], parameters: list[Any]
    ) -> tuple[list[Any], tuple[Any, ...]]:
        """One direction of one layer."""
        weight, recurrent, bias, recurrent_bias, projection = parameters
        outputs = []
        for x in _projected(inputs, weight, bias):
            states = self.step(x, states, recurrent, recurrent_bias, projection)
            outputs.append(states[0])
        return outputs, states


def _directions(weights: Sequence[Any], has_biases: bool, count: int) -> list[list[Any]]:
    """Weights of each direction of each layer: input, recurrent, two biases, projection."""
    each = len(weights) // count
    found = []
    for start in range(0, len(weights), each):
        given = list(weights[start : start + each])
        if not has_biases:
            given[2:2] = [None, None]
        found.append([*given, None][:5])
    return found


def _projected(inputs: list[Any], weight: Any, bias: Any) -> list[Any]:
    """All inputs of a direction at once: one product in place of one per step."""
    if all(x is inputs[0] for x in inputs):
        return [F.linear(inputs[0], weight, bias)] * len(inputs)
    return list(F.linear(torch.stack(inputs, -2), weight, bias).unbind(-2))


LAYERS = {
    "lstm": Layer(_lstm_step, 2),
    "gru": Layer(_gru_step, 1),
    "rnn_tanh": Layer(_tanh_step, 1),
    "rnn_relu": Layer(_relu_step, 1),
}
for _name, _unrolled in LAYERS.items():
    composition(*spellings(_name))(_unrolled)


# Cells: one step.


@composition(*spellings("lstm_cell"))
def _lstm_cell(
    func: Any, x: Any, states: Any, weight: Any, recurrent: Any, bias: Any = None, other: Any = None
) -> Any:
    return _lstm_step(F.linear(x, weight, bias), tuple(states), recurrent, other)


def _cell(step: Step) -> Callable[..., Any]:
    def once(
        func: Any,
        x: Any,
        state: Any,
        weight: Any,
        recurrent: Any,
        bias: Any = None,
        other: Any = None,
    ) -> Any:
        return step(F.linear(x, weight, bias), (state,), recurrent, other, None)[0]

    return once


for _name, _step in {
    "gru_cell": _gru_step,
    "rnn_tanh_cell": _tanh_step,
    "rnn_relu_cell": _relu_step,
}.items():
    composition(*spellings(_name))(_cell(_step))
