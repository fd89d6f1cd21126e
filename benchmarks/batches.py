"""Pairs per second against the number of pairs in a call, beside what decodings alone would allow.

    python -m benchmarks.batches                       # all tasks: about five minutes on one core
    python -m benchmarks.batches --task convolutions   # one of them, into the same table
    python -m benchmarks.batches --quick               # tests the program itself

Each task is solved from straight lines, and again from the curves that came of it (``init=``), that
only need to be verified. Seconds are processor time of one thread. The limit is the number of pairs
whose decodings, with derivatives, the decoder alone would do in a second at its fastest batch size.
Writes ``batches.json`` and ``batches.md`` to ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import quantiles
from benchmarks.peers import mlp
from benchmarks.problems import FOLDER, PROBLEMS, prepare
from riemae import Manifold
from riemae.cli.demo import load_digits
from riemae.solvers.budget import limited

RESULTS = Path(__file__).parent / "results"
RTOL = 1e-3
_PAIRS = {"digits-8": (1, 8, 64), "digits-32": (1, 8, 32), "convolutions": (1, 8)}
_POINTS = 17  # of a sweep
_TITLE = "# Pairs a second against the number of pairs"
_COLUMNS = (
    "*line*: from the straight line; *result*: from a result to the same accuracy, which is only "
    "verified. *limit*: pairs a second if all time were decodings at their fastest."
)
_BATCHES = 16, 64, 256, 1024
_REPEATS = 3
Row = dict[str, Any]


def convolutional(m: int = 64) -> nn.Sequential:
    """A decoder from ``m`` numbers to 32 × 32 pixels by transposed convolutions."""
    return nn.Sequential(
        nn.Linear(m, 64 * 16),
        nn.SiLU(),
        nn.Unflatten(1, (64, 4, 4)),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
        nn.Flatten(),
    )


def trained(epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The convolutional decoder of an autoencoder on scikit-learn's digits, and pairs of codes."""
    path = FOLDER / f"convolutions-{epochs}.npz"
    decoder = convolutional()
    if not path.exists():
        images, _ = load_digits()
        size = {"size": (32, 32), "mode": "bicubic", "antialias": True}
        images = nn.functional.interpolate(images.view(-1, 1, 8, 8), **size).clamp(0, 1).flatten(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            decoder = convolutional()
            encoder = nn.Sequential(nn.Linear(1024, 256), nn.SiLU(), nn.Linear(256, 64))
            _train(nn.Sequential(encoder, decoder), images, epochs)
        codes = encoder(images).detach().double()
        arrays = {name: x.double().numpy() for name, x in decoder.state_dict().items()}
        FOLDER.mkdir(exist_ok=True)
        np.savez(path, codes=codes.numpy(), **arrays)
    file = np.load(path)
    decoder = decoder.double().requires_grad_(False)
    decoder.load_state_dict({name: torch.from_numpy(file[name]) for name in decoder.state_dict()})
    codes = torch.from_numpy(file["codes"])
    chosen = torch.randint(len(codes), (2, 1000), generator=torch.Generator().manual_seed(1))
    return decoder, codes[chosen[0]], codes[chosen[1]]


def _train(whole: nn.Module, images: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(whole.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            loss = (whole(images[batch]) - images[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def problem(name: str, quick: bool) -> tuple[Manifold, Tensor, Tensor]:
    """A manifold, and pairs on it."""
    if name == "convolutions":
        decoder, z0, z1 = trained(1 if quick else 10)
        return Manifold(decoder), z0, z1
    file = np.load(prepare(PROBLEMS[name]))
    layers = [(file[f"w{i}"], file[f"b{i}"]) for i in range(3)]
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


def measured(name: str, quick: bool) -> list[Row]:
    """The rows of a task."""
    M, z0, z1 = problem(name, quick)
    rate = peak(M, z0)
    sweep = _POINTS * (1 + z0.shape[1])
    rows = []
    M.geodesic(z0[:2], z1[:2], rtol=RTOL)  # looked at once
    for pairs in _PAIRS[name][: 2 if quick else None]:
        ends = z0[:pairs], z1[:pairs]
        exact = M.geodesic(*ends, rtol=1e-7, throw=False).length if pairs <= 64 else None
        found = M.geodesic(*ends, rtol=RTOL, n_starts=1, throw=False)
        for start, options in (("line", {"n_starts": 1}), ("result", {"init": found.curve})):

            def call(options: dict[str, Any] = options, ends: Any = ends) -> Any:
                return M.geodesic(*ends, rtol=RTOL, throw=False, **options)

            with limited("geodesic", 10**12, None) as budget:
                r = call()
                assert budget is not None
                decodings = budget.used / pairs
            spent = seconds(call)
            error = None if exact is None else quantiles((r.length / exact - 1).abs())[1]
            row = {"task": name, "pairs": pairs, "start": start, "sweeps": decodings / sweep}
            row |= {"decodings": decodings, "rate": pairs / spent, "limit": rate / decodings}
            row |= {"error": error, "converged": int(r.converged.sum())}
            rows.append(row)
            print(row, flush=True)
    return rows


def written(rows: list[Row]) -> str:
    """The table in Markdown."""
    head = ["task", "start", "pairs", "decodings per pair", "sweeps", "pairs/s", "limit", "p95"]
    lines = [_TITLE, "", f"rtol {RTOL:g}, float64, one thread. {_COLUMNS}", ""]
    lines.append("| " + " | ".join(head) + " |")
    lines.append("| --- " * len(head) + "|")
    for row in rows:
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        numbers = f"{row['decodings']:.0f} | {row['sweeps']:.2f} | {row['rate']:.3g}"
        names = f"| {row['task']} | {row['start']} | {row['pairs']}"
        lines.append(f"{names} | {numbers} | {row['limit']:.3g} | {error} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=[*_PAIRS], default=None)
    parser.add_argument("--quick", action="store_true", help="few pairs: tests the machinery")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = arguments.out / "batches.json"
    kept: dict[str, list[Row]] = {}
    if source.exists() and arguments.task is not None:
        kept = json.loads(source.read_text())
    names = list(_PAIRS) if arguments.task is None else [arguments.task]
    for name in names:
        kept[name] = measured(name, arguments.quick)
        arguments.out.mkdir(parents=True, exist_ok=True)
        source.write_text(json.dumps(kept, indent=1) + "\n")
        rows = [row for task in _PAIRS for row in kept.get(task, [])]
        (arguments.out / "batches.md").write_text(written(rows))


if __name__ == "__main__":
    main()
