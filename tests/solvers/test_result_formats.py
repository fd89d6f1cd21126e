"""Results as files, as tables of pandas, and in notebooks."""

import pickle
import sys

import numpy as np
import pytest
import torch

from riemae import Manifold, storage
from riemae.exceptions import CheckpointError, MissingExtraError, OptionError
from riemae.numerics.html import table
from riemae.solvers import GeodesicResult, Neighbors, Newton, RadiusNeighbors

pandas = pytest.importorskip("pandas")


def saddle(z):
    return torch.cat([z, (z[..., :1].square() - z[..., 1:].square())], -1)


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


M = Manifold(saddle)


@pytest.fixture(scope="module")
def result():
    return M.geodesic(points(6).view(2, 3, 2), points(6, 1).view(2, 3, 2), n_starts=2)


@pytest.fixture(scope="module")
def nearest():
    return M.neighbors(points(12), k=3)


@pytest.fixture(scope="module")
def within():
    return M.radius_neighbors(points(12), 1.0)


def assert_equal(a, b):
    for name, value in vars(a).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(7.0), getattr(b, name).nan_to_num(7.0)), name


class TestFiles:
    def test_geodesics_to_the_bit(self, result, tmp_path):
        residual = result.residual
        again = GeodesicResult.load(result.save(tmp_path / "r"))
        assert_equal(result, again)
        assert torch.equal(again.curve.nodes, result.curve.nodes)
        assert torch.equal(again.curve.slopes, result.curve.slopes)
        assert torch.equal(again.residual, residual)
        assert again.rtol == result.rtol
        assert list(again.stats) == list(result.stats)
        assert_equal(again.alternatives, result.alternatives)
        assert repr(again) == repr(result)

    def test_without_alternatives_or_residual(self, tmp_path):
        first = M.geodesic(points(2)[0], points(2)[1], n_starts=1)
        again = GeodesicResult.load(first.save(tmp_path))
        assert again.length.shape == ()
        assert again.alternatives is None
        with pytest.raises(OptionError, match="space"):
            _ = again.residual

    def test_a_later_result_takes_the_place(self, result, tmp_path):
        result.save(tmp_path)
        again = GeodesicResult.load(result[0].save(tmp_path))
        assert again.length.shape == (3,)
        assert len(list(tmp_path.iterdir())) == 2

    def test_neighbours(self, nearest, within, tmp_path):
        for found in (nearest, within):
            again = type(found).load(found.save(tmp_path / type(found).__name__))
            assert_equal(found, again)
            assert repr(again) == repr(found)
            assert (again.to_scipy() != found.to_scipy()).nnz == 0
            with pytest.raises(OptionError, match="queries="):
                again.query(points(2))

    def test_another_kind_is_refused(self, nearest, result, tmp_path):
        result.save(tmp_path / "geodesics")
        nearest.save(tmp_path / "nearest")
        storage.save(tmp_path / "other", {}, {})
        with pytest.raises(CheckpointError, match="a Neighbors at"):
            Neighbors.load(tmp_path / "geodesics")
        with pytest.raises(CheckpointError, match="a RadiusNeighbors at .* got 'Neighbors'"):
            RadiusNeighbors.load(tmp_path / "nearest")
        with pytest.raises(CheckpointError, match="without a kind"):
            GeodesicResult.load(tmp_path / "other")
        with pytest.raises(CheckpointError):
            GeodesicResult.load(tmp_path / "nowhere")

    def test_pickles_leave_the_search_out(self, nearest):
        again = pickle.loads(pickle.dumps(nearest))
        assert again.search is None
        assert_equal(nearest, again)


class TestFrames:
    def test_geodesics(self, result):
        frame = result.to_dataframe()
        assert frame.index.names == ["axis_0", "axis_1"]
        assert list(frame.index) == [(i, j) for i in range(2) for j in range(3)]
        assert frame.loc[(1, 2), "length"] == float(result.length[1, 2])
        assert set(frame["status"]) == {"CONVERGED"}
        assert frame["converged"].all()
        assert {"error", "index", "lower_bound", "segments", "steps"} <= set(frame.columns)

    def test_one_axis_and_none(self, result):
        assert result[0].to_dataframe().index.name == "pair"
        alone = result[0][1].to_dataframe()
        assert len(alone) == 1
        assert alone["length"][0] == float(result.length[0, 1])

    def test_failures_by_name(self):
        found = M.geodesic(
            points(3), points(3, 1), solver=Newton(max_steps=1), rtol=1e-10, throw=False
        )
        assert "CONVERGED" not in set(found.to_dataframe()["status"])

    def test_neighbours(self, nearest, within):
        frame = nearest.to_dataframe()
        assert frame.loc[(4, 1), "neighbor"] == int(nearest.indices[4, 1])
        assert frame.loc[(4, 1), "distance"] == float(nearest.distances[4, 1])
        frame = within.to_dataframe()
        assert frame.loc[5]["neighbor"].tolist() == within[5][0].tolist()
        assert len(frame) == len(within.indices)

    def test_matrix(self):
        matrix = M.distance_matrix(points(4), return_result=True)
        np.testing.assert_array_equal(matrix.to_dataframe().to_numpy(), matrix.distances)
        assert torch.equal(M.distance_matrix(points(4)), matrix.distances)

    def test_without_pandas(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingExtraError, match=r"riemae\[pandas\]"):
            result.to_dataframe()


class TestNotebooks:
    def test_everything_is_escaped(self):
        text = table("<b>", [("<i>", "a & b")], note='"')
        assert "<i>" not in text
        assert "&lt;i&gt;" in text
        assert "a &amp; b" in text
        assert text.count("<b>") == 1  # the title's own

    def test_manifold(self):
        text = Manifold(saddle, latent_shape=(2,))._repr_html_()
        assert "saddle" in text
        assert "known at first use" in text
        assert "Euclidean" in M._repr_html_()
        assert "&lt;lambda&gt;" in Manifold(lambda z: z)._repr_html_()

    def test_results(self, result, nearest, within):
        assert result._repr_html_().count("<tr>") == 7
        many = M.geodesic(points(20), points(20, 1))
        assert "and 12 more pairs" in many._repr_html_()
        assert "12 of 12" in nearest._repr_html_()
        assert "radius" in repr(within).lower()
        assert "solved geodesics" in within._repr_html_()
        assert "4 × 4" in M.distance_matrix(points(4), return_result=True)._repr_html_()

    def test_graph(self):
        text = M.graph(points(9), k=2)._repr_html_()
        assert "components" in text
        assert "9 × 2" in text

    def test_nothing_to_show(self):
        assert M.geodesic(points(0), points(0))._repr_html_()
        assert "none" in M.neighbors(points(5), k=2, queries=points(0))._repr_html_()
