"""Distances between all points of two sets, block by block.

Blocks are computed here or on any executor, and go into a file from which a killed run goes on. The
blocks, and with them every bit of the result, depend on the problem alone: neither on the executor
nor on the order in which blocks finish.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from riemae.exceptions import (
    FileError,
    NotConvergedError,
    OptionError,
)
from riemae.numerics.checks import (
    expect_choice,
    expect_range,
    expect_rtol,
)
from riemae.numerics.frames import frame
from riemae.numerics.html import table
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.solvers.budget import check_limits
from riemae.solvers.executors import expect_executor
from riemae.solvers.graph import GRAPH_RTOL, Weight, check_weight
from riemae.solvers.hooks import precision_of
from riemae.solvers.matrix_identity import recognised
from riemae.solvers.matrix_layout import Layout
from riemae.solvers.matrix_work import Method, Task, results, work_of
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.progress import Progress, Share, reported
from riemae.solvers.result import Status, remedies
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import HasSpace, Space, space_of
from riemae.storage.blocks import BlockFile

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class DistanceMatrix:
    """Distances between all points of two sets, and which of them miss their accuracy.

    Attributes:
        distances: ``(n, q)``; NaN where a failed geodesic has no length. Mapped from the file where
            there is one.
        failed: Rows and columns of the distances that miss ``rtol``, ``(f, 2)`` int64; one entry
            per solved pair.
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
        if named:
            return f"{named} (first pairs: {first})"
        return "all converged"

    def to_dataframe(self) -> pandas.DataFrame:
        """The distances as a square table. Needs pandas.

        Raises:
            MissingExtraError: When pandas is not installed.
        """
        values = self.distances.cpu().numpy()
        columns = {str(j): values[:, j] for j in range(values.shape[1])}
        return frame("DistanceMatrix.to_dataframe", columns, {"row": range(len(values))})

    def _repr_html_(self) -> str:
        """What was computed as a table, for notebooks."""
        n, q = self.distances.shape
        rows = [("distances", f"{n} × {q}"), ("rtol", f"{self.rtol:g}"), ("pairs", self.summary())]
        return table("DistanceMatrix", rows)

    def __repr__(self) -> str:
        n, q = self.distances.shape
        return f"DistanceMatrix({n} x {q}: {self.summary()} at rtol={self.rtol:g})"


@overload
def distance_matrix(
    space: Space | HasSpace,
    a: Tensor,
    b: Tensor | None = None,
    *,
    method: Method = ...,
    rtol: float | None = None,
    solver: Solver | None = None,
    k: int = ...,
    weight: Weight = ...,
    block_size: int | None = None,
    executor: Executor | None = None,
    out: str | PathLike[str] | None = None,
    identity: Mapping[str, object] | None = None,
    throw: bool = ...,
    progress: Progress | bool | None = None,
    max_decodings: int | None = None,
    max_seconds: float | None = None,
    return_result: Literal[False] = ...,
) -> Tensor: ...


@overload
def distance_matrix(
    space: Space | HasSpace,
    a: Tensor,
    b: Tensor | None = None,
    *,
    method: Method = ...,
    rtol: float | None = None,
    solver: Solver | None = None,
    k: int = ...,
    weight: Weight = ...,
    block_size: int | None = None,
    executor: Executor | None = None,
    out: str | PathLike[str] | None = None,
    identity: Mapping[str, object] | None = None,
    throw: bool = ...,
    progress: Progress | bool | None = None,
    max_decodings: int | None = None,
    max_seconds: float | None = None,
    return_result: Literal[True],
) -> DistanceMatrix: ...


@within_memory
@in_full_precision
def distance_matrix(
    space: Space | HasSpace,
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
    max_decodings: int | None = None,
    max_seconds: float | None = None,
    return_result: bool = False,
) -> Tensor | DistanceMatrix:  # (n, m), (q, m) -> (n, q)
    """Distances between all points of ``a`` and all of ``b``; not differentiable.

    Args:
        space: Anything with the :class:`Space` protocol.
        a: ``(n, m)``.
        b: ``(q, m)``; by default ``a`` itself, and then every pair is solved once.
        method: ``"geodesic"``: solved to ``rtol``; ``"graph"``: shortest paths on the
            ``k``-nearest-neighbour graph of all points, not shorter but for the accuracy of its
            edges; ``"chord"``: straight through the ambient space, never longer.
        rtol: Relative accuracy, by default 1e-4 of geodesics, 1e-3 in float32, and 1e-2 of the
            edges of a graph.
        solver: Settings of the path solver, as in :func:`geodesic`.
        k: Neighbours per point in the graph.
        weight: Of the graph's edges, as in :func:`~riemae.solvers.graph`.
        block_size: Distances per block: what is computed, and written, at once. By default chosen
            by work and memory.
        executor: Any ``concurrent.futures.Executor``: processes, threads, or a cluster's, such as
            Dask's ``Client.get_executor()``; the result has the same bits as without. A block is
            computed on one thread, here too. Geodesics take turns within a process, because torch's
            forward mode is not safe in threads: only processes make them faster. Other processes
            get the space by ``cloudpickle`` where it is installed, else by ``pickle``.
        out: A file for the result, in numpy's ``.npy`` format, described by ``out.json`` next to
            it. Until it is complete, finished blocks lie in the folder ``out.blocks``, and the same
            call takes them from there. One process writes it at a time: ``out.lock`` names it. The
            processes of a ``torch.distributed`` group, as under torchrun, give the same ``out`` and
            share the work, each on the device of its points.
        identity: What the file must agree on when it is found again, by name: strings as they are,
            anything else by the tensors, modules, settings and captured variables that it is made
            of. By default ``space`` itself. Besides, lengths at up to 2048 points and along as many
            lines between them must be the same.
        throw: Raise when a geodesic misses ``rtol``; with False such distances come back all the
            same, NaN where there is none.
        progress: Called with (distances done, distances in all), of which building a graph is the
            first half; True shows a bar.
        max_decodings: What all geodesics together may cost, as in :func:`geodesic`: every block
            gets its pairs' share, so that the result does not depend on the executor. Pairs that
            are not done have BUDGET as status, and as distance the length of their shortest curve
            so far, or NaN.
        max_seconds: The same for seconds, by the clock, from now; not with ``out``.
        return_result: Return a :class:`DistanceMatrix`, whose ``failed`` names the pairs that miss
            their accuracy, in place of the distances alone.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the complete
            result, and the file is complete, too.
        ShapeError: When ``a`` or ``b`` has more or fewer than two axes, or they differ in
            dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: For an unknown method, a block size or a limit that is not positive, limits of
            another method than geodesics, or ``max_seconds`` with ``out``, whose blocks must depend
            on the problem alone.
        GraphError: When ``method="chord"`` and the space knows no ambient distance.
        TransferError: When the space cannot be sent to another process.
        FileError: When ``out`` is not a path, holds something else, is damaged, is being written by
            another process, or cannot be written (finished blocks stay, and the same call goes on).
    """
    space = space_of(space, a, b, where="distance_matrix")
    _check(a, b, method, block_size, executor, solver)
    check_weight("distance_matrix", weight)
    _check_limits(method, out, max_decodings, max_seconds)
    rtol = _tolerance(space, a, method, rtol)
    with reported("distance_matrix", progress, "distances") as report:
        task = Task(
            space=space,
            a=a.detach(),
            b=None if b is None else b.detach(),
            method=method,
            rtol=rtol,
            solver=solver,
            k=k,
            weight=weight,
            max_decodings=max_decodings,
            deadline=None if max_seconds is None else time.time() + max_seconds,
        )
        result = _run(
            task=task,
            block_size=block_size,
            executor=executor,
            out=out,
            identity=identity,
            progress=report,
        )
    if throw and len(result.failed):
        raise NotConvergedError(
            "distance_matrix",
            f"every pair accurate to rtol={rtol:g}",
            result.summary(),
            f"{remedies(result.status)} The error's .result holds all distances and what failed; "
            "throw=False returns the distances, and return_result=True what failed as well.",
            result,
        )
    return result if return_result else result.distances


def _tolerance(space: Space, a: Tensor, method: Method, rtol: float | None) -> float:
    """The relative accuracy asked for, by default that which is usual.

    Raises:
        OptionError: When it is not positive.
    """
    if rtol is not None:
        return expect_rtol("distance_matrix", rtol)
    if method == "graph":
        return GRAPH_RTOL
    return precision_of(space, a.dtype).geodesic


def _run(
    task: Task,
    block_size: int | None,
    executor: Executor | None,
    out: str | PathLike[str] | None,
    identity: Mapping[str, object] | None,
    progress: Progress | None,
) -> DistanceMatrix:
    a = task.a
    b = task.b
    layout = Layout.of(
        n=len(a),
        q=len(a) if b is None else len(b),
        symmetric=b is None,
        rows=task.method != "geodesic",
        block_size=block_size,
        itemsize=a.element_size(),
    )
    if not len(layout):
        none = torch.empty(0, 2, dtype=torch.int64)
        return DistanceMatrix(
            distances=a.new_zeros(layout.shape), failed=none, status=none[:, 0], rtol=task.rtol
        )
    if out is None:
        with torch.no_grad():
            matrix, failures = _compute(
                task=task, layout=layout, file=None, executor=executor, progress=progress
            )
    else:
        description, probe = recognised(task, identity, layout)
        with BlockFile.open(out, description, probe, frozenset(map(int, Status))) as file:
            if file.complete and progress is not None:
                progress(layout.total, layout.total)
            if not file.complete:
                try:
                    with torch.no_grad():
                        _compute(task, layout, file, executor, progress)
                except FileError:
                    # Another process may have finished it, and removed the blocks.
                    if not file.found():
                        raise
            matrix = file.matrix().to(a.device)
            failures = file.failures()
    failed = torch.tensor(failures, dtype=torch.int64).view(-1, 3)
    return DistanceMatrix(
        distances=matrix, failed=failed[:, :2], status=failed[:, 2], rtol=task.rtol
    )


def _compute(
    task: Task,
    layout: Layout,
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
        if layout.rows:
            statuses = (0,)
        else:
            statuses = (layout.count(block),)
        shapes = {
            "distances": (layout.block_shape(block), a.dtype),
            "status": (statuses, torch.int8),
        }
        parts = file.read(block, shapes)
        return parts["distances"], parts["status"]

    matrix = a.new_zeros(layout.shape if file is None else (0, 0))
    if file is None:
        finished = set()
    else:
        finished = file.finished(len(layout))
    for block in finished:
        stored(block)  # a damaged block is found before hours are spent on the others
    missing = [block for block in range(len(layout)) if block not in finished]
    done = sum(layout.count(block) for block in finished)
    if missing:
        share = Share(progress, done, layout.total, half=task.method == "graph")
        work = work_of(task, layout, share.built)
        found = partial(results, work, executor=executor, progress=share.within)
        if file is None:
            for block, values, status in found(missing):
                keep(matrix, block, values, status)
                share.finish(layout.count(block))
        else:
            named = partial(_named, found)
            for block in file.all(missing, named):
                share.finish(layout.count(block))
    if file is None:
        return matrix, sorted(failures)
    with file.finishing():
        if not file.found():  # another has not finished it meanwhile
            with file.assembling(layout.shape, a.dtype) as whole:
                for block in range(len(layout)):
                    keep(whole, block, *stored(block))
            file.finish(sorted(failures))
    return file.matrix().to(a.device), file.failures()


def _named(
    found: Callable[[Iterator[int]], Iterator[tuple[int, Tensor, Tensor]]], blocks: Iterator[int]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Blocks as a file takes them."""
    for block, values, status in found(blocks):
        yield block, {"distances": values, "status": status}


def _check_limits(
    method: str,
    out: str | PathLike[str] | None,
    max_decodings: int | None,
    max_seconds: float | None,
) -> None:
    where = "distance_matrix"
    check_limits(where, max_decodings, max_seconds)
    limited = max_decodings is not None or max_seconds is not None
    if limited and method != "geodesic":
        wanted = "max_decodings and max_seconds with method='geodesic' only"
        raise OptionError(where, wanted, f"method={method!r}", "Leave them out.")
    if max_seconds is not None and out is not None:
        wanted = "a file that depends on the problem alone"
        hint = "Use max_decodings; a killed call goes on from the blocks that are finished."
        raise OptionError(where, wanted, f"max_seconds={max_seconds:g} with out", hint)


def _check(
    a: Tensor,
    b: Tensor | None,
    method: str,
    block_size: int | None,
    executor: Executor | None,
    solver: Solver | None,
) -> None:
    where = "distance_matrix"
    expect_point_sets(where, a=a, b=a if b is None else b)
    expect_choice(where, "method", method, ("geodesic", "graph", "chord"))
    if block_size is not None:
        hint = "Leave it out to have it chosen."
        expect_range(where, "block_size", block_size, 1, integer=True, hint=hint)
    expect_executor(where, executor)
    expect_solver(where, solver)
