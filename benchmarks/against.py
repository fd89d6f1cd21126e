"""Is the package slower than it was? Every task of the benchmarks, in this tree and at another
commit, in turns.

    python -m benchmarks.against 1a2b3c4                     # some fifteen minutes; writes nothing
    python -m benchmarks.against 1a2b3c4 --only "digits-8"   # tasks with this in their names

Two processes with the same environment take turns, A B A B. The least processor time of each is
compared, because other processes disturb it least. A ratio above 1 means that this tree is slower.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
Call = Callable[[], object]
_SERVE = "--serve"
_AT_MOST = 12.0  # seconds that the turns of one task may take after the first two


def tasks() -> dict[str, Callable[[], Call]]:
    """The tasks by name, each as a function that prepares and returns the timed call."""
    found: dict[str, Callable[[], Call]] = {}
    for problem, cells in {
        "digits-8": (
            (1, 1e-2),
            (1, 1e-3),
            (1, 1e-5),
            (1, 1e-7),
            (32, 1e-2),
            (32, 1e-3),
            (32, 1e-5),
            (32, 1e-7),
        ),
        "digits-32": ((1, 1e-3), (1, 1e-5), (32, 1e-3), (32, 1e-5)),
        "digits-2": ((1, 1e-3), (32, 1e-3), (32, 1e-5), (200, 1e-4)),
    }.items():
        for pairs, rtol in cells:
            found[f"geodesics, {problem}, {pairs} pairs, {rtol:g}"] = _later(
                _geodesics, problem, pairs, rtol, "float64"
            )
    found["geodesics, digits-8, 1000 pairs, 0.0001"] = _later(
        _geodesics, "digits-8", 1000, 1e-4, "float64"
    )
    found["geodesics, digits-8, 1000 pairs, 1e-06"] = _later(
        _geodesics, "digits-8", 1000, 1e-6, "float64"
    )
    found["geodesics, digits-8, 1000 pairs, 0.0001, float32"] = _later(
        _geodesics, "digits-8", 1000, 1e-4, "float32"
    )
    found["geodesics, digits-32, 200 pairs, 0.0001"] = _later(
        _geodesics, "digits-32", 200, 1e-4, "float64"
    )
    for kind, size in (("pairs", 256), ("N", 64), ("m", 16), ("D", 4096)):
        found[f"growth, {kind} = {size}"] = _later(_growth, kind, size)
    for m in (2, 4, 8):
        for d in (64, 784):
            for name in ("metric", "extrinsic_curvature", "riemann", "scalar_curvature"):
                found[f"curvature, m = {m}, D = {d}, {name}"] = _later(_curvature, m, d, name)
    for width in (256, 1024):
        for term in ("IRAE", "NRAE-L", "NRAE-Q", "MECAE"):
            found[f"training, 4 x {width}, {term}"] = _later(_step, width, term)
    for name in ("geodesic", "metric", "extrinsic_curvature"):
        found[f"convolutions, {name}"] = _later(_convolutions, name)
    return found


def _later(make: Callable[..., Call], *arguments: Any) -> Callable[[], Call]:
    return lambda: make(*arguments)


def _geodesics(problem: str, pairs: int, rtol: float, dtype: str) -> Call:
    from benchmarks.peers import mlp
    from riemae import Manifold

    file = np.load(ROOT / "benchmarks" / "decoders" / f"{problem}.npz")
    layers = [(file[f"w{i}"], file[f"b{i}"]) for i in range(3)]
    manifold = Manifold(mlp.decoder(layers, 1)).to(dtype=getattr(torch, dtype))
    z0, z1 = (torch.from_numpy(file[name]).to(getattr(torch, dtype)) for name in ("z0", "z1"))
    if pairs == 1:
        return lambda: [manifold.geodesic(z0[i], z1[i], rtol=rtol, throw=False) for i in range(8)]
    return lambda: manifold.geodesic(z0[:pairs], z1[:pairs], rtol=rtol, throw=False)


def _growth(kind: str, size: int) -> Call:
    from benchmarks.growth import surface
    from riemae.solvers import Newton

    manifold, m = surface(kind, size)
    pairs = {"pairs": size, "N": 64, "m": 32, "D": 16}[kind]
    generator = torch.Generator().manual_seed(0)
    z0, z1 = 3 * torch.randn(2, pairs, m, generator=generator, dtype=torch.float64) / m**0.5
    options: dict[str, Any] = {"rtol": 1e-4, "throw": False}
    if kind == "N":
        options["solver"] = Newton(segments=size, max_segments=size)
    return lambda: manifold.geodesic(z0, z1, **options)


def _curvature(m: int, d: int, name: str) -> Call:
    from benchmarks.curvature import POINTS, decoder
    from riemae import Manifold

    manifold = Manifold(decoder(m, d))
    z = torch.randn(POINTS, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return lambda: getattr(manifold, name)(z)


def _step(width: int, term: str) -> Call:
    from benchmarks.training import cases

    case = cases(width)[1][term]
    return lambda: [case.step() for _ in range(3 if width == 256 else 1)]


def _convolutions(name: str) -> Call:
    from riemae import Manifold

    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(8, 32 * 4 * 4), nn.Unflatten(1, (32, 4, 4)), nn.SiLU()]
    for a, b in ((32, 16), (16, 8)):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.GroupNorm(4, b), nn.SiLU()]
    decoder = nn.Sequential(*layers, nn.Conv2d(8, 1, 3, padding=1)).requires_grad_(False).eval()
    manifold = Manifold(decoder)
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    if name == "geodesic":
        return lambda: manifold.geodesic(z[:8], z[8:16], rtol=1e-2, throw=False)
    return lambda: getattr(manifold, name)(z)


def serve() -> None:
    """Read names of tasks from standard input, and answer each with the seconds of one call."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    every, ready = tasks(), {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready.clear()  # one at a time, so that no task holds memory while another is timed
            ready[name] = every[name]()
            ready[name]()
        began, used = time.perf_counter(), time.process_time()
        ready[name]()
        print(json.dumps([time.perf_counter() - began, time.process_time() - used]), flush=True)


def _started(tree: Path) -> subprocess.Popen[str]:
    # Both processes run this file, so that the tasks are the same. The package is each tree's own.
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, _SERVE]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment
    )


def _asked(process: subprocess.Popen[str], name: str) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process ended in {name}")
    wall, cpu = json.loads(line)
    return wall, cpu


def compare(tree: Path, chosen: list[str], turns: int) -> list[tuple[str, float, float]]:
    """Least processor times of every task, at the other commit and in this tree."""
    there, here, found = _started(tree), _started(ROOT), []
    try:
        print("| task | there | here | ratio |\n| --- | --- | --- | --- |", flush=True)
        for name in chosen:
            taken: tuple[list[float], list[float]] = ([], [])
            began = time.perf_counter()
            while len(taken[0]) < turns and (
                len(taken[0]) < 2 or time.perf_counter() - began < _AT_MOST
            ):
                for process, times in zip((there, here), taken, strict=True):
                    times.append(_asked(process, name)[1])
            a, b = min(taken[0]), min(taken[1])
            found.append((name, a, b))
            print(f"| {name} | {1e3 * a:.1f} ms | {1e3 * b:.1f} ms | {b / a:.2f} |", flush=True)
    finally:
        for process in (there, here):
            process.kill()
            process.wait()
    return found


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="commit to compare with")
    parser.add_argument("--only", default="", help="tasks whose names hold this")
    parser.add_argument("--turns", type=int, default=40)
    options = parser.parse_args()
    from benchmarks.problems import PROBLEMS, prepare

    for problem in PROBLEMS.values():
        prepare(problem)
    chosen = [name for name in tasks() if options.only in name]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(tree), options.revision],
            cwd=ROOT,
            check=True,
        )
        try:
            found = compare(tree, chosen, options.turns)
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True
            )
    ratios = sorted(b / a for _, a, b in found)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"\nRatios: {ratios[0]:.2f} to {ratios[-1]:.2f}, geometric mean {mean:.2f}.")


if __name__ == "__main__":
    serve() if sys.argv[1:] == [_SERVE] else main()
