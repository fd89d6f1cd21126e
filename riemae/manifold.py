"""The manifold that a decoder parametrises, with the metric that it pulls back from the data space."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from riemae.ambient import AmbientMetric, as_ambient
from riemae.decoders import Decoder
from riemae.differential import Differential
from riemae.exceptions import AmbientError, DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.solvers import Curve, GeodesicResult, Graph, Newton
from riemae.solvers import energy as curve_energy_integral
from riemae.solvers import length as curve_length
from riemae.solvers.energy import (
    Expansion,
    bending,
    expand_by_autodiff,
    expand_chord,
    gauss_newton_blocks,
    rounding,
)
from riemae.solvers.graph import graph as build_graph
from riemae.solvers.path import geodesic as solve_geodesic
from riemae.solvers.space import concrete, safe_sqrt, solve_metric
from riemae.solvers.tolerances import tolerance


class Manifold:
    """A decoder ``f`` and an ambient metric ``H``, seen as a Riemannian manifold with metric ``G = Jᵀ H(f(z)) J``.

    Points ``z`` and tangents ``v`` are ``(*b, m)`` with any leading axes; data are seen as ``(*b, D)``. Every method
    keeps dtype and device, changes no input, and is differentiable by torch unless it says otherwise.

    Args:
        decoder: An ``nn.Module`` (in eval mode) or a function ``(k, m) -> (k, *shape)`` that treats every row alone.
        ambient: An :class:`~riemae.ambient.AmbientMetric`, a function ``x (k, D) -> H`` as ``(k, D, D)``, ``(D, D)`` or
            diagonal ``(k, D)``, or a constant tensor. Euclidean unless given.
        latent_dim: m; taken from the first points unless given.
        chunk_size: Points handled at once; chosen to fit the processor's cache unless given.

    Raises:
        DTypeError: When ``decoder`` is not callable.
        AmbientError: When ``ambient`` is none of these.

    All methods that take points raise:

    - :class:`~riemae.exceptions.ShapeError` for a wrong last axis,
    - :class:`~riemae.exceptions.DTypeError`, :class:`~riemae.exceptions.DeviceError` where ``z`` and decoder differ,
    - :class:`~riemae.exceptions.NonFiniteError` for NaN or infinity in the points or out of the decoder,
    - :class:`~riemae.exceptions.DecoderError` for a decoder that is no map: found by a probe at first use.

    Example:
        >>> import torch
        >>> from riemae import Manifold
        >>> paraboloid = Manifold(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1))
        >>> paraboloid.metric(torch.tensor([1., 2.]))
        tensor([[2., 2.],
                [2., 5.]])
    """

    def __init__(
        self,
        decoder: nn.Module | Callable[[Tensor], Tensor],
        ambient: AmbientMetric | Callable[[Tensor], Tensor] | Tensor | None = None,
        latent_dim: int | None = None,
        chunk_size: int | None = None,
    ) -> None:
        if latent_dim is not None and latent_dim < 1:
            raise OptionError("Manifold", "latent_dim of at least 1", str(latent_dim), "")
        if chunk_size is not None and chunk_size < 1:
            raise OptionError("Manifold", "chunk_size of at least 1", str(chunk_size), "")
        self._decoder = Decoder(decoder)
        self._ambient = as_ambient(ambient)
        self._latent_dim = latent_dim
        self._chunk_size = chunk_size
        self._map = Differential(self._decoder, chunk_size)
        self._embedding = Differential(self._features, chunk_size) if self._ambient.has_features else None
        self._probed: set[tuple[torch.dtype, torch.device]] = set()

    @property
    def decoder(self) -> Callable[[Tensor], Tensor]:
        """The decoder as it was given."""
        return self._decoder.function

    @property
    def ambient(self) -> AmbientMetric:
        """The ambient metric."""
        return self._ambient

    @property
    def latent_dim(self) -> int | None:
        """m, or None before the first use of a manifold that was not told."""
        return self._latent_dim

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Manifold:
        """A copy of the manifold elsewhere: decoder module and ambient metric are copied, the original stays.

        A plain function is taken over as it is.
        """
        decoder, ambient = copy.deepcopy(self.decoder), copy.deepcopy(self._ambient)
        owner = getattr(decoder, "__self__", decoder)
        for part in (owner, ambient):
            if isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype)
        return Manifold(decoder, ambient, self._latent_dim, self._chunk_size)

    def __repr__(self) -> str:
        name = getattr(self.decoder, "__qualname__", type(self.decoder).__name__)
        shape = self._decoder.output_shape
        data = "?" if shape is None else "×".join(map(str, shape))
        return f"Manifold({name}: R^{self._latent_dim or '?'} -> R^{data}, ambient={self._ambient})"

    # The map and its tangents.

    def decode(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, *shape)
        """Data ``f(z)``."""
        flat = self._points("decode", z)
        x = self._map.value(flat)
        shape = self._decoder.output_shape
        if shape is None:  # values could not be looked at: meta device or vmap
            shape = self._decoder(flat[:1]).shape[1:]
        return self._finite("decode", x, flat).view(*z.shape[:-1], *shape)

    def jacobian(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, D, m)
        """Jacobian ``J = ∂f/∂z``, with data axes flattened."""
        flat = self._points("jacobian", z)
        j = self._map.jacobian(flat)
        return self._finite("jacobian", j, flat).view(*z.shape[:-1], *j.shape[1:])

    def pushforward(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, D)
        """Data-space velocity ``J v`` of a latent velocity."""
        flat, w, batch = self._tangents("pushforward", z, v)
        return self._finite("pushforward", self._map.jvp(flat, w)[1], flat).unflatten(0, batch)

    def pullback(self, z: Tensor, w: Tensor) -> Tensor:  # (*b, m), (*b, D) or (*b, *shape) -> (*b, m)
        """Latent covector ``Jᵀ w`` of a data-space covector.

        Raises:
            ShapeError: When ``w`` does not hold one covector a point.
        """
        flat = self._points("pullback", z)
        shape = self._decoder.output_shape
        size = w.shape[-1] if shape is None else shape.numel()
        if w.numel() != len(flat) * size:
            raise ShapeError(
                "Manifold.pullback",
                f"w of shape {(*z.shape[:-1], size)}",
                str(tuple(w.shape)),
                "It needs one covector of the data space a point.",
            )
        return self._map.vjp(flat, w.reshape(len(flat), size))[1].view(z.shape)

    # The metric.

    def metric(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, m, m)
        """Pull-back metric ``G = Jᵀ H(f(z)) J`` (equation 3)."""
        flat = self._points("metric", z)
        return self._finite("metric", self._metric(flat), flat).view(*z.shape, z.shape[-1])

    def metric_product(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``G(z) v`` by one forward and one reverse product, without ``G``."""
        flat, v, batch = self._tangents("metric_product", z, v)
        if self._embedding is not None:
            return self._embedding.vjp(flat, self._embedding.jvp(flat, v)[1])[1].unflatten(0, batch)
        x, tangent = self._map.jvp(flat, v)
        return self._map.vjp(flat, self._ambient.product(x, tangent))[1].unflatten(0, batch)

    def inner(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (*b, m) x 3 -> (*b,)
        """Inner product ``uᵀ G(z) v``."""
        flat, u, v, batch = self._tangents("inner", z, u, v)
        if self._embedding is not None:
            return (self._embedding.jvp(flat, u)[1] * self._embedding.jvp(flat, v)[1]).sum(-1).view(batch)
        x, tangent = self._map.jvp(flat, u)
        return (self._ambient.product(x, tangent) * self._map.jvp(flat, v)[1]).sum(-1).view(batch)

    def norm(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """Length ``sqrt(vᵀ G(z) v)`` of tangent vectors, by one forward product; its gradient at v = 0 is 0."""
        flat, v, batch = self._tangents("norm", z, v)
        if self._embedding is not None:
            return safe_sqrt(self._embedding.jvp(flat, v)[1].square().sum(-1)).view(batch)
        return safe_sqrt(self._ambient.squared_norm(*self._map.jvp(flat, v))).view(batch)

    def eigenvalues(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, m)
        """Eigenvalues of ``G(z)``, ascending: squared stretch factors of the decoder."""
        return torch.linalg.eigvalsh(self.metric(z))

    def log_volume(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b,)
        """``log √det G``, the log magnification factor; −inf where the metric is singular."""
        return torch.linalg.slogdet(self.metric(z)).logabsdet / 2

    def volume_density(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b,)
        """``√det G``, the magnification factor."""
        return self.log_volume(z).exp()

    # The connection.

    def christoffel(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, m, m, m)
        """Christoffel symbols of the second kind, ``christoffel[..., k, i, j] = Γᵏ_ij``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        flat = self._points("christoffel", z)
        m = z.shape[-1]
        if self._embedding is not None:
            j = self._embedding.jacobian(flat)
            lowered = torch.einsum("bdk,bdij->bkij", j, self._embedding.hessian(flat))
            metric = j.mT @ j
        else:
            metric, d = self._metric_and_derivative(flat)  # d[b, i, j, l] = ∂_l G_ij
            lowered = (d.permute(0, 1, 3, 2) + d - d.permute(0, 3, 1, 2)) / 2
        return solve_metric("Manifold.christoffel", metric, lowered).view(*z.shape[:-1], m, m, m)

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """Geodesic equation ``z̈ = −Γ(v, v)``, without Christoffel symbols.

        ``G z̈ = −Jᵀ H ∂²f(v, v) − Jᵀ[(D_ẋ H) ẋ − ½ ∇ₓ(ẋᵀ H ẋ)]`` with ``ẋ = J v``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        flat, v, batch = self._tangents("acceleration", z, v)
        if self._embedding is not None:
            j = self._embedding.jacobian(flat)
            metric, force = j.mT @ j, self._embedding.second_derivative(flat, v, v)
        else:
            x, j = self._map.value_and_jacobian(flat)
            velocity = (j @ v[..., None])[..., 0]
            metric = j.mT @ self._ambient.apply_to(x, j)
            bend = self._ambient.product(x, self._map.second_derivative(flat, v, v))
            force = bend + _ambient_force(self._ambient, x, velocity)
        pulled = (j.mT @ force[..., None])[..., 0]
        return -solve_metric("Manifold.acceleration", metric, pulled).unflatten(0, batch)

    # Curves.

    def length(self, curve: Curve | Tensor) -> Tensor:  # -> (*b,)
        """Length of curves (equation 4), by Gauss-Legendre quadrature.

        Args:
            curve: A :class:`~riemae.solvers.Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
        """
        return curve_length(self, curve)

    def energy(self, curve: Curve | Tensor) -> Tensor:  # -> (*b,)
        """Energy of curves over unit time (equation 5); at least the squared length.

        Args:
            curve: A :class:`~riemae.solvers.Curve`, or points ``(*b, n, m)`` joined by straight latent lines.
        """
        return curve_energy_integral(self, curve)

    def geodesic(
        self,
        z0: Tensor,
        z1: Tensor,
        rtol: float = 1e-4,
        solver: Newton | None = None,
        init: Curve | Tensor | None = None,
        throw: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> GeodesicResult:
        """Geodesics between pairs of points: :func:`riemae.solvers.geodesic` on this manifold.

        Args:
            z0: Start points ``(*b, m)``.
            z1: End points ``(*b, m)``; leading axes broadcast.
            rtol: Relative accuracy of the length.
            solver: Settings, such as ``solvers.Newton(max_segments=512)``.
            init: Start curves; the straight line unless given.
            throw: Raise when a pair misses ``rtol``; False returns the result with its status codes.
            progress: Called with (pairs done, pairs in all).

        Returns:
            One entry a pair; not differentiable, see :meth:`distance`.

        Raises:
            NotConvergedError: When ``throw`` and a pair misses ``rtol`` or has an end point that is not finite; it
                carries the result.
        """
        for name, z in (("z0", z0), ("z1", z1)):
            self._points(f"geodesic ({name})", z, finite=False)
        return solve_geodesic(self, z0, z1, rtol=rtol, solver=solver, init=init, throw=throw, progress=progress)

    def distance(
        self,
        z0: Tensor,
        z1: Tensor,
        rtol: float = 1e-4,
        solver: Newton | None = None,
        init: Curve | Tensor | None = None,
        throw: bool = True,
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """Geodesic distance, differentiable once in the end points and in the decoder's parameters.

        A geodesic's length is stationary in its interior, so the derivative of the distance is that of the length of
        the frozen optimal curve (envelope theorem): one more pass through the decoder, nothing is unrolled. At
        coinciding points, where no derivative exists, it is taken as 0.

        Args:
            z0: Start points ``(*b, m)``.
            z1: End points ``(*b, m)``; leading axes broadcast.
            rtol: Relative accuracy.
            solver: As in :meth:`geodesic`.
            init: As in :meth:`geodesic`.
            throw: As in :meth:`geodesic`; with False, distances that miss ``rtol`` come back all the same.

        Raises:
            NotConvergedError: When ``throw`` and a pair misses ``rtol``.
        """
        result = self.geodesic(z0, z1, rtol=rtol, solver=solver, init=init, throw=throw)
        if not torch.is_grad_enabled():
            return result.length
        start, stop = torch.broadcast_tensors(z0, z1)
        usable = result.length.isfinite()
        nodes = result.curve.nodes[usable]
        attached = torch.cat([start[usable][:, None], nodes[:, 1:-1], stop[usable][:, None]], 1)
        length = self.length(Curve.from_nodes(attached)) if len(nodes) else nodes.new_empty(0)
        # The value is the solver's own; only the derivative comes from the frozen curve.
        value = result.length[usable] + (length - length.detach())
        return result.length.masked_scatter(usable, value)

    def graph(
        self,
        points: Tensor,
        k: int = 10,
        weight: Literal["length", "chord"] = "length",
        neighbors: Literal["latent", "data"] = "latent",
    ) -> Graph:
        """Neighbourhood graph on latent points: :func:`riemae.solvers.graph` on this manifold. Not differentiable.

        Args:
            points: ``(n, m)``.
            k: Neighbours a point.
            weight: Edge lengths: ``"length"`` of the straight latent line, or ``"chord"`` in the ambient space.
            neighbors: Where neighbours are looked for: among the latent points, or among what they decode to.

        Raises:
            OptionError: When ``k`` is not smaller than the number of points, or an option is unknown.
            GraphError: When ``weight="chord"`` and the ambient metric knows no distance.
        """
        if neighbors not in ("latent", "data"):
            raise OptionError("Manifold.graph", "neighbors 'latent' or 'data'", repr(neighbors), "")
        flat = self._points("graph", points)
        coordinates = None
        if neighbors == "data":
            with torch.no_grad():
                coordinates = (self._embedding or self._map).value(flat)
        return build_graph(self, points, k=k, weight=weight, coordinates=coordinates)

    def distance_matrix(
        self,
        a: Tensor,
        b: Tensor | None = None,
        method: Literal["geodesic", "graph", "chord"] = "geodesic",
        rtol: float = 1e-4,
        k: int = 10,
        throw: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> Tensor:  # (n, m), (q, m) -> (n, q)
        """Distances between all points of ``a`` and all of ``b``; not differentiable.

        Args:
            a: ``(n, m)``.
            b: ``(q, m)``; ``a`` itself unless given, and then every pair is solved once.
            method: ``"geodesic"``: solved to ``rtol``; ``"graph"``: shortest paths on the ``k``-nearest-neighbour
                graph of all points, never shorter; ``"chord"``: straight through the ambient space, never longer.
            rtol: Relative accuracy of geodesic distances.
            k: Neighbours a point in the graph.
            throw: As in :meth:`geodesic`.
            progress: Called with (pairs done, pairs in all).

        Raises:
            NotConvergedError: When ``throw`` and a geodesic misses ``rtol``.
            ShapeError: When ``a`` or ``b`` has more or fewer than two axes.
            OptionError: For an unknown method.
            AmbientError: When ``method="chord"`` and the ambient metric knows no distance.
        """
        for name, points in (("a", a), ("b", a if b is None else b)):
            self._points(f"distance_matrix ({name})", points)
            if points.ndim != 2:
                raise ShapeError("Manifold.distance_matrix", f"{name} of shape (n, m)", str(tuple(points.shape)), "")
        other = a if b is None else b
        n, q = len(a), len(other)
        if method == "graph":
            joint = a if b is None else torch.cat([a, b])
            return self.graph(joint, k=k).distances(range(n))[:, -q or None :]
        if method not in ("geodesic", "chord"):
            raise OptionError("Manifold.distance_matrix", "method 'geodesic', 'graph' or 'chord'", repr(method), "")
        i, j = (
            torch.triu_indices(n, n, 1, device=a.device)
            if b is None
            else torch.cartesian_prod(torch.arange(n, device=a.device), torch.arange(q, device=a.device)).T
        )
        with torch.no_grad():
            if method == "geodesic":
                values = self.geodesic(a[i], other[j], rtol=rtol, throw=throw, progress=progress).length
            else:
                chords = self.ambient_distance(a[i], other[j])
                if chords is None:
                    raise AmbientError(
                        "Manifold.distance_matrix",
                        "an ambient metric with a distance for method='chord'",
                        str(self._ambient),
                        "Use method='geodesic' or 'graph'.",
                    )
                values = chords
        matrix = a.new_zeros(n, q)
        matrix[i, j] = values
        if b is None:
            matrix[j, i] = values
        return matrix

    # The Space protocol: what riemae.solvers calls. Failures of single pairs are reported by their status, so nothing
    # here raises for NaN.

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """Squared segments of discrete curves, ``|φ(f(z_{i+1})) − φ(f(z_i))|²``.

        Without a feature map ``Δxᵀ ½(H(x_i) + H(x_{i+1})) Δx``.
        """
        x = (self._embedding or self._map).value(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])
        step = x.diff(dim=1)
        if self._embedding is not None:
            return step.square().sum(-1)
        ends = [self._ambient.squared_norm(y.flatten(0, 1), step.flatten(0, 1)) for y in (x[:, :-1], x[:, 1:])]
        return ((ends[0] + ends[1]) / 2).view(step.shape[:2])

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The energy ``n Σ squared_chords`` with its derivatives in the interior nodes, some curves at a time to bound memory."""
        p, count, m = nodes.shape
        curves = max(1, self._map.chunk(nodes.flatten(0, 1), 1 + m) // count)
        expand = self._expand_features if self._embedding is not None else self._expand_general
        return Expansion.cat([expand(part, second_order) for part in nodes.split(curves)])

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The gradient of the chord energy with second differences of sixth order, or None without a feature map."""
        if self._embedding is None:
            return None
        x = self._embedding.value(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])
        interior = nodes[:, 1:-1]
        pulled = self._embedding.vjp(interior.flatten(0, 1), bending(x).flatten(0, 1))[1]
        return pulled.view(interior.shape)

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:  # (*b, m), (*b, m) -> (*b,)
        """Distance of the decoded points in the ambient space, a lower bound of the geodesic's; None when unknown."""
        if self._embedding is None:
            return None
        ends = [self._embedding.value(z.reshape(-1, z.shape[-1])) for z in (z0, z1)]
        return (ends[1] - ends[0]).norm(dim=-1).view(z0.shape[:-1])

    # Inside.

    def _features(self, z: Tensor) -> Tensor:
        return self._ambient.features(self._decoder(z)).flatten(1)

    def _metric(self, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        if self._embedding is not None:
            j = self._embedding.jacobian(flat)
            return j.mT @ j
        x, j = self._map.value_and_jacobian(flat)
        g = j.mT @ self._ambient.apply_to(x, j)
        return (g + g.mT) / 2

    def _metric_and_derivative(self, flat: Tensor) -> tuple[Tensor, Tensor]:  # -> (k, m, m), (k, m, m, m)
        """``G`` and ``∂_l G_ij`` as ``[k, i, j, l]``, from first and second derivatives of f and first ones of H."""
        x, j = self._map.value_and_jacobian(flat)
        second = self._map.hessian(flat)
        hj = self._ambient.apply_to(x, j)
        bend = torch.einsum("kdi,kdjl->kijl", hj, second)
        slope = [
            j.mT @ torch.func.jvp(lambda y: self._ambient.apply_to(y, j), (x,), (j[..., i],))[1]
            for i in range(j.shape[-1])
        ]
        return j.mT @ hj, bend + bend.transpose(1, 2) + torch.stack(slope, -1)

    def _expand_features(self, nodes: Tensor, second_order: bool) -> Expansion:
        assert self._embedding is not None
        embedding = self._embedding
        p, count, _ = nodes.shape
        x, j = embedding.value_and_jacobian(nodes.flatten(0, 1))
        interior = nodes[:, 1:-1]

        def contraction(a: Tensor) -> Tensor:
            form = embedding.contraction(interior.flatten(0, 1), a.flatten(0, 1))
            return form.view(*interior.shape, interior.shape[-1])

        x, j = (y.unflatten(0, (p, count)) for y in (x, j))
        return expand_chord(x, j[:, 1:-1], contraction if second_order else None)

    def _expand_general(self, nodes: Tensor, second_order: bool) -> Expansion:
        p, count, _ = nodes.shape
        x, j = self._map.value_and_jacobian(nodes.flatten(0, 1))
        x, j = (y.unflatten(0, (p, count)) for y in (x, j))
        ends = [(s, x[:, s].flatten(0, 1)) for s in (slice(None, -1), slice(1, None))]

        def weighted(columns: Tensor) -> Tensor:
            """``½(H_i + H_{i+1})`` of each segment times columns ``(p, n, D, c)``."""
            flat = columns.flatten(0, 1)
            first, last = (self._ambient.apply_to(y, flat) for _, y in ends)
            return ((first + last) / 2).view(columns.shape)

        left, right = j[:, :-1], j[:, 1:]
        w_left, w_right = weighted(left), weighted(right)
        step = x.diff(dim=1)
        size, speed = (
            safe_sqrt(self._ambient.squared_norm(ends[0][1], y.flatten(0, 1))).view(step.shape[:2])
            for y in (x[:, :-1], step)
        )
        return expand_by_autodiff(
            self.squared_chords,
            nodes,
            gauss_newton_blocks(left.mT @ w_left, right.mT @ w_right, left.mT @ w_right),
            rounding(size, speed),
            second_order,
            lambda f, z, v: self._map.pushforward(f, z, v),
        )

    def _points(self, where: str, z: Tensor, finite: bool = True) -> Tensor:  # (*b, m) -> (k, m)
        """Validate points, probe the decoder at first use, and flatten the leading axes.

        Raises:
            DTypeError: For no tensor, or another dtype than the decoder's.
            ShapeError: For a wrong last axis.
            NonFiniteError: For NaN or infinity, unless ``finite`` is False.
        """
        where = f"Manifold.{where}"
        if not isinstance(z, Tensor):
            raise DTypeError(where, "z as a torch tensor", type(z).__name__, "Try torch.as_tensor(z).")
        tolerance(z.dtype)
        m = self._latent_dim
        if not z.ndim or (m is not None and z.shape[-1] != m) or not z.shape[-1]:
            hint = "Batch axes come first" + ("; try z.T." if z.ndim == 2 and z.shape[0] == m else ".")
            raise ShapeError(where, f"z of shape (*b, {m or 'm'})", str(tuple(z.shape)), hint)
        self._decoder.check_placement(where, z)
        flat = z.reshape(-1, z.shape[-1])
        ok = concrete(flat.isfinite().all(-1))
        if finite and ok is not None and not bool(ok.all()):
            rows = (~ok).nonzero().flatten().tolist()
            raise NonFiniteError(
                where,
                "finite points",
                f"NaN or infinity at {len(rows)} of {len(flat)} points (first: {rows[:5]})",
                "Remove these rows, or look at what produced them.",
            )
        if (z.dtype, z.device) not in self._probed:
            sound = flat if ok is None else flat[ok]
            x = self._decoder.probe(where, sound)
            if x is not None:
                if torch.is_grad_enabled():
                    with torch.no_grad():
                        self._ambient.check(x)
                else:
                    self._ambient.check(x)
                self._probed.add((z.dtype, z.device))
            self._latent_dim = z.shape[-1]
        return flat

    def _tangents(self, where: str, z: Tensor, *vectors: Tensor) -> tuple[Any, ...]:
        """Validated points and tangents, flattened after broadcasting, and the batch shape.

        Raises:
            ShapeError: When they do not broadcast.
            DTypeError: When their dtypes differ.
        """
        try:
            z, *vectors = torch.broadcast_tensors(z, *vectors)
        except RuntimeError:
            raise ShapeError(
                f"Manifold.{where}",
                f"tangent vectors that broadcast with z of shape {tuple(z.shape)}",
                ", ".join(str(tuple(v.shape)) for v in vectors),
                "A tangent vector has the shape of its point, (*b, m).",
            ) from None
        flat = self._points(where, z)
        for v in vectors:
            if v.dtype != z.dtype:
                raise DTypeError(
                    f"Manifold.{where}", f"tangents of dtype {z.dtype}", str(v.dtype), "Convert one of them."
                )
        return (flat, *(v.reshape(flat.shape) for v in vectors), z.shape[:-1])

    def _finite(self, where: str, out: Tensor, flat: Tensor) -> Tensor:
        ok = concrete(out.isfinite().flatten(1).all(1))
        if ok is not None and not bool(ok.all()):
            first = int((~ok).nonzero()[0])
            raise NonFiniteError(
                f"Manifold.{where}",
                "finite values",
                f"NaN or infinity at {int((~ok).sum())} of {len(ok)} points (first: z = {flat[first].tolist()})",
                "Is the point inside the decoder's domain, and is the decoder smooth there?",
            )
        return out


def _ambient_force(ambient: AmbientMetric, x: Tensor, velocity: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
    """``(D_ẋ H) ẋ − ½ ∇ₓ(ẋᵀ H ẋ)``: how a metric that varies in space bends straight lines."""
    along = torch.func.jvp(lambda y: ambient.product(y, velocity), (x,), (velocity,))[1]
    across = torch.func.grad(lambda y: ambient.squared_norm(y, velocity).sum())(x)
    return along - across / 2
