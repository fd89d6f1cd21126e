"""Curvature: time, memory and variance, with geomstats' pull-back metric for comparison.

    make bench                          # or: python benchmarks/curvature.py

Both packages get the same decoder. Times are medians; ratios compare numbers of one run. A *pass*
is one evaluation of the decoder on the same points, with the same chunks. Writes
``benchmarks/results/curvature.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from riemae import Manifold
from riemae.scores import Estimate

RESULTS = Path(__file__).parent / "results" / "curvature.md"
POINTS = 1000


def decoder(m: int, d: int, width: int = 256, seed: int = 0) -> nn.Module:
    """A smooth network with two hidden layers, in float64."""
    torch.manual_seed(seed)
    layers = nn.Linear(m, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, d)
    return nn.Sequential(*layers).double().requires_grad_(False)


def median_time(call: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time in seconds, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def speed(lines: list[str]) -> None:
    """Exact curvatures at 1,000 points, in passes of the decoder and compared with geomstats."""
    lines += [
        f"## Exact curvature at {POINTS:,} points, float64, MLP m → 256 → 256 → D, SiLU",
        "",
        "| m | D | pass | extrinsic | in passes | allowed | Riemann | scalar | geomstats Riemann | "
        "ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in (2, 4, 8):
        for d in (64, 784):
            f = decoder(m, d)
            M = Manifold(f)
            z = torch.randn(POINTS, m, dtype=torch.float64)
            # In turns, so that other load on the machine affects numerator and denominator
            # alike.
            rounds = [
                (
                    median_time(lambda M=M, z=z: M.decode(z), 3),
                    median_time(lambda M=M, z=z: M.extrinsic_curvature(z), 3),
                )
                for _ in range(3)
            ]
            ratio = sorted(b / a for a, b in rounds)[1]
            one, extrinsic = sorted(rounds)[1]
            riemann, scalar = (
                median_time(lambda c=c, z=z: c(z), 3) for c in (M.riemann, M.scalar_curvature)
            )
            peer = geomstats_riemann(f, m, d)
            lines.append(
                f"| {m} | {d} | {1e3 * one:.1f} ms | {1e3 * extrinsic:.1f} ms | {ratio:.1f} | "
                f"{1.5 * (m + m * (m + 1) / 2 + 2):.1f} | {1e3 * riemann:.1f} ms | "
                f"{1e3 * scalar:.1f} ms | "
                + (
                    f"{peer:.1f} s | {peer / riemann:,.0f} × |"
                    if peer is not None
                    else "not installed | |"
                )
            )
            print(lines[-1], flush=True)
    lines += ["", f"geomstats loops over points: its time for {POINTS:,} is scaled up from 4.", ""]


def geomstats_riemann(f: nn.Module, m: int, d: int, points: int = 4) -> float | None:
    """Seconds that geomstats takes for the Riemann tensor at 1,000 points, or None when it is not
    installed.
    """
    os.environ["GEOMSTATS_BACKEND"] = "pytorch"
    try:
        from geomstats.geometry.base import ImmersedSet
        from geomstats.geometry.euclidean import Euclidean
    except ImportError:
        return None

    class Immersed(ImmersedSet):
        def __init__(self) -> None:
            super().__init__(dim=m)

        def immersion(self, point: Tensor) -> Tensor:
            return f(point)

        def _define_embedding_space(self) -> object:
            return Euclidean(d)

    space = Immersed()
    z = torch.randn(points, m, dtype=torch.float64)
    return median_time(lambda: space.metric.riemann_tensor(z), 1) * POINTS / points


def accuracy(lines: list[str]) -> None:
    """The unit sphere, where the scalar curvature is 2."""

    def sphere(z: Tensor) -> Tensor:
        s = z.square().sum(-1, keepdim=True)
        return torch.cat([2 * z, s - 1], -1) / (1 + s)

    z = torch.tensor([[0.3, -0.2], [0.5, 0.7]], dtype=torch.float64)
    ours = (Manifold(sphere).scalar_curvature(z) - 2).abs().max()
    lines += ["## Unit sphere, scalar curvature 2", "", f"- riemae: off by {ours:.0e}"]
    try:
        from geomstats.geometry.base import ImmersedSet
        from geomstats.geometry.euclidean import Euclidean

        class Sphere(ImmersedSet):
            def __init__(self) -> None:
                super().__init__(dim=2)

            def immersion(self, point: Tensor) -> Tensor:
                return sphere(point)

            def _define_embedding_space(self) -> object:
                return Euclidean(3)

        theirs = Sphere().metric.scalar_curvature(z)
        lines.append(
            f"- geomstats (torch backend): {', '.join(f'{v:.2g}' for v in theirs.tolist())}"
        )
    except ImportError:
        lines.append("- geomstats: not installed")
    lines.append("")


def variance(lines: list[str]) -> None:
    """Mean and standard deviation of one draw of each stochastic estimator, and the exact value."""
    lines += [
        "## Stochastic estimators: one draw, 4,000 times",
        "",
        "| m | quantity | exact | estimator | mean ± standard error | standard deviation | below 0 "
        "|",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in (2, 8, 32):
        M = Manifold(decoder(m, 64, width=96))
        z = torch.randn(1, m, dtype=torch.float64)
        many = z.expand(4000, m)
        for name, call, estimators in (
            ("extrinsic", M.extrinsic_curvature, ("hutchinson", "paper")),
            ("scalar", M.scalar_curvature, ("hutchinson",)),
        ):
            exact = float(call(z))
            for estimator in estimators:
                draws = call(many, estimator, generator=torch.Generator().manual_seed(1))
                e = Estimate.of(draws)
                lines.append(
                    f"| {m} | {name} | {exact:.4g} | {estimator} | {e.mean:.4g} ± "
                    f"{e.standard_error:.1g} | "
                    f"{draws.std():.3g} | {100 * float((draws < 0).double().mean()):.1f} % |"
                )
                print(lines[-1], flush=True)
    lines.append("")


def memory(lines: list[str]) -> None:
    """Peak memory of exact extrinsic curvature for images of 3 × 256 × 256, in a process of its
    own.
    """
    code = (
        "import torch\n"
        "from riemae import Manifold\n"
        "nn = torch.nn\n"
        "f = nn.Sequential(nn.Linear(2, 64 * 8 * 8), nn.Unflatten(1, (64, 8, 8)), nn.SiLU(),\n"
        "    nn.Upsample(scale_factor=8, mode='bilinear'), nn.Conv2d(64, 16, 3, padding=1), "
        "nn.SiLU(),\n"
        "    nn.Upsample(scale_factor=4, mode='bilinear'), nn.Conv2d(16, 3, 3, "
        "padding=1)).requires_grad_(False)\n"
        "M = Manifold(f)\n"
        "c = M.extrinsic_curvature(torch.randn(16, 2))\n"
        "assert c.isfinite().all() and M.decode(torch.randn(1, 2)).numel() == 196608\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(peak.split()[1]) / 2**20)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    images = "Images of 3 × 256 × 256 (D = 196,608), m = 2, 16 points, float32"
    found = f"{images}: peak {float(out.stdout):.2f} GiB"
    lines += ["## Memory", "", found, ""]
    print(found)


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    lines = [
        "# Curvature",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads.",
        "",
    ]
    for part in (speed, accuracy, variance, memory):
        part(lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines))
    print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
