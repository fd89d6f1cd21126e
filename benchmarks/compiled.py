"""Compiled passes against the same ones by themselves, in turn, in processor time.

``python -m benchmarks.compiled --only "neural ODE" GRU --backend eager``
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_decoders import LATENT, ZOO, built
from riemae import Manifold
from riemae.differential.derivatives import Differential

MLP = "MLP 8 → 256 → 256 → 64"
ROUNDS = 3


def decoder_of(name: str) -> nn.Module:
    """A decoder in float64 whose weights require no gradient."""
    if name != MLP:
        return built(name).requires_grad_(False)
    torch.manual_seed(0)
    layers = [nn.Linear(LATENT, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(256, 64)).double().eval().requires_grad_(False)


def used() -> float:
    """Seconds of this process and its children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in found)


def seconds(call: Callable[[], Any], runs: int) -> float:
    """Processor time of one of several runs."""
    start = time.process_time()
    for _ in range(runs):
        call()
    return (time.process_time() - start) / runs


def measured(name: str, backend: str, points: int, runs: int) -> str:
    """A row of the table.

    Raises:
        AssertionError: When the numbers differ.
    """
    decoder = decoder_of(name)
    source = torch.Generator().manual_seed(0)
    z = torch.randn(points, LATENT, dtype=torch.float64, generator=source)
    plain = Manifold(decoder)
    compiled = Manifold(decoder, compile=backend)
    for manifold in (plain, compiled):
        manifold.decode(z)
    maps = [manifold._pullback.first_order for manifold in (plain, compiled)]
    kinds: dict[str, Callable[[Differential], tuple[Tensor, ...]]] = {
        "sweep": lambda f: f.jets(z),
        "expansion": lambda f: f.expansion(z, torch.ones_like),
    }
    cells = []
    for kind in kinds.values():
        expected = kind(maps[0])
        start = used()
        found = kind(maps[1])
        first = used() - start
        for ours, theirs in zip(found, expected, strict=True):
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-12, name
        times = []
        for _ in range(ROUNDS):
            times.append([seconds(partial(kind, map_), runs) for map_ in maps])
        eager, ours = (min(column) for column in zip(*times, strict=True))
        cells.append(f"{ours / eager:.2f} ({1e3 * eager:.3g} → {1e3 * ours:.3g} ms)")
        cells.append(f"{first:.0f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [MLP, *ZOO]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| decoder | sweep, compiled / eager | first, s | expansion | first, s |")
    print("| --- | --- | --- | --- | --- |")
    for name in arguments.only:
        with torch.no_grad():
            row = measured(name, arguments.backend, arguments.points, arguments.runs)
        print(row, flush=True)


if __name__ == "__main__":
    main()
