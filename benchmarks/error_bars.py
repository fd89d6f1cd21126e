"""How reliable are status and error bar? Lengths compared with the true distances, for all spaces,
solvers, tolerances and dtypes.

    python -m benchmarks.error_bars                        # all; earlier measurements are kept
    python -m benchmarks.error_bars --solver default       # the main table: an hour on one core
    python -m benchmarks.error_bars --solver default --workers 2  # the same in half of the time
    python -m benchmarks.error_bars --only "sine .45 m=2"  # spaces with this name, measured anew
    python -m benchmarks.error_bars --quick                # tests the program itself

After each space the rows are written to ``benchmarks/results/error_bars.json`` and the tables to
``docs/error_bars.md``, between its markers. A run that was ended goes on from there. ``--anew``
drops the rows of the chosen solvers and spaces first, as is necessary after changes of the solvers.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.error_cases import CLOSED, DIGITS, FLAT, STEEP, WIDE, Case, Problem, cases
from riemae import solvers
from riemae.solvers import (
    BVP,
    GEORCE,
    LBFGS,
    Adam,
    CubicSpline,
    GaussNewton,
    Newton,
    NewtonCG,
    QuasiNewton,
    Shooting,
    Spectral,
    Status,
)

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "error_bars.json", ROOT / "docs" / "error_bars.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Row = dict[str, Any]
# Allowance for the rounding of the length, of the truth, and of the data of the truth.
SLACK = {torch.float64: 1e-12, torch.float32: 1e-7}
# Neither errors nor what is claimed of them count less than this share of the length: rounding.
FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6}
_FIRST = 10  # pairs whose time predicts that of the others
_FEWEST = 2  # the same, where the first ones take too long
_OVERRUN = 3.0  # a block that takes this many times its limit is ended
_FORK = multiprocessing.get_context("fork")  # spaces are functions, which cannot be pickled


@dataclass(frozen=True)
class Plan:
    """How a solver is measured.

    Attributes:
        solver: Its settings, or None for the package's default, which is Newton, or NewtonCG in
            many dimensions.
        pairs: The largest number for each space.
        tolerances: By dtype.
        limit: Seconds of processor time for one cell of the table.
        compact: Whether it is measured where only some solvers are affordable.
        smooth: Whether it is measured on smooth spaces only.
    """

    solver: solvers.Solver | None
    pairs: int
    tolerances: dict[torch.dtype, tuple[float, ...]]
    limit: float
    compact: bool = False
    smooth: bool = False

    def covers(self, case: Case) -> bool:
        """Whether it is measured on this space."""
        return (self.compact or not case.compact) and (not self.smooth or case.kind == "smooth")


_ALL = {
    torch.float64: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
    torch.float32: (1e-2, 1e-3, 1e-4),
}
_SOME = {torch.float64: (1e-2, 1e-4, 1e-6), torch.float32: (1e-3,)}
_LOOSE = (1e-2, 1e-3, 1e-4)
PLANS = {
    "default": Plan(None, 200, _ALL, 4.0, compact=True),
    "newton_cg": Plan(NewtonCG(), 20, _SOME, 3.0, compact=True),
    "quasi_newton": Plan(QuasiNewton(), 20, _SOME, 3.0),
    # Polynomials are for smooth spaces; what they do not settle there is QuasiNewton's.
    "spectral": Plan(Spectral(), 20, _SOME, 3.0, compact=True, smooth=True),
    "newton, whole": Plan(Newton(whole=True), 20, _SOME, 3.0, compact=True, smooth=True),
    "gauss_newton": Plan(GaussNewton(), 20, _SOME, 3.0, compact=True, smooth=True),
    "lbfgs": Plan(LBFGS(), 10, _SOME, 2.0),
    "georce": Plan(GEORCE(), 10, _SOME, 2.0),
    "spline": Plan(CubicSpline(max_steps=1000), 10, _SOME, 2.0),
    "adam": Plan(Adam(max_steps=2000), 10, _SOME, 2.0),
    "shooting": Plan(Shooting(), 4, _SOME, 2.0),
    "bvp": Plan(BVP(), 4, _SOME, 2.0),
}
# Rows of this name count shorter geodesics elsewhere, at one tolerance.
SEARCH, SEARCH_RTOL = "search", 1e-3
QUICK = ("sine .45 m=2", "leaky m=1", "half plane")


def processor_time() -> float:
    """Processor time in seconds of this process and of child processes that have ended."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system


@dataclass
class Tally:
    """Pair by pair: length, claimed error, truth, status."""

    length: Tensor
    error: Tensor
    truth: Tensor
    status: Tensor

    @classmethod
    def cat(cls, parts: list[Tally]) -> Tally:
        """Several blocks joined to one."""
        fields = ("length", "error", "truth", "status")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in fields))

    def counts(self, rtol: float, dtype: torch.dtype) -> Row:
        """The counts for the tables, over all pairs whose true distance is known."""
        slack = SLACK[dtype]
        known = self.truth.isfinite()
        length, error, truth, status = (
            x[known] for x in (self.length, self.error, self.truth, self.status)
        )
        off = ((length - truth).abs() - slack * truth).clamp(min=0)
        converged = status == Status.CONVERGED
        missed = ~(off <= rtol * truth) & converged
        claims = error.isfinite() & length.isfinite()
        within = claims & (off <= error)
        tenfold = claims & (off <= 10 * error)
        floor = FLOOR[dtype] * truth
        real, claimed = torch.maximum(off, floor), torch.maximum(error, floor)
        close = claims & (real <= 10 * claimed) & (claimed <= 10 * real)
        worst = (off / (rtol * truth))[converged & (truth > 0)]
        shares = torch.where(off > 0, off / error, 0.0)[converged]
        others = Counter(Status(code).name.lower() for code in status[~converged].tolist())
        return {
            "pairs": int(known.sum()),
            "unknown": int((~known).sum()),
            "converged": int(converged.sum()),
            "beyond": int(missed.sum()),
            "beyond_3": int((missed & ~(off <= 3 * rtol * truth)).sum()),
            "worst": float(worst.max()) if len(worst) else 0.0,
            "covered": int((within & converged).sum()),
            "covered_10": int((tenfold & converged).sum()),
            "close": int((close & converged).sum()),
            "claims": int((claims & ~converged).sum()),
            "claims_covered": int((within & ~converged).sum()),
            "median": float(shares.median()) if len(shares) else 0.0,
            "others": dict(sorted(others.items())),
        }


def tally(
    problem: Problem, rows: slice, rtol: float, solver: solvers.Solver | None, seconds: float
) -> Tally | None:
    """These pairs solved in a process of their own, or None when they exceed the limit of
    processor time.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_solve, args=(sender, problem, rows, rtol, solver, seconds))
    process.start()
    sender.close()
    try:
        return Tally(*map(torch.from_numpy, receiver.recv()))
    except EOFError:  # the process ended without a result
        process.join()
        if process.exitcode != -signal.SIGPROF:
            raise RuntimeError(f"{solver} ended with exit code {process.exitcode}") from None
        return None
    finally:
        process.join()


def _solve(
    sender: Connection,
    problem: Problem,
    rows: slice,
    rtol: float,
    solver: solvers.Solver | None,
    seconds: float,
) -> None:
    torch.set_num_threads(1)  # a forked process lacks its parent's threads
    # By default this signal ends the process, wherever it is.
    signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-6))  # 0 would switch the timer off
    r = solvers.geodesic(
        problem.space,
        problem.z0[rows],
        problem.z1[rows],
        rtol=rtol,
        solver=solver,
        throw=False,
        n_starts=1,
    )
    truth = problem.truth(r, rows)
    signal.setitimer(signal.ITIMER_PROF, 0)
    sender.send([x.numpy() for x in (r.length.double(), r.error.double(), truth, r.status)])


def measure(
    case: Case, name: str, plan: Plan, rtol: float, dtype: torch.dtype, problem: Problem
) -> Row:
    """One cell of the table: as many pairs as the limit of time allows."""
    total, parts, done, cut = min(case.pairs, plan.pairs), [], 0, 0
    began = processor_time()
    size = min(total, _FIRST)
    while done < total and size:
        left = plan.limit - (processor_time() - began)
        part = tally(
            problem,
            slice(done, done + size),
            rtol,
            plan.solver,
            _OVERRUN * max(left, plan.limit / 4),
        )
        if part is None and not parts and size > _FEWEST:
            size = _FEWEST
            continue
        if part is None:
            cut = size
            break
        parts.append(part)
        done += size
        spent = processor_time() - began
        # How many pairs fit into the remaining time, if they take as long as those before.
        size = min(total - done, int((plan.limit - spent) / spent * done))
    counts = Tally.cat(parts).counts(rtol, dtype) if parts else {"pairs": 0}
    return {
        "space": case.name,
        "group": case.group,
        "kind": case.kind,
        "m": case.m,
        "solver": name,
        "dtype": str(dtype).removeprefix("torch."),
        "rtol": rtol,
        **counts,
        "given_up": cut,
        "seconds": round(processor_time() - began, 2),
    }


def searched(case: Case) -> Row:
    """How many pairs of a case have a shorter geodesic elsewhere."""
    assert case.search is not None
    began = processor_time()
    counts = case.search(SEARCH_RTOL)
    return {
        "space": case.name,
        "group": case.group,
        "kind": case.kind,
        "m": case.m,
        "solver": SEARCH,
        "dtype": "float64",
        "rtol": SEARCH_RTOL,
        **counts,
        "seconds": round(processor_time() - began, 2),
    }


def cells(case: Case, plan: Plan, quick: bool) -> Iterator[tuple[torch.dtype, float]]:
    """The dtypes and tolerances of a case."""
    for dtype, tolerances in plan.tolerances.items():
        for rtol in tolerances:
            if (case.loose and rtol not in _LOOSE) or (quick and rtol not in (1e-2, 1e-4)):
                continue
            yield dtype, rtol


# The page.


def total(rows: list[Row]) -> Row:
    """Several cells joined to one; its median is that of the cells' medians."""
    rows = [row for row in rows if row["pairs"]]
    added = (
        "pairs",
        "converged",
        "beyond",
        "beyond_3",
        "covered",
        "covered_10",
        "close",
        "claims",
        "claims_covered",
    )
    others: Counter[str] = Counter()
    for row in rows:
        others.update(row["others"])
    return {
        **{key: sum(row[key] for row in rows) for key in added},
        "worst": max((row["worst"] for row in rows), default=0.0),
        "median": median([row["median"] for row in rows if row["converged"]] or [0.0]),
        "others": dict(others.most_common()),
    }


def share(part: int, whole: int) -> str:
    """A percentage that is rounded to 100 only when it is exactly 100."""
    if not whole:
        return ""
    percent = 100 * part / whole
    if part == whole:
        return "100 %"
    return f"{min(percent, 99.9):.{1 if percent >= 99 else 0}f} %"


def _by(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _summary(rows: list[Row], *keys: str) -> list[str]:
    headings = (
        *keys,
        "pairs",
        "CONVERGED",
        "beyond rtol",
        "beyond 3 rtol",
        "worst, in rtol",
        "`error` covers",
    )
    headings += (
        "10 × `error` covers",
        "within a factor of 10",
        "median of off/`error`",
        "others: `error` covers",
        "other statuses",
    )
    lines = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for names, cell in _by(rows, *keys).items():
        t = total(cell)
        if not t["pairs"]:
            continue
        shown = (f"{name:g}" if isinstance(name, float) else name for name in names)
        counts = (t["pairs"], t["converged"], t["beyond"], t["beyond_3"], f"{t['worst']:.2g}")
        shares = (
            share(t["covered"], t["converged"]),
            share(t["covered_10"], t["converged"]),
            share(t["close"], t["converged"]),
            f"{t['median']:.2g}",
        )
        rest = (
            share(t["claims_covered"], t["claims"]),
            ", ".join(f"{n} {name}" for name, n in t["others"].items()),
        )
        lines.append(f"| {' | '.join(map(str, (*shown, *counts, *shares, *rest)))} |")
    return [*lines, ""]


def _spaces(rows: list[Row]) -> list[str]:
    """A line per space, a column per tolerance."""
    tolerances = sorted({row["rtol"] for row in rows}, reverse=True)
    lines = [
        f"| space | | {' | '.join(f'{rtol:g}' for rtol in tolerances)} |",
        "| --- " * (2 + len(tolerances)) + "|",
    ]
    for (name, kind), cell in _by(rows, "space", "kind").items():
        found = {row["rtol"]: row for row in cell}
        shown = []
        for rtol in tolerances:
            row = found.get(rtol)
            if row is None:
                shown.append("")
                continue
            if not row["pairs"]:
                shown.append("none in time")
                continue
            beyond = f"**{row['beyond']}**" if row["beyond"] else "0"
            shown.append(
                f"{beyond} of {row['converged']}, {share(row['covered'], row['converged']) or '–'}"
            )
        lines.append(f"| {name} | {'' if kind == 'smooth' else kind} | {' | '.join(shown)} |")
    return [*lines, ""]


def _elsewhere(rows: list[Row]) -> list[str]:
    """Of how many pairs a shorter geodesic is known than the one that was found."""
    lines = [
        "## Shorter geodesics elsewhere",
        "",
        f"Pairs of which a geodesic is known that is shorter by more than {SEARCH_RTOL:g}, by the "
        "settings of the call that did not find it.",
        "",
        "| space | pairs | `n_starts=1` | default | `n_starts=8` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        counts = (row[key] for key in ("space", "pairs", "one_start", "bare", "eight_starts"))
        lines.append(f"| {' | '.join(map(str, counts))} |")
    return [*lines, ""]


def tables(rows: list[Row]) -> list[str]:
    """The text between the markers."""
    lines = [
        f"Measured with torch {torch.__version__.split('+')[0]}. The processor time of each cell "
        "is limited, so that hard spaces have fewer pairs. *Beyond*: CONVERGED, and further from "
        "the truth than rtol allows. For rounding, "
        f"{SLACK[torch.float64]:g} of the length is allowed in addition, and "
        f"{SLACK[torch.float32]:g} in float32. *Within a factor of 10*: neither is more than ten "
        f"times the other, of which none counts less than {FLOOR[torch.float64]:g} of the length, "
        f"{FLOOR[torch.float32]:g} in float32.",
        "",
    ]
    own = [row for row in rows if row["solver"] == "default"]
    exact = [row for row in own if row["dtype"] == "float64"]
    if own:
        lines += ["## The default solver", "", *_summary(own, "group", "dtype", "rtol")]
    for group in (FLAT, CLOSED, DIGITS, STEEP, WIDE):
        mine = [row for row in exact if row["group"] == group]
        if mine:
            lines += [f"## The default solver in float64, space by space: {group}", ""]
            lines += [
                "CONVERGED beyond rtol of all CONVERGED, and the share of these that `error` "
                "covers.",
                "",
            ]
            lines += _spaces(mine)
    found = [row for row in rows if row["solver"] == SEARCH]
    if found:
        lines += _elsewhere(found)
    rest = [row for row in rows if row["solver"] not in ("default", SEARCH)]
    if rest:
        lines += [
            "## Every solver",
            "",
            "On fewer pairs. With some of them one pair of digits in two dimensions ends 2.4e-3",
            "above its shortest geodesic at every tolerance: in another valley.",
            "",
            *_summary(rest, "solver", "group", "dtype", "rtol"),
        ]
    return lines


def write(rows: list[Row], results: Path, page: Path) -> None:
    """Write both files; the text of the page outside the markers is kept."""
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", "utf-8")
    text = (
        page.read_text("utf-8")
        if page.exists()
        else f"# How reliable is the error bar\n\n{BEGIN}\n{END}\n"
    )
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n" + "\n".join(tables(rows)) + f"{END}{tail}", "utf-8")


def _key(row: Row) -> tuple[str, str, str, float]:
    return row["solver"], row["space"], row["dtype"], row["rtol"]


@dataclass(frozen=True)
class Task:
    """What is missing of one solver on one space; all of it can be handed to another process.

    Attributes:
        solver: The name of the plan.
        space: The name of the case.
        plan: The plan.
        cells: Dtypes and tolerances.
        search: Whether shorter geodesics elsewhere are counted, too.
    """

    solver: str
    space: str
    plan: Plan
    cells: tuple[tuple[torch.dtype, float], ...]
    search: bool

    def rows(self) -> list[Row]:
        """Measure."""
        torch.set_num_threads(1)
        case = next(case for case in cases() if case.name == self.space)
        rows = [searched(case)] if self.search else []
        problems: dict[torch.dtype, Problem] = {}
        for dtype, rtol in self.cells:
            if dtype not in problems:
                problems[dtype] = case.make(min(case.pairs, self.plan.pairs), dtype)
            row = measure(case, self.solver, self.plan, rtol, dtype, problems[dtype])
            print(_told(row), flush=True)
            rows.append(row)
        return rows


def tasks(
    chosen: list[Case], plans: dict[str, Plan], rows: list[Row], quick: bool
) -> Iterator[Task]:
    """What is missing in ``rows``, solver by solver and space by space."""
    known = {_key(row) for row in rows}
    for name, plan in plans.items():
        for case in chosen:
            if not plan.covers(case):
                continue
            missing = tuple(
                (dtype, rtol)
                for dtype, rtol in cells(case, plan, quick)
                if (name, case.name, str(dtype).removeprefix("torch."), rtol) not in known
            )
            search = name == "default" and case.search is not None and not quick
            search = search and (SEARCH, case.name, "float64", SEARCH_RTOL) not in known
            if missing or search:
                yield Task(name, case.name, plan, missing, search)


def run(
    chosen: list[Case],
    plans: dict[str, Plan],
    rows: list[Row],
    quick: bool,
    save: Callable[[list[Row]], None],
    workers: int,
) -> None:
    """Measure what is missing in ``rows``, a space at a time in each of the workers.

    ``save`` is called after each space.
    """
    order = {
        (name, case.name): (i, j)
        for i, name in enumerate((*PLANS, SEARCH))
        for j, case in enumerate(cases())
    }

    def place(row: Row) -> tuple[Any, ...]:
        at = order[row["solver"], row["space"]]
        return (*at, row["dtype"] != "float64", -row["rtol"])

    def done(found: list[Row]) -> None:
        rows.extend(found)
        rows.sort(key=place)
        save(rows)

    todo = list(tasks(chosen, plans, rows, quick))
    if workers == 1:
        for task in todo:
            done(task.rows())
        return
    with ProcessPoolExecutor(workers, mp_context=_FORK) as pool:
        for future in as_completed([pool.submit(Task.rows, task) for task in todo]):
            done(future.result())


def _told(row: Row) -> str:
    where = f"{row['solver']:10} {row['space']:34} {row['dtype']} {row['rtol']:g}: "
    if not row["pairs"]:
        return f"{where}nothing after {row['seconds']} s"
    covers = share(row["covered"], row["converged"])
    return (
        f"{where}{row['converged']} of {row['pairs']} converged, {row['beyond']} beyond, "
        f"{row['beyond_3']} beyond 3, "
        f"worst {row['worst']:.2g} rtol, covers {covers}, {row['others']}, {row['seconds']} s"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three spaces, few pairs; writes nothing without --folder",
    )
    parser.add_argument(
        "--only", default="", help="spaces whose name or group holds this, measured anew"
    )
    parser.add_argument(
        "--solver", choices=PLANS, action="append", help="may be given several times"
    )
    parser.add_argument(
        "--anew", action="store_true", help="forget what was measured of these solvers before"
    )
    parser.add_argument(
        "--rtol", type=float, action="append", help="of those that are measured; several times"
    )
    parser.add_argument(
        "--limit", type=float, help="seconds of processor time for one cell of the tables"
    )
    parser.add_argument("--pairs", type=int, help="at most, of every space")
    parser.add_argument("--workers", type=int, default=1, help="processes that measure at a time")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where error_bars.json and error_bars.md go, in place of their own",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results, page = RESULTS, PAGE
    if options.folder:
        results, page = options.folder / RESULTS.name, options.folder / PAGE.name

    chosen = [case for case in cases() if options.only in case.name or options.only in case.group]
    plans = {name: plan for name, plan in PLANS.items() if name in (options.solver or PLANS)}
    pairs = options.pairs or (5 if options.quick else math.inf)
    if options.quick:
        chosen = [case for case in chosen if case.name in QUICK]
        plans = {name: plan for name, plan in plans.items() if name in ("default", "newton_cg")}
    plans = {
        name: replace(
            plan,
            pairs=int(min(plan.pairs, pairs)),
            limit=options.limit or plan.limit,
            tolerances={
                dtype: tuple(rtol for rtol in tolerances if rtol in (options.rtol or tolerances))
                for dtype, tolerances in plan.tolerances.items()
            },
        )
        for name, plan in plans.items()
    }
    rows: list[Row] = json.loads(results.read_text("utf-8")) if results.exists() else []
    if options.only or options.anew:
        again = {(name, case.name) for name in plans for case in chosen}
        if options.anew and "default" in plans:
            again |= {(SEARCH, case.name) for case in chosen}
        rows = [
            row
            for row in rows
            if (row["solver"], row["space"]) not in again
            or (options.rtol and row["rtol"] not in options.rtol)
        ]

    silent = options.quick and not options.folder
    with warnings.catch_warnings():
        # The package warns once per space that kinks make it slow.
        warnings.simplefilter("ignore")
        run(
            chosen,
            plans,
            rows,
            options.quick,
            (lambda _: None) if silent else (lambda r: write(r, results, page)),
            options.workers,
        )
    print("\n".join(tables(rows)))


if __name__ == "__main__":
    main()
