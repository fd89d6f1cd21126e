"""The solvers that are compared, their settings, and the process in which each of them runs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
JAX_PYTHON = ROOT / ".venv-bench-jax" / "bin" / "python"
Settings = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A solver and its settings.

    Attributes:
        name: In tables and legends.
        module: Its adapter in ``benchmarks.peers``.
        settings: From cheap to costly; the driver stops at the first that takes too long.
        quick: Which of them are used in a quick run.
        jax: Whether it runs in the environment with JAX, and compiles at its first call.
        one_by_one: Whether it solves one pair after the other, so that the time of many pairs can
            be computed from that of a few.
        images: Whether its adapter takes decoders of images, and not MLPs alone.
    """

    name: str
    module: str
    settings: tuple[Settings, ...]
    quick: tuple[int, ...] = (0,)
    jax: bool = False
    one_by_one: bool = False
    images: bool = False


def _stochman(optimizer: str, *knobs: tuple[int, int, int]) -> tuple[Settings, ...]:
    return tuple({"optimizer": optimizer, "nodes": n, "steps": s, "grid": g} for n, s, g in knobs)


OURS = Contender(
    "riemae", "ours", tuple({"rtol": 10.0**-k} for k in range(2, 9)), quick=(1, 3, 5), images=True
)
CONTENDERS = (
    OURS,
    Contender(
        "stochman, Adam",  # the first is the package's default
        "stochman",
        _stochman(
            "adam", (5, 150, 20), (10, 150, 20), (10, 500, 20), (20, 1000, 40), (20, 3000, 60)
        ),
        images=True,
    ),
    Contender(
        "stochman, L-BFGS",
        "stochman",
        _stochman("lbfgs", (5, 2, 20), (10, 4, 20), (10, 10, 20), (20, 20, 40), (20, 40, 60)),
        quick=(1,),
        images=True,
    ),
    Contender(
        "finslerax, own metric",
        "finslerax",
        tuple({"metric": "pullback", "segments": s, "tol": 1e-4} for s in ([8], [16], [32])),
        quick=(),
        jax=True,
    ),
    Contender(
        "finslerax, Jv metric",
        "finslerax",
        tuple(
            {"metric": "forward", "segments": s, "tol": 1e-4}
            for s in ([8], [16], [32], [16, 64], [32, 128])
        ),
        quick=(1,),
        jax=True,
    ),
    Contender(
        "geomstats, path",
        "geomstats",
        tuple(
            {"solver": "path", "nodes": n, "steps": s}
            for n, s in ((9, 10), (9, 50), (17, 100), (33, 200))
        ),
        quick=(0,),
        one_by_one=True,
    ),
    Contender(
        "geomstats, collocation",
        "geomstats",
        tuple(
            {"solver": "bvp", "nodes": n, "tol": t} for n, t in ((4, 1.0), (10, 1e-1), (10, 1e-3))
        ),
        quick=(),
        one_by_one=True,
    ),
    Contender(
        "latent-geometry",
        "latent_geometry",
        tuple({"nodes": n, "tol": t} for n, t in ((4, 1.0), (5, 1e-1), (5, 1e-2), (5, 1e-3))),
        quick=(0,),
        one_by_one=True,
    ),
    Contender(
        "chord energy, Adam",
        "chord",
        tuple(
            {"optimizer": "adam", "segments": n, "steps": s, "rate": 0.05}
            for n, s in ((8, 50), (8, 150), (16, 300), (16, 1000), (32, 3000))
        ),
        quick=(1,),
        images=True,
    ),
    Contender(
        "chord energy, L-BFGS",
        "chord",
        tuple(
            {"optimizer": "lbfgs", "segments": n, "steps": s}
            for n, s in ((8, 25), (16, 50), (16, 150), (32, 300), (32, 1000))
        ),
        quick=(1, 2),
        images=True,
    ),
)


def _solver(name: str, *accuracies: float, **more: Any) -> Contender:
    settings = tuple({"rtol": rtol, **more} for rtol in accuracies)
    return Contender(name, "ours", settings, images=True)


# The solvers of riemae, beside its default, for tasks on which nobody else takes part.
MANY_PAIRS = (
    _solver("riemae", 1e-2, 1e-3, 1e-4, 1e-5),
    _solver("riemae, float32", 1e-2, 1e-3, 1e-4, dtype="float32"),
    _solver("riemae, Newton (whole)", 1e-2, 1e-3, solver="Newton", options={"whole": True}),
    _solver("riemae, QuasiNewton", 1e-3, 1e-5, solver="QuasiNewton"),
    _solver("riemae, Spectral", 1e-3, 1e-5, solver="Spectral"),
)
MANY_DIMENSIONS = (
    _solver("riemae", 1e-2, 1e-3, 1e-4, 1e-5),
    _solver("riemae, QuasiNewton", 1e-3, 1e-5, solver="QuasiNewton"),
    _solver("riemae, NewtonCG", 1e-3, 1e-5, solver="NewtonCG"),
    _solver("riemae, Newton", 1e-3, 1e-5, solver="Newton"),
)


@dataclass
class Worker:
    """A contender's process, which starts at first use and is ended when a call takes too long.

    Attributes:
        module: The adapter.
        problem: File with decoder and pairs.
        threads: Cores that the process may use, even if its libraries start more threads.
        jax: Whether to start it in the environment with JAX.
    """

    module: str
    problem: Path
    threads: int
    jax: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None
    _log: Any = None

    def solve(
        self, pairs: tuple[int, int], alone: bool, settings: Settings, out: Path, limit: float
    ) -> dict[str, Any]:
        """One timed call: seconds and points, or an error that says what went wrong."""
        try:
            if self._process is None:
                self._start()
            request = {"pairs": pairs, "alone": alone, "settings": settings, "out": str(out)}
            return self._ask({"problem": str(self.problem), **request}, limit)
        except _Failed as reason:
            self.stop()
            return {"error": str(reason)}

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> None:
        python = os.environ.get("RIEMAE_BENCH_JAX", str(JAX_PYTHON)) if self.jax else sys.executable
        cores = sorted(os.sched_getaffinity(0))[: self.threads]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": str(ROOT),
            "GEOMSTATS_BACKEND": "pytorch",
            "JAX_ENABLE_X64": "1",
            "JAX_PLATFORMS": "cpu",
        }
        self._log = tempfile.TemporaryFile("w+")  # open as long as the process
        try:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.{self.module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                cwd=ROOT,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        except OSError as reason:
            raise _Failed(f"not installed: {reason}") from reason
        answer = self._ask({"threads": self.threads, "problem": str(self.problem)}, 120)
        if "error" in answer:
            raise _Failed(answer["error"])
        self.versions = answer["versions"]

    def _ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise _Failed("no process")
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], limit)
            line = process.stdout.readline() if ready else None
        except OSError as reason:
            raise _Failed(f"the process ended: {reason}") from reason
        if line is None:
            raise _Failed(f"more than {limit:.0f} s")
        if not line:
            self._log.seek(0)
            last = [text for text in self._log.read().splitlines() if text.strip()]
            raise _Failed(f"the process ended: {last[-1] if last else 'it said nothing'}")
        return json.loads(line)


class _Failed(Exception):
    """A contender's process did not answer."""
