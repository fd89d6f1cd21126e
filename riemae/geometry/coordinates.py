"""Manifolds whose metric tensor is given, and not a decoder.

``Manifold(MetricSpace(G))`` is the pull-back of ``G`` by the identity of the coordinates, so every
method that is about the metric alone is that of any manifold. What is about how a decoder lies in
its data space has no answer, and says so.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from riemae.exceptions import DecoderError
from riemae.geometry.pullback import PullbackMetric

# Methods about the image of a decoder: how it bends, its normals, its distributions.
OF_AN_IMAGE = (
    "curvature_form",
    "distribution",
    "extrinsic_curvature",
    "mean_curvature",
    "principal_curvatures",
    "second_fundamental_form",
)


def coordinates(z: Tensor) -> Tensor:  # (k, m) -> (k, m)
    """The "decoder" of a metric tensor: its data are the coordinates themselves."""
    return z


def refuse_without_image(where: str, decoder: Any) -> None:
    """Refuse what needs a decoder, where there is a metric tensor alone.

    Args:
        where: The method.
        decoder: The function that the manifold decodes by.

    Raises:
        DecoderError: With the reason.
    """
    if decoder is coordinates and where in OF_AN_IMAGE:
        raise DecoderError(
            f"Manifold.{where}",
            "a decoder: this is about how its image lies in the data space",
            "a MetricSpace, whose metric tensor is not that of an image",
            "Give Manifold a decoder. Of a metric tensor alone there are riemann, ricci and "
            "scalar_curvature.",
        )


def telling(core: PullbackMetric, z: Tensor) -> Tensor:  # (k, m) -> (k, n)
    """What shows whether points are the same: data, or the metric tensor where there are none."""
    if core.decoder.function is coordinates:
        return core.metric(z).flatten(1)
    return core.immersion.value(z)
