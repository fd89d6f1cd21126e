"""Trained models on disk: results are the same bit for bit after loading, missing arguments are
named, and foreign files are refused."""

import copy
import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import riemae
from riemae import ambient, storage
from riemae.autoencoders import (
    AE,
    IRAE,
    IRVAE,
    MCAE,
    NRAE,
    VAE,
    ContractiveAE,
    DenoisingAE,
    Neighborhood,
    Term,
    likelihoods,
    losses,
)
from riemae.exceptions import CheckpointError, OptionError

ALL = (AE, VAE, DenoisingAE, ContractiveAE, NRAE, MCAE, IRAE, IRVAE)
SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}


def data(n=40, d=3, dtype=np.float64):
    return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


def counts(d=3):
    return np.random.default_rng(1).poisson(4.0, (40, d)).astype(float)


def same(a, b, x):
    """Codes, reconstructions, metric and score, bit for bit."""
    z = a.transform(x)
    tensor = torch.as_tensor(z)
    assert np.array_equal(z, b.transform(x))
    assert np.array_equal(a.inverse_transform(z), b.inverse_transform(z))
    assert torch.equal(a.manifold_.metric(tensor), b.manifold_.metric(tensor))
    assert a.score(x) == b.score(x)
    return True


def rewrite(folder, change):
    """Change the metadata and the checksum with it, as an attacker would."""
    path = folder / "checkpoint.json"
    body = json.loads(path.read_text())
    change(body["metadata"])
    rest = {k: v for k, v in body.items() if k != "checksum"}
    body["checksum"] = hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    path.write_text(json.dumps(body))


class Scale(nn.Module):
    """A layer that no checkpoint knows."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return self.layer(x).sin() + x


class TestRoundTrip:
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_every_estimator_has_the_same_bits(self, kind, dtype, tmp_path):
        x = data(dtype=dtype)
        m = kind(**SMALL, seed=3).fit(x)
        again = riemae.load(m.save(tmp_path))
        assert type(again) is kind
        assert same(m, again, x)
        assert again.get_params() == m.get_params()
        assert again.history_ == m.history_
        assert again.n_epochs_ == 2
        assert again.data_shape_ == (3,)
        assert repr(again.report_) == repr(m.report_)
        assert repr(again) == repr(m)

    @pytest.mark.parametrize(
        "likelihood", [*likelihoods.LIKELIHOODS, likelihoods.NegativeBinomial(2.5)]
    )
    def test_every_likelihood(self, likelihood, tmp_path):
        x = counts()
        if likelihood == "bernoulli":
            x = x / x.max()
        if likelihood == "categorical":
            x = np.eye(3)[counts()[:, 0].astype(int) % 3]
        if likelihood == "chamfer":
            x = np.random.default_rng(0).normal(size=(30, 6, 2))
        m = AE(**SMALL, likelihood=likelihood).fit(x)
        again = riemae.load(m.save(tmp_path))
        assert same(m, again, x)
        own, found = m.likelihood_, again.likelihood_
        if isinstance(own, likelihoods.LearnedDispersion):
            assert torch.equal(own.dispersion, found.dispersion)
            own, found = own.settings, found.settings
        assert found == own
        assert again.likelihood == likelihood

    @pytest.mark.parametrize(
        "metric",
        [
            "fisher",
            np.array([1.0, 4.0, 9.0]),
            torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).double(),
            ambient.Euclidean(),
            ambient.Diagonal(torch.tensor([1.0, 2.0, 3.0])),
            ambient.Constant(torch.eye(3) + 0.5),
        ],
        ids=["fisher", "weights", "matrix", "Euclidean", "Diagonal", "Constant"],
    )
    def test_ambient_metrics_in_plain_values(self, metric, tmp_path):
        x = counts()
        m = IRAE(**SMALL, likelihood="poisson", ambient=metric).fit(x)
        again = riemae.load(m.save(tmp_path))
        assert same(m, again, x)
        retrained = [clone(model).fit(x) for model in (m, again)]
        assert np.array_equal(*(r.transform(x) for r in retrained))

    def test_the_metric_of_point_clouds(self, tmp_path):
        x = np.random.default_rng(0).normal(size=(30, 6, 2))
        metric = ambient.InfoRiemannian.from_clouds(torch.as_tensor(x))
        m = IRAE(**SMALL, ambient=metric).fit(x)
        assert same(m, riemae.load(m.save(tmp_path)), x)

    def test_networks_of_torch_and_what_a_new_fit_starts_from(self, tmp_path):
        x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, 2)
        )
        decoder = nn.Sequential(
            nn.Linear(2, 16), nn.SiLU(), nn.Unflatten(1, (1, 4, 4)), nn.Upsample((8, 8))
        )
        m = IRAE(**SMALL, encoder=encoder, decoder=decoder).fit(x.numpy())
        again = riemae.load(m.save(tmp_path))
        assert same(m, again, x.numpy())
        assert torch.equal(again.encoder[0].weight, encoder[0].weight)  # untrained, as given
        assert np.array_equal(
            *(clone(model).fit(x.numpy()).transform(x.numpy()) for model in (m, again))
        )

    def test_terms_names_of_features_and_restarts(self, tmp_path):
        import pandas

        x = pandas.DataFrame(data(), columns=["a", "b", "c"])
        terms = {
            "relaxed_distortion": 0.1,
            "extrinsic_curvature": Term(1e-3, options={"probes": 2}),
        }
        m = NRAE(**SMALL, terms=terms, restarts=2).fit(x)
        again = riemae.load(m.save(tmp_path))
        assert again.feature_names_in_.tolist() == ["a", "b", "c"]
        assert again.restart_losses_ == m.restart_losses_
        assert again.get_params()["terms"] == terms
        assert again.objective_.terms == m.objective_.terms

    def test_training_goes_on_after_loading(self, tmp_path):
        m = AE(**SMALL, warm_start=True).fit(data())
        again = riemae.load(m.save(tmp_path)).fit(data())
        assert again.n_epochs_ == 4
        assert np.array_equal(again.transform(data()), m.fit(data()).transform(data()))

    def test_saving_again_replaces_and_a_loaded_model_can_be_saved(self, tmp_path):
        m = AE(**SMALL).fit(data())
        m.save(tmp_path)
        other = AE(**SMALL, seed=1).fit(data())
        assert same(other, riemae.load(riemae.load(other.save(tmp_path)).save(tmp_path)), data())

    def test_how_a_run_was_started_and_watched_stays_behind(self, tmp_path):
        graph = Neighborhood.nearest(torch.as_tensor(data()), 3)
        m = NRAE(**SMALL, neighborhood=graph, init=data()[:, :2], trainer={"callbacks": []}).fit(
            data()
        )
        again = riemae.load(m.save(tmp_path))
        assert same(m, again, data())
        assert again.neighborhood is None
        assert again.init is None

    def test_loading_touches_no_random_numbers(self, tmp_path):
        AE(**SMALL).fit(data()).save(tmp_path)
        state = torch.get_rng_state()
        riemae.load(tmp_path)
        assert torch.equal(torch.get_rng_state(), state)


class TestWhatHasToBeGiven:
    def test_networks_without_a_description(self, tmp_path):
        x = data()
        encoder, decoder = (
            nn.Sequential(Scale(3), nn.Linear(3, 2)).double(),
            nn.Sequential(nn.Linear(2, 3), Scale(3)).double(),
        )
        m = IRAE(**SMALL, encoder=encoder, decoder=decoder).fit(x)
        m.save(tmp_path)
        with pytest.raises(CheckpointError, match="encoder=, decoder="):
            riemae.load(tmp_path)
        with pytest.raises(CheckpointError, match="decoder="):
            riemae.load(tmp_path, encoder=encoder)
        # The structure is enough, in any dtype; what is given is not changed.
        fresh = nn.Sequential(Scale(3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(2, 3), Scale(3))
        before = copy.deepcopy(fresh[0].state_dict())
        again = riemae.load(tmp_path, encoder=fresh[0], decoder=fresh[1])
        assert same(m, again, x)
        assert all(torch.equal(before[k], v) for k, v in fresh[0].state_dict().items())
        assert np.array_equal(*(clone(model).fit(x).transform(x) for model in (m, again)))
        with pytest.raises(CheckpointError, match="belong to this model"):
            riemae.load(tmp_path, encoder=nn.Linear(3, 2), decoder=fresh[1])

    def test_metrics_without_a_description(self, tmp_path):
        x = data()
        for metric in (ambient.Density(torch.as_tensor(x)), lambda x: 1 + x.square()):
            m = IRAE(**SMALL, ambient=metric).fit(x)
            m.save(tmp_path)
            with pytest.raises(CheckpointError, match="the arguments ambient="):
                riemae.load(tmp_path)
            assert same(m, riemae.load(tmp_path, ambient=metric), x)

    def test_losses_of_ones_own(self, tmp_path):
        def mine(manifold, z):
            return losses.relaxed_distortion(manifold, z)

        m = AE(**SMALL, terms={"mine": Term(0.1, loss=mine)}).fit(data())
        m.save(tmp_path)
        with pytest.raises(CheckpointError, match="terms="):
            riemae.load(tmp_path)
        assert same(m, riemae.load(tmp_path, terms=m.terms), data())

    def test_likelihoods_of_ones_own(self, tmp_path):
        @dataclass(frozen=True)
        class Robust(likelihoods.SquaredError):
            def deviance(self, parameter, x):
                return (x - parameter).abs().flatten(1).sum(1)

        m = AE(**SMALL, likelihood=Robust()).fit(data())
        m.save(tmp_path)
        with pytest.raises(CheckpointError, match="likelihood="):
            riemae.load(tmp_path)
        assert same(m, riemae.load(tmp_path, likelihood=Robust()), data())

    def test_settings_come_from_the_checkpoint(self, tmp_path):
        AE(**SMALL).fit(data()).save(tmp_path)
        with pytest.raises(CheckpointError, match="epochs"):
            riemae.load(tmp_path, epochs=3)

    def test_classes_of_ones_own_load_by_their_method(self, tmp_path):
        class Mine(IRAE):
            pass

        m = Mine(**SMALL).fit(data())
        m.save(tmp_path)
        with pytest.raises(CheckpointError, match=r"Mine\.load"):
            riemae.load(tmp_path)
        assert type(Mine.load(tmp_path)) is Mine
        with pytest.raises(CheckpointError, match="one of Mine"):
            IRAE.load(tmp_path)


class TestRefusal:
    @pytest.fixture
    def folder(self, tmp_path):
        return IRAE(**SMALL).fit(data()).save(tmp_path / "model")

    def test_another_layout_kind_or_class(self, folder):
        for change, match in (
            (lambda m: m.update(layout=2), "layout 1"),
            (lambda m: m.update(kind="graph"), "autoencoder"),
            (lambda m: m.update({"class": "Popen"}), "Popen"),
        ):
            copied = json.loads((folder / "checkpoint.json").read_text())
            rewrite(folder, change)
            with pytest.raises(CheckpointError, match=match):
                riemae.load(folder)
            (folder / "checkpoint.json").write_text(json.dumps(copied))

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m["settings"].update(latent=3),
            lambda m: m.update(latent_dim=5),
            lambda m: m.pop("history"),
            lambda m: m.update(ambient={"name": "Popen"}),
            lambda m: m["networks"].update(encoder={"name": "torch.Linear", "arguments": {}}),
            lambda m: m["networks"].update(
                encoder={"name": "os.system", "arguments": {"command": "true"}}
            ),
            lambda m: m.update(dtype="load"),
            lambda m: m.update(likelihood={"name": "Unknown", "arguments": {}}),
        ],
    )
    def test_content_that_does_not_fit_together(self, folder, change):
        rewrite(folder, change)
        with pytest.raises(CheckpointError):
            riemae.load(folder)

    def test_tampered_and_truncated_files_and_pickles(self, folder, tmp_path):
        (tensors,) = folder.glob("tensors-*.safetensors")
        content = tensors.read_bytes()
        for bad in (content[:-1], content[:-1] + b"\0", b""):
            tensors.write_bytes(bad)
            with pytest.raises(CheckpointError, match=tensors.name):
                riemae.load(folder)
        tensors.write_bytes(content)
        path = folder / "checkpoint.json"
        path.write_text(path.read_text().replace('"latent_dim": 2', '"latent_dim": 3'))
        with pytest.raises(CheckpointError, match="checksum"):
            riemae.load(folder)
        torch.save({}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="pickle"):
            riemae.load(tmp_path / "model.pt")

    def test_a_checkpoint_of_something_else(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"riemae\.storage\.load"):
            riemae.load(storage.save(tmp_path, {"x": torch.zeros(1)}, {}))

    def test_a_model_that_was_not_fitted(self, tmp_path):
        from sklearn.exceptions import NotFittedError

        with pytest.raises(NotFittedError):
            AE().save(tmp_path)


class TestReport:
    def test_it_is_about_the_training_data_and_computed_once(self):
        from riemae.autoencoders.report import report

        x = torch.as_tensor(data())
        m = IRAE(**SMALL).fit(x)
        assert m.report_ is m.report_
        again = report(m.manifold_, m.objective_.encode, x)
        # What its sentences say of the training, the samples alone do not tell.
        assert replace(m.report_, sentences=again.sentences) == again
        others = [s for s in again.sentences if not s.startswith("The reconstruction ")]
        assert list(m.report_.sentences[1:]) == others
        before = m.report_
        assert m.partial_fit(x).report_ != before

    def test_a_part_of_many_samples_and_few_of_few(self):
        assert (
            AE(**{**SMALL, "epochs": 1, "batch_size": 512}).fit(data(2500)).report_.samples == 2000
        )
        assert AE(**SMALL).fit(data(5)).report_.samples == 5
        with pytest.raises(OptionError, match="n_samples = 3"):
            AE(**SMALL).fit(data(3)).report_  # noqa: B018

    def test_distributions_are_compared_by_their_means(self):
        r = (
            IRAE(**{**SMALL, "epochs": 200}, lr=1e-2, likelihood="poisson", ambient="fisher")
            .fit(counts())
            .report_
        )
        assert r.data_dim == 3
        assert r.unexplained < 0.7


class TestCard:
    """README.md: a page for people, which nothing reads."""

    def test_it_says_what_the_model_is(self, tmp_path):
        m = IRAE(**SMALL, likelihood="poisson", ambient="fisher", weight=0.25).fit(counts())
        text = (m.save(tmp_path) / "README.md").read_text("utf-8")
        assert "# IRAE" in text
        assert "3 numbers per sample, float64" in text
        assert "poisson" in text
        assert "FisherRao" in text
        assert "`relaxed_distortion` × 0.25" in text
        assert f"loss of the last one {m.history_['loss'][-1]:.6g}" in text
        assert f"{m.report_.trustworthiness:.4g} (1 is best)" in text
        for sentence in m.report_.sentences:
            assert f"- {sentence}" in text
        for version in (riemae.__version__, torch.__version__):
            assert version in text
        assert riemae.cite(m).strip() in text

    def test_the_lines_that_load_it_run(self, tmp_path, monkeypatch):
        x = data()
        m = AE(**SMALL).fit(x)
        text = (m.save(tmp_path) / "README.md").read_text("utf-8")
        code = text.split("```python\n")[1].split("```")[0]
        names = {"x": x}
        exec(code.replace("this folder", str(tmp_path)), names)
        assert np.array_equal(names["z"], m.transform(x))
        z = torch.as_tensor(names["z"])
        assert torch.equal(names["M"].metric(z), m.manifold_.metric(z))

    def test_what_has_to_be_given_is_named(self, tmp_path):
        m = AE(**SMALL, encoder=Scale(3).double(), latent_dim=3).fit(data())
        text = (m.save(tmp_path) / "README.md").read_text("utf-8")
        assert 'riemae.load("this folder", encoder=encoder)' in text

    def test_names_of_features_are_no_markup(self, tmp_path):
        pandas = pytest.importorskip("pandas")
        evil = ["a|b\n# c", "`x` <script>", "<img src=y>"]
        m = AE(**SMALL).fit(pandas.DataFrame(data(), columns=evil))
        text = (m.save(tmp_path) / "README.md").read_text("utf-8")
        (row,) = [line for line in text.splitlines() if line.startswith("| features |")]
        assert row == "| features | `a\\|b # c`, `'x' <script>`, `<img src=y>` |"

    def test_folders_with_and_without_are_read(self, tmp_path):
        x = data()
        m = AE(**SMALL).fit(x)
        page = m.save(tmp_path) / "README.md"
        page.write_text("anything")
        assert same(m, riemae.load(tmp_path), x)
        page.unlink()
        assert same(m, riemae.load(tmp_path), x)

    def test_a_page_of_somebody_else_stays(self, tmp_path):
        page = tmp_path / "README.md"
        page.write_text("my notes")
        AE(**SMALL).fit(data()).save(tmp_path)
        assert page.read_text() == "my notes"
        page.unlink()
        elsewhere = tmp_path / "elsewhere.md"
        elsewhere.write_text("my notes")
        page.symlink_to(elsewhere)
        AE(**SMALL).fit(data()).save(tmp_path)
        assert page.is_symlink()
        assert elsewhere.read_text() == "my notes"

    def test_the_next_save_replaces_it_and_leaves_no_parts(self, tmp_path):
        AE(**SMALL).fit(data()).save(tmp_path)
        (tmp_path / "README.md.0123abcd.part").write_text("of a save that was killed")
        VAE(**SMALL).fit(data()).save(tmp_path)
        assert "# VAE" in (tmp_path / "README.md").read_text("utf-8")
        assert len(list(tmp_path.iterdir())) == 3
        storage.save(tmp_path, {}, {})  # a checkpoint without a page
        assert not (tmp_path / "README.md").exists()
