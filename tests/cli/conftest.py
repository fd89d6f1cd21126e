"""What the tests of commands share: one small model on the iris flowers, trained once."""

from types import SimpleNamespace

import pytest
from command_line import COLUMNS, TINY, numbers, write_table
from sklearn.datasets import load_iris


@pytest.fixture(scope="session")
def iris():
    """The flowers as columns by name, with names of rows and labels."""
    found = load_iris()
    columns = {"plant": [f"p{i}" for i in range(len(found.data))]}
    columns |= dict(zip(COLUMNS, found.data.T.tolist(), strict=True))
    columns["species"] = [str(found.target_names[kind]) for kind in found.target]
    return columns


@pytest.fixture(scope="session")
def flowers(tmp_path_factory, iris):
    """A model, the table that it was trained on, and what training has said."""
    home = tmp_path_factory.mktemp("flowers")
    table = write_table(home / "iris.csv", iris)
    model = home / "model"
    names = ("--labels", "species", "--index", "plant")
    said = numbers("train", table, *names, "--standardize", *TINY, "--out", model)
    return SimpleNamespace(model=model, table=table, names=names, said=said, home=home)
