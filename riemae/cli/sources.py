"""Data as commands take them: tables, arrays, cells, images, or a data set by its name.

=========================  =========================================================================
csv, tsv, txt (also .gz)   with or without a header; text in UTF-8
parquet                    by pyarrow
npy, npz                   arrays of numbers, never objects
h5ad                       by anndata: ``X`` or a layer, sparse or dense; ``obs`` holds the labels
a folder                   images of one size, grey or RGB; subfolders are labels
a name                     a data set that needs no file, such as ``digits``
=========================  =========================================================================
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from riemae.cli.builtin import NAMES, shipped
from riemae.cli.delimited import Column, read_delimited
from riemae.cli.options import Reading, suggestion
from riemae.cli.tables import Source, Table
from riemae.exceptions import DataError, FileError, MissingExtraError, OptionError

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".ckpt")
_TEXT = (".csv", ".tsv", ".txt")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_KINDS = "csv, tsv, parquet, npy, npz, h5ad, or a folder of images"
_WHITE = 255.0


def read(data: str, reading: Reading, seed: int = 0, wanted: Sequence[str] | None = None) -> Table:
    """Data by their path or their name.

    Args:
        data: A file, a folder, or the name of a data set.
        reading: The user's choices.
        seed: Of data sets that are drawn.
        wanted: The columns to take, in this order.
    """
    return find(data, reading, seed).table(reading, wanted)


def find(data: str, reading: Reading, seed: int = 0) -> Source:
    """Data by their path or their name, before columns are chosen.

    Args:
        data: A file, a folder, or the name of a data set.
        reading: The user's choices.
        seed: Of data sets that are drawn.

    Raises:
        FileError: When there is no such thing, or it cannot be read.
    """
    path = Path(data)
    name = data.lower().replace("-", "_")
    if not path.exists():
        if name in NAMES:
            return _shipped(name, seed)
        here = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = (
            suggestion(path.name, [*here, *NAMES]) if path.parent.is_dir() else "Is the path right?"
        )
        raise FileError(data, "a file, a folder, or the name of a data set", "nothing there", hint)
    if path.is_dir():
        images = _pictures(path)
        # A model may lie in a folder with the name of the data that it was trained on.
        return _images(path, images) if images or name not in NAMES else _shipped(name, seed)
    suffix = path.suffix.lower()
    inner = path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix
    if inner in _TEXT:
        return _table(path, reading)
    if suffix in _READERS:
        return _READERS[suffix](path, reading)
    if suffix in PICKLES:
        got = "a pickle, which could run any program when it is read"
        hint = "Write the numbers with numpy.save, or as csv."
        raise FileError(path.name, _KINDS, got, hint)
    raise FileError(
        path.name, _KINDS, f"a file {suffix or 'without an ending'}", "Convert it first."
    )


def _table(path: Path, reading: Reading) -> Source:
    usual = None if reading.usual is None else reading.usual.decimal
    columns, named = read_delimited(path, reading.named, reading.decimal, usual)
    names = tuple(c.name for c in columns) if named else None
    return Source(path.name, columns=columns, names=names)


def _loaded(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as reason:
        hint = "Save the array with a dtype of numbers: array.astype(float)."
        raise FileError(path.name, "an array of numbers", str(reason).rstrip("."), hint) from reason
    except EOFError as reason:
        raise FileError(path.name, "an array", "an empty file", "Write it again.") from reason
    return array


def _numeric(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        hint = "Convert it with array.astype(float)."
        got = f"{array.dtype} of shape {array.shape}"
        raise DataError(name, "an array of numbers (n, *shape)", got, hint)
    kind = array.dtype if array.dtype in (np.float32, np.float64) else np.float64
    return np.asarray(array[:, None] if array.ndim == 1 else array, dtype=kind)


def _array(path: Path, reading: Reading) -> Source:
    return Source(path.name, array=_numeric(path.name, _loaded(path)))


def _archive(path: Path, reading: Reading) -> Source:
    try:
        arrays = np.load(path, allow_pickle=False)
        names = list(arrays.files)
    except (ValueError, zipfile.BadZipFile, AttributeError) as reason:
        raise FileError(
            path.name, "arrays by name", str(reason), "Write it with numpy.savez."
        ) from reason

    def text(name: str) -> list[str]:
        try:
            return [str(label) for label in arrays[name].reshape(-1)]
        except ValueError as reason:
            hint = "Save labels as text: numpy.array(labels, dtype=str)."
            raise FileError(path.name, f"labels in {name!r}", "objects", hint) from reason

    key = reading.choice("key", names)
    if key is None:
        candidates = [name for name in names if name != reading.labels]
        preferred = [name for name in ("x", "X", "data", "codes", "z") if name in candidates]
        if len(candidates) != 1 and not preferred:
            hint = f"Say which one: {' or '.join(f'--key {name}' for name in candidates[:4])}."
            raise OptionError(path.name, "one array", f"{len(candidates)}", hint)
        key = preferred[0] if preferred else candidates[0]
    elif key not in names:
        raise OptionError(path.name, "an array for --key", repr(key), suggestion(key, names))
    try:
        array = arrays[key]
    except ValueError as reason:
        hint = "Save the array with a dtype of numbers."
        raise FileError(path.name, f"numbers in {key!r}", "objects", hint) from reason
    rows = text("rows") if "rows" in names and key in ("codes", "z") else None
    return Source(
        path.name, array=_numeric(path.name, array), rows=rows, find=text, findable=tuple(names)
    )


def _parquet(path: Path, reading: Reading) -> Source:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as reason:
        hint = "Try: pip install 'riemae[tables]'"
        raise MissingExtraError(
            path.name, "pyarrow to read parquet", "no such package", hint
        ) from reason
    try:
        found = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as reason:
        raise FileError(path.name, "a parquet file", str(reason), "Write it again.") from reason
    columns: list[Column] = []
    for name in found.column_names:
        cells = found.column(name)
        kind = cells.type
        of_pandas = name.startswith("__index_level_")
        if (
            pyarrow.types.is_floating(kind)
            or pyarrow.types.is_integer(kind)
            or pyarrow.types.is_boolean(kind)
        ):
            numbers = cells.cast("double").to_numpy(zero_copy_only=False)
            text = [str(cell) for cell in cells.to_pylist()] if name in reading.named else None
            column = Column("" if of_pandas else name, numbers, text=text)
        else:
            text = ["" if cell is None else str(cell) for cell in cells.to_pylist()]
            first = next((i for i, cell in enumerate(text) if cell), 0)
            bad = (first + 1, text[first]) if text else None
            column = Column("" if of_pandas else name, np.full(len(text), np.nan), bad, text)
        # The names of rows come first, as in a text table.
        columns.insert(0 if of_pandas else len(columns), column)
    return Source(path.name, columns=columns, names=tuple(c.name for c in columns))


def open_cells(path: Path) -> Any:
    """An AnnData object.

    Args:
        path: An h5ad file.

    Raises:
        MissingExtraError: When anndata is not installed.
        FileError: When the file is something else.
    """
    try:
        import anndata
    except ImportError as reason:
        hint = "Try: pip install 'riemae[cells]'"
        raise MissingExtraError(
            path.name, "anndata to read h5ad", "no such package", hint
        ) from reason
    try:
        return anndata.read_h5ad(path)
    except OSError as reason:
        raise FileError(path.name, "an h5ad file", str(reason), "Write it again.") from reason


def _cells(path: Path, reading: Reading) -> Source:
    adata = open_cells(path)
    layer = reading.layer
    if layer is None and reading.usual is not None:
        layer = reading.usual.layer  # X in its place would be other numbers
    if layer is None:
        values = adata.X
        if values is None:
            known = " or ".join(f"--layer {name}" for name in adata.layers)
            raise DataError(path.name, "numbers in X", "nothing", f"Try {known}." if known else "")
    elif layer in adata.layers:
        values = adata.layers[layer]
    else:
        hint = suggestion(layer, adata.layers)
        raise OptionError(path.name, "a layer for --layer", repr(layer), hint)
    array = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return Source(
        path.name,
        array=_numeric(path.name, array),
        names=tuple(map(str, adata.var_names)),
        rows=list(map(str, adata.obs_names)),
        find=lambda name: [str(label) for label in adata.obs[name]],
        findable=tuple(map(str, adata.obs.columns)),
    )


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES and p.is_file())


def _images(folder: Path, paths: Sequence[Path]) -> Source:
    from PIL import Image, UnidentifiedImageError

    if not paths:
        hint = f"Images end in {', '.join(_IMAGES)}; a model is not data."
        raise FileError(str(folder), "a folder with images", "one without", hint)
    pictures: list[np.ndarray] = []
    grey = True
    for path in paths:
        try:
            with Image.open(path) as image:
                picture = _pixels(image)
                grey = grey and image.mode in ("1", "L", "LA", "I", "I;16")
        except (UnidentifiedImageError, OSError) as reason:
            name = str(path.relative_to(folder))
            raise FileError(name, "an image", "something else", "Remove or replace it.") from reason
        if pictures and picture.shape != pictures[0].shape:
            sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (pictures[0], picture)]
            expected = f"images of one size, {sizes[0]} as {paths[0].name}"
            hint = "Crop or resize them first."
            raise DataError(str(folder), expected, f"{sizes[1]} in {path.name}", hint)
        pictures.append(picture)
    stacked = np.stack(pictures)
    stacked = stacked[..., :1] if grey else stacked
    names = [str(p.relative_to(folder)) for p in paths]
    nested = any(p.parent != folder for p in paths)
    labels = [p.parent.relative_to(folder).as_posix() for p in paths] if nested else None
    return Source(
        str(folder), array=stacked.transpose(0, 3, 1, 2) / _WHITE, rows=names, labels=labels
    )


def _pixels(image: Any) -> np.ndarray:  # -> (height, width, 3)
    if image.mode in ("I", "I;16"):  # 16 bits of grey
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, 2)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _shipped(name: str, seed: int) -> Source:
    found = shipped(name, seed)
    return Source(
        name,
        array=_numeric(name, found.values),
        names=found.names,
        labels=found.labels,
        pixels=found.pixels,
    )


_READERS: dict[str, Callable[[Path, Reading], Source]] = {
    ".h5ad": _cells,
    ".npy": _array,
    ".npz": _archive,
    ".parquet": _parquet,
}
