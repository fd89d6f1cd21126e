"""The demonstration and its command line, at a size of seconds: three epochs, two pairs, four by
four distances."""

import dataclasses
import importlib.metadata
import sys

import matplotlib
import numpy as np
import pytest
import torch
from command_line import call, strictly
from matplotlib import pyplot as plt
from sklearn import datasets

from riemae import Manifold, solvers
from riemae.cli import demo
from riemae.exceptions import MissingExtraError

SIZE = {"epochs": 3, "pairs": 2, "subset": 4}
FILES = ("latent.png", "strips.png", "distances.png", "distances.npz", "report.html")


def sized(size=SIZE):
    return [text for name, value in size.items() for text in (f"--{name}", value)]


@pytest.fixture(scope="module")
def result():
    return demo.run(seed=0, **SIZE)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """``riemae demo --json``, run once: its result and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "folder"
    return call("demo", "--json", "--out", folder, *sized()), folder


@pytest.fixture
def few(monkeypatch):
    """A few of the digits, which are enough to test that everything runs."""
    images, labels = demo.load_digits()
    monkeypatch.setattr(demo, "load_digits", lambda: (images[:200], labels[:200]))


@pytest.fixture
def unreported(monkeypatch):
    """No page for a browser, which takes as long as all the rest."""
    monkeypatch.setattr(demo, "_write_report", lambda _, folder: folder / FILES[-1])


@pytest.fixture
def computed(monkeypatch, result):
    """The command line with an existing result, without drawing.

    Change it by ``computed(...)``.
    """

    def use(**changes):
        monkeypatch.setattr(demo, "run", lambda *_: dataclasses.replace(result, **changes))

    monkeypatch.setattr(demo, "write", lambda _, folder: [folder / name for name in FILES])
    use()
    return use


class TestJson:
    def test_stdout_is_json_and_nothing_else(self, command):
        r, folder = command
        assert r.exit_code == 0, r.stderr
        numbers = strictly(r.stdout)
        assert len(r.stdout.splitlines()) == 1
        assert len(numbers["pairs"]) == 2
        for name in ("straight", "graph", "geodesic", "error", "converged"):
            assert len(numbers[name]) == 2
        assert numbers["converged"] == [True, True]
        assert numbers["files"] == [str(folder / name) for name in FILES]

    def test_geodesics_are_no_longer_than_the_other_roads(self, command):
        numbers = strictly(command[0].stdout)
        for straight, graph, geodesic, error in zip(
            *(numbers[k] for k in ("straight", "graph", "geodesic", "error")), strict=True
        ):
            assert 0 < geodesic <= straight + error
            assert geodesic <= graph + error
            assert 0 <= error <= 1e-4 * geodesic

    def test_same_seed_same_numbers(self, command, result):
        numbers = strictly(command[0].stdout)
        assert numbers["reconstruction_error"] == result.loss
        assert numbers["pairs"] == result.pairs.tolist()
        assert numbers["geodesic"] == result.geodesics.length.tolist()
        assert numbers["straight"] == result.straight.tolist()
        assert numbers["graph"] == result.graph_lengths.tolist()

    def test_numbers_that_do_not_exist_are_still_json(self, computed, result, tmp_path):
        nowhere = dataclasses.replace(
            result.geodesics,
            status=torch.tensor([int(solvers.Status.NON_FINITE), 0]),
            error=torch.tensor([torch.nan, 1e-9]),
        )
        computed(geodesics=nowhere, graph_lengths=torch.tensor([torch.inf, 1.0]))
        r = call("demo", "--json", "--quiet", "--out", tmp_path)
        assert r.exit_code == 1
        numbers = strictly(r.stdout)
        assert numbers["converged"] == [False, True]


class TestFiles:
    def test_pictures_and_numbers(self, command):
        folder = command[1]
        assert sorted(f.name for f in folder.iterdir()) == sorted(FILES)
        for name in FILES[:3]:
            assert plt.imread(folder / name).std() > 0.01  # something is drawn
        page = (folder / FILES[-1]).read_text("utf-8")
        assert "<title>Digits in the latent space" in page

    def test_distance_matrices(self, command, result):
        numbers = np.load(command[1] / "distances.npz")
        digits = datasets.load_digits().target
        assert np.array_equal(numbers["labels"], digits[numbers["subset"]])
        assert np.array_equal(numbers["labels"], np.sort(numbers["labels"]))
        assert len(set(numbers["subset"].tolist())) == 4
        geodesic, graph = numbers["geodesic"], numbers["graph"]
        assert geodesic.shape == graph.shape == (4, 4)
        assert np.array_equal(geodesic, result.by_geodesic.numpy())
        for matrix in (geodesic, graph):
            assert np.allclose(matrix, matrix.T, rtol=1e-12)
            assert not matrix.diagonal().any()
        assert (graph >= geodesic * (1 - 1e-4)).all()

    def test_drawn_again_to_the_byte(self, command, result, tmp_path, unreported):
        for again in demo.write(result, tmp_path)[:3]:
            assert again.read_bytes() == (command[1] / again.name).read_bytes()  # no dates inside

    def test_drawing_changes_nothing_of_matplotlib(self, result, tmp_path, monkeypatch, unreported):
        monkeypatch.setattr(demo, "_draw_latent", lambda _, folder: folder / "latent.png")
        before = matplotlib.get_backend()
        try:
            matplotlib.use("svg")
            demo.write(result, tmp_path)
            assert plt.get_fignums() == []
            assert matplotlib.get_backend().lower() == "svg"
        finally:
            matplotlib.use(before)


class TestLibrary:
    def test_prints_nothing_and_leaves_the_generator_alone(self, few, capfd):
        torch.manual_seed(7)
        before, last = torch.get_rng_state(), {}
        report = lambda what, done, total: last.update({what: (done, total)})  # noqa: E731
        demo.run(seed=0, epochs=1, pairs=1, subset=2, report=report)
        assert torch.equal(torch.get_rng_state(), before)
        assert capfd.readouterr() == ("", "")
        assert last == {
            "training the autoencoder": (1, 1),
            "geodesics": (1, 1),
            "distance matrix": (1, 1),
        }

    def test_another_seed_gives_other_numbers(self, few):
        one, other = (demo.run(seed, epochs=1, pairs=2, subset=2) for seed in (0, 1))
        assert other.loss != one.loss
        assert not torch.equal(other.pairs, one.pairs)
        assert not torch.equal(other.subset, one.subset)
        assert (other.geodesics.length != one.geodesics.length).all()

    def test_survives_a_graph_in_pieces(self, few, monkeypatch, tmp_path, unreported):
        # Training may leave the codes in clusters that no neighbourhood joins. There is then no
        # path, and the straight line is used.
        build = Manifold.graph
        monkeypatch.setattr(Manifold, "graph", lambda self, points, **_: build(self, points, k=1))
        r = call("demo", "--json", "--quiet", "--out", tmp_path, *sized())
        assert r.exit_code == 0, repr(r.exception)
        (line,) = r.stderr.splitlines()
        assert line.startswith("Warning: ")
        assert "components" in line
        numbers = strictly(r.stdout)
        assert numbers["graph"] == [None, None]
        assert all(
            0 < g <= s for g, s in zip(numbers["geodesic"], numbers["straight"], strict=True)
        )
        r = call("demo", "--quiet", "--out", tmp_path, *sized())
        assert r.exit_code == 0, repr(r.exception)
        assert "nan" not in r.stdout

    def test_joins_digits_of_different_classes(self, result):
        digits = torch.as_tensor(datasets.load_digits().target)
        assert torch.equal(result.labels, digits)
        many = torch.as_tensor(list(demo._different_classes(digits, 200, seed=0)))
        for pairs in (result.pairs, many):
            assert (digits[pairs[:, 0]] != digits[pairs[:, 1]]).all()
        assert torch.equal(result.geodesics.curve(0.0), result.codes[result.pairs[:, 0]])
        assert torch.equal(result.geodesics.curve(1.0), result.codes[result.pairs[:, 1]])

    def test_loss_is_the_mean_squared_error_a_pixel(self, result):
        images = torch.as_tensor(datasets.load_digits().data) / 16
        loss = (result.manifold.decode(result.codes) - images).square().mean()
        assert float(loss) == pytest.approx(result.loss, rel=1e-5)

    def test_the_numbers_that_matter(self, result):
        steps, straight, accuracy = demo.summary(result)
        density = result.manifold.volume_density(result.codes)
        low, high = density.quantile(torch.tensor([0.05, 0.95]).double())
        assert f"{(high / low).sqrt():.0f} times as much" in steps
        longer = torch.cat([result.straight, result.between_straight]) / torch.cat(
            [result.geodesics.length, result.between.length]
        )
        assert f"up to {100 * (longer.max() - 1):.0f} % longer" in straight
        assert "(8 pairs;" in straight
        assert accuracy.startswith("8 of 8 geodesics")

    def test_the_numbers_that_matter_when_nothing_converged(self, result):
        def failed(r):
            return dataclasses.replace(r, status=torch.ones_like(r.status))

        bad = {name: failed(getattr(result, name)) for name in ("geodesics", "between")}
        _, accuracy = demo.summary(dataclasses.replace(result, **bad))
        assert accuracy.startswith("0 of 8 geodesics")

    def test_highlighted_pairs_are_the_worst_straight_lines(self, result):
        shown = demo._highlighted(result)
        i, j = torch.triu_indices(4, 4, 1)[:, shown]
        ends = torch.cat([i, j]).tolist()
        assert len(set(ends)) == len(ends)
        longer = result.between_straight / result.between.length
        classes = result.labels[result.subset]
        a, b = torch.triu_indices(4, 4, 1)
        differ = classes[a] != classes[b]
        assert longer[shown[0]] == longer[differ].max()

    def test_lengths_of_straight_lines(self, result):
        # ∫ |J (z₁ − z₀)| dt by the chords of many decoded points: second order, 2,000 of them.
        ends = result.codes[result.pairs]
        t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
        x = result.manifold.decode((1 - t) * ends[:, :1] + t * ends[:, 1:])
        assert torch.allclose(result.straight, x.diff(dim=1).norm(dim=-1).sum(-1), rtol=1e-6)

    def test_training_improves_with_its_epochs(self):
        images, _ = demo.load_digits()
        assert images.shape == (1797, 64)
        assert (images.min(), images.max()) == (0, 1)
        calls = []
        losses = [
            demo.train(images[:256], n, 0, lambda *call: calls.append(call))[2] for n in (1, 12)
        ]
        assert losses[1] < 0.9 * losses[0]
        assert calls[0] == ("training the autoencoder", 1, 1)
        assert calls[-1] == ("training the autoencoder", 12, 12)

    def test_without_scikit_learn(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(
            MissingExtraError, match=r"expected scikit-learn.*pip install 'riemae\[demo\]'"
        ):
            demo.load_digits()


class TestCommand:
    def test_table(self, computed, result, tmp_path):
        r = call("demo", "--quiet", "--out", tmp_path)
        assert r.exit_code == 0, r.stderr
        assert r.stderr == ""
        first, second = result.labels[result.pairs[0]].tolist()
        assert f"{first} → {second}" in r.stdout
        for number in (result.straight[0], result.graph_lengths[0], result.geodesics.length[0]):
            assert f"{number:.4f}" in r.stdout
        assert "2 converged" in " ".join(r.stdout.split())
        assert all(name in r.stdout.replace("\n", "") for name in FILES)
        assert " ".join(r.stdout.split()).endswith("in a browser, and drag two points.")

    def test_progress_goes_to_stderr(self, computed, tmp_path):
        assert call("demo", "--json", "--out", tmp_path).stdout.startswith("{")

    def test_exit_code_tells_of_geodesics_that_failed(self, computed, result, tmp_path):
        status = torch.tensor([0, int(solvers.Status.MAX_STEPS)])
        computed(geodesics=dataclasses.replace(result.geodesics, status=status))
        r = call("demo", "--quiet", "--out", tmp_path)
        assert r.exit_code == 1
        assert "1 converged, 1 max_steps" in " ".join(r.stdout.split())

    @pytest.mark.parametrize("options", [[], ["--quiet"], ["--json"]], ids=str)
    def test_without_scikit_learn(self, monkeypatch, tmp_path, options):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        r = call("demo", "--out", tmp_path, *options)
        assert r.exit_code == 2
        assert isinstance(r.exception, SystemExit)  # no traceback
        assert r.stdout == ""
        (line,) = [line for line in r.stderr.splitlines() if line.strip()]
        assert line.startswith("Error: ")
        assert "pip install 'riemae[demo]'" in line
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("option", "value"), [("--epochs", 0), ("--pairs", 0), ("--subset", 1), ("--seed", "x")]
    )
    def test_options_out_of_range(self, option, value):
        r = call("demo", option, value)
        assert r.exit_code == 2
        assert option in r.stderr

    def test_more_digits_than_there_are(self, few, tmp_path):
        r = call(
            "demo", "--quiet", "--out", tmp_path, *sized({"epochs": 1, "pairs": 1, "subset": 201})
        )
        assert isinstance(r.exception, SystemExit), repr(r.exception)
        assert r.exit_code != 0
        assert "200" in r.stderr

    def test_a_folder_that_cannot_be_made(self, monkeypatch, result, tmp_path):
        monkeypatch.setattr(demo, "run", lambda *_: result)
        (tmp_path / "file").write_text("in the way")
        r = call("demo", "--quiet", "--out", tmp_path / "file" / "folder")
        assert isinstance(r.exception, SystemExit), repr(r.exception)
        assert r.exit_code != 0
        assert "file" in r.stderr

    def test_help(self):
        for flag in ("--help", "-h"):
            assert "demo" in call(flag).stdout
        text = call("demo", "--help").stdout
        assert all(
            option in text
            for option in (
                "--out",
                "--seed",
                "--epochs",
                "--pairs",
                "--subset",
                "--json",
                "--quiet",
            )
        )

    def test_version(self):
        r = call("--version")
        assert r.exit_code == 0
        assert importlib.metadata.version("riemae") in r.stdout

    def test_unknown_command(self):
        r = call("dance")
        assert r.exit_code == 2
        assert "dance" in r.stderr


def test_an_interrupted_training_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def interrupt(stage, done, total):
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            demo.train(torch.rand(40, 64), 1, 0, interrupt)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
