"""Normalising flows of zuko as decoders. zuko itself is not imported."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from riemae.exceptions import DTypeError
from riemae.interop.frozen import frozen
from riemae.manifold import Manifold

__all__ = ["manifold"]

_WHERE = "interop.zuko.manifold"


def manifold(flow: Any, context: Tensor | None = None, **options: Any) -> Manifold:
    """The geometry that a flow gives to its base space: that of the data which it generates.

    A flow is a diffeomorphism, so that the latent space has as many dimensions as the data, and
    is flat under the Euclidean metric of the data: geodesics are what straight lines between data
    look like in the base space. Another ``ambient`` metric, such as
    :class:`~riemae.ambient.Density` of the same data, keeps them to where data are.
    ``M.log_volume(z)`` is ``log p(z) − log q(x)`` of base and flow.

    Args:
        flow: A flow of zuko, such as ``zuko.flows.NSF``: a module whose distribution has a
            ``transform`` with an inverse. It is copied, in evaluation mode.
        context: Of a conditional flow, one for all codes, ``(c,)``; where it is left out, methods
            of the manifold take it as ``condition``, ``(*b, c)``.
        options: Others of :class:`~riemae.Manifold`, such as ``ambient``.

    Returns:
        The manifold; its codes are those of ``flow().transform(x)``.

    Raises:
        DTypeError: When it is not such a flow, or the context is not a tensor.
    """
    expected = "a flow of zuko, with a transform and a base"
    found = Manifold(_Inverse(frozen(_WHERE, flow, expected, "transform", "base")), **options)
    if context is None:
        return found
    if not isinstance(context, Tensor):
        hint = "Try torch.as_tensor(context)."
        raise DTypeError(_WHERE, "context as a tensor", type(context).__name__, hint)
    return found.given(context[None])


class _Inverse(nn.Module):
    """From the base space to data."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:  # (k, D) -> (k, D)
        flow: Any = self.flow
        distribution = flow() if context is None else flow(context)
        data: Tensor = distribution.transform.inv(z)
        return data
