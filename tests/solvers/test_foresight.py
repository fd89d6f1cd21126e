"""The look ahead before a curve is accepted on little evidence, and what is accepted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from riemae import Manifold
from riemae.solvers import Newton, Status
from riemae.solvers.foresight import _OLDER
from riemae.solvers.measure import Evidence
from riemae.solvers.verdict import Claims, Level, reported_error, verdict

ROWS = np.array([0])


class TestThin:
    def thin(self, lengths, wobble):
        evidence = Evidence(1)
        for length in lengths:
            evidence.add(ROWS, np.array([length]), np.array([length]))
        with np.errstate(all="ignore"):  # as in the driver
            return bool(evidence.thin(ROWS, np.array([wobble]))[0])

    @pytest.mark.parametrize(
        ("lengths", "wobble", "thin"),
        [
            ([1.0], 0.1, False),  # nothing is claimed after one level
            ([1.1, 1.0], 0.1, True),
            ([1.1, 1.0], 1e-7, False),
            ([1.8, 1.05, 1.003], 0.1, False),  # a series of fourth order
            ([2.0, 1.0001, 1.0], 1e-9, True),  # a new valley
            ([1.3, 1.0, 1.0], 0.1, True),  # no difference at all
        ],
    )
    def test_two_levels_or_no_series(self, lengths, wobble, thin):
        assert self.thin(lengths, wobble) is thin


def test_claims_are_raised_to_what_is_foreseen_but_not_above_the_bound():
    low = np.full(4, 1e-6)
    claims = Claims(error=low, worst=low, beyond=np.array([np.nan, 1.0, 1e-4, 1.0]))
    raised = claims.raised(np.array([0, 1, 2, 3]), np.array([1e-3, 1e-3, 1e-3, np.nan]))
    np.testing.assert_array_equal(raised.error, [1e-3, 1e-3, 1e-4, 1e-6])
    np.testing.assert_array_equal(raised.worst, raised.error)
    np.testing.assert_array_equal(claims.error, low)


def looked(solver, space, nodes):
    return solver.foreseen(space, solver.begin(nodes))


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_what_is_foreseen_in_a_flat_space_is_all_there_is(size, second_order):
    # The energy of an affine map is quadratic: one step straightens the curve, and takes
    # (E − d²) / 2E of the length to first order in the energy.
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    space = Manifold(lambda z: z @ turn.to(z)).as_space()
    t = torch.linspace(0, 1, 17, dtype=torch.float64)[:, None]
    line = t * torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    bump = size * torch.randn(5, 17, 3, generator=generator, dtype=torch.float64)
    bump[:, 0], bump[:, -1] = 0, 0
    nodes = line + bump
    energy = 16 * nodes.diff(dim=1).square().sum((1, 2))
    distance = line[-1].square().sum()
    found = looked(Newton(second_order=second_order), space, nodes)
    torch.testing.assert_close(found, (energy - distance) / (2 * energy), rtol=1e-9, atol=1e-13)


def test_rtol_is_a_share_of_the_distance_not_of_the_length():
    # A curve of length 1 and a distance of 0.905: the error is 0.095 of the length, and 0.105 of
    # the distance. The next one is at 0.91.
    zero = np.zeros(2)
    level = Level(
        rows=np.arange(2),
        measure=SimpleNamespace(grain=zero + 1e-15),
        length=zero + 1,
        status=np.full(2, int(Status.CONVERGED)),
        left=zero,
        spent=zero > 0,
        least=zero,
        last=True,
    )
    worst = np.array([0.095, 0.09])
    statuses = verdict(level, worst, 0.1)
    assert statuses.tolist() == [Status.RESOLUTION, Status.CONVERGED]
    claims = Claims(error=worst + 0.01, worst=worst, beyond=zero + np.inf)
    error = reported_error(claims, level, statuses, 0.1)
    np.testing.assert_allclose(error, [0.105, 0.1 / 1.1], rtol=1e-12)


def rough_pairs(seed):
    generator = torch.Generator().manual_seed(seed)
    first = 0.5 * torch.randn(4, 40, generator=generator, dtype=torch.float64)
    second = torch.randn(40, 12, generator=generator, dtype=torch.float64) / 6
    z0, z1 = torch.randn(2, 16, 4, generator=generator, dtype=torch.float64)
    return Manifold(lambda z: (z @ first).tanh() @ second), z0, z1


@pytest.mark.parametrize("seed", range(2))
def test_the_matrix_of_the_level_promises_no_less_than_a_new_one(seed, monkeypatch):
    M, z0, z1 = rough_pairs(seed)
    seen = []

    def watched(self, space, state):
        found = foreseen(self, space, state)
        if state.book["known"].all():
            anew = foreseen(self, space, self.begin(state.nodes))
            seen.append(torch.stack([found, anew]))
        return found

    foreseen = Newton.foreseen
    monkeypatch.setattr(Newton, "foreseen", watched)
    for rtol in (1e-2, 1e-3, 1e-4):
        M.geodesic(z0, z1, rtol=rtol, solver=Newton(), n_starts=1, throw=False)
    carried, anew = torch.cat(seen, 1)
    known = anew > 1e-9
    assert bool((carried[known] != anew[known]).any())
    assert bool((_OLDER * carried[known] > anew[known]).all())


def test_a_look_with_the_old_matrix_changes_no_answer(monkeypatch):
    M, z0, z1 = rough_pairs(0)
    looks = []

    def counted(self, space, state):
        looks.append(bool(state.book["known"].all()))
        return foreseen(self, space, state)

    foreseen = Newton.foreseen
    monkeypatch.setattr(Newton, "foreseen", counted)
    options = {"solver": Newton(), "n_starts": 1, "throw": False}
    found = [M.geodesic(z0, z1, rtol=r, **options) for r in (1e-2, 1e-3, 1e-4)]
    assert any(looks)
    # As if no level had left a matrix.
    monkeypatch.setattr(
        "riemae.solvers.foresight.refined", lambda solver, _, z, __: solver.begin(z)
    )
    for one in found:
        other = M.geodesic(z0, z1, rtol=one.rtol, **options)
        assert bool((one.status == other.status).all())
        assert bool((one.length == other.length).all())
        assert bool((one.error == other.error).all())
