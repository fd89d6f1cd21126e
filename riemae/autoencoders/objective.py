"""What an autoencoder minimises: reconstruction by a likelihood, and any weighted set of geometric
terms.

Weights do not depend on the dimension or the units of the data, because every part is a pure
number:

- The reconstruction is the fraction of the data's deviance left unexplained (:mod:`riemae.autoencoders.likelihoods`):
  for the squared error, ``Σ|x − x̂|² / Σ|x − x̄|²``, that is 1 − R².
- Curvature has units of 1/length² (``‖R‖²``: 1/length⁴). It is multiplied by that power of the data's mean squared
  distance from their mean, ``s² = E|x − x̄|²_H`` under the ambient metric; for ``"fisher"``, by the
  null deviance, which is the same squared length to second order.
- Distortions have no units.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from riemae import ambient as ambients
from riemae.ambient import AmbientMetric, as_ambient
from riemae.autoencoders import losses
from riemae.autoencoders.likelihoods import Likelihood, SquaredError, as_likelihood
from riemae.exceptions import (
    AmbientError,
    DataError,
    DecoderError,
    DTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from riemae.geometry.curvature import gaussian
from riemae.geometry.decoder import Decoder
from riemae.manifold import Manifold

Loss = Callable[..., Tensor]
# Relative ridge of curvature terms in training: a metric that is nearly singular for a moment must
# not end it. Values change by about 1e-4 × condition number.
RIDGE = 1e-4
_SAMPLES = 2000  # of the data, that their squared extent is measured on


@dataclass(frozen=True)
class Term:
    """A weighted geometric loss.

    Args:
        weight: Relative to the fraction of unexplained deviance.
        loss: A function ``(manifold, z) -> ()`` of your own, or None for the one of
            :mod:`riemae.autoencoders.losses` that the term is named after. It is given
            ``generator=`` where its signature has it. Where that has ``decoded=``, it may be asked
            for ``(loss, f(z))``, so that the reconstruction needs no pass of its own.
        options: Further arguments of the loss, such as ``{"probes": 2}``.
        power: Units of the loss: 1/length to this power; 2 for the extrinsic, 4 for the intrinsic
            curvature.
    """

    weight: float
    loss: Loss | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    power: int | None = None


# The losses known by name: function, options in training, power of the length in their units.
KNOWN: dict[str, tuple[Loss, dict[str, Any], int]] = {
    "relaxed_distortion": (losses.relaxed_distortion, {"mixup": 0.2}, 0),
    "conformal_distortion": (losses.conformal_distortion, {"mixup": 0.2}, 0),
    "extrinsic_curvature": (losses.extrinsic_curvature, {"ridge": RIDGE}, 2),
    "intrinsic_curvature": (losses.intrinsic_curvature, {"ridge": RIDGE}, 4),
}


@dataclass(frozen=True)
class Variation:
    """What a kind of autoencoder changes in the plain one.

    Attributes:
        corruption: Standard deviation of the noise on the encoder's input, in units of the data's.
        contraction: Weight of :func:`~riemae.autoencoders.losses.contraction`.
        beta: Weight of the Kullback-Leibler term, None without codes that are distributions.
        noise: For the variational squared error: standard deviation of the likelihood, in units of
            the data's.
        order: Of the neighbourhood reconstruction, None without.
        neighbor_weight: Of the neighbours beside the centres.
    """

    corruption: float = 0.0
    contraction: float = 0.0
    beta: float | None = None
    noise: float = 0.1
    order: Literal[1, 2] | None = None
    neighbor_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("corruption", "contraction", "beta", "neighbor_weight"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise OptionError("autoencoder", f"{name} of at least 0", str(value), "")
        if not self.noise > 0:
            raise OptionError("autoencoder", "a positive noise", str(self.noise), "")
        if self.order not in (None, 1, 2):
            raise OptionError("NRAE", "order 1 or 2", repr(self.order), "")


class Mean(nn.Module):
    """Codes to expected data."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, z: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
        """``E[x | z]``."""
        return self.likelihood.mean(self.decoder(z))


class Distributions(nn.Module):
    """Codes to distributions of the data."""

    def __init__(self, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.decoder, self.likelihood = decoder, likelihood

    def forward(self, z: Tensor) -> Any:  # (k, m) -> distribution over (k, *shape)
        """``p(x | z)``."""
        return self.likelihood.distribution(self.decoder(z))


class Objective(nn.Module):
    """The loss of a geometric autoencoder, part by part.

    Args:
        encoder: ``(k, *shape) -> (k, m)``; ``(k, 2m)``, means and log variances, for a variational
            one.
        decoder: ``(k, m) -> (k, *shape)``, the likelihood's parameters.
        data: A representative sample ``(n, *shape)``: sets the units.
        likelihood: Name or instance.
        ambient: The metric of the data space for all geometric terms: as in
            :class:`~riemae.Manifold`, or ``"fisher"``.
        terms: Weight by name, or :class:`Term`; see :data:`KNOWN`.
        variation: What differs from a plain autoencoder.
        latent_dim: m, or None to take it from the encoder.

    Raises:
        DataError: When the data do not vary, or the likelihood does not allow them.
        NonFiniteError: For NaN or infinity in the data.
        OptionError: For unknown terms, or settings that contradict each other.
        ShapeError: When encoder and decoder do not fit the data.
    """

    null: Tensor
    extent: Tensor
    spread: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        data: Tensor,
        likelihood: str | Likelihood = "squared_error",
        ambient: Any = None,
        terms: Mapping[str, float | Term] | None = None,
        variation: Variation | None = None,
        latent_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not bool(data.isfinite().all()):
            rows = (~data.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            raise NonFiniteError(
                "autoencoder", "finite data", f"NaN or infinity at rows {rows[:5]}", "Remove them."
            )
        self.encoder, self.decoder = encoder, decoder
        self.variation = variation or Variation()
        self.likelihood = as_likelihood(likelihood).fitted(data)
        self.terms = {name: resolved(name, term) for name, term in (terms or {}).items()}
        null = self.likelihood.null_deviance(data)
        if not float(null) > torch.finfo(data.dtype).eps ** 2 * float(
            data.square().flatten(1).sum(1).mean()
        ):
            raise DataError(
                "autoencoder",
                "data that vary",
                "the same sample again and again",
                "All is constant.",
            )
        self.register_buffer("null", null.detach())
        self.register_buffer("spread", data.flatten(1).var(0, correction=0).mean().sqrt())
        self.fisher = isinstance(ambient, str)
        self.ambient = self._ambient(ambient, data)
        if self.ambient is not None and not self.ambient.has_features:
            # Their connection is differentiated as it is: there is no inverse to regularise.
            self.terms = {name: _without_ridge(term) for name, term in self.terms.items()}
        self._manifolds: dict[str, Manifold] = {}
        self.register_buffer("extent", self._extent(data))
        self.latent_dim = self._check_shapes(data, latent_dim)

    @property
    def manifold(self) -> Manifold:
        """The decoder's manifold: of expected data, or, under ``"fisher"``, of distributions."""
        if self.likelihood.linear and not self.fisher:
            return self._manifold("mean", lambda: self.decoder)
        wrap = Distributions if self.fisher else Mean
        return self._manifold("mean", lambda: wrap(self.decoder, self.likelihood))

    def encode(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, m)
        """Codes; of a variational autoencoder, their means."""
        code = self.encoder(x)
        return code if self.variation.beta is None else code.chunk(2, -1)[0]

    def decode(self, z: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
        """Expected data."""
        return self.likelihood.mean(self.decoder(z))

    def unexplained(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k,)
        """Fraction of deviance left unexplained by the reconstruction of each sample."""
        return self.likelihood.deviance(self.decoder(self.encode(x)), x) / self.null

    def forward(
        self, x: Tensor, neighbor: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its parts without their weights.

        Args:
            x: ``(k, *shape)``.
            neighbor: One neighbour each, where the variation asks for them.
            generator: Source of noise and probes.

        Raises:
            OptionError: When neighbours are needed and missing.
        """
        if self.variation.order is not None:
            if neighbor is None:
                raise OptionError(
                    "NRAE", "batches with neighbours", "none", "Give {'x': …, 'neighbor': …}."
                )
            loss, parts, z = self._neighborhood(x, neighbor)
        else:
            loss, parts, z = self._reconstruction(x, generator)
        if self.variation.contraction:
            parts["contraction"] = losses.contraction(self.encode, x, probes=1, generator=generator)
            loss = loss + self.variation.contraction * parts["contraction"]
        for name in self.terms:
            if name not in parts:
                parts[name] = self.term(name, z, generator)
            loss = loss + self.terms[name].weight * parts[name]
        return loss, parts

    def term(
        self, name: str, z: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:  # (k, m) -> ()
        """One geometric term, without its weight, as a pure number."""
        value: Tensor = self._evaluated(name, z, generator)
        return value * self._unit(name)

    def costs(
        self, x: Tensor, neighbor: Tensor | None = None, repeats: int = 5
    ) -> dict[str, dict[str, float]]:
        """What each part is worth and what it costs: value, weight, share of the loss, and seconds
        a training step.

        The row ``"plain"`` is a plain autoencoder's step of the same networks, forward and
        backward; the row of a term is what the term adds. A term that decodes for the
        reconstruction too adds the difference. Seconds are process time on a processor, the best of
        ``repeats``.
        """
        generator = torch.Generator().manual_seed(0)
        device = x.device
        plain = lambda: self.likelihood.deviance(self.decoder(self.encode(x)), x).mean() / self.null  # noqa: E731
        rows = {
            "plain": {
                "value": plain().item(),
                "weight": 1.0,
                "seconds": _seconds(plain, self, device, repeats),
            }
        }
        loss, parts = self(x, neighbor, generator)
        if (
            self.variation.order is not None
            or self.variation.beta is not None
            or self.variation.corruption
        ):
            whole = lambda: self._base(x, neighbor, generator)[0]  # noqa: E731
            rows["objective without terms"] = {
                "value": whole().item(),
                "weight": 1.0,
                "seconds": _seconds(whole, self, device, repeats),
            }
        z = self.encode(x).detach()
        decoding = _seconds(
            lambda: self.decoder(z.clone().requires_grad_()).sum(), self, device, repeats
        )
        for name, term in self.terms.items():

            def alone(name: str = name) -> Tensor:
                # Codes with a gradient, as in training, but without the encoder's own pass.
                return self.term(name, z.clone().requires_grad_(), generator)

            cost = _seconds(alone, self, device, repeats)
            if name == self._sharing:
                cost = max(cost - decoding, 0.0)
            rows[name] = {"value": parts[name].item(), "weight": term.weight, "seconds": cost}
        for row in rows.values():
            row["share"] = row["weight"] * row["value"] / loss.item()
        return rows

    def check_training(self, where: str) -> None:
        """Refuse layers that make the decoder no map while geometric terms differentiate it.

        Raises:
            DecoderError: For batch statistics or dropout in training mode.
        """
        if not self.terms and self.variation.order is None:
            return
        try:
            Decoder(self.decoder).refuse_training_mode(where)
        except DecoderError as reason:
            raise DecoderError(
                where,
                "a decoder that treats every row alone and is deterministic while it is trained",
                reason.got,
                "Geometric terms differentiate it: use LayerNorm or GroupNorm, and no dropout, in the decoder.",
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        # Manifolds are caches: rebuilt where needed.
        return {**self.__dict__, "_manifolds": {}}

    # The parts.

    def _base(self, x: Tensor, neighbor: Tensor | None, generator: torch.Generator | None) -> Any:
        if self.variation.order is not None and neighbor is not None:
            return self._neighborhood(x, neighbor)
        return self._reconstruction(x, generator)

    def _reconstruction(
        self, x: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        seen = x
        if self.variation.corruption:
            seen = x + self.variation.corruption * self.spread * gaussian(x, generator)
        code = self.encoder(seen)
        divergence = None
        if self.variation.beta is not None:
            mean, log_variance = code.chunk(2, -1)
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
            code = mean + (log_variance / 2).exp() * gaussian(mean, generator)
        parts = {"reconstruction": code.new_zeros(())}  # first, whatever is computed first
        name = self._sharing
        if name is None:
            decoded = self.decoder(code)
        else:
            value, decoded = self._evaluated(name, code, generator, decoded=True)
            parts[name] = value * self._unit(name)
        fit = self.likelihood.deviance(decoded, x).mean() / self.null
        parts["reconstruction"] = fit
        if divergence is None:
            return fit, parts, code
        # The ELBO in units of the null deviance; a Gaussian's variance is noise² times the data's.
        variance = (
            self.variation.noise**2 * self.null / x[0].numel() if self.likelihood.linear else 1.0
        )
        parts["divergence"] = divergence
        assert self.variation.beta is not None
        return fit + self.variation.beta * 2 * variance / self.null * divergence, parts, code

    @property
    def _sharing(self) -> str | None:
        """The term whose pass through the decoder serves the reconstruction too."""
        if self.variation.order is not None or self.fisher or not self.likelihood.linear:
            return None  # there, what terms decode are not the likelihood's parameters
        return next(
            (name for name, term in self.terms.items() if _takes(term.loss, "decoded")), None
        )

    def _evaluated(
        self, name: str, z: Tensor, generator: torch.Generator | None, **options: Any
    ) -> Any:
        term = self.terms[name]
        assert term.loss is not None
        options = {**term.options, **options}
        if _takes(term.loss, "generator"):
            options["generator"] = generator
        with _full_precision(z):
            return term.loss(self.manifold, z.to(self.null.dtype), **options)

    def _unit(self, name: str) -> Tensor:
        return self.extent ** ((self.terms[name].power or 0) / 2)

    def _neighborhood(
        self, x: Tensor, neighbor: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        order = self.variation.order
        assert order is not None
        z, other = self.encoder(torch.cat([x, neighbor])).chunk(2)
        if self.ambient is None:
            shaped = lambda predicted, true: self.likelihood.deviance(predicted.view_as(true), true)  # noqa: E731
            distance, unit = shaped, self.null
        else:
            distance, unit = None, self.extent
        with _full_precision(z):
            z, other = z.to(self.null.dtype), other.to(self.null.dtype)
            space = self._manifold("parameter", lambda: self.decoder)
            center, near = losses.neighborhood_errors(
                space, z, other, neighbor, order=order, x=x, distance=distance
            )
        assert center is not None
        parts = {"reconstruction": center.mean() / unit, "neighborhood": near.mean() / unit}
        return (
            parts["reconstruction"] + self.variation.neighbor_weight * parts["neighborhood"],
            parts,
            z,
        )

    # Set-up.

    def _manifold(self, key: str, decoder: Callable[[], nn.Module]) -> Manifold:
        # One manifold for the whole training: its probes and its choice of derivatives are made
        # once.
        if key == "mean" and self.likelihood.linear and not self.fisher:
            key = "parameter"
        if key not in self._manifolds:
            self._manifolds[key] = Manifold(decoder(), self.ambient)
        return self._manifolds[key]

    def _ambient(self, ambient: Any, data: Tensor) -> AmbientMetric | None:
        if ambient is None:
            return None
        if isinstance(ambient, str):
            if ambient != "fisher":
                raise OptionError("autoencoder", "ambient 'fisher', or a metric", repr(ambient), "")
            if self.variation.order is not None:
                raise OptionError(
                    "NRAE",
                    "a metric on the data space",
                    "'fisher', a metric on distributions",
                    "NRAE's own loss already uses the likelihood: leave ambient out.",
                )
            return ambients.FisherRao()
        if self.variation.order is not None and not isinstance(self.likelihood, SquaredError):
            raise OptionError(
                "NRAE",
                "likelihood='squared_error' with an ambient metric",
                type(self.likelihood).__name__,
                "",
            )
        if not isinstance(ambient, Tensor | AmbientMetric) and hasattr(ambient, "__array__"):
            ambient = torch.as_tensor(ambient)
        return copy.deepcopy(as_ambient(ambient)).to(data)

    def _extent(self, data: Tensor) -> Tensor:
        if self.fisher:
            return self.null.clone()
        data = data[:_SAMPLES]
        away = data - data.mean(0)
        if self.ambient is None:
            return away.flatten(1).square().sum(1).mean()
        try:
            self.ambient.check(data[:2])
            metric = self.ambient.bind(None, data.shape[1:])
            x = data if metric.has_features else data.flatten(1)
            extent = metric.squared_norm(x, away.flatten(1)).mean().detach()
        except AmbientError:
            raise
        except (RuntimeError, ValueError) as reason:
            got = str(reason).splitlines()[0]
            hint = "Does the metric belong to these data?"
            raise AmbientError(
                "autoencoder", f"a metric on data {tuple(data.shape[1:])}", got, hint
            ) from reason
        if not bool(extent > 0):
            raise AmbientError(
                "autoencoder", "a metric under which the data vary", f"extent {float(extent)}", ""
            )
        return extent

    @torch.no_grad()
    def _check_shapes(self, data: Tensor, expected: int | None) -> int:
        where = "autoencoder"
        training = [(part, part.training) for part in (self.encoder, self.decoder)]
        try:
            for part, _ in training:
                part.eval()
            code = self._attempt("encoder", self.encoder, data[:2])
            if code.ndim != 2 or len(code) != len(data[:2]):
                raise ShapeError(
                    where, "an encoder (k, *shape) -> (k, m)", f"output {tuple(code.shape)}", ""
                )
            m = code.shape[1]
            if self.variation.beta is not None:
                if m % 2:
                    hint = "A variational encoder returns means and log variances side by side."
                    raise ShapeError(
                        where,
                        "an encoder (k, *shape) -> (k, 2m)",
                        f"output {tuple(code.shape)}",
                        hint,
                    )
                m //= 2
            if expected not in (None, m):
                hint = "Set latent_dim to what the encoder returns."
                raise ShapeError(
                    where, f"an encoder to latent_dim={expected} numbers", f"one to {m}", hint
                )
            x = self._attempt("decoder", self.decoder, code[:, :m])
        finally:
            for part, mode in training:
                part.train(mode)
        if x.shape != data[:2].shape:
            got = f"output {tuple(x.shape)} for data {tuple(data[:2].shape)}"
            raise ShapeError(
                where,
                "a decoder that returns the shape of the data",
                got,
                "Reshape its last layer.",
            )
        return m

    @staticmethod
    def _attempt(name: str, network: nn.Module, x: Tensor) -> Tensor:
        own = next((p for p in network.parameters() if p.is_floating_point()), x)
        if own.dtype != x.dtype:
            raise DTypeError(
                "autoencoder",
                f"an {name} of the data's dtype {x.dtype}",
                str(own.dtype),
                f"Try {name}.to({x.dtype}).",
            )
        try:
            return network(x)
        except RuntimeError as reason:
            got = str(reason).splitlines()[0]
            raise ShapeError(
                "autoencoder", f"a {name} for inputs of shape {tuple(x.shape)}", got, ""
            ) from reason


def resolved(name: str, term: float | Term) -> Term:
    """A term with its loss, options and units.

    Raises:
        OptionError: For an unknown name without a loss, a negative weight, or something that is no
            term.
    """
    if isinstance(term, int | float) and not isinstance(term, bool):
        term = Term(float(term))
    if not isinstance(term, Term):
        raise OptionError("terms", f"a weight or a Term for {name!r}", repr(term), "")
    if not term.weight >= 0:
        raise OptionError("terms", f"a weight of at least 0 for {name!r}", str(term.weight), "")
    if term.loss is not None:
        return term
    if name not in KNOWN:
        hint = "Give a loss of your own as Term(weight, loss=…)."
        raise OptionError("terms", f"one of {', '.join(KNOWN)}", repr(name), hint)
    loss, options, power = KNOWN[name]
    return Term(
        term.weight, loss, {**options, **term.options}, power if term.power is None else term.power
    )


def _without_ridge(term: Term) -> Term:
    if term.loss is not losses.intrinsic_curvature or term.options.get("ridge") != RIDGE:
        return term
    return replace(term, options={**term.options, "ridge": 0.0})


def _takes(loss: Loss | None, name: str) -> bool:
    return loss is not None and name in inspect.signature(loss).parameters


@contextmanager
def _full_precision(z: Tensor) -> Iterator[None]:
    """Second derivatives in half precision are noise: geometric parts leave autocast."""
    if not torch.is_autocast_enabled(z.device.type):
        yield
        return
    with torch.autocast(z.device.type, enabled=False):
        yield


def _seconds(
    f: Callable[[], Tensor], module: nn.Module, device: torch.device, repeats: int
) -> float:
    best = float("inf")
    for _ in range(repeats + 1):  # the first one probes and caches
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        start = clock()
        f().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
        module.zero_grad()
    return best
