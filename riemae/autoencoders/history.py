"""How a training went."""

from __future__ import annotations

from riemae.numerics.html import table

_SHOWN = 10  # epochs in the table of a notebook


class History(dict[str, list[float]]):
    """Mean of every part of the loss over each epoch, by name: a dict that notebooks show."""

    def _repr_html_(self) -> str:
        """First, last and some epochs between, as a table."""
        epochs = max((len(values) for values in self.values()), default=0)
        count = min(epochs, _SHOWN)
        rows = []
        for k in range(count):
            epoch = round(k * (epochs - 1) / max(count - 1, 1))
            rows.append([str(epoch + 1), *(_value(values, epoch) for values in self.values())])
        best = ""
        if self.get("loss"):
            losses = self["loss"]
            lowest = min(range(len(losses)), key=losses.__getitem__)
            best = f"The lowest loss is {losses[lowest]:.4g}, of epoch {lowest + 1}."
        title = f"Training, {epochs} epoch{'s' if epochs != 1 else ''}"
        return table(title, rows, ("epoch", *self), best)


def _value(values: list[float], epoch: int) -> str:
    """A value, or nothing where a part has come later or ended earlier."""
    return f"{values[epoch]:.4g}" if epoch < len(values) else ""
