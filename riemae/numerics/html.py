"""Small tables in HTML, as notebooks show objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_TABLE = '<table style="text-align:left;border-collapse:collapse">'
_CELL = "text-align:left;padding:0.15em 1em 0.15em 0"


def table(
    title: str,
    rows: Iterable[Sequence[object]],
    header: Sequence[str] | None = None,
    note: str | Sequence[str] = "",
) -> str:
    """A table with a title; every text is escaped.

    Args:
        title: Above the table.
        rows: Cells of each row. Without a header the first cell of a row is its name.
        header: Names of the columns.
        note: Below the table: a paragraph, or several.
    """
    parts = [_TABLE, f'<caption style="text-align:left"><b>{escape(title)}</b></caption>']
    if header is not None:
        names = "".join(_cell("th", name) for name in header)
        parts.append(f"<thead><tr>{names}</tr></thead>")
    parts.append("<tbody>")
    for row in rows:
        kinds = ["td"] * len(row) if header is not None else ["th", *["td"] * (len(row) - 1)]
        cells = "".join(_cell(kind, value) for kind, value in zip(kinds, row, strict=True))
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</tbody></table>")
    notes = [note] if isinstance(note, str) else note
    parts += [f"<p>{escape(text)}</p>" for text in notes if text]
    return f"<div>{''.join(parts)}</div>"


def _cell(kind: str, value: object) -> str:
    return f'<{kind} style="{_CELL}">{escape(str(value))}</{kind}>'
