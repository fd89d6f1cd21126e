"""What all path solvers have in common: their settings."""

import dataclasses

import pytest

from riemae import solvers
from riemae.exceptions import OptionError
from riemae.solvers.measure import RATIO
from riemae.solvers.solver import refinement_ratio

SOLVERS = [
    solvers.Newton,
    solvers.NewtonCG,
    solvers.QuasiNewton,
    solvers.Spectral,
    solvers.GaussNewton,
    solvers.Adam,
    solvers.LBFGS,
    solvers.CubicSpline,
    solvers.GEORCE,
    solvers.Shooting,
    solvers.BVP,
]
COUNTS = [
    (make, field.name)
    for make in SOLVERS
    for field in dataclasses.fields(make)
    if field.type == "int"
]


@pytest.mark.parametrize(("make", "name"), COUNTS)
@pytest.mark.parametrize("value", [True, 8.0, "8", -1])
def test_counts_are_whole_numbers(make, name, value):
    with pytest.raises(OptionError, match=name) as found:
        make(**{name: value})
    assert str(found.value).startswith(make.__name__)


def test_learning_rate():
    for value in (0, -1.0, True, float("nan")):
        with pytest.raises(OptionError, match="learning_rate"):
            solvers.Adam(learning_rate=value)


def test_refinement_ratio():
    assert refinement_ratio(solvers.Newton()) == RATIO
    assert refinement_ratio(solvers.GEORCE()) == 4
