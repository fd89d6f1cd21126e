"""Estimators of scikit-learn on geodesic neighbours."""

import pickle

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from riemae import Manifold
from riemae.exceptions import DTypeError, OptionError
from riemae.interop.sklearn import (
    GeodesicKNeighborsClassifier,
    GeodesicKNeighborsRegressor,
    GeodesicNeighborsTransformer,
)

ALL = (GeodesicNeighborsTransformer, GeodesicKNeighborsClassifier, GeodesicKNeighborsRegressor)


def spiral(t):
    """A curve whose turns are nearer to each other than its points along it."""
    return torch.cat([t * t.cos(), t * t.sin()], -1)


def identity(z):
    return z


M = Manifold(spiral)
T = np.linspace(6.0, 30.0, 60)[:, None]
X = np.random.default_rng(0).normal(size=(25, 2))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("kind", ALL)
def test_as_scikit_learn_demands(kind):
    left = {"check_array_api_input"}
    if kind is GeodesicKNeighborsClassifier:
        left.add("check_classifiers_multilabel_output_format_decision_function")
    for check in check_estimator(kind(), on_skip=None):
        assert check["status"] == "passed" or check["check_name"] in left, check


class TestTransformer:
    def test_flat_space_as_scikit_learn(self):
        for mode in ("distance", "connectivity"):
            expected = KNeighborsTransformer(n_neighbors=4, mode=mode).fit(X)
            for manifold in (None, Manifold(identity)):
                ours = GeodesicNeighborsTransformer(manifold, 4, mode=mode).fit(X)
                for queries in (X, X[:5] + 0.1):
                    found = ours.transform(queries)
                    wanted = expected.transform(queries)
                    np.testing.assert_allclose(found.toarray(), wanted.toarray(), atol=1e-7)
                    assert found.nnz == wanted.nnz

    def test_along_the_curve(self):
        graph = GeodesicNeighborsTransformer(M, 2).fit_transform(T)
        inner = np.sort(graph.indices.reshape(60, 3)[1:-1], 1)
        assert (inner == np.arange(1, 59)[:, None] + [-1, 0, 1]).all()
        euclidean = KNeighborsTransformer(n_neighbors=2).fit_transform(spiral(torch.tensor(T)))
        assert (np.sort(euclidean.indices.reshape(60, 3)[1:-1], 1) != inner).any()

    def test_in_a_pipeline(self):
        """Two arcs of one turn, which lie on either side of another one."""
        gap = (T[:, 0] < 14) | (T[:, 0] > 20)
        model = make_pipeline(
            GeodesicNeighborsTransformer(M, 3),
            DBSCAN(eps=15.0, min_samples=2, metric="precomputed"),
        )
        labels = model.fit_predict(T[gap])
        assert len(set(labels)) == 2
        assert len(set(labels[T[gap, 0] < 14])) == 1

    def test_a_table_of_sparse_columns(self):
        pandas = pytest.importorskip("pandas")
        codes = pandas.DataFrame(T, columns=["t"], index=[f"row {i}" for i in range(60)])
        plain = GeodesicNeighborsTransformer(M, 3).fit(codes)
        graph = plain.transform(codes)
        tabled = clone(plain).set_output(transform="pandas")
        with config_context(transform_output="pandas"):
            everywhere = clone(plain).fit_transform(codes)
        for found in (tabled.fit_transform(codes), everywhere):
            assert list(found.index) == list(codes.index)
            assert list(found.columns) == list(plain.get_feature_names_out())
            # The zeros of each code to itself are entries, as in the matrix.
            assert found.sparse.to_coo().nnz == graph.nnz == 240
            np.testing.assert_array_equal(found.to_numpy(), graph.toarray())
        gap = (T[:, 0] < 14) | (T[:, 0] > 20)
        clusters = DBSCAN(eps=15.0, min_samples=2, metric="precomputed")
        labels = make_pipeline(tabled, clusters).fit_predict(codes[gap])
        assert np.array_equal(labels, make_pipeline(plain, clusters).fit_predict(codes[gap]))
        back = tabled.set_output(transform="default").transform(codes)
        assert not isinstance(back, pandas.DataFrame)

    def test_numbers_of_features_out(self):
        names = GeodesicNeighborsTransformer(M).fit(T).get_feature_names_out()
        assert len(names) == 60


class TestPredictors:
    labels = (T[:, 0] // 8).astype(int)

    def test_votes_along_the_curve(self):
        new = T[:-1] + 0.2 * np.diff(T, axis=0)
        truth = (new[:, 0] // 8).astype(int)
        inside = np.abs(new[:, 0] % 8 - 4) < 3  # votes near a border may differ
        model = GeodesicKNeighborsClassifier(M, 2).fit(T, self.labels)
        assert (model.predict(new)[inside] == truth[inside]).all()
        flat = spiral(torch.tensor(T)).numpy()
        chords = KNeighborsClassifier(4).fit(flat, self.labels)
        seen = spiral(torch.tensor(new)).numpy()
        assert (chords.predict(seen)[inside] != truth[inside]).any()

    def test_flat_space_as_scikit_learn(self):
        y = (X[:, 0] > X[:, 1]).astype(int)
        expected = KNeighborsClassifier(3, weights="distance").fit(X, y)
        ours = GeodesicKNeighborsClassifier(Manifold(identity), 3, weights="distance").fit(X, y)
        queries = X[::3] + 0.05
        np.testing.assert_allclose(
            ours.predict_proba(queries), expected.predict_proba(queries), atol=1e-6
        )
        assert ours.score(X, y) == 1.0
        assert (ours.classes_ == expected.classes_).all()

    def test_means(self):
        y = np.stack([T[:, 0], -T[:, 0]], 1)
        model = GeodesicKNeighborsRegressor(M, 2).fit(T, y)
        middle = (T[:-1] + T[1:]) / 2
        np.testing.assert_allclose(model.predict(middle)[:, 0], middle[:, 0], rtol=1e-12)
        np.testing.assert_allclose(model.predict(middle)[:, 1], -middle[:, 0], rtol=1e-12)

    def test_searched_and_copied(self):
        search = GridSearchCV(
            GeodesicKNeighborsRegressor(M, weights="distance"), {"n_neighbors": [1, 2]}, cv=2
        )
        again = clone(search.fit(T[::4], T[::4, 0]).best_estimator_)
        assert again.manifold is not None
        kept = pickle.loads(pickle.dumps(search.best_estimator_))
        np.testing.assert_array_equal(kept.predict(T[::5]), search.predict(T[::5]))

    def test_neighbours_with_certificates(self):
        model = GeodesicKNeighborsClassifier(M, 3).fit(T, self.labels)
        distances, indices = model.kneighbors(T[:4] + 0.1)
        found = model.neighbors(T[:4] + 0.1)
        assert bool(found.certified.all())
        np.testing.assert_array_equal(indices, found.indices)
        np.testing.assert_array_equal(distances, found.distances)
        assert model.kneighbors(n_neighbors=2, return_distance=False).shape == (60, 2)


class TestErrors:
    @pytest.mark.parametrize("kind", ALL)
    def test_options(self, kind):
        y = np.arange(60) // 10
        with pytest.raises(DTypeError, match=r"riemae\.Manifold or None"):
            kind(spiral).fit(T, y)
        with pytest.raises(OptionError, match="n_neighbors"):
            kind(M, 0).fit(T, y)
        model = kind(M, 70).fit(T, y)
        with pytest.raises(OptionError, match="60 codes"):
            getattr(model, "transform", getattr(model, "predict", None))(T[:3])

    def test_mode(self):
        with pytest.raises(OptionError, match="mode"):
            GeodesicNeighborsTransformer(mode="length").fit(X)
