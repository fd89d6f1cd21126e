"""The tail of a language model as a decoder: hidden states to the next token's distribution.

A prompt and a layer are fixed. The hidden state of the last token behind that layer moves in an
affine subspace of few dimensions, and the rest of the model turns it into a categorical
distribution, whose Fisher information measures: near are states from which the model goes on alike.
transformers itself is not imported.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from riemae.exceptions import DTypeError, OptionError
from riemae.interop.frozen import frozen
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range, expect_shape
from riemae.numerics.html import table

__all__ = ["Steering", "Tail", "manifold", "steer"]

_MODEL = "a causal language model of transformers"


class Tail(nn.Module):
    """What a language model makes of a hidden state of a prompt's last token.

    Args:
        model: A causal language model; it is copied, in evaluation mode.
        input_ids: The prompt, ``(s,)`` or ``(1, s)``.
        layer: The number of the block behind which the state stands; negative numbers count from
            the last one, whose state only meets the final norm and the head.

    Attributes:
        hidden: The state that the prompt itself has there, ``(d,)``.

    Raises:
        DTypeError: When ``model`` is not a module, or has no blocks.
        ShapeError: For several prompts.
        OptionError: When there is no such layer.
    """

    hidden: Tensor
    past: Tensor
    input_ids: Tensor

    def __init__(self, model: Any, input_ids: Tensor, layer: int = -1) -> None:
        super().__init__()
        where = "interop.transformers.Tail"
        ids = torch.as_tensor(input_ids)
        if ids.ndim == 1:
            ids = ids[None]
        expect_shape(where, "input_ids", ids, (1, "s"), "Give one prompt.")
        self.model = frozen(where, model, _MODEL, "forward", "config")
        blocks = _blocks(where, self.model)
        if not -len(blocks) <= layer < len(blocks):
            wanted = f"layer from {-len(blocks)} to {len(blocks) - 1}"
            raise OptionError(where, wanted, repr(layer), "Try layer=-1.")
        number = layer % len(blocks)
        self._block = [blocks[number]]  # in a list: it is a part of the model already
        accepted = inspect.signature(self.model.forward).parameters
        # The head is as wide as the vocabulary: the last token's is enough.
        self._options: dict[str, Any] = {"use_cache": False}
        if "logits_to_keep" in accepted:
            self._options["logits_to_keep"] = 1
        self.register_buffer("input_ids", ids.to(next(self.model.parameters()).device))
        seen: list[Tensor] = []

        def kept(state: Tensor) -> Tensor:
            seen.append(state)
            return state

        with torch.no_grad():
            self._run(1, kept)
        self.register_buffer("past", seen[0][:, :-1].clone())
        self.register_buffer("hidden", seen[0][0, -1].clone())
        # What these blocks would compute is known, or replaced.
        for block in list(blocks)[: number + 1]:
            block.forward = _Passing(self._inside_tuples)

    def forward(self, states: Tensor) -> Categorical:  # (k, d)
        """The next token's distributions."""

        def replaced(state: Tensor) -> Tensor:
            past = self.past.expand(len(states), -1, -1)
            return torch.cat([past, states[:, None].to(past)], 1)

        return Categorical(logits=self._run(len(states), replaced))

    def _run(self, count: int, change: Any) -> Tensor:  # -> (k, vocabulary)
        """The last token's logits, with the state behind the layer changed."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            self._inside_tuples = not isinstance(output, Tensor)
            if isinstance(output, Tensor):
                return change(output)
            return (change(output[0]), *output[1:])

        handle = self._block[0].register_forward_hook(hook)
        try:
            output = self.model(input_ids=self.input_ids.expand(count, -1), **self._options)
        finally:
            handle.remove()
        logits: Tensor = output.logits[:, -1]
        return logits


class _Passing:
    """In place of a block's computation: its input comes out again."""

    def __init__(self, inside_tuple: bool) -> None:
        self.inside_tuple = inside_tuple

    def __call__(self, hidden_states: Tensor, *others: Any, **options: Any) -> Any:
        return (hidden_states,) if self.inside_tuple else hidden_states


class _Plane(nn.Module):
    """Coordinates in an affine subspace of hidden states, decoded by a tail."""

    origin: Tensor
    directions: Tensor

    def __init__(self, tail: Tail, origin: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.tail = tail
        self.register_buffer("origin", origin)
        self.register_buffer("directions", directions)

    def forward(self, z: Tensor) -> Categorical:  # (k, m)
        found: Categorical = self.tail(self.states(z))
        return found

    def states(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, d)
        """Hidden states of coordinates."""
        return self.origin + z @ self.directions


def manifold(
    model: Any,
    input_ids: Tensor,
    directions: Tensor,
    layer: int = -1,
    origin: Tensor | None = None,
    **options: Any,
) -> Manifold:
    """The manifold of next-token distributions over an affine subspace of hidden states.

    A code ``z`` stands for the state ``origin + z @ directions``.

    Args:
        model: A causal language model; it is copied, in evaluation mode.
        input_ids: The prompt, ``(s,)`` or ``(1, s)``.
        directions: ``(m, d)``, linearly independent: differences of states of contrasting prompts,
            or principal components of many.
        layer: As in :class:`Tail`.
        origin: ``(d,)``; by default the state of the prompt itself.
        options: Others of :class:`~riemae.Manifold`, such as ``ambient``.

    Raises:
        DTypeError: When ``model`` is not a language model, or ``directions`` not a tensor.
        ShapeError: When directions or origin do not fit the states.
        OptionError: When there is no such layer, or directions are dependent.
    """
    where = "interop.transformers.manifold"
    tail = Tail(model, input_ids, layer)
    like = tail.hidden
    expect_shape(where, "directions", directions, ("m", len(like)))
    base = like if origin is None else origin
    expect_shape(where, "origin", base, (len(like),))
    if int(torch.linalg.matrix_rank(directions.double())) < len(directions):
        hint = "Leave out those that are combinations of others."
        raise OptionError(where, "directions that are independent", "dependent ones", hint)
    plane = _Plane(tail, base.detach().to(like).clone(), directions.detach().to(like).clone())
    return Manifold(plane, latent_dim=len(directions), **options)


@dataclass(frozen=True, eq=False)
class Steering:
    """What adding vectors to a hidden state does, along a geodesic and along a straight line.

    Attributes:
        times: ``(t,)`` from 0 to 1.
        vectors: ``(t, d)``, what to add to the hidden state, along the geodesic.
        target: ``(t,)``, probability of the target tokens.
        off_target: ``(t,)``, Kullback-Leibler divergence in nats of all other tokens'
            distribution from that at the start: what steering changes that it should not.
        straight_vectors: The same along the straight line between the same ends.
        straight_target: Likewise.
        straight_off_target: Likewise.
        length: Of the geodesic, in Fisher-Rao units.
        straight_length: Of the line.
    """

    times: Tensor
    vectors: Tensor
    target: Tensor
    off_target: Tensor
    straight_vectors: Tensor
    straight_target: Tensor
    straight_off_target: Tensor
    length: float
    straight_length: float

    def summary(self) -> str:
        """What both ways do, in a sentence."""
        start, stop = float(self.target[0]), float(self.target[-1])
        worst = float(self.off_target.max()), float(self.straight_off_target.max())
        return (
            f"target {start:.3g} to {stop:.3g}; off-target divergence at most {worst[0]:.3g} nats "
            f"along the geodesic, {worst[1]:.3g} along the line"
        )

    def __repr__(self) -> str:
        return f"Steering({self.summary()})"

    def _repr_html_(self) -> str:
        """Both ways as a table, for notebooks."""
        columns = (
            self.times,
            self.target,
            self.off_target,
            self.straight_target,
            self.straight_off_target,
        )
        rows = [[f"{float(x):.3g}" for x in row] for row in zip(*columns, strict=True)]
        header = ("time", "target", "off-target", "target (line)", "off-target (line)")
        return table("Steering", rows, header)


def steer(
    manifold: Manifold,
    z0: Tensor,
    z1: Tensor,
    target: Tensor | list[int],
    steps: int = 9,
    **options: Any,
) -> Steering:
    """Steering vectors along the geodesic from one code to another, and what else they change.

    Args:
        manifold: As :func:`manifold` makes it.
        z0: Start ``(m,)``.
        z1: End ``(m,)``.
        target: Numbers of the tokens whose probability is meant to change.
        steps: Vectors from start to end.
        options: Others of :meth:`riemae.Manifold.geodesic`.

    Raises:
        DTypeError: When ``manifold`` is not such a one.
        ShapeError: When a code is not ``(m,)``.
        OptionError: When ``target`` names no tokens or all, or ``steps`` is less than 2.
        NotConvergedError: When the geodesic fails, unless ``throw=False``.
    """
    where = "interop.transformers.steer"
    plane = manifold.decoder if isinstance(manifold, Manifold) else None
    if not isinstance(plane, _Plane):
        hint = "Make it with riemae.interop.transformers.manifold."
        raise DTypeError(where, "a manifold of a language model", type(manifold).__name__, hint)
    for name, z in (("z0", z0), ("z1", z1)):
        expect_shape(where, name, z, (len(plane.directions),))
    expect_range(where, "steps", steps, 2, integer=True)
    chosen = torch.as_tensor(target).reshape(-1).to(z0.device)
    if not chosen.numel() or chosen.is_floating_point():
        raise OptionError(where, "target as numbers of tokens", repr(target), "Try target=[262].")
    found = manifold.geodesic(z0, z1, **options)
    times = torch.linspace(0, 1, steps, dtype=z0.dtype, device=z0.device)
    ways = (found.curve(times), z0 + times[:, None] * (z1 - z0))
    told = [_effect(where, plane, way, chosen) for way in ways]
    line = manifold.length(torch.stack([z0, z1]), rtol=1e-3)
    return Steering(
        times,
        *told[0],
        *told[1],
        length=float(found.length),
        straight_length=float(line.detach()),
    )


def _effect(
    where: str, plane: _Plane, z: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # (t, m) -> (t, d), (t,), (t,)
    """Vectors, target probabilities and off-target divergences along codes.

    Raises:
        OptionError: When ``target`` is out of the vocabulary, or all of it.
    """
    with torch.no_grad():
        log_p = plane(z).logits.log_softmax(-1)
        vectors = plane.states(z) - plane.states(z[:1])
    count = log_p.shape[-1]
    others = torch.ones(count, dtype=torch.bool, device=z.device)
    if int(target.min()) < 0 or int(target.max()) >= count:
        raise OptionError(where, f"target from 0 to {count - 1}", str(target.tolist()), "")
    others[target] = False
    if not bool(others.any()):
        raise OptionError(where, "some tokens besides the target", "none", "Name fewer.")
    rest = log_p[:, others].log_softmax(-1)
    divergence = (rest.exp() * (rest - rest[:1])).sum(-1).clamp(min=0)
    return vectors, log_p[:, target].exp().sum(-1), divergence


def _blocks(where: str, model: nn.Module) -> nn.ModuleList:
    """The blocks of a model: its longest list of modules.

    Raises:
        DTypeError: When there is none.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise DTypeError(where, _MODEL, f"{type(model).__name__} without blocks", "")
    return max(lists, key=len)
