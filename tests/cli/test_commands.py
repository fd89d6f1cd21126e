"""The commands do what their help says: numbers agree with those of the library."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import COLUMNS, TINY, call, done, numbers, refusal, write_table
from scipy import sparse

import riemae
from riemae.cli import main
from riemae.cli.commands.train import METHODS
from riemae.cli.pairs import between
from riemae.cli.points import Points
from riemae.cli.tables import Table
from riemae.exceptions import DivergenceWarning
from riemae.solvers import Curve

COMMANDS = (
    "train",
    "embed",
    "geodesic",
    "distances",
    "neighbors",
    "report",
    "check",
    "info",
    "demo",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def standardized(iris):
    x = np.array([iris[name] for name in COLUMNS]).T
    return (x - x.mean(0)) / x.std(0)


@pytest.fixture(scope="module")
def codes(flowers, standardized):
    """The codes of the flowers, by the library."""
    z = riemae.load(flowers.model).transform(standardized.astype(np.float32))
    return torch.as_tensor(z).double()


@pytest.fixture(scope="module")
def M(flowers):
    return riemae.load(flowers.model).manifold_.to(dtype=torch.float64)


class TestTrain:
    def test_says_what_it_has_done(self, flowers, standardized):
        said = flowers.said
        assert (said["rows"], said["shape"], said["epochs"]) == (150, [4], 3)
        assert said["method"] == "irae"
        model = riemae.load(flowers.model)
        assert said["explained"] == pytest.approx(model.score(standardized.astype(np.float32)))
        assert said["loss"]["loss"] == model.history_["loss"][-1]
        assert said["report"]["mcn"] == pytest.approx(model.report_.mcn)

    def test_writes_model_codes_and_summary(self, flowers, codes, iris):
        files = [os.path.basename(path) for path in flowers.said["files"]]
        assert files == ["checkpoint.json", "preparation.json", "codes.csv", "summary.json"]
        lines = (flowers.model / "codes.csv").read_text().splitlines()
        assert lines[0] == "plant,z1,z2,species"
        rows = [line.split(",") for line in lines[1:]]
        assert [row[0] for row in rows] == iris["plant"]
        assert [row[3] for row in rows] == iris["species"]
        np.testing.assert_allclose(np.array([row[1:3] for row in rows], float), codes, rtol=1e-6)
        summary = json.loads((flowers.model / "summary.json").read_text())
        assert summary["explained"] == flowers.said["explained"]

    def test_for_people(self, here):
        r = done("train", "iris", *TINY, "--out", "model")
        assert "iris: 150 rows of 4 numbers." in r.stdout
        assert "Explained: " in r.stdout
        assert "Next: riemae report model iris" in r.stdout
        assert r.stderr == ""  # no bars where there is no terminal

    def test_same_seed_same_codes(self, here):
        def trained(seed, folder):
            done("train", "iris", *TINY, "--seed", seed, "--out", folder)
            return (here / folder / "codes.csv").read_text()

        one = trained(1, "a")
        assert trained(1, "b") == one
        assert trained(2, "c") != one

    def test_goes_on_where_it_has_stopped(self, here):
        tiny = ("--hidden", "8", "--batch-size", "50")
        done("train", "iris", *tiny, "--epochs", "3", "--out", "whole")
        done("train", "iris", *tiny, "--epochs", "1", "--out", "parts")
        said = numbers("train", "iris", *tiny, "--epochs", "3", "--out", "parts", "--resume")
        assert said["epochs"] == 3
        assert (here / "parts/codes.csv").read_bytes() == (here / "whole/codes.csv").read_bytes()
        r = call(
            "train", "iris", *tiny, "--epochs", "3", "--out", "parts", "--resume", "--seed", "1"
        )
        assert r.exit_code == 2
        assert "begin anew with --overwrite" in r.stderr
        finished = numbers("train", "iris", *tiny, "--epochs", "3", "--out", "parts", "--resume")
        assert finished["explained"] == said["explained"]
        again = numbers("train", "iris", *tiny, "--epochs", "2", "--out", "parts", "--overwrite")
        assert again["epochs"] == 2

    def test_settings_reach_the_model(self, here):
        done(
            "train", "counts", "--method", "vae", "--set", "beta=0.5", "--likelihood", "poisson",
            "--ambient", "fisher", "--term", "relaxed_distortion=0.01", "--hidden", "8,4",
            "--epochs", "1", "--latent-dim", "3", "--out", "model", "--activation", "tanh",
        )  # fmt: skip
        model = riemae.load("model")
        assert type(model).__name__ == "VAE"
        assert (model.beta, model.likelihood, model.ambient) == (0.5, "poisson", "fisher")
        assert (model.hidden, model.latent_dim, model.activation) == ((8, 4), 3, "tanh")
        assert model.terms == {"relaxed_distortion": 0.01}
        assert (model.directory, model.trainer) == (None, None)

    def test_every_method_has_a_name(self):
        from riemae.autoencoders.variants import KINDS

        assert set(METHODS.values()) == set(KINDS)

    def test_mahalanobis(self, here):
        done("train", "iris", *TINY, "--ambient", "covariance", "--out", "model")
        x = torch.as_tensor(np.array([[5.0, 3.4, 1.4, 0.2], [6.0, 3.0, 4.5, 1.5]])).float()
        assert "Constant" in repr(riemae.load("model").manifold_.ambient)
        assert riemae.load("model").transform(x).shape == (2, 2)

    def test_columns_of_uneven_scale_are_pointed_out(self, here, iris):
        table = {name: iris[name] for name in COLUMNS}
        table["petal_width"] = [1e3 * x for x in table["petal_width"]]
        said = numbers("train", write_table(here / "t.csv", table), *TINY, "--out", "model")
        (advice,) = said["advice"]
        assert "'petal_width'" in advice
        assert "--standardize" in advice

    def test_a_training_that_explodes_is_exit_code_1(self, here, monkeypatch):
        from riemae.autoencoders import IRAE

        fit = IRAE.fit

        def exploding(self, X, y=None):
            import warnings

            found = fit(self, X, y)
            warnings.warn("Training stopped.", DivergenceWarning, stacklevel=2)
            return found

        monkeypatch.setattr(IRAE, "fit", exploding)
        r = call("train", "iris", *TINY, "--out", "model")
        assert r.exit_code == 1
        assert r.stderr == "Warning: Training stopped.\n"

    def test_interrupted(self, here, monkeypatch):
        from riemae.autoencoders import IRAE

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(IRAE, "fit", interrupt)
        r = call("train", "iris", *TINY, "--out", "model")
        assert r.exit_code == 130
        assert "--resume" in r.stderr
        assert list(here.iterdir()) == []


class TestEmbed:
    @pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "npy", "npz"])
    def test_codes_are_those_of_the_library(self, here, flowers, codes, ending):
        said = numbers(
            "embed", flowers.model, flowers.table, *flowers.names, "--out", f"z.{ending}"
        )
        assert (said["rows"], said["latent_dim"], said["files"]) == (150, 2, [f"z.{ending}"])
        if ending == "npy":
            found = np.load("z.npy")
        elif ending == "npz":
            with np.load("z.npz") as arrays:
                found = arrays["codes"]
                assert arrays["labels"][0] == "setosa"
                assert arrays["rows"][1] == "p1"
        elif ending == "parquet":
            table = pytest.importorskip("pyarrow.parquet").read_table("z.parquet")
            assert table.column_names == ["plant", "z1", "z2", "species"]
            found = np.stack([table.column(name).to_numpy() for name in ("z1", "z2")], 1)
        else:
            lines = (here / f"z.{ending}").read_text().splitlines()[1:]
            cells = [line.split("," if ending == "csv" else "\t") for line in lines]
            found = np.array([row[1:3] for row in cells], float)
        np.testing.assert_allclose(found, codes, rtol=1e-6, atol=1e-6)

    def test_columns_are_found_by_name_in_any_order(self, here, flowers, iris, codes):
        shuffled = {name: iris[name] for name in ("species", *reversed(COLUMNS), "plant")}
        write_table(here / "t.csv", shuffled, delimiter=";")
        done("embed", flowers.model, "t.csv", "--out", "z.npy")
        np.testing.assert_allclose(np.load("z.npy"), codes, rtol=1e-6, atol=1e-6)

    def test_an_array_without_names_has_the_columns_in_order(self, here, flowers, iris, codes):
        np.save("x.npy", np.array([iris[name] for name in COLUMNS]).T[:7])
        done("embed", flowers.model, "x.npy", "--out", "z.npy")
        np.testing.assert_allclose(np.load("z.npy"), codes[:7], rtol=1e-6, atol=1e-6)

    def test_labels_and_names_are_those_of_the_training(self, here, flowers, iris):
        done("embed", flowers.model, flowers.table, "--out", "z.csv")
        assert (here / "z.csv").read_text().startswith("plant,z1,z2,species\np0,")
        without = {name: iris[name] for name in COLUMNS}
        done("embed", flowers.model, write_table(here / "t.csv", without), "--out", "z.csv")
        assert (here / "z.csv").read_text().startswith("row,z1,z2\n0,")

    def test_the_layer_is_that_of_the_training(self, here):
        anndata = pytest.importorskip("anndata")
        counts = np.random.default_rng(0).poisson(3.0, (20, 4)).astype(np.float32)
        adata = anndata.AnnData(np.log1p(counts))
        adata.layers["counts"] = counts
        adata.write_h5ad("cells.h5ad")
        done("train", "cells.h5ad", "--layer", "counts", *TINY, "--out", "model")
        np.save("counts.npy", counts)
        done("embed", "model", "cells.h5ad", "--out", "a.npy")
        done("embed", "model", "counts.npy", "--out", "b.npy")
        np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
        done("embed", "model", "cells.h5ad", "--out", "c.h5ad")
        codes = anndata.read_h5ad("c.h5ad").obsm["X_riemae"]
        np.testing.assert_array_equal(codes, np.load("a.npy"))
        assert [path.name for path in here.glob("*.part*")] == []

    def test_images_keep_their_shape(self, here):
        from PIL import Image

        rng = np.random.default_rng(0)
        (here / "images").mkdir()
        for i in range(6):
            pixels = rng.integers(0, 256, (4, 5), dtype=np.uint8)
            Image.fromarray(pixels).save(f"images/{i}.png")
        done("train", "images", *TINY, "--out", "model")
        assert riemae.load("model").data_shape_ == (1, 4, 5)
        done("embed", "model", "images", "--out", "z.csv")
        assert (here / "z.csv").read_text().splitlines()[3].startswith("2.png,")


class TestGeodesic:
    def test_pairs_of_rows(self, flowers, codes, M):
        said = numbers("geodesic", flowers.model, flowers.table, "--pairs", "0:50,3:149")
        expected = M.geodesic(codes[[0, 3]], codes[[50, 149]])
        assert said["length"] == pytest.approx(expected.length.tolist(), rel=1e-6)
        assert said["status"] == ["converged", "converged"]
        straight = M.length(Curve.line(codes[[0, 3]], codes[[50, 149]], 64))
        assert said["straight"] == pytest.approx(straight.tolist(), rel=1e-2)
        assert said["pairs"] == [["p0", "p50"], ["p3", "p149"]]

    def test_names_and_labels(self, flowers, codes, M):
        names = ("--between", "p0", "p50", "--between", "setosa", "virginica")
        said = numbers("geodesic", flowers.model, flowers.table, *names)
        assert said["pairs"] == [["p0", "p50"], ["setosa", "virginica"]]
        medians = []
        for part in (codes[:50], codes[100:]):
            medians.append(part[(part - part.mean(0)).norm(dim=1).argmin()])
        expected = [M.distance(codes[0], codes[50]), M.distance(*medians)]
        assert said["length"] == pytest.approx([float(x) for x in expected], rel=1e-4)

    def test_codes_alone_and_codes_in_a_file(self, flowers, M):
        said = numbers("geodesic", flowers.model, "--codes", "-0.5,0.25:1,1;0,0:1,0")
        ends = torch.tensor([[[-0.5, 0.25], [1, 1]], [[0, 0], [1, 0]]]).double()
        assert said["length"] == pytest.approx(M.distance(*ends.unbind(1)).tolist(), rel=1e-4)
        table = flowers.model / "codes.csv"
        of_file = numbers("geodesic", flowers.model, table, "--pairs", "0:50")
        assert of_file["codes_given"]
        of_data = numbers("geodesic", flowers.model, flowers.table, "--pairs", "0:50")
        assert not of_data["codes_given"]
        assert of_file["length"] == pytest.approx(of_data["length"], rel=1e-5)

    def test_random_pairs_with_a_graph(self, flowers):
        asked = ("geodesic", flowers.model, flowers.table, "--random", "3", "--rtol", "1e-2")
        said = numbers(*asked, "--graph", "--seed", "1")
        assert len(said["length"]) == 3
        assert all(a != b for a, b in said["pairs"])
        assert said["pairs"] == numbers(*asked, "--seed", "1")["pairs"]
        assert said["pairs"] != numbers(*asked, "--seed", "2")["pairs"]

    def test_curves_in_a_file(self, here, flowers, codes, iris):
        asked = ("geodesic", flowers.model, flowers.table, "--pairs", "0:50", "--samples", "5")
        done(*asked, "--out", "c.npz")
        with np.load("c.npz") as found:
            assert found["codes"].shape == (1, 5, 2)
            np.testing.assert_allclose(found["codes"][0, [0, -1]], codes[[0, 50]], atol=1e-6)
            assert found["decoded"].shape == (1, 5, 4)
            # In the units of the table, and not in standard deviations.
            assert 4 < found["decoded"][..., 0].mean() < 8
            assert found["status"].tolist() == ["converged"]
        done(*asked, "--out", "c.csv")
        lines = (here / "c.csv").read_text().splitlines()
        assert lines[0] == "pair,from,to,t,z1,z2"
        assert len(lines) == 6
        assert lines[-1].startswith("0,p0,p50,1.0,")

    def test_exit_code_1_when_one_has_not_converged(self, flowers):
        asked = ("geodesic", flowers.model, "--codes", "0,0:1,1", "--rtol", "1e-12")
        said = numbers(*asked, "--dtype", "float32", code=1)
        assert said["converged"] == [False]
        r = call(*asked, "--dtype", "float32")
        assert r.exit_code == 1
        assert f"{said['status'][0]}: " in r.stdout  # with its remedy

    def test_table_for_people(self, flowers):
        r = done("geodesic", flowers.model, flowers.table, *flowers.names, "--random", "50")
        assert "… and 10 more." in r.stdout
        assert "50 converged" in r.stdout
        assert r.stderr == ""

    def test_a_label_stands_for_the_row_in_its_middle(self):
        table = Table(
            "t", np.zeros((4, 1)), None, ["a", "a", "a", "b"], "label", list("0123"), None
        )
        z = torch.tensor([[0.0], [2.0], [9.0], [5.0]])
        found = between([("a", "b")], Points(z, table, encoded=True))
        assert (found.start.item(), found.end.item()) == (2.0, 5.0)


class TestDistances:
    def test_every_format_has_the_same_numbers(self, here, flowers, codes, M):
        asked = ("distances", flowers.model, flowers.table, *flowers.names, "--sample", "5")
        said = [numbers(*asked, "--out", f"D.{ending}") for ending in ("npz", "csv", "npy")]
        rows = said[0]["rows_taken"]
        expected = M.distance_matrix(codes[rows])
        with np.load("D.npz") as found:
            np.testing.assert_allclose(found["distances"], expected, rtol=1e-4, atol=1e-6)
            assert found["rows"].tolist() == [f"p{i}" for i in rows]
            assert len(found["labels"]) == 5
            matrix = found["distances"]
        lines = [line.split(",") for line in (here / "D.csv").read_text().splitlines()]
        assert lines[0] == ["", *(f"p{i}" for i in rows)]
        np.testing.assert_allclose(np.array([line[1:] for line in lines[1:]], float), matrix)
        np.testing.assert_allclose(np.load("D.npy"), matrix)
        assert said[0]["largest"] == pytest.approx(matrix.max())

    def test_a_finished_file_is_read_and_another_one_refused(self, here, flowers):
        asked = ("distances", flowers.model, flowers.table, "--out", "D.npy", "--rtol", "1e-2")
        first = numbers(*asked, "--sample", "4")
        before = (here / "D.npy").stat().st_mtime_ns
        assert numbers(*asked, "--sample", "4") == first
        assert (here / "D.npy").stat().st_mtime_ns == before
        assert call(*asked, "--sample", "3").exit_code == 2

    @pytest.mark.parametrize("method", ["graph", "chord"])
    def test_other_methods(self, here, flowers, codes, M, method):
        asked = ("distances", flowers.model, flowers.table, "--method", method, "--out", "D.npz")
        numbers(*asked, "-k", "60")  # one of the kinds lies apart from the others
        with np.load("D.npz") as found:
            expected = M.distance_matrix(codes, method=method, k=60)
            np.testing.assert_allclose(found["distances"], expected, rtol=1e-5, atol=1e-6)

    def test_exit_code_1_names_the_pairs(self, here, flowers):
        asked = ("distances", flowers.model, flowers.table, "--sample", "3", "--rtol", "1e-12")
        said = numbers(*asked, "--dtype", "float32", code=1)
        assert len(said["failed"]) == len(said["status"]) > 0
        assert (here / "distances.npz").exists()  # nothing that was computed is lost


class TestNeighbors:
    def test_matrix(self, here, flowers, codes, M):
        said = numbers("neighbors", flowers.model, flowers.table, "-k", "3", "--rtol", "1e-2")
        expected = M.neighbors(codes, k=3, rtol=1e-2)
        assert said["certified"] == int(expected.certified.sum())
        found = sparse.load_npz("neighbors.npz")
        assert found.shape == (150, 150)
        np.testing.assert_allclose(found.toarray(), expected.to_scipy().toarray(), rtol=1e-2)
        asked = ("neighbors", flowers.model, flowers.table, "-k", "3", "--rtol", "1e-2")
        numbers(*asked, "--kind", "connectivities", "--out", "c.npz")
        weights = sparse.load_npz("c.npz")
        assert abs(weights - weights.T).max() < 1e-12

    def test_edges(self, here, flowers, codes, M):
        asked = ("neighbors", flowers.model, flowers.table, *flowers.names, "-k", "2")
        done(*asked, "--rtol", "1e-2", "--out", "edges.csv")
        lines = (here / "edges.csv").read_text().splitlines()
        assert lines[0] == "from,to,distance,error,certified"
        assert len(lines) == 301
        nearest = int(M.neighbors(codes, k=2, rtol=1e-2).indices[0, 0])
        assert lines[1].startswith(f"p0,p{nearest},")

    def test_exit_code_1_when_rows_are_not_certified(self, here):
        """On a spiral, the nearest in space are not the nearest along it."""
        (here / "spirals.py").write_text(SPIRAL)
        np.save("t.npy", np.linspace(6, 30, 60)[:, None])
        asked = ("neighbors", "spirals.py:spiral", "t.npy", "-k", "2", "--rtol", "1e-2")
        said = numbers(*asked, "--candidates", "2", code=1)
        assert said["certified"] < 60
        assert numbers(*asked)["certified"] == 60


SPIRAL = """
import torch

def spiral(t):
    return torch.cat([t * t.cos(), t * t.sin()], 1)
"""
DECODERS = """
import torch
from torch import nn

import riemae

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).eval()

def kinks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

def dropout():
    return nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3))

def random(z):
    return torch.cat([z, torch.rand(len(z), 1)], 1)

def folded(z):
    return torch.cat([z[:, :1], z[:, :1].square(), 0 * z], 1)

def shaped():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 6)
    return riemae.Manifold(nn.Sequential(*layers).eval(), latent_shape=(1, 2, 2))

def manifold():
    return riemae.Manifold(good(), ambient=torch.diag(torch.tensor([1.0, 2.0, 3.0])))

def still(z):
    return torch.ones(len(z), 3).to(z) + 0 * z.sum()

def line(z):
    return torch.cat([z, z.square()], 1)

ready = good()
"""


class TestOwnDecoders:
    @pytest.fixture
    def code(self, here):
        (here / "mine.py").write_text(DECODERS)
        yield "mine"
        sys.modules.pop("mine", None)

    @pytest.mark.parametrize("name", ["good", "ready", "manifold"])
    def test_modules_factories_and_manifolds(self, code, here, name):
        said = numbers("geodesic", f"{code}:{name}", "--codes", "0,0:1,1")
        names = {}
        exec(DECODERS, names)
        M = names["manifold"]() if name == "manifold" else riemae.Manifold(names["good"]())
        ends = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double()
        expected = M.to(dtype=torch.float64).distance(*ends).detach()
        assert said["length"] == pytest.approx([float(expected)], rel=1e-4)
        (here / "decoders").mkdir()
        (here / "decoders/inner.py").write_text(DECODERS)
        for other in (f"decoders.inner:{name}", f"decoders/inner.py:{name}"):
            assert numbers("geodesic", other, "--codes", "0,0:1,1")["length"] == said["length"]

    def test_exported_programs(self, here, code):
        names = {}
        exec(DECODERS, names)
        anything = {0: torch.export.Dim.AUTO}
        program = torch.export.export(
            names["good"](), (torch.zeros(3, 2),), dynamic_shapes=({0: anything[0]},)
        )
        torch.export.save(program, "decoder.pt2")
        said = numbers("geodesic", "decoder.pt2", "--codes", "0,0:1,1")
        expected = numbers("geodesic", "mine:good", "--codes", "0,0:1,1")
        assert said["length"] == pytest.approx(expected["length"], rel=1e-4)

    def test_codes_of_a_decoder(self, code, here):
        np.save("z.npy", np.random.default_rng(0).normal(size=(12, 2)))
        said = numbers("report", "mine:good", "z.npy", "--pair-count", "3")
        assert said["converged"]
        assert (here / "report.html").stat().st_size > 10_000
        said = numbers("neighbors", "mine:good", "z.npy", "-k", "2", "--rtol", "1e-2")
        assert (said["codes_given"], said["certified"]) == (True, 12)

    @pytest.mark.parametrize(
        ("name", "verdict", "about", "match"),
        [
            ("good", "good", "laws", "laws of geometry hold"),
            ("kinks", "note", "smoothness", "piecewise linear"),
            ("dropout", "wrong", "map", "eval()"),
            ("random", "wrong", "map", "a deterministic decoder"),
            ("shaped", "good", "laws", "laws of geometry hold"),
            ("folded", "note", "directions", "1 of 2 directions hardly moves the data"),
            ("still", "wrong", "directions", "no direction moves the data"),
        ],
    )
    def test_what_is_wrong_with_a_decoder(self, code, name, verdict, about, match):
        asked = ("check", f"mine:{name}", "--latent-dim", "2")
        r = call(*asked, "--json")
        found = json.loads(r.stdout)
        assert r.exit_code == (0 if found["good"] else 1)
        if verdict == "wrong":
            assert r.exit_code == 1
        texts = [f["text"] for f in found["findings"] if f["about"] == about]
        assert [f["verdict"] for f in found["findings"] if f["about"] == about] == [verdict]
        assert match in texts[0]

    def test_one_direction_has_none_to_be_compared_with(self, code, here):
        assert "directions" not in [
            f["about"] for f in numbers("check", "mine:line", "--latent-dim", "1")["findings"]
        ]

    def test_stdout_is_for_results(self, here):
        # Modules, factories and decoders may print: their lines go to stderr.
        (here / "talks.py").write_text(
            "print('importing')\n"
            "def make():\n    print('building')\n    return decode\n"
            "def decode(z):\n    print('decoding')\n    return z.sin()\n"
        )
        asked = ("geodesic", "talks:make", "--codes", "0,0:1,1")
        for more in ((), ("--json",)):
            r = call(*asked, *more)
            sys.modules.pop("talks", None)
            assert r.exit_code == 0
            assert {"importing", "building", "decoding"} <= set(r.stderr.splitlines())
            assert "ing\n" not in r.stdout.replace("Geodesics", "")
        (line,) = r.stdout.splitlines()
        assert json.loads(line)["converged"] == [True]

    def test_check_in_words(self, code, here):
        r = done("check", "mine:good", "--out", "found.json")
        assert "✓ laws: all 10 laws of geometry hold" in r.stdout
        assert r.stdout.splitlines()[-1] == "Nothing is wrong."
        assert json.loads((here / "found.json").read_text())["good"]
        r = call("check", "mine:dropout")
        assert r.exit_code == 1
        assert "✗ map: " in r.stdout
        assert "Wrong: map." in r.stdout

    def test_check_of_a_trained_model(self, flowers):
        said = numbers("check", flowers.model)
        assert said["drawn_from"] == "codes of the training"
        assert any(f["about"] == "training" for f in said["findings"])
        said = numbers("check", flowers.model, flowers.table)
        assert said["drawn_from"] == "codes of iris.csv"


CONDITIONAL = """
import torch

def labelled(z, c):
    shift = torch.tensor([0.0, 1.0, 2.0]).to(z)[c]
    return torch.cat([z, (z + shift[:, None]).square()], 1)

def named(z, c):
    return labelled(z, c["kind"]) * c["size"]
"""


class TestConditions:
    """Decoders f(z, c), the same condition for all points."""

    @pytest.fixture
    def module(self, here):
        (here / "conditional.py").write_text(CONDITIONAL)
        yield "conditional"
        sys.modules.pop("conditional", None)

    @pytest.fixture
    def z(self, here):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(12, 2, generator=generator, dtype=torch.float64)
        np.save(here / "z.npy", z.numpy())
        return z

    @staticmethod
    def shifted(shift, size=1.0):
        return riemae.Manifold(lambda z: size * torch.cat([z, (z + shift).square()], 1))

    def test_a_label(self, here, module, z):
        ends = ("--codes", "0,0:1,1")
        said = numbers("geodesic", f"{module}:labelled", *ends, "--condition", "2")
        expected = self.shifted(2.0).distance(torch.zeros(2).double(), torch.ones(2).double())
        assert said["length"] == [pytest.approx(float(expected), rel=1e-4)]
        out = here / "d.npy"
        numbers("distances", f"{module}:labelled", "z.npy", "--condition", "1", "--out", out)
        expected = self.shifted(1.0).distance_matrix(z)
        np.testing.assert_allclose(np.load(out), expected, rtol=1e-3)

    def test_several_by_name(self, module, z):
        ends = ("--codes", "0,0:1,1")
        c = ("--condition", "kind=1", "--condition", "size=0.5,")
        said = numbers("geodesic", f"{module}:named", *ends, *c)
        expected = self.shifted(1.0, 0.5).distance(torch.zeros(2).double(), torch.ones(2).double())
        assert said["length"] == [pytest.approx(float(expected), rel=1e-4)]

    def test_reports_neighbours_and_checks(self, here, module, z):
        c = ("--condition", "1", "--latent-dim", "2")
        model = f"{module}:labelled"
        assert numbers("report", model, "z.npy", *c, "--pair-count", "5")["converged"]
        assert "at one condition" in (here / "report.html").read_text()
        found = numbers("neighbors", model, "z.npy", "-k", "2", "--rtol", "1e-2", *c)
        assert found["certified"] == 12
        assert numbers("check", model, *c)["good"]

    def test_refusals(self, module, z, flowers):
        model = f"{module}:labelled"
        ends = ("--codes", "0,0:1,1")
        assert "a condition for each point" in refusal("geodesic", model, *ends)
        said = refusal("geodesic", flowers.model, *ends, "--condition", "1")
        assert "takes a condition, got one that takes" in said
        said = refusal("geodesic", model, *ends, "--condition", "blue")
        assert "neither VALUE nor NAME=VALUE" in said
        twice = ("--condition", "a=1", "--condition", "a=2")
        assert "'a' twice" in refusal("geodesic", model, *ends, *twice)
        mixed = ("--condition", "a=1", "--condition", "2")
        assert "each of them a name" in refusal("geodesic", model, *ends, *mixed)
        judged = ("report", "--embedding", "z.npy", "z.npy", "--condition", "1")
        assert "no --condition with --embedding" in refusal(*judged)


class TestReport:
    def test_of_a_model(self, here, flowers):
        asked = ("report", flowers.model, flowers.table, *flowers.names, "--pair-count", "4")
        said = numbers(*asked, "--title", "Three kinds of iris")
        text = (here / "report.html").read_text()
        assert "Three kinds of iris" in text
        assert "setosa" in text
        assert "petal_width" in text
        assert said["converged"]
        assert said["verdict"]

    def test_of_coordinates(self, here, flowers, iris):
        x = np.array([iris[name] for name in COLUMNS[:2]]).T
        x = x + np.random.default_rng(0).normal(scale=0.05, size=x.shape)
        write_table(here / "coords.csv", {"row": range(150), "umap1": x[:, 0], "umap2": x[:, 1]})
        asked = ("report", "--embedding", "coords.csv", flowers.table, *flowers.names)
        r = call(*asked, "--out", "judged.html", "--pair-count", "4")
        assert r.exit_code == 0, (r.stderr, r.exception)
        assert "<html" in (here / "judged.html").read_text().lower()
        assert "Written: judged.html" in r.stdout

    def test_of_coordinates_in_cells_with_a_label_on_a_scale(self, here):
        anndata = pytest.importorskip("anndata")
        rng = np.random.default_rng(0)
        z = rng.normal(size=(60, 2))
        x = np.concatenate([z, np.sin(z)], 1) + rng.normal(scale=0.01, size=(60, 4))
        adata = anndata.AnnData(x.astype(np.float32))
        adata.obsm["X_umap"] = z
        adata.obs["age"] = z[:, 0]
        adata.write_h5ad("cells.h5ad")
        asked = ("report", "cells.h5ad", "--labels", "age", "--pair-count", "3")
        said = numbers(*asked, "--embedding", "X_umap")
        assert said["converged"]
        assert "cells.h5ad in the coordinates of X_umap" in (here / "report.html").read_text()
        r = call(*asked, "--embedding", "X_umpa")
        assert r.exit_code == 2
        assert "Did you mean 'X_umap'?" in r.stderr

    def test_images(self, here):
        done("train", "digits", *TINY, "--out", "model")
        asked = ("report", "model", "digits", "--pair-count", "2")
        numbers(*asked)
        plain = (here / "report.html").stat().st_size
        assert plain > 100_000  # with the pictures

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ((), "expected MODEL and DATA, got 0 arguments"),
            (("a", "b", "--embedding", "c.csv"), "DATA alone with --embedding"),
            (("a", "b", "--image-shape", "8"), "height and width as HxW"),
            (("a", "b", "--out", "r.pdf"), "a file that ends in .html"),
        ],
    )
    def test_arguments(self, arguments, match):
        r = call("report", *arguments)
        assert r.exit_code == 2
        assert match in r.stderr

    def test_as_many_coordinates_as_rows(self, here, flowers):
        write_table(here / "c.csv", {"a": [1, 2, 3], "b": [3, 1, 2]})
        r = call("report", "--embedding", "c.csv", flowers.table, *flowers.names)
        assert r.exit_code == 2
        assert "expected 150 rows of coordinates, got 3 in c.csv" in r.stderr


class TestBars:
    def test_only_on_stderr_and_only_for_those_who_want_them(self, here, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
        r = call("train", "iris", *TINY, "--out", "a", "--json")
        assert r.exit_code == 0
        assert "training" in r.stderr
        assert "3/3" in r.stderr
        assert json.loads(r.stdout)["epochs"] == 3
        assert call("train", "iris", *TINY, "--out", "b", "--json", "--quiet").stderr == ""


class TestInfo:
    def test_versions(self, here):
        said = numbers("info", "--out", "info.json")
        assert said["riemae"] == riemae.__version__
        assert said["packages"]["torch"]
        assert json.loads((here / "info.json").read_text()) == said
        assert "torch" in done("info").stdout


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_options_of_every_command(self, command):
        text = done(command, "--help").stdout
        assert "Examples" in text
        shared = {"--json", "--quiet", "--debug", "--out"}
        if command not in ("info", "demo"):
            shared |= {"--seed", "--device", "--dtype"}
        assert [option for option in sorted(shared) if option not in text] == []

    def test_all_commands_are_listed(self):
        text = done("--help").stdout
        assert all(command in text for command in COMMANDS)
        assert set(main.commands) == set(COMMANDS)
        assert "_RIEMAE_COMPLETE" in text

    def test_examples_run_as_printed(self, here):
        quick = [name for name in COMMANDS if name != "demo"]  # a minute, and has its own tests
        lines = [line for name in quick for line in main.commands[name].examples]
        assert all(line.startswith("riemae ") for line in lines)
        for line in lines:
            r = call(*shlex.split(line)[1:])
            assert r.exit_code == 0, (line, r.stdout, r.stderr, r.exception)


class TestProcesses:
    """As the shell starts them."""

    def run(self, *command, **environment):
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
        )

    def test_as_a_module(self, here):
        r = self.run(sys.executable, "-m", "riemae", "geodesic", "nothing", "--codes", "0,0:1,1")
        assert (r.returncode, r.stdout) == (2, "")
        assert r.stderr.startswith("Error: nothing: expected a riemae folder")
        assert len(r.stderr.splitlines()) == 1

    def test_as_a_script_and_its_completion(self, here):
        script = os.path.join(os.path.dirname(sys.executable), "riemae")
        r = self.run(
            script,
            _RIEMAE_COMPLETE="bash_complete",
            COMP_WORDS="riemae train --method ir",
            COMP_CWORD="3",
        )
        assert r.returncode == 0, r.stderr
        assert [line.split(",")[1] for line in r.stdout.splitlines()] == ["irae", "irvae"]
