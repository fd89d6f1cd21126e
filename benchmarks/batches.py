"""Pairs per second against the number of pairs in a call, beside what decodings alone would allow.

    python -m benchmarks.batches                       # all tasks: at most six minutes on one core
    python -m benchmarks.batches --minutes 20          # larger batches as well
    python -m benchmarks.batches --task convolutions   # one of them, into the same table
    python -m benchmarks.batches --quick               # tests the program itself

Each task is solved from straight lines, and again from the curves that came of it (``init=``), that
only need to be verified. Seconds are processor time of one thread, so that other processes disturb
them little. A limit is the number of pairs whose decodings, with derivatives, the decoder alone
would do in a second at its fastest batch size: for the decodings that were counted, for one sweep
(value and Jacobian at 17 points), and for the values at these points alone.

A batch begins only where the batches before it say that it will be done in time. What is left out
is said under the table. Writes ``batches.json``, ``batches.md`` and ``batches.png`` to
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import riemae
from benchmarks.measure import quantiles
from benchmarks.peers import mlp
from benchmarks.problems import PROBLEMS, layers_of, prepare
from riemae import Manifold
from riemae.solvers.budget import limited

RESULTS = Path(__file__).parent / "results"
RTOL = 1e-3
# Numbers of pairs of every task.
_PAIRS = {
    "digits-8": (1, 8, 64, 512, 1000),
    "digits-32": (1, 8, 32, 128),
    "convolutions": (1, 8, 32),
}
_QUICK = (1, 2)
_POINTS = 17  # of a sweep
_EXACT = 8  # pairs whose errors are measured
_TITLE = "# Pairs a second against the number of pairs"
_COLUMNS = (
    "*line*: from the straight line; *result*: from a result to the same accuracy, which is only "
    "verified. *limit*: pairs a second if all time were decodings at their fastest, and of one "
    "sweep per pair. *p95*: error of the length of the first 8 pairs."
)
_BATCHES = 16, 64, 256, 1024
_REPEATS = 3
_COLOURS = {"line": "black", "result": "#0072B2"}
Row = dict[str, Any]


def problem(name: str, quick: bool) -> tuple[Manifold, Tensor, Tensor]:
    """A manifold, and pairs on it."""
    chosen = PROBLEMS[name]
    if quick and chosen.convolutional:  # its training is what takes longest
        chosen = replace(chosen, name=f"{name}-quick", epochs=1)
    file = np.load(prepare(chosen))
    layers = layers_of(file)
    ends = torch.from_numpy(file["z0"]), torch.from_numpy(file["z1"])
    return Manifold(mlp.decoder(layers, 1)), *ends


def seconds(call: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Processor time of a call, at best."""
    spent = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        spent.append(time.process_time() - begun)
    return min(spent)


def peak(M: Manifold, z: Tensor) -> float:
    """Values of the decoder per second, at its fastest batch size."""
    found = []
    for count in _BATCHES:
        points = z.repeat(-(-count // len(z)), 1)[:count]
        M.decode(points)
        found.append(count / seconds(partial(M.decode, points)))
    return max(found)


def measured(name: str, quick: bool, until: float) -> Iterator[Row]:
    """The rows of a task, as long as there is time for them.

    Args:
        name: Of the task.
        quick: Whether to use few pairs.
        until: When to end, by ``time.perf_counter``.
    """
    M, z0, z1 = problem(name, quick)
    rate = peak(M, z0)
    sweep = _POINTS * (1 + z0.shape[1])
    sizes = _QUICK if quick else _PAIRS[name]
    M.geodesic(z0[:2], z1[:2], rtol=RTOL)  # looked at once
    some = min(_EXACT, max(sizes))
    exact = M.geodesic(z0[:some], z1[:some], rtol=1e-7, throw=False).length
    before = 0.0  # seconds per pair of the number of pairs before
    for pairs in sizes:
        begun = time.perf_counter()
        if before and begun + before * pairs > until:
            yield {"task": name, "pairs": pairs, "left_out": True}
            continue
        ends = z0[:pairs], z1[:pairs]
        found = M.geodesic(*ends, rtol=RTOL, n_starts=1, throw=False)
        for start, options in (("line", {"n_starts": 1}), ("result", {"init": found.curve})):

            def call(options: dict[str, Any] = options, ends: Any = ends) -> Any:
                return M.geodesic(*ends, rtol=RTOL, throw=False, **options)

            with limited("geodesic", 10**12, None) as budget:
                r = call()
                assert budget is not None
                decodings = budget.used / pairs
            spent = seconds(call)
            row = {"task": name, "pairs": pairs, "start": start, "sweeps": decodings / sweep}
            row |= {"decodings": decodings, "rate": pairs / spent, "limit": rate / decodings}
            row |= {"sweep_limit": rate / sweep, "value_limit": rate / _POINTS}
            known = min(pairs, some)
            error = quantiles((r.length[:known] / exact[:known] - 1).abs())[1]
            row |= {"error": error, "converged": int(r.converged.sum())}
            yield row
        before = (time.perf_counter() - begun) / pairs


def written(rows: list[Row], runs: dict[str, Any]) -> str:
    """The table in Markdown."""
    head = ["task", "start", "pairs", "decodings per pair", "sweeps", "pairs/s", "limit"]
    head += ["sweep limit", "p95", "converged"]
    lines = [_TITLE, "", f"rtol {RTOL:g}, float64, one thread. {_COLUMNS}", ""]
    lines += ["![Pairs a second](batches.png)", ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("| --- " * len(head) + "|")
    for row in rows:
        if row.get("left_out"):
            continue
        numbers = f"{row['decodings']:.0f} | {row['sweeps']:.2f} | {row['rate']:.3g}"
        limits = f"{row['limit']:.3g} | {row['sweep_limit']:.3g}"
        names = f"| {row['task']} | {row['start']} | {row['pairs']}"
        last = f"{row['error']:.0e} | {row['converged']} of {row['pairs']}"
        lines.append(f"{names} | {numbers} | {limits} | {last} |")
    missing = [f"{row['pairs']:,} pairs of {row['task']}" for row in rows if row.get("left_out")]
    if missing:
        lines += ["", f"Left out, because the time would not have sufficed: {', '.join(missing)}."]
    made = [f"{task}: {run}" for task, run in runs.items()]
    lines += ["", "Measured: " + "; ".join(made) + "."]
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Pairs per second against pairs, one panel a task, with the limits as lines."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if not row.get("left_out")]
    names = list(dict.fromkeys(row["task"] for row in rows))
    size = (4.4 * len(names), 4.2)
    figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        here = [row for row in rows if row["task"] == name]
        for start, label in (("line", "from lines"), ("result", "verified (init=)")):
            found = [row for row in here if row["start"] == start]
            x, colour = [row["pairs"] for row in found], _COLOURS[start]
            axis.plot(x, [row["rate"] for row in found], "o-", color=colour, label=label)
            limit = [row["limit"] for row in found]
            of = f"limit of its decodings, {label}"
            axis.plot(x, limit, "--", color=colour, linewidth=1, label=of)
        for kind, label, style in (
            ("sweep_limit", "one sweep per pair", ":"),
            ("value_limit", "17 values per pair", "-."),
        ):
            axis.axhline(here[0][kind], color="0.5", linestyle=style, linewidth=1, label=label)
        axis.set(xscale="log", yscale="log", title=str(PROBLEMS[name]), xlabel="pairs in a call")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(f"pairs per second, rtol {RTOL:g}, one thread")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure, write the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=[*_PAIRS], default=None)
    parser.add_argument("--minutes", type=float, default=6.0, help="that the run may take")
    parser.add_argument("--quick", action="store_true", help="few pairs: tests the machinery")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    source = arguments.out / "batches.json"
    kept: dict[str, Any] = {"runs": {}, "rows": {}}
    if source.exists() and arguments.task is not None:
        kept = json.loads(source.read_text())
    names = list(_PAIRS) if arguments.task is None else [arguments.task]
    for i, name in enumerate(names):
        # An equal share of what is left, so that what one task does not need goes to the next.
        now = time.perf_counter()
        until = now + (began + 60 * arguments.minutes - now) / (len(names) - i)
        day = datetime.now(timezone.utc).date().isoformat()
        kept["rows"][name] = []
        kept["runs"][name] = f"riemae {riemae.__version__}, torch {torch.__version__}, {day}"
        for row in measured(name, arguments.quick, until):
            print(row, flush=True)
            kept["rows"][name].append(row)
            arguments.out.mkdir(parents=True, exist_ok=True)
            source.write_text(json.dumps(kept, indent=1) + "\n")
        rows = [row for task in _PAIRS for row in kept["rows"].get(task, [])]
        (arguments.out / "batches.md").write_text(written(rows, kept["runs"]))
        draw(rows, arguments.out / "batches.png")


if __name__ == "__main__":
    main()
