"""What each extra is for, used in an environment that has this one alone: see extras.sh.

``extras.py NAME`` runs the use of an extra, ``extras.py none`` asks for what needs one where none
is installed, and ``extras.py --turn N`` prints the name whose turn it is.
"""

import importlib
import sys
import tempfile
from pathlib import Path


def light():
    """`import riemae` loads nothing that only parts of it need."""
    import riemae  # noqa: F401

    heavy = {"lightning", "sklearn", "pandas", "matplotlib", "networkx", "geoopt", "scanpy"}
    assert not heavy & set(sys.modules), heavy & set(sys.modules)


def bowl():
    import torch

    import riemae

    M = riemae.Manifold(lambda z: torch.cat([z, z.square()], -1))
    return M, torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def core():
    M, z = bowl()
    assert M.geodesic(z[:3], z[3:6]).converged.all()
    assert M.distance_matrix(z).shape == (12, 12)


def demo():
    from riemae.cli.builtin import shipped

    assert len(shipped("digits", 0).values) > 1000


def neighbors():
    import torch

    M, _ = bowl()
    many = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    for search in ("tree", "approximate"):
        assert len(M.graph(many, k=4, search=search).points) == 200


def pandas():
    M, z = bowl()
    assert len(M.geodesic(z[:3], z[3:6]).to_dataframe()) == 3


def sklearn():
    from riemae.interop.sklearn import GeodesicNeighborsTransformer

    M, z = bowl()
    assert GeodesicNeighborsTransformer(M, 3).fit_transform(z.numpy()).nnz == 48


def dask():
    from distributed import Client, LocalCluster

    M, z = bowl()
    with LocalCluster(1, processes=False, dashboard_address=None) as cluster, Client(cluster) as c:
        found = M.distance_matrix(z, executor=c.get_executor())
    assert found.equal(M.distance_matrix(z))


def train():
    import numpy as np

    import riemae
    from riemae.autoencoders import IRAE

    x = np.random.default_rng(0).normal(size=(40, 3))
    with tempfile.TemporaryDirectory() as folder:
        again = riemae.load(IRAE(hidden=(8,), epochs=2).fit(x).save(folder))
    assert again.transform(x).shape == (40, 2)


def examples():
    import mlxtend  # noqa: F401

    train()


def browser():
    from playwright import sync_api

    assert sync_api.sync_playwright


def cells():
    import anndata
    import numpy as np
    import scanpy

    from riemae.interop.anndata import neighbors as write

    M, z = bowl()
    adata = anndata.AnnData(np.ones((12, 4), np.float32), obsm={"X_z": z.numpy()})
    write(adata, M, rep="X_z", k=3)
    scanpy.tl.umap(adata)
    assert adata.obsm["X_umap"].shape == (12, 2)


def tables():
    import pyarrow.parquet

    from riemae.cli.output import write_columns

    with tempfile.TemporaryDirectory() as folder:
        path = write_columns(Path(folder) / "t.parquet", {"a": [1.0, 2.0]})
        assert pyarrow.parquet.read_table(path).num_rows == 2


def scvi():
    import anndata
    import numpy as np
    import torch
    from scvi.model import SCVI

    from riemae.interop.scvi import manifold

    adata = anndata.AnnData(np.random.default_rng(0).poisson(3.0, (20, 6)).astype(np.float32))
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_latent=2, n_hidden=8)
    assert manifold(model, library=18.0).metric(torch.zeros(2, 2)).shape == (2, 2, 2)


def pythae():
    import torch
    from pythae.models import VAE, VAEConfig

    from riemae.interop.pythae import manifold

    M = manifold(VAE(VAEConfig(input_dim=(5,), latent_dim=2)))
    assert M.metric(torch.zeros(2, 2)).shape == (2, 2, 2)


def diffusers():
    import diffusers
    import torch

    from riemae.interop.diffusers import manifold

    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        sample_size=4,
    )
    z = torch.randn(2, 4, 2, 2)
    assert manifold(vae).norm(z, z).shape == (2,)


def transformers():
    import torch
    import transformers

    from riemae.interop.transformers import manifold

    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).double()
    directions = torch.randn(2, 8, dtype=torch.float64)
    M = manifold(model, torch.tensor([1, 5, 7]), directions, layer=-1)
    assert M.metric(torch.zeros(2, 2).double()).shape == (2, 2, 2)


def none():
    """What needs an extra names it."""
    from riemae.cli.builtin import shipped
    from riemae.cli.output import write_columns
    from riemae.exceptions import MissingExtraError

    M, z = bowl()
    uses = (
        ("train", lambda: importlib.import_module("riemae.autoencoders").IRAE),
        ("train", lambda: importlib.import_module("riemae.interop.lightning")),
        ("sklearn", lambda: importlib.import_module("riemae.interop.sklearn")),
        ("pandas", lambda: M.geodesic(z[:2], z[2:4]).to_dataframe()),
        ("demo", lambda: shipped("digits", 0)),
        ("neighbors", lambda: M.graph(z, k=3, search="approximate")),
        ("tables", lambda: write_columns(Path("t.parquet"), {"a": [1.0]})),
    )
    for name, use in uses:
        said = "nothing"
        try:
            use()
        except MissingExtraError as reason:
            said = str(reason)
        assert f"riemae[{name}]" in said, (name, said)


USES = {
    use.__name__: use
    for use in (none, demo, neighbors, pandas, sklearn, dask, train, examples, browser, cells)
} | {use.__name__: use for use in (tables, scvi, pythae, diffusers, transformers)}


def main(asked, number=0):
    if asked == "--turn":
        sys.stdout.write(f"{list(USES)[int(number) % len(USES)]}\n")
        return
    light()
    core()
    USES[asked]()
    sys.stdout.write(f"{asked}: works alone\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
