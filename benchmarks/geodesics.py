"""Geodesics: time and error of riemae and other packages, on the same decoder, pairs and cores.

    make bench                                  # or: python -m benchmarks.geodesics
    python -m benchmarks.geodesics --short      # a quarter of an hour: all contenders on digits-8,
                                                # our solvers on a thousand pairs, m = 32 and m = 64
    python -m benchmarks.geodesics --quick      # two minutes, to test the program itself
    python -m benchmarks.geodesics --only "digits-32, 1,000 pairs"   # again, into the same tables

Writes ``geodesics.json``, ``geodesics.md`` and ``geodesics.png`` to ``benchmarks/results``;
``--short`` writes ``geodesics_short.*``, all of one run. A run that has an end (``--minutes``)
leaves out what does not fit, and says so in its table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

import riemae
from benchmarks import growth, report
from benchmarks.contenders import (
    CONTENDERS,
    MANY_DIMENSIONS,
    MANY_PAIRS,
    OURS,
    Contender,
    Settings,
    Worker,
)
from benchmarks.measure import by_collocation, lengths, quantiles
from benchmarks.peers import mlp
from benchmarks.problems import PAIRS, PROBLEMS, Problem, layers_of, prepare
from riemae import Manifold

RESULTS = Path(__file__).parent / "results"
_LIGHT = 5.0  # seconds; calls that take longer are not repeated
_COMPILING = 4.0  # a first call that compiles may take this many times the limit
_ALONE = 30.0  # the same for riemae where no other package takes part
_SHORT = (1e-2, 1e-3, 1e-4, 1e-5)  # what riemae is asked for in a short run
_LATE = "not tried: the time of this run was over"


@dataclass(frozen=True)
class Task:
    """Pairs of one problem.

    Attributes:
        problem: Decoder and pairs.
        pairs: How many of the pairs.
        alone: Whether each pair is solved by a call of its own; the time is then the median of the
            calls.
        ours: Whether only riemae takes part.
    """

    problem: Problem
    pairs: int
    alone: bool = False
    ours: bool = False

    def __str__(self) -> str:
        return f"{self.problem.name}, " + ("one pair" if self.alone else f"{self.pairs:,} pairs")


@dataclass
class Row:
    """One contender with one setting on one task, as it goes into the tables."""

    contender: str
    settings: Settings
    pairs: int
    first: float = float("nan")
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    sweeps: list[float] = field(default_factory=list)
    points: int = 0
    decodings: float | None = None
    missed: int | None = None
    failure: str | None = None
    found: Tensor | None = None
    reported: Tensor | None = None


def tasks(scope: str) -> list[Task]:
    """The tasks of a "full", "short" or "quick" run, problem by problem."""
    small, large, flat, images = PROBLEMS.values()
    if scope == "quick":
        return [Task(small, 16), Task(small, 2, alone=True)]
    if scope == "short":
        return [
            Task(large, 32, ours=True),
            Task(images, 8, ours=True),
            Task(small, 1000, ours=True),
            Task(small, 32),
            Task(small, 4, alone=True),
        ]
    return [
        Task(small, 32),
        Task(small, 4, alone=True),
        Task(small, 1000, ours=True),
        Task(large, 32),
        Task(large, 4, alone=True),
        Task(large, 1000, ours=True),
        Task(flat, 32),
        Task(flat, 200, ours=True),
        Task(images, 8),
        Task(images, 64, ours=True),
    ]


class Race:
    """All contenders on one problem, each in a process that is kept for all tasks.

    Args:
        path: Decoder and pairs.
        threads: Of each contender.
        limit: Seconds that a call may take.
        rounds: Timed calls of each setting.
        few: Number of pairs from which the time of all is computed, for contenders that solve one
            pair after the other.
        deadline: By ``time.perf_counter``; no call begins after it.
        short: Whether to spend little on what is not a comparison: on the unit of cost, and on
            tasks where no other package takes part. First calls count, unless they compile.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        limit: float,
        rounds: int,
        few: int,
        deadline: float = float("inf"),
        short: bool = False,
    ) -> None:
        self.path = path
        self.threads = threads
        self.limit = limit
        self.rounds = rounds
        self.few = few
        self.deadline = deadline
        self.short = short
        self.alone = _ALONE / 15 if short else _ALONE
        self.unit = _LIGHT / 10 if short else _LIGHT
        self.workers: dict[str, Worker] = {}
        self.folder = tempfile.TemporaryDirectory()
        file = np.load(path)
        layers = layers_of(file)
        self.formula = mlp.formula(layers)
        self.manifold = Manifold(mlp.decoder(layers, threads))
        self.ends = torch.from_numpy(file["z0"]), torch.from_numpy(file["z1"])

    def run(self, task: Task, contenders: list[tuple[Contender, list[Settings]]]) -> dict[str, Any]:
        """Time all contenders in turns, and compare with the best curves known."""
        rows = []
        for contender, settings in contenders:
            few = min(self.few, task.pairs) if contender.one_by_one else task.pairs
            rows += [(contender, Row(contender.name, s, few)) for s in settings]
        exhausted: set[str] = set()
        for i in range(self.rounds + 1):  # the first warms up libraries, caches and compilers
            for contender, row in rows:
                if contender.name in exhausted and i == 0:
                    row.failure = "not tried: a cheaper setting was over the limit"
                if row.failure is not None or (row.seconds and row.seconds[-1] > _LIGHT):
                    continue
                if time.perf_counter() > self.deadline:
                    if i == 0:
                        row.failure = _LATE
                    continue
                self._call(task, contender, row, i == 0)
                if row.failure is not None and row.failure.startswith("more than"):
                    exhausted.add(contender.name)
        return self._verdict(task, [row for _, row in rows])

    def _call(self, task: Task, contender: Contender, row: Row, warming: bool) -> None:
        out = Path(self.folder.name) / "found.npz"
        limit = self.limit * (
            self.alone if task.ours else _COMPILING if warming and contender.jax else 1
        )
        worker = self.workers.get(contender.module)
        if worker is None:
            worker = Worker(contender.module, self.path, self.threads, contender.jax)
            self.workers[contender.module] = worker
            if (
                not contender.jax
            ):  # imports and caches; a compiler runs again for another number of pairs
                worker.solve((0, 1), False, row.settings, out, 60 + limit)
        clock = time.perf_counter()
        answer = worker.solve((0, row.pairs), task.alone, row.settings, out, limit)
        wall = time.perf_counter() - clock
        if "error" in answer:
            if not row.seconds:  # a measured first call is kept
                row.failure = answer["error"]
            print(f"  {row.contender} {row.settings}: {answer['error']}", flush=True)
            return
        row.points, row.missed = answer["points"], answer["missed"]
        row.decodings = answer["decodings"]
        # One pair after the other: the time of all is computed from that of a few.
        scale = 1 if task.alone else task.pairs / row.pairs
        if warming:
            row.first = answer["seconds"] * scale
            self._keep(row, out)
            print(f"  {row.contender} {row.settings}: {wall:.2f} s", flush=True)
        counts = not contender.jax and (self.short or answer["seconds"] > _LIGHT)
        if not warming or counts:
            row.seconds.append(answer["seconds"] * scale)
            row.cpu.append(answer["cpu"] * scale)
            unit = min(self.sweep(row.points, row.settings.get("dtype", "float64")).values())
            row.sweeps.append(answer["seconds"] / unit)

    def _keep(self, row: Row, out: Path) -> None:
        file = np.load(out)
        parts = [torch.from_numpy(file[name]) for name in file.files if name.startswith("nodes")]
        start = 0
        found = []
        with torch.no_grad():
            for nodes in parts:
                z0, z1 = (z[start : start + len(nodes)] for z in self.ends)
                missed = torch.maximum(
                    (nodes[:, 0] - z0).norm(dim=-1), (nodes[:, -1] - z1).norm(dim=-1)
                )
                apart = missed > 1e-3 * (z1 - z0).norm(
                    dim=-1
                )  # a curve that joins other points does not count
                found.append(lengths(self.manifold, nodes).masked_fill(apart, torch.nan))
                start += len(nodes)
        row.found = torch.cat(found)
        row.reported = torch.from_numpy(file["reported"]) if "reported" in file.files else None

    def sweep(self, points: int, dtype: str = "float64") -> dict[str, float]:
        """Seconds for the decoder and its full Jacobian at so many points, by riemae and by nothing
        but torch.
        """
        worker = self.workers.setdefault("sweep", Worker("sweep", self.path, self.threads))
        out = Path(self.folder.name) / "sweep.npz"
        found = {}
        for by in ("riemae", "torch"):
            settings = {"points": points, "dtype": dtype, "by": by}
            repeats = 9 if points < 2000 else 3  # short times are easily disturbed
            seconds: list[float] = []
            # The first call costs more, because riemae examines the decoder.
            worker.solve((0, PAIRS), False, {**settings, "points": 16}, out, 600)
            while len(seconds) < repeats and sum(seconds) < self.unit:
                answer = worker.solve((0, PAIRS), False, settings, out, 600)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                seconds.append(answer["seconds"])
            found[by] = median(seconds)
        return found

    def _verdict(self, task: Task, rows: list[Row]) -> dict[str, Any]:
        reference, converged, cross = self._reference(task)
        best = reference.clone()
        for row in rows:
            if (
                row.found is not None
            ):  # a curve between the same points, whose length bounds the distance
                known = row.found.nan_to_num(torch.inf)
                best[: len(known)] = torch.minimum(best[: len(known)], known)
        shorter = int(((reference - best) > 1e-6 * best).sum())
        return {
            "task": str(task),
            "problem": task.problem.name,
            "decoder": str(task.problem),
            "pairs": task.pairs,
            "alone": task.alone,
            "ours": task.ours,
            "limit": self.limit,
            "reference": {
                "converged": converged,
                "accuracy": 10 * task.problem.accuracy,
                "collocation": cross,
                "shorter_known": shorter,
            },
            "sweep": self.sweep(17 * (1 if task.alone else task.pairs)),
            "rows": [_entry(row, best) for row in rows],
        }

    def _reference(self, task: Task) -> tuple[Tensor, int, list[float]]:
        """Lengths by riemae to the accuracy of the problem, how many have it, and how far
        collocation is from the first of them.
        """
        z0, z1 = (z[: task.pairs] for z in self.ends)
        accuracy = task.problem.accuracy
        r = self.manifold.geodesic(z0, z1, rtol=accuracy, throw=False)
        converged = int((r.error <= 10 * accuracy * r.length).sum())
        found = lengths(self.manifold, r.curve.nodes)
        cross = []
        # In the plane several geodesics join two points, and 64 unknown functions are too many for
        # collocation.
        for i in range(min(task.pairs, 2) if task.problem.m == 8 and not task.ours else 0):
            nodes = torch.from_numpy(by_collocation(self.formula, z0[i], z1[i]).copy())
            cross.append(float(lengths(self.manifold, nodes[None])[0] / found[i] - 1))
        return found, converged, cross

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.stop()
        self.folder.cleanup()


def _entry(row: Row, best: Tensor) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "contender": row.contender,
        "settings": row.settings,
        "failure": row.failure,
    }
    if row.seconds and row.found is not None:
        best = best[: len(row.found)]
        entry |= {
            "first": row.first,
            "seconds": row.seconds,
            "cpu": row.cpu,
            "sweeps": median(row.sweeps),
            "points": row.points,
            "decodings": row.decodings,
            "missed": row.missed,
            "timed_on": row.pairs,
            "error": quantiles((row.found / best - 1).abs()),
            "reported": None
            if row.reported is None
            else quantiles((row.reported / best - 1).abs()),
        }
    elif row.failure is None:
        entry["failure"] = "no time was taken"
    return entry


def _machine(threads: int) -> dict[str, Any]:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "riemae": riemae.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "system": f"{platform.system()} {platform.release()}",
    }


def main() -> None:
    """Measure, write the results, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument(
        "--quick", action="store_true", help="few pairs and settings: tests the machinery"
    )
    scope.add_argument(
        "--short", action="store_true", help="some tasks in one run, into tables of their own"
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="no call begins later (--short: 14)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--limit", type=float, default=None, help="seconds that one call of a contender may take"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", default=None, help="the task, or the kind of growth, whose name begins like this"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scope = "quick" if arguments.quick else "short" if arguments.short else "full"
    limit = arguments.limit or {"quick": 10.0, "short": 15.0, "full": 20.0}[scope]
    minutes = arguments.minutes or (14.0 if scope == "short" else float("inf"))
    started = time.perf_counter()
    results: dict[str, Any] = {"machine": _machine(arguments.threads), "quick": arguments.quick}
    results |= {"tasks": [], "versions": {}, "growth": [], "minutes": 0.0, "scope": scope}
    results["left_out"] = []
    name = "geodesics_short" if scope == "short" else "geodesics"
    source = arguments.out / f"{name}.json"
    if arguments.only is not None and source.exists():
        results = {"left_out": [], **json.loads(source.read_text())}
    wanted = lambda name: arguments.only is None or name.startswith(arguments.only)  # noqa: E731 (one expression)

    def save() -> None:
        """Write what is measured so far, after every task, because a run may be interrupted."""
        arguments.out.mkdir(parents=True, exist_ok=True)
        source.write_text(json.dumps(results, indent=1))

    chosen_tasks = [task for task in tasks(scope) if wanted(str(task))]
    for problem, group in groupby(chosen_tasks, key=lambda task: task.problem):
        race = Race(
            prepare(problem),
            arguments.threads,
            limit,
            rounds=2 if scope == "short" else 3,
            few=2 if scope == "quick" else 8,
            deadline=started + 60 * minutes,
            short=scope == "short",
        )
        try:
            for task in group:
                if time.perf_counter() > race.deadline:
                    results["left_out"].append(str(task))
                    continue
                print(f"{task}, {problem}", flush=True)
                _put(results["tasks"], race.run(task, entrants(task, scope)), "task")
                results["versions"] |= {
                    name: w.versions for name, w in race.workers.items() if w.versions
                }
                save()
        finally:
            race.close()
    for kind in filter(wanted, () if scope == "short" else growth.SIZES):
        print(f"growth with {kind}", flush=True)
        _put(results["growth"], growth.measure(kind, arguments.threads, arguments.quick), "kind")
    results["minutes"] += (time.perf_counter() - started) / 60
    save()
    report.write(results, arguments.out, name)


def _put(entries: list[dict[str, Any]], new: dict[str, Any], name: str) -> None:
    """Append an entry, or replace the one with the same name."""
    for i, entry in enumerate(entries):
        if entry[name] == new[name]:
            entries[i] = new
            return
    entries.append(new)


def entrants(task: Task, scope: str) -> list[tuple[Contender, list[Settings]]]:
    """Who takes part in a task, and with which settings."""
    if task.ours:
        if scope != "short":
            settings = [{"rtol": 1e-4}, {"rtol": 1e-4, "dtype": "float32"}, {"rtol": 1e-6}]
            return [(OURS, settings)]
        own = MANY_PAIRS if task.problem.m == 8 else MANY_DIMENSIONS
        return [(contender, list(contender.settings)) for contender in own]
    chosen = []
    for contender in CONTENDERS:
        settings = list(contender.settings)
        if scope == "quick":
            settings = [settings[i] for i in contender.quick]
        elif scope == "short" and contender is OURS:
            settings = [s for s in settings if s["rtol"] in _SHORT]
        if contender.images or not task.problem.convolutional:
            chosen.append((contender, settings))
    return chosen


if __name__ == "__main__":
    main()
