"""What an object has of a protocol."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import pytest

from riemae import Manifold
from riemae.numerics.offers import offers
from riemae.solvers import MetricSpace, Newton, NewtonCG, hooks
from riemae.solvers.solver import Foresighted, HasRefinementRatio, HasUnrolls, Refinable, Solver
from riemae.solvers.space import HasSpace, Space
from tests import spaces

PROTOCOLS = [
    Foresighted,
    hooks.HasAmbientFeatures,
    hooks.HasEmbedded,
    hooks.HasEnergyAndGradient,
    hooks.HasGeodesic,
    hooks.HasLabels,
    hooks.HasProducts,
    hooks.HasRestored,
    hooks.HasRoundoff,
    hooks.HasVelocities,
    hooks.HasWidth,
    HasRefinementRatio,
    HasSpace,
    HasUnrolls,
    Refinable,
    Solver,
    Space,
]
THINGS = {
    "a metric": MetricSpace(spaces.poincare_tensor),
    "a manifold": Manifold(spaces.sphere),
    "a pull-back": Manifold(spaces.sphere).as_space(),
    "Newton": Newton(),
    "NewtonCG": NewtonCG(),
    "nothing": None,
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_the_answer_is_that_of_isinstance(thing: str, protocol: type) -> None:
    checked = runtime_checkable(protocol)
    assert offers(THINGS[thing], protocol) == isinstance(THINGS[thing], checked)


class Named(Protocol):
    def name(self) -> str: ...


class Counted(Named, Protocol):
    @property
    def count(self) -> int: ...


class Half:
    def name(self) -> str:
        return "half"


class Whole(Half):
    count = 0


class Withdrawn(Whole):
    name = None  # as typing has it: None withdraws a method


def test_what_a_protocol_inherits_counts() -> None:
    assert offers(Half(), Named)
    assert not offers(Half(), Counted)
    assert offers(Whole(), Counted)


def test_none_is_no_method() -> None:
    assert not offers(Withdrawn(), Counted)
