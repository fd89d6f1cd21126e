"""Recurrent layers and cells, unrolled step by step: fused kernels have no forward mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
    cell = forget.sigmoid() * cell + entry.sigmoid() * candidate.tanh()
    hidden = exit_.sigmoid() * cell.tanh()
    return (hidden if projection is None else F.linear(hidden, projection)), cell


def _gru_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    (hidden,) = states
    n = hidden.shape[-1]
    recurrent = F.linear(hidden, weight, bias)
    gates = (x[..., : 2 * n] + recurrent[..., : 2 * n]).sigmoid()
    reset, update = gates.split(n, -1)
    candidate = (x[..., 2 * n :] + reset * recurrent[..., 2 * n :]).tanh()
    return (candidate + update * (hidden - candidate),)


def _tanh_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    return ((x + F.linear(states[0], weight, bias)).tanh(),)


def _relu_step(
    x: Any, states: tuple[Any, ...], weight: Any, bias: Any, _: Any = None
) -> tuple[Any, ...]:
    return ((x + F.linear(states[0], weight, bias)).relu(),)


# By the name of the layer's function: its step, and how many states it has.
LAYERS: dict[str, tuple[Step, int]] = {
    "lstm": (_lstm_step, 2),
    "gru": (_gru_step, 1),
    "rnn_tanh": (_tanh_step, 1),
    "rnn_relu": (_relu_step, 1),
}


def _layer(name: str) -> Callable[..., Any]:
    step, count = LAYERS[name]

    def unrolled(func: Any, *args: Any) -> Any:
        x, start, weights, has_biases, layers, dropout, train, bidirectional, batch_first = args
        if not isinstance(has_biases, bool) or (train and dropout > 0):
            return func(*args)  # packed sequences, and random ones
        begin = tuple(start) if count > 1 else (start,)
        directions = 2 if bidirectional else 1
        own = _directions(weights, has_biases, layers * directions)
        inputs = list(x.unbind(1 if batch_first else 0))
        last: list[list[Any]] = [[] for _ in begin]
        for layer in range(layers):
            outputs = []
            for backward in range(directions):
                place = layer * directions + backward
                order = inputs[::-1] if backward else inputs
                states = tuple(parts[place] for parts in begin)
                found, states = _run(step, order, states, own[place])
                outputs.append(found[::-1] if backward else found)
                for kept, state in zip(last, states, strict=True):
                    kept.append(state)
            inputs = [torch.cat(both, -1) for both in zip(*outputs, strict=True)]
        ends = tuple(torch.stack(states) for states in last)
        return torch.stack(inputs, 1 if batch_first else 0), *ends

    return unrolled


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


def _run(
    step: Step, inputs: list[Any], states: tuple[Any, ...], parameters: list[Any]
) -> tuple[list[Any], tuple[Any, ...]]:
    """One direction of one layer."""
    weight, recurrent, bias, recurrent_bias, projection = parameters
    outputs = []
    for x in _projected(inputs, weight, bias):
        states = step(x, states, recurrent, recurrent_bias, projection)
        outputs.append(states[0])
    return outputs, states


def _projected(inputs: list[Any], weight: Any, bias: Any) -> list[Any]:
    """All inputs of a direction at once: one product in place of one per step."""
    if all(x is inputs[0] for x in inputs):
        return [F.linear(inputs[0], weight, bias)] * len(inputs)
    return list(F.linear(torch.stack(inputs, -2), weight, bias).unbind(-2))


for _name in LAYERS:
    composition(*spellings(_name))(_layer(_name))


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
