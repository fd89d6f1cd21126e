"""Codes and neighbours of cells inside AnnData, as scanpy reads and writes them."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch

from riemae import Manifold
from riemae.autoencoders import AE
from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.interop.anndata import embed, neighbors

anndata = pytest.importorskip("anndata")


def bowl(z):
    return torch.cat([z, z.square().sum(-1, keepdim=True) / 2], -1)


M = Manifold(bowl)


def cells(n=30, far=4.0):
    """Two groups of cells, with codes."""
    random = np.random.default_rng(0)
    codes = random.normal(size=(n, 2))
    codes[n // 2 :, 0] += far
    counts = scipy.sparse.csr_matrix(random.poisson(3.0, size=(n, 6)).astype(np.float32))
    adata = anndata.AnnData(counts)
    adata.obsm["X_riemae"] = codes
    adata.obs["group"] = np.arange(n) // (n // 2)
    return adata


class TestNeighbors:
    def test_what_is_written(self):
        adata = cells()
        found = neighbors(adata, M, k=5)
        assert bool(found.certified.all())
        distances = adata.obsp["distances"]
        assert distances.shape == (30, 30)
        assert (distances != found.to_scipy()).nnz == 0
        assert (np.diff(distances.indptr) == 5).all()
        weights = adata.obsp["connectivities"]
        assert abs(weights - weights.T).max() == 0
        assert weights.dtype == np.float32
        said = adata.uns["neighbors"]
        assert adata.obsp[said["distances_key"]].nnz == 150
        assert said["params"]["n_neighbors"] == 6  # scanpy counts a cell itself
        assert said["params"]["use_rep"] == "X_riemae"
        assert said["params"]["certified"] == 1.0

    def test_under_another_name(self):
        adata = cells()
        neighbors(adata, M, k=3, key_added="curved")
        assert set(adata.obsp) == {"curved_distances", "curved_connectivities"}
        assert adata.uns["curved"]["connectivities_key"] == "curved_connectivities"

    def test_codes_in_x_and_options(self):
        adata = cells()
        flat = anndata.AnnData(adata.obsm["X_riemae"])
        found = neighbors(flat, M, k=3, rep="X", rtol=1e-2)
        assert found.rtol == flat.uns["neighbors"]["params"]["geodesic_rtol"] == 1e-2

    def test_through_a_file(self, tmp_path):
        adata = cells()
        neighbors(adata, M, k=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of anndata and h5py, about formats to come
            adata.write_h5ad(tmp_path / "cells.h5ad")
            again = anndata.read_h5ad(tmp_path / "cells.h5ad")
        assert again.uns["neighbors"]["params"]["n_neighbors"] == 4
        assert (again.obsp["distances"] != adata.obsp["distances"]).nnz == 0

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            (lambda: neighbors(np.zeros((4, 2)), M), DTypeError, "an AnnData object"),
            (lambda: neighbors(cells(), bowl), DTypeError, "model.manifold_"),
            (lambda: neighbors(cells(), M, rep="X_pca"), OptionError, "'X_riemae'"),
            (lambda: neighbors(cells(), M, k=30), OptionError, "29 points"),
            (lambda: neighbors(cells(), Manifold(bowl, latent_dim=3)), ShapeError, "3"),
        ],
    )
    def test_bad_input(self, call, error, says):
        with pytest.raises(error, match=says):
            call()


class TestEmbed:
    def test_trains_once_on_sparse_counts(self):
        adata = cells()
        adata.layers["counts"] = adata.X.copy()
        model = AE(latent_dim=2, hidden=(8,), epochs=2, likelihood="poisson", seed=0)
        manifold = embed(adata, model, "X_codes", layer="counts")
        codes = adata.obsm["X_codes"]
        assert codes.shape == (30, 2)
        assert manifold is model.manifold_
        assert embed(adata, model, layer="counts") is manifold  # no second training
        np.testing.assert_array_equal(adata.obsm["X_riemae"], codes)
        assert neighbors(adata, manifold, k=3, rtol=1e-2).indices.shape == (30, 3)

    def test_bad_input(self):
        with pytest.raises(DTypeError, match="an estimator"):
            embed(cells(), M)
        with pytest.raises(OptionError, match=r"adata\.layers"):
            embed(cells(), AE(), layer="spliced")


@pytest.fixture(scope="module")
def scanpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("scanpy")


@pytest.mark.filterwarnings("ignore")
class TestScanpy:
    """Its tools go on from there."""

    def test_groups_are_found(self, scanpy):
        pytest.importorskip("igraph")
        adata = cells(60, far=12.0)
        neighbors(adata, M, k=6, rtol=1e-2)
        scanpy.tl.leiden(adata, resolution=0.05, flavor="igraph", n_iterations=2, directed=False)
        found = adata.obs["leiden"].to_numpy()
        assert len(set(found)) == 2
        assert all(len(set(found[adata.obs["group"] == g])) == 1 for g in (0, 1))

    def test_umap(self, scanpy):
        adata = cells(60, far=12.0)
        neighbors(adata, M, k=6, rtol=1e-2)
        scanpy.tl.umap(adata, random_state=0, maxiter=20)
        place = adata.obsm["X_umap"]
        group = adata.obs["group"].to_numpy()
        means = np.stack([place[group == g].mean(0) for g in (0, 1)])
        spread = max(place[group == g].std() for g in (0, 1))
        assert np.linalg.norm(means[0] - means[1]) > spread

    def test_as_scanpy_itself_in_flat_space(self, scanpy):
        adata = cells()
        neighbors(adata, Manifold(lambda z: z), k=5)
        scanpy.pp.neighbors(adata, n_neighbors=6, use_rep="X_riemae", key_added="own")
        for name in ("distances", "connectivities"):
            ours, own = adata.obsp[name].toarray(), adata.obsp[f"own_{name}"].toarray()
            np.testing.assert_allclose(ours, own, atol=2e-3)
        ours, own = adata.uns["neighbors"], adata.uns["own"]
        assert set(ours) == set(own)
        assert ours["params"]["n_neighbors"] == own["params"]["n_neighbors"]
