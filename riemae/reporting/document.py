"""One file that shows a latent space to a person, and says how far to believe what it shows."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, FileError, NonFiniteError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_finite, expect_range
from riemae.numerics.html import table
from riemae.reporting.arguments import Images, Labels, as_history, as_tensor, expect_codes
from riemae.reporting.embedding import FittedDecoder
from riemae.reporting.findings import Finding, Level, findings, verdict
from riemae.reporting.measures import (
    Pairs,
    compare_with_data,
    decoded,
    measure_locally,
    sampled_pairs,
    solve_pairs,
)
from riemae.reporting.payload import Scene, payload
from riemae.reporting.periods import drawn_once
from riemae.reporting.training import training_chart
from riemae.solvers.progress import reported
from riemae.storage.atomic import write_atomically
from riemae.version import __version__

__all__ = ["Report", "report"]

_WHERE = "report"
_SHOWN = 20000  # points in the page at most
_LABEL = 24  # letters of a label in its table
_WORST = 8  # pairs in its table
_STAGES = {"pairs": 50, "numbers": 15, "page": 35}  # shares of the progress, in per cent
# The order matters: each uses those before it.
_SCRIPTS = ("metric.js", "geodesic.js", "map.js", "charts.js", "page.js")


@dataclass(frozen=True, eq=False)
class Report:
    """What a report says, and where it is.

    Attributes:
        path: The file.
        verdict: Whether distances in the plot are meaningful, in a sentence.
        level: Of the verdict: ``"good"``, ``"fair"``, ``"poor"``, or ``"note"`` where too little
            could be measured.
        numbers: All numbers by name, NaN where one could not be measured.
        findings: The same with what they mean and what to do, in the order of the page.
        pairs: The sampled geodesics: ``pairs.index``, ``pairs.result``, ``pairs.straight``.
    """

    path: Path
    verdict: str
    level: Level
    numbers: dict[str, float]
    findings: tuple[Finding, ...]
    pairs: Pairs = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether all sampled geodesics reached their accuracy."""
        return bool(self.pairs.result.converged.all())

    def __repr__(self) -> str:
        rows = [f"  {f.title:<30}{f.text:>14}  {f.level}" for f in self.findings]
        return "\n".join([f"Report({self.path})", self.verdict, *rows])

    def _repr_html_(self) -> str:
        rows = [(f.title, f.text, f.level) for f in self.findings]
        path = html.escape(str(self.path))
        page = table("Report", rows, ("", "value", "level"), self.verdict)
        return f'<div><p><a href="{path}">{path}</a></p>{page}</div>'


def report(
    M: Manifold,
    z: Any,
    labels: Any = None,
    *,
    path: str | os.PathLike[str] = "report.html",
    title: str | None = None,
    images: Any = None,
    data: Any = None,
    explained: float | None = None,
    features: Sequence[str] | None = None,
    history: Any = None,
    pairs: int = 100,
    landmarks: int = 10,
    rtol: float | None = None,
    resolution: int | None = None,
    condition: Any = None,
    seed: int = 0,
    progress: Callable[[int, int], object] | bool | None = None,
) -> Report:
    """Write one offline HTML file about a latent space.

    With two latent dimensions one drags two points in it, and the geodesic between them is solved
    in the browser from a table of the metric, next to lengths that riemae has computed itself. With
    one it shows the magnification, and with more a section through the codes and geodesics among
    landmarks. Below are numbers, with what they mean and what to do. The file needs no network.

    Args:
        M: The manifold; for coordinates that somebody else has made, see
            :func:`riemae.fit_decoder`.
        z: Codes ``(n, m)``, as a tensor, an array or a data frame. All but tensors are converted to
            the decoder's dtype.
        labels: One per point: words or classes, which get colours and shapes, or fractional
            numbers, which get a scale.
        path: Of the file, which appears whole or not at all.
        title: Of the page.
        images: Where outputs are images, their shape, ``(H, W)``, ``(1, H, W)`` or ``(3, H, W)``;
            or the images of all points, ``(n, *shape)``, which are shown for the points.
        data: ``(n, *shape)``, the data behind the codes, in the units of the decoder's output; for
            folds and for what the codes explain. By default the images, if they are given, and what
            a decoder of ``fit_decoder`` was fitted to.
        explained: Share of the data that the codes explain, where data cannot be compared with
            outputs, as counts with logarithms of rates: such as ``model.score(x)`` of an estimator.
        features: Names of the D outputs.
        history: Of the training, to be shown: numbers per epoch by name, such as ``history_`` of an
            estimator.
        pairs: Geodesics between random codes from which distances are judged.
        landmarks: Codes among which geodesics are shown, for m > 2.
        rtol: Accuracy of all geodesics, as in :meth:`riemae.Manifold.geodesic`.
        resolution: Nodes a side of the metric's table, for m = 2; by default 64, and more where
            lengths would be wrong by more than 0.2 %.
        condition: Of a decoder that takes conditions, the one of all codes: ``(1, *shape)``, in the
            structure in which the decoder takes conditions; an integer is a label. See
            :meth:`riemae.Manifold.given`.
        seed: Of what is drawn.
        progress: Called with (per cent done, 100); True shows a bar.

    Raises:
        ShapeError: When codes, labels, images, data or features do not fit each other.
        NonFiniteError: For NaN or infinity in the codes or the data.
        DTypeError: For arguments of a wrong type.
        OptionError: For options out of their range, several conditions, or fewer than two codes.
        DecoderError: For a condition of a decoder that takes none.
        FileError: When the file cannot be written; nothing is left behind then.
    """
    file = _expect_path(path)
    if not isinstance(M, Manifold):
        hint = "Wrap the decoder: riemae.Manifold(decoder)."
        raise DTypeError(_WHERE, "a riemae.Manifold", type(M).__name__, hint)
    if condition is not None:
        M = M.given(condition)
    codes = _codes(M, z)
    n = len(codes)
    expect_range(_WHERE, "pairs", pairs, 1, integer=True)
    expect_range(_WHERE, "landmarks", landmarks, 2, 64, integer=True)
    if resolution is not None:
        expect_range(_WHERE, "resolution", resolution, 8, 512, integer=True)
    if explained is not None:
        expect_range(_WHERE, "explained", explained, -math.inf, 1)
    named = Labels.of(_WHERE, labels, n)
    shown_as = Images.of(_WHERE, images, n)
    curves = as_history(_WHERE, history)
    with reported(_WHERE, progress, "report") as told, torch.no_grad():
        stages = _Stages(told)
        known = _expect_data(M, codes, data, shown_as, features)
        codes = drawn_once(M, codes)
        stages.within("pairs", 0, 1)
        index = sampled_pairs(n, pairs, seed).to(codes.device)
        solved = solve_pairs(M, codes, index, rtol, stages.of("pairs"))
        local = measure_locally(M, codes, seed)
        stages.within("numbers", 1, 2)
        fidelity = None if known is None else compare_with_data(M, codes, known, seed)
        stages.within("numbers", 1, 1)
        scene = Scene(
            M=M,
            z=codes,
            shown=_drawn(n, seed).to(codes.device),
            labels=named,
            images=shown_as,
            data=known,
            names=() if features is None else tuple(map(str, features)),
            pairs=solved,
        )
        content = payload(scene, resolution, landmarks, stages.of("page"))
    fit = M.decoder.summary if isinstance(M.decoder, FittedDecoder) else None
    found = findings(solved, local, fidelity, fit, codes.shape[1], explained)
    level, sentence = verdict(found)
    numbers = {finding.key: finding.value for finding in found} | scene.numbers
    heading = title or "A latent space and its geometry"
    page = _Page(heading, level, sentence, found, scene, curves).html(content)
    _write(file, page.encode("utf-8"))
    stages.within("page", 1, 1)
    return Report(file, sentence, level, numbers, tuple(found), solved)


class _Stages:
    """Progress of several parts as one, in per cent."""

    def __init__(self, told: Callable[[int, int], object] | None) -> None:
        self._told = told
        self._last = -1

    def of(self, stage: str) -> Callable[[int, int], None]:
        """Progress of one part."""

        def update(done: int, total: int) -> None:
            self.within(stage, done, total)

        return update

    def within(self, stage: str, done: int, total: int) -> None:
        """A part has done so much of its total; what was told already stays."""
        before = 0
        for name, share in _STAGES.items():
            if name == stage:
                before += share * done // max(total, 1)
                break
            before += share
        if self._told is not None and before > self._last:
            self._last = before
            self._told(before, 100)


def _expect_path(path: Any) -> Path:
    """The file, in a folder that exists.

    Raises:
        DTypeError: When it is not a path.
        FileError: When no file can be written there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise DTypeError(_WHERE, "path as a path", type(path).__name__, "Try path='report.html'.")
    file = Path(path)
    if file.is_dir():
        hint = "Name the file, such as 'report.html'."
        raise FileError(_WHERE, "path of a file", f"a folder, {file}", hint)
    if not file.parent.is_dir():
        hint = f"Make the folder {file.parent} first."
        raise FileError(_WHERE, f"a folder for {file}", "none", hint)
    if not os.access(file.parent, os.W_OK):
        hint = "Choose another folder."
        raise FileError(_WHERE, f"a folder to write to for {file}", "no permission", hint)
    return file


def _write(file: Path, content: bytes) -> None:
    """Put the file in place at once.

    Raises:
        FileError: When the disk refuses.
    """
    try:
        write_atomically(file, content)
    except OSError as reason:
        hint = "Choose another path; nothing was left behind."
        raise FileError(_WHERE, f"to write {file}", str(reason), hint) from reason


def _codes(M: Manifold, z: Any) -> Tensor:
    """Codes as a tensor; arrays take the dtype that the decoder computes in."""
    codes = as_tensor(_WHERE, "z", z)
    if codes.ndim == 1:
        codes = codes[:, None]
    expect_codes(_WHERE, codes)
    if isinstance(z, Tensor):
        return codes
    for dtype in (codes.dtype, torch.float64, torch.float32):
        try:
            M.decode(codes[:1].to(dtype))
        except DTypeError:
            continue
        except NonFiniteError:
            pass  # the dtype is right, and this code is outside the domain
        return codes.to(dtype)
    return codes


def _drawn(n: int, seed: int) -> Tensor:
    """Which points are shown."""
    if n <= _SHOWN:
        return torch.arange(n)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:_SHOWN].sort().values


def _expect_data(
    M: Manifold, z: Tensor, data: Any, images: Images | None, features: Sequence[str] | None
) -> Tensor | None:  # -> (n, D)
    """The data of the codes, flattened, if they are known; checks what has to fit the outputs.

    Raises:
        ShapeError: When data, images or features do not fit the decoder's output.
    """
    d = decoded(M, z[:1]).shape[1]
    hint = "Is it the decoder of these data?"
    if images is not None and images.pixels != d:
        shape = (images.channels, images.height, images.width)
        remedy = "Give the shape of one decoded image."
        raise ShapeError(_WHERE, f"images of {d} numbers, as outputs are", str(shape), remedy)
    if features is not None and (isinstance(features, str) or len(features) != d):
        got = "a string" if isinstance(features, str) else str(len(features))
        raise ShapeError(_WHERE, f"{d} names of features", got, "Give one per output.")
    known: Tensor | None = None
    if data is not None:
        known = as_tensor(_WHERE, "data", data)
        if len(known) != len(z) or known[0].numel() != d:
            expected = f"data of {len(z)} samples with {d} numbers each"
            raise ShapeError(_WHERE, expected, str(tuple(known.shape)), hint)
        known = known.flatten(1)
    elif isinstance(M.decoder, FittedDecoder) and len(M.decoder.data) == len(z):
        if torch.equal(M.decoder.embedding.to(z), z):
            known = M.decoder.data
    elif images is not None and images.given is not None:
        known = images.given.flatten(1)
    if known is None:
        return None
    expect_finite(_WHERE, "data", known, "Drop these samples.")
    return known.to(z)


@cache
def _asset(name: str) -> str:
    return resources.files("riemae.reporting").joinpath(f"assets/{name}").read_text("utf-8")


def as_json(content: object) -> str:
    """JSON that can stand inside a script element, whatever its strings say."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(code: str) -> str:
    """How a content security policy names a script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"


@dataclass(frozen=True, eq=False)
class _Page:
    """The text of the page; everything that a user has given is escaped."""

    title: str
    level: Level
    verdict: str
    findings: list[Finding]
    scene: Scene
    history: dict[str, list[float]]

    def html(self, content: dict[str, Any]) -> str:
        """The whole page around its data."""
        style = _asset("page.css")
        script = "\n".join(_asset(name) for name in _SCRIPTS)
        # Nothing else runs or is fetched, whatever a label says.
        policy = (
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_digest(style)}; script-src {_digest(script)}"
        )
        parts = {
            "title": html.escape(self.title),
            "policy": html.escape(policy),
            "style": style,
            "verdict": html.escape(self.verdict),
            "level": self.level,
            "kind": content["kind"],
            "facts": html.escape(self._facts()),
            "findings": "\n".join(map(_card, self.findings)),
            "worst": self._worst(),
            "scope": self._scope(),
            "place": "In the plot" if self.scene.z.shape[1] <= 2 else "In latent space",
            "training": training_chart(self.history),
            "colophon": html.escape(self._colophon(content)),
            "data": as_json(content),
            "script": script,
        }
        page = _asset("page.html")
        out = []
        # One pass: what is put in is not looked through again.
        for piece in page.split("{{"):
            name, mark, rest = piece.partition("}}")
            out.append(parts[name.strip()] + rest if mark else piece)
        return "".join(out)

    def _facts(self) -> str:
        n, m = self.scene.z.shape
        facts = [f"{n:,} points", f"{m} latent dimension{'s' if m > 1 else ''}", repr(self.scene.M)]
        if len(self.scene.shown) < n:
            facts.insert(1, f"{len(self.scene.shown):,} of them drawn")
        return " · ".join(facts)

    def _scope(self) -> str:
        """What the numbers call the plot, where the map shows a part of it only."""
        m = self.scene.z.shape[1]
        if m <= 2:
            return ""
        return (
            f"<p>Here, distances in the plot are those in the latent space of all {m} dimensions. "
            "The map above is a plane through it, onto which the points are projected.</p>"
        )

    def _worst(self) -> str:
        pairs = self.scene.pairs
        texts = self.scene.labels.texts
        rows = []
        for k in pairs.worst(_WORST):
            ends = pairs.index[k].tolist()
            names = [f"#{i}" + (f" ({_clipped(texts[i])})" if texts else "") for i in ends]
            stretch = float(pairs.stretch[k])
            word = "farther" if stretch > 1 else "closer"
            factor = stretch if stretch > 1 else 1 / stretch
            label = f"{names[0]} – {names[1]}"
            rows.append(
                f'<tr><td><button type="button" class="pair" data-pair="{k}">'
                f"{html.escape(label)}</button></td>"
                f"<td>{float(pairs.result.length[k]):.4g}</td>"
                f"<td>{float(pairs.euclidean[k]):.4g}</td>"
                f"<td>{factor:.1f}× {word} than they look</td></tr>"
            )
        return "\n".join(rows)

    def _colophon(self, content: dict[str, Any]) -> str:
        result = self.scene.pairs.result
        parts = [
            f"riemae {__version__}",
            f"{len(result.length)} geodesics to a relative accuracy of {result.rtol:.0e}",
            f"{str(self.scene.z.dtype).removeprefix('torch.')}",
        ]
        if content["kind"] == "plane":
            nodes = "×".join(map(str, content["table"]["counts"]))
            parts.append(f"metric tabulated at {nodes} points")
            if content["tableError"] is not None:
                parts.append(f"lengths by the table right to {content['tableError']:.1e}")
        if content["kind"] == "section":
            parts.append(f"section chosen by {content['chosenBy']}")
        return " · ".join(parts)


def _clipped(label: str) -> str:
    """A label that may be long, shortened in the middle."""
    if len(label) <= _LABEL:
        return label
    tail = _LABEL // 3
    return f"{label[: _LABEL - tail - 1]}…{label[-tail:]}"


def _card(finding: Finding) -> str:
    advice = f'<p class="advice">{html.escape(finding.advice)}</p>' if finding.advice else ""
    word = {"good": "fine", "fair": "take care", "poor": "misleading", "note": "for the record"}
    return (
        f'<article class="card {finding.level}" id="number-{finding.key}">'
        f"<h3>{html.escape(finding.title)}</h3>"
        f'<p class="value">{html.escape(finding.text)}'
        f' <span class="level">{word[finding.level]}</span></p>'
        f"<p>{html.escape(finding.meaning)}</p>{advice}</article>"
    )
