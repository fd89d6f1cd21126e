"""Tables and a picture of the results of :mod:`benchmarks.geodesics`.

python -m benchmarks.report benchmarks/results/geodesics.json      # again, without measuring
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import fastest

ACCURACIES = (1e-3, 1e-5)
# Okabe and Ito's colours, which colour-blind readers can distinguish; only riemae is black.
_COLOURS = {
    "riemae": "black",
    "stochman": "#E69F00",
    "finslerax": "#56B4E9",
    "geomstats": "#009E73",
    "latent-geometry": "#CC79A7",
    "chord energy": "#D55E00",
}
_PLAIN = ("chord energy, Adam", "chord energy, L-BFGS")
_HELPED = ("stochman, L-BFGS", "finslerax, Jv metric")
# The comparisons with riemae: heading, and the contenders that are left out.
_RIVALS = (
    ("fastest package as it ships", (*_PLAIN, *_HELPED)),
    ("fastest package, with our help", _PLAIN),
    ("fastest of all others", ()),
)
_METHOD = """\
Every contender runs in a process of its own on the same cores, with the same decoder (float64)
and the same end points, from the straight line. All are timed in turns, and the median of the
rounds is shown, with the range where the machine was unsteady. Calls of more than 5 s are not
repeated. The first call of each setting has a column of its own. It does not count, so that
compilation does not count either.

*Decodings* are those of a pair, counted by riemae in another call: values of the decoder, where a
derivative in one direction and a reverse pass are one each.

The error is that of the curve. Its length is that of the spline through its nodes, by one fine
quadrature for all contenders. It is compared with the shortest curve known for that pair, which
may be riemae's at rtol = 1e-9. The lengths that the packages report themselves are often worse
than their curves. They have a column of their own, and their time is not counted.

One *sweep* is the decoder and its full Jacobian at as many points as the contender's curves
have nodes. It is timed next to each call, by riemae and by plain `torch.func`; the faster of the
two counts.

Contenders that solve one pair after the other are timed on a few pairs and scaled up (≈). Two
are variants that the packages do not offer: finslerax with a metric by forward products, and
stochman with L-BFGS in place of its Adam. geomstats gets a Jacobian that is faster than its own,
and latent-geometry gets float64. The adapters are in `benchmarks/peers/`."""
_SHORT = """\
This run is short: it has an end, and the median is that of three calls, of which the first is one.
Only of contenders that compile (finslerax) the first does not count. All rows are of this run."""
_UNSTEADY = 1.5  # a larger ratio of longest to shortest time means other load on the machine
_HEADINGS = ("contender", "settings", "time", "processor time", "sweeps", "first call", "decodings")
_HEADINGS += ("error: median", "95 %", "max", "reported: 95 %", "given up")
_VARIANTS = (("o", "-"), ("s", "--"))  # markers and lines for the variants of one package
_COLUMNS = (("megabytes", ".0f"), ("steps", ".1f"))


def write(results: dict[str, Any], folder: Path, name: str = "geodesics") -> None:
    """Write the tables ``<name>.md`` and the picture ``<name>.png``."""
    (folder / f"{name}.md").write_text("\n".join(_lines(results, name)) + "\n")
    _draw(results, folder / f"{name}.png")


def contenders(task: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a task by contender, in the order of the task."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in task["rows"]:
        found.setdefault(row["contender"], []).append(row)
    return found


def to_reach(rows: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """The fastest of a contender's settings whose error is at most ``accuracy`` in 95 % of the
    pairs.
    """
    measured = [row for row in rows if "seconds" in row]
    i = fastest(
        [median(row["seconds"]) for row in measured],
        [row["error"][1] for row in measured],
        accuracy,
    )
    return None if i is None else measured[i]


def ratios(
    task: dict[str, Any], accuracy: float, without: tuple[str, ...] = ()
) -> tuple[str, float] | None:
    """The fastest other contender and how many times longer it takes than riemae, or None where one
    of them fails.

    Args:
        task: As measured.
        accuracy: To be reached in 95 % of the pairs.
        without: Contenders that do not count.
    """
    times = {name: to_reach(rows, accuracy) for name, rows in contenders(task).items()}
    reached = {name: median(row["seconds"]) for name, row in times.items() if row is not None}
    own = reached.pop("riemae", None)
    reached = {name: time for name, time in reached.items() if name not in without}
    if own is None or not reached:
        return None
    name = min(reached, key=lambda name: reached[name])
    return name, reached[name] / own


def _lines(results: dict[str, Any], name: str) -> list[str]:
    machine = results["machine"]
    packages = {k: v for versions in results["versions"].values() for k, v in versions.items()}
    lines = [
        "# Geodesics: riemae and other packages" + (", a short run" if _is_short(results) else ""),
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads each, "
        "load "
        f"{machine['load']:.1f} at the start; {machine['system']}, Python {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        + f". It took {results['minutes']:.0f} minutes"
        + (f", on {machine['date']}, with riemae {machine['riemae']}" if "date" in machine else "")
        + ".",
        "",
    ]
    if _is_short(results):
        lines += [_SHORT, ""]
    if results.get("left_out"):
        left = "; ".join(results["left_out"])
        lines += [f"Left out, because the time did not suffice: {left}.", ""]
    if results["quick"]:
        lines += [
            "**A quick run with few pairs and settings, which only tests the program. Its times "
            "are not reliable.**",
            "",
        ]
    lines += [f"![Error against time]({name}.png)", "", *_reach(results), *_notes(results)]
    for task in results["tasks"]:
        lines += _table(task)
    if results["growth"]:
        lines += _growth(results["growth"])
    return [*lines, "Curvature has a table of its own: [curvature.md](curvature.md)."]


def _is_short(results: dict[str, Any]) -> bool:
    return results.get("scope") == "short"


def _drawn(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons: tasks of all packages, and those of several solvers of ours."""
    return [task for task in results["tasks"] if not task["ours"] or len(contenders(task)) > 1]


def _reach(results: dict[str, Any]) -> list[str]:
    races = [task for task in results["tasks"] if not task["ours"]]
    own = [task for task in _drawn(results) if task["ours"]]
    lines = _times_to_reach(races, _RIVALS, "") if races else []
    return lines + (_times_to_reach(own, (), ", solvers of riemae alone") if own else [])


def _times_to_reach(
    races: list[dict[str, Any]], rivals: tuple[tuple[str, tuple[str, ...]], ...], who: str
) -> list[str]:
    names = list(dict.fromkeys(name for task in races for name in contenders(task)))
    lines = []
    for accuracy in ACCURACIES:
        lines += [
            f"## Time to a relative error of {accuracy:.0e} in 95 % of the pairs{who}",
            "",
            "| | " + " | ".join(task["task"] for task in races) + " |",
            "| --- |" + " --- |" * len(races),
        ]
        for name in names:
            cells = [_cell(contenders(task).get(name), accuracy) for task in races]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for whom, without in rivals:
            found = [ratios(task, accuracy, without) for task in races]
            cells = ["—" if gain is None else f"{_times(gain[1])} × ({gain[0]})" for gain in found]
            lines.append(f"| **time of the {whom} / time of riemae** | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


def _cell(rows: list[dict[str, Any]] | None, accuracy: float) -> str:
    if rows is None:
        return ""
    row = to_reach(rows, accuracy)
    if row is None:
        return "—"
    counted = row.get("decodings")
    more = "" if counted is None else f", {counted:.0f} decodings per pair"
    return f"{_seconds(median(row['seconds']))} ({row['sweeps']:.3g} sweeps{more})"


def _notes(results: dict[str, Any]) -> list[str]:
    return [
        "— : not reached by any setting within the limit per call: "
        + ", ".join(
            f"{task['limit']:.0f} s for {task['task']}"
            for task in results["tasks"]
            if not task["ours"]
        )
        + ". Empty: it did not take part.",
        "",
        "## How it was measured",
        "",
        *_METHOD.splitlines(),
        "",
    ]


def _table(task: dict[str, Any]) -> list[str]:
    reference = task["reference"]
    sweep = task["sweep"]
    lines = [
        f"## {task['task']}: {task['decoder']}",
        "",
        f"One sweep of 16 segments: {1e3 * sweep['riemae']:.2f} ms by riemae, "
        f"{1e3 * sweep['torch']:.2f} ms by plain "
        f"`torch.func`. Reference: {reference['converged']} of {task['pairs']} pairs accurate to "
        f"{reference.get('accuracy', 1e-8):.0e} by their own "
        f"estimate, {reference['shorter_known']} where another contender found a shorter curve"
        + (
            "; collocation on the geodesic equation is off by "
            + ", ".join(f"{x:.0e}" for x in reference["collocation"])
            if reference["collocation"]
            else ""
        )
        + ".",
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "| --- |" + " --- |" * (len(_HEADINGS) - 1),
    ]
    for row in task["rows"]:
        settings = ", ".join(
            f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["settings"].items()
        )
        cells = [row["contender"], settings]
        if "seconds" in row:
            scaled = "≈ " if row["timed_on"] < task["pairs"] else ""
            unsteady = max(row["seconds"]) > _UNSTEADY * min(row["seconds"])
            spread = (
                f" ({_seconds(min(row['seconds']))} to {_seconds(max(row['seconds']))})"
                if unsteady
                else ""
            )
            cells += [
                scaled + _seconds(median(row["seconds"])) + spread,
                _seconds(median(row["cpu"])),
            ]
            cells += [
                f"{row['sweeps']:.3g}",
                _seconds(row["first"]),
                "" if row.get("decodings") is None else f"{row['decodings']:.0f}",
                *(f"{error:.0e}" for error in row["error"]),
            ]
            cells += ["" if row["reported"] is None else f"{row['reported'][1]:.0e}"]
            cells += ["" if row["missed"] is None else str(row["missed"])]
        else:
            cells.append(row["failure"])
        cells += [""] * (len(_HEADINGS) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _growth(kinds: list[dict[str, Any]]) -> list[str]:
    lines = [
        "## Growth",
        "",
        "Random decoders with two hidden layers, every size in a process of its own. Exponents by "
        "least squares on the",
        "logarithms: 1 is linear, 2 quadratic. Memory is the peak in addition to what the process "
        "held before.",
        "",
        "| with | sizes | exponent of time | exponent of memory | time | memory, MiB | steps |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in kinds:
        rows = kind["rows"]
        memory, steps = ([format(row[what], digits) for row in rows] for what, digits in _COLUMNS)
        lines.append(
            f"| {kind['kind']} ({kind['what']}) | {', '.join(str(row['size']) for row in rows)} | "
            f"{kind['exponents']['seconds']:.2f} | {kind['exponents']['megabytes']:.2f} | "
            f"{', '.join(_seconds(row['seconds']) for row in rows)} | "
            f"{', '.join(memory)} | "
            f"{', '.join(steps)} |"
        )
    return [*lines, ""]


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{1e3 * value:.3g} ms"


def _styles(names: list[str]) -> dict[str, dict[str, Any]]:
    packages = [name.split(",")[0] for name in names]
    styles: dict[str, dict[str, Any]] = {}
    for i, (name, package) in enumerate(zip(names, packages, strict=True)):
        marker, line = _VARIANTS[packages[:i].count(package) % 2]
        own = name == "riemae"
        width, size = (2.4, 6) if own else (1.2, 4.5)
        styles[name] = {"color": _COLOURS.get(package, "0.4"), "marker": marker, "linestyle": line}
        styles[name] |= {"linewidth": width, "markersize": size, "zorder": 3 if own else 2}
    return styles


def _own_styles(names: list[str]) -> dict[str, dict[str, Any]]:
    colours = ["black", *[colour for name, colour in _COLOURS.items() if name != "riemae"]]
    # Settings of a solver that reach the same accuracy lie on each other: markers are hollow.
    return {
        name: {"color": colour, "marker": "o", "markerfacecolor": "none", "linewidth": 1.2}
        for name, colour in zip(names, colours, strict=False)
    }


def _draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    races = [task for task in results["tasks"] if not task["ours"]]
    drawn = races + [task for task in _drawn(results) if task["ours"]]
    if not drawn:
        return
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(4.2 * columns, 8.4), 3.6 * rows + 0.9), squeeze=False
    )
    panels = axes.flatten()
    everybody = list(dict.fromkeys(name for task in races for name in contenders(task)))
    for axis, task in zip(panels, drawn, strict=False):
        styles = _own_styles(list(contenders(task))) if task["ours"] else _styles(everybody)
        for name, found in contenders(task).items():
            measured = [
                (median(row["seconds"]), max(row["error"][1], 1e-12))
                for row in found
                if "seconds" in row
            ]
            axis.plot(
                [t for t, _ in measured],
                [error for _, error in measured],
                label=name,
                **styles[name],
            )
        axis.set(xscale="log", yscale="log", title=f"{task['task']}\n{task['decoder']}")
        axis.title.set_fontsize(10)
        # With less than two decades, every minor tick would get a label.
        axis.xaxis.set_minor_formatter(NullFormatter())
        first, last = axis.get_xlim()
        if last < 30 * first:  # the axis has at most one power of ten
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        for accuracy in ACCURACIES:
            axis.axhline(accuracy, color="0.6", linewidth=0.8, linestyle=":")
        axis.grid(alpha=0.25)
        axis.set_xlabel("wall time (s)")
        axis.set_ylabel("relative error of the length,\n95 % of the pairs below")
        if task["ours"]:
            axis.legend(fontsize=7)
    free = panels[len(drawn) :]
    for axis in free:
        axis.axis("off")
    # The first panel is one of all packages, unless riemae was measured alone.
    handles, labels = panels[0].get_legend_handles_labels() if races else ([], [])
    if len(free) or not races:
        if races:
            free[0].legend(handles, labels, loc="center", fontsize=9, frameon=False)
        figure.tight_layout()
    else:
        figure.tight_layout(rect=(0, 0.16, 1, 1))
        figure.legend(handles, labels, loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write(json.loads(source.read_text()), source.parent, source.stem)
