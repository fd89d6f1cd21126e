"""The spaces on which error bars are measured: the tests' catalogues, trained decoders, wide and
steep networks.

The catalogues contain the true distances. For networks they are not known. Results on digits are
compared with those of the same solver at an rtol of 1e-8, results on wide networks with the
shortest curve found from several starts, and results on steep networks with the geodesic in the
same valley (see ``error_valleys``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.error_valleys import elsewhere, own_valley
from riemae import Manifold, solvers
from riemae.autoencoders import AE
from riemae.cli import demo
from riemae.solvers import Curve, GeodesicResult, NewtonCG

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the catalogues are the tests'

from closed_forms import CLOSED_FORMS  # noqa: E402
from flat_spaces import FLAT_ONTO  # noqa: E402
from spaces import CATALOGUE, Known  # noqa: E402

FLAT, CLOSED, DIGITS, WIDE, STEEP = "flat onto", "closed form", "digits", "wide MLP", "steep MLP"

# Called with the result and the pairs it solved; float64, NaN where the truth is not known.
Truth = Callable[[GeodesicResult, slice], Tensor]


@dataclass(frozen=True)
class Problem:
    """Pairs in one dtype, with their space and their truth."""

    space: solvers.Space
    z0: Tensor
    z1: Tensor
    truth: Truth


@dataclass(frozen=True)
class Case:
    """A space to measure on.

    Attributes:
        name: In the tables.
        group: Rows of one group are added up.
        kind: Smoothness.
        m: Dimension.
        pairs: The largest number of pairs.
        make: From a number of pairs and a dtype to the problem.
        compact: Whether only the default solver and NewtonCG are affordable.
        loose: Whether only loose tolerances are.
        search: Counts the pairs that have a shorter geodesic elsewhere, at a tolerance.
    """

    name: str
    group: str
    kind: str
    m: int
    pairs: int
    make: Callable[[int, torch.dtype], Problem]
    compact: bool = False
    loose: bool = False
    search: Callable[[float], dict[str, int]] | None = None


def cases() -> Iterator[Case]:
    """All spaces, those of the catalogues first."""
    for group, catalogue, pairs in (
        (FLAT, FLAT_ONTO, 200),
        (CLOSED, [*CATALOGUE, *CLOSED_FORMS], 60),
    ):
        for known in catalogue:
            m = known.points(torch.Generator(), 1).shape[-1]
            yield Case(known.name, group, known.smoothness, m, pairs, partial(_known, known))
    for m in (2, 8):
        yield Case(f"digits, m={m}", DIGITS, "smooth", m, 60, partial(_digits, m))
    for gain in (2, 3, 4):
        for m in (2, 4):
            yield Case(
                f"steep, gain {gain}, m={m}",
                STEEP,
                "smooth",
                m,
                40,
                partial(_steep, m, gain),
                compact=True,
                search=partial(_steep_elsewhere, m, gain),
            )
    for m, pairs in ((64, 4), (128, 2), (256, 1)):
        yield Case(
            f"wide, m={m}", WIDE, "smooth", m, pairs, partial(_wide, m), compact=True, loose=True
        )


def _in(space: solvers.Space, dtype: torch.dtype) -> solvers.Space:
    return space.to(dtype=dtype) if isinstance(space, Manifold) else space


def _known(known: Known, n: int, dtype: torch.dtype) -> Problem:
    z0, z1, d = known.draw(n, 0, dtype)
    return Problem(_in(known.space(), dtype), z0, z1, lambda r, rows: d[rows])


@cache
def _trained(m: int) -> tuple[Manifold, Tensor]:
    images, _ = demo.load_digits()
    model = AE(latent_dim=m, epochs=30, seed=0).fit(images)
    return model.manifold_.to(dtype=torch.float64), torch.as_tensor(
        model.transform(images)
    ).double()


@cache
def _digits(m: int, n: int, dtype: torch.dtype) -> Problem:
    M, codes = _trained(m)
    chosen = torch.randint(len(codes), (2, n), generator=torch.Generator().manual_seed(1))
    z0, z1 = codes[chosen].to(dtype)
    r = M.geodesic(z0.double(), z1.double(), rtol=1e-8, throw=False)
    d = torch.where(r.converged, r.length, torch.nan)
    return Problem(_in(M, dtype), z0, z1, lambda _, rows: d[rows])


def network(
    sizes: tuple[int, ...], gain: float, seed: int, activation: type[nn.Module]
) -> Manifold:
    """Linear layers with normally distributed weights of standard deviation gain/√inputs."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        linear = nn.Linear(inputs, outputs, dtype=torch.float64).requires_grad_(False)
        linear.weight.copy_(gain * inputs**-0.5 * torch.randn(outputs, inputs, generator=generator))
        linear.bias.copy_(gain * inputs**-0.5 * torch.randn(outputs, generator=generator))
        layers += [linear, activation()]
    return Manifold(nn.Sequential(*layers[:-1]))


def _points(m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, n, m, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(
        dtype
    )
    return z[0], z[1]


def _steep_network(m: int, gain: float) -> Manifold:
    return network((m, 32, 32, 20), gain, 0, nn.Tanh)


def _steep_elsewhere(m: int, gain: float, rtol: float) -> dict[str, int]:
    return elsewhere(_steep_network(m, gain), *_points(m, 80 // m, torch.float64), rtol)


def _steep(m: int, gain: float, n: int, dtype: torch.dtype) -> Problem:
    M = _steep_network(m, gain)
    z0, z1 = _points(m, n, dtype)

    def refined(r: GeodesicResult, rows: slice) -> Tensor:
        return own_valley(M, Curve(r.curve.nodes.double(), r.curve.slopes.double()))

    return Problem(_in(M, dtype), z0, z1, refined)


@cache
def _wide(m: int, n: int, dtype: torch.dtype) -> Problem:
    M = network((m, m, m, 4 * m), 1.0, 0, nn.SiLU)
    z0, z1 = _points(m, n, dtype)
    ends = z0.double(), z1.double()
    solver = NewtonCG(max_segments=32)
    best = M.geodesic(*ends, rtol=1e-2, solver=solver, throw=False)
    for rtol, again in (
        (1e-3, False),
        (1e-3, True),
        (1e-4, True),
    ):  # from the straight line, and from the best curve so far
        r = M.geodesic(
            *ends, rtol=rtol, init=best.curve if again else None, solver=solver, throw=False
        )
        best = GeodesicResult.where(r.length < best.length, r, best)
    d = solvers.length(M, best.curve.resample(512))

    def known(r: GeodesicResult, rows: slice) -> Tensor:  # later rows have the better truth
        return torch.minimum(d[rows], r.length.double())

    return Problem(_in(M, dtype), z0, z1, known)
