"""What is promised on an accelerator, beside what it does there.

    make device                                      # tests, the zoo, and this
    python -m benchmarks.device --device cuda        # writes results/device.md
    python -m benchmarks.device --quick              # small sizes, on the CPU; nothing written

Times are wall times after a call that warms up, with the device synchronised. Two columns hold on
every machine: *operations* that a call hands to torch, and *reads*, at which the processor waits
for a number from the device. Both decide how long a small call takes on an accelerator, whose
kernels are shorter than the way to them.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.growth import memory, reset_peak
from benchmarks.problems import network
from benchmarks.training import mlp
from benchmarks.zoo import once, pairs, seconds
from benchmarks.zoo_decoders import LATENT, ZOO, ResidualBlock, built
from riemae import Manifold, solvers
from riemae.autoencoders.objective import Objective, Variation
from riemae.exceptions import RiemaeError

RESULTS = Path(__file__).parent / "results" / "device.md"
RTOL = 1e-4
WEIGHT = 0.01
# Operations at which the processor has to know a number, or how many there are.
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
COPIES = {"aten::_to_copy", "aten::copy_"}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was measured.
        found: The number with its unit.
        promised: The limit in the same unit; empty where there is none.
        kept: Whether it is kept; None where there is no promise.
        operations: Operations of one call; None where they were not counted.
        reads: Numbers that the processor waited for in one call.
    """

    name: str
    found: str
    promised: str = ""
    kept: bool | None = None
    operations: int | None = None
    reads: int | None = None


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are what the promises are about."""

    pairs: tuple[int, ...] = (1, 1_000, 100_000)
    image: int = 64
    channels: int = 64
    images: int = 8
    image_rtol: float = 1e-3
    decoders: tuple[str, ...] = tuple(ZOO)
    width: int = 256
    batch: int = 256
    data: int = 784


QUICK = Sizes((1, 4), 16, 4, 1, 0.3, ("transformer", "Gaussian"), 8, 16, 5)


class Operations(TorchDispatchMode):
    """Counts operations, and those at which the processor waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and count it."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.counts["operations"] += 1
        copied = name in COPIES and _arrives(out, args)
        self.counts["reads"] += name in READS or copied
        return out


def _arrives(out: Any, args: tuple[Any, ...]) -> bool:
    """Whether a copy goes from a device to the processor."""
    sources = [x for x in args if isinstance(x, Tensor)]
    away = any(x.device.type != "cpu" for x in sources)
    return away and isinstance(out, Tensor) and out.device.type == "cpu"


def counted(call: Callable[[], object]) -> Counter[str]:
    """Operations and reads of one call."""
    with Operations() as mode:
        call()
    return mode.counts


class ResNet(nn.Module):
    """Residual blocks with upsampling between them, ``(b, 8) -> (b, 3, size, size)``."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        side = size // 8
        self.start = nn.Sequential(
            nn.Linear(LATENT, channels * side * side), nn.Unflatten(1, (channels, side, side))
        )
        layers: list[nn.Module] = []
        for factor in (1, 2, 4):
            wide = max(4, channels // factor)
            narrow = max(4, channels // (2 * factor))
            layers += [ResidualBlock(wide, narrow), nn.Upsample(scale_factor=2)]
        last = max(4, channels // 8)
        self.layers = nn.Sequential(*layers, ResidualBlock(last, last), nn.Conv2d(last, 3, 3, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """Images of codes."""
        return self.layers(self.start(z))


def seeded(make: Callable[[], nn.Module], device: str) -> nn.Module:
    """A decoder in float32 with the same weights every time, ready for use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(device).requires_grad_(False).eval()


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of a call after one that warms up: a median where it is short."""
    call()
    first = once(call, device)[1]
    return first if first > 0.3 else seconds(call, device)


def peak(call: Callable[[], object], device: str) -> float:
    """MiB that a call needs at most: of the device, or of the process on the CPU."""
    if device == "cpu":
        reset_peak()
        before = memory("VmRSS")
        call()
        return memory("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / 2**20


def network_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    """Geodesics of a network of three layers, in float32."""
    manifold = Manifold(seeded(lambda: network((LATENT, 256, 256, 64)), device))
    limits = {1: 12.0, 1_000: 30.0}
    for count in sizes.pairs:
        z0, z1 = pairs(count, torch.float32, device)

        def call(a: Tensor = z0, b: Tensor = z1) -> solvers.GeodesicResult:
            return manifold.geodesic(a, b, rtol=RTOL, throw=False)

        taken = timed(call, device)
        done = int(call().converged.sum())
        found = f"{1e3 * taken:.1f} ms"
        promised = ""
        kept = None
        if count in limits:
            promised = f"≤ {limits[count]:g} ms"
            kept = 1e3 * taken <= limits[count]
        elif count >= 100_000:
            found = f"{count / taken:,.0f} pairs/s"
            promised = "≥ 150,000 pairs/s"
            kept = count / taken >= 150_000
        counts = counted(call)
        name = f"MLP, {count:,} pair(s), {done:,} converged"
        yield Row(name, found, promised, kept, counts["operations"], counts["reads"])


def image_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    """Geodesics of a decoder of images, and their memory."""
    manifold = Manifold(seeded(lambda: ResNet(sizes.image, sizes.channels), device))
    z0, z1 = pairs(sizes.images, torch.float32, device)

    def call() -> solvers.GeodesicResult:
        return manifold.geodesic(z0, z1, rtol=sizes.image_rtol, throw=False)

    most = peak(call, device) / 1024
    found, taken = once(call, device)
    counts = counted(call)
    name = f"ResNet {sizes.image}×{sizes.image}×3, {sizes.images} pairs"
    done = f", {int(found.converged.sum())} converged"
    yield Row(name + done, f"{taken:.3f} s", "≤ 0.25 s", taken <= 0.25, *_both(counts))
    yield Row(f"{name}, peak memory", f"{most:.2f} GiB", "≤ 4 GiB", most <= 4)


def _both(counts: Counter[str]) -> tuple[int, int]:
    return counts["operations"], counts["reads"]


@contextlib.contextmanager
def coarse_products() -> Iterator[None]:
    """``torch.set_float32_matmul_precision("high")``, and as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def zoo_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    """Whether any decoder is refused, by what the caller has set in torch."""
    settings: dict[str, Callable[[], Any]] = {
        "torch's defaults": contextlib.nullcontext,
        'matmul precision "high"': coarse_products,
        "bf16 autocast": lambda: torch.autocast(device.split(":")[0], torch.bfloat16),
    }
    for title, setting in settings.items():
        refused = []
        for name in sizes.decoders:
            manifold = Manifold(built(name, torch.float32).to(device))
            z0, z1 = pairs(2, torch.float32, device)
            try:
                with setting():
                    manifold.metric(z0)
                    manifold.geodesic(z0, z1, rtol=1e-2, throw=False)
            except RiemaeError as reason:
                refused.append(f"{name}: {type(reason).__name__}")
        found = ", ".join(refused) or f"0 of {len(sizes.decoders)}"
        yield Row(f"refused under {title}", found, "0", not refused)


def training_rows(sizes: Sizes, device: str) -> Iterator[Row]:
    """Forward and backward pass of the losses, in those of a plain autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = mlp(sizes.data, sizes.width, 2).to(device)
        decoder = mlp(2, sizes.width, sizes.data).to(device)
        x, neighbor = torch.rand(2, sizes.batch, sizes.data).to(device)
    generator = torch.Generator(device).manual_seed(0)
    kinds: dict[str, tuple[dict[str, float], int | None]] = {
        "AE": ({}, None),
        "IRAE": ({"relaxed_distortion": WEIGHT}, None),
        "NRAE-L": ({}, 1),
        "NRAE-Q": ({}, 2),
        "MECAE": ({"extrinsic_curvature": WEIGHT}, None),
    }
    plain = 1.0
    for name, (terms, order) in kinds.items():
        variation = Variation(order=order)
        objective = Objective(encoder, decoder, x, terms=terms, variation=variation).to(device)
        near = None if order is None else neighbor

        def step(loss: Objective = objective, near: Tensor | None = near) -> None:
            loss.zero_grad()
            loss(x, near, generator)[0].backward()

        taken = timed(step, device)
        if name == "AE":
            plain = taken
        found = f"{1e3 * taken:.2f} ms, {taken / plain:.1f} plain steps"
        yield Row(f"{name}, a training step", found, "", None, *_both(counted(step)))


PARTS = (network_rows, image_rows, zoo_rows, training_rows)


def measured(sizes: Sizes, device: str) -> Iterator[Row]:
    """All rows; a part that fails is one, too."""
    for part in PARTS:
        try:
            yield from part(sizes, device)
        except (RiemaeError, RuntimeError) as reason:
            said = str(reason).strip().splitlines()[0][:120]
            yield Row(part.__name__, f"{type(reason).__name__}: {said}", "no error", False)


def table(rows: Iterable[Row]) -> str:
    """In Markdown, with what is not kept in bold."""
    heads = ("what", "measured", "promised", "kept", "operations", "reads")
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    words = {None: "", True: "yes", False: "**no**"}
    for row in rows:
        numbers = ["" if n is None else f"{n:,}" for n in (row.operations, row.reads)]
        cells = (row.name, row.found, row.promised, words[row.kept], *numbers)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def without_limits(row: Row) -> Row:
    """The row, unjudged where its promise is of time or memory."""
    return replace(row, kept=None) if row.promised.startswith(("≤", "≥")) else row


def place(device: str) -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    if device != "cpu":
        name = torch.cuda.get_device_name(device)
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    once(lambda: torch.zeros(1, device=given.device), given.device)
    rows = list(measured(QUICK if given.quick else Sizes(), given.device))
    if given.quick or given.device == "cpu":  # times are promised of an accelerator
        rows = [without_limits(row) for row in rows]
    text = table(rows)
    print(text)
    if given.quick:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    head = f"# On a device\n\n{place(given.device)}. Float32; see `benchmarks/device.py`.\n\n"
    RESULTS.write_text(f"{head}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
