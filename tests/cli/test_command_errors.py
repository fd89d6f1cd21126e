"""Whatever goes wrong, a command says so in one sentence, with exit code 2, and leaves nothing."""

import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from command_line import call, refusal
from torch import nn

from riemae.cli import models
from riemae.cli.commands import embed as embedding
from riemae.cli.commands import geodesic as geodesics

TRAIN = ("train", "--epochs", "1", "--hidden", "4")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(folder, text="u,v,kind\n1,2,x\n3,4,y\n5,7,x\n6,7,y\n", name="t.csv"):
    (folder / name).write_text(text)
    return name


def untouched(folder, *expected):
    """Whether the folder holds nothing but what was expected: no result, and no half of one."""
    return sorted(p.name for p in folder.rglob("*")) == sorted(expected)


class TestData:
    def test_missing_file(self, here):
        table(here, name="iris_data.csv")
        line = refusal(*TRAIN, "iris_dta.csv", "--out", "model")
        assert "expected a file, a folder, or the name of a data set, got nothing there" in line
        assert "Did you mean 'iris_data.csv'?" in line
        assert untouched(here, "iris_data.csv")

    def test_missing_folder(self, here):
        assert "nothing there" in refusal(*TRAIN, "no/such/file.csv", "--out", "model")

    def test_column_that_is_not_numeric(self, here):
        line = refusal(*TRAIN, table(here), "--out", "model")
        assert "numbers in the column 'kind', got 'x' in row 1" in line
        assert "--labels kind" in line
        assert "--exclude kind" in line
        more = table(here, "u,v,kind,my site\n1,2,x,a\n3,4,y,b\n")
        assert "all such columns out, --exclude 'kind,my site'" in refusal(*TRAIN, more)
        assert untouched(here, "t.csv")

    def test_missing_cells(self, here):
        data = table(here, "u,v\n1,2\n,4\n5,\n,\n7,8\n")
        line = refusal(*TRAIN, data, "--out", "model")
        assert "got 4 missing (NaN) in 3 of 5 rows, in 'u', 'v'" in line
        assert "--drop-missing" in line
        assert untouched(here, "t.csv")

    @pytest.mark.parametrize("option", ["--labels", "--index", "--columns", "--exclude"])
    def test_unknown_column(self, here, option):
        line = refusal(*TRAIN, table(here), option, "kimd", "--out", "model")
        assert "Did you mean 'kind'?" in line

    @pytest.mark.parametrize("name", ["x.pkl", "x.pt", "x.xlsx", "x"])
    def test_unreadable_kinds(self, here, name):
        (here / name).write_bytes(pickle.dumps([1, 2]))
        line = refusal(*TRAIN, name, "--out", "model")
        assert "expected csv, tsv, parquet, npy, npz, h5ad, or a folder of images" in line
        assert ("pickle" in line) == (name in ("x.pkl", "x.pt"))

    def test_wrong_shape(self, here, flowers):
        np.save(here / "x.npy", np.ones((3, 5)))
        line = refusal("embed", flowers.model, "x.npy", "--out", "z.csv")
        assert "rows of shape (4,), as in the training, got rows of shape (5,)" in line
        assert untouched(here, "x.npy")

    def test_column_of_the_training_that_is_not_there(self, here, flowers):
        data = table(here, "sepal_length,sepal_width,petal_lenght,petal_width\n1,2,3,4\n")
        line = refusal("embed", flowers.model, data)
        assert "expected a column of the model called 'petal_length', got none" in line
        assert "Did you mean 'petal_lenght'?" in line

    def test_codes_of_another_size(self, here, flowers):
        np.save(here / "z.npy", np.ones((3, 3)))
        line = refusal("geodesic", flowers.model, "z.npy", "--codes-given", "--pairs", "0:1")
        assert "codes of 2 numbers, got 3 in a row" in line

    def test_counts_that_are_negative(self, here):
        np.save(here / "x.npy", np.array([[-1.0, 2], [3, 4], [1, 1], [2, 5]]))
        line = refusal(*TRAIN, "x.npy", "--likelihood", "poisson", "--out", "model")
        assert "expected data between 0 and inf" in line
        assert untouched(here, "x.npy")


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value", "near"),
        [
            ("--method", "iraee", "irae"),
            ("--likelihood", "poison", "poisson"),
            ("--ambient", "fischer", "fisher"),
            ("--term", "extrinsic_curvatur=1", "extrinsic_curvature"),
            ("--set", "wieght=1", "weight"),
        ],
    )
    def test_unknown_name(self, here, option, value, near):
        line = refusal(*TRAIN, table(here), "--labels", "kind", option, value, "--out", "model")
        assert f"Did you mean {near!r}?" in line
        assert untouched(here, "t.csv")

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (("--hidden", "8,x"), "Try 128,128"),
            (("--epochs", "0"), "--epochs"),
            (("--epoch", "3"), "--epochs"),
            (("--method", "ae", "--weight", "1"), "a method with a weight, got ae"),
            (("--term", "relaxed_distortion"), "a name and a value"),
            (("--term", "relaxed_distortion=x"), "Try relaxed_distortion=0.01"),
            (("--weight", "-1"), "weight"),
            (("--activation", "silo"), "silu"),
            (("--device", "cuda:77"), "a device of this machine"),
            (("--dtype", "float16"), "float32"),
            (("--latent-dim", "9"), "latent_dim of at most the number of features"),
            (("--standardize", "--likelihood", "poisson"), "Leave --standardize out"),
        ],
    )
    def test_values_out_of_range(self, here, arguments, match):
        line = refusal(*TRAIN, table(here), "--labels", "kind", *arguments, "--out", "model")
        assert match in line
        assert untouched(here, "t.csv")

    def test_unknown_command(self):
        assert "No such command 'trian'" in refusal("trian")
        assert "Try 'riemae --help'" in refusal("trian")

    def test_missing_argument(self):
        assert "Missing argument 'DATA'" in refusal("train")


class TestPairs:
    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (("--pairs", "0:150"), "expected rows from 0 to 149, got 150"),
            (("--pairs", "0-5"), "Try --pairs 0:5,3:7"),
            (("--pairs", "-1:5"), "Try --pairs 0:5,3:7"),
            (("--between", "setosa", "virginca"), "Did you mean 'virginica'?"),
            (("--between", "p1", "p15O"), "Did you mean 'p15'?"),
            (("--codes", "1,2:3"), "codes of 2 numbers"),
            (("--codes", "1,2"), "two codes divided by a colon"),
            (("--codes", "a,b:1,2"), "expected numbers"),
            ((), "--pairs, --between, --codes or --random, got none of them"),
        ],
    )
    def test_what_is_not_there(self, flowers, arguments, match):
        line = refusal("geodesic", flowers.model, flowers.table, *flowers.names, *arguments)
        assert match in line

    def test_rows_need_data(self, flowers):
        assert "DATA, which the rows are of" in refusal("geodesic", flowers.model, "--pairs", "0:1")

    def test_names_need_names(self, here, flowers):
        np.save("x.npy", np.ones((3, 4)))
        line = refusal("geodesic", flowers.model, "x.npy", "--between", "p1", "p2")
        assert "--labels COLUMN or --index COLUMN" in line

    def test_more_neighbours_than_rows(self, here, flowers):
        line = refusal("neighbors", flowers.model, flowers.table, "-k", "150", "--out", "n.npz")
        assert "150" in line
        assert untouched(here)

    def test_larger_sample_than_rows(self, here, flowers):
        line = refusal("distances", flowers.model, flowers.table, "--sample", "151")
        assert "at least 151 rows, got 150" in line


class TestPlaces:
    EMBED = ("--out", "out/z.csv")

    def test_a_file_in_the_way(self, here, flowers):
        (here / "out").write_text("a file")
        line = refusal("embed", flowers.model, flowers.table, *self.EMBED)
        assert "a place where out/z.csv can be written, got not a directory" in line
        assert "Choose another --out" in line
        assert refusal(*TRAIN, "iris", "--out", "out/model").count("not a directory") == 1
        assert "out" in refusal("demo", "--out", "out/demo")
        assert untouched(here, "out")

    def test_a_folder_in_the_way(self, here, flowers):
        (here / "z.csv").mkdir()
        line = refusal("embed", flowers.model, flowers.table, "--out", "z.csv")
        assert "z.csv' is a directory" in line

    def test_no_permission(self, here, flowers, monkeypatch):
        (here / "out").mkdir(mode=0o500)
        if os.geteuid() == 0:  # root may write everywhere

            def refuse(*_, **__):
                raise PermissionError(13, "Permission denied", "out")

            monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        for arguments in (
            ("embed", flowers.model, flowers.table, *self.EMBED),
            (*TRAIN, "iris", "--out", "out/model"),
        ):
            line = refusal(*arguments)
            assert "can be written, got permission denied" in line
        assert untouched(here, "out")

    def test_unknown_ending(self, here, flowers):
        line = refusal("embed", flowers.model, flowers.table, "--out", "z.xls")
        assert "a file that ends in .csv, .tsv, .parquet, .npy, .npz, .h5ad, got 'z.xls'" in line

    def test_a_folder_that_vanishes_is_made_again(self, here, flowers, monkeypatch):
        # Hours of work are worth more than the wish of whoever has removed the folder.
        (here / "out").mkdir()
        original = embedding.points

        def slow(*arguments, **options):
            found = original(*arguments, **options)
            shutil.rmtree(here / "out")
            return found

        monkeypatch.setattr(embedding, "points", slow)
        assert call("embed", flowers.model, flowers.table, *self.EMBED).exit_code == 0
        assert untouched(here, "out", "z.csv")

    def test_a_folder_that_cannot_be_made_again(self, here, flowers, monkeypatch):
        (here / "out").mkdir()
        original = embedding.points

        def slow(*arguments, **options):
            found = original(*arguments, **options)
            (here / "out").rmdir()
            (here / "out").write_text("in the way")
            return found

        monkeypatch.setattr(embedding, "points", slow)
        line = refusal("embed", flowers.model, flowers.table, *self.EMBED)
        assert "can be written" in line
        assert untouched(here, "out")

    @pytest.mark.parametrize("name", ["z.csv", "z.npz"])
    def test_a_full_disk(self, here, flowers, monkeypatch, name):
        resource = pytest.importorskip("resource")
        # The system lets no file grow beyond 2,000 bytes from the moment the codes are there on.
        (here / name).write_text("the earlier result")
        original = embedding.points
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)

        def filling(*arguments, **options):
            found = original(*arguments, **options)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
            return found

        monkeypatch.setattr(embedding, "points", filling)
        try:
            line = refusal("embed", flowers.model, flowers.table, "--out", name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert f"a place where {name} can be written" in line
        assert (here / name).read_text() == "the earlier result"
        assert untouched(here, name)

    def test_cells_are_written_for_cells_only(self, here, flowers):
        for command in ("embed", "neighbors"):
            line = refusal(command, flowers.model, flowers.table, "--out", "cells.h5ad")
            assert "DATA in h5ad for a result in h5ad" in line
        assert untouched(here)

    def test_an_earlier_model_is_not_lost(self, flowers):
        line = refusal(*TRAIN, "iris", "--out", flowers.model)
        assert "which has one" in line
        assert all(option in line for option in ("--resume", "--overwrite", "--out"))


class TestModels:
    @pytest.fixture
    def code(self, here):
        (here / "mine.py").write_text(
            "import torch\n"
            "from torch import nn\n"
            "def make():\n    return nn.Linear(2, 3)\n"
            "def number():\n    return 3\n"
            "def broken():\n    raise KeyError('weights')\n"
        )
        yield "mine"
        sys.modules.pop("mine", None)

    def test_missing(self, here):
        for name in ("models", "modes"):
            (here / name).mkdir()
        (here / "models" / "checkpoint.json").touch()
        assert "Did you mean 'models'?" in refusal("check", "model")
        # Folders without a model are not offered.
        assert "'modes'" not in refusal("check", "nothing-like-it")

    def test_an_empty_folder(self, here):
        (here / "model").mkdir()
        assert "one without checkpoint.json" in refusal("check", "model")

    @pytest.mark.parametrize("name", ["decoder.pt", "decoder.pth", "decoder.pkl"])
    def test_pickles_are_never_read(self, here, name):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(here / "exploded"),)

        (here / name).write_bytes(pickle.dumps(Bomb()))
        line = refusal("check", name)
        assert "a pickle, which could run any program when it is read" in line
        assert "torch.load(file, weights_only=True)" in line
        assert "my_module:function" in line
        assert untouched(here, name)

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("mine:mkae", "Did you mean 'make'?"),
            ("mien:make", "Did you mean 'mine'?"),
            ("mine:number", "a factory that returns an nn.Module or a Manifold, got int"),
            ("mine:broken", "KeyError: 'weights'"),
            ("none.py:make", "the file none.py"),
            # The name of the function is missing: those in the file are offered.
            ("mine", "Try mine:make, mine:number, mine:broken."),
            ("mine.py", "Try mine.py:make, mine.py:number, mine.py:broken."),
            ("mine:", "nothing after the colon. Try mine:make, "),
            (":make", "nothing before the colon. Try my_module:function."),
        ],
    )
    def test_names_in_python(self, code, name, match):
        assert match in refusal("check", name)

    def test_a_module_may_end_the_process(self, here):
        # As scripts do at their end, and with the code of success.
        for name in ("leaves", "leaves.py"):
            (here / "leaves.py").write_text("import sys\nsys.exit(0)\n")
            assert "SystemExit: 0" in refusal("check", f"{name}:make")
            sys.modules.pop("leaves", None)

    def test_a_decoder_has_no_encoder(self, code, here):
        assert "a model with an encoder, got a decoder alone" in refusal(
            "embed", "mine:make", "iris"
        )

    def test_a_decoder_that_does_not_tell_its_dimension(self, code, here):
        (here / "mine.py").write_text("def decoder(z):\n    return z.sin()\n")
        assert "Try --latent-dim 2" in refusal("check", "mine:decoder")

    def test_a_program_for_one_batch_size(self, here):
        program = torch.export.export(nn.Linear(2, 3).eval(), (torch.zeros(3, 2),))
        torch.export.save(program, "fixed.pt2")
        line = refusal("check", "fixed.pt2")
        assert "any number of rows, got one that was exported for 3 rows" in line
        assert "dynamic_shapes" in line

    def test_a_program_with_an_object_in_it(self, here):
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(here / "exploded"),)

        program = torch.export.export(nn.Linear(2, 3).eval(), (torch.zeros(3, 2),))
        torch.export.save(program, "good.pt2")
        torch.save(Bomb(), here / "bomb.pt")
        with zipfile.ZipFile("good.pt2") as good, zipfile.ZipFile("bad.pt2", "w") as bad:
            for name in good.namelist():
                sample = name.endswith("sample_inputs/model.pt")
                bad.writestr(name, (here / "bomb.pt").read_bytes() if sample else good.read(name))
        assert "one with an object in it (model.pt)" in refusal("check", "bad.pt2")
        assert not (here / "exploded").exists()

    @pytest.mark.parametrize("content", [b"", b"something else", b"PK\x05\x06" + bytes(18)])
    def test_no_program_at_all(self, here, content):
        (here / "x.pt2").write_bytes(content)
        assert "a program of torch.export" in refusal("check", "x.pt2")

    def test_a_preparation_of_another_model(self, here, flowers):
        shutil.copytree(flowers.model, here / "model")
        path = here / "model" / "preparation.json"
        text = path.read_text()
        path.write_text(text.replace('"model": "', '"model": "0'))
        line = refusal("embed", "model", flowers.table)
        assert "the preparation of the data of this model, got that of another one" in line
        path.write_text(text[:-20])
        assert "preparation.json" in refusal("embed", "model", flowers.table)


class TestUnexpected:
    def test_other_errors_are_one_sentence_as_well(self, flowers, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("the moon\nis full.")

        monkeypatch.setattr(models, "load", fail)
        line = refusal("check", flowers.model)
        assert line == (
            "Error: RuntimeError: the moon is full. Run it again with --debug, which shows where."
        )

    def test_debug_shows_where(self, flowers, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("the moon is full")

        monkeypatch.setattr(models, "load", fail)
        r = call("check", flowers.model, "--debug")
        assert isinstance(r.exception, RuntimeError)

    def test_interrupted(self, flowers, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(geodesics, "open_model", interrupt)
        r = call("geodesic", flowers.model, "--codes", "0,0:1,1")
        assert r.exit_code == 130
        assert "Interrupted." in r.stderr
