"""The loss of a geometric autoencoder: reconstruction by a likelihood, and weighted terms.

Every part is a pure number, so weights do not depend on the dimension or the units of the data:

- The reconstruction is the fraction of the data's deviance left unexplained
  (:mod:`riemae.autoencoders.likelihoods`). For the squared error this is
  ``Σ|x − x̂|² / Σ|x − x̄|²``, which is 1 − R².
- Extrinsic curvature has units of 1/length², and the squared intrinsic curvature of 1/length⁴. They
  are multiplied by s² and s⁴, where ``s² = E|x − x̄|²_H`` is the data's mean squared distance from
  their mean under the ambient metric. For ``"fisher"``, s² is the null deviance, which is the same
  squared length to second order.
- Distortions have no units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemae.autoencoders import losses
from riemae.autoencoders.compiled import CompiledStep
from riemae.autoencoders.covariates import Conditioned
from riemae.autoencoders.encoder_losses import TemporalStraightening, topology
from riemae.autoencoders.graph_losses import EmbeddingPull, GraphDistances
from riemae.autoencoders.latents import latent_of
from riemae.autoencoders.likelihoods import Likelihood, as_likelihood
from riemae.autoencoders.networks import latent_dim_of
from riemae.autoencoders.optimization import as_factor
from riemae.autoencoders.outputs import Distributions, Mean
from riemae.autoencoders.priors import log_normal, prior_of
from riemae.autoencoders.step import Batch
from riemae.autoencoders.terms import Term, Variation, fitted, resolved, without_ridge
from riemae.autoencoders.timing import seconds
from riemae.autoencoders.units import check_finite, check_varied, metric_of, squared_extent
from riemae.autoencoders.wants import Wants
from riemae.exceptions import DecoderError, OptionError
from riemae.geometry.decoder import Decoder
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range, expect_shape
from riemae.numerics.compiling import Compiling
from riemae.numerics.deferral import in_one_look
from riemae.numerics.random import gaussian, seeded


class Objective(nn.Module):
    """The loss of a geometric autoencoder, part by part.

    Args:
        encoder: ``(k, *shape) -> (k, m)``; ``(k, 2m)``, means and log variances, for a variational
            one.
        decoder: ``(k, m) -> (k, *shape)``, the likelihood's parameters; ``(k, 2, *shape)`` for
            zero-inflated counts.
        data: A representative sample ``(n, *shape)``, which sets the units.
        likelihood: Name or instance.
        ambient: The metric of the data space for all geometric terms: as in
            :class:`~riemae.Manifold`, or ``"fisher"``.
        terms: By name, a weight or a :class:`Term`; see :mod:`riemae.autoencoders.terms`.
        variation: What differs from a plain autoencoder.
        latent_dim: m, or None to take it from the encoder.
        latent: The latent space, ``"torus"``, ``"sphere"``, ``"poincare"``, or None for R^m; see
            :mod:`riemae.autoencoders.latents`, which also says what the encoder returns.
        condition: What the decoder gets besides the codes, ``(n, c)``, of these samples, or None
            for a decoder of codes alone.
        prepare: Whether losses with a method ``fitted`` get the data now.

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
        latent: str | None = None,
        condition: Tensor | None = None,
        prepare: bool = True,
    ) -> None:
        super().__init__()
        self.space = latent_of(latent)
        check_finite(data)
        self.encoder = encoder
        self.decoder = decoder
        self.variation = variation or Variation()
        self.likelihood = as_likelihood(likelihood).fitted(data)
        self.terms = {name: resolved(name, term) for name, term in (terms or {}).items()}
        null = self.likelihood.null_deviance(data).detach()
        check_varied(null, data)
        variances = data.flatten(1).var(0, correction=0)
        self.register_buffer("null", null)
        self._numbers = data[0].numel()
        self.register_buffer("spread", variances.mean().sqrt())
        self.fisher = isinstance(ambient, str)
        self.ambient = metric_of(ambient, self.variation, self.likelihood, data)
        if self.ambient is not None and not self.ambient.has_features:
            # The connection of such metrics is differentiated directly, without an inverse that a
            # ridge would regularise.
            self.terms = {name: without_ridge(term) for name, term in self.terms.items()}
        # What each loss asks for is read once. Losses that are modules are trained.
        self._wants = {
            name: Wants.of(name, term.loss, term.options)
            for name, term in self.terms.items()
            if term.loss is not None
        }
        self._factors = {name: as_factor(name, term.schedule) for name, term in self.terms.items()}
        extent = self.null.clone() if self.fisher else squared_extent(self.ambient, data)
        self.register_buffer("extent", extent)
        if prepare:
            self.prepare(data)
        learned = {
            name.replace(".", "_"): term.loss
            for name, term in self.terms.items()
            if isinstance(term.loss, nn.Module)
        }
        self.learned = nn.ModuleDict(learned)
        # Manifolds serve the whole training, so that each probes its decoder and chooses its way of
        # differentiation once.
        self._manifolds: dict[str, Manifold] = {}
        # What a training compiles: see :meth:`compile_steps`.
        self._compiled: CompiledStep | None = None
        self._compile: bool | str | Mapping[str, Any] = False
        variational = self.variation.beta is not None
        shape = self.likelihood.parameter_shape(data.shape[1:])
        self.latent_dim = latent_dim_of(
            encoder, decoder, data, variational, latent_dim, shape, self.space, condition
        )
        self.conditions = 0 if condition is None else condition.shape[1]
        if self.conditions and self.variation.order is not None:
            hint = "A neighbour may have another condition than its centre: use another trainer."
            raise OptionError("NRAE", "data without conditions", "condition=", hint)
        self._refuse_for_latents(self.terms)
        self.prior = None
        if variational:
            own = self.variation
            self.prior = prior_of(own.prior, own.components, data, self.latent_dim)

    def compile_steps(self, given: bool | str | Mapping[str, Any]) -> None:
        """Compile the steps of a training, and the passes of :attr:`manifold`.

        Args:
            given: As ``compile=`` of :class:`~riemae.Manifold`.

        Raises:
            DTypeError: For anything else.
            OptionError: For what torch does not know.
        """
        if given == self._compile and (self._compiled is None) == (not given):
            return
        self._compile = given
        self._compiled = CompiledStep.of("compile", given)
        self._manifolds.clear()

    @property
    def manifold(self) -> Manifold:
        """The decoder's manifold: of expected data, or of distributions under ``"fisher"``."""
        if self.likelihood.linear and not self.fisher:
            return self._manifold("mean", lambda: self.decoder)
        wrap = Distributions if self.fisher else Mean
        return self._manifold("mean", lambda: wrap(self.decoder, self.likelihood))

    def encode(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, m)
        """Codes; of a variational autoencoder, their means."""
        return self.space.mean(self.encoder(x), self.variation.beta is not None)

    def decode(
        self, z: Tensor, condition: Tensor | None = None
    ) -> Tensor:  # (k, m), (k, c) -> (k, *shape)
        """Expected data."""
        return self.likelihood.mean(self._parameter(z, condition))

    def _parameter(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """What the decoder returns.

        Raises:
            OptionError: Without a condition, for a decoder with conditions.
        """
        decoder = self._network("decoder")
        if not self.conditions:
            return decoder(z)
        if condition is None:
            hint = "Give {'x': …, 'condition': …}."
            raise OptionError("autoencoder", "a condition for each sample", "none", hint)
        return decoder(z, condition)

    @property
    def _step(self) -> CompiledStep | None:
        """What a step of the training compiles; None where nothing is compiled."""
        compiled = self._compiled
        used = compiled is not None and compiled.active and torch.is_grad_enabled()
        return compiled if used and self.training else None

    def _network(self, name: str) -> Callable[..., Tensor]:
        module: nn.Module = getattr(self, name)
        return module if self._step is None else self._step.network(name, module)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (k, *shape) -> (k, m), (k, m)
        """Means and standard deviations of the codes of a variational autoencoder.

        The deviations on a sphere are ``(k, 1)``, the same for all axes.
        """
        raw = self.encoder(x)
        return self.space.mean(raw, variational=True), self.space.deviation(raw)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:  # -> (n, m)
        """Codes from the prior of a variational autoencoder.

        Args:
            n: Their number.
            generator: Source of the randomness.
        """
        if self.prior is None:
            return self.space.sample(self.null.new_zeros(n, self.latent_dim), generator)
        return self.prior.sample(n, self.encoder, generator)

    def noisy(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:  # (k, m) -> (k, *shape)
        """Data drawn from the likelihood at codes.

        Args:
            z: Codes.
            generator: Source of the randomness.
            condition: One for each code, for a decoder with conditions.
        """
        parameter = self._parameter(z, condition)
        if self.likelihood.linear:
            variance = self.variation.noise**2 * self.null / self._numbers
            return parameter + variance.sqrt() * gaussian(parameter, generator)
        device = parameter.device if generator is None else generator.device
        drawn = torch.randint(2**31, (), generator=generator, device=device)
        with seeded(parameter.device, int(drawn)):
            return self.likelihood.distribution(parameter).sample()

    def unexplained(
        self, x: Tensor, condition: Tensor | None = None
    ) -> Tensor:  # (k, *shape) -> (k,)
        """Fraction of deviance left unexplained by the reconstruction of each sample."""
        parameter = self._parameter(self.encode(x), condition)
        return self.likelihood.deviance(parameter, x) / self.null

    def forward(
        self,
        x: Tensor,
        neighbor: Tensor | None = None,
        generator: torch.Generator | None = None,
        *,
        index: Tensor | None = None,
        weights: Tensor | None = None,
        condition: Tensor | None = None,
        factors: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and its parts without their weights.

        Args:
            x: ``(k, *shape)``.
            neighbor: One neighbour of each sample, where the variation needs them.
            generator: Source of noise and probes.
            index: Numbers of the samples in the training data, where a term asks for them.
            weights: Of the samples, 1 on average over the data; None for equal ones.
            condition: One for each sample, for a decoder with conditions.
            factors: By which the weights of parts are multiplied, by name.

        Raises:
            OptionError: When something is missing that the variation or a term needs.
        """
        batch = Batch(x, neighbor, index, weights, condition)
        if self._step is not None and not self._step.checked:
            self._step.check(self, generator, lambda: self.total(self._parts(batch, generator)))
        parts = self._parts(batch, generator)
        return self.total(parts, factors), parts

    def _parts(self, batch: Batch, generator: torch.Generator | None) -> dict[str, Tensor]:
        """All parts of the loss, without their weights."""
        parts, z, decoded = self._base(batch, generator)
        if self.variation.contraction:
            parts["contraction"] = losses.contraction(
                self.encode, batch.x, probes=1, generator=generator
            )
        for name in self.terms:
            if name not in parts:
                parts[name] = self._term(name, z, batch, generator, decoded)
        return parts

    def total(
        self, parts: Mapping[str, Tensor], factors: Mapping[str, float] | None = None
    ) -> Tensor:
        """The weighted sum of the parts.

        Args:
            parts: Values by name.
            factors: By which the weights are multiplied, by name.
        """
        loss = parts["reconstruction"]
        for name, part in parts.items():
            if name == "reconstruction":
                continue
            factor = 1.0 if factors is None else factors.get(name, 1.0)
            loss = loss + factor * self.weight_of(name) * part
        return loss

    def weight_of(self, name: str) -> Any:
        """The whole weight of a part of the loss."""
        if name in self.terms:
            return self.terms[name].weight
        if name == "neighborhood":
            return self.variation.neighbor_weight
        if name == "contraction":
            return self.variation.contraction
        if name == "divergence" and self.variation.beta is not None:
            return self.variation.beta * self._per_nat
        return 1.0

    def factors(self, progress: float, rise: float = 1.0) -> dict[str, float]:
        """What the weights of parts are multiplied by at some progress of the training.

        Args:
            progress: From 0 to 1.
            rise: A further factor of all geometric terms, from 0 to 1.
        """
        found: dict[str, float] = {}
        for name, schedule in self._factors.items():
            found[name] = rise * (1.0 if schedule is None else _factor(name, schedule, progress))
        schedule = as_factor("beta", self.variation.beta_schedule)
        if schedule is not None:
            found["divergence"] = _factor("beta", schedule, progress)
        return {name: factor for name, factor in found.items() if factor != 1.0}

    @property
    def scheduled(self) -> bool:
        """Whether any weight depends on the progress of the training."""
        own = any(schedule is not None for schedule in self._factors.values())
        return own or self.variation.beta_schedule is not None

    @property
    def geometric(self) -> bool:
        """Whether the loss has more parts than a likelihood and a prior."""
        varied = self.variation.order is not None or bool(self.variation.contraction)
        return bool(self.terms) or varied

    def asks_for(self, name: str) -> bool:
        """Whether a term has a parameter of this name."""
        return any(name in wants.names for wants in self._wants.values())

    def prepare(self, data: Tensor) -> None:
        """Give the training data to the losses that take something from them.

        Args:
            data: ``(n, *shape)``, whose order is that of ``index``.
        """
        self.terms = {name: fitted(term, data, self.extent) for name, term in self.terms.items()}

    def term(
        self,
        name: str,
        z: Tensor,
        generator: torch.Generator | None = None,
        **given: Tensor | None,
    ) -> Tensor:  # (k, m) -> ()
        """One geometric term, without its weight, as a pure number.

        Args:
            name: Of the term.
            z: Codes.
            generator: Source of its randomness.
            given: ``x``, ``index``, ``neighbor`` and ``weights``, for a term that asks for them;
                ``condition``, for a decoder with conditions.
        """
        return self._term(name, z, Batch(**{"x": None, **given}), generator, None)  # type: ignore[arg-type]

    def costs(
        self,
        x: Tensor,
        neighbor: Tensor | None = None,
        repeats: int = 5,
        condition: Tensor | None = None,
    ) -> dict[str, dict[str, float]]:
        """Value, weight, share of the loss and seconds per training step of every part.

        The row ``"plain"`` is the step of a plain autoencoder with the same networks, forward and
        backward. The row of a term is what the term adds to it. One term may return the decoded
        codes to the reconstruction as well; then the seconds of a decoder pass are subtracted.
        On a processor, seconds are process time, the best of ``repeats``.

        Args:
            x: A batch ``(k, *shape)``.
            neighbor: One neighbour of each sample, where the variation needs them.
            repeats: How often every part is timed.
            condition: One for each sample, for a decoder with conditions.
        """
        generator = torch.Generator().manual_seed(0)

        def plain() -> Tensor:
            parameter = self._parameter(self.encode(x), condition)
            return self.likelihood.deviance(parameter, x).mean() / self.null

        index = torch.arange(len(x), device=x.device) if self.asks_for("index") else None
        batch = Batch(x, neighbor, index, condition=condition)

        def base() -> Tensor:
            return self.total(self._base(batch, generator)[0])

        def row(part: Callable[[], Tensor]) -> dict[str, float]:
            value = part().item()
            duration = seconds(part, self, x, repeats)
            return {"value": value, "weight": 1.0, "seconds": duration}

        rows = {"plain": row(plain)}
        loss, parts = self(x, neighbor, generator, index=index, condition=condition)
        varied = self.variation.order is not None or self.variation.beta is not None
        if varied or self.variation.corruption:
            rows["objective without terms"] = row(base)
        z = self.encode(x).detach()
        decoded = self.decode(z, condition).detach() if self.asks_for("decoded") else None

        def decoding() -> Tensor:
            codes = z.clone().requires_grad_()
            return self._parameter(codes, condition).sum()

        decoder_pass = seconds(decoding, self, x, repeats)
        for name, term in self.terms.items():

            def alone(name: str = name) -> Tensor:
                # Codes have a gradient, as in training, but the encoder is not timed again.
                codes = z.clone().requires_grad_()
                return self._term(name, codes, batch, generator, decoded)

            cost = seconds(alone, self, x, repeats)
            if name == self._sharing:
                cost = max(cost - decoder_pass, 0.0)
            value = parts[name].item()
            rows[name] = {"value": value, "weight": term.weight, "seconds": cost}
        whole = loss.item()
        for part in rows.values():
            part["share"] = part["weight"] * part["value"] / whole
        return rows

    def check_training(self, where: str) -> None:
        """Refuse layers with which geometric terms cannot differentiate the decoder.

        Args:
            where: The call that asks, for the error.

        Raises:
            DecoderError: For batch statistics or dropout in training mode.
        """
        if self.terms or self.variation.order is not None:
            _check_layers(where, self.decoder)

    def __getstate__(self) -> dict[str, Any]:
        # Manifolds are caches, which are filled again where they are needed.
        return {**self.__dict__, "_manifolds": {}}

    # The parts.

    def _base(
        self, batch: Batch, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """The parts without the terms, the codes, and what the decoder returned for them."""
        if self.variation.order is not None:
            parts, z = self._neighborhood(batch, generator)
            return parts, z, None
        return self._reconstruction(batch, generator)

    def _reconstruction(
        self, batch: Batch, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        x = batch.x
        seen = x
        if self.variation.corruption:
            seen = x + self.variation.corruption * self.spread * gaussian(x, generator)
        raw = self._network("encoder")(seen)
        divergence = None
        if self.variation.beta is None:
            code = self.space.mean(raw, variational=False)
        else:
            code, known = self.space.draw(raw, generator)
            divergence = batch.mean(self._divergence(code, raw, known))
        # The reconstruction has the first place among the parts, though a term may come before it.
        parts = {"reconstruction": code.new_zeros(())}
        name = self._sharing
        if name is None:
            decoded = self._parameter(code, batch.condition)
        else:
            value, decoded = self._evaluated(name, code, batch, generator, share=True)
            parts[name] = value * self._unit(name)
        parts["reconstruction"] = batch.mean(self.likelihood.deviance(decoded, x)) / self.null
        if divergence is not None:
            parts["divergence"] = divergence
        return parts, code, decoded

    def _divergence(self, code: Tensor, raw: Tensor, known: Tensor) -> Tensor:  # -> (k,)
        """Kullback-Leibler divergence of codes from the prior, or its estimate."""
        if self.prior is None:
            return known
        own = log_normal(code, *raw.chunk(2, -1))
        return own - self.prior.log_density(code, self.encoder)

    def _refuse_for_latents(self, terms: Mapping[str, Term]) -> None:
        """Refuse what only makes sense in R^m.

        Raises:
            OptionError: For losses that compare distances of codes, and learned priors, in other
                latent spaces.
        """
        if self.space.name is None:
            return
        of_distances = sorted(
            name for name, term in terms.items() if callable(term.loss) and _is_flat(term.loss)
        )
        where = f"latent={self.space.name!r}"
        if of_distances:
            hint = "They compare distances of codes as in R^m: use latent=None, or leave them out."
            raise OptionError(where, "terms for this space", ", ".join(of_distances), hint)
        if self.variation.prior != "normal":
            hint = "Its own prior goes with this space: leave prior out."
            raise OptionError(where, "prior='normal'", repr(self.variation.prior), hint)

    @property
    def _per_nat(self) -> Tensor:
        """The weight of the divergence in the ELBO in units of the null deviance."""
        # A Gaussian's variance is noise² times the data's.
        variance: Tensor | float = 1.0
        if self.likelihood.linear:
            variance = self.variation.noise**2 * self.null / self._numbers
        return 2 * variance / self.null

    @property
    def _sharing(self) -> str | None:
        """The term whose pass through the decoder serves the reconstruction as well."""
        # Elsewhere a term's decoder does not return the likelihood's parameters.
        if self.variation.order is not None or self.fisher or not self.likelihood.linear:
            return None
        return next((name for name, wants in self._wants.items() if wants.shares), None)

    def _term(
        self,
        name: str,
        z: Tensor,
        batch: Batch,
        generator: torch.Generator | None,
        decoded: Tensor | None,
    ) -> Tensor:
        value: Tensor = self._evaluated(name, z, batch, generator, decoded)
        return value * self._unit(name)

    def _evaluated(
        self,
        name: str,
        z: Tensor,
        batch: Batch,
        generator: torch.Generator | None,
        decoded: Tensor | None = None,
        share: bool = False,
    ) -> Any:
        loss = self.terms[name].loss
        wants = self._wants[name]
        assert loss is not None
        dtype = self.null.dtype
        with _full_precision(z):
            codes = z.to(dtype)
            manifold: Any = self.manifold
            if self.conditions:
                manifold = Conditioned(manifold, batch.condition)
            known: dict[str, Any] = {
                "manifold": manifold,
                "z": codes,
                "x": batch.x,
                "encoder": self.encode,
                "index": batch.index,
                "neighbor": batch.neighbor,
                "weights": batch.weights,
                "generator": generator,
            }
            if "decoded" in wants.names:
                known["decoded"] = (
                    self.decode(codes, batch.condition)
                    if decoded is None
                    else self.likelihood.mean(decoded)
                ).to(dtype)
            options = {**self.terms[name].options}
            options |= {key: known[key] for key in wants.names}
            missing = sorted(key for key in wants.needed & known.keys() if known[key] is None)
            missing = [key for key in missing if key not in ("weights", "generator")]
            if missing:
                raise _missing(name, missing)
            alone = None
            if options.get("weights") is not None and "weights" in wants.names:
                # A batch whose samples all have the weight 0 has no mean. It counts nothing.
                alone = (options["weights"] > 0).any()
                options["weights"] = torch.where(alone, options["weights"], 1.0)
            if share:
                options["decoded"] = True
            first = (manifold, codes) if wants.positional else ()
            found = in_one_look(lambda: loss(*first, **options), generator)
            found = (_number(name, found[0]), found[1]) if share else _number(name, found)
            if alone is None:
                return found
            return (alone * found[0], found[1]) if share else alone * found

    def _unit(self, name: str) -> Tensor:
        power = self.terms[name].power or 0
        return self.extent ** (power / 2)

    def _neighborhood(
        self, batch: Batch, generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        order = self.variation.order
        x = batch.x
        neighbor = batch.neighbor
        if neighbor is None:
            hint = "Give {'x': …, 'neighbor': …}."
            raise OptionError("NRAE", "batches with neighbours", "none", hint)
        assert order is not None
        raw = self._network("encoder")(torch.cat([x, neighbor]))
        z, other = self.space.mean(raw, self.variation.beta is not None).chunk(2)
        by_likelihood = self.ambient is None
        distance = self._shaped_deviance if by_likelihood else None
        unit = self.null if by_likelihood else self.extent
        with _full_precision(z):
            z = z.to(self.null.dtype)
            other = other.to(self.null.dtype)
            space = self._manifold("parameter", lambda: self.decoder)

            def errors() -> tuple[Tensor | None, Tensor]:
                return losses.neighborhood_errors(
                    space, z, other, neighbor, order=order, x=x, distance=distance
                )

            center, near = in_one_look(errors, generator)
        assert center is not None
        if self.variation.kernel is not None:
            near = near * _one_each("NRAE", self._kernel(neighbor, x), len(x))
        reconstruction = batch.mean(center) / unit
        neighborhood = batch.mean(near) / unit
        return {"reconstruction": reconstruction, "neighborhood": neighborhood}, z

    def _kernel(self, neighbor: Tensor, x: Tensor) -> Tensor:  # (k, *shape), (k, *shape) -> (k,)
        """What the weight of each neighbour is multiplied by (equation 19)."""
        kernel = self.variation.kernel
        if callable(kernel):
            return kernel(neighbor, x)
        assert kernel is not None
        square = (neighbor - x).square().flatten(1).sum(1)
        return (-square / (2 * kernel**2 * self.extent)).exp()

    def _shaped_deviance(self, predicted: Tensor, true: Tensor) -> Tensor:
        shape = self.likelihood.parameter_shape(true.shape[1:])
        return self.likelihood.deviance(predicted.view(-1, *shape), true)

    def _manifold(self, key: str, decoder: Callable[[], nn.Module]) -> Manifold:
        if key == "mean" and self.likelihood.linear and not self.fisher:
            key = "parameter"
        options: bool | str | Mapping[str, Any] | Compiling = self._compile
        if self._step is not None:  # gradients of these reach the weights
            key = f"{key} in training"
            options = self._step.compiling
        if key not in self._manifolds:
            latent = self.space.space(self.latent_dim)
            self._manifolds[key] = Manifold(decoder(), self.ambient, latent=latent, compile=options)
        return self._manifolds[key]


def _number(name: str, value: Any) -> Tensor:
    """What a loss returned, as one number.

    Raises:
        OptionError: When it is anything else.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.reshape(())
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    hint = "Take its mean over the samples."
    raise OptionError("terms", f"a loss {name!r} that returns one number", got, hint)


def _factor(name: str, schedule: Callable[[float], Any], progress: float) -> float:
    """The value of a schedule.

    Raises:
        OptionError: When it is not a finite number of at least 0.
    """
    value = schedule(progress)
    expect_range("schedule", f"factor of {name!r}", value, 0, hint="Return a number such as 0.5.")
    return float(value)


def _one_each(where: str, values: Any, count: int) -> Tensor:
    expected = "a tensor (k,), one value for each neighbour"
    if not isinstance(values, Tensor):
        raise OptionError(where, f"a kernel that returns {expected}", type(values).__name__)
    expect_shape(where, "kernel(x', x)", values, (count,), f"Return {expected}.")
    return values


def _is_flat(loss: Any) -> bool:
    """Whether a loss compares distances or differences of codes."""
    kinds = (GraphDistances, EmbeddingPull, TemporalStraightening)
    return loss is topology or isinstance(loss, kinds)


def _check_layers(where: str, decoder: nn.Module) -> None:
    try:
        Decoder(decoder).refuse_training_mode(where)
    except DecoderError as reason:
        expected = "a decoder that treats every row alone and is deterministic while it is trained"
        hint = (
            "Geometric terms differentiate the decoder: use LayerNorm or GroupNorm in it, "
            "and no dropout."
        )
        raise DecoderError(where, expected, reason.got, hint) from None


def _missing(name: str, missing: list[str]) -> OptionError:
    got = f"none of: {', '.join(missing)}"
    hint = (
        "fit gives them for arrays and tensors. A DataLoader has to return them in its batches, as "
        "{'x': …, 'index': …}, and other data for validation have none: use validation_fraction."
    )
    return OptionError("terms", f"batches with what {name!r} asks for", got, hint)


@contextmanager
def _full_precision(z: Tensor) -> Iterator[None]:
    """Leave autocast for the geometric parts: second derivatives in half precision are noise."""
    if not torch.is_autocast_enabled(z.device.type):
        yield
        return
    with torch.autocast(z.device.type, enabled=False):
        yield
