"""How time and memory grow with the number of pairs, with N, m and D.

Each size is measured in a process of its own.

python -m benchmarks.growth pairs 1024 --threads 2      # one size, as JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import exponent
from benchmarks.problems import network
from riemae import Manifold
from riemae.solvers import Newton

SIZES = {
    "pairs": (64, 128, 256, 512, 1024),
    "N": (16, 32, 64, 128, 256),
    "m": (4, 8, 16, 32),
    "D": (1024, 2048, 4096, 8192, 16384),
}
QUICK = {"pairs": (32, 64, 128), "N": (16, 32, 64), "m": (4, 8, 16), "D": (1024, 2048, 4096)}
WHAT = {
    "pairs": "m = 8, D = 64, rtol = 1e-4",
    "N": "segments, one level only; 64 pairs, m = 8, D = 64",
    "m": "32 pairs, D = 64, rtol = 1e-4",
    "D": "16 pairs, m = 4, rtol = 1e-4; the same surface in more and more dimensions",
}


def measure(kind: str, threads: int, quick: bool) -> dict[str, Any]:
    """Run all sizes of one kind and fit the exponents."""
    rows = []
    for size in (QUICK if quick else SIZES)[kind]:
        command = [
            sys.executable,
            "-m",
            "benchmarks.growth",
            kind,
            str(size),
            "--threads",
            str(threads),
        ]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"size": size, **json.loads(out.stdout)})
    sizes = [row["size"] for row in rows]
    fits = {
        what: exponent(sizes, [row[what] for row in rows])
        for what in ("seconds", "cpu", "megabytes")
    }
    return {"kind": kind, "what": WHAT[kind], "rows": rows, "exponents": fits}


def surface(kind: str, size: int) -> tuple[Manifold, int]:
    """The manifold and its m. For growing D, the same decoder is followed by an isometry, so that
    nothing else changes.
    """
    m = {"m": size, "D": 4}.get(kind, 8)
    torch.manual_seed(0)
    f: nn.Module = network((m, 256 if kind != "D" else 64, 256 if kind != "D" else 64, 64)).double()
    if kind == "D":
        turn, _ = torch.linalg.qr(torch.randn(size, 64, dtype=torch.float64))
        last = f[-1]
        wide = nn.Linear(last.in_features, size, dtype=torch.float64)
        with torch.no_grad():
            wide.weight.copy_(turn @ last.weight)
            wide.bias.copy_(turn @ last.bias)
        f[-1] = wide
    return Manifold(f.requires_grad_(False).eval()), m


def one(kind: str, size: int) -> dict[str, float]:
    """Solve two pairs to warm up, then all pairs twice; the shorter time is returned."""
    manifold, m = surface(kind, size)
    pairs = {"pairs": size, "N": 64, "m": 32, "D": 16}[kind]
    generator = torch.Generator().manual_seed(0)
    # The average distance does not depend on m.
    z0, z1 = 3 * torch.randn(2, pairs, m, generator=generator, dtype=torch.float64) / m**0.5
    options: dict[str, Any] = {"rtol": 1e-4, "throw": False}
    if kind == "N":
        options["solver"] = Newton(segments=size, max_segments=size)
    manifold.geodesic(z0[:2], z1[:2], **options)
    reset_peak()
    before = memory("VmRSS")
    walls, busy = [], []
    for _ in range(2):
        clock, used = time.perf_counter(), time.process_time()
        r = manifold.geodesic(z0, z1, **options)
        walls.append(time.perf_counter() - clock)
        busy.append(time.process_time() - used)
    return {
        "seconds": min(walls),
        "cpu": min(busy),
        "megabytes": max(memory("VmHWM") - before, 0.1),
        "steps": _mean(r.stats["steps"]),
        "segments": _mean(r.stats["segments"]),
    }


def _mean(x: Tensor) -> float:
    return float(x.double().mean())


def reset_peak() -> None:
    """Let the peak of the memory begin anew."""
    with open("/proc/self/clear_refs", "w") as file:  # on Linux, 5 resets the peak in VmHWM
        file.write("5")


def memory(field: str) -> float:
    """MiB of this process: ``"VmRSS"`` now, ``"VmHWM"`` at the peak."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=SIZES)
    parser.add_argument("size", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(one(arguments.kind, arguments.size)))
