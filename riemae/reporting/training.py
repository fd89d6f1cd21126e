"""How a training went, as a drawing that needs no script."""

from __future__ import annotations

import html
import math

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 12, 30
_LINES = 6  # curves at most, the first of the history
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "12 3")


def training_chart(history: dict[str, list[float]]) -> str:
    """The section on training with a chart of all curves, or nothing without a history.

    The scale is logarithmic where all values are positive.
    """
    curves = {name: v for name, v in history.items() if len(v) and any(map(math.isfinite, v))}
    curves = dict(list(curves.items())[:_LINES])
    if not curves:
        return ""
    values = [v for curve in curves.values() for v in curve if math.isfinite(v)]
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    if high <= low:
        high = low + 1
    epochs = max(map(len, curves.values()))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(k: int) -> float:
        return _LEFT + width * k / max(epochs - 1, 1)

    def y(v: float) -> float:
        return _TOP + height * (1 - (scale(v) - low) / (high - low))

    parts = [
        f'<line class="axis" x1="{_LEFT}" y1="{_TOP + height}" x2="{_LEFT + width}" '
        f'y2="{_TOP + height}"/>',
        f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">epoch</text>',
        f'<text x="{_LEFT}" y="{_TOP + height + 16}" text-anchor="middle">1</text>',
        f'<text x="{_LEFT + width}" y="{_TOP + height + 16}" text-anchor="middle">{epochs}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        level = low + share * (high - low)
        value = 10**level if logarithmic else level
        at = _TOP + height * (1 - share)
        parts.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.0f}" text-anchor="end">{value:.3g}</text>'
            f'<line class="grid" x1="{_LEFT}" y1="{at:.1f}" x2="{_LEFT + width}" y2="{at:.1f}"/>'
        )
    for k, (name, curve) in enumerate(curves.items()):
        points = [f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve) if math.isfinite(v)]
        row = _TOP + 12 + 18 * k
        style = f'class="curve curve-{k}" stroke-dasharray="{_DASHES[k]}"'
        parts.append(f'<polyline {style} points="{" ".join(points)}"/>')
        parts.append(
            f'<line {style} x1="{_LEFT + width + 12}" y1="{row - 4}" '
            f'x2="{_LEFT + width + 40}" y2="{row - 4}"/>'
            f'<text x="{_LEFT + width + 46}" y="{row}">{html.escape(name)}</text>'
        )
    first = next(iter(curves))
    last = [v for v in curves[first] if math.isfinite(v)][-1]
    trend = _trend(curves[first])
    return (
        '<section class="training" aria-labelledby="training-head">'
        '<h2 id="training-head">How the training went</h2>'
        f"<p>{html.escape(f'{first} after {epochs} epochs: {last:.4g}. {trend}')}</p>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Curves of the training by epoch">{"".join(parts)}</svg></section>'
    )


def _trend(curve: list[float]) -> str:
    """Whether the curve has come to rest."""
    values = [v for v in curve if math.isfinite(v)]
    if len(values) < len(curve):
        return "Some values are not finite: lower the learning rate."
    if len(values) < 10:
        return "Too few epochs to see a trend."
    tenth = max(1, len(values) // 10)
    late = sum(values[-tenth:]) / tenth
    before = sum(values[-2 * tenth : -tenth]) / tenth
    change = (before - late) / abs(before) if before else 0.0
    if change > 0.02:
        return "It was still falling: train longer."
    if change < -0.02:
        return "It was rising at the end: lower the learning rate, or stop earlier."
    return "It had come to rest."
