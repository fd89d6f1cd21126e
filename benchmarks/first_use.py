"""First use: a manifold that is made anew in every step, and a first fit in a new process.

Part of :mod:`benchmarks.training`, which writes the tables. Everything is processor time of one
thread. A training step with a new ``Manifold`` takes turns with the same step with one that is
kept. The processes read the same file of data; each imports what it needs and nothing else.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riemae import Manifold, ambient
from riemae.autoencoders import losses

EPOCHS = (6, 200)  # few, and the default
BATCH, LATENT, DATA = 128, 2, 50


class Gaussian(nn.Module):
    """A decoder of means and deviations."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _network(LATENT, 64)
        self.mean = nn.Linear(64, DATA)
        self.deviation = nn.Linear(64, DATA)

    def forward(self, z: Tensor) -> torch.distributions.Normal:  # (k, m)
        """A normal distribution for each number."""
        hidden = self.trunk(z)
        deviation = nn.functional.softplus(self.deviation(hidden)) + 1e-2
        return torch.distributions.Normal(self.mean(hidden), deviation)


def _network(inputs: int, outputs: int, width: int = 256) -> nn.Sequential:
    parts = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def _twice(x: Tensor) -> Tensor:
    return 1 + x.square()


def _cases() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    torch.manual_seed(0)
    weights = torch.rand(DATA) + 0.5
    kinds: dict[str, dict[str, Any]] = {
        "Euclidean": {},
        "`ambient.Diagonal`, one object": {"ambient": ambient.Diagonal(weights)},
        "a tensor": {"ambient": weights},
        "a function `x -> diagonal`": {"ambient": _twice},
    }
    found: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        name: (_network(LATENT, DATA), options) for name, options in kinds.items()
    }
    found["Fisher–Rao, decoder of normal distributions"] = (Gaussian(), {})
    return found


def _step(decoder: nn.Module, x: Tensor) -> Callable[[Manifold], None]:
    """A training step with the isometric term."""
    encoder = _network(DATA, LATENT)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)

    def step(M: Manifold) -> None:
        z = encoder(x)
        decoded = decoder(z)
        mean = decoded if isinstance(decoded, Tensor) else decoded.mean
        loss = (mean - x).square().mean() + 0.01 * losses.relaxed_distortion(M, z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def fresh(turns: int) -> list[str]:
    """What a manifold costs that is made anew in every step."""
    rows = [
        "## A new manifold in every step",
        "",
        f"A training step with the isometric term, 2 × 256, batch {BATCH}, D = {DATA}, m = "
        f"{LATENT}, Adam, float32. *First*: the first step of all, which looks at the decoder. "
        "*Kept*: with one manifold. *More*: added by `Manifold(decoder)` made in each step, "
        "median of differences.",
        "",
        "| ambient metric | first, ms | kept, ms | more, ms |",
        "| --- | --- | --- | --- |",
    ]
    x = torch.rand(BATCH, DATA)
    for name, (decoder, options) in _cases().items():
        step = _step(decoder, x)

        def new(decoder: nn.Module = decoder, options: dict[str, Any] = options) -> Manifold:
            return Manifold(decoder, **options)

        first = _seconds(step, new)
        kept = new()
        step(kept)
        for _ in range(70):  # the 8th and the 64th look again
            step(new())
        pairs = []
        for _ in range(10 * turns):
            base = _seconds(step, partial(_itself, kept))
            pairs.append((base, _seconds(step, new)))
        base = statistics.median(a for a, _ in pairs)
        more = statistics.median(b - a for a, b in pairs)
        rows.append(f"| {name} | {1e3 * first:.1f} | {1e3 * base:.2f} | {1e3 * more:.2f} |")
        print(rows[-1], flush=True)
    return [*rows, ""]


def _itself(M: Manifold) -> Manifold:
    return M


def _seconds(step: Callable[[Manifold], None], make: Callable[[], Manifold]) -> float:
    start = time.process_time()
    step(make())
    return time.process_time() - start


_LOADED = """
import time, sys
import torch
torch.set_num_threads(1)
x = torch.load(sys.argv[1])
epochs = int(sys.argv[2])
marks = [time.process_time()]
"""
_PLAIN = """
from torch import nn
def mlp(a, b):
    return nn.Sequential(
        nn.Linear(a, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, b)
    )
encoder, decoder = mlp(x.shape[1], 2), mlp(2, x.shape[1])
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
marks += [time.process_time()] * 2
for _ in range(epochs):
    for rows in torch.randperm(len(x)).split(256):
        part = x[rows]
        loss = (decoder(encoder(part)) - part).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
_OURS = """
from riemae.autoencoders import AE
marks.append(time.process_time())
import lightning.pytorch
marks.append(time.process_time())
AE(epochs=epochs).fit(x)
"""
_TOLD = """
marks.append(time.process_time())
print(*marks)
"""


def cold(turns: int, x: Tensor, epochs: tuple[int, ...] = EPOCHS) -> list[str]:
    """What the first fit in a new process costs, compared with a plain loop in another one."""
    rows = [
        f"## First fit in a new process ({len(x):,} × {x.shape[1]})",
        "",
        "`AE(epochs=…).fit(x)`, batch 256, 2 × 128, and the same autoencoder in a plain loop in "
        "torch, seconds of processor time with all imports. Asked for: 1.3 plain loops. Making an "
        "optimizer imports torch's compiler (`torch._dynamo`), which lightning needs as well: a "
        "plain loop pays it under *imports*.",
        "",
        "| epochs | | torch | imports | lightning | fit | in all | in plain loops |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.pt"
        torch.save(x, file)
        for count in epochs:
            # Long runs need no repetition: what varies is the start.
            repeated = turns if count < 100 else 1
            plain = _process(_PLAIN, file, count, repeated)
            ours = _process(_OURS, file, count, repeated)
            for name, parts in (("plain loop", plain), ("`AE`", ours)):
                cells = " | ".join(f"{part:.2f}" for part in parts)
                ratio = sum(parts) / sum(plain)
                rows.append(f"| {count} | {name} | {cells} | {sum(parts):.2f} | {ratio:.2f} |")
                print(rows[-1], flush=True)
    return [*rows, ""]


def _process(code: str, file: Path, epochs: int, turns: int) -> list[float]:
    """Seconds of each part, medians over new processes."""
    found = []
    for _ in range(turns):
        command = [sys.executable, "-W", "ignore", "-c", _LOADED + code + _TOLD]
        told = subprocess.run(
            [*command, str(file), str(epochs)], check=True, capture_output=True, text=True
        )
        marks = [float(word) for word in told.stdout.split()]
        pairs = zip([0.0, *marks[:-1]], marks, strict=True)
        found.append([after - before for before, after in pairs])
    return [statistics.median(column) for column in zip(*found, strict=True)]
