"""The manifold that a decoder parametrises, with the metric of the data space pulled back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from types import FunctionType
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from riemae import solvers, version
from riemae.ambient import AmbientMetric, as_ambient
from riemae.differential.conditions import Condition, Conditions, Untransformed
from riemae.distributions.layout import EnsembleLayout
from riemae.ensembles import Ensemble
from riemae.exceptions import (
    AmbientError,
    DecoderError,
    DifferentiationError,
    DTypeError,
    OptionError,
    ShapeError,
)
from riemae.geometry import distortion, extrinsic, intrinsic, operators, smoothness
from riemae.geometry.arrays import home, takes_arrays
from riemae.geometry.checks import Checks
from riemae.geometry.conditioned import Conditioned, Labels
from riemae.geometry.coordinates import coordinates, telling
from riemae.geometry.decoder import Decoder
from riemae.geometry.envelope import (
    Ruler,
    Twice,
    once_differentiable,
    transformed_distance,
    twice_differentiable,
)
from riemae.geometry.explanation import Explanation, explained
from riemae.geometry.given import at_condition
from riemae.geometry.integration import Integral, Region, box, function_values, integrate
from riemae.geometry.latent import LatentMetric, LatentSpace, as_latent, latent_geodesic
from riemae.geometry.pullback import PullbackMetric
from riemae.geometry.shaped import shaped_codes
from riemae.numerics import reach
from riemae.numerics.checks import (
    dtype_in_words,
    expect_choice,
    expect_dense,
    expect_device,
    expect_range,
    expect_values,
)
from riemae.numerics.compiling import Compiling
from riemae.numerics.html import table
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.numerics.random import as_generator
from riemae.numerics.tolerances import coarser
from riemae.numerics.transforms import refuse_transforms, refuse_vmap, transforms
from riemae.numerics.values import concrete
from riemae.solvers import (
    ConjugatePoints,
    Curve,
    DistanceMatrix,
    GeodesicResult,
    Graph,
    JacobiField,
    MetricSpace,
    Neighbors,
    RadiusNeighbors,
    SecondVariation,
    Solver,
)
from riemae.solvers import energy as curve_energy_integral
from riemae.solvers import length as curve_length
from riemae.solvers.budget import limited
from riemae.solvers.graph import GRAPH_RTOL
from riemae.solvers.graph import graph as build_graph
from riemae.solvers.neighborhoods import Again
from riemae.solvers.pairs import paired_points, start_curve
from riemae.solvers.path import demand_convergence
from riemae.solvers.path import geodesic as solve_geodesic
from riemae.solvers.space import Space
from riemae.solvers.speeds import length as fixed_length
from riemae.storage.digests import digest

# What geodesics are solved to, unless asked for, where the decoder has kinks: lengths converge
# slowly there.
_WITH_KINKS = 1e-2


def _as_public(kind: type[Manifold]) -> type[Manifold]:
    """Public methods compute in full precision and explain shortages.

    They take codes of any shape, and arrays.
    """
    for name, method in list(vars(kind).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            public = in_full_precision(takes_arrays(shaped_codes(method)))
            setattr(kind, name, within_memory(public))
    return kind


@_as_public
class Manifold:
    """A decoder ``f`` and an ambient metric ``H`` as a Riemannian manifold, ``G = Jᵀ H(f(z)) J``.

    Points ``z`` and tangents ``v`` are ``(*b, m)`` with any leading axes; data are seen as
    ``(*b, D)``. Every method keeps dtype and device, changes no input, and is differentiable by
    torch unless it says otherwise.

    Arrays of numpy and tables of pandas may stand for tensors: they are computed with in the dtype
    of the decoder's parameters (float64 where it has none), and where only arrays are given,
    tensors come back as arrays. Results that are more than a tensor (geodesics, curves, neighbours,
    graphs, distributions) hold tensors all the same, and functions that are arguments get tensors.

    Args:
        decoder: An ``nn.Module`` (in eval mode) or a function ``(k, m) -> (k, *shape)`` that treats
            every row alone. It may return a ``torch.distributions.Distribution`` instead, a tuple
            or dict of them, or be an :class:`~riemae.Ensemble`. Of a tuple, dict or output object
            with exactly one floating tensor, that tensor is taken. One that takes a condition as
            well is a function ``(z, c)``. A :class:`~riemae.solvers.MetricSpace`, a metric tensor
            written by hand, has no decoder and no ``ambient``: what is about an image in a data
            space (second fundamental form, mean, principal and extrinsic curvature, chords) raises.
        ambient: An :class:`~riemae.ambient.AmbientMetric`, a function ``x (k, D) -> H`` as
            ``(k, D, D)``, ``(D, D)`` or diagonal ``(k, D)``, or a constant tensor. Unless given, it
            is Euclidean for tensors and :class:`~riemae.ambient.FisherRao` for distributions, whose
            parameters have no units in common.
        latent_dim: m; by default taken from the first points.
        chunk_size: Points whose derivatives are held at once, at most; by default chosen to fit
            the processor's cache. Matrix products are padded to a multiple of 8 to 32 rows, so that
            no row notices its neighbours: the decoder may be called with up to that many rows.
        latent: What the latent space itself is, if no plain R^m: a tuple with the period of each
            coordinate, None for those that have none, or a geoopt manifold whose points are
            coordinates (``PoincareBall``, ``SphereProjection``). Geodesics then start from latent
            geodesics and may go either way round a period, and distortion is relative to its
            metric. See :mod:`riemae.geometry.latent`.
        latent_shape: The shape of one code where codes are not flat, such as ``(4, 8, 8)``: the
            decoder then gets ``(k, 4, 8, 8)``, and every method takes points and tangents
            ``(*b, 4, 8, 8)`` as well as flat ones ``(*b, 256)``. Points and tangents that are
            returned have that shape; metrics are ``(*b, m, m)`` with ``m = 256``, and curves hold
            flat codes.
        output: A function that takes the data out of what the decoder returns, such as
            ``lambda o: o.sample``.
        compile: Whether the passes through the decoder that find derivatives are compiled by
            ``torch.compile``: True, the name of a backend, or a dict with its ``backend``, ``mode``
            or ``options``. Compiling takes seconds to minutes at first use; the numbers are the
            same but for rounding. What cannot be compiled runs as without it, which a
            :class:`~riemae.exceptions.FallbackWarning` announces once and :meth:`explain` tells.
            Results that are to be differentiated are not compiled. See ``docs/performance.md``.

    Raises:
        DTypeError: When ``decoder`` or ``output`` is not callable, or ``compile`` none of these.
        AmbientError: When ``ambient`` is none of these.
        OptionError: When ``latent`` is none of these, or ``compile`` names what torch does not
            know; at first use, where ``compile`` finds no compiler.

    **Conditions.** A decoder ``f(z, c)`` whose output also depends on a library size, a class or a
    batch has a geometry for each ``c``. All methods that take points take ``condition``: a tensor
    ``(*b, *shape)`` of any dtype, one condition for each point ``(*b, m)``. Its first axes may also
    be 1: ``(1, *shape)`` is one condition for all of ``n`` points. Several tensors go in a tuple,
    list or dict, and reach the decoder in the same structure, with one row for each point. A pair
    of points, a curve, or a point with a velocity has one condition, kept along the way: ``(*b)``
    are then the axes of the pairs. The result of a row is that of a call with its point and its
    condition alone. A condition that requires a gradient gets one. Points under different
    conditions have no distance from each other. See ``docs/conditions.md``.

    All methods that take points raise:

    - :class:`~riemae.exceptions.ShapeError` for a wrong last axis, once m is known (given, or from
      the first points), and for conditions whose first axes are not those of the points,
    - :class:`~riemae.exceptions.DTypeError`, :class:`~riemae.exceptions.DeviceError` where ``z``
      and decoder differ,
    - :class:`~riemae.exceptions.NonFiniteError` for NaN or infinity in the points or out of the
      decoder,
    - :class:`~riemae.exceptions.MemoryLimitError` where there is not enough memory,
    - :class:`~riemae.exceptions.DecoderError` for a decoder that is not a map, found by a probe at
      first use, and for a condition that is missing, or given to a decoder that takes none.

    Example:
        >>> import torch
        >>> from riemae import Manifold
        >>> bowl = lambda z: torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)
        >>> paraboloid = Manifold(bowl)
        >>> paraboloid.metric(torch.tensor([1., 2.]))
        tensor([[2., 2.],
                [2., 5.]])
    """

    def __init__(
        self,
        decoder: nn.Module | Callable[..., Tensor] | MetricSpace,
        ambient: AmbientMetric | Callable[[Tensor], Tensor] | Tensor | None = None,
        latent_dim: int | None = None,
        chunk_size: int | None = None,
        latent: LatentSpace | None = None,
        *,
        latent_shape: Sequence[int] | None = None,
        output: Callable[[Any], Any] | None = None,
        compile: bool | str | Mapping[str, Any] | Compiling = False,
    ) -> None:
        for name, number in (("latent_dim", latent_dim), ("chunk_size", chunk_size)):
            if number is not None:
                expect_range("Manifold", name, number, 1, integer=True)
        self.latent_shape = _expect_shape(latent_shape, latent_dim)
        if self.latent_shape is not None:
            latent_dim = math.prod(self.latent_shape)
        if output is not None and not callable(output):
            hint = "Try output=lambda o: o.sample."
            raise DTypeError("Manifold", "output as a function", repr(output), hint)
        if isinstance(decoder, MetricSpace):
            if ambient is not None or output is not None or latent_shape is not None:
                hint = "Its tensor is the metric; latent_dim, chunk_size and latent go with it."
                raise OptionError("Manifold", "a MetricSpace alone", "more arguments", hint)
            ambient = decoder.metric
            decoder = coordinates
        self.output = output
        self.compile = compile
        compiling = Compiling.of("Manifold", compile)
        adapted = Decoder(decoder, self.latent_shape, output, compiling)
        metric = None if ambient is None else as_ambient(ambient)
        self.latent = as_latent(latent)
        if self.latent is None:
            self._pullback = PullbackMetric(adapted, metric, chunk_size)
        else:
            self._pullback = LatentMetric(adapted, metric, chunk_size, self.latent)
        self._checks = Checks(self._pullback, latent_dim)

    @property
    def decoder(self) -> Callable[..., Tensor]:
        """The decoder as it was given."""
        return self._pullback.decoder.function

    @property
    def ambient(self) -> AmbientMetric:
        """The ambient metric; from the first use on, with what it has read from the decoder."""
        return self._pullback.ambient

    @property
    def data_shape(self) -> torch.Size | None:
        """The shape of one decoded code; None before the first use, like what ``ambient`` reads."""
        return self._pullback.data_shape

    @property
    def latent_dim(self) -> int | None:
        """m, or None before the first use of a manifold that was not told."""
        return self._checks.latent_dim

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Manifold:
        """A copy of the manifold elsewhere, with copies of decoder and ambient metric.

        Modules and tensors that a function refers to come along: those in its closure, its
        defaults, among its globals, and of the object whose method it is.
        """
        output = self._pullback.decoder.output
        held = (self.decoder, self._pullback.given, output)
        decoder, ambient, output = reach.moved(held, device, dtype)
        return Manifold(
            decoder,
            ambient,
            self._checks.latent_dim,
            self._pullback.chunk_size,
            copy.deepcopy(self.latent),
            latent_shape=self.latent_shape,
            output=output,
            compile=self.compile,
        )

    def given(self, condition: Conditions) -> Manifold:
        """The manifold of the decoder at one condition, whose methods take points alone.

        What works with one manifold then works at a condition: a report, the statistics,
        neighbours.

        Args:
            condition: One condition ``(1, *shape)``, in the structure in which the decoder takes
                conditions; an integer is a label.

        Raises:
            DecoderError: When the decoder takes no condition.
            DTypeError: For anything but tensors and tuples, lists and dicts of them.
            OptionError: For several conditions.
            ShapeError: When the first axis is not 1.
        """
        decoder = self._pullback.decoder
        where = "Manifold.given"
        alone: Callable[..., Any]
        if isinstance(self.decoder, Ensemble):
            members = [at_condition(where, one, condition) for one in self.decoder.members]
            alone = Ensemble(members)
        else:
            alone = at_condition(where, decoder.function, condition)
        return Manifold(
            alone,
            self._pullback.given,
            self._checks.latent_dim,
            self._pullback.chunk_size,
            self.latent,
            latent_shape=self.latent_shape,
            output=decoder.output,
            compile=self.compile,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # What was learned about decoder and metric since does not travel; it is found again at
        # first use.
        arguments = (
            self.decoder,
            self._pullback.given,
            self._checks.latent_dim,
            self._pullback.chunk_size,
            self.latent,
            self.latent_shape,
            self._pullback.decoder.output,
            self.compile,
        )
        return _rebuilt, (type(self), *arguments)

    def __repr__(self) -> str:
        name = getattr(self.decoder, "__qualname__", type(self.decoder).__name__)
        shape = self._pullback.decoder.output_shape
        data = "?" if shape is None else "×".join(map(str, shape))
        m = self._checks.latent_dim or "?"
        return f"Manifold({name}: R^{m} -> R^{data}, ambient={self._pullback.ambient})"

    def _repr_html_(self) -> str:
        """What the manifold is made of as a table, for notebooks."""
        decoder = self._pullback.decoder
        shape = decoder.output_shape
        name = getattr(self.decoder, "__qualname__", type(self.decoder).__name__)
        rows: list[tuple[str, object]] = [
            ("decoder", name),
            ("latent dimension", self._checks.latent_dim or "known at first use"),
            ("data", "known at first use" if shape is None else "×".join(map(str, shape))),
            ("ambient metric", self._pullback.ambient),
        ]
        if self.latent_shape is not None:
            rows.insert(2, ("shape of a code", "×".join(map(str, self.latent_shape))))
        if self.latent is not None:
            rows.append(("latent space", self.latent))
        return table("Manifold", rows)

    @property
    def members(self) -> tuple[Manifold, ...]:
        """The manifolds of an ensemble's members, each under the ambient metric that was given.

        Raises:
            DecoderError: When the decoder is not an ensemble.
        """
        if not isinstance(self.decoder, Ensemble):
            raise DecoderError(
                "Manifold.members",
                "an ensemble of decoders",
                getattr(self.decoder, "__qualname__", type(self.decoder).__name__),
                "Try Manifold(riemae.Ensemble([decoder1, decoder2])).",
            )
        given = self._pullback.given
        m = self._checks.latent_dim
        chunk = self._pullback.chunk_size
        options: dict[str, Any] = {
            "latent_shape": self.latent_shape,
            "output": self._pullback.decoder.output,
            "compile": self.compile,
        }
        return tuple(
            Manifold(member, given, m, chunk, **options) for member in self.decoder.members
        )

    # The map and its tangents.

    def decode(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, *shape)
        """Data ``f(z)``, or the parameters of the distributions that the decoder returns.

        A single parameter keeps its shape; several, in the order of
        :mod:`riemae.distributions.closed_form`, are flattened and joined. Logits stay logits and
        probabilities stay probabilities, as the decoder built them. Members of an ensemble have an
        axis of their own, before the data's.
        """
        core, flat = self._checks.placed("decode", z, condition)
        x = core.immersion.value(flat)
        x = core.finite("decode", x, flat)
        return x.view(*z.shape[:-1], *core.output_shape(flat))

    def distribution(self, z: Tensor, *, condition: Conditions = None) -> Any:  # (*b, m)
        """The distributions at points, in the structure in which the decoder returns them.

        Their batch axes are ``(*b)``.

        For an ensemble, a tuple with those of each member.

        Raises:
            DecoderError: When the decoder returns tensors.
        """
        core, flat = self._checks.placed("distribution", z, condition)
        layout = core.decoder.layout
        member = layout.member if isinstance(layout, EnsembleLayout) else layout
        if member is None:
            raise DecoderError(
                "Manifold.distribution",
                "a decoder that returns torch distributions",
                "one that returns tensors",
                "Use decode(z), or let the decoder return a torch.distributions.Distribution.",
            )
        x = core.finite("distribution", core.immersion.value(flat), flat)
        if isinstance(layout, EnsembleLayout):
            return tuple(
                member.build(y) for y in x.view(*z.shape[:-1], layout.count, -1).unbind(-2)
            )
        return member.build(x.view(*z.shape[:-1], -1))

    def jacobian(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, D, m)
        """Jacobian ``J = ∂f/∂z``, with data axes flattened."""
        core, flat = self._checks.placed("jacobian", z, condition)
        j = core.immersion.jacobian(flat)
        j = core.finite("jacobian", j, flat)
        return j.view(*z.shape[:-1], *j.shape[1:])

    def pushforward(
        self, z: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b, D)
        """Data-space velocity ``J v`` of a latent velocity."""
        core, flat, w, batch = self._checks.tangents("pushforward", condition, z, v)
        pushed = core.finite("pushforward", core.immersion.jvp(flat, w)[1], flat)
        return pushed.view(*batch, pushed.shape[-1])

    def pullback(
        self, z: Tensor, w: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, D) or (*b, *shape) -> (*b, m)
        """Latent covector ``Jᵀ w`` of a data-space covector.

        Raises:
            DTypeError: When ``w`` is not a tensor, or of another dtype than ``z``.
            DeviceError: When ``w`` is on another device than ``z``.
            ShapeError: When ``w`` does not hold one covector per point.
        """
        core, flat = self._checks.placed("pullback", z, condition)
        expect_device("Manifold.pullback", "w", w, "z", z)
        shape = core.decoder.output_shape
        if shape is not None:
            size = shape.numel()
        else:
            size = w.shape[-1] if isinstance(w, Tensor) else 0
        if not isinstance(w, Tensor) or w.dtype != z.dtype:
            got = dtype_in_words(w)
            raise DTypeError(
                "Manifold.pullback",
                f"w as a tensor of dtype {z.dtype}",
                got,
                "Convert one of them.",
            )
        if w.shape not in ((*z.shape[:-1], size), (*z.shape[:-1], *(shape or ()))):
            raise ShapeError(
                "Manifold.pullback",
                f"w of shape {(*z.shape[:-1], size)}",
                str(tuple(w.shape)),
                "It needs one covector of the data space per point.",
            )
        pulled = core.immersion.vjp(flat, w.reshape(len(flat), size))[1]
        return core.finite("pullback", pulled, flat).view(z.shape)

    def taylor(
        self, z: Tensor, v: Tensor, order: Literal[1, 2] = 2, *, condition: Conditions = None
    ) -> tuple[Tensor, ...]:  # (*b, m), (*b, m) -> (*b, D) each
        """Taylor coefficients of ``t ↦ f(z + t v)``: ``f(z)``, ``J v`` and ``½ ∂²f(v, v)``.

        Their sum is the local approximation of the decoder at ``z + v`` (equation 18). One pass:
        the value comes with its derivatives, and nothing is materialised. Data axes are flattened.

        Raises:
            OptionError: For another order.

        Warns:
            SmoothnessWarning: For order 2, when the decoder is piecewise linear.
        """
        if order not in (1, 2):
            raise OptionError("Manifold.taylor", "order 1 or 2", repr(order), "Try order=2.")
        core, flat, w, batch = self._checks.tangents("taylor", condition, z, v)
        if order == 2:
            smoothness.warn_if_flat(core, flat)
        terms = core.taylor(flat, w, order)
        found = [core.finite("taylor", x, flat) for x in terms]
        return tuple(x.view(*batch, x.shape[-1]) for x in found)

    # The metric.

    def metric(self, z: Tensor, *, condition: Conditions = None) -> Tensor:  # (*b, m) -> (*b, m, m)
        """Pull-back metric ``G = Jᵀ H(f(z)) J`` (equation 3)."""
        core, flat = self._checks.placed("metric", z, condition)
        g = core.finite("metric", core.metric(flat), flat)
        return g.view(*z.shape, z.shape[-1])

    def metric_product(
        self, z: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``G(z) v`` by one forward and one reverse product, without ``G``."""
        core, flat, v, batch = self._checks.tangents("metric_product", condition, z, v)
        out = core.metric_product(flat, v)
        return core.finite("metric_product", out, flat).view(*batch, flat.shape[-1])

    def inner(
        self, z: Tensor, u: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) x 3 -> (*b,)
        """Inner product ``uᵀ G(z) v``."""
        core, flat, u, v, batch = self._checks.tangents("inner", condition, z, u, v)
        return core.finite("inner", core.inner(flat, u, v), flat).view(batch)

    def norm(
        self, z: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """Length ``sqrt(vᵀ G(z) v)`` of tangent vectors, by one forward product.

        Its gradient at v = 0 is 0.
        """
        core, flat, v, batch = self._checks.tangents("norm", condition, z, v)
        return core.norm(flat, v).view(batch)

    def eigenvalues(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, m)
        """Eigenvalues of ``G(z)``, ascending: squared stretch factors of the decoder.

        0 where G is singular.

        From singular values of the Jacobian, as right as that is: see
        :mod:`riemae.geometry.factors`.

        Warns:
            PrecisionWarning: Where the condition is more than the dtype carries.
        """
        core, flat = self._checks.placed("eigenvalues", z, condition)
        return core.singular_values("eigenvalues", flat).square().view(z.shape)

    def metric_factor(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, m, m)
        """Upper triangular ``R`` with ``RᵀR = G(z)``: ``|R v|`` is the length of the tangent ``v``.

        From a QR decomposition of the Jacobian, whose condition is not squared: see
        :mod:`riemae.geometry.factors`.
        """
        core, flat = self._checks.placed("metric_factor", z, condition)
        r = core.triangle("metric_factor", flat)
        return r.to(z.dtype).view(*z.shape, z.shape[-1])

    def log_volume(self, z: Tensor, *, condition: Conditions = None) -> Tensor:  # (*b, m) -> (*b,)
        """``log √det G``, the log magnification factor; −inf where the metric is singular.

        From a QR decomposition of the Jacobian, as right as that is: see
        :mod:`riemae.geometry.factors`.

        Warns:
            PrecisionWarning: Where the condition is more than the dtype carries.
        """
        core, flat = self._checks.placed("log_volume", z, condition)
        return core.log_volume("log_volume", flat).view(z.shape[:-1])

    def volume_density(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b,)
        """``√det G``, the magnification factor.

        Warns:
            PrecisionWarning: Where the condition is more than the dtype carries.
        """
        return self.log_volume(z, condition=condition).exp()

    # The connection.

    def christoffel(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, m, m, m)
        """Christoffel symbols of the second kind, ``christoffel[..., k, i, j] = Γᵏ_ij``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        core, flat = self._checks.placed("christoffel", z, condition)
        m = z.shape[-1]
        return core.christoffel(flat).view(*z.shape[:-1], m, m, m)

    def acceleration(
        self, z: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """Geodesic equation ``z̈ = −Γ(v, v)``, without Christoffel symbols.

        ``G z̈ = −Jᵀ H ∂²f(v, v) − Jᵀ[(D_ẋ H) ẋ − ½ ∇ₓ(ẋᵀ H ẋ)]`` with ``ẋ = J v``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        core, flat, v, batch = self._checks.tangents("acceleration", condition, z, v)
        return core.acceleration(flat, v).view(*batch, flat.shape[-1])

    # Curvature: riemae.geometry.extrinsic and riemae.geometry.intrinsic have the formulas.

    # Functions and fields.

    def gradient(
        self, f: Callable[[Tensor], Tensor], z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, m)
        """The gradient ``G⁻¹ df`` of a function; not differentiable.

        Args:
            f: Values of points, ``(k, m) -> (k,)``, row by row, by torch. Codes are flat.
            z: Points ``(*b, m)``.
            condition: As in :class:`Manifold`.

        Raises:
            ShapeError: When ``f`` gives anything but one value for each point.
            DifferentiationError: When ``f`` changes and autograd does not know.
        """
        core, flat = self._checks.placed("gradient", z, condition)
        found = operators.gradient(_Operand(core), "Manifold.gradient", f, flat)
        return found.view(z.shape)

    def laplacian(
        self, f: Callable[[Tensor], Tensor], z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b,)
        """The Laplace–Beltrami operator ``g^{ij} (∂_ij f − Γᵏ_ij ∂_k f)``; not differentiable.

        By m second derivatives of ``f`` and m geodesic accelerations, without Christoffel symbols.
        Its sign is that of the sum of second derivatives: −l(l + 1) on spherical harmonics.

        Args:
            f: Values of points, ``(k, m) -> (k,)``, row by row, twice differentiable by torch.
                Codes are flat.
            z: Points ``(*b, m)``.
            condition: As in :class:`Manifold`.

        Raises:
            ShapeError: When ``f`` gives anything but one value for each point.
            DifferentiationError: When ``f`` changes and autograd does not know.
            SingularMetricError: Where the metric is not positive definite.
        """
        core, flat = self._checks.placed("laplacian", z, condition)
        found = operators.laplacian(_Operand(core), "Manifold.laplacian", f, flat)
        return found.view(z.shape[:-1])

    def divergence(
        self, field: Callable[[Tensor], Tensor], z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b,)
        """The divergence ``(1/√g) ∂_i(√g Vⁱ)`` of a vector field; not differentiable.

        Args:
            field: Tangent vectors in latent coordinates, ``(k, m) -> (k, m)``, row by row, by
                torch. Codes are flat.
            z: Points ``(*b, m)``.
            condition: As in :class:`Manifold`.

        Raises:
            ShapeError: When ``field`` gives anything but one vector for each point.
            DifferentiationError: When ``field`` changes and autograd does not know.
            SingularMetricError: Where the metric is not positive definite.
        """
        core, flat = self._checks.placed("divergence", z, condition)
        found = operators.divergence(_Operand(core), "Manifold.divergence", field, flat)
        return found.view(z.shape[:-1])

    # Integrals.

    def integrate(
        self,
        f: Callable[[Tensor], Tensor],
        region: Region,
        density: Callable[[Tensor], Tensor] | None = None,
        *,
        rtol: float | None = None,
        max_points: int | None = None,
        throw: bool = True,
        generator: torch.Generator | int | None = 0,
        condition: Conditions = None,
    ) -> Integral:
        """``∫ f dV`` over a box of coordinates, or ``∫ f p dz``; not differentiable.

        With respect to the Riemannian volume ``dV = √det G dz``, or to a measure of one's own. In
        up to three dimensions by Gauss and Legendre's rule on ever more cells; in more by scrambled
        Sobol sequences, with a standard error.

        Args:
            f: ``(k, m) -> (k, ...)``, row by row. Codes are flat.
            region: ``(m, 2)``, lower and upper ends of each coordinate.
            density: ``p``, ``(k, m) -> (k,)``, with respect to ``dz``; by default the volume's.
            rtol: Accuracy relative to the largest value; by default 1e-6 (1e-4 in float32), and
                1e-2 in more than three dimensions.
            max_points: By default about a million.
            throw: Raise when the accuracy is missed.
            generator: Of the sequences: a generator, or the seed of a new one.
            condition: One condition, as in :class:`Manifold`.

        Raises:
            ShapeError: When ``f``, ``density`` or ``region`` has another shape.
            DTypeError: When one of them is of another kind.
            OptionError: When a lower end is not below its upper end.
            NotConvergedError: When ``throw`` and the accuracy is missed; its result is the
                integral.
        """
        where = "Manifold.integrate"
        low, high = box(where, region, self.latent_dim, home(self.decoder))

        def integrand(z: Tensor) -> Tensor:
            values = function_values(where, "f", f, z)
            if density is None:
                weight = self.volume_density(z, condition=condition)
            else:
                weight = function_values(where, "density", density, z, single=True)
            return weight.view(-1, *[1] * (values.ndim - 1)) * values

        source = as_generator(where, generator)
        return integrate(where, integrand, low, high, rtol, max_points, source, throw)

    def volume(
        self,
        region: Region,
        *,
        rtol: float | None = None,
        max_points: int | None = None,
        throw: bool = True,
        generator: torch.Generator | int | None = 0,
        condition: Conditions = None,
    ) -> Integral:
        """The Riemannian volume ``∫ √det G dz`` of a box of coordinates; not differentiable.

        Args:
            region: As in :meth:`integrate`.
            rtol: As in :meth:`integrate`.
            max_points: As in :meth:`integrate`.
            throw: As in :meth:`integrate`.
            generator: As in :meth:`integrate`.
            condition: As in :meth:`integrate`.

        Raises:
            NotConvergedError: When ``throw`` and the accuracy is missed; its result is the
                integral.
        """
        where = "Manifold.volume"
        low, high = box(where, region, self.latent_dim, home(self.decoder))

        def density(z: Tensor) -> Tensor:
            return self.volume_density(z, condition=condition)

        source = as_generator(where, generator)
        return integrate(where, density, low, high, rtol, max_points, source, throw)

    def second_fundamental_form(
        self, z: Tensor, u: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) x 3 -> (*b, D)
        """Second fundamental form ``II(u, v) = (I − T̂) ∂²f(u, v)`` in Euclidean data space.

        Raises:
            SingularMetricError: Where the Jacobian has dependent columns.

        Warns:
            SmoothnessWarning: When the decoder is piecewise linear; so for all curvatures.
        """
        core, flat, u, v, batch = self._checks.tangents(
            "second_fundamental_form", condition, z, u, v
        )
        bend = extrinsic.second_fundamental_form(core, flat, u, v)
        return bend.view(*batch, bend.shape[-1])

    def curvature_form(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, m, m)
        """Extrinsic curvature form ``C_ij = Tr(∂_i T̂ ∂_j T̂)`` (equation 9).

        No D × D matrix is formed.
        """
        core, flat = self._checks.placed("curvature_form", z, condition)
        form = extrinsic.curvature_form(core, flat)
        return form.view(*z.shape, z.shape[-1])

    @overload
    def extrinsic_curvature(
        self,
        z: Tensor,
        estimator: Literal["exact", "hutchinson", "paper"] = ...,
        samples: int = ...,
        generator: torch.Generator | int | None = ...,
        ridge: float = ...,
        per_member: bool = ...,
        *,
        decoded: Literal[False] = ...,
        condition: Conditions = ...,
    ) -> Tensor: ...

    @overload
    def extrinsic_curvature(
        self,
        z: Tensor,
        estimator: Literal["exact", "hutchinson", "paper"] = ...,
        samples: int = ...,
        generator: torch.Generator | int | None = ...,
        ridge: float = ...,
        per_member: bool = ...,
        *,
        decoded: Literal[True],
        condition: Conditions = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def extrinsic_curvature(
        self,
        z: Tensor,
        estimator: Literal["exact", "hutchinson", "paper"] = "exact",
        samples: int = 1,
        generator: torch.Generator | int | None = None,
        ridge: float = 0.0,
        per_member: bool = False,
        *,
        decoded: bool = False,
        condition: Conditions = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # (*b, m) -> (*b,) or (K, *b)
        """Local extrinsic curvature ``Tr(G⁻¹ C)`` (equation 10): how fast tangent spaces turn.

        2m/r² on a sphere S^m.

        Args:
            z: Points.
            estimator: ``"exact"``, by m(m + 1)/2 second derivatives; ``"hutchinson"``:
                ``2 Tr(G⁻¹ B g⁻¹ B)`` with ``B = n·∂²f`` along the normal parts n of random signs in
                the data space, unbiased and never negative, one reverse product a sample;
                ``"paper"``: that of the paper's section 3.2, unbiased but of larger variance and
                sometimes negative.
            samples: Draws averaged by a stochastic estimator.
            generator: Source of its randomness, or a seed.
            ridge: Added to the metrics that are inverted, in units of their mean eigenvalue, so
                that a nearly singular Jacobian gives a large value instead of an error. It lowers
                the result by about ridge × condition.
            per_member: One value for each member of an ensemble, along a new first axis.
            decoded: Also return the data ``(*b, *shape)`` at ``z``, from the same pass; not with
                ``per_member``.
            condition: As in :class:`Manifold`.

        Raises:
            OptionError: For an unknown estimator, fewer than one sample, a negative ridge, or
                ``per_member`` with ``decoded``.
            SingularMetricError: Where the metric is not positive definite.
        """
        if per_member and decoded:
            hint = "Decode each of M.members."
            raise OptionError("Manifold.extrinsic_curvature", "per_member or decoded", "both", hint)
        if per_member:
            generator = as_generator("Manifold.extrinsic_curvature", generator, z.device)
            options = (estimator, samples, generator, ridge)
            return torch.stack(
                [M.extrinsic_curvature(z, *options, condition=condition) for M in self.members]
            )
        core, flat = self._checks.placed("extrinsic_curvature", z, condition)
        generator = as_generator("Manifold.extrinsic_curvature", generator, z.device)
        out, x = extrinsic.extrinsic_curvature(
            core, flat, estimator, samples, generator, ridge, decoded
        )
        out = out.view(z.shape[:-1])
        if not decoded:
            return out
        shape = core.decoder.output_shape
        if shape is None:
            shape = x.shape[1:]
        return out, x.view(*z.shape[:-1], *shape)

    def mean_curvature(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) -> (*b, D)
        """Mean curvature vector ``(1/m) Σ (g⁻¹)_ij II(e_i, e_j)`` in Euclidean data space.

        Length 1/r on a sphere.
        """
        core, flat = self._checks.placed("mean_curvature", z, condition)
        vector = extrinsic.mean_curvature(core, flat)
        return vector.view(*z.shape[:-1], vector.shape[-1])

    def principal_curvatures(
        self, z: Tensor, normal: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m), (*b, D) -> (*b, m)
        """Principal curvatures along a normal direction: eigenvalues of ``g⁻¹ ⟨II, n⟩``, ascending.

        Args:
            z: Points.
            normal: Directions of the data space; their normal part is taken and scaled to length 1.
            condition: As in :class:`Manifold`.

        Raises:
            DTypeError: When ``normal`` is not a tensor, or of another dtype than ``z``.
            DeviceError: When ``normal`` is on another device than ``z``.
            ShapeError: When ``normal`` does not hold one direction per point.
            OptionError: When ``normal`` is tangent to the manifold.
        """
        core, flat = self._checks.placed("principal_curvatures", z, condition)
        expect_device("Manifold.principal_curvatures", "normal", normal, "z", z)
        if not isinstance(normal, Tensor) or normal.dtype != z.dtype:
            got = dtype_in_words(normal)
            raise DTypeError(
                "Manifold.principal_curvatures",
                f"a tensor of dtype {z.dtype}",
                got,
                "Convert one of them.",
            )
        shape = core.decoder.output_shape
        size = normal.shape[-1] if shape is None else shape.numel()
        if normal.numel() != len(flat) * size:
            raise ShapeError(
                "Manifold.principal_curvatures",
                f"normal of shape {(*z.shape[:-1], size)}",
                str(tuple(normal.shape)),
                "It needs one direction of the data space per point.",
            )
        flat_normal = normal.reshape(len(flat), size)
        values = extrinsic.principal_curvatures(core, flat, flat_normal)
        return values.view(z.shape)

    @overload
    def riemann(
        self,
        z: Tensor,
        ridge: float = ...,
        *,
        with_metric: Literal[False] = ...,
        condition: Conditions = ...,
    ) -> Tensor: ...

    @overload
    def riemann(
        self,
        z: Tensor,
        ridge: float = ...,
        *,
        with_metric: Literal[True],
        condition: Conditions = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def riemann(
        self,
        z: Tensor,
        ridge: float = 0.0,
        *,
        with_metric: bool = False,
        condition: Conditions = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # (*b, m) -> (*b, m, m, m, m)
        """Riemann tensor with all indices down, ``[..., i, j, k, l] = ⟨R(e_i, e_j) e_k, e_l⟩``.

        By the Gauss equation where the ambient metric has a feature map; by differentiating the
        connection elsewhere, which includes the curvature of the ambient space itself.

        Args:
            z: Points.
            ridge: As in :meth:`extrinsic_curvature`; for ambient metrics with a feature map.
            with_metric: Also return ``G`` ``(*b, m, m)``, with the ridge, from the same pass.
            condition: As in :class:`Manifold`.

        Raises:
            OptionError: For a negative ridge, or one without a feature map.
        """
        core, flat = self._checks.placed("riemann", z, condition)
        metric, tensor = intrinsic.riemann(core, "Manifold.riemann", flat, ridge)
        m = z.shape[-1]
        tensor = tensor.view(*z.shape, m, m, m)
        if not with_metric:
            return tensor
        return tensor, metric.view(*z.shape, m)

    def ricci(self, z: Tensor, *, condition: Conditions = None) -> Tensor:  # (*b, m) -> (*b, m, m)
        """Ricci tensor ``Ric_jk = Σ g^il R_ijkl``; (m − 1) G / r² on a sphere S^m."""
        core, flat = self._checks.placed("ricci", z, condition)
        tensor = intrinsic.ricci(core, "Manifold.ricci", flat)
        return tensor.view(*z.shape, z.shape[-1])

    def scalar_curvature(
        self,
        z: Tensor,
        estimator: Literal["exact", "hutchinson"] = "exact",
        samples: int = 1,
        generator: torch.Generator | int | None = None,
        per_member: bool = False,
        *,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m) -> (*b,) or (K, *b)
        """Scalar curvature ``Σ g^jk Ric_jk``; m(m − 1)/r² on a sphere S^m.

        Args:
            z: Points.
            estimator: ``"exact"``, or ``"hutchinson"``: ``⟨II(u, u), II(w, w)⟩ − |II(u, w)|²`` with
                whitened random signs u and w, unbiased, three second derivatives a sample; needs a
                feature map.
            samples: Draws averaged by the stochastic estimator.
            generator: Source of its randomness, or a seed.
            per_member: One value for each member of an ensemble, along a new first axis.
            condition: As in :class:`Manifold`.

        Raises:
            OptionError: For an unknown estimator, fewer than one sample, or no feature map for
                ``"hutchinson"``.
        """
        if per_member:
            options = (estimator, samples, generator)
            return torch.stack(
                [M.scalar_curvature(z, *options, condition=condition) for M in self.members]
            )
        core, flat = self._checks.placed("scalar_curvature", z, condition)
        generator = as_generator("Manifold.scalar_curvature", generator, z.device)
        values = intrinsic.scalar_curvature(core, flat, estimator, samples, generator)
        return values.view(z.shape[:-1])

    def kretschmann(
        self,
        z: Tensor,
        estimator: Literal["exact", "planes"] = "exact",
        samples: int = 1,
        generator: torch.Generator | int | None = None,
        ridge: float = 0.0,
        *,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m) -> (*b,)
        """Kretschmann scalar ``‖R‖² = R_ijkl R^ijkl``; 2m(m − 1)/r⁴ on a sphere S^m.

        Args:
            z: Points.
            estimator: ``"exact"``, or ``"planes"``: ``(m(m − 1))² R(u, v, w, x)²`` with orthonormal
                bases (u, v) and (w, x) of two random planes, unbiased and never negative, four
                second derivatives a sample; needs a feature map. A surface has one plane, so that
                it is exact for m = 2.
            samples: Draws averaged by the stochastic estimator.
            generator: Source of its randomness, or a seed.
            ridge: As in :meth:`extrinsic_curvature`; for ambient metrics with a feature map.
            condition: As in :class:`Manifold`.

        Raises:
            OptionError: For an unknown estimator, fewer than one sample, a negative ridge, or a
                ridge or ``"planes"`` without a feature map.
        """
        core, flat = self._checks.placed("kretschmann", z, condition)
        generator = as_generator("Manifold.kretschmann", generator, z.device)
        values = intrinsic.kretschmann(core, flat, estimator, samples, generator, ridge)
        return values.view(z.shape[:-1])

    def sectional_curvature(
        self, z: Tensor, u: Tensor, v: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, m) x 3 -> (*b,)
        """Sectional curvature of the plane of u and v, ``R(u, v, v, u) / (|u|²|v|² − ⟨u, v⟩²)``.

        1/r² on a sphere.

        Raises:
            OptionError: Where u and v are linearly dependent, with the places.
        """
        core, flat, u, v, batch = self._checks.tangents("sectional_curvature", condition, z, u, v)
        values = intrinsic.sectional_curvature(core, flat, u, v)
        return values.view(batch)

    def gaussian_curvature(
        self, z: Tensor, *, condition: Conditions = None
    ) -> Tensor:  # (*b, 2) -> (*b,)
        """Gaussian curvature of a surface.

        Raises:
            ShapeError: Unless m = 2.
        """
        core, flat = self._checks.placed("gaussian_curvature", z, condition)
        values = intrinsic.gaussian_curvature(core, flat)
        return values.view(z.shape[:-1])

    def kinks(self, z: Tensor, *, condition: Conditions = None) -> str | None:  # (*b, m)
        """What makes the decoder piecewise linear, in words, as ``SmoothnessWarning`` has it.

        None when it is smooth.
        """
        core, flat = self._checks.placed("kinks", z, condition)
        return smoothness.kinks(core, flat)

    def explain(self, z: Tensor, *, condition: Conditions = None) -> Explanation:  # (*b, m)
        """How the decoder is differentiated at these points, and what that costs.

        Which mode runs, which of its operations have no rule of their own in Taylor mode, and the
        time of first and second derivatives in decodings. ``print(M.explain(z))`` for people.

        Args:
            z: Points; some hundred make the times steady.
            condition: As in :class:`Manifold`.
        """
        core, flat = self._checks.placed("explain", z, condition)
        return explained(core, flat)

    # Distortion: riemae.geometry.distortion has the formulas, riemae.scores what is said of sets of
    # points.

    def distortion(
        self,
        z: Tensor,
        kind: Literal["isometry", "scaled_isometry", "conformal", "area"] = "isometry",
        local: bool = False,
        estimator: Literal["exact", "hutchinson"] = "exact",
        samples: int = 1,
        generator: torch.Generator | int | None = None,
        latent_metric: Any = None,
        *,
        weights: Tensor | None = None,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m) -> () or (*b,)
        """How far the decoder is from preserving the latent geometry (equations 14 to 16).

        Never negative when exact.

        Args:
            z: Points; the global measure is the mean over them, and so are the constants that it
                contains.
            kind: ``"isometry"``: ``Σ (1 − λ_i)²``; ``"scaled_isometry"``: the same after the best
                common scale; ``"conformal"``: after the best scale at each point; ``"area"``:
                variance of the log volume.
            local: One value per point instead of their mean.
            estimator: ``"exact"``, or ``"hutchinson"`` by products ``Gv`` alone: unbiased for
                isometries; ratios of unbiased traces for the scaled kinds, whose bias falls like
                1/(samples × points), for ``"conformal"`` like 1/samples. Single estimates can be
                negative.
            samples: Pairs of Gaussian probes averaged by the stochastic estimator.
            generator: Source of their randomness, or a seed.
            latent_metric: A function ``z (k, m) -> (k, m, m)`` or a geoopt manifold; by default
                that of ``latent``, or the Euclidean one.
            weights: Of the points ``(*b,)``, known up to a factor, for all means, such as
                ``M.volume_density(z)`` for points that are uniform in latent space.
            condition: As in :class:`Manifold`.

        Raises:
            OptionError: For an unknown kind or estimator, or weights that are negative, not finite,
                or all 0.
            ShapeError: When the latent metric has another shape, or there is not one weight for
                each point.
            SingularMetricError: Where the latent metric is not positive definite.
        """
        core, flat = self._checks.placed("distortion", z, condition)
        generator = as_generator("Manifold.distortion", generator, z.device)
        if latent_metric is None and self.latent is not None:
            latent_metric = self.latent.metric
        share = None
        if weights is not None:
            share = distortion.flat_shares("Manifold.distortion", weights, z)
        out = distortion.distortion(
            core, flat, kind, local, estimator, samples, generator, latent_metric, share
        )
        return out.view(z.shape[:-1]) if local else out

    # Curves.

    @overload
    def length(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        return_error: Literal[False] = False,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor: ...

    @overload
    def length(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        *,
        return_error: Literal[True],
        throw: bool = True,
        condition: Conditions = None,
    ) -> tuple[Tensor, Tensor]: ...

    def length(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        return_error: bool = False,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # -> (*b,) or (*b,), (*b,)
        """Length of curves (equation 4), refined until its error is below ``rtol``.

        :func:`riemae.solvers.length` on this manifold.

        Args:
            curve: A :class:`~riemae.solvers.Curve`, or points ``(*b, n, m)`` joined by straight
                latent lines.
            rtol: Relative error allowed.
            return_error: Also return the estimated error of each length.
            throw: Raise when a curve misses ``rtol``; False returns it all the same.
            condition: As in :class:`Manifold`, one for each curve.

        Raises:
            NotConvergedError: When ``throw`` and a curve misses ``rtol``, as one that jumps does.
        """
        space, curve = self._on_curves("length", curve, condition, throw)
        return curve_length(space, curve, rtol, return_error, throw)

    @overload
    def energy(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        return_error: Literal[False] = False,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor: ...

    @overload
    def energy(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        *,
        return_error: Literal[True],
        throw: bool = True,
        condition: Conditions = None,
    ) -> tuple[Tensor, Tensor]: ...

    def energy(
        self,
        curve: Curve | Tensor,
        rtol: float = 1e-4,
        return_error: bool = False,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # -> (*b,) or (*b,), (*b,)
        """Energy of curves over unit time (equation 5), refined as :meth:`length` is.

        At least the squared length.

        Args:
            curve: A :class:`~riemae.solvers.Curve`, or points ``(*b, n, m)`` joined by straight
                latent lines.
            rtol: As in :meth:`length`.
            return_error: As in :meth:`length`.
            throw: As in :meth:`length`.
            condition: As in :meth:`length`.

        Raises:
            NotConvergedError: As in :meth:`length`.
        """
        space, curve = self._on_curves("energy", curve, condition, throw)
        return curve_energy_integral(space, curve, rtol, return_error, throw)

    def _space(self, core: PullbackMetric, points: Tensor) -> tuple[Space, Labels]:  # (p, m)
        """What solvers work on for pairs, and how their points tell their conditions."""
        given = core.condition
        labels = Labels(given, points)
        space = self._pullback if given is None else Conditioned(self._pullback, given, labels)
        return space, labels

    def _on_curves(
        self, where: str, curve: Curve | Tensor, condition: Conditions, throw: bool
    ) -> tuple[Space, Curve | Tensor]:  # (*b)
        """What curves are measured in, and the curves with their conditions."""
        nodes = curve.nodes if isinstance(curve, Curve) else curve
        if not isinstance(nodes, Tensor) or nodes.ndim < 2:
            return self._pullback, curve  # solvers say what is wrong with it
        if condition is None:
            for x in (nodes, curve.slopes) if isinstance(curve, Curve) else (nodes,):
                self._checks.points(where, x, finite=throw)
            return self._pullback, curve
        core, first = self._checks.placed(where, nodes[..., 0, :], condition)
        space, labels = self._space(core, first)
        return space, labels.lift_curve(curve)

    def geodesic(
        self,
        z0: Tensor,
        z1: Tensor,
        rtol: float | None = None,
        solver: Solver | None = None,
        init: Curve | Tensor | None = None,
        n_starts: int | None = None,
        graph: Graph | None = None,
        generator: torch.Generator | int | None = 0,
        throw: bool = True,
        progress: Callable[[int, int], object] | None = None,
        *,
        condition: Conditions = None,
        max_decodings: int | None = None,
        max_seconds: float | None = None,
        method: Literal["path", "lattice"] = "path",
        region: tuple[Tensor, Tensor] | None = None,
        certify: bool = False,
    ) -> GeodesicResult:
        """Geodesics between pairs of points: :func:`riemae.solvers.geodesic` on this manifold.

        Args:
            z0: Start points ``(*b, m)``.
            z1: End points ``(*b, m)``; leading axes broadcast.
            rtol: Relative accuracy of the length. Unless given 1e-4 in float64 and 1e-3 in float32,
                and 1e-2 where the decoder has kinks (ReLU, max-pooling), at which no curve
                converges fast.
            solver: Settings, such as ``solvers.Newton(max_segments=512)``.
            init: Start curves; by default the straight line, or geodesics of ``latent``. Without
                ``solver``, those that are accurate already are verified and kept, for a fraction of
                the cost; their Morse index is counted with ``certify`` only. With periods the best
                of several ways round is returned, and its curve ends at ``z1`` plus whole periods.
            n_starts: Start curves per pair, for a global search: the shortest geodesic is returned,
                with all others found as its ``alternatives``. By default 4 with a graph, and
                without one a start curve alone, and a bounded look for a shorter geodesic where
                there may be one; 1 leaves that out. Where given, ``latent`` plays no part.
            graph: A :meth:`graph` on data, whose routes are start curves.
            generator: Source, or a seed, of the start curves that are perturbations.
            throw: Raise when a pair misses ``rtol``; False returns the result with its status
                codes.
            progress: Called with (pairs done, pairs in all).
            condition: As in :class:`Manifold`, one for each pair.
            max_decodings: What all pairs together may cost, in values of the decoder at one point;
                a derivative in one direction counts as another one. Pairs that are not done end
                with the status BUDGET and their shortest curve so far: see
                :func:`riemae.solvers.geodesic`.
            max_seconds: The same for seconds.
            method: ``"lattice"`` looks for the shortest ways on a lattice, in up to 3 dimensions,
                and the result says by its ``bracket`` how much shorter another curve may be.
            region: The lowest and the highest corner of the lattice; by default around each pair.
            certify: Count the Morse index where the solver knows none (−1): of whole curves, from
                three dimensions on, of start curves that were kept, and from 16 dimensions on.

        Returns:
            One entry per pair; not differentiable, see :meth:`distance`.

        Raises:
            NotConvergedError: When ``throw`` and a pair misses ``rtol`` or has an end point that is
                not finite; it carries the result.
        """
        refuse_transforms(
            "Manifold.geodesic",
            "It is not differentiable: use distance, or batch axes in place of vmap.",
        )
        core = self._pullback
        if condition is not None:
            z0, z1 = paired_points(z0, z1)
            core, _ = self._checks.placed("geodesic", z0, condition, finite=False)
        for name, z in (("z0", z0), ("z1", z1)):
            flat = self._checks.points(
                f"geodesic ({name})", z, finite=False, condition=core.condition
            )
        rtol = self._accuracy(core, flat) if rtol is None else rtol
        options: dict[str, Any] = {
            "rtol": rtol,
            "solver": solver,
            "throw": throw,
            "progress": progress,
            "certify": certify,
        }
        with limited("Manifold.geodesic", max_decodings, max_seconds):
            free = init is None and n_starts is None and graph is None and method == "path"
            if self.latent is not None and free:
                return latent_geodesic(
                    self.latent,
                    self._solver(core, z0, z1),
                    partial(self._decoded, core),
                    z0,
                    z1,
                    **options,
                )
            options |= {"n_starts": n_starts, "graph": graph, "generator": generator}
            options |= {"method": method, "region": region}
            return self._solver(core, z0, z1)(z0, z1, init=init, **options)

    def _solver(
        self, core: PullbackMetric, z0: Tensor, z1: Tensor
    ) -> Callable[..., GeodesicResult]:
        """What solves geodesics between points ``(*b, m)``, each pair under its condition."""
        if core.condition is None:
            return partial(solve_geodesic, self._pullback)
        m, batch = z0.shape[-1], z0.shape[:-1]
        flat = [z.reshape(-1, m) for z in (z0, z1)]
        space, labels = self._space(core, torch.cat(flat))

        def solve(
            z0: Tensor,
            z1: Tensor,
            *,
            init: Curve | Tensor | None = None,
            throw: bool = True,
            **options: Any,
        ) -> GeodesicResult:
            first, last = (z.reshape(-1, m) for z in (z0, z1))
            if init is not None:
                curve = start_curve(z0, z1, init)
                init = Curve(labels.lift(curve.nodes), labels.wide(curve.slopes))
            found = solve_geodesic(
                space, labels.lift(first), labels.lift(last), init=init, throw=False, **options
            )
            found = labels.narrow_result(found)
            if len(batch) != 1:
                found = found[torch.arange(len(first)).view(batch)]
            return demand_convergence(found) if throw else found

        return solve

    def _decoded(
        self, core: PullbackMetric, z: Tensor, rows: Tensor
    ) -> Tensor:  # (k, m), (k,) -> (k, D)
        """Data of points of some pairs, or their metric where there are no data."""
        c = core.condition
        if self.decoder is coordinates:
            return telling(core, z)
        return self.decode(z, condition=None if c is None else c.select(rows))

    def distance(
        self,
        z0: Tensor,
        z1: Tensor,
        rtol: float | None = None,
        solver: Solver | None = None,
        init: Curve | Tensor | None = None,
        n_starts: int | None = None,
        graph: Graph | None = None,
        generator: torch.Generator | int | None = 0,
        throw: bool = True,
        per_member: bool = False,
        twice: bool = False,
        *,
        condition: Conditions = None,
        max_decodings: int | None = None,
        max_seconds: float | None = None,
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b,) or (K, *b)
        """Geodesic distance, differentiable once, and with ``twice`` twice in the end points.

        In the end points, in the decoder's parameters and in conditions.

        A geodesic's length is stationary in its interior, so the derivative of the distance is that
        of the length of the frozen optimal curve (envelope theorem): one more pass through the
        decoder, nothing is unrolled. At coinciding points, where no derivative exists, it is taken
        as 0. A second derivative is not the frozen curve's: it raises, unless ``twice``, where it
        comes from the Jacobi fields along the geodesic. ``torch.func``'s ``grad``, ``jvp``,
        ``vmap`` and ``jacrev`` work, in the end points.

        Args:
            z0: Start points ``(*b, m)``.
            z1: End points ``(*b, m)``; leading axes broadcast.
            rtol: As in :meth:`geodesic`.
            solver: As in :meth:`geodesic`.
            init: As in :meth:`geodesic`.
            n_starts: As in :meth:`geodesic`.
            graph: As in :meth:`geodesic`.
            generator: As in :meth:`geodesic`.
            throw: As in :meth:`geodesic`; with False, distances that miss ``rtol`` come back all
                the same.
            per_member: One distance for each member of an ensemble, along a new first axis: their
                spread, such as ``.std(0)``, says how sure the distance is.
            twice: Let ``torch.autograd`` differentiate twice in the end points, such as
                ``torch.autograd.functional.hessian``; see :meth:`second_variation` for matrices.
            condition: As in :class:`Manifold`, one for each pair.
            max_decodings: As in :meth:`geodesic`, for each member on its own where ``per_member``.
            max_seconds: As in :meth:`geodesic`, likewise.

        Raises:
            NotConvergedError: When ``throw`` and a pair misses ``rtol``.
            DifferentiationError: When a gradient of the result is differentiated again; with
                ``twice``, when a second one is, or points coincide.
        """
        options: dict[str, Any] = {
            "rtol": rtol,
            "solver": solver,
            "init": init,
            "n_starts": n_starts,
            "graph": graph,
            "generator": generator,
            "throw": throw,
            "condition": condition,
            "max_decodings": max_decodings,
            "max_seconds": max_seconds,
        }
        if per_member:
            return torch.stack([M.distance(z0, z1, twice=twice, **options) for M in self.members])
        if transforms():
            if condition is not None:
                z0, z1 = paired_points(z0, z1)
                options["condition"] = Untransformed.of("Manifold.distance", condition, z0.ndim - 1)
            ruler = Ruler(
                lambda a, b: self.distance(a, b, **options),
                lambda a, b: self._distance_and_gradients(a, b, options),
                order=len([kind for kind in transforms() if kind != "Vmap"]),
            )
            out = transformed_distance(z0, z1, ruler)
            self._refuse_transformed_parameters(z0, condition)
            return out
        result = self.geodesic(z0, z1, **options)
        if not torch.is_grad_enabled():
            return result.length
        if twice:
            return self._twice_differentiable(z0, z1, result, throw, condition)
        usable, length = self._frozen_length(z0, z1, result)
        # The value is the solver's own; only the derivative comes from the frozen curve.
        value = result.length[usable] + (once_differentiable(length) - length.detach())
        return result.length.masked_scatter(usable, value)

    def _twice_differentiable(
        self, z0: Tensor, z1: Tensor, result: GeodesicResult, throw: bool, condition: Conditions
    ) -> Tensor:  # -> (*b,)
        """Lengths that can be differentiated twice in the end points, once in all else."""
        z0, z1 = torch.broadcast_tensors(z0, z1)

        def variation() -> SecondVariation:
            with torch.no_grad():
                start, stop = z0.detach(), result.curve.nodes[..., -1, :]
                v = self.log(start, stop, init=result.curve, throw=throw, condition=condition)
                return self.second_variation(start, v, throw=throw, condition=condition)

        value = twice_differentiable(z0, z1, Twice(result.length.detach(), variation))
        usable, fixed = self._frozen_length(z0.detach(), z1.detach(), result)
        if not fixed.requires_grad:
            return value
        more = torch.zeros_like(value).masked_scatter(
            usable, once_differentiable(fixed) - fixed.detach()
        )
        return value + more

    @staticmethod
    def _accuracy(core: PullbackMetric, flat: Tensor) -> float:  # (k, m)
        """The accuracy to which geodesics are solved unless it is asked for."""
        known = coarser(flat.dtype, core.roundoff).geodesic
        if concrete(flat) is None:
            return known
        row = flat.isfinite().all(-1).nonzero()[:1, 0]
        kinks = smoothness.kinks_by_name(core.select(row), flat[row])
        return known if kinks is None else max(known, _WITH_KINKS)

    def _frozen_length(
        self, z0: Tensor, z1: Tensor, result: GeodesicResult
    ) -> tuple[Tensor, Tensor]:  # -> (*b,), (k,)
        """Which geodesics have a length, and the lengths of their curves.

        Only the ends of these curves can move.
        """
        start, stop = torch.broadcast_tensors(z0, z1)
        usable = (
            result.length > 0
        )  # neither NaN nor coinciding: on a point, the speed is rounding of any direction
        nodes = result.curve.nodes[usable]
        stop = (
            stop[usable] + (nodes[:, -1] - stop[usable]).detach()
        )  # whole periods away, or nothing
        first = start[usable][:, None]
        interior = nodes[:, 1:-1]
        last = stop[:, None]
        attached = torch.cat([first, interior, last], 1)
        if not len(nodes):
            return usable, attached.sum((-1, -2))
        curve = Curve.from_nodes(attached)
        space = result.space
        if not isinstance(space, Conditioned):
            return usable, fixed_length(self._pullback, curve)
        return usable, fixed_length(
            space, space.restored(curve, {n: x[usable] for n, x in result.stats.items()})
        )

    def _refuse_transformed_parameters(self, z: Tensor, condition: Conditions) -> None:
        """Notice a decoder or ambient metric of tensors that ``torch.func`` transforms.

        They are not followed.

        Raises:
            DifferentiationError: When what they return for plain points is not plain.
        """
        plain = torch.zeros(1, 2, z.shape[-1], dtype=z.dtype, device=z.device)
        given = Condition.of("Manifold.distance", condition, z.shape[:-1], z.device)
        if given is not None:
            given = given.select(slice(1)) if len(given) else given.blank()
        out = self._pullback.at(given).squared_chords(plain)
        tangent = (
            torch.autograd.forward_ad.unpack_dual(out).tangent if "Jvp" in transforms() else None
        )
        followed = (
            out.requires_grad and "Grad" in transforms()
        )  # else it may be torch.autograd that wants it
        if followed or tangent is not None or torch._C._functorch.is_batchedtensor(out):
            raise DifferentiationError(
                "Manifold.distance",
                "a decoder and an ambient metric of plain tensors inside torch.func",
                "one that depends on what is transformed",
                "Gradients in parameters: call distance(...).backward() or torch.autograd.grad.",
            )

    def _distance_and_gradients(
        self, z0: Tensor, z1: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:  # (*b, m), (*b, m) -> (*b,), (*b, m), (*b, m)
        """Distances of plain tensors and their gradients in both ends, 0 where there is none."""
        z0, z1 = (z.detach().clone() for z in (z0, z1))
        with torch.no_grad():
            result = self.geodesic(z0, z1, **options)
        with torch.enable_grad():
            length = self._frozen_length(z0.requires_grad_(), z1.requires_grad_(), result)[1]
            first, last = torch.autograd.grad(length.sum(), (z0, z1), materialize_grads=True)
        return result.length, first, last

    def exp(
        self,
        z: Tensor,
        v: Tensor,
        t: float | Tensor = 1.0,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b, m) or (*b, k, m)
        """Exponential map: where the geodesic from ``z`` with velocity ``v`` is at time ``t``.

        Differentiable.

        :func:`riemae.solvers.exp` on this manifold.

        Args:
            z: Start points.
            v: Start velocities.
            t: Time; of times ``(k,)`` that lead away from 0 all points come back, ``(*b, k, m)``.
            rtol: Error allowed per unit of travelled coordinates; by default 1e-9 in float64,
                1e-5 in float32.
            throw: Raise when a sample fails; False returns NaN for it.
            condition: As in :class:`Manifold`.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic leaves the domain or meets a singular
                metric.
        """
        refuse_vmap("Manifold.exp")
        for name, x in (("z", z), ("v", v)):
            expect_dense("Manifold.exp", name, x)
        core, flat, w, batch = self._checks.tangents("exp", condition, z, v)
        space, labels = self._space(core, flat)
        points = labels.narrow(
            solvers.exp(space, labels.lift(flat), labels.wide(w), t, rtol=rtol, throw=throw)
        )
        return points.view(*batch, *points.shape[1:])

    def shoot(
        self,
        z: Tensor,
        v: Tensor,
        t: float = 1.0,
        segments: int = 64,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Curve:
        """The geodesic from ``z`` with velocity ``v`` up to time ``t``, as a curve.

        :func:`riemae.solvers.shoot` on this manifold.
        """
        refuse_vmap("Manifold.shoot")
        core, flat, w, batch = self._checks.tangents("shoot", condition, z, v)
        space, labels = self._space(core, flat)
        start, velocity = (x.view(*batch, x.shape[-1]) for x in (labels.lift(flat), labels.wide(w)))
        return labels.narrow_curve(
            solvers.shoot(space, start, velocity, t, segments=segments, rtol=rtol, throw=throw)
        )

    def log(
        self,
        z0: Tensor,
        z1: Tensor,
        rtol: float = 1e-6,
        init: Curve | Tensor | None = None,
        refine: bool = True,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """The logarithm, inverse of :meth:`exp`: the velocity at ``z0`` that leads to ``z1``.

        :func:`riemae.solvers.log` on this manifold; not differentiable.

        Args:
            z0: Start points.
            z1: End points.
            rtol: How close ``exp`` of the result comes to ``z1``, relative to the velocity.
            init: Start curves, as in :meth:`geodesic`.
            refine: Improve the path solver's velocity by shooting.
            throw: Raise when a pair fails.
            condition: As in :class:`Manifold`, one for each pair.

        Raises:
            NotConvergedError: When ``throw`` and the path or the shooting misses ``rtol``.
        """
        refuse_transforms(
            "Manifold.log",
            "It is not differentiable: use exp or distance, or batch axes in place of vmap.",
        )
        core = self._pullback
        if condition is not None:
            z0, z1 = paired_points(z0, z1)
            core, _ = self._checks.placed("log", z0, condition, finite=False)
        for name, z in (("z0", z0), ("z1", z1)):
            self._checks.points(f"log ({name})", z, finite=False, condition=core.condition)
        if self.latent is not None and init is None:
            init = self.geodesic(
                z0, z1, rtol=max(rtol, 1e-6), throw=throw, condition=core.condition
            ).curve
            z1 = init(1.0)
        if core.condition is None:
            return solvers.log(
                self._pullback, z0, z1, rtol=rtol, init=init, refine=refine, throw=throw
            )
        flat = [z.reshape(-1, z.shape[-1]) for z in (z0, z1)]
        space, labels = self._space(core, torch.cat(flat))
        if init is not None:
            curve = start_curve(z0, z1, init)
            init = Curve(labels.lift(curve.nodes), labels.wide(curve.slopes))
        start, stop = (labels.lift(z) for z in flat)
        found = solvers.log(space, start, stop, rtol=rtol, init=init, refine=refine, throw=throw)
        return labels.narrow(found).view(z0.shape)

    def jacobi_field(
        self,
        z: Tensor,
        v: Tensor,
        start: Tensor | None = None,
        slope: Tensor | None = None,
        t: float | Tensor = 1.0,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> JacobiField:
        """The Jacobi field along ``exp(z, t v)`` with ``J(0) = start`` and ``DJ/dt(0) = slope``.

        :func:`riemae.solvers.jacobi` on this manifold.

        Args:
            z: Start points ``(*b, m)``.
            v: Velocities ``(*b, m)``.
            start: Initial values ``(*b, m)``; by default 0.
            slope: Initial covariant derivatives ``(*b, m)``; by default 0.
            t: One time, or increasing times ``(k,)``.
            rtol: As in :meth:`exp`.
            throw: As in :meth:`exp`.
            condition: As in :class:`Manifold`.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic leaves the domain or meets a singular
                metric.
        """
        refuse_vmap("Manifold.jacobi_field")
        start, slope = (torch.zeros_like(z) if x is None else x for x in (start, slope))
        core, flat, *vectors, batch = self._checks.tangents(
            "jacobi_field", condition, z, v, start, slope
        )
        space, labels = self._space(core, flat)
        z, v, start, slope = (
            x.view(*batch, x.shape[-1]) for x in (labels.lift(flat), *map(labels.wide, vectors))
        )
        found = solvers.jacobi(space, z, v, start, slope, t, rtol=rtol, throw=throw)
        parts = (found.points, found.velocities, found.values, found.derivatives)
        return JacobiField(*map(labels.narrow, parts)) if labels.labels else found

    def second_variation(
        self,
        z: Tensor,
        v: Tensor,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> SecondVariation:
        """First and second derivatives of ``½ d²`` in both ends of the geodesic ``exp(z, t v)``.

        :func:`riemae.solvers.second_variation` on this manifold. For two points, ``v`` is their
        :meth:`log`.

        Args:
            z: Start points ``(*b, m)``.
            v: Velocities ``(*b, m)``.
            rtol: As in :meth:`exp`.
            throw: As in :meth:`exp`.
            condition: As in :class:`Manifold`.

        Raises:
            NotConvergedError: When ``throw``, and a geodesic cannot be followed or its ends are
                conjugate.
        """
        refuse_transforms(
            "Manifold.second_variation",
            "It is not differentiable; batch axes take the place of vmap.",
        )
        core, flat, w, batch = self._checks.tangents("second_variation", condition, z, v)
        space, labels = self._space(core, flat)
        z, v = (x.view(*batch, x.shape[-1]) for x in (labels.lift(flat), labels.wide(w)))
        return solvers.second_variation(space, z, v, rtol=rtol, throw=throw)

    def conjugate_points(
        self,
        z: Tensor,
        v: Tensor,
        t: float = 1.0,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> ConjugatePoints:
        """Conjugate points along geodesics for times in ``(0, t)``, with multiplicity.

        At distance πr on a sphere.

        :func:`riemae.solvers.conjugate_points` on this manifold; not differentiable.

        Args:
            z: Start points ``(*b, m)``.
            v: Velocities ``(*b, m)``.
            t: When to stop.
            rtol: As in :meth:`exp`.
            throw: As in :meth:`exp`.
            condition: As in :class:`Manifold`.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic cannot be followed to ``t``.
        """
        refuse_transforms(
            "Manifold.conjugate_points",
            "It is not differentiable; batch axes take the place of vmap.",
        )
        core, flat, w, batch = self._checks.tangents("conjugate_points", condition, z, v)
        space, labels = self._space(core, flat)
        z, v = (x.view(*batch, x.shape[-1]) for x in (labels.lift(flat), labels.wide(w)))
        found = solvers.conjugate_points(space, z, v, t, rtol=rtol, throw=throw)
        return replace(found, points=labels.narrow(found.points))

    def transport(
        self,
        curve: Curve | Tensor,
        v: Tensor,
        rtol: float | None = None,
        throw: bool = True,
        *,
        condition: Conditions = None,
    ) -> Tensor:  # (*b, m) -> (*b, m)
        """Parallel transport of ``v`` from the start to the end of curves.

        :func:`riemae.solvers.transport` on this manifold.

        Args:
            curve: A :class:`~riemae.solvers.Curve`, or points ``(*b, n, m)`` joined by straight
                latent lines.
            v: Tangent vectors at the start.
            rtol: Relative accuracy; by default 1e-8 in float64, 1e-4 in float32.
            throw: Raise when the accuracy is missed.
            condition: As in :class:`Manifold`, one for each curve.

        Raises:
            NotConvergedError: When ``throw`` and a vector misses ``rtol``.
        """
        refuse_vmap("Manifold.transport")
        nodes = curve.nodes if isinstance(curve, Curve) else curve
        paired = isinstance(nodes, Tensor) and isinstance(v, Tensor) and nodes.ndim > 1
        if condition is None or not paired or v.shape != nodes[..., 0, :].shape:
            if paired:
                self._checks.points("transport", nodes)
            return solvers.transport(self._pullback, curve, v, rtol=rtol, throw=throw)
        core, first = self._checks.placed("transport", nodes[..., 0, :], condition)
        space, labels = self._space(core, first)
        lifted = labels.lift_curve(curve)
        moved = solvers.transport(space, lifted, labels.wide(v), rtol=rtol, throw=throw)
        return labels.narrow(moved)

    def graph(
        self,
        points: Tensor,
        k: int = 10,
        weight: Literal["length", "chord"] = "length",
        neighbors: Literal["latent", "data"] = "latent",
        search: Literal["auto", "tree", "brute", "approximate"] = "auto",
        rtol: float = GRAPH_RTOL,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        condition: Conditions = None,
    ) -> Graph:
        """Neighbourhood graph on latent points; not differentiable.

        :func:`riemae.solvers.graph` on this manifold.

        Args:
            points: ``(n, m)``.
            k: Neighbours per point.
            weight: Edge lengths: ``"length"`` of the straight latent line, or ``"chord"`` in the
                ambient space.
            neighbors: Where neighbours are looked for: among the latent points, or among what they
                decode to.
            search: ``"tree"`` or ``"brute"`` (scikit-learn), both exact; ``"approximate"``
                (pynndescent) for very many points in many dimensions; ``"auto"`` takes the faster
                exact one.
            rtol: Relative accuracy of the edges' lengths: 1e-2 is far below what a path through
                neighbours is longer than the geodesic, and some ten times faster than 1e-4.
            progress: Called with (edges measured, edges in all); True shows a bar.
            condition: One for all points, ``(1, *shape)``.

        Raises:
            DTypeError: When ``points`` is not a dense tensor, or ``rtol`` not a number.
            OptionError: When ``k`` is not smaller than the number of points, an option is unknown,
                or there are several conditions.
            MissingExtraError: When the library for ``search`` is not installed.
            GraphError: When ``weight="chord"`` and the ambient metric knows no distance.
        """
        refuse_transforms(
            "Manifold.graph", "It is not differentiable, and takes all points at once."
        )
        expect_choice("Manifold.graph", "neighbors", neighbors, ("latent", "data"))
        expect_values("Manifold.graph", "points", points)
        core, flat = self._checks.placed("graph", points, condition)
        space = self._under_one("graph", core, flat)
        coordinates = None
        if neighbors == "data":
            with torch.no_grad():
                coordinates = (core.embedding or core.immersion).value(flat)
        return build_graph(
            space,
            points,
            k=k,
            weight=weight,
            coordinates=coordinates,
            search=search,
            rtol=rtol,
            progress=progress,
        )

    def _under_one(self, where: str, core: PullbackMetric, flat: Tensor) -> Space:  # (n, m)
        """What distances between any two points are measured in.

        Raises:
            OptionError: When the points have different conditions.
        """
        if core.condition is None:
            return self._pullback
        core.condition.single(f"Manifold.{where}")
        return self._space(core, flat)[0]

    @overload
    def distance_matrix(
        self,
        a: Tensor,
        b: Tensor | None = None,
        method: Literal["geodesic", "graph", "chord"] = ...,
        rtol: float | None = None,
        k: int = ...,
        throw: bool = ...,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        weight: Literal["length", "chord"] = ...,
        solver: Solver | None = None,
        block_size: int | None = None,
        executor: Executor | None = None,
        out: str | PathLike[str] | None = None,
        condition: Conditions = None,
        max_decodings: int | None = None,
        max_seconds: float | None = None,
        return_result: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def distance_matrix(
        self,
        a: Tensor,
        b: Tensor | None = None,
        method: Literal["geodesic", "graph", "chord"] = ...,
        rtol: float | None = None,
        k: int = ...,
        throw: bool = ...,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        weight: Literal["length", "chord"] = ...,
        solver: Solver | None = None,
        block_size: int | None = None,
        executor: Executor | None = None,
        out: str | PathLike[str] | None = None,
        condition: Conditions = None,
        max_decodings: int | None = None,
        max_seconds: float | None = None,
        return_result: Literal[True],
    ) -> DistanceMatrix: ...

    def distance_matrix(
        self,
        a: Tensor,
        b: Tensor | None = None,
        method: Literal["geodesic", "graph", "chord"] = "geodesic",
        rtol: float | None = None,
        k: int = 10,
        throw: bool = True,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        weight: Literal["length", "chord"] = "length",
        solver: Solver | None = None,
        block_size: int | None = None,
        executor: Executor | None = None,
        out: str | PathLike[str] | None = None,
        condition: Conditions = None,
        max_decodings: int | None = None,
        max_seconds: float | None = None,
        return_result: bool = False,
    ) -> Tensor | DistanceMatrix:  # (n, m), (q, m) -> (n, q)
        """Distances between all points of ``a`` and all of ``b``; not differentiable.

        :func:`riemae.solvers.distance_matrix` on this manifold.

        Args:
            a: ``(n, m)``.
            b: ``(q, m)``; by default ``a`` itself, and then every pair is solved once.
            method: ``"geodesic"``: solved to ``rtol``; ``"graph"``: shortest paths on the
                ``k``-nearest-neighbour graph of all points, not shorter but for the accuracy of its
                edges; ``"chord"``: straight through the ambient space, never longer.
            rtol: Relative accuracy, by default that of :meth:`geodesic`, and 1e-2 of the edges of a
                graph.
            k: Neighbours per point in the graph.
            throw: Raise when a geodesic misses ``rtol``; with False such distances come back all
                the same, NaN where there is none.
            progress: Called with (distances done, distances in all), of which building a graph is
                the first half; True shows a bar.
            weight: Of the graph's edges, as in :meth:`graph`.
            solver: Settings of the path solver, as in :meth:`geodesic`.
            block_size: Distances computed, and written, at once; chosen by work and memory unless
                given.
            executor: Any ``concurrent.futures.Executor``: processes, or a cluster's, such as Dask's
                ``Client.get_executor()``; threads only take turns. The result has the same bits as
                without.
            out: A file for the result, in numpy's ``.npy`` format. When a run is killed, the same
                call goes on where it stopped; when the file is complete, it is read. The tensor is
                then mapped from the file. A file of other points, settings, weights, ambient or
                latent space, or of another version of riemae is refused, and so is one that another
                process is writing.
            condition: One for all points, ``(1, *shape)``.
            max_decodings: What all geodesics together may cost, as in :meth:`geodesic`; every block
                gets its pairs' share.
            max_seconds: The same for seconds; not with ``out``.
            return_result: Return a :class:`~riemae.solvers.DistanceMatrix`, which also tells which
                pairs miss their accuracy.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries a
                :class:`~riemae.solvers.DistanceMatrix`.
            ShapeError: When ``a`` or ``b`` has more or fewer than two axes.
            DTypeError: When their dtypes or devices differ.
            OptionError: For an unknown method, or several conditions.
            AmbientError: When ``method="chord"`` and the ambient metric knows no distance.
            TransferError: When the decoder cannot be sent to another process.
            FileError: When ``out`` is not a path, holds something else, is damaged, is being
                written by another process, or cannot be written; finished blocks are kept.
        """
        refuse_transforms(
            "Manifold.distance_matrix", "It is not differentiable, and takes all points at once."
        )
        for name, points in (("a", a), ("b", a if b is None else b)):
            expect_values("Manifold.distance_matrix", name, points)
        core, flat = self._checks.placed("distance_matrix", a, condition)
        space = self._under_one("distance_matrix", core, flat)
        one = None if core.condition is None else core.condition.single("Manifold.distance_matrix")
        for name, points in (("a", a), ("b", a if b is None else b)):
            flat = self._checks.points(f"distance_matrix ({name})", points, condition=one)
        if rtol is None and method == "geodesic":
            rtol = self._accuracy(core, flat)
        if method == "chord" and self._pullback.embedding is None:
            raise AmbientError(
                "Manifold.distance_matrix",
                "an ambient metric with a distance for method='chord'",
                str(self._pullback.ambient),
                "Use method='geodesic' or 'graph'.",
            )
        identity = None if out is None else self._identity(one)
        result = solvers.distance_matrix(
            space,
            a,
            b,
            method=method,
            rtol=rtol,
            solver=solver,
            k=k,
            weight=weight,
            block_size=block_size,
            executor=executor,
            out=out,
            identity=identity,
            throw=throw,
            progress=progress,
            max_decodings=max_decodings,
            max_seconds=max_seconds,
            return_result=True,
        )
        return result if return_result else result.distances

    def neighbors(
        self,
        points: Tensor,
        k: int = 10,
        queries: Tensor | None = None,
        rtol: float | None = None,
        throw: bool = True,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        candidates: int | None = None,
        solver: Solver | None = None,
        executor: Executor | None = None,
        out: str | PathLike[str] | None = None,
        kept: Neighbors | str | PathLike[str] | None = None,
        condition: Conditions = None,
    ) -> Neighbors:
        """The ``k`` nearest points of each query by geodesic distance; not differentiable.

        :func:`riemae.solvers.neighbors` on this manifold. Exact, and said to be so row by row: what
        is farther in the ambient space than the k-th neighbour is along its geodesic is not solved,
        everything else is.

        Args:
            points: ``(n, m)``.
            k: Neighbours of each query.
            queries: ``(q, m)``; by default the points themselves, each without itself.
            rtol: Relative accuracy, by default that of :meth:`geodesic`.
            throw: Raise when a geodesic misses ``rtol``; False returns the result, which names it.
            progress: Called with (queries done, queries in all); True shows a bar.
            candidates: Geodesics that are solved for a query at most; by default as many as it
                takes.
            solver: Settings of the path solver, as in :meth:`geodesic`.
            executor: Where geodesics are solved, as in :meth:`distance_matrix`.
            out: A folder for the result, as in :func:`riemae.solvers.neighbors`: a call that was
                killed goes on from its finished blocks.
            kept: What an earlier call found among the first of the points, or its ``out``: only
                pairs with a new point are solved.
            condition: One for all points, ``(1, *shape)``.

        Returns:
            Indices, distances, errors and certificates, and the same as a sparse matrix or a graph.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
            ShapeError: When a set has more or fewer than two axes.
            DTypeError: When their dtypes or devices differ.
            OptionError: When ``k`` is not from 1 to the number of points, or there are several
                conditions.
        """
        space, flat, core, one = self._among("neighbors", points, queries, condition)
        options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
        options["rtol"] = self._accuracy(core, flat) if rtol is None else rtol
        identity = None if out is None and kept is None else self._identity(one)
        work: dict[str, Any] = {"executor": executor, "out": out, "identity": identity}
        found = solvers.neighbors(
            space, points, k, queries, progress=progress, kept=kept, **work, **options
        )
        again = partial(self.neighbors, k=k, condition=condition, **options)
        return replace(found, search=Again(again, points))

    def radius_neighbors(
        self,
        points: Tensor,
        radius: float,
        queries: Tensor | None = None,
        rtol: float | None = None,
        throw: bool = True,
        progress: Callable[[int, int], object] | bool | None = None,
        *,
        candidates: int | None = None,
        solver: Solver | None = None,
        executor: Executor | None = None,
        out: str | PathLike[str] | None = None,
        kept: RadiusNeighbors | str | PathLike[str] | None = None,
        condition: Conditions = None,
    ) -> RadiusNeighbors:
        """All points within a geodesic distance of each query; not differentiable.

        :func:`riemae.solvers.radius_neighbors` on this manifold. Exact, and said to be so row by
        row: what is farther than the radius in the ambient space is not solved, everything else is.

        Args:
            points: ``(n, m)``.
            radius: The largest distance, in units of the data.
            queries: ``(q, m)``; by default the points themselves, each without itself.
            rtol: Relative accuracy, by default that of :meth:`geodesic`.
            throw: As in :meth:`neighbors`.
            progress: As in :meth:`neighbors`.
            candidates: As in :meth:`neighbors`.
            solver: As in :meth:`neighbors`.
            executor: As in :meth:`neighbors`.
            out: As in :meth:`neighbors`.
            kept: As in :meth:`neighbors`.
            condition: As in :meth:`neighbors`.

        Returns:
            For each query its points, distances, errors and a certificate, and the same as a sparse
            matrix or a graph.

        Raises:
            NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
            ShapeError: When a set has more or fewer than two axes.
            DTypeError: When their dtypes or devices differ.
            OptionError: When ``radius`` is negative, or there are several conditions.
        """
        space, flat, core, one = self._among("radius_neighbors", points, queries, condition)
        options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
        options["rtol"] = self._accuracy(core, flat) if rtol is None else rtol
        identity = None if out is None and kept is None else self._identity(one)
        work: dict[str, Any] = {"executor": executor, "out": out, "identity": identity}
        found = solvers.radius_neighbors(
            space, points, radius, queries, progress=progress, kept=kept, **work, **options
        )
        again = partial(self.radius_neighbors, radius=radius, condition=condition, **options)
        return replace(found, search=Again(again, points))

    def _among(
        self, where: str, points: Tensor, queries: Tensor | None, condition: Conditions
    ) -> tuple[Space, Tensor, PullbackMetric, Condition | None]:
        """Where neighbours are looked for: space, the last of the points, metric and condition."""
        refuse_transforms(
            f"Manifold.{where}", "It is not differentiable, and takes all points at once."
        )
        others = points if queries is None else queries
        for name, z in (("points", points), ("queries", others)):
            expect_values(f"Manifold.{where}", name, z)
        core, flat = self._checks.placed(where, points, condition)
        space = self._under_one(where, core, flat)
        one = None if core.condition is None else core.condition.single(f"Manifold.{where}")
        for name, z in (("points", points), ("queries", others)):
            flat = self._checks.points(f"{where} ({name})", z, condition=one)
        return space, flat, core, one

    def _identity(self, condition: Condition | None) -> dict[str, object]:
        """What distances depend on under one condition, besides points and settings."""
        ambient = self.ambient.title, self._pullback.given
        latent = getattr(self.latent, "periods", None) or getattr(self.latent, "manifold", None)
        known: dict[str, object] = {
            "riemae": version.__version__,
            "decoder": self.decoder,
            "ambient": ambient,
            "latent": (latent,),
            "codes": (self.latent_shape, self._pullback.decoder.output),
        }
        if condition is not None:
            known["condition"] = ", ".join(digest(x) for x in condition.leaves)
        return known

    # For riemae.solvers.

    def as_space(self, *points: Tensor, where: str = "as_space", finite: bool = False) -> Space:
        """The space that solvers work on, after a look at the points (*b, m) they begin with.

        Functions of :mod:`riemae.solvers` call it, so that they take a manifold as well as a space.
        """
        for z in points:
            self._checks.points(where, z, finite)
        return self._pullback


@dataclass(frozen=True)
class _Operand:
    """What operators ask of a pull-back metric."""

    core: PullbackMetric

    def metric_factor(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        return self.core.triangle("metric_factor", z).to(z.dtype)

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        return self.core.acceleration(z, v)


def _rebuilt(
    kind: type[Manifold],
    decoder: Any,
    ambient: Any,
    latent_dim: int | None,
    chunk_size: int | None,
    latent: Any,
    latent_shape: tuple[int, ...] | None,
    output: Any,
    compile: Any,
) -> Manifold:
    arguments = (decoder, ambient, latent_dim, chunk_size, latent)
    return kind(*arguments, latent_shape=latent_shape, output=output, compile=compile)


def _expect_shape(
    latent_shape: Sequence[int] | None, latent_dim: int | None
) -> tuple[int, ...] | None:
    """``latent_shape`` as a tuple.

    Raises:
        OptionError: When it is not a shape, or contradicts ``latent_dim``.
    """
    if latent_shape is None:
        return None
    hint = "It is the shape of one code, without batch axes: latent_shape=(4, 8, 8)."
    wanted = "latent_shape as a sequence of positive whole numbers"
    if isinstance(latent_shape, int) or not isinstance(latent_shape, Sequence):
        raise OptionError("Manifold", wanted, repr(latent_shape), hint)
    shape = tuple(latent_shape)
    positive = all(type(n) is int and n > 0 for n in shape)
    if not shape or not positive:
        raise OptionError("Manifold", wanted, repr(latent_shape), hint)
    if latent_dim not in (None, math.prod(shape)):
        wanted = f"latent_dim={math.prod(shape)} with latent_shape={shape}"
        raise OptionError("Manifold", wanted, str(latent_dim), "Leave latent_dim out.")
    return shape
