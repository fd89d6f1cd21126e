"""``riemae train``: from data to a folder with a trained autoencoder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich_click as click
from click.exceptions import Exit

from riemae.autoencoders.likelihoods import LIKELIHOODS
from riemae.autoencoders.networks import ACTIVATIONS
from riemae.cli.failures import INTERRUPTED, Command, warned_of
from riemae.cli.options import (
    Name,
    Reading,
    Run,
    Widths,
    data_argument,
    reading,
    running,
    suggestion,
)
from riemae.cli.output import (
    as_tensor,
    counted,
    expect_place_for,
    make_folder,
    number,
    plain,
    write_columns,
    write_json,
    writing,
)
from riemae.cli.points import code_columns
from riemae.cli.preparation import FILE, Preparation
from riemae.cli.progress import Bars
from riemae.cli.sources import read
from riemae.cli.tables import Table
from riemae.exceptions import (
    DivergenceWarning,
    FileError,
    MissingExtraError,
    OptionError,
    TrainingError,
)

if TYPE_CHECKING:
    from torch import Tensor

    from riemae.autoencoders import AE

METHODS = {
    "ae": "AE",
    "vae": "VAE",
    "denoising": "DenoisingAE",
    "contractive": "ContractiveAE",
    "nrae": "NRAE",
    "mcae": "MCAE",
    "irae": "IRAE",
    "irvae": "IRVAE",
}
AMBIENTS = ("euclidean", "fisher", "covariance")
CODES, SUMMARY, CHECKPOINTS = "codes.csv", "summary.json", "checkpoints"
_UNEVEN = 30.0  # ratio of the scales of two columns from which the smaller one hardly counts
_FEW = 4  # rows, without which there is no report


@click.command(
    cls=Command,
    examples=(
        "riemae train iris --out flowers --epochs 50 --standardize",
        "riemae train digits --out digits --epochs 5 --method irae --weight 0.1",
        "riemae train counts --out cells --likelihood poisson --ambient fisher --epochs 5",
        "riemae train swiss_roll --out roll --term extrinsic_curvature=1e-3 --epochs 5",
    ),
)
@data_argument(codes=False)
@click.option(
    "--method",
    type=Name("method", METHODS),
    default="irae",
    show_default=True,
    metavar="NAME",
    help=f"The kind of autoencoder: {', '.join(METHODS)}.",
)
@click.option(
    "--latent-dim",
    type=click.IntRange(1),
    metavar="N",
    default=2,
    show_default=True,
    help="Numbers in a code.",
)
@click.option(
    "--hidden", type=Widths(), default="128,128", show_default=True, help="Widths of the layers."
)
@click.option(
    "--activation",
    type=Name("activation", ACTIVATIONS),
    default="silu",
    show_default=True,
    metavar="NAME",
    help=f"Of the layers: {', '.join(ACTIVATIONS)}.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    default=200,
    show_default=True,
    help="Passes over the data.",
)
@click.option("--batch-size", type=click.IntRange(1), metavar="N", default=256, show_default=True)
@click.option(
    "--lr", type=float, metavar="X", default=1e-3, show_default=True, help="Learning rate."
)
@click.option("--weight", type=float, metavar="X", help="Of the method's geometric term.")
@click.option(
    "--term", "terms", multiple=True, metavar="NAME=WEIGHT", help="A further term; may be repeated."
)
@click.option(
    "--likelihood",
    type=Name("likelihood", LIKELIHOODS),
    default="squared_error",
    show_default=True,
    metavar="NAME",
    help=f"What the data are: {', '.join(LIKELIHOODS)}.",
)
@click.option(
    "--ambient",
    type=Name("ambient metric", AMBIENTS),
    default="euclidean",
    show_default=True,
    metavar="NAME",
    help=f"How distances of data are measured: {', '.join(AMBIENTS)}.",
)
@click.option("--standardize", is_flag=True, help="Give every column mean 0 and variance 1 first.")
@click.option(
    "--validation-fraction",
    type=float,
    metavar="X",
    default=0.0,
    help="Share kept out of training.",
)
@click.option(
    "--early-stopping", type=int, metavar="N", help="Epochs without gain after which to stop."
)
@click.option(
    "--set",
    "others",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of the method, such as beta=0.5; may be repeated.",
)
@click.option("--resume", is_flag=True, help="Go on where an earlier training has stopped.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier training has left.")
@reading
@running(out="model", dtype="float32", folder=True, out_help="The folder of the model.")
def train(
    data: str,
    method: str,
    weight: float | None,
    terms: tuple[str, ...],
    others: tuple[str, ...],
    ambient: str,
    standardize: bool,
    resume: bool,
    overwrite: bool,
    reading: Reading,
    run: Run,
    **settings: Any,
) -> None:
    """Train an autoencoder with a good geometry on DATA.

    DATA is csv, tsv, parquet, npy, npz, h5ad, a folder of images, or the name of a data set, such
    as digits. The folder holds the model, which all other commands and riemae.load read, the codes
    of the data, and a summary. Exit code 0 when training has come to its end.
    """  # noqa: DOC501 (this text is what --help prints)
    folder = run.target
    _expect_free(folder, resume, overwrite)
    if standardize and settings["likelihood"] != "squared_error":
        hint = "Leave --standardize out: a likelihood needs the data as they are."
        raise OptionError("--standardize", "the squared error", settings["likelihood"], hint)
    expect_place_for(folder, folder=True)
    table = read(data, reading, run.seed)
    preparation = Preparation.of(table, standardize, reading)
    x = as_tensor(preparation.apply(table.values), run.dtype, run.device)
    settings |= {
        "ambient": _ambient(ambient, x),
        "terms": _terms(terms),
        "seed": run.seed,
        "device": str(run.device),
        "directory": str(folder / CHECKPOINTS),
        "checkpoint_every": max(1, settings["epochs"] // 10),
    }
    model = _estimator(method, weight, settings, others)
    if overwrite and not resume:
        _forget(folder)
    start = time.perf_counter()
    _fit(model, x, run, resume)
    seconds = time.perf_counter() - start
    model.set_params(trainer=None, directory=None)
    stopped = warned_of(DivergenceWarning)
    summary = {
        **table.described(),
        "model": str(folder),
        "method": method,
        "latent_dim": settings["latent_dim"],
        "standardized": standardize,
        "epochs": model.n_epochs_,
        "seconds": round(seconds, 2),
        "diverged": stopped,
        "explained": model.score(x),
        "loss": {name: values[-1] for name, values in model.history_.items() if values},
        "report": plain(model.report_) if len(table) >= _FEW else None,
        "advice": _advice(table, standardize),
    }
    files = _written(model, folder, table, preparation, model.transform(x), summary)
    _tell(run, model, table, summary, files, data)
    run.finish({**summary, "files": files}, converged=not stopped)


def _expect_free(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder whose content would be lost.

    Raises:
        FileError: When it holds a model or an interrupted training.
    """
    if resume or overwrite:
        return
    hint = "Go on with --resume, begin anew with --overwrite, or choose another --out."
    if (folder / "checkpoint.json").exists():
        got = f"{folder}, which has one"
        raise FileError("--out", "a folder without a model", got, hint)
    if any((folder / CHECKPOINTS).glob("**/*.ckpt")):
        got = f"{folder}, where one was interrupted"
        raise FileError("--out", "a folder without a training", got, hint)


def _forget(folder: Path) -> None:
    for checkpoint in (folder / CHECKPOINTS).glob("**/*.ckpt"):
        checkpoint.unlink()


def _ambient(name: str, x: Tensor) -> Any:
    if name == "covariance":
        from riemae.ambient import Constant

        return Constant.from_data(x)
    return "fisher" if name == "fisher" else None


def _terms(given: tuple[str, ...]) -> dict[str, float] | None:
    from riemae.autoencoders.terms import KNOWN

    terms = {}
    for text in given:
        name, value = _split("--term", text, "relaxed_distortion=0.1")
        if name not in KNOWN:
            hint = suggestion(name, KNOWN, most=len(KNOWN))
            raise OptionError("--term", "a term that is known", repr(name), hint)
        try:
            terms[name] = float(value)
        except ValueError as reason:
            hint = f"Try {name}=0.01."
            raise OptionError(
                "--term", f"a number as the weight of {name}", repr(value), hint
            ) from reason
    return terms or None


def _split(option: str, text: str, example: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise OptionError(option, "a name and a value", repr(text), f"Try {option} {example}.")
    return name.strip().replace("-", "_"), value.strip()


def _estimator(
    method: str, weight: float | None, settings: dict[str, Any], others: tuple[str, ...]
) -> AE:
    try:
        from riemae import autoencoders

        kind = getattr(autoencoders, METHODS[method])
        import lightning  # noqa: F401 (missing, it is better missed before the data are prepared)
    except ImportError as reason:
        if isinstance(reason, MissingExtraError):
            raise
        hint = "Try: pip install 'riemae[train]'"
        raise MissingExtraError("riemae train", "lightning", "no such package", hint) from reason
    known = kind().get_params(deep=False)
    if weight is not None:
        if "weight" not in known:
            hint = "Take it out, or add a term: --term relaxed_distortion=0.1."
            raise OptionError("--weight", "a method with a weight", method, hint)
        settings["weight"] = weight
    for text in others:
        name, value = _split("--set", text, "beta=0.5")
        if name not in known:
            hint = suggestion(name, known)
            raise OptionError("--set", f"a setting of {method}", repr(name), hint)
        settings[name] = _value(value)
    estimator: AE = kind(**settings)
    return estimator


def _value(text: str) -> Any:
    """A setting as it would be typed in JSON; anything else is text."""
    try:
        found = json.loads(text)
    except ValueError:
        return {"None": None, "True": True, "False": False}.get(text, text)
    return tuple(found) if isinstance(found, list) else found


def _fit(model: AE, x: Tensor, run: Run, resume: bool) -> None:
    """Train, with a bar.

    Raises:
        Exit: When the user interrupts.
        TrainingError: When training cannot go on, or is not the one that is to be resumed.
    """
    with run.bars() as bars:
        try:
            model.set_params(trainer={"callbacks": [_reporter(bars)]}).fit(x)
        except KeyboardInterrupt:
            text = "Interrupted. The same command with --resume goes on from the last checkpoint."
            click.echo(text, err=True)
            raise Exit(INTERRUPTED) from None
        except TrainingError as reason:
            if not (resume and reason.expected.startswith("a checkpoint")):
                raise
            hint = "Repeat its settings and data, or begin anew with --overwrite."
            raise TrainingError("--resume", reason.expected, reason.got, hint) from reason


def _reporter(bars: Bars) -> Any:
    from lightning.pytorch.callbacks import Callback

    class Reporter(Callback):
        """Moves the bar of the training."""

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Count the epoch; the loss is that of the one before."""
            losses = pl_module.history.get("loss", [])
            note = f"loss {losses[-1]:.4g}" if losses else ""
            bars("training", trainer.current_epoch + 1, trainer.max_epochs, note)

    return Reporter()


def _advice(table: Table, standardize: bool) -> list[str]:
    """What may be wrong with the data, in sentences."""
    if standardize or table.columns is None:
        return []
    spread = table.values.std(0)
    varied = spread > 0
    if varied.sum() < 2 or spread[varied].max() < _UNEVEN * spread[varied].min():
        return []
    names = np.asarray(table.columns)
    large, small = names[spread.argmax()], names[np.where(varied, spread, np.inf).argmin()]
    ratio = spread.max() / spread[varied].min()
    return [
        f"The column {str(large)!r} varies {ratio:.0f} times as much as {str(small)!r}, which "
        "therefore hardly counts: --standardize gives both the same weight."
    ]


def _written(
    model: AE,
    folder: Path,
    table: Table,
    preparation: Preparation,
    codes: Tensor,
    summary: Mapping[str, Any],
) -> list[str]:
    make_folder(folder, folder)
    with writing(folder):
        model.save(folder)
        preparation.save(folder)
    write_columns(folder / CODES, code_columns(codes, table))
    write_json(folder / SUMMARY, summary)
    return [str(folder / name) for name in ("checkpoint.json", FILE, CODES, SUMMARY)]


def _tell(
    run: Run,
    model: AE,
    table: Table,
    summary: Mapping[str, Any],
    files: list[str],
    data: str,
) -> None:
    *outer, last = table.values.shape[1:]
    shape = " × ".join([*map(str, outer), f"{last} numbers" if outer else counted(last, "number")])
    dropped = f" ({table.dropped} with missing cells left out)" if table.dropped else ""
    run.say(
        f"{table.name}: {counted(len(table), 'row')}{dropped} of {shape}.",
        f"{summary['method']} with {counted(summary['latent_dim'], 'latent dimension')}: "
        f"{counted(summary['epochs'], 'epoch')} in {summary['seconds']} s.",
        f"Explained: {number(100 * summary['explained'], '.1f')} % of the "
        f"{'variance' if model.likelihood == 'squared_error' else 'deviance'}.",
    )
    if summary["report"] is not None:
        run.say(repr(model.report_))
    run.say(*(f"- {sentence}" for sentence in summary["advice"]))
    run.say(
        "Written: " + ", ".join(files),
        f"Next: riemae report {summary['model']} {data}, or riemae check {summary['model']}.",
    )
