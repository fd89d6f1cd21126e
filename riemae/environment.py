"""What riemae runs on here: versions, devices, and which extras are installed."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata

import torch

from riemae.version import __version__

# The name of a requirement, the extras it asks for, and the extra that it belongs to.
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<asked>[^\]]*)\])?[^;]*"
    r"(?:;.*extra\s*==\s*[\"'](?P<extra>[^\"']+)[\"'].*)?"
)
# Extras that serve the development of the package.
_FOR_DEVELOPERS = frozenset({"dev", "test"})


@dataclass(frozen=True)
class Versions:
    """Versions, devices and extras of an installation; its text is made for bug reports.

    Attributes:
        riemae: The version of riemae.
        python: The version of Python.
        platform: Operating system and processor architecture.
        packages: Version of each required or optional package; None where it is not installed.
        devices: What torch computes on here: ``"cpu"`` and accelerators, each with a description.
        extras: Of each extra, the packages that are missing; none where it is complete.
    """

    riemae: str
    python: str
    platform: str
    packages: dict[str, str | None]
    devices: dict[str, str]
    extras: dict[str, tuple[str, ...]]

    def to_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        values = asdict(self)
        values["extras"] = {name: list(missing) for name, missing in self.extras.items()}
        return values

    def __str__(self) -> str:
        about = {"riemae": self.riemae, "python": self.python, "platform": self.platform}
        packages = {name: found or "not installed" for name, found in self.packages.items()}
        extras = {
            name: "installed" if not missing else f"missing {', '.join(missing)}"
            for name, missing in self.extras.items()
        }
        parts = {"": about, "Packages": packages, "Devices": self.devices, "Extras": extras}
        width = max(len(name) for table in parts.values() for name in table)
        lines = []
        for title, table in parts.items():
            if title:
                lines += ["", title]
            lines += [f"{name:<{width}}  {value}" for name, value in table.items()]
        return "\n".join(lines)

    __repr__ = __str__


def show_versions() -> Versions:
    """Versions of riemae and of what it uses, devices, and which extras are installed.

    Nothing is printed: an interactive session shows what comes back, a script prints it. No package
    is imported to find out.

    Example:
        >>> import riemae
        >>> versions = riemae.show_versions()
        >>> versions.packages["torch"] is not None
        True
        >>> print(versions)  # doctest: +ELLIPSIS
        riemae...
    """
    needed, extras = _requirements()
    optional = {name for names in extras.values() for name in names}
    names = [*needed, *sorted(optional - set(needed))]
    packages = {name: _version(name) for name in names}
    missing = {
        extra: tuple(name for name in sorted(wanted) if packages[name] is None)
        for extra, wanted in sorted(extras.items())
    }
    return Versions(
        riemae=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        devices=_devices(),
        extras=missing,
    )


def _requirements() -> tuple[list[str], dict[str, set[str]]]:
    """Packages that riemae needs, and those of each extra, as its metadata name them."""
    needed: list[str] = []
    extras: dict[str, set[str]] = {}
    included: dict[str, set[str]] = {}
    for text in metadata.requires("riemae") or ():
        match = _REQUIREMENT.fullmatch(text.strip())
        if match is None:
            continue
        name, extra = match["name"], match["extra"]
        if extra is None:
            needed.append(name)
        elif extra not in _FOR_DEVELOPERS:
            extras.setdefault(extra, set())
            if name == "riemae":
                asked = {part.strip() for part in (match["asked"] or "").split(",")}
                included.setdefault(extra, set()).update(asked)
            else:
                extras[extra].add(name)
    return needed, {name: _whole(name, extras, included) for name in extras}


def _whole(name: str, extras: dict[str, set[str]], included: dict[str, set[str]]) -> set[str]:
    """The packages of an extra and of those that it includes."""
    found = set(extras.get(name, ()))
    for other in included.get(name, ()):
        found |= _whole(other, extras, included)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    """Devices by torch's name for them."""
    cores = os.cpu_count() or 1
    found = {"cpu": f"{cores} cores, {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            memory = properties.total_memory / 2**30
            found[f"cuda:{number}"] = f"{properties.name}, {memory:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found
