"""The process of every adapter: it loads a decoder, solves on request, and times only the solving.

It needs numpy only, so that it runs in any contender's environment. The driver writes one JSON
request per line and reads one JSON answer per line. Arrays are passed in ``.npz`` files.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Cubic splines over at least this many intervals stand for curves that are given by a formula.
FINE = 512

Layers = list[
    tuple[np.ndarray, np.ndarray]
]  # weights (outputs, inputs) and biases; SiLU between them


class Answer(NamedTuple):
    """A contender's result.

    Attributes:
        nodes: Curves ``(p, n + 1, m)`` at equal times; the spline through them is measured.
        points: Points at which the contender evaluates the decoder in one pass over all its curves.
        reported: The lengths ``(p,)`` that the contender reports itself, or None.
        missed: Number of pairs that the contender reports as not solved.
        decodings: Per pair, where they are counted. A derivative in one direction and a reverse
            pass are one each.
    """

    nodes: np.ndarray
    points: int
    reported: np.ndarray | None = None
    missed: int | None = None
    decodings: float | None = None


# Solves for end points (p, m), which is timed. The function that it returns gives the answer, which
# is not timed.
Solver = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Callable[[], Answer]]


def serve(prepare: Callable[[Layers, int], Solver], packages: tuple[str, ...]) -> None:
    """Answer requests from standard input until it ends.

    Args:
        prepare: Builds the contender's own form of the decoder, from its layers and the number of
            threads.
        packages: Distributions whose versions are reported.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages must not print into the answers
    solver: Solver | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "threads" in request:
                file = np.load(request["problem"])
                layers = [
                    (file[f"w{i}"], file[f"b{i}"])
                    for i in range(sum(name[0] == "w" for name in file.files))
                ]
                solver = prepare(layers, request["threads"])
                answer: dict[str, Any] = {
                    "versions": {name: importlib.metadata.version(name) for name in packages}
                }
            elif solver is None:
                answer = {"error": "no decoder was loaded"}
            else:
                answer = _solve(solver, request)
        except Exception as reason:  # any error of a contender is a result for the table
            answer = {"error": f"{type(reason).__name__}: {reason}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _solve(solver: Solver, request: dict[str, Any]) -> dict[str, Any]:
    file = np.load(request["problem"])
    start, stop = request["pairs"]
    step = 1 if request["alone"] else stop - start
    seconds, busy, found = [], [], []
    for i in range(start, stop, step):
        z0, z1 = file["z0"][i : i + step], file["z1"][i : i + step]
        clock, used = time.perf_counter(), time.process_time()
        finish = solver(z0, z1, request["settings"])
        seconds.append(time.perf_counter() - clock)
        busy.append(time.process_time() - used)
        found.append(finish())
    arrays = {f"nodes{i}": answer.nodes for i, answer in enumerate(found)}
    own = [answer.reported for answer in found if answer.reported is not None]
    if len(own) == len(found):
        arrays["reported"] = np.concatenate(own)
    np.savez(request["out"], **arrays)
    counted = [answer.decodings for answer in found if answer.decodings is not None]
    missed = [answer.missed for answer in found if answer.missed is not None]
    return {
        "seconds": float(np.median(seconds)),
        "cpu": float(np.median(busy)),
        "points": int(np.median([answer.points for answer in found])),
        "missed": sum(missed) if missed else None,
        "decodings": float(np.mean(counted)) if counted else None,
    }
