"""Means of groups, in one batch: as one by one, and of other labels."""

import numpy as np
import pytest
import torch
from spaces import half_plane_tensor, sphere

from riemae import Manifold, statistics
from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.solvers import MetricSpace, Status
from riemae.statistics import frechet_mean, group_means

F64 = torch.float64
M = Manifold(sphere)
LABELS = torch.tensor([2, 0, 2, 2, 0, 5, 5, 0, 2, 5, 5, 5])


def points(n=12, seed=0):
    drawn = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return 1.2 * drawn - 0.6


Z = points()


@pytest.mark.parametrize("weighted", [False, True])
def test_each_is_the_mean_of_its_group(weighted):
    weights = torch.linspace(0.5, 2, 12, dtype=F64) if weighted else None
    found = group_means(M, Z, LABELS, weights)
    assert found.labels == (0, 2, 5)
    assert found.converged
    for name, label in enumerate(found.labels):
        rows = LABELS == label
        alone = frechet_mean(M, Z[rows], None if weights is None else weights[rows])
        torch.testing.assert_close(found.points[name], alone.point, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.variances[name], alone.variance, rtol=1e-6, atol=0)
        torch.testing.assert_close(found.distances[rows], alone.distances, rtol=1e-5, atol=1e-7)
        assert bool((found.groups[rows] == name).all())
    even = torch.ones(12, dtype=F64) if weights is None else weights
    within = (even * found.distances.square()).sum() / even.sum()
    torch.testing.assert_close(found.within, within, rtol=1e-6, atol=0)


def test_two_points_of_the_half_plane_meet_half_way():
    """On a vertical line of it, half-way between y₁ and y₂ is √(y₁ y₂)."""
    space = MetricSpace(half_plane_tensor)
    z = torch.tensor([[0.0, 1.0], [2.0, 0.5], [0.0, 4.0], [2.0, 4.5]], dtype=F64)
    found = group_means(space, z, ["a", "b", "a", "b"])
    assert found.labels == ("a", "b")
    exact = torch.tensor([[0.0, 2.0], [2.0, 1.5]], dtype=F64)
    torch.testing.assert_close(found.points, exact, rtol=1e-6, atol=1e-6)
    spread = torch.tensor([4.0, 9.0], dtype=F64).log().square() / 4
    # What is asked for is where the means are; lengths of curves by a metric tensor are coarser.
    torch.testing.assert_close(found.variances, spread, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    "labels",
    [LABELS.numpy(), LABELS.tolist(), LABELS.numpy().astype(str), LABELS.double()],
    ids=["array", "list", "words", "floating"],
)
def test_labels_of_all_kinds(labels):
    found = group_means(M, Z, labels, rtol=1e-3)
    assert [float(x) for x in found.labels] == [0.0, 2.0, 5.0]
    assert torch.equal(found.groups, torch.bucketize(LABELS, torch.tensor([0, 2, 5])))


def test_arrays_and_one_group():
    found = group_means(M, Z.numpy(), np.zeros(12, dtype=bool), rtol=1e-4)
    assert found.labels == (False,)
    torch.testing.assert_close(found.points[0], frechet_mean(M, Z).point, rtol=1e-3, atol=1e-4)
    assert "1 groups of 12 points" in repr(found)


def test_groups_of_one_point():
    found = group_means(M, Z[:3], [0, 1, 2])
    torch.testing.assert_close(found.points, Z[:3], rtol=0, atol=1e-9)
    assert float(found.within) == pytest.approx(0.0, abs=1e-15)


def test_what_is_not_accurate():
    with pytest.raises(NotConvergedError, match=r"groups \[0, 2, 5\]") as raised:
        group_means(M, Z, LABELS, rtol=1e-12, max_steps=1)
    assert isinstance(raised.value.result, statistics.GroupMeans)
    found = group_means(M, Z, LABELS, rtol=1e-12, max_steps=1, throw=False)
    assert bool((found.status != Status.CONVERGED).all())
    assert not found.converged


@pytest.mark.parametrize(
    ("labels", "weights", "error", "says"),
    [
        (LABELS[:5], None, ShapeError, "groups of shape"),
        (LABELS[:, None], None, ShapeError, "groups of shape"),
        (torch.full((12,), torch.nan), None, DTypeError, "NaN"),
        (LABELS * 1j, None, DTypeError, "numbers or words"),
        (LABELS, (LABELS != 5).double(), OptionError, r"none in \[5\]"),
        (LABELS, -torch.ones(12), OptionError, "weights"),
    ],
)
def test_bad_input(labels, weights, error, says):
    with pytest.raises(error, match=says):
        group_means(M, Z, labels, weights)
