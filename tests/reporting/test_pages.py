"""What a report measures and writes: numbers against closed forms, escapes, errors."""

import base64
import hashlib
import html
import json
import math
import os
import re

import numpy as np
import pytest
import torch

import riemae
from riemae.autoencoders.diagnostics import overlap_share
from riemae.exceptions import DTypeError, FileError, NonFiniteError, OptionError, ShapeError
from riemae.reporting.arguments import Images, Labels, as_history
from riemae.reporting.findings import verdict
from riemae.reporting.lattice import Lattice, MetricTable, routes, tabulated, where_defined
from riemae.reporting.measures import ranks_agree, sampled_pairs
from riemae.reporting.pictures import Sheet, grey_levels, png
from riemae.reporting.training import training_chart


def bowl(z):
    return torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)


def codes(n=30, m=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=generator, dtype=torch.float64)


def content_of(path):
    """The data of a page."""
    text = path.read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def report(M, z, path, *args, **options):
    return riemae.report(M, z, *args, path=path, **{"pairs": 12, **options})


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    path = tmp_path_factory.mktemp("plane") / "plane.html"
    history = {"loss": [2.0 / (k + 1) for k in range(30)]}
    M = riemae.Manifold(bowl)
    return report(M, codes(), path, ["a", "b"] * 15, history=history, title="A bowl")


class TestNumbers:
    def test_an_isometry_is_judged_to_be_one(self, tmp_path):
        turned = torch.linalg.qr(codes(3, 3)).Q[:, :2]
        r = report(riemae.Manifold(lambda z: 2 * z @ turned.T), codes(), tmp_path / "r.html")
        assert r.level == "good"
        assert r.converged
        assert r.numbers["spearman"] == pytest.approx(1)
        assert r.numbers["stretch_spread"] == pytest.approx(1, abs=1e-6)
        assert r.numbers["detour"] == pytest.approx(1, abs=1e-6)
        assert r.numbers["condition_number"] == pytest.approx(1)
        assert r.numbers["vor"] == pytest.approx(0, abs=1e-12)
        assert r.numbers["curvature"] == pytest.approx(0, abs=1e-12)

    def test_stretching_one_direction_is_seen(self, tmp_path):
        scale = torch.tensor([1.0, 20.0], dtype=torch.float64)
        r = report(riemae.Manifold(lambda z: z * scale), codes(60), tmp_path / "r.html", pairs=60)
        assert r.numbers["condition_number"] == pytest.approx(400)
        assert r.numbers["stretch_spread"] > 3
        assert r.level != "good"

    def test_every_finding_has_a_sentence_and_is_on_the_page(self, plane):
        text = html.unescape(plane.path.read_text("utf-8"))
        for finding in plane.findings:
            assert finding.meaning.endswith(".")
            assert finding.meaning in text
            assert finding.title in text
        assert plane.verdict in text
        assert {"spearman", "stretch_spread", "converged", "table_error"} <= set(plane.numbers)

    def test_the_result_says_what_it_found(self, plane):
        assert plane.verdict in repr(plane)
        assert str(plane.path) in plane._repr_html_()
        assert len(plane.pairs.result.length) == 12

    def test_worst_pairs_are_listed_with_their_factor(self, plane):
        stretch = plane.pairs.stretch
        k = plane.pairs.worst(1)[0]
        assert float(stretch[k].log().abs()) == pytest.approx(float(stretch.log().abs().max()))
        assert f'data-pair="{k}"' in plane.path.read_text("utf-8")

    def test_long_labels_are_shortened_in_the_middle(self, tmp_path):
        labels = [f"{'long ' * 20}{kind}" for kind in ("first", "other")] * 15
        r = report(riemae.Manifold(bowl), codes(30), tmp_path / "r.html", labels=labels, pairs=5)
        text = r.path.read_text("utf-8")
        rows = text[text.index("<tbody>") : text.index("</tbody>")]
        assert "long long long …" in rows
        assert "first)" in rows or "other)" in rows
        assert "long " * 5 not in rows

    def test_more_than_two_dimensions_are_not_called_the_plot(self, tmp_path):
        for m, place in ((2, "In the plot"), (3, "In latent space")):
            r = report(riemae.Manifold(bowl), codes(30, m), tmp_path / "r.html", pairs=5)
            text = r.path.read_text("utf-8")
            assert f'<th scope="col">{place}</th>' in text
            assert ("latent space of all 3 dimensions" in text) == (m == 3)

    def test_data_give_folds_and_what_is_explained(self, tmp_path):
        z = codes(60)
        M = riemae.Manifold(bowl)
        r = report(M, z, tmp_path / "r.html", data=bowl(z))
        assert r.numbers["explained"] == pytest.approx(1)
        assert r.numbers["overlap"] < 0.05

    def test_few_geodesics_are_no_basis_for_a_verdict(self, plane):
        found = [f for f in plane.findings if f.key != "converged"]
        failed = next(f for f in plane.findings if f.key == "converged")
        level, sentence = verdict([*found, type(failed)(**{**vars(failed), "value": 0.2})])
        assert level == "note"
        assert "Too little" in sentence

    def test_an_even_plot_of_little_of_the_data_is_no_yes(self, tmp_path):
        # An isometry onto a plane: the scale is even, whatever the share of the data.
        M = riemae.Manifold(lambda z: torch.cat([z, 0 * z[:, :1]], -1))
        z = codes(60)
        noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(0)).to(z)
        levels = []
        for size in (0.0, 0.8, 3.0):
            x = torch.cat([z, size * noise], 1)
            r = report(M, z, tmp_path / "r.html", pairs=20, data=x)
            left = (size * noise).square().sum() / (x - x.mean(0)).square().sum()
            assert r.numbers["explained"] == pytest.approx(1 - float(left))
            found = {f.key: f for f in r.findings if f.key != "overlap"}
            level, sentence = verdict(list(found.values()))
            levels.append(level)
            if level != "good":
                assert sentence.startswith(f"Only for the {100 * r.numbers['explained']:.0f} %")
        assert levels == ["good", "fair", "poor"]
        wrong = report(M, z, tmp_path / "r.html", pairs=20, data=-torch.cat([z, z[:, :1]], 1))
        assert wrong.level == "poor"
        assert wrong.verdict.startswith("No: the plot explains nothing")

    def test_a_model_may_say_what_it_explains(self, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z, 0 * z[:, :1]], -1))
        r = report(M, codes(30), tmp_path / "r.html", pairs=10, explained=0.15)
        assert r.numbers["explained"] == 0.15
        assert r.verdict.startswith("Only for the 15 %")
        with pytest.raises(OptionError, match="explained"):
            report(M, codes(30), tmp_path / "r.html", pairs=10, explained=1.5)

    def test_geodesics_go_round_what_the_straight_line_crosses(self, tmp_path):
        # A steep hill between two points at the same height: the way round is far shorter.
        def hill(z):
            return torch.cat([z, 30 * torch.exp(-z.square().sum(-1, keepdim=True) / 0.1)], -1)

        around = torch.tensor([[0.9, 0.05], [0.7, 0.9], [-0.8, 0.8], [0.8, -0.8], [-0.9, 0.0]])
        r = report(riemae.Manifold(hill), around.double(), tmp_path / "r.html", pairs=10)
        k = r.pairs.index.tolist().index([0, 4])
        assert float(r.pairs.result.length[k]) < 3
        assert float(r.pairs.straight[k]) > 40


class TestMeasures:
    def test_ranks(self):
        x = torch.tensor([1.0, 2.0, 2.0, 5.0])
        assert ranks_agree(x, x.exp()) == pytest.approx(1)
        assert ranks_agree(x, -x) == pytest.approx(-1)
        assert math.isnan(ranks_agree(x, torch.ones(4)))
        scipy = pytest.importorskip("scipy.stats")
        a, b = codes(20, 1)[:, 0].round(decimals=1), codes(20, 1, 1)[:, 0].round(decimals=1)
        assert ranks_agree(a, b) == pytest.approx(scipy.spearmanr(a, b).statistic)

    def test_folds(self):
        x = codes(100)
        assert overlap_share(x, x) == 0
        # Half of the sheet is laid on the other half.
        folded = torch.stack([x[:, 0].abs(), x[:, 1]], 1)
        assert overlap_share(folded, 5 * x) > 0.2
        assert math.isnan(overlap_share(x[:5], x[:5]))

    @pytest.mark.parametrize(("n", "count", "expected"), [(2, 9, 1), (5, 7, 7), (3000, 50, 50)])
    def test_pairs_are_different(self, n, count, expected):
        pairs = sampled_pairs(n, count, 0)
        assert pairs.shape == (expected, 2)
        assert (pairs[:, 0] < pairs[:, 1]).all()
        assert len(set(map(tuple, pairs.tolist()))) == expected
        assert torch.equal(pairs, sampled_pairs(n, count, 0))

    def test_bad_points_are_nan_and_spoil_no_others(self):
        def root(z):
            if (z < 0).any():
                raise NonFiniteError("root", "z of at least 0", "others")
            return z.sqrt()

        z = torch.tensor([1.0, -1.0, 4.0, 9.0, -2.0])
        told = []
        found = where_defined(root, z, 4, lambda done, total: told.append((done, total)))
        torch.testing.assert_close(
            found, torch.tensor([1, math.nan, 2, 3, math.nan]), equal_nan=True
        )
        assert told[-1] == (5, 5)


class TestTable:
    def test_is_exact_at_its_nodes_and_of_fourth_order_between(self):
        M = riemae.Manifold(bowl)
        z = codes(200) / 2
        errors = []
        for n in (12, 24):
            table = tabulated(M, Lattice((-2.0, -2.0), (2.0, 2.0), (n, n)), z)
            nodes = table.lattice.nodes(z)
            torch.testing.assert_close(table.metric(nodes), M.metric(nodes))
            errors.append(float((table.metric(z) - M.metric(z)).abs().max()))
        assert errors[1] < errors[0] / 8

    def test_a_metric_that_is_undefined_is_masked(self):
        lattice = Lattice((-1.0, -1.0), (1.0, 1.0), (9, 9))
        M = riemae.Manifold(lambda z: torch.cat([z, z[:, 1:].log()], -1))
        z = codes(1)
        table = tabulated(M, lattice, z)
        assert table.defined.sum() == 9 * 4  # y in (0, 1], without 0
        assert np.isfinite(table.coefficients).all()
        assert table.knows(torch.tensor([[0.0, 0.5], [0.0, -0.5], [0.0, 0.1]])).tolist() == [
            True,
            False,
            False,
        ]

    def test_a_metric_that_is_nowhere_defined(self):
        lattice = Lattice((-1.0, -1.0), (1.0, 1.0), (9, 9))
        table = MetricTable.of(lattice, torch.full((81, 2, 2), torch.nan))
        assert not table.defined.any()

    def test_routes_are_even_and_reach_their_ends(self):
        lattice = Lattice((-1.0, -1.0), (1.0, 1.0), (33, 33))
        flat = torch.eye(2, dtype=torch.float64).expand(33 * 33, 2, 2)
        table = MetricTable.of(lattice, flat)
        a, b = torch.tensor([[-0.9, -0.9]]).double(), torch.tensor([[0.8, 0.3]]).double()
        (route,) = routes(table, a, b)
        torch.testing.assert_close(route[[0, -1]], torch.cat([a, b]))
        steps = route.diff(dim=0).norm(dim=1)
        assert float(steps.sum()) < 1.06 * float((a - b).norm())


class TestPage:
    def test_is_one_small_offline_file(self, plane):
        text = plane.path.read_text("utf-8")
        assert text.lower().startswith("<!doctype html>")
        assert len(text) < 3e6
        for word in ("http://www.w3.org/2000/svg", "https://riemae"):
            text = text.replace(word, "")
        assert not re.findall(r"https?://", text)
        assert "{{" not in text

    def test_the_policy_names_what_may_run(self, plane):
        text = plane.path.read_text("utf-8")
        (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
        (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
        for code in (script, style):
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in html.unescape(policy)
        assert "default-src 'none'" in html.unescape(policy)

    def test_what_users_give_is_text(self, tmp_path):
        evil = "</script><img src=x onerror=alert(1)>\u2028"
        r = report(
            riemae.Manifold(bowl),
            codes(),
            tmp_path / "r.html",
            [evil, "{{ data }}"] * 15,
            title=evil,
            features=[evil, "b", "c"],
            history={evil: [1.0, 2.0]},
        )
        text = r.path.read_text("utf-8")
        assert "<img" not in text
        assert "\u2028" not in text.split('id="data">')[1]
        found = content_of(r.path)
        assert evil in found["points"]["names"]
        assert found["features"]["names"][0] == evil
        assert html.escape(evil) in text

    def test_training_is_drawn(self, plane):
        assert "How the training went" in plane.path.read_text("utf-8")
        assert training_chart({}) == ""
        assert "lower the learning rate" in training_chart({"loss": [1.0, math.nan]})
        assert "still falling" in training_chart({"loss": [100.0 - k for k in range(60)]})
        assert "rising" in training_chart({"loss": [1.0 + k for k in range(60)]})
        assert "come to rest" in training_chart({"loss": [1.0] * 60})

    def test_the_same_call_writes_the_same_file(self, plane, tmp_path):
        history = {"loss": [2.0 / (k + 1) for k in range(30)]}
        M = riemae.Manifold(bowl)
        again = report(
            M, codes(), tmp_path / "r.html", ["a", "b"] * 15, history=history, title="A bowl"
        )
        assert again.path.read_bytes() == plane.path.read_bytes()

    def test_progress_rises_to_the_end(self, tmp_path):
        told = []
        report(
            riemae.Manifold(bowl),
            codes(),
            tmp_path / "r.html",
            progress=lambda done, total: told.append((done, total)),
        )
        assert told[-1] == (100, 100)
        assert [done for done, _ in told] == sorted({done for done, _ in told})


class TestKinds:
    def test_one_dimension(self, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1))
        z = torch.linspace(0, 3, 20, dtype=torch.float64)
        r = report(M, z, tmp_path / "r.html")
        found = content_of(r.path)
        assert found["kind"] == "line"
        speed = np.frombuffer(base64.b64decode(found["speed"]["values"]), "<f4")
        assert speed == pytest.approx(1)
        assert "condition_number" not in r.numbers

    def test_more_dimensions_have_landmarks_and_a_section(self, tmp_path):
        scale = torch.tensor([3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
        M = riemae.Manifold(lambda z: torch.cat([z * scale, z[:, :1].square() / 4], -1))
        labels = ["a", "b", "c"] * 10
        r = report(M, codes(30, 4), tmp_path / "r.html", labels, images=(1, 5), landmarks=6)
        found = content_of(r.path)
        assert found["kind"] == "section"
        assert found["chosenBy"] == "tangent PCA"
        marks = found["landmarks"]
        assert [labels[i] for i in marks["index"][:3]] == ["a", "b", "c"]
        count = len(marks["index"])
        assert 3 < count <= 6
        assert len(set(marks["index"])) == count
        assert len(marks["pairs"]) == len(marks["length"]) == count * (count - 1) // 2
        z = codes(30, 4)
        i, j = (marks["index"][k] for k in marks["pairs"][0])
        assert marks["length"][0] == pytest.approx(float(M.distance(z[i], z[j])), rel=1e-3)
        assert found["frames"]["per"] == 9

    def test_images_of_the_points_and_an_atlas(self, tmp_path):
        weights = codes(2, 12, 3)
        M = riemae.Manifold(lambda z: torch.sigmoid(z @ weights).view(-1, 3, 2, 2))
        images = torch.rand(30, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        found = content_of(report(M, codes(), tmp_path / "r.html", images=images).path)
        assert found["atlas"]["source"].startswith("data:image/png;base64,")
        assert found["atlas"]["columns"] == found["atlas"]["counts"][1]
        assert found["thumbs"]["count"] == 30

    def test_arrays_take_the_dtype_of_the_decoder(self, tmp_path):
        layer = torch.nn.Linear(2, 3)
        r = report(riemae.Manifold(layer), codes().numpy(), tmp_path / "r.html")
        assert r.pairs.result.length.dtype == torch.float32

    def test_distributions_are_shown_by_their_means(self, tmp_path):
        def decoder(z):
            return torch.distributions.Normal(bowl(z), 0.5 + z[:, :1].square())

        M = riemae.Manifold(decoder)
        found = content_of(report(M, codes(), tmp_path / "r.html").path)
        assert found["features"]["names"] == ["x1", "x2", "x3"]

    def test_a_metric_that_is_singular_everywhere_is_reported_and_not_hidden(self, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z[:, :1], 2 * z[:, :1]], -1))
        r = report(M, codes(), tmp_path / "r.html")
        assert r.numbers["singular"] == 1
        assert not any(
            np.frombuffer(base64.b64decode(content_of(r.path)["table"]["defined"]), "u1")
        )

    def test_geodesics_that_fail_are_counted(self, tmp_path):
        # An accuracy that no arithmetic delivers.
        r = report(riemae.Manifold(bowl), codes(), tmp_path / "r.html", pairs=4, rtol=1e-17)
        assert not r.converged
        assert r.numbers["converged"] == 0
        assert r.level == "note"
        assert "4 precision" in next(f.meaning for f in r.findings if f.key == "converged")

    def test_domains_with_limits(self, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z, z[:, 1:].log()], -1))
        z = torch.stack([codes()[:, 0], codes()[:, 1].abs() + 0.05], 1)
        found = content_of(report(M, z, tmp_path / "r.html").path)
        defined = np.frombuffer(base64.b64decode(found["table"]["defined"]), "u1")
        assert 0 < defined.sum() < len(defined)


class TestArguments:
    def test_labels_are_classes_or_a_scale(self):
        assert Labels.of("x", [10, 2, 2], 3).names == ("2", "10")
        assert Labels.of("x", np.array(["b", "a", "b"]), 3).codes == (1, 0, 1)
        assert Labels.of("x", [None, float("nan"), "a"], 3).names == ("a", "missing")
        scale = Labels.of("x", [k / 7 for k in range(20)], 20)
        assert scale.names == ()
        assert scale.values[1] == pytest.approx(1 / 7)
        many = Labels.of("x", [f"c{k}" for k in range(80)] + ["c1"], 81)
        assert len(many.names) == 60
        assert many.names[-1] == "other"
        assert many.names[many.codes[-1]] == "c1"

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"labels": ["a"] * 29}, ShapeError, "30 labels"),
            ({"labels": "a"}, DTypeError, "labels as a sequence"),
            ({"images": (2, 2)}, ShapeError, "images of 3 numbers"),
            ({"images": (2, 2, 3, 1)}, ShapeError, "images"),
            ({"images": torch.zeros(29, 1, 3)}, ShapeError, "30 images"),
            ({"data": torch.zeros(29, 3)}, ShapeError, "data of 30 samples"),
            ({"data": torch.full((30, 3), math.nan)}, NonFiniteError, "data"),
            ({"features": ["a"]}, ShapeError, "3 names"),
            ({"history": [1.0]}, DTypeError, "mapping"),
            ({"history": {"loss": 1.0}}, DTypeError, "list of numbers"),
            ({"pairs": 0}, OptionError, "pairs"),
            ({"landmarks": 1}, OptionError, "landmarks"),
            ({"resolution": 3}, OptionError, "resolution"),
            ({"progress": 3}, DTypeError, "progress"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, options, error, words):
        path = tmp_path / "r.html"
        with pytest.raises(error, match=words):
            riemae.report(riemae.Manifold(bowl), codes(), path=path, **options)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("z", "error"),
        [
            (torch.zeros(3, 2, 2), ShapeError),
            (torch.zeros(1, 2), OptionError),
            (torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), NonFiniteError),
            ([["a", "b"]], DTypeError),
        ],
    )
    def test_bad_codes_are_refused(self, tmp_path, z, error):
        with pytest.raises(error, match="z"):
            riemae.report(riemae.Manifold(bowl), z, path=tmp_path / "r.html")

    def test_what_is_not_a_manifold_is_refused(self, tmp_path):
        with pytest.raises(DTypeError, match=r"riemae\.Manifold\(decoder\)"):
            riemae.report(bowl, codes(), path=tmp_path / "r.html")

    def test_paths(self, tmp_path):
        M = riemae.Manifold(bowl)
        with pytest.raises(FileError, match="folder"):
            riemae.report(M, codes(), path=tmp_path / "none" / "r.html")
        with pytest.raises(FileError, match="folder"):
            riemae.report(M, codes(), path=tmp_path)
        with pytest.raises(DTypeError, match="path"):
            riemae.report(M, codes(), path=3)

    def test_a_full_disk_leaves_nothing_behind(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(FileError, match="No space left"):
            report(riemae.Manifold(bowl), codes(), tmp_path / "r.html")
        assert list(tmp_path.iterdir()) == []

    def test_history_of_tensors(self):
        assert as_history("x", {"loss": torch.ones(2)}) == {"loss": [1.0, 1.0]}

    def test_pictures(self):
        assert Images.of("x", (3, 4, 5), 9).pixels == 60
        assert grey_levels(torch.tensor([0.1, 0.9])) == (0.0, 1.0)
        assert grey_levels(torch.tensor([0.0, 250.0])) == (0.0, 255.0)
        assert grey_levels(torch.tensor([-3.0, 5.0])) == (-3.0, 5.0)
        matplotlib = pytest.importorskip("matplotlib.image")
        import io

        pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
        back = matplotlib.imread(io.BytesIO(png(pixels)), format="png")
        assert (back * 255).round().astype(np.uint8).tolist() == pixels.tolist()
        sheet = Sheet.of(torch.zeros(5, 1, 2, 2), 0.0, 1.0)
        assert (sheet.count, sheet.width) == (5, 2)
