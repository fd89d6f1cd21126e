"""Versions, devices and extras of this installation."""

import json
import platform
import types

import conftest
import pytest
import torch

import riemae
from riemae import environment


def test_tells_what_is_here(capsys):
    found = riemae.show_versions()
    assert found.riemae == riemae.__version__
    assert found.python == platform.python_version()
    assert found.packages["torch"] == torch.__version__
    assert found.devices["cpu"].endswith(f"{torch.get_num_threads()} threads")
    assert found.extras["train"] == ()
    assert capsys.readouterr() == ("", "")  # it returns its text and prints nothing


def test_its_text_has_every_name_once_a_line():
    found = riemae.show_versions()
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    for name in ("riemae", "python", *found.packages, *found.devices, *found.extras):
        assert any(line.split("  ")[0] == name for line in lines), name
    assert {"Packages", "Devices", "Extras"} <= set(lines)


def test_goes_through_json():
    found = riemae.show_versions()
    assert json.loads(json.dumps(found.to_dict()))["packages"] == found.packages


def test_names_what_is_missing(monkeypatch):
    listed = [
        "torch>=2.4",
        'absent-package[more]>=1; extra == "plain"',
        'riemae[plain]; extra == "wide"',
        'ruff; extra == "dev"',
    ]
    monkeypatch.setattr(environment.metadata, "requires", lambda name: listed)
    found = riemae.show_versions()
    assert found.packages == {"torch": torch.__version__, "absent-package": None}
    assert found.extras == {"plain": ("absent-package",), "wide": ("absent-package",)}
    assert "missing absent-package" in str(found)
    assert "not installed" in str(found)


def test_a_device_that_cannot_be_used_ends_the_run_at_once():
    config = types.SimpleNamespace(getoption={"--device": "cuda:99"}.get)
    with pytest.raises(pytest.UsageError, match="--device=cuda:99: torch cannot use it"):
        conftest.pytest_configure(config)
