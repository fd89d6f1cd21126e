"""Certified nearest neighbours of growing numbers of digit codes: geodesics, seconds, memory.

    python -m benchmarks.neighbors                          # 1,000, 5,000 and 20,000 codes
    python -m benchmarks.neighbors --codes 100000 --workers 2

Codes of eight latent dimensions: those of scikit-learn's digits by an autoencoder, and, beyond
their number, mixtures of two that are near each other; all are shaken a little. Each has its 15
nearest by geodesic distance, to 1e-3. A search of each size runs in a process of its own, whose
peak memory counts, and in worker processes where they are asked for. Seconds of processor time are
those of all processes. With --keep, finished blocks stay in a folder, and a killed run goes on from
them; its seconds are then those of the last call. Writes ``benchmarks/results/neighbors.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from riemae import Manifold
from riemae.autoencoders import AE

RESULTS = Path(__file__).parent / "results" / "neighbors.md"
CODES = (1_000, 5_000, 20_000)
QUICK = (150, 300)
K, RTOL = 15, 1e-3
COLUMNS = (
    "codes",
    "geodesics",
    "per code",
    "of all pairs",
    "certified rows",
    "failed",
    "seconds",
    "processor",
    "peak memory, all processes",
)


def problem(count: int, epochs: int) -> tuple[Manifold, Tensor]:
    """The manifold of digits and so many codes."""
    images = load_digits().data.astype("float32") / 16
    model = AE(latent_dim=8, hidden=(64, 64), epochs=epochs, seed=0).fit(images)
    codes = torch.as_tensor(model.transform(images)).double()
    return model.manifold_.to(dtype=torch.float64), grown(codes, count)


def grown(codes: Tensor, count: int) -> Tensor:  # (n, m) -> (count, m)
    """Codes, and mixtures of each other's near ones, slightly shaken."""
    generator = torch.Generator().manual_seed(0)
    more = max(count - len(codes), 0)
    i = torch.randint(len(codes), (more,), generator=generator)
    near = torch.cdist(codes, codes).topk(6, largest=False).indices
    j = near[i, torch.randint(1, 6, (more,), generator=generator)]
    share = torch.rand(more, 1, generator=generator).double()
    whole = torch.cat([codes[:count], torch.lerp(codes[i], codes[j], share)])
    noise = torch.randn(whole.shape, generator=generator).double()
    return whole + 0.02 * codes.std(0) * noise


def measured(count: int, epochs: int, workers: int, keep: Path | None) -> dict[str, object]:
    """One search, in this process."""
    torch.set_num_threads(1)
    M, codes = problem(count, epochs)
    out = None
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        out = keep / f"neighbors-{count}"
    spent = processor()
    start = time.perf_counter()
    if workers > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            found = M.neighbors(codes, K, rtol=RTOL, throw=False, executor=pool, out=out)
    else:
        found = M.neighbors(codes, K, rtol=RTOL, throw=False, out=out)
    seconds = time.perf_counter() - start
    # The largest child stands for all of them.
    most = peak(resource.RUSAGE_SELF) + (workers if workers > 1 else 0) * peak(
        resource.RUSAGE_CHILDREN
    )
    pairs = count * (count - 1) / 2
    row = (
        f"{count:,}",
        f"{found.solved:,}",
        f"{found.solved / count:.1f}",
        f"1 of {pairs / found.solved:,.0f}",
        f"{int(found.certified.sum()):,}",
        len(found.failed),
        f"{seconds:,.0f}",
        f"{processor() - spent:,.0f}",
        f"{most:.2f} GiB",
    )
    return dict(zip(COLUMNS, row, strict=True))


def processor() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in both)


def peak(who: int) -> float:
    """Peak memory in GiB."""
    return resource.getrusage(who).ru_maxrss / 2**20


def main() -> None:
    """All sizes, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, nargs="+", help="how many")
    parser.add_argument("--workers", type=int, default=1, help="processes that solve geodesics")
    parser.add_argument("--quick", action="store_true", help="a few codes, no table in results/")
    parser.add_argument("--keep", type=Path, help="a folder for finished blocks")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    epochs = 2 if options.quick else 60
    if options.one:
        print(json.dumps(measured(options.one, epochs, options.workers, options.keep)))
        return
    codes = options.codes or (QUICK if options.quick else CODES)
    rows = []
    for count in codes:
        command = [sys.executable, "-m", "benchmarks.neighbors", *sys.argv[1:], "--one", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    text = page(rows, options.workers)
    print(text)
    if not options.quick:
        RESULTS.write_text(text)


def page(rows: list[dict[str, object]], workers: int) -> str:
    """The table as Markdown."""
    machine = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        "# Certified nearest neighbours of digit codes",
        "",
        f"{machine}, {platform.machine()}, {workers} process(es) of one thread each; {K} neighbours"
        f" to rtol={RTOL:g}, 8 latent dimensions, 64 outputs, float64.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "| " + " | ".join(["---"] * len(COLUMNS)) + " |",
    ]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
