"""The catalogues themselves: maps called onto are onto, and distances are those of the metric."""

import math

import pytest
import torch
from closed_forms import CLOSED_FORMS, CLOSED_NAMES
from flat_spaces import FLAT_NAMES, FLAT_ONTO
from spaces import CATALOGUE

from riemae import Manifold

FORMULAS = [known for known in CATALOGUE + CLOSED_FORMS + FLAT_ONTO if known.distance is not None]


def test_names_are_unique_across_catalogues():
    names = [known.name for known in CATALOGUE + CLOSED_FORMS + FLAT_ONTO]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("known", FLAT_ONTO, ids=FLAT_NAMES)
class TestFlatOnto:
    """A local homeomorphism under which far points have far images is a bijection (Hadamard)."""

    def test_orientation_is_kept_and_stretch_is_at_most_1e3(self, known):
        z = torch.cat(known.draw(200)[:2])
        jacobian = torch.func.vmap(torch.func.jacrev(known.decoder))(z)
        assert len(torch.linalg.det(jacobian).sign().unique()) == 1
        stretch = torch.linalg.svdvals(jacobian)
        assert stretch.max() < 1.3e3 * stretch.min()

    def test_far_points_go_far(self, known):
        z = torch.nn.functional.normalize(known.draw(200)[0], dim=-1)
        small, large = (known.decoder(radius * z).norm(dim=-1).min() for radius in (1e3, 1e12))
        assert large > 2 * small > 0

    def test_no_jumps(self, known):
        # One would be as large at a tenth of the step.
        z0, z1, _ = known.draw(10)
        gaps = []
        for n in (500, 5000):
            t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None, None]
            gaps.append(known.decoder(z0 + t * (z1 - z0)).diff(dim=0).norm(dim=-1).max())
        assert gaps[1] < 0.15 * gaps[0]


@pytest.mark.parametrize("known", FORMULAS, ids=[known.name for known in FORMULAS])
class TestFormulas:
    def test_short_distances_are_the_norm(self, known):
        # d(z, z + εv) = ε |v|_G(z + εv/2) + O(ε³): by the middle, so that only kinks can spoil the
        # order.
        z, v = (
            known.points(torch.Generator().manual_seed(1), 40),
            known.points(torch.Generator().manual_seed(2), 40),
        )
        v, step = torch.nn.functional.normalize(v, dim=-1), 1e-5
        d = known.distance(z, z + step * v) / step
        size = known.space().norm(z + step / 2 * v, v)
        off = (d / size - 1).abs()
        assert off.median() < 1e-8
        assert (off < 1e-6).double().mean() > 0.9

    def test_triangle_inequality_and_symmetry(self, known):
        a, b, c = (known.points(torch.Generator().manual_seed(i), 40) for i in range(3))
        d = known.distance
        assert (d(a, c) <= (d(a, b) + d(b, c)) * (1 + 1e-12)).all()
        torch.testing.assert_close(d(a, b), d(b, a), rtol=1e-12, atol=0)


@pytest.mark.parametrize("known", CLOSED_FORMS + FLAT_ONTO, ids=CLOSED_NAMES + FLAT_NAMES)
def test_float32_follows_and_pairs_come_from_their_seed(known):
    z0, z1, d = known.draw(5, 3, torch.float32)
    again, _, exact = known.draw(5, 3)
    assert z0.dtype == torch.float32
    assert torch.equal(z0, again.float())
    torch.testing.assert_close(d, exact, rtol=1e-4, atol=0)
    space = known.space()
    space = space.to(dtype=torch.float32) if isinstance(space, Manifold) else space
    assert space.norm(z0, z1 - z0).dtype == torch.float32


def test_the_pair_of_the_preimage():
    """One pair by the exact preimage: the curve f⁻¹(line), f inverted by bisection, has the chord's
    length."""
    known = next(k for k in FLAT_ONTO if k.name == "sine .45 m=2")
    a, b = torch.tensor([[5.1, 6.2]]).double(), torch.tensor([[0.6, 0.6]]).double()
    assert math.isclose(float(known.distance(a, b)), 6.34444, rel_tol=1e-5)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    target = known.decoder(a) + t * (known.decoder(b) - known.decoder(a))
    low, high = target - 1, target + 1
    for _ in range(60):
        middle = (low + high) / 2
        below = known.decoder(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    steps = low.diff(dim=0)
    length = known.space().norm((low[1:] + low[:-1]) / 2, steps).sum()
    assert math.isclose(float(length), float(known.distance(a, b)), rel_tol=1e-5)
