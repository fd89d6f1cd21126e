"""What commands write: files that appear whole or not at all, JSON, and tables on the terminal."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import FileError, MissingExtraError, OptionError
from riemae.storage.atomic import write_atomically

_PLACE = "Choose another --out, or make room and permissions for this one."
_WIDE = 200  # characters in a line of a file
_STDOUT = "riemae.cli.stdout"  # the entry of a click context
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def expect_format(path: Path, formats: Sequence[str]) -> None:
    """Refuse a file whose ending says no format that the command writes.

    Raises:
        OptionError: When it does not.
    """
    if path.suffix.lower() not in formats:
        known = ", ".join(formats)
        got = f"{str(path)!r}"
        raise OptionError(
            "--out", f"a file that ends in {known}", got, f"Try {path.stem}{formats[0]}."
        )


def expect_place_for(path: Path, folder: bool = False) -> None:
    """Try whether a result can be written, before the work begins; nothing is left behind.

    Args:
        path: Of the file, or of the folder.
        folder: Whether the result is a folder.

    Raises:
        FileError: When there is no place for it.
    """
    if path.is_dir() and not folder:
        raise FileError("--out", "a file", f"the folder {path}", "Name a file in it.")
    place = path if folder else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    with writing(path), tempfile.TemporaryFile(dir=place):
        pass


def make_folder(folder: Path, path: Path) -> None:
    """Make the folder of a result, also when it has vanished since the work began.

    Args:
        folder: The folder.
        path: The result, for the error.
    """
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence why something cannot be written.

    Args:
        path: What is written.

    Raises:
        FileError: For an error of the file system.
    """
    try:
        yield
    except OSError as reason:
        got = (reason.strerror or str(reason)).rstrip(".").lower()
        raise FileError("--out", f"a place where {path} can be written", got, _PLACE) from reason


def write_file(path: Path, content: bytes) -> Path:
    """Put bytes at a path in one step; the folder is made again if it has vanished.

    Raises:
        FileError: When it cannot be written; nothing is then left at the path.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Where to write a file that goes to a path in one step when the context ends well.

    Args:
        path: Of the file; its folder is made again if it has vanished.

    Raises:
        FileError: When it cannot be written; nothing is then left.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """A JSON file, with null for numbers that do not exist."""
    return write_file(path, json.dumps(plain(content), indent=1).encode() + b"\n")


def write_columns(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray | Tensor]) -> Path:
    """A table with named columns of equal length, as csv, tsv or parquet.

    Numbers are written with all their digits.

    Raises:
        MissingExtraError: For parquet, when pyarrow is not installed.
    """
    named = {name: _listed(values) for name, values in columns.items()}
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as reason:
            hint = "Try: pip install 'riemae[tables]'"
            raise MissingExtraError("--out", "pyarrow", "no such package", hint) from reason
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(named), buffer)
        return write_file(path, buffer.getvalue())
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=_SEPARATORS[path.suffix.lower()], lineterminator="\n")
    writer.writerow(named)
    writer.writerows(zip(*named.values(), strict=True))
    return write_file(path, text.getvalue().encode())


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> Path:
    """Arrays by name as npz, or one array as npy; strings are kept as text, never as objects."""
    buffer = io.BytesIO()
    ready: dict[str, Any] = {
        name: _array(value) for name, value in arrays.items() if value is not None
    }
    if path.suffix.lower() == ".npy":
        (array,) = ready.values()
        np.save(buffer, array, allow_pickle=False)
    else:
        np.savez_compressed(buffer, **ready)
    return write_file(path, buffer.getvalue())


def write_matrix(path: Path, matrix: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Path:
    """A matrix with names of its rows and columns, as csv or tsv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=_SEPARATORS[path.suffix.lower()], lineterminator="\n")
    writer.writerow(["", *columns])
    writer.writerows([name, *line] for name, line in zip(rows, matrix.tolist(), strict=True))
    return write_file(path, text.getvalue().encode())


def plain(value: Any) -> Any:
    """A value as JSON holds it; NaN and infinity, which it has not, become null."""
    if isinstance(value, (Tensor, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple, set)):
        return [plain(inner) for inner in value]
    return value


@contextlib.contextmanager
def stdout_for_results(meta: dict[str, Any]) -> Iterator[None]:
    """Keep stdout for what the command says itself.

    What anything else prints, such as the module of a decoder, goes to stderr.

    Args:
        meta: Of the context of the command, which remembers where stdout was.
    """
    meta[_STDOUT] = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield


def stdout() -> Any:
    """Where results go, whatever else is printed meanwhile."""
    context = click.get_current_context(silent=True)
    return sys.stdout if context is None else context.meta.get(_STDOUT, sys.stdout)


def say_json(content: Mapping[str, Any]) -> None:
    """One line of JSON on stdout."""
    click.echo(json.dumps(plain(content)), file=stdout())


def say(text: str) -> None:
    """A line for people on stdout."""
    click.echo(text, file=stdout())


def say_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table for people on stdout; columns of numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    lines = [tuple(row) for row in rows]
    console = Console(file=stdout())
    if not console.is_terminal:
        console = Console(file=stdout(), width=_WIDE)
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        numeric = all(_is_number(line[i]) for line in lines)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)


def counted(count: int, word: str) -> str:
    """So many of something, such as "1 row" or "20,000 rows"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def number(value: float | Tensor, digits: str = ".5g") -> str:
    """A number for a table; a dash where there is none."""
    value = float(value)
    return f"{value:{digits}}" if math.isfinite(value) else "—"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "—"
    return True


def _listed(values: Sequence[Any] | np.ndarray | Tensor) -> list[Any]:
    return values.tolist() if isinstance(values, (np.ndarray, Tensor)) else list(values)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    array = np.asarray(value)
    return array.astype(str) if array.dtype == object else array


def as_tensor(values: np.ndarray, like: torch.dtype, device: torch.device) -> Tensor:
    """An array as a tensor of a dtype on a device."""
    return torch.as_tensor(np.ascontiguousarray(values)).to(device, like)
