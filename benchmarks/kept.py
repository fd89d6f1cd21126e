"""Measures of trainings by seed, kept in a file, so that a long benchmark can be run in parts."""

from __future__ import annotations

import json
import os
from pathlib import Path

Measures = dict[str, float]


class Kept:
    """Measures by group, model and seed.

    Args:
        path: Of the JSON file, which is written after every training; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, dict[str, dict[str, Measures]]] = {}
        if path is not None and path.exists():
            self.values = json.loads(path.read_text())

    def has(self, group: str, model: str, seed: int) -> bool:
        """Whether this training was measured."""
        return str(seed) in self.values.get(group, {}).get(model, {})

    def add(self, group: str, model: str, seed: int, measures: Measures) -> None:
        """Add the measures of a training, and write the file anew."""
        self.values.setdefault(group, {}).setdefault(model, {})[str(seed)] = measures
        if self.path is None:
            return
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(part, self.path)

    def of(self, group: str) -> dict[str, list[Measures]]:
        """By model, the measures of those seeds that all models of the group have."""
        models = self.values.get(group, {})
        common = set.intersection(*(set(seeds) for seeds in models.values())) if models else set()
        ordered = sorted(common, key=int)
        return {name: [seeds[seed] for seed in ordered] for name, seeds in models.items()}
