"""The figures of the paper over many seeds: what the examples measure, as distributions.

    python -m benchmarks.figures                     # all figures, ten seeds
    python -m benchmarks.figures 12 13 --seeds 4     # some of them; or with --quick

Data, models and measures are those of ``examples/fig*.py``, in float32 on one thread. What was
measured is kept by seed in ``benchmarks/results/figures.json``, and not measured again unless
``--again`` is given. Writes ``benchmarks/results/figures.md``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from benchmarks.kept import Kept, Measures

EXAMPLES = Path(__file__).parents[1] / "examples"
RESULTS = Path(__file__).parent / "results" / "figures.md"
VALUES = RESULTS.with_suffix(".json")


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        example: Its module in ``examples/``, with ``MODELS``, ``sample`` and ``measured``.
        title: Heading of its table.
        targets: What was asked for, in words.
        relative: The measure that is compared with the first model's, by mean and by seed.
    """

    example: str
    title: str
    targets: str
    relative: str

    @property
    def module(self) -> ModuleType:
        """The example."""
        if str(EXAMPLES) not in sys.path:
            sys.path.insert(0, str(EXAMPLES))
        return importlib.import_module(self.example)


FIGURES = {
    "11a": Figure(
        "fig11_denoising_curve",
        "Figure 11, upper row: a noisy sine",
        "mean clean error at most 0.4 × the AE's, mean length / true length from 0.95 to 1.1",
        "clean error",
    ),
    "11b": Figure(
        "fig11_sparse_curve",
        "Figure 11, lower row: thirty points of a spiral",
        "the right order in at least 8 of 10 seeds for NRAE",
        "clean error",
    ),
    "12": Figure(
        "fig12_minimum_curvature",
        "Figure 12: sixty noisy points of a cylinder",
        "mean clean error at most 0.5 × the AE's for MCAE and 0.35 × for MCAE + IRAE; curvature "
        "within a factor 2 of the truth, which is 2",
        "clean error",
    ),
    "13": Figure(
        "fig13_isometric_square",
        "Figure 13: a bent square with a hole",
        "IRAE on every seed: MCN at most 1.05, VoR at most 0.003, Spearman at least 0.999",
        "unexplained",
    ),
}


def measure(figure: Figure, kept: Kept, seeds: int, quick: bool) -> None:
    """Train the models of a figure from every seed, as far as they are not measured yet."""
    example = figure.module
    run = importlib.import_module("_run")
    models = run.models_for(argparse.Namespace(quick=quick), example.MODELS)
    for seed in range(seeds):
        data = example.sample(seed)
        missing = {n: m for n, m in models.items() if not kept.has(figure.example, n, seed)}
        for name, model in run.trained(missing, data.x, seed):
            found = example.measured(model, data)
            kept.add(figure.example, name, seed, found)
            print(figure.example, seed, name, found, flush=True)


def number(value: float) -> str:
    """Three digits, or five of what is near 1."""
    if 0.9 < abs(value) < 10:
        return f"{value:.5g}"
    return f"{value:.3g}"


def table(figure: Figure, values: dict[str, list[Measures]]) -> list[str]:
    """Mean and range of every measure, and one of them by seed, relative to the first model's."""
    seeds = min(len(many) for many in values.values())
    if not seeds:
        return []
    measures = list(next(iter(values.values()))[0])
    first = next(iter(values))
    lines = [f"## {figure.title}", "", f"{seeds} seeds. Target: {figure.targets}.", ""]
    head = ["", *(f"{m}: mean (lowest to highest)" for m in measures)]
    head += [f"{figure.relative}, mean × {first}'s", f"× {first}'s by seed"]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, many in values.items():
        cells = [name]
        for m in measures:
            column = np.array([s[m] for s in many])
            spread = f"{number(column.min())} to {number(column.max())}"
            cells.append(f"{number(column.mean())} ({spread})")
        own, base = (np.array([s[figure.relative] for s in values[key]]) for key in (name, first))
        cells.append("" if name == first else f"{own.mean() / base.mean():.2f}")
        cells.append("" if name == first else " ".join(f"{r:.2f}" for r in own / base))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def write(kept: Kept) -> None:
    """The tables of all figures that were measured."""
    lines = ["# Figures over seeds", ""]
    for figure in FIGURES.values():
        values = kept.of(figure.example)
        lines += table(figure, values) if values else []
    machine = f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, float32."
    about = f"torch {torch.__version__}, Python {platform.python_version()}, {machine}"
    RESULTS.write_text("\n".join([*lines, about, ""]))
    print(f"Written: {RESULTS}")


def main() -> None:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", help=f"some of {', '.join(FIGURES)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--quick", action="store_true", help="two epochs, one seed, no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick = options.quick
    kept = Kept(None if quick else VALUES)
    if options.again:
        for name in options.figures or FIGURES:
            kept.values.pop(FIGURES[name].example, None)
    for name in options.figures or FIGURES:
        figure = FIGURES[name]
        measure(figure, kept, 1 if quick else options.seeds, quick)
        print("\n".join(table(figure, kept.of(figure.example))))
        if not quick:
            write(kept)


if __name__ == "__main__":
    main()
