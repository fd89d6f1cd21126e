"""Training: the cost of a step of each geometric autoencoder, compared with that of a plain one and
with that of the published losses.

    make bench                          # or: python -m benchmarks.training
    python -m benchmarks.training --only fit       # or one of the others, which stay as they are

A step is the forward and backward pass of the whole loss, without the optimiser, in float32 on one
thread. Steps that are compared take turns, A B A B, in one run. Ratios are medians over the turns,
of process time, which other processes do not disturb much. Memory is the largest amount that torch
has allocated and not yet freed during a step.

The published losses are written here from their formulas, as in their authors' code: products with
derivatives by ``torch.autograd.functional`` (twice reverse mode), and one pass through the decoder
for each quantity.

More tables: the cost per step of ``fit``, compared with that of a loop in bare torch over the same
objective, or with the same networks and no objective at all; first use
(:mod:`benchmarks.first_use`); and the intrinsic curvature for m = 8, exactly and by random planes.
Writes ``benchmarks/results/training.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp
from torch.profiler import ProfilerActivity, profile

from benchmarks.first_use import cold, fresh
from riemae.autoencoders import AE, IRAE, MCAE, NRAE, Neighborhood, Term
from riemae.autoencoders.fitting import new_objective
from riemae.autoencoders.objective import Objective, Variation

RESULTS = Path(__file__).parent / "results" / "training.md"
DATA, BATCH, LATENT = 784, 256, 2
WEIGHT = 0.01
# A pass F is one evaluation of encoder or decoder, and its backward pass costs two more, so a plain
# step is 6 F. For NRAE, two evaluations of the encoder count, and value, tangent (and second
# derivative) of the decoder. For the others, the additions to a plain step count. These are value,
# tangent and reverse product for IRAE; two tangents and three second derivatives for MECAE.
FLOORS = {"IRAE": 1 + 3 / 2, "NRAE-L": 1 + 2 / 2, "NRAE-Q": 1 + 3 / 2, "MECAE": 1 + 5 / 2}
# Limits at width 256 and at width 1,024.
TARGETS = {"IRAE": (3.2, 2.7), "NRAE-L": (2.6, 2.2), "NRAE-Q": (4.6, 3.5), "MECAE": (6.5, 4.8)}


@dataclass
class Case:
    """Networks, data and a loss."""

    encoder: nn.Module
    decoder: nn.Module
    loss: Callable[[], Tensor]

    def step(self) -> float:
        """Seconds of process time of one step."""
        self.clear()
        start = time.process_time()
        self.loss().backward()
        return time.process_time() - start

    def clear(self) -> None:
        """Drop the gradients of the previous step."""
        for p in (*self.encoder.parameters(), *self.decoder.parameters()):
            p.grad = None

    def peak(self) -> int:
        """Largest number of bytes that one step adds, including the gradients."""
        self.clear()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.step()
        events = found.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        held = highest = 0
        for _, change in changes:
            held += change
            highest = max(highest, held)
        return highest


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Four hidden layers, SiLU."""
    layers: list[nn.Module] = []
    for size in (inputs, width, width, width):
        layers += [nn.Linear(size, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def cases(
    width: int, batch: int = BATCH, data: int = DATA, latent: int = LATENT
) -> tuple[Case, dict[str, Case], dict[str, Case]]:
    """The step of a plain autoencoder, and by name ours and the published ones, all with the same
    networks and data.
    """
    torch.manual_seed(0)
    encoder, decoder = mlp(data, width, latent), mlp(latent, width, data)
    x, neighbor = torch.rand(batch, data), torch.rand(batch, data)
    generator = torch.Generator().manual_seed(0)

    def ours(order: int | None = None, **terms: float) -> Case:
        variation = Variation(order=order)
        objective = Objective(encoder, decoder, x, terms=terms, variation=variation)
        near = None if order is None else neighbor
        return Case(encoder, decoder, lambda: objective(x, near, generator)[0])

    def published(loss: Callable[..., Tensor], *others: Tensor) -> Case:
        return Case(encoder, decoder, lambda: loss(encoder, decoder, x, *others))

    mine = {
        "IRAE": ours(relaxed_distortion=WEIGHT),
        "NRAE-L": ours(order=1),
        "NRAE-Q": ours(order=2),
        "MECAE": ours(extrinsic_curvature=WEIGHT),
    }
    theirs = {
        "IRAE": published(published_isometric),
        "NRAE-L": published(published_neighborhood_linear, neighbor),
        "NRAE-Q": published(published_neighborhood_quadratic, neighbor),
        "MECAE": published(published_minimum_curvature),
    }
    return ours(), mine, theirs


def published_isometric(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    """Equation 21: ``|x − f(z)|² + λ E|Gv|² / (E vᵀGv)²`` at mixed codes, v Gaussian."""
    z = encoder(x)
    alpha = torch.rand(len(z), 1) * 1.4 - 0.2
    between = alpha * z + (1 - alpha) * z[torch.randperm(len(z))]
    tangent = jvp(decoder, between, torch.randn_like(between), create_graph=True)[1]
    pulled = vjp(decoder, between, tangent, create_graph=True)[1]
    distortion = pulled.square().sum(1).mean() / tangent.square().sum(1).mean() ** 2
    return (x - decoder(z)).square().sum(1).mean() + WEIGHT * distortion


def published_neighborhood_linear(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, neighbor: Tensor
) -> Tensor:
    """Equations 18 and 19: ``|x − f(z)|² + |x' − f(z) − J(z' − z)|²``."""
    z, other = encoder(x), encoder(neighbor)
    value, first = jvp(decoder, z, other - z, create_graph=True)
    return (x - value).square().sum(1).mean() + (neighbor - value - first).square().sum(1).mean()


def published_neighborhood_quadratic(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, neighbor: Tensor
) -> Tensor:
    """The same with ``½ ∂²f(z' − z, z' − z)``, the derivative of ``J(z' − z)`` along ``z' − z``."""
    z, other = encoder(x), encoder(neighbor)
    v = other - z
    value = decoder(z)
    first, second = jvp(lambda y: jvp(decoder, y, v, create_graph=True)[1], z, v, create_graph=True)
    return (x - value).square().sum(1).mean() + (
        neighbor - value - first - second / 2
    ).square().sum(1).mean()


def published_minimum_curvature(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
    """Equation 20 by section 3.2: ``|x − f(z)|² + λ E vᵀG⁻¹ (∂T̂w)ᵀ(∂T̂w) v``, v and w Gaussian, T̂
    differentiated.
    """
    z = encoder(x)
    k, m = z.shape

    def jacobian(y: Tensor) -> Tensor:  # (k, m) -> (k, D, m), in all directions
        each = y.repeat_interleave(m, 0)
        columns = jvp(decoder, each, torch.eye(m).repeat(k, 1), create_graph=True)[1]
        return columns.view(k, m, -1).mT

    w, v = torch.randn_like(x), torch.randn_like(z)

    def projected(y: Tensor) -> Tensor:  # T̂w
        j = jacobian(y)
        return (j @ torch.linalg.inv(j.mT @ j) @ (j.mT @ w[..., None]))[..., 0]

    j = jacobian(z)
    lifted = (torch.linalg.inv(j.mT @ j) @ v[..., None])[..., 0]
    left, right = (jvp(projected, z, d, create_graph=True)[1] for d in (v, lifted))
    return (x - decoder(z)).square().sum(1).mean() + WEIGHT * (left * right).sum(1).mean()


def ratios(plain: Case, other: Case, turns: int) -> float:
    """Median cost of a step in plain steps."""
    other.step(), plain.step()
    found = []
    for _ in range(turns):
        base = plain.step()
        found.append(other.step() / base)
    return statistics.median(found)


def table(width: int, turns: int) -> list[str]:
    """The rows of one network."""
    plain, ours, theirs = cases(width)
    for _ in range(2):
        plain.step()
    seconds = statistics.median(plain.step() for _ in range(turns))
    base = plain.peak()
    rows = [
        f"## 4 × {width:,}: a plain step takes {1e3 * seconds:.1f} ms and {base / 2**20:.0f} MiB",
        "",
        "| term | step, in plain steps | asked for | passes alone | memory | published form | its "
        "memory | faster by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, case in ours.items():
        mine = ratios(plain, case, turns)
        other = theirs[name]
        published = ratios(plain, other, max(3, turns // 3))
        # Measured in turns again, because a quotient of two quotients would have the noise of four.
        faster = ratios(case, other, max(3, turns // 3))
        target = TARGETS[name][0 if width == 256 else 1]
        rows.append(
            f"| {name} | {mine:.2f} | {target} | {FLOORS[name]:.1f} | {case.peak() / base:.1f} | "
            f"{published:.2f} | {other.peak() / base:.1f} | {faster:.2f} × |"
        )
        print(rows[-1], flush=True)
    return [*rows, ""]


FITTED = {"AE": AE, "IRAE": IRAE, "MCAE": MCAE, "NRAE": NRAE}
SAMPLES, EPOCHS = 5000, 2


def pictures() -> Tensor:
    """5,000 × 784 numbers from 0 to 1 near a surface of four dimensions."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(SAMPLES, 4, generator=generator)
    w = torch.randn(4, DATA, generator=generator)
    return (z @ w).sigmoid() + 0.05 * torch.rand(SAMPLES, DATA, generator=generator)


def fitted(kind: type[AE], x: Tensor, settings: dict[str, Any]) -> float:
    """Seconds of ``EPOCHS`` epochs of a fit, without those of what comes before and after them."""

    def spent(epochs: int) -> float:
        start = time.process_time()
        kind(**settings, epochs=epochs).fit(x)
        return time.process_time() - start

    return spent(1 + EPOCHS) - spent(1)


def looped(objective: Objective, x: Tensor, batch: int, graph: Neighborhood) -> float:
    """Seconds of the same epochs in a loop that does nothing else."""
    parameters = list(objective.parameters())
    generator = torch.Generator().manual_seed(0)
    start = time.process_time()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        other = graph.sample(order, generator)
        for a in range(0, len(x), batch):
            near = x[other[a : a + batch]] if objective.variation.order else None
            loss, _ = objective(x[order[a : a + batch]], near, generator)
            optimizer.zero_grad()
            loss.backward()
            if objective.geometric:
                nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return time.process_time() - start


def plainly(objective: Objective, x: Tensor, batch: int) -> float:
    """Seconds of the same epochs of a plain autoencoder as one writes it in torch."""
    encoder, decoder = objective.encoder, objective.decoder
    generator = torch.Generator().manual_seed(0)
    start = time.process_time()
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for a in range(0, len(x), batch):
            part = x[order[a : a + batch]]
            loss = (decoder(encoder(part)) - part).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.process_time() - start


def fits(turns: int) -> list[str]:
    """The cost of ``fit`` in bare loops."""
    x = pictures()
    graph = Neighborhood.nearest(x, 10)
    rows = [
        f"## fit, compared with a loop ({SAMPLES:,} × {DATA}, m = {LATENT})",
        "",
        "Process time per step, without what comes before and after the epochs. *Same objective*: "
        "a loop in torch over the same objective and optimizer. *Plain*: a plain autoencoder in "
        "torch.",
        "",
        "| model | batch, hidden | ms per step | asked for | in steps of the same objective | in "
        "plain steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for batch, width, names in ((32, 32, FITTED), (64, 128, ("AE", "IRAE"))):
        settings: dict[str, Any] = {"batch_size": batch, "hidden": (width, width)}
        steps = EPOCHS * -(-len(x) // batch)
        for name in names:
            kind = FITTED[name]
            how = {**settings, **({"neighborhood": graph} if name == "NRAE" else {})}
            objective = new_objective(kind(**how), x).train()
            found = []
            for _ in range(turns):
                own = fitted(kind, x, how)
                loop = looped(objective, x, batch, graph)
                found.append((own, own / loop, own / plainly(objective, x, batch)))
            own, same, plain = (statistics.median(column) for column in zip(*found, strict=True))
            asked = "1.3 plain" if name == "AE" else "1.1"
            rows.append(
                f"| {name} | {batch}, 2 × {width} | {1e3 * own / steps:.2f} | {asked} | {same:.2f} "
                f"| {plain:.2f} |"
            )
            print(rows[-1], flush=True)
    return [*rows, ""]


def step_of(objective: Objective, x: Tensor, generator: torch.Generator) -> Case:
    """The step of an objective."""
    loss = partial(objective, x, None, generator)
    return Case(objective.encoder, objective.decoder, lambda: loss()[0])


PLANES = {
    "exact": {"estimator": "exact"},
    "planes, all points": {"estimator": "planes", "share": 1.0},
    "planes, half of the points (default)": {},
}


def planes(turns: int) -> list[str]:
    """The intrinsic curvature for m = 8 in plain steps, and how much the estimates scatter."""
    m = 8
    rows = [
        f"## MICAE with m = {m}: batch {BATCH}",
        "",
        "Asked for: at most 8 plain steps. *Scatter*: standard deviation of the value for one "
        "batch, relative to the exact one, at new networks.",
        "",
        "| | 4 × 256, D = 784 | scatter | 4 × 128, D = 64 | scatter |",
        "| --- | --- | --- | --- | --- |",
    ]
    cells: dict[str, list[str]] = {name: [] for name in PLANES}
    for width, data in ((256, 784), (128, 64)):
        torch.manual_seed(0)
        encoder, decoder = mlp(data, width, m), mlp(m, width, data)
        x = torch.rand(BATCH, data)
        generator = torch.Generator().manual_seed(0)
        bare = Objective(encoder, decoder, x)
        plain = step_of(bare, x, generator)
        for name, options in PLANES.items():
            terms = {"intrinsic_curvature": Term(WEIGHT, options=options)}
            own = Objective(encoder, decoder, x, terms=terms)
            case = step_of(own, x, generator)
            cost = ratios(plain, case, turns)
            with torch.no_grad():
                z = encoder(x)
                draws = [float(own.term("intrinsic_curvature", z, generator)) for _ in range(20)]
            scatter = statistics.stdev(draws) / statistics.mean(draws)
            cells[name] += [f"{cost:.1f}", f"{scatter:.2f}"]
            print(name, cells[name], flush=True)
    rows += [f"| {name} | " + " | ".join(found) + " |" for name, found in cells.items()]
    return [*rows, ""]


def steps(turns: int) -> list[str]:
    """The cost of a step for two sizes of networks."""
    lines = []
    for width, count in ((256, turns), (1024, max(5, turns // 3))):
        lines += table(width, count)
    return lines


def first_fits(turns: int) -> list[str]:
    """The cost of the first fit in a new process."""
    return cold(turns, pictures())


MAKERS = {"terms": steps, "fit": fits, "cold": first_fits, "fresh": fresh, "planes": planes}


def sections() -> dict[str, list[str]]:
    """The tables that were written before, by the parts that make them."""
    found: dict[str, list[str]] = {name: [] for name in MAKERS}
    part = ""
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else []:
        if line.startswith("## "):
            first = line.split()[1].rstrip(",")
            names = {"fit": "fit", "MICAE": "planes", "A": "fresh", "First": "cold"}
            part = names.get(first, "terms")
        if part:
            found[part].append(line)
    return {name: [*lines, ""] if lines and lines[-1] else lines for name, lines in found.items()}


def main() -> None:
    """Run what is asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--turns", type=int, default=31, help="turns at width 256; a third of them at 1024"
    )
    parser.add_argument("--only", choices=tuple(MAKERS), help="by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = [
        "# Training: cost of a step",
        "",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores, 1 thread, float32. Encoder and decoder 4 × width, SiLU, D = "
        f"{DATA}, "
        f"batch {BATCH}, m = {LATENT}, where nothing else is said.",
        "",
    ]
    found = sections()
    for name, make in MAKERS.items():
        if options.only in (None, name):
            turns = options.turns if name == "terms" else max(3, options.turns // 10)
            found[name] = make(turns)
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [line for name in MAKERS for line in found[name]]
    RESULTS.write_text("\n".join([*head, *lines]))
    print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
