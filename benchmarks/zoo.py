"""What decoders of real shape cost: a sweep, an expansion and geodesics, in decodings.

    python -m benchmarks.zoo                         # all twelve; up to half an hour on one core
    python -m benchmarks.zoo --only transformer GRU
    python -m benchmarks.zoo --device cuda --dtype float32
    python -m benchmarks.zoo --quick                 # four pairs alone, nothing written

A *decoding* is the decoder's values at 17 points of every curve, without derivatives. A *sweep* is
the same points with everything a Gauss–Newton step needs (all m tangents), an *expansion* with what
a Newton step needs (second derivatives too). Both are what solvers are made of, so that the columns
can be compared between machines. Every decoder is measured in a process of its own, because of its
peak memory, and has ``--seconds`` in all: what they do not suffice for is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.growth import memory, reset_peak
from benchmarks.zoo_decoders import HARD, LATENT, ZOO, built
from riemae import Manifold, solvers

RESULTS = Path(__file__).parent / "results"
POINTS = 17  # of a curve in one decoding
RTOL = 1e-3
PAIRS = (1, 4, 8, 64)
REFERENCE_PAIRS = 8


def pairs(count: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:  # (p, m) twice
    """Standard normal codes."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, count, LATENT, generator=generator, dtype=torch.float64)
    z0, z1 = z.to(dtype).to(device)
    return z0, z1


def nodes(z0: Tensor, z1: Tensor) -> Tensor:  # (p, m) twice -> (p, 17, m)
    """Straight lines."""
    t = torch.linspace(0, 1, POINTS, dtype=z0.dtype, device=z0.device)[:, None]
    return z0[:, None] + t * (z1 - z0)[:, None]


def once(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The result, and seconds of one run.

    On the CPU those of the processor, which other processes disturb least.
    """
    if device == "cpu":
        start = time.process_time()
        result = call()
        return result, time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    return result, time.perf_counter() - start


def seconds(call: Callable[[], object], device: str, at_least: float = 0.3) -> float:
    """The median of several runs, after one that warms up."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < at_least:
        times.append(once(call, device)[1])
    return median(times)


def passes(decoder: Any, manifold: Manifold, device: str, dtype: torch.dtype) -> dict[str, float]:
    """A decoding of four pairs in milliseconds, a sweep and an expansion in decodings."""
    curves = nodes(*pairs(4, dtype, device))
    flat = curves.flatten(0, 1)
    space = manifold.as_space(flat)
    with torch.no_grad():
        one = seconds(lambda: decoder(flat), device)
        sweep = seconds(lambda: space.expand(curves, second_order=False), device)
        expansion = seconds(lambda: space.expand(curves), device)
    return {"decoding": 1e3 * one, "sweep": sweep / one, "expansion": expansion / one}


def geodesics(
    decoder: Any, manifold: Manifold, count: int, device: str, dtype: torch.dtype, left: float
) -> dict[str, Any]:
    """Time in decodings of that many pairs, statuses, peak memory.

    The median of three runs where one takes less than a second. ``left`` are the seconds in which
    the first of them must end.
    """
    z0, z1 = pairs(count, dtype, device)
    points = nodes(z0, z1).flatten(0, 1)
    with torch.no_grad():
        one = seconds(lambda: decoder(points), device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    reset_peak()
    before = memory("VmRSS")

    def call() -> Any:
        return manifold.geodesic(z0, z1, rtol=RTOL, throw=False, max_seconds=left)

    r, taken = once(call, device)
    peak = memory("VmHWM") - before
    if taken < 1:
        taken = median([taken, once(call, device)[1], once(call, device)[1]])
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    statuses = [solvers.Status(int(s)).name for s in r.status]
    return {
        "seconds": taken,
        "decodings": taken / one,
        "converged": statuses.count("CONVERGED"),
        "others": sorted(set(statuses) - {"CONVERGED"}),
        "megabytes": peak,
        "lengths": r.length.double().tolist()[:REFERENCE_PAIRS],
        "errors": r.error.double().tolist()[:REFERENCE_PAIRS],
    }


def reference(name: str, left: float) -> list[float] | None:
    """Lengths of the first pairs on the CPU in float64, by the matrix-free solver at 1e-6.

    NaN where it does not converge to that; None where there is no time for it.
    """
    if left <= 0:
        return None
    z0, z1 = pairs(REFERENCE_PAIRS, torch.float64, "cpu")
    manifold = Manifold(built(name))
    solver = solvers.NewtonCG()
    r = manifold.geodesic(z0, z1, rtol=1e-6, solver=solver, throw=False, max_seconds=left)
    return torch.where(r.converged, r.length, torch.nan).tolist()


def measured(
    name: str, device: str, dtype: torch.dtype, quick: bool, budget: float
) -> dict[str, Any]:
    """Everything about one decoder, as far as the seconds suffice."""
    warnings.simplefilter("ignore")
    end = time.monotonic() + budget
    decoder = built(name, dtype).to(device)
    manifold = Manifold(decoder)
    manifold.geodesic(*pairs(1, dtype, device), rtol=0.1, throw=False)  # warms up
    row: dict[str, Any] = {"name": name, **passes(decoder, manifold, device, dtype)}
    for count in (4,) if quick else PAIRS:
        left = end - time.monotonic()
        if left > 0:
            row[f"{count} pairs"] = geodesics(decoder, manifold, count, device, dtype, left)
    many = row.get(f"{REFERENCE_PAIRS} pairs")
    if many is not None and not quick:
        known = reference(name, end - time.monotonic())
        if known is not None:
            compared = [a / b - 1 for a, b in zip(many["lengths"], known, strict=True)]
            found = [x for x in compared if math.isfinite(x)]
            row["worst"] = max(found, default=None)
            row["compared"] = len(found)
    return row


def table(rows: list[dict[str, Any]], quick: bool) -> str:
    """In Markdown."""
    counts = (4,) if quick else PAIRS
    heads = ["decoder", "decoding", "sweep", "expansion"]
    heads += [f"{n} pairs" for n in counts] + ["converged", "longer than the reference", "peak"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['name']} | {row['failed']} |" + " |" * (len(heads) - 2))
            continue
        cells = [row["name"], f"{row['decoding']:.2f} ms"]
        cells += [f"{row[key]:.1f}" for key in ("sweep", "expansion")]
        got = [row.get(f"{n} pairs") for n in counts]
        cells += [_cost(g, row["sweep"]) for g in got]
        done = [g for g in got if g is not None]
        others = sorted({status for g in done for status in g["others"]})
        tried = sum(n for n, g in zip(counts, got, strict=True) if g is not None)
        ended = f" ({', '.join(others)})" if others else ""
        cells.append(f"{sum(g['converged'] for g in done)} of {tried}{ended}")
        cells.append("" if quick else _deviation(row))
        peak = max((g["megabytes"] for g in done), default=0)
        cells.append(f"{peak:.0f} MiB")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cost(found: dict[str, Any] | None, sweep: float) -> str:
    """In decodings, and in sweeps."""
    if found is None:
        return "cut"
    cut = ", cut" if "BUDGET" in found["others"] else ""
    return f"{found['decodings']:.0f} ({found['decodings'] / sweep:.1f}{cut})"


def _deviation(row: dict[str, Any]) -> str:
    """From the reference, over the pairs whose reference has converged."""
    worst = row.get("worst")
    if worst is None:
        return "cut"
    if row["compared"] == REFERENCE_PAIRS:
        return f"{worst:.1e}"
    return f"{worst:.1e} ({row['compared']} of {REFERENCE_PAIRS})"


def in_its_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One decoder, measured by another Python."""
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", name]
    command += ["--device", arguments.device, "--dtype", arguments.dtype]
    command += ["--threads", str(arguments.threads)] + ["--quick"] * arguments.quick
    command += ["--seconds", str(arguments.seconds)]
    # What does not look at the clock (probes, the first and the last look at curves) comes on top.
    limit = 2 * arguments.seconds + 60
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"not done in {limit:.0f} s"}
    if done.returncode:
        return {"name": name, "failed": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*ZOO, *HARD], default=list(ZOO))
    parser.add_argument("--one", choices=[*ZOO, *HARD], help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240, help="for one decoder")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        dtype = getattr(torch, arguments.dtype)
        budget = arguments.seconds
        found = measured(arguments.one, arguments.device, dtype, arguments.quick, budget)
        print(json.dumps(found))
        return
    rows = []
    for name in arguments.only:
        rows.append(in_its_own_process(name, arguments))
        print(table(rows[-1:], arguments.quick).splitlines()[-1], flush=True)
    text = table(rows, arguments.quick)
    if arguments.quick or arguments.only != list(ZOO):
        print(text)
        return
    where = f"{arguments.device}, {arguments.dtype}, {arguments.threads} thread(s)"
    RESULTS.mkdir(exist_ok=True)
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    (RESULTS / f"zoo{suffix}.md").write_text(
        f"# Decoders of real shape\n\n{where}, rtol {RTOL:g}, m = {LATENT}. Sweeps, expansions and "
        "geodesics in decodings, geodesics also in sweeps, in brackets (see `benchmarks/zoo.py`). "
        f"Each decoder had {arguments.seconds:.0f} s: *cut* is what they did not suffice for. The "
        f"reference are {REFERENCE_PAIRS} pairs by `NewtonCG` to 1e-6.\n\n{text}\n"
    )


if __name__ == "__main__":
    main()
