"""Which family a distribution is of: torch's, other packages', and what users register.

A class of another package is recognised by the package's name and its own, in :data:`ELSEWHERE`, so
that nothing is imported for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from riemae.distributions import counts, inflated
from riemae.distributions.closed_form import KNOWN, NAMED
from riemae.distributions.discrete import Poisson
from riemae.distributions.family import Family, Free, Params
from riemae.exceptions import AmbientError, OptionError
from riemae.numerics.checks import shape_in_words

Information = Callable[[Params], Tensor]
Reader = Callable[[Any], Params]

# Package and class, as they are recognised without an import, and what makes their family.
ELSEWHERE: dict[tuple[str, str], Callable[[Callable[..., Any]], Family]] = {
    ("scvi", "NegativeBinomial"): counts.by_mean,
    ("scvi", "ZeroInflatedNegativeBinomial"): counts.inflated_by_mean,
    ("scvi", "Poisson"): lambda kind: Poisson("poisson", kind, ("rate",)),
    ("pyro", "ZeroInflatedPoisson"): counts.inflated_poisson,
    ("pyro", "ZeroInflatedNegativeBinomial"): counts.inflated_by_count,
}
# Families that decoders which return tensors can name, and that are no class of torch's.
_TENSORS = (
    counts.by_mean(Distribution),
    counts.inflated_by_mean(inflated.ZeroInflatedNegativeBinomial),
    counts.inflated_poisson(inflated.ZeroInflatedPoisson, "zi_logits"),
)
NAMED.update({family.name: family for family in _TENSORS})
# A family's distribution is declared as what makes one, any callable; these are classes.
KNOWN.update({family.distribution: family for family in _TENSORS[1:]})  # type: ignore[misc]

_FOUND: dict[type, Family] = {}  # of ELSEWHERE, one instance per class
_CLASSES: dict[type, Registered] = {}
_PREDICATES: list[tuple[Callable[[Any], bool], Registered]] = []


def registered() -> tuple[int, ...]:
    """Which families users have registered, to tell whether it is still the same ones."""
    if not _CLASSES and not _PREDICATES:
        return ()
    families = (*_CLASSES.values(), *(family for _, family in _PREDICATES))
    return tuple(map(id, families))


class Registered(Family):
    """A family that a user has registered: the Fisher information of one variable as a matrix.

    Args:
        name: What ``FisherRao`` calls it.
        build: Makes the distribution from parameters by name.
        names: Parameters, in the order of the rows of the information.
        information: Parameters by name, each of shape ``(*b,)``, to ``(*b, n, n)``.
        reader: Parameters of a distribution, by name; by default its attributes.
        support: Parameters that the set of possible data depends on.
    """

    def __init__(
        self,
        name: str,
        build: Callable[..., Any],
        names: tuple[str, ...],
        information: Information,
        reader: Reader | None = None,
        support: Free = frozenset(),
    ) -> None:
        super().__init__(name, build, names)
        self.information = information
        self.reader = reader
        self.support_parameters = support

    def read(self, distribution: Any) -> dict[str, Any]:
        """Parameters of a distribution of this family, by name.

        Raises:
            AmbientError: When one is missing.
        """
        try:
            found = (
                super().read(distribution)
                if self.reader is None
                else dict(self.reader(distribution))
            )
        except AttributeError as reason:
            hint = (
                "Give register_family(read=...) a function from the distribution to its "
                "parameters by name."
            )
            raise AmbientError(
                self.name, f"the attributes {', '.join(self.names)}", str(reason), hint
            ) from reason
        missing = [name for name in self.names if name not in found]
        if missing:
            got = ", ".join(found) or "none"
            raise AmbientError(
                self.name, f"the parameters {', '.join(self.names)}", got, "Return all of them."
            )
        return {name: found[name] for name in self.names}

    def has_feature_map(self, free: Free) -> bool:
        """Whether there is a feature map when only ``free`` parameters vary."""
        return False

    def product(self, p: Params, v: Params) -> Params:
        """``H(p) v``, one entry per parameter.

        Raises:
            AmbientError: When the information is not a tensor ``(*b, n, n)``, or of another dtype.
        """
        values = torch.broadcast_tensors(*(p[name] for name in self.names))
        shape, n = values[0].shape, len(self.names)
        found = self.information(dict(zip(self.names, values, strict=True)))
        if not isinstance(found, Tensor) or found.shape != (*shape, n, n):
            raise AmbientError(
                self.name,
                f"a Fisher information of shape {(*shape, n, n)}, "
                f"for parameters of shape {tuple(shape)}",
                shape_in_words(found),
                "Stack its entries along two new last axes, in the order of parameters=.",
            )
        if found.dtype != values[0].dtype:
            hint = "Keep the parameters' dtype."
            raise AmbientError(
                self.name, f"a Fisher information of {values[0].dtype}", str(found.dtype), hint
            )
        index = {name: i for i, name in enumerate(self.names)}
        return {
            name: sum(
                (found[..., index[name], index[other]] * dv for other, dv in v.items()),
                torch.zeros_like(v[name]),
            )
            for name in v
        }


def register_family(
    name: str,
    of: type | Callable[[Any], bool],
    parameters: Sequence[str],
    information: Information,
    read: Reader | None = None,
    build: Callable[..., Any] | None = None,
    support: Sequence[str] = (),
) -> None:
    """Teach :class:`~riemae.ambient.FisherRao` a family of distributions, for this process.

    Subclasses of a class count as it unless they change ``log_prob``. Families that are registered
    come before those that riemae knows; the newest predicate comes first of all.

    Args:
        name: What it is called, also in ``FisherRao(name)`` for decoders that return tensors.
        of: The class; or a function that says whether a distribution is one, for classes that
            cannot be imported.
        parameters: Names, in the order of the rows of the information.
        information: The Fisher information of one variable: parameters by name, tensors of one
            shape ``(*b,)``, to ``(*b, n, n)``, differentiable, row by row. Variables are taken as
            independent.
        read: Parameters of a distribution, by name; by default its attributes of these names.
        build: The distribution from parameters by name, for ``Manifold.distribution``; by
            default the class.
        support: Parameters on which the set of possible data depends. They have no Fisher
            information, and must not depend on the latent point.

    Raises:
        OptionError: For a name that is taken, no parameters, or something else than a class or a
            function.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> class Rayleigh(torch.distributions.Distribution):  # p(x) = x/σ² e^{−x²/2σ²}, I = 4/σ²
        ...     arg_constraints = {"scale": torch.distributions.constraints.positive}
        ...     def __init__(self, scale, validate_args=None):
        ...         self.scale = scale
        ...         super().__init__(scale.shape, validate_args=validate_args)
        >>> information = lambda p: 4 / p["scale"][..., None, None] ** 2
        >>> ambient.register_family("rayleigh", Rayleigh, ["scale"], information)
        >>> Manifold(lambda z: Rayleigh(z.exp())).metric(torch.zeros(1, 1))  # (dσ/dz)² 4/σ²
        tensor([[[4.]]])
        >>> ambient.unregister_family("rayleigh")
    """
    where = "register_family"
    if not isinstance(name, str) or not name or name in NAMED:
        hint = "Choose another, or call unregister_family first."
        raise OptionError(where, "a name that is not taken", repr(name), hint)
    names = tuple(parameters)
    if isinstance(parameters, str) or not names or len(set(names)) < len(names):
        raise OptionError(
            where,
            "parameters, a list of different names",
            repr(parameters),
            'Try ["loc", "scale"].',
        )
    if not set(support) < set(names) and support:
        hint = "Name the parameters that the support depends on, but not all."
        raise OptionError(
            where, f"support of some of {', '.join(names)}", repr(tuple(support)), hint
        )
    for option, value in (("of", of), ("information", information)):
        if not callable(value):
            hint = "See the example of register_family."
            raise OptionError(where, f"{option}, a class or a function", repr(value), hint)
    if isinstance(of, type):
        kind: Callable[..., Any] = of
        if of in _CLASSES:
            hint = f"Call unregister_family({_CLASSES[of].name!r}) first."
            raise OptionError(where, "a class that is not registered", of.__name__, hint)
    else:
        kind = _unbuildable(name)
    family = Registered(name, build or kind, names, information, read, frozenset(support))
    if isinstance(of, type):
        _CLASSES[of] = family
    else:
        _PREDICATES.insert(0, (of, family))
    NAMED[name] = family


def unregister_family(name: str) -> None:
    """Forget a family that :func:`register_family` has added. Manifolds that have seen it keep it.

    Raises:
        OptionError: When there is none of this name.
    """
    if not isinstance(NAMED.get(name), Registered):
        known = (
            ", ".join(sorted(n for n, family in NAMED.items() if isinstance(family, Registered)))
            or "none"
        )
        hint = "Only families that register_family has added can be forgotten."
        raise OptionError(
            "unregister_family", f"a registered family among {known}", repr(name), hint
        )
    family = NAMED.pop(name)
    for kind in [kind for kind, other in _CLASSES.items() if other is family]:
        del _CLASSES[kind]
    _PREDICATES[:] = [entry for entry in _PREDICATES if entry[1] is not family]


def family_of(distribution: Distribution) -> Family | None:
    """The family of a distribution, unless a subclass has changed its density.

    None if it is not known.
    """
    for accepts, registered in _PREDICATES:
        if accepts(distribution):
            return registered
    kind: Any = type(distribution)
    base: Any
    for base in inspect.getmro(kind):
        family = _of_class(base)
        if family is not None:
            return family if kind.log_prob is base.log_prob else None
    return None


def _of_class(kind: Any) -> Family | None:
    family = _CLASSES.get(kind) or KNOWN.get(kind) or _FOUND.get(kind)
    if family is None:
        make = ELSEWHERE.get((kind.__module__.partition(".")[0], kind.__qualname__))
        if make is not None and issubclass(kind, Distribution):
            family = _FOUND[kind] = make(kind)
    return family


def _unbuildable(name: str) -> Callable[..., Any]:
    def build(**parameters: Tensor) -> Any:
        raise AmbientError(
            name,
            "a way to build the distribution",
            "a predicate",
            "Give register_family(build=...).",
        )

    return build
