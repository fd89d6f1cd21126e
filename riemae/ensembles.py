"""Several decoders of the same data as one uncertain decoder.

Ensembles, dropout masks and posterior samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from riemae.distributions.layout import Members
from riemae.exceptions import DecoderError, DTypeError, OptionError, ShapeError
from riemae.numerics.random import seeded
from riemae.numerics.reach import computed

_DROPOUT = (nn.modules.dropout._DropoutNd,)


class Ensemble(nn.Module):
    """K decoders of one data space, whose geometry is that of their mean metric.

    ``Manifold(Ensemble([...]), ambient)`` measures each member by the ambient metric and averages:
    with a feature map ``φ = K^{-1/2} [φ∘f₁; …; φ∘f_K]``, so that ``G = 1/K Σ G_i``. Where members
    disagree, ``G`` is large, and geodesics keep to where they agree. ``M.decode(z)`` has all
    members' outputs, ``(*b, K, *shape)``; ``M.members`` are the manifolds of the single members,
    and ``M.distance(z0, z1, per_member=True)`` shows their spread.

    Args:
        members: Modules or functions ``(k, m) -> (k, *shape)``, or ones that return distributions.

    Raises:
        OptionError: Without members.
        DTypeError: When one of them is not callable.

    Example:
        >>> import torch
        >>> from riemae import Ensemble, Manifold
        >>> M = Manifold(Ensemble([lambda z: z, lambda z: 3 * z]))
        >>> round(M.metric(torch.zeros(1, 1)).item(), 4)  # (1² + 3²)/2
        5.0
        >>> M.distance(torch.zeros(1), torch.ones(1), per_member=True)
        tensor([1., 3.])
    """

    def __init__(self, members: Iterable[Callable[..., Any]]) -> None:
        super().__init__()
        self.members = tuple(members)
        if not self.members:
            raise OptionError(
                "Ensemble", "at least one member", "none", "Try Ensemble([decoder1, decoder2])."
            )
        for member in self.members:
            if not callable(member) or isinstance(member, type):
                raise DTypeError(
                    "Ensemble",
                    "decoders: modules or functions",
                    repr(member),
                    "Give modules, or functions (k, m) -> (k, *shape).",
                )
        # Listed once more as a module list, so that parameters, devices and eval() reach them.
        self.networks = nn.ModuleList(
            dict.fromkeys(m for m in self.members if isinstance(m, nn.Module))
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Ensemble:
        return type(self)(copy.deepcopy(self.members, memo)).train(self.training)

    def forward(self, z: Tensor, *condition: Any) -> Members:  # (k, m) -> K outputs (k, *shape)
        """Outputs of all members, each under the same condition, if there is one."""
        return Members(member(z, *condition) for member in self.members)

    @classmethod
    def from_dropout(
        cls, decoder: nn.Module, example: Tensor, members: int = 10, seed: int = 0
    ) -> Ensemble:
        """Monte Carlo dropout with frozen masks.

        Each member is the decoder with one mask for all points.

        Members share the decoder's parameters. ``functional.dropout`` inside a ``forward``, and
        attention's own, are not found.

        Args:
            decoder: A module with dropout layers.
            example: A latent point ``(1, m)``, to see the sizes of the layers.
            members: Number of masks.
            seed: Seed of the masks.

        Raises:
            DecoderError: When no dropout layer is used.
            ShapeError: When ``example`` is not one point.

        Y. Gal, Z. Ghahramani, Dropout as a Bayesian approximation, ICML 2016.
        """
        if example.ndim != 2 or len(example) != 1:
            raise ShapeError(
                "Ensemble.from_dropout",
                "one example point (1, m)",
                str(tuple(example.shape)),
                "Try z[:1].",
            )
        layers = {
            n: layer
            for n, layer in decoder.named_modules()
            if isinstance(layer, _DROPOUT) and layer.p > 0
        }
        inputs: dict[str, Tensor] = {}

        names: dict[nn.Module, str] = {layer: name for name, layer in layers.items()}

        def watch(layer: nn.Module, args: tuple[Any, ...]) -> None:
            inputs.setdefault(names[layer], args[0].detach())

        handles = [layer.register_forward_pre_hook(watch) for layer in layers.values()]
        modes = {module: module.training for module in decoder.modules()}
        try:
            with torch.no_grad():
                decoder.eval()(example)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
        if not inputs:
            raise DecoderError(
                "Ensemble.from_dropout",
                "a decoder with dropout layers in use",
                "none",
                "Use nn.Dropout modules.",
            )
        frozen = []
        draws = torch.randint(
            2**31, (members, len(inputs)), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        for row in draws:
            member = _sharing(decoder, keep=())
            for (name, x), draw in zip(inputs.items(), row, strict=True):
                parent, _, child = name.rpartition(".")
                setattr(member.get_submodule(parent), child, _FrozenDropout(layers[name], x, draw))
            frozen.append(member.eval())
        return cls(frozen).eval()

    @classmethod
    def from_states(
        cls, decoder: nn.Module, states: Iterable[Mapping[str, Tensor] | Tensor]
    ) -> Ensemble:
        """Members from several sets of weights: posterior samples, or checkpoints of a training.

        Args:
            decoder: The module that they belong to; it is left as it is.
            states: State dicts, or vectors of all parameters in the order of ``parameters()``. A
                dict may hold a part of them, such as the last layer; members share the rest with
                the decoder.

        Raises:
            DecoderError: When a state does not fit the decoder.
        """
        members = []
        for state in states:
            if isinstance(state, Tensor):
                member = _sharing(decoder, keep=[name for name, _ in decoder.named_parameters()])
                size = sum(p.numel() for p in decoder.parameters())
                if state.shape != (size,):
                    raise DecoderError(
                        "Ensemble.from_states",
                        f"vectors of {size} parameters",
                        str(tuple(state.shape)),
                        "Flatten each state with torch.nn.utils.parameters_to_vector.",
                    )
                vector_to_parameters(state.detach(), member.parameters())
            else:
                unknown = sorted(set(state) - set(decoder.state_dict()))
                if unknown:
                    raise DecoderError(
                        "Ensemble.from_states",
                        "states of this decoder",
                        f"unknown {unknown}",
                        "Do the states belong to this decoder? Compare with decoder.state_dict().",
                    )
                member = _sharing(decoder, keep=list(state))
                try:
                    member.load_state_dict(dict(state), strict=False)
                except RuntimeError as reason:
                    raise DecoderError(
                        "Ensemble.from_states",
                        "states of this decoder",
                        str(reason),
                        "Do the states belong to this decoder? Compare with decoder.state_dict().",
                    ) from reason
            members.append(member)
        return cls(members).train(decoder.training)


class _FrozenDropout(nn.Module):
    """A dropout layer of any kind with one draw of its mask: ``x * scale + shift``."""

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: nn.Module, x: Tensor, seed: int) -> None:
        super().__init__()
        layer = copy.deepcopy(layer).train()
        # Every dropout is affine in its input once the mask is drawn: two inputs, one draw.
        with seeded(x.device, seed):
            shift = layer(torch.zeros_like(x))
        with seeded(x.device, seed):
            scale = layer(torch.ones_like(x)) - shift
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """The same mask for every point."""
        return x * self.scale + self.shift


def _sharing(decoder: nn.Module, keep: Sequence[str]) -> nn.Module:
    """A copy that shares all parameters and buffers with the decoder but those named."""
    own = set(keep)
    tensors = {
        **dict(decoder.named_parameters(remove_duplicate=False)),
        **dict(decoder.named_buffers()),
    }
    memo: dict[int, Any] = {
        id(tensor): tensor for name, tensor in tensors.items() if name not in own
    }
    return copy.deepcopy(decoder, memo | computed(decoder))
