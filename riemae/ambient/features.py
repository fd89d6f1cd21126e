"""Metrics that come from a feature map: identity, diagonal, constant, a network's features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from riemae.ambient.base import FeatureMetric
from riemae.exceptions import AmbientError
from riemae.numerics.checks import dtype_in_words, shape_in_words
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import own


class Euclidean(FeatureMetric):
    """The identity, ``H = I``."""

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``x`` itself."""
        return x.flatten(1)


class Diagonal(FeatureMetric):
    """A constant diagonal metric, ``H = diag(weights)``.

    Args:
        weights: ``(D,)``, not negative; for instance inverse variances. Coordinates of weight 0 do
            not count, and ``H`` is semi-definite.

    Raises:
        AmbientError: When a weight is negative or not finite.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        check_floating("Diagonal", weights)
        fits = weights.ndim == 1 and len(weights) > 0
        if not fits or not bool((weights >= 0).all() & weights.isfinite().all()):
            least = ""
            if weights.numel():
                least = f" with minimum {weights.min():.3g}"
            raise AmbientError(
                "Diagonal",
                "finite weights of shape (D,), none negative",
                f"{tuple(weights.shape)}{least}",
                "Weights are inverse variances; 0 leaves a coordinate out.",
            )
        self.register_buffer("weights", weights.detach().clone())

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``√weights · x``."""
        return x.flatten(1) * fitting("Diagonal", self.weights.sqrt(), x)


class Constant(FeatureMetric):
    """A constant metric, ``H = L Lᵀ`` at every point: Mahalanobis with an inverse covariance.

    Args:
        matrix: ``(D, D)``, symmetric positive definite.

    Raises:
        AmbientError: When it is not.
    """

    cholesky: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        check_floating("Constant", matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            hint = "Give the square matrix H of the flattened data."
            raise AmbientError(
                "Constant", "a matrix of shape (D, D)", str(tuple(matrix.shape)), hint
            )
        if not bool(matrix.isfinite().all()):
            hint = "Look at what it is computed from; data with NaN have a covariance of NaN."
            raise AmbientError("Constant", "a finite matrix", "NaN or infinity", hint)
        if not torch.allclose(matrix, matrix.mT, rtol=1e-5, atol=1e-6 * float(matrix.abs().max())):
            raise AmbientError(
                "Constant",
                "a symmetric matrix",
                "an asymmetric one",
                "Symmetrise it: (H + H.T) / 2.",
            )
        factor, info = torch.linalg.cholesky_ex(matrix.detach())
        if int(info):
            raise AmbientError(
                "Constant",
                "a positive definite matrix",
                f"smallest eigenvalue {torch.linalg.eigvalsh(matrix.detach()).min():.3g}",
                "Add a multiple of the identity, or give a factor through FeatureMap.",
            )
        self.register_buffer("cholesky", factor)

    @classmethod
    def from_data(cls, data: Tensor, ridge: float = 0.0) -> Constant:
        """Mahalanobis' metric: the inverse of the covariance of data, ``H = (cov + ridge · I)⁻¹``.

        Args:
            data: ``(N, *shape)``, as the decoder returns them.
            ridge: Variance added to every coordinate, in squared units of the data.

        Raises:
            AmbientError: When the covariance is singular, as it is with fewer data than
                coordinates.
        """
        check_floating("Constant.from_data", data)
        if data.ndim < 2 or len(data) < 2 or not bool(data.isfinite().all()) or ridge < 0:
            raise AmbientError(
                "Constant.from_data",
                "finite data (N, *shape), N of at least 2, ridge ≥ 0",
                f"{tuple(data.shape)} and ridge={ridge}",
                "Put samples on the first axis, and remove those with NaN.",
            )
        flat = data.detach().flatten(1)
        identity = torch.eye(flat.shape[1]).to(flat)
        covariance = torch.atleast_2d(torch.cov(flat.T)) + ridge * identity
        factor, info = torch.linalg.cholesky_ex(covariance)
        pivots = factor.diagonal().square() / covariance.diagonal()
        # With too few data the covariance is singular, whatever rounding makes of it.
        few = not ridge and len(flat) <= flat.shape[1]
        if few or int(info) or not bool((pivots > tolerance(flat.dtype).rank).all()):
            raise AmbientError(
                "Constant.from_data",
                "data that vary in every direction",
                f"a singular covariance of {len(flat)} data in {flat.shape[1]} dimensions",
                "Give a ridge, or use LowRank with the directions that matter.",
            )
        return cls(torch.cholesky_inverse(factor))

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D)
        """``Lᵀ x``."""
        return x.flatten(1) @ fitting("Constant", self.cholesky, x)


class LowRank(FeatureMetric):
    """Diagonal plus low rank, ``H = diag(d) + U Uᵀ``.

    Some directions of the data space, the columns of U, count more than others.

    Args:
        factor: U, ``(D, r)``.
        diagonal: d, ``(D,)`` or one number, not negative; 0 leaves only the directions of U, and
            ``H`` semi-definite.

    Raises:
        AmbientError: For other shapes, or a negative or infinite entry.
    """

    factor: Tensor
    diagonal_root: Tensor

    def __init__(self, factor: Tensor, diagonal: Tensor | float = 1.0) -> None:
        super().__init__()
        check_floating("LowRank", factor)
        if factor.ndim != 2 or not bool(factor.isfinite().all()):
            raise AmbientError(
                "LowRank",
                "a finite factor of shape (D, r)",
                str(tuple(factor.shape)),
                "Give one direction per column; a single one is factor[:, None].",
            )
        weights = torch.as_tensor(diagonal, dtype=factor.dtype, device=factor.device).detach()
        if weights.shape not in ((), factor.shape[:1]) or not bool(
            (weights >= 0).all() & weights.isfinite().all()
        ):
            raise AmbientError(
                "LowRank",
                f"a diagonal of shape ({len(factor)},), or one number, not negative",
                f"{tuple(weights.shape)} with minimum {weights.min():.3g}",
                "Give one weight per coordinate; 0 leaves only the directions of the factor.",
            )
        self.register_buffer("factor", factor.detach().clone())
        self.register_buffer("diagonal_root", weights.sqrt().expand(len(factor)).clone())

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, D + r)
        """``[√d · x, Uᵀ x]``."""
        flat = x.flatten(1)
        weighted = flat * fitting("LowRank", self.diagonal_root, x)
        return torch.cat([weighted, flat @ self.factor], -1)


class FeatureMap(FeatureMetric):
    """``H = JφᵀJφ`` for any map φ: distances are those of its feature space (perceptual metrics).

    Args:
        network: φ, maps data ``(k, *shape)`` to features ``(k, ...)``; a module (in eval
            mode) or a function.
    """

    def __init__(self, network: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    @property
    def foreign(self) -> bool:
        """Always: it is the user's network."""
        return True

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, ...)
        """``φ(x)``."""
        return self.network(own(x, self.network))


class ClassifierFisher(FeatureMetric):
    """The Fisher metric of a classifier: lengths are changes of the predicted class.

    ``H = J_lᵀ (diag p − p pᵀ) J_l`` with logits ``l(x)`` and ``p = softmax(l)``, by the features
    ``2 √p``. These are points of a sphere of radius 2, on which great-circle distances are the
    Fisher-Rao distances ``2 arccos Σ √(p q)`` of the categorical distributions. One logit is a
    binary classifier. ``H`` has rank below the number of classes: directions that change no
    prediction have no length, and a decoder that moves along them has a singular metric, unless
    ``ridge`` gives them some length.

    Args:
        classifier: Data ``(k, *shape)`` to logits ``(k, c)``; a module (in eval mode) or a
            function.
        ridge: ε in ``H + ε I``.

    Raises:
        AmbientError: When ``ridge`` is negative, or the classifier does not return logits
            ``(k, c)``.
    """

    def __init__(
        self, classifier: nn.Module | Callable[[Tensor], Tensor], ridge: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= ridge < float("inf"):
            hint = "Try ridge=0.01, or 0 for the Fisher metric alone."
            raise AmbientError("ClassifierFisher", "ridge ≥ 0", str(ridge), hint)
        self.classifier = classifier
        self.ridge = float(ridge)

    @property
    def foreign(self) -> bool:
        """Always: it is the user's network."""
        return True

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, c) or (k, c + D)
        """``2 √p``, and ``√ε x``; for one logit ``2 arctan e^(l/2)``."""
        prediction = self._prediction(x)
        if not self.ridge:
            return prediction
        return torch.cat([prediction, self.ridge**0.5 * x.flatten(1)], -1)

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor:  # (k, *shape), (k, *shape) -> (k,)
        """The distance of the predictions along the sphere, with that of the data times √ridge."""
        p, q = self._prediction(x0), self._prediction(x1)
        gap = (p - q).norm(dim=-1)
        if p.shape[1] > 1:
            gap = 4 * torch.asin((gap / 4).clamp(max=1))  # chord to arc at radius 2
        straight = (x0 - x1).flatten(1)
        squared = gap.square() + self.ridge * straight.square().sum(-1)
        return squared.sqrt()

    def _prediction(self, x: Tensor) -> Tensor:
        logits = self.classifier(own(x, self.classifier))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = shape_in_words(logits)
            raise AmbientError(
                "ClassifierFisher",
                f"logits of shape ({len(x)}, c)",
                got,
                "Return logits, not labels.",
            )
        if logits.shape[1] == 1:
            # Gudermann: 2 arctan e^(l/2) = π/2 + 2 arctan tanh(l/4), which does not overflow.
            return 2 * torch.atan(torch.tanh(logits / 4)) + torch.pi / 2
        return 2 * (logits.log_softmax(-1) / 2).exp()


def check_floating(where: str, constant: object) -> None:
    """Refuse what is not a floating-point tensor.

    Raises:
        AmbientError: When it is not.
    """
    if not isinstance(constant, Tensor) or not constant.is_floating_point():
        got = dtype_in_words(constant)
        raise AmbientError(
            where, "a floating-point tensor", got, "Try torch.as_tensor(..., dtype=torch.float32)."
        )


def fitting(where: str, constant: Tensor, x: Tensor) -> Tensor:
    """``constant`` if it belongs to data like ``x``.

    Raises:
        AmbientError: When dimension, dtype or device differ.
    """
    if len(constant) != x[0].numel():
        raise AmbientError(
            where,
            f"data of dimension {len(constant)}",
            f"{x[0].numel()}",
            "Does the metric belong to this decoder?",
        )
    if constant.dtype != x.dtype or constant.device != x.device:
        raise AmbientError(
            where,
            f"data of {constant.dtype} on {constant.device}",
            f"{x.dtype} on {x.device}",
            "Move both at once with Manifold.to(device, dtype).",
        )
    return constant
