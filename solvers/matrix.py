"""Distances between all points of two sets, block by block: on any executor, and into a file that a
killed run resumes.

The blocks, and with them every bit of the result, depend on the problem alone: neither on the
executor nor on the order in which blocks finish.
"""

from __future__ import annotations

import math
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor

from riemae.exceptions import (
    DTypeError,
    GraphError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
    TransferError,
)
from riemae.numerics.checks import expect_rtol, expect_values
from riemae.numerics.tolerances import tolerance
from riemae.solvers.graph import GRAPH_RTOL, Weight, check_weight
from riemae.solvers.graph import graph as build_graph
from riemae.solvers.hooks import features_of, solver_of
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import Status, remedies
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import Space
from riemae.storage.blocks import BlockFile
from riemae.storage.digests import digest
from riemae.storage.identity import fingerprint, parts

Method = Literal["geodesic", "graph", "chord"]

# Geodesics a block: enough for the solver to work at full speed, few enough that a killed run loses
# seconds.
_FEWEST_PAIRS, _MOST_PAIRS, _WANTED_BLOCKS = 64, 1024, 256
# Whole rows a block where a distance costs next to nothing: bounded by memory.
_ROW_BYTES, _ROW_BLOCKS = 64 * 2**20, 64
# Blocks that an executor holds at once: more than the workers of most clusters, fewer than would
# fill a memory.
_IN_FLIGHT = 256
# Points, and pairs of them, whose lengths tell whether a file is of the same space.
_PROBES, _FEWEST_PROBES, _PROBED_AT_ONCE = 2048, 64, 128


@dataclass(frozen=True, eq=False)
class DistanceMatrix:
    """Distances between all points of two sets, and which of them miss their accuracy.

    Attributes:
        distances: ``(n, q)``; NaN where a failed geodesic has no length. Mapped from the file where
            there is one.
        failed: Rows and columns of the distances that miss ``rtol``, ``(f, 2)`` int64; one entry a
            solved pair.
        status: Their :class:`~riemae.solvers.Status` codes, ``(f,)`` int64.
        rtol: The relative accuracy that was asked for.
    """

    distances: Tensor
    failed: Tensor
    status: Tensor
    rtol: float

    def summary(self) -> str:
        """How many pairs failed, with which status, and the first of them."""
        counts = Counter(self.status.tolist())
        named = ", ".join(
            f"{count} {Status(code).name.lower()}" for code, count in sorted(counts.items())
        )
        first = ", ".join(str(tuple(pair)) for pair in self.failed[:3].tolist())
        return f"{named} (first pairs: {first})" if named else "all converged"

    def __repr__(self) -> str:
        n, q = self.distances.shape
        return f"DistanceMatrix({n} x {q}: {self.summary()} at rtol={self.rtol:g})"


def distance_matrix(
    space: Space,
    a: Tensor,
    b: Tensor | None = None,
    *,
    method: Method = "geodesic",
    rtol: float | None = None,
    solver: Solver | None = None,
    k: int = 10,
    weight: Weight = "length",
    block_size: int | None = None,
    executor: Executor | None = None,
    out: str | PathLike[str] | None = None,
    identity: Mapping[str, object] | None = None,
    throw: bool = True,
    progress: Progress | bool | None = None,
) -> DistanceMatrix:
    """Distances between all points of ``a`` and all of ``b``; not differentiable.

    Args:
        space: Anything with the :class:`Space` protocol.
        a: ``(n, m)``.
        b: ``(q, m)``; ``a`` itself unless given, and then every pair is solved once.
        method: ``"geodesic"``: solved to ``rtol``; ``"graph"``: shortest paths on the
            ``k``-nearest-neighbour graph of all points, not shorter but for the accuracy of its
            edges; ``"chord"``: straight through the ambient space, never longer.
        rtol: Relative accuracy, by default 1e-4 of geodesics, 1e-3 in float32, and 1e-2 of the
            edges of a graph.
        solver: Settings of the path solver, as in :func:`geodesic`.
        k: Neighbours per point in the graph.
        weight: Of the graph's edges, as in :func:`~riemae.solvers.graph`.
        block_size: Distances a block: what is computed, and written, at once. Chosen by work and
            memory unless given.
        executor: Any ``concurrent.futures.Executor``: processes, threads, or a cluster's, such as
            Dask's ``Client.get_executor()``; the result has the same bits as without. A block is
            computed on one thread, here too. Geodesics take turns within a process, because torch's
            forward mode is not safe in threads: only processes make them faster. Other processes
            get the space by ``cloudpickle`` where it is installed, else by ``pickle``.
        out: A file for the result, in numpy's ``.npy`` format, described by ``out.json`` beside it.
            Until it is complete, finished blocks lie in the folder ``out.blocks``, and the same
            call takes them from there. One process writes it at a time: ``out.lock`` names it.
        identity: What the file must agree on when it is found again, by name: strings as they are,
            anything else by the tensors, modules, settings and captured variables that it is made
            of. By default ``space`` itself. Besides, lengths at up to 2048 points and along as many
            lines between them must be the same.
        throw: Raise when a geodesic misses ``rtol``; False returns the result, in which ``failed``
            names them.
        progress: Called with (distances done, distances in all), of which building a graph is the
            first half; True shows a bar.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the complete
            result, and the file is complete, too.
        ShapeError: When ``a`` or ``b`` has more or fewer than two axes, or they differ in
            dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: For an unknown method, or a block size below 1.
        GraphError: When ``method="chord"`` and the space knows no ambient distance.
        TransferError: When the space cannot be sent to another process.
        FileError: When ``out`` is not a path, holds something else, is damaged, is being written by
            another process, or cannot be written (finished blocks stay, and the same call goes on).
    """
    _check(a, b, method, block_size, executor, solver)
    check_weight("distance_matrix", weight)
    usual = GRAPH_RTOL if method == "graph" else tolerance(a.dtype).geodesic
    rtol = usual if rtol is None else expect_rtol("distance_matrix", rtol)
    with reported("distance_matrix", progress, "distances") as report:
        task = _Task(
            space, a.detach(), None if b is None else b.detach(), method, rtol, solver, k, weight
        )
        result = _run(task, block_size, executor, out, identity, report)
    if throw and len(result.failed):
        raise NotConvergedError(
            "distance_matrix",
            f"every pair accurate to rtol={rtol:g}",
            result.summary(),
            f"{remedies(result.status)} The error's .result holds all distances and what failed; throw=False returns "
            "the distances.",
            result,
        )
    return result


@dataclass(frozen=True)
class _Task:
    """What is asked for, checked."""

    space: Space
    a: Tensor
    b: Tensor | None
    method: Method
    rtol: float
    solver: Solver | None
    k: int
    weight: Weight

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the numbers, besides space and points."""
        if self.method == "geodesic":
            return {"rtol": self.rtol, "solver": None if self.solver is None else repr(self.solver)}
        return (
            {"k": self.k, "weight": self.weight, "rtol": self.rtol}
            if self.method == "graph"
            else {}
        )


def _run(
    task: _Task,
    block_size: int | None,
    executor: Executor | None,
    out: str | PathLike[str] | None,
    identity: Mapping[str, object] | None,
    progress: Progress | None,
) -> DistanceMatrix:
    a, b = task.a, task.b
    layout = _Layout.of(
        len(a),
        len(a) if b is None else len(b),
        b is None,
        task.method,
        block_size,
        a.element_size(),
    )
    if not len(layout):
        none = torch.empty(0, 2, dtype=torch.int64)
        return DistanceMatrix(a.new_zeros(layout.shape), none, none[:, 0], task.rtol)
    if out is None:
        with torch.no_grad():
            matrix, failures = _compute(task, layout, None, executor, progress)
    else:
        with BlockFile.open(
            out, *_recognised(task, identity, layout), frozenset(map(int, Status))
        ) as file:
            if not file.complete:
                with torch.no_grad():
                    matrix, failures = _compute(task, layout, file, executor, progress)
            else:
                matrix, failures = file.matrix().to(a.device), file.failures()
                if progress is not None:
                    progress(layout.total, layout.total)
    failed = torch.tensor(failures, dtype=torch.int64).view(-1, 3)
    return DistanceMatrix(matrix, failed[:, :2], failed[:, 2], task.rtol)


@dataclass(frozen=True)
class _Layout:
    """How the matrix is cut: into pairs of its upper triangle (or of all of it), or into bands of
    whole rows.

    Attributes:
        shape: Of the matrix.
        symmetric: Whether the lower triangle mirrors the upper one; the diagonal is then 0.
        rows: Bands of rows instead of pairs.
        size: Pairs, or rows, a block.
    """

    shape: tuple[int, int]
    symmetric: bool
    rows: bool
    size: int

    @classmethod
    def of(
        cls, n: int, q: int, symmetric: bool, method: Method, block_size: int | None, itemsize: int
    ) -> _Layout:
        rows = method != "geodesic"
        if rows:
            wanted = (
                max(1, _ROW_BYTES // (max(q, 1) * itemsize))
                if block_size is None
                else block_size // max(q, 1)
            )
            size = max(1, min(wanted, math.ceil(n / _ROW_BLOCKS)) if block_size is None else wanted)
        else:
            pairs = n * (n - 1) // 2 if symmetric else n * q
            size = block_size or min(
                max(math.ceil(pairs / _WANTED_BLOCKS), _FEWEST_PAIRS), _MOST_PAIRS
            )
        return cls((n, q), symmetric, rows, size)

    @property
    def total(self) -> int:
        """Distances to compute."""
        n, q = self.shape
        return n * (n - 1) // 2 if self.symmetric and not self.rows else n * q

    def __len__(self) -> int:
        return math.ceil((self.shape[0] if self.rows and self.total else self.total) / self.size)

    def band(self, block: int) -> tuple[int, int, int]:
        """First row, row behind the last, and first column of a block of rows."""
        first = block * self.size
        return first, min(first + self.size, self.shape[0]), first if self.symmetric else 0

    def pairs(self, block: int) -> tuple[Tensor, Tensor]:
        """Rows and columns of a block of pairs, without listing all pairs."""
        n, q = self.shape
        number = torch.arange(block * self.size, min((block + 1) * self.size, self.total))
        if not self.symmetric:
            return number // q, number % q
        row = torch.arange(n)
        first = row * (2 * n - row - 1) // 2  # pairs in the rows above
        i = torch.searchsorted(first, number, right=True) - 1
        return i, number - first[i] + i + 1

    def count(self, block: int) -> int:
        """Distances that a block settles."""
        if not self.rows:
            return min(self.size, self.total - block * self.size)
        first, last, _ = self.band(block)
        return (last - first) * self.shape[1]

    def block_shape(self, block: int) -> tuple[int, ...]:
        """Shape of the values of a block."""
        if not self.rows:
            return (self.count(block),)
        first, last, column = self.band(block)
        return last - first, self.shape[1] - column

    def place(self, matrix: Tensor, block: int, values: Tensor) -> None:
        """Write a block's values where they belong, and their mirror image."""
        values = values.to(matrix)
        if not self.rows:
            i, j = (x.to(matrix.device) for x in self.pairs(block))
            matrix[i, j] = values
            if self.symmetric:
                matrix[j, i] = values
            return
        first, last, column = self.band(block)
        if self.symmetric:
            square = values[:, : last - first].triu(1)
            values = torch.cat([square + square.T, values[:, last - first :]], 1)
            matrix[last:, first:last] = values[:, last - first :].T
        matrix[first:last, column:] = values


@dataclass(frozen=True)
class _Work:
    """Everything that computes a block, wherever it is sent."""

    space: Any  # a Space; for graph distances the Graph, for chords None or a Space
    a: Tensor  # points; for chords of a space with features, these
    b: Tensor
    method: Method
    rtol: float
    solver: Solver | None
    layout: _Layout

    def __call__(self, block: int, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """The values of a block, and a status for each geodesic of it (none for other methods)."""
        none = torch.empty(0, dtype=torch.int8)
        with torch.no_grad():
            if self.method == "geodesic":
                i, j = (x.to(self.a.device) for x in self.layout.pairs(block))
                solve = solver_of(self.space, geodesic)
                r = solve(
                    self.a[i],
                    self.b[j],
                    rtol=self.rtol,
                    solver=self.solver,
                    throw=False,
                    progress=progress,
                )
                return r.length.cpu(), r.status.to("cpu", torch.int8)
            first, last, column = self.layout.band(block)
            if self.method == "graph":
                offset = (
                    len(self.space.points) - self.layout.shape[1]
                )  # the columns are the graph's last points
                distances: Tensor = self.space.distances(range(first, last))
                return distances[:, offset + column :].cpu(), none
            if self.space is None:
                # Differences, not scalar products: near points must not lose their digits.
                exact = "donot_use_mm_for_euclid_dist"
                return torch.cdist(
                    self.a[first:last], self.b[column:], compute_mode=exact
                ).cpu(), none
            targets = self.b[column:]
            rows = [
                self.space.ambient_distance(z.expand_as(targets), targets)
                for z in self.a[first:last]
            ]
            return torch.stack(rows).cpu(), none


def _compute(
    task: _Task,
    layout: _Layout,
    file: BlockFile | None,
    executor: Executor | None,
    progress: Progress | None,
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """The matrix and its failures ``(row, column, status)``, from finished blocks and new ones."""
    a = task.a
    failures: list[tuple[int, int, int]] = []

    def keep(matrix: Tensor, block: int, values: Tensor, status: Tensor) -> None:
        layout.place(matrix, block, values)
        bad = (status != Status.CONVERGED).nonzero().flatten()
        if len(bad):
            i, j = (x[bad].tolist() for x in layout.pairs(block))
            failures.extend(zip(i, j, status[bad].tolist(), strict=True))

    def stored(block: int) -> tuple[Tensor, Tensor]:
        assert file is not None
        statuses = (0,) if layout.rows else (layout.count(block),)
        shapes = {
            "distances": (layout.block_shape(block), a.dtype),
            "status": (statuses, torch.int8),
        }
        parts = file.read(block, shapes)
        return parts["distances"], parts["status"]

    matrix = a.new_zeros(layout.shape if file is None else (0, 0))
    finished = set() if file is None else file.finished(len(layout))
    for block in finished:
        stored(block)  # a damaged block is found before hours are spent on the others
    missing = [block for block in range(len(layout)) if block not in finished]
    done = sum(layout.count(block) for block in finished)
    if missing:
        share = _Share(progress, done, layout.total, half=task.method == "graph")
        work = _work(task, layout, share.built)
        for block, values, status in _results(work, missing, executor, share.within):
            if file is None:
                keep(matrix, block, values, status)
            else:
                file.write(block, {"distances": values, "status": status})
            share.finish(layout.count(block))
    if file is None:
        return matrix, sorted(failures)
    with file.assembling(layout.shape, a.dtype) as whole:
        for block in range(len(layout)):
            keep(whole, block, *stored(block))
    file.finish(sorted(failures))
    return file.matrix().to(a.device), sorted(failures)


class _Share:
    """Progress in distances: those that were there, those of finished blocks, and half of them for
    a graph's edges.
    """

    def __init__(self, progress: Progress | None, done: int, total: int, half: bool) -> None:
        self._progress, self._first, self._ready, self._total = progress, done, 0, total
        self._offset = (total - done) // 2 if half else 0

    def built(self, done: int, total: int) -> None:
        """Edges of the graph, of all."""
        if self._progress is not None:
            self._progress(self._first + self._offset * done // max(total, 1), self._total)

    def within(self, done: int, _: int) -> None:
        """Distances of the block that is being computed."""
        if self._progress is not None:
            rest = self._total - self._first
            ready = (self._ready + done) * (rest - self._offset) // max(rest, 1)
            self._progress(self._first + self._offset + ready, self._total)

    def finish(self, count: int) -> None:
        """A block of so many distances is done."""
        self._ready += count
        self.within(0, 0)


def _work(task: _Task, layout: _Layout, progress: Progress) -> _Work:
    """What the workers need, with everything done that is done once for all blocks.

    Raises:
        GraphError: For chords in a space that knows no ambient distance.
    """
    space, a, b, method, rtol, solver = (
        task.space,
        task.a,
        task.b,
        task.method,
        task.rtol,
        task.solver,
    )
    other = a if b is None else b
    if method == "graph":
        joint = a if b is None else torch.cat([a, b])
        built = build_graph(
            space, joint, k=task.k, weight=task.weight, rtol=rtol, progress=progress
        )
        return _Work(built, a[:0], a[:0], method, rtol, solver, layout)
    if method == "chord":
        decoded = features_of(space, a)
        if decoded is not None:
            right = decoded if b is None else features_of(space, b)
            assert right is not None
            return _Work(None, decoded, right, method, rtol, solver, layout)
        if space.ambient_distance(a[:1], other[:1]) is None:
            raise GraphError(
                "distance_matrix",
                "a space with an ambient distance for method='chord'",
                type(space).__name__,
                "Use method='geodesic' or 'graph'.",
            )
    return _Work(space, a, other, method, rtol, solver, layout)


# Executors.


def _results(
    work: _Work, blocks: list[int], executor: Executor | None, progress: Progress | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks with their values and statuses, as they finish."""
    if executor is None:
        for block in blocks:
            with _one_thread():
                values, status = work(block, progress)
            yield block, values, status
        return
    # Threads share the work; everything else gets one string of bytes, unpacked once a process.
    call: Callable[[Any, int], Any] = (
        _in_thread if isinstance(executor, ThreadPoolExecutor) else _in_process
    )
    sent = work if isinstance(executor, ThreadPoolExecutor) else _packed(work)
    queue, pending = iter(blocks), dict[Future[Any], int]()
    threads = torch.get_num_threads()
    try:
        while True:
            for block in islice(queue, _IN_FLIGHT - len(pending)):
                pending[executor.submit(call, sent, block)] = block
            if not pending:
                return
            finished = wait(pending, return_when=FIRST_COMPLETED).done
            # Errors last: a block that is finished is kept.
            for future in sorted(finished, key=lambda f: (f.exception() is not None, pending[f])):
                values, status = future.result()
                yield pending.pop(future), torch.as_tensor(values), torch.as_tensor(status)
    finally:
        for future in pending:
            future.cancel()
        torch.set_num_threads(threads)  # what new threads of this process start with


# torch's forward mode keeps its levels in one place for all threads of a process: two derivatives
# at once break both.
_TURN = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread a block: rounding depends on how many share the work, and workers are as many as
    the processors.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_thread(work: _Work, block: int) -> tuple[Tensor, Tensor]:
    with _TURN if work.method == "geodesic" else nullcontext(), _one_thread():
        return work(block)


def _in_process(packed: bytes, block: int) -> tuple[Any, Any]:
    """A block as numpy arrays: tensors would travel through shared memory, of which containers have
    little.
    """
    values, status = _in_thread(_unpacked(packed), block)
    return values.numpy(), status.numpy()


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> _Work:
    work: _Work = pickle.loads(packed)
    return work


def _packed(work: _Work) -> bytes:
    """The work as bytes, by cloudpickle where it is installed: it also takes lambdas and what a
    notebook defines.

    Raises:
        TransferError: When some part of it cannot be sent.
    """
    try:
        from cloudpickle import dumps
    except ImportError:
        from pickle import dumps
    try:
        packed: bytes = dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as reason:
        by = dumps.__module__.split(".")[0].strip("_")
        raise TransferError(
            "distance_matrix",
            "a space that can be sent to other processes",
            f"{reason} ({by})",
            "Make the decoder an nn.Module or a function at the top level of a module, install cloudpickle "
            "(pip install riemae[dask]), or use a ThreadPoolExecutor.",
        ) from reason
    return packed


# What is asked of the caller, and of the file.


def _check(
    a: Tensor,
    b: Tensor | None,
    method: str,
    block_size: int | None,
    executor: Executor | None,
    solver: Solver | None,
) -> None:
    where = "distance_matrix"
    for name, points in (("a", a), ("b", a if b is None else b)):
        expect_values(where, name, points)
        if points.ndim != 2:
            raise ShapeError(
                where,
                f"{name} of shape (n, m)",
                str(tuple(points.shape)),
                "Flatten the batch axes.",
            )
        bad = (~points.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise NonFiniteError(
                where,
                "finite points",
                f"NaN or infinity at rows {bad[:5]} of {name}",
                "Remove them.",
            )
    other = a if b is None else b
    if a.shape[1] != other.shape[1]:
        raise ShapeError(
            where, "a and b of one dimension", f"{a.shape[1]} and {other.shape[1]}", ""
        )
    if a.dtype != other.dtype or a.device != other.device:
        got = f"{a.dtype} on {a.device} and {other.dtype} on {other.device}"
        raise DTypeError(where, "a and b of one dtype on one device", got, "Convert one.")
    if method not in ("geodesic", "graph", "chord"):
        raise OptionError(where, "method 'geodesic', 'graph' or 'chord'", repr(method), "")
    integer = isinstance(block_size, int) and not isinstance(block_size, bool)
    if block_size is not None and (not integer or block_size < 1):
        raise OptionError(
            where, "block_size of at least 1", repr(block_size), "Leave it out to have it chosen."
        )
    if executor is not None and not isinstance(executor, Executor):
        raise DTypeError(
            where,
            "a concurrent.futures.Executor",
            type(executor).__name__,
            "Of a Dask client: client.get_executor().",
        )
    expect_solver(where, solver)


def _recognised(
    task: _Task, identity: Mapping[str, object] | None, layout: _Layout
) -> tuple[dict[str, Any], list[float]]:
    """The description of a run, and its probe: together they say whether a file is of the same
    one.
    """
    things = {"contents": task.space} if identity is None else identity
    with torch.no_grad(), _one_thread():
        _speeds(task.space, task.a[:2])  # what is made at the first call is there now
        before = {
            name: parts(thing) for name, thing in things.items() if not isinstance(thing, str)
        }
        probe = _probe(task.space, task.a, task.a if task.b is None else task.b)
        after = {name: parts(things[name]) for name in before}
    known = {name: thing for name, thing in things.items() if isinstance(thing, str)}
    known |= {name: fingerprint(before[name], after[name]) for name in before}
    description = {
        "format": "riemae distance matrix",
        "version": 2,
        "shape": list(layout.shape),
        "dtype": str(task.a.dtype).removeprefix("torch."),
        "points": {"a": digest(task.a), "b": "a" if task.b is None else digest(task.b)},
        "settings": {"method": task.method, "block_size": layout.size, **task.settings},
        "space": {"class": type(task.space).__name__, **known},
    }
    return description, probe


def _probe(space: Space, a: Tensor, b: Tensor) -> list[float]:
    """Lengths of two tangents at the points, and of two chords along lines between them.

    The lines join pairs that are spread over all of them, and are cut where no other is: a space
    that differs between the points shows, too.
    """
    points = a if a is b else torch.cat([a, b])
    norms = _speeds(
        space, points[torch.linspace(0, len(points) - 1, min(_PROBES, len(points))).long()]
    )
    number = torch.arange(min(max(len(a), len(b), _FEWEST_PROBES), _PROBES), dtype=torch.float64)
    i, j = number.long() % len(a), ((number + 1) * 0.6180339887498949 % 1 * len(b)).long()
    start, stop = a[i.to(a.device)], b[j.to(a.device)]
    t = ((number + 1) * 0.7548776662466927 % 1).to(a)[:, None]
    nodes = torch.stack([start, start + t * (stop - start), stop], 1)
    chords = [space.squared_chords(part).sqrt().flatten() for part in nodes.split(_PROBED_AT_ONCE)]
    return [float(x) for x in torch.cat([*norms, *chords])]


def _speeds(space: Space, points: Tensor) -> list[Tensor]:
    """Lengths of two tangents at every point; NaN where there is none."""
    ramp = torch.arange(points.shape[1], dtype=points.dtype, device=points.device)
    tangents = torch.ones_like(ramp), (1 + ramp).cos()
    return [_norms(space, part, v) for part in points.split(_PROBED_AT_ONCE) for v in tangents]


def _norms(space: Space, points: Tensor, v: Tensor) -> Tensor:
    try:
        return space.norm(points, v.expand_as(points))
    except NonFiniteError:  # one bad point must not hide the others
        if len(points) == 1:
            return points.new_full((1,), math.nan)
        half = len(points) // 2
        return torch.cat([_norms(space, points[:half], v), _norms(space, points[half:], v)])
