"""Metrics that come from a feature map: identity, diagonal, constant, and any network's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riemae.ambient.base import AmbientMetric
from riemae.exceptions import AmbientError


class Euclidean(AmbientMetric):
    """The identity, ``H = I``."""

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``x`` itself."""
        return x.flatten(1)


class Diagonal(AmbientMetric):
    """A constant diagonal metric, ``H = diag(weights)``.

    Args:
        weights: ``(D,)``, positive; for instance inverse variances.

    Raises:
        AmbientError: When a weight is not positive and finite.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        _check_floating("Diagonal", weights)
        if weights.ndim != 1 or not bool((weights > 0).all() & weights.isfinite().all()):
            raise AmbientError(
                "Diagonal",
                "positive weights of shape (D,)",
                f"{tuple(weights.shape)} with minimum {weights.min():.3g}",
                "",
            )
        self.register_buffer("weights", weights.detach().clone())

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``√weights · x``."""
        return x.flatten(1) * _fitting("Diagonal", self.weights.sqrt(), x)


class Constant(AmbientMetric):
    """A constant metric, ``H = L Lᵀ`` at every point: Mahalanobis with an inverse covariance.

    Args:
        matrix: ``(D, D)``, symmetric positive definite.

    Raises:
        AmbientError: When it is not.
    """

    cholesky: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        _check_floating("Constant", matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise AmbientError("Constant", "a matrix of shape (D, D)", str(tuple(matrix.shape)), "")
        if not bool(matrix.isfinite().all()):
            raise AmbientError("Constant", "a finite matrix", "NaN or infinity", "")
        if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-6 * float(matrix.abs().max())):
            raise AmbientError("Constant", "a symmetric matrix", "an asymmetric one", "Symmetrise it: (H + H.T) / 2.")
        factor, info = torch.linalg.cholesky_ex(matrix.detach())
        if int(info):
            raise AmbientError(
                "Constant",
                "a positive definite matrix",
                f"smallest eigenvalue {torch.linalg.eigvalsh(matrix.detach()).min():.3g}",
                "Add a multiple of the identity, or give a factor through FeatureMap.",
            )
        self.register_buffer("cholesky", factor)

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``Lᵀ x``."""
        return x.flatten(1) @ _fitting("Constant", self.cholesky, x)


class FeatureMap(AmbientMetric):
    """``H = JφᵀJφ`` for any map φ: distances are those of its feature space (perceptual metrics).

    Args:
        network: φ, maps data ``(k, *shape)`` to features ``(k, ...)``; a module (in eval
            mode) or a function.
    """

    def __init__(self, network: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, ...)
        """``φ(x)``."""
        return self.network(x)


def _check_floating(where: str, constant: object) -> None:
    if not isinstance(constant, Tensor) or not constant.is_floating_point():
        got = str(constant.dtype) if isinstance(constant, Tensor) else type(constant).__name__
        raise AmbientError(where, "a floating-point tensor", got, "Try torch.as_tensor(..., dtype=torch.float32).")


def _fitting(where: str, constant: Tensor, x: Tensor) -> Tensor:
    """``constant`` if it belongs to data like ``x``.

    Raises:
        AmbientError: When dimension, dtype or device differ.
    """
    if len(constant) != x[0].numel():
        raise AmbientError(
            where, f"data of dimension {len(constant)}", f"{x[0].numel()}", "Does the metric belong to this decoder?"
        )
    if constant.dtype != x.dtype or constant.device != x.device:
        raise AmbientError(
            where,
            f"data of {constant.dtype} on {constant.device}",
            f"{x.dtype} on {x.device}",
            "Move both at once with Manifold.to(device, dtype).",
        )
    return constant
