"""Estimators: scikit-learn's own checks, data of all kinds, likelihoods, weights without units,
errors."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemae import ambient
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
from riemae.exceptions import (
    AmbientError,
    DataError,
    DecoderError,
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    NonFiniteError,
    OptionError,
    ShapeError,
    SmoothnessWarning,
)

ALL = (AE, VAE, DenoisingAE, ContractiveAE, NRAE, MCAE, IRAE, IRVAE)
SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}


def data(n=40, d=3, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def curve(n=60, d=3, seed=0):
    t = np.random.default_rng(seed).uniform(-2, 2, n)
    return np.stack([t, np.sin(t), *[np.cos(t)] * (d - 2)], 1)


class TestScikitLearn:
    # No check is excluded: expected_failed_checks stays empty for every estimator. Some of its data
    # are clusters.
    @pytest.mark.filterwarnings("ignore::riemae.exceptions.DisconnectedGraphWarning")
    @pytest.mark.parametrize("kind", ALL)
    def test_every_check_of_scikit_learn_passes(self, kind):
        results = check_estimator(
            kind(hidden=(4,), epochs=1), on_skip=None, expected_failed_checks={}
        )
        assert len(results) > 40
        # Skipped where an optional package is missing: array_api_strict.
        assert {r["status"] for r in results} <= {"passed", "skipped"}
        assert sum(r["status"] == "skipped" for r in results) <= 1

    def test_pipeline_and_grid_search(self):
        x = curve()
        pipe = make_pipeline(StandardScaler(), IRAE(**{**SMALL, "epochs": 20}, lr=1e-2))
        search = GridSearchCV(
            pipe, {"irae__weight": [0.0, 0.1], "irae__latent_dim": [1, 2]}, cv=2
        ).fit(x)
        assert (
            search.best_estimator_.transform(x).shape[1] == search.best_params_["irae__latent_dim"]
        )
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()

    def test_parameters_clone_repr_and_feature_names(self):
        m = MCAE(kind="intrinsic", weight=0.5, terms={"relaxed_distortion": 0.1})
        assert clone(m).get_params()["terms"] == {"relaxed_distortion": 0.1}
        assert m.set_params(weight=2.0).weight == 2.0
        assert repr(m) == "MCAE(kind='intrinsic', terms={'relaxed_distortion': 0.1}, weight=2.0)"
        names = IRAE(**SMALL).fit(data()).get_feature_names_out()
        assert names.tolist() == ["irae0", "irae1"]

    @pytest.mark.parametrize("kind", ALL)
    def test_pickles_and_copies_after_training(self, kind):
        m = kind(**SMALL).fit(data())
        for other in (pickle.loads(pickle.dumps(m)), copy.deepcopy(m)):
            assert np.array_equal(other.transform(data()), m.transform(data()))
            z = torch.as_tensor(m.transform(data()))
            assert torch.equal(other.manifold_.metric(z), m.manifold_.metric(z))


class TestData:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_dtype_is_that_of_the_data_everywhere(self, dtype):
        m = AE(**SMALL).fit(data(dtype=dtype))
        z = m.transform(data(dtype=dtype))
        assert z.dtype == dtype
        assert m.inverse_transform(z).dtype == dtype
        assert str(m.manifold_.metric(torch.as_tensor(z)).dtype).endswith(np.dtype(dtype).name)

    def test_arrays_tensors_and_loaders_agree(self):
        x = torch.as_tensor(data(dtype=np.float32))
        a, t = AE(**SMALL).fit(x.numpy()), AE(**SMALL).fit(x)
        loader = DataLoader(TensorDataset(x), batch_size=10)
        assert isinstance(t.transform(x), torch.Tensor)
        assert torch.equal(torch.as_tensor(a.transform(x.numpy())), t.transform(x))
        assert torch.allclose(t.transform(loader), t.transform(x), atol=1e-6)
        assert abs(t.score(loader) - t.score(x)) < 1e-5
        # One batch an epoch holds the same samples, whatever their order.
        whole = AE(**{**SMALL, "batch_size": 40})
        b = clone(whole).fit(DataLoader(x, batch_size=40))
        assert torch.allclose(b.transform(x), clone(whole).fit(x).transform(x), atol=1e-5)

    def test_images_keep_their_shape_with_networks_of_ones_own(self):
        x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        encoder = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(36, 2)
        )
        decoder = nn.Sequential(
            nn.Linear(2, 16), nn.SiLU(), nn.Unflatten(1, (1, 4, 4)), nn.Upsample((8, 8))
        )
        before = copy.deepcopy(encoder.state_dict())
        m = IRAE(**SMALL, encoder=encoder, decoder=decoder).fit(x)
        z = m.transform(x)
        assert m.inverse_transform(z).shape == x.shape
        assert m.manifold_.decode(z).shape == x.shape
        assert m.data_shape_ == (1, 8, 8)
        assert all(
            torch.equal(before[k], v) for k, v in encoder.state_dict().items()
        )  # a copy was trained
        assert not torch.equal(m.encoder_[0].weight, encoder[0].weight)
        plain = AE(**SMALL).fit(x.numpy())
        assert plain.inverse_transform(plain.transform(x.numpy())).shape == (30, 1, 8, 8)
        with pytest.raises(ShapeError):
            plain.transform(np.zeros((2, 1, 8, 7)))

    def test_units_dimension_and_place_of_the_data_do_not_matter(self):
        # Rotated into more dimensions, scaled by 1,000 and moved: the same losses, the same codes.
        x = curve()
        q = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 3)))[0]
        settings = {
            **SMALL,
            "latent_dim": 1,
            "terms": {"relaxed_distortion": 0.1, "extrinsic_curvature": 1e-3},
        }
        a = MCAE(**settings, weight=1e-3).fit(x)
        scaled = MCAE(**settings, weight=1e-3).fit(1000 * x + 50)
        assert np.allclose(a.transform(x), scaled.transform(1000 * x + 50), atol=1e-8)
        for name, values in a.history_.items():
            assert np.allclose(values, scaled.history_[name], rtol=1e-6)
        # The networks differ in D; their terms, at the same map, do not.
        from riemae.autoencoders import Objective

        e, f = (
            nn.Linear(3, 2).double(),
            nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3)).double(),
        )
        lift = torch.as_tensor(q)

        class Lifted(nn.Module):
            def __init__(self, inner, before, after):
                super().__init__()
                self.inner, self.before, self.after = inner, before, after

            def forward(self, y):
                y = y if self.before is None else y / 10 @ self.before
                y = self.inner(y)
                return y if self.after is None else 10 * y @ self.after.T

        terms = {"relaxed_distortion": 1.0, "extrinsic_curvature": 1.0, "intrinsic_curvature": 1.0}
        t = torch.as_tensor(x)
        one = Objective(e, f, t, terms=terms)
        two = Objective(Lifted(e, lift, None), Lifted(f, None, lift), 10 * t @ lift.T, terms=terms)
        left = one(t, generator=torch.Generator().manual_seed(0))[1]
        right = two(10 * t @ lift.T, generator=torch.Generator().manual_seed(0))[1]
        for name in left:
            assert torch.allclose(left[name], right[name], rtol=1e-6), name

    def test_score_is_the_coefficient_of_determination(self):
        x = curve()
        m = AE(**{**SMALL, "epochs": 30}, lr=1e-2).fit(x)
        rest = x - m.inverse_transform(m.transform(x))
        assert abs(m.score(x) - (1 - (rest**2).sum() / ((x - x.mean(0)) ** 2).sum())) < 1e-9

    def test_seed_decides_everything_and_nothing_global_is_touched(self):
        x = data()
        state = torch.get_rng_state(), np.random.get_state()[1].copy()
        a, b, c = (IRVAE(**SMALL, seed=s).fit(x).transform(x) for s in (0, 0, 1))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
        assert torch.equal(state[0], torch.get_rng_state())
        assert np.array_equal(state[1], np.random.get_state()[1])


class TestKinds:
    @pytest.mark.parametrize("kind", ALL)
    def test_training_lowers_the_loss(self, kind):
        m = kind(hidden=(32, 32), latent_dim=1, epochs=60, batch_size=30, lr=3e-3).fit(curve())
        assert m.history_["loss"][-1] < 0.6 * m.history_["loss"][0]
        assert len(m.history_["reconstruction"]) == m.n_epochs_ == 60

    def test_isometric_regularisation_lowers_the_distortion(self):
        x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
        x = np.stack([np.sin(1.5 * x[:, 0]), 0.3 * x[:, 1], np.cos(1.5 * x[:, 0])], 1)
        settings = {"hidden": (32, 32), "epochs": 80, "batch_size": 50, "lr": 5e-3}
        plain, iso = AE(**settings).fit(x), IRAE(**settings, weight=0.05).fit(x)

        def measure(m):
            z = torch.as_tensor(m.transform(x))
            return float(m.manifold_.distortion(z, kind="scaled_isometry"))

        assert measure(iso) < 0.2 * measure(plain)

    def test_mecae_and_irae_together(self):
        # The named example of composition: curvature does not see the chart, distortion does.
        m = MCAE(**SMALL, weight=1e-3, terms={"relaxed_distortion": 0.1}).fit(data())
        assert {"reconstruction", "extrinsic_curvature", "relaxed_distortion", "loss"} == set(
            m.history_
        )
        parts = {k: np.array(v) for k, v in m.history_.items()}
        total = (
            parts["reconstruction"]
            + 1e-3 * parts["extrinsic_curvature"]
            + 0.1 * parts["relaxed_distortion"]
        )
        assert np.allclose(total, parts["loss"])

    def test_a_loss_of_ones_own_is_a_term(self):
        volume = lambda M, z: M.log_volume(z).var()  # noqa: E731
        m = AE(**SMALL, terms={"volume": Term(0.1, volume)}).fit(data())
        assert len(m.history_["volume"]) == 2

    def test_costs_name_every_part(self):
        rows = IRAE(**SMALL, terms={"extrinsic_curvature": 1e-3}).fit(data()).costs(data())
        assert set(rows) == {"plain", "relaxed_distortion", "extrinsic_curvature"}
        assert all(row["seconds"] > 0 for row in rows.values())
        assert (
            abs(sum(row["share"] for row in rows.values()) - 1) < 0.05
        )  # in training mode, at the same weights
        nrae = NRAE(**SMALL).fit(data()).costs(data())
        assert set(nrae) == {"plain", "objective without terms"}

    def test_terms_see_the_ambient_metric(self):
        x = curve()
        weights = np.array([1.0, 4.0, 9.0])
        m = IRAE(**SMALL, ambient=weights).fit(x)
        z = torch.as_tensor(m.transform(x))
        j = m.manifold_.jacobian(z)
        expected = j.mT @ torch.diag(torch.as_tensor(weights)) @ j
        assert torch.allclose(m.manifold_.metric(z), expected, rtol=1e-9)

    def test_neighbourhoods_of_ones_own(self):
        class Next:
            def sample(self, index, generator=None):
                return (index + 1) % 40

        m = NRAE(**SMALL, neighborhood=Next()).fit(data())
        assert len(m.history_["neighborhood"]) == 2

    def test_a_graph_of_other_samples_is_refused(self):
        class Ring:
            def __len__(self):
                return 40

            def sample(self, index, generator=None):
                return (index + 1) % 40

        NRAE(**SMALL, neighborhood=Ring()).fit(data())
        for m, x in (
            (NRAE(**SMALL, neighborhood=Ring()), data(30)),
            (NRAE(**SMALL, neighborhood=Ring(), validation_fraction=0.25), data()),
        ):
            with pytest.raises(OptionError, match="neighborhood of [13]0 samples"):
                m.fit(x)

    def test_codes_to_start_from(self):
        # A spiral whose ends come close: the order along it is the code to start from.
        t = np.linspace(0.5, 1, 50)
        x = np.stack([t * np.cos(12 * t), t * np.sin(12 * t)], 1)
        m = NRAE(
            hidden=(64, 64), latent_dim=1, init=t[:, None], epochs=1, lr=1e-6, neighbors=2
        ).fit(x)
        assert abs(stats.spearmanr(m.transform(x)[:, 0], t).statistic) > 0.999
        with pytest.raises(ShapeError, match="init"):
            NRAE(**SMALL, init=np.zeros((3, 2))).fit(data())
        with pytest.raises(OptionError, match="vary"):
            NRAE(**SMALL, init=np.zeros((40, 2))).fit(data())
        with pytest.raises(OptionError, match="embedding"):
            NRAE(
                **SMALL,
                init="isomap",
                neighborhood=type("G", (), {"sample": lambda s, i, g=None: i})(),
            ).fit(data())

    def test_the_best_of_several_starts_is_kept(self):
        x = curve()
        m = NRAE(hidden=(8,), epochs=10, latent_dim=1, restarts=3).fit(x)
        assert len(set(m.restart_losses_)) == 3
        assert m.history_["loss"][-1] == min(m.restart_losses_)
        assert m.get_params()["restarts"] == 3
        assert m.get_params()["seed"] == 0
        single = NRAE(hidden=(8,), epochs=10, latent_dim=1).fit(x)
        assert m.restart_losses_[0] == single.history_["loss"][-1]
        with pytest.raises(OptionError):
            NRAE(restarts=0).fit(x)

    def test_duplicated_samples_are_neighbours_of_each_other_never_of_themselves(self):
        x = torch.cat([torch.zeros(4, 2), torch.ones(4, 2)])
        with pytest.warns(DisconnectedGraphWarning, match="2 components"):
            graph = NRAE(**SMALL, neighbors=3).fit(x).neighborhood_
        index = graph.neighbors.reshape(8, 3)
        assert not (index == torch.arange(8)[:, None]).any()
        assert ((index < 4) == (torch.arange(8)[:, None] < 4)).all()

    def test_a_graph_may_come_in_any_form(self):
        # A ring of 40: every sample has the two beside it.
        import networkx
        from scipy.sparse import csr_array

        x = torch.as_tensor(data())
        ring = networkx.cycle_graph(40)
        adjacency = networkx.to_numpy_array(ring, nodelist=range(40))
        table = [sorted(ring[i]) for i in range(40)]
        forms = (
            ring,
            adjacency,
            torch.as_tensor(adjacency),
            csr_array(adjacency),
            table,
            np.array(table),
            Neighborhood.from_index(table),
            lambda x: Neighborhood.from_index(table),
        )
        for form in forms:
            m = NRAE(**SMALL, neighborhood=form).fit(x)
            assert m.neighborhood_.neighbors.reshape(40, 2).tolist() == table
            assert len(m.history_["neighborhood"]) == 2
        halves = partial(Neighborhood.nearest, k=3, kind="union")
        m = NRAE(**SMALL, neighborhood=halves, validation_fraction=0.25).fit(x)
        assert len(m.history_["val_neighborhood"]) == 2
        for wrong, error in (
            (42, DTypeError),
            ("ring", DTypeError),
            (np.zeros((40, 40)), GraphError),
        ):
            with pytest.raises(error):
                NRAE(**SMALL, neighborhood=wrong).fit(x)

    @pytest.mark.parametrize("method", ["isomap", "laplacian"])
    def test_an_embedding_of_the_graph_to_start_from(self, method):
        # A turn of a spiral. Training is held still: what is looked at is the start.
        t = np.linspace(0.5, 1, 50)
        x = np.stack([t * np.cos(12 * t), t * np.sin(12 * t)], 1)
        settings = {"hidden": (64, 64), "latent_dim": 1, "epochs": 1, "lr": 1e-6, "neighbors": 2}
        m = NRAE(**settings, init=method).fit(x)
        embedding = m.neighborhood_.embedding(1, method)[:, 0].numpy()
        assert abs(stats.spearmanr(embedding, t).statistic) > 0.999  # the two samples at an end tie
        assert np.corrcoef(m.transform(x)[:, 0], embedding)[0, 1] > 0.999
        assert abs(np.corrcoef(NRAE(**settings).fit(x).transform(x)[:, 0], embedding)[0, 1]) < 0.95
        with pytest.raises(OptionError, match="isomap"):
            NRAE(**settings, init="umap").fit(x)

    def test_curvature_in_all_directions_is_exact(self):
        m = MCAE(
            **{**SMALL, "epochs": 1, "batch_size": 40}, lr=1e-12, probes=None, ambient=np.ones(3)
        ).fit(data())
        z = torch.as_tensor(m.transform(data()))
        exact = (
            m.manifold_.extrinsic_curvature(z, ridge=1e-4).mean()
            * ((data() - data().mean(0)) ** 2).sum(1).mean()
        )
        assert abs(m.history_["extrinsic_curvature"][0] / exact.item() - 1) < 1e-6

    def test_relu_is_announced(self):
        with pytest.warns(SmoothnessWarning):
            MCAE(**SMALL, activation="relu").fit(data())
        with pytest.warns(SmoothnessWarning):
            NRAE(**SMALL, activation="relu", order=2).fit(data())


class TestWarmStarts:
    def test_partial_fit_is_fit_in_pieces(self):
        # In one batch an epoch the order plays no role; the optimizer's state is kept in between.
        x = data(dtype=np.float64)
        m = AE(hidden=(8,), batch_size=40)
        for _ in range(5):
            m.partial_fit(x)
        whole = AE(hidden=(8,), batch_size=40, epochs=5).fit(x)
        assert np.allclose(m.transform(x), whole.transform(x), atol=1e-12)
        assert np.allclose(m.history_["loss"], whole.history_["loss"])

    def test_partial_fit_goes_on_where_a_schedule_has_ended(self):
        m = AE(**SMALL, schedule="cosine").fit(data())
        before = m.transform(data())
        assert not np.allclose(before, m.partial_fit(data()).transform(data()))

    def test_warm_start_goes_on_and_a_fresh_fit_does_not(self):
        x = data()
        m = AE(**SMALL, warm_start=True).fit(x)
        first = m.history_["loss"][-1]
        m.fit(x)
        assert m.n_epochs_ == 4
        assert m.history_["loss"][2] < first
        m.set_params(warm_start=False).fit(x)
        assert m.n_epochs_ == 2


class TestLikelihoods:
    # Truths from torch.distributions and scipy: deviance = 2 (log p(x | x) − log p(x | θ)).
    def test_bernoulli(self):
        x, logits = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0.3, -2.0, 1.0]])
        expected = -2 * torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(1)
        assert torch.allclose(likelihoods.Bernoulli().deviance(logits, x), expected)
        assert torch.allclose(
            likelihoods.Bernoulli().deviance(
                torch.logit(torch.tensor([[0.3]])), torch.tensor([[0.3]])
            ),
            torch.zeros(1),
            atol=1e-6,
        )

    def test_poisson(self):
        x, log_rate = torch.tensor([[0.0, 3.0, 7.0]]), torch.tensor([[0.1, 1.0, 2.5]])
        log_p = lambda mean: torch.as_tensor(stats.poisson.logpmf(x.numpy(), mean.numpy())).sum(1)  # noqa: E731
        expected = 2 * (log_p(x.clamp(min=1e-12)) - log_p(log_rate.exp()))
        assert torch.allclose(
            likelihoods.Poisson().deviance(log_rate, x).double(), expected.double(), rtol=1e-5
        )

    def test_negative_binomial(self):
        x, log_mean, r = torch.tensor([[0.0, 3.0, 7.0]]), torch.tensor([[0.1, 1.0, 2.5]]), 2.5
        # scipy counts failures: probability of success r/(r + μ)
        log_p = lambda mean: stats.nbinom.logpmf(x.numpy(), r, r / (r + mean.numpy())).sum(1)  # noqa: E731
        expected = 2 * (log_p(x.clamp(min=1e-9)) - log_p(log_mean.exp()))
        family = likelihoods.NegativeBinomial(r)
        assert np.allclose(family.deviance(log_mean, x).numpy(), expected, rtol=1e-4)
        assert torch.allclose(
            family.distribution(log_mean).base_dist.mean, log_mean.exp(), rtol=1e-5
        )

    def test_dispersion_is_found_by_moments(self):
        draws = stats.nbinom.rvs(3.0, 3.0 / (3.0 + 20.0), size=(20_000, 2), random_state=0)
        fitted = likelihoods.NegativeBinomial().fitted(torch.as_tensor(draws).double())
        assert abs(fitted.dispersion - 3.0) < 0.15

    def test_categorical(self):
        x = torch.tensor([[0.0, 1.0, 0.0]])
        logits = torch.tensor([[0.3, -2.0, 1.0]])
        expected = -2 * torch.distributions.OneHotCategorical(logits=logits).log_prob(x)
        assert torch.allclose(likelihoods.Categorical().deviance(logits, x), expected)

    def test_chamfer_is_a_distance_of_sets(self):
        cloud = torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(0))
        other = torch.rand(2, 20, 3, generator=torch.Generator().manual_seed(1))
        shuffled = other[:, torch.randperm(20, generator=torch.Generator().manual_seed(2))]
        chamfer = likelihoods.Chamfer()
        square = (cloud[:, :, None] - other[:, None]).square().sum(-1)
        expected = square.amin(2).mean(1) + square.amin(1).mean(1)
        assert torch.allclose(chamfer.deviance(other, cloud), expected)
        assert torch.allclose(chamfer.deviance(shuffled, cloud), expected)
        assert chamfer.deviance(shuffled, other).abs().max() < 1e-10

    @pytest.mark.parametrize(
        ("name", "make"),
        [
            ("bernoulli", lambda g: (torch.rand(40, 6, generator=g) < 0.4).double()),
            (
                "poisson",
                lambda g: torch.poisson(torch.rand(40, 6, generator=g).double() * 9, generator=g),
            ),
            (
                "negative_binomial",
                lambda g: torch.poisson(
                    torch.rand(40, 6, generator=g).double() ** 4 * 40, generator=g
                ),
            ),
            (
                "categorical",
                lambda g: nn.functional.one_hot(torch.randint(4, (40, 3), generator=g), 4).double(),
            ),
            (
                "chamfer",
                lambda g: (
                    torch.rand(40, 12, 3, generator=g).double()
                    * torch.rand(40, 1, 3, generator=g).double()
                ),
            ),
        ],
    )
    def test_each_trains_under_geometry_and_is_1_at_the_null_model(self, name, make):
        x = make(torch.Generator().manual_seed(0))
        for m in (
            IRAE(likelihood=name, **{**SMALL, "epochs": 15}, lr=1e-2),
            NRAE(likelihood=name, order=1, **SMALL),
            VAE(likelihood=name, **SMALL),
        ):
            m.fit(x)
            assert m.inverse_transform(m.transform(x)).shape == x.shape
            assert np.isfinite(m.history_["loss"]).all()
        family = likelihoods.as_likelihood(name).fitted(x)
        if name != "chamfer":
            null = family.null(x).expand_as(x)
            assert abs(family.deviance(null, x).mean() / family.null_deviance(x) - 1) < 1e-9
            # No other constant is better.
            for shift in (-0.05, 0.05):
                moved = null.clone()
                moved[..., 0] += shift
                assert family.deviance(moved, x).mean() > family.null_deviance(x)
            assert torch.allclose(family.mean(null)[0], x.mean(0), atol=0.02)

    def test_data_outside_the_likelihood_are_refused(self):
        for name in ("bernoulli", "poisson", "negative_binomial", "categorical"):
            with pytest.raises(DataError):
                AE(likelihood=name, **SMALL).fit(data())
        with pytest.raises(DataError, match="clouds"):
            AE(likelihood="chamfer", **SMALL).fit(data())
        with pytest.raises(OptionError, match="likelihood") as caught:
            AE(likelihood="cauchy", **SMALL).fit(data())
        suggested = caught.value.hint.split("'")[1]
        assert isinstance(likelihoods.as_likelihood(suggested), likelihoods.Likelihood)

    @pytest.mark.skipif(not hasattr(ambient, "FisherRao"), reason="needs ambient.FisherRao")
    def test_fisher_is_the_metric_of_the_likelihood(self):
        # Poisson: H = diag(1/λ) in rates, so G = Jᵀ diag(1/λ) J with J of the rates.
        x = torch.poisson(
            torch.rand(40, 6, generator=torch.Generator().manual_seed(0)).double() * 9
        )
        m = IRAE(likelihood="poisson", ambient="fisher", **SMALL).fit(x)
        z = m.transform(x)
        rates = lambda z: m.decoder_(z[None])[0].exp()  # noqa: E731
        j = torch.func.vmap(torch.func.jacfwd(rates))(z)
        rate = m.decoder_(z).exp()
        assert torch.allclose(m.manifold_.metric(z), j.mT @ (j / rate[..., None]), rtol=1e-6)


class TestBadInput:
    def test_nan_is_refused_with_the_rows(self):
        x = data()
        x[7, 1] = np.nan
        with pytest.raises(NonFiniteError, match=r"\[7\]"):
            AE(**SMALL).fit(x)
        m = AE(**SMALL).fit(data())
        with pytest.raises(NonFiniteError):
            m.transform(x)
        with pytest.raises(NonFiniteError):
            m.inverse_transform(np.array([[np.inf, 0.0]]))

    def test_constant_data_are_refused_and_one_constant_feature_is_not(self):
        with pytest.raises(DataError, match="vary"):
            AE(**SMALL).fit(np.full((20, 3), 7.3))
        x = data()
        x[:, 1] = 5.0
        assert np.isfinite(IRAE(**SMALL).fit(x).transform(x)).all()

    def test_too_few_samples_for_the_neighbours(self):
        with pytest.raises(OptionError, match="neighbors = 5"):
            NRAE(**SMALL).fit(data(5))
        with pytest.raises(DataError, match="n_samples = 1"):
            AE(**SMALL).fit(data(1))

    def test_more_latent_than_data_dimensions(self):
        with pytest.raises(OptionError, match="latent_dim = 4"):
            AE(latent_dim=4, **SMALL).fit(data())

    def test_ambient_of_another_dimension_dtype_or_kind(self):
        for metric in (
            torch.ones(4).double(),
            ambient.Constant(torch.eye(4).double()),
            lambda x: torch.eye(4).double(),
        ):
            with pytest.raises(AmbientError):
                IRAE(**SMALL, ambient=metric).fit(data())
        with pytest.raises(OptionError, match="fisher"):
            AE(**SMALL, ambient="fischer").fit(data())
        # Another dtype is no mistake: constants follow the data.
        assert (
            IRAE(**SMALL, ambient=torch.ones(3)).fit(data()).manifold_.ambient.weights.dtype
            == torch.float64
        )

    def test_wrong_dtype(self):
        with pytest.raises(DTypeError):
            AE(**SMALL).fit(torch.randn(9, 3).half())
        with pytest.raises(DTypeError, match="encoder"):
            AE(**SMALL, encoder=nn.Linear(3, 2)).fit(data())

    def test_networks_that_do_not_fit(self):
        x = data(dtype=np.float32)
        with pytest.raises(ShapeError, match="latent_dim=2"):
            AE(**SMALL, encoder=nn.Linear(3, 1)).fit(x)
        with pytest.raises(ShapeError, match="decoder"):
            AE(**SMALL, decoder=nn.Linear(2, 5)).fit(x)
        with pytest.raises(ShapeError, match="encoder"):
            AE(**SMALL, encoder=nn.Linear(4, 2)).fit(x)
        with pytest.raises(ShapeError, match="2m"):
            VAE(**SMALL, encoder=nn.Linear(3, 3)).fit(x)

    def test_batch_norm_in_the_decoder_is_refused_where_it_is_differentiated(self):
        x = data(dtype=np.float32)
        decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 3))
        for m in (IRAE, NRAE, MCAE):
            with pytest.raises(DecoderError, match="GroupNorm"):
                m(**SMALL, decoder=decoder).fit(x)
        assert AE(**SMALL, decoder=decoder).fit(x).manifold_.metric(torch.zeros(1, 2)).shape == (
            1,
            2,
            2,
        )

    @pytest.mark.parametrize(
        "settings",
        [
            {"latent_dim": 0},
            {"epochs": 0},
            {"batch_size": 0},
            {"lr": -1.0},
            {"schedule": "step"},
            {"activation": "sine"},
            {"hidden": (0,)},
            {"validation_fraction": 1.0},
            {"early_stopping": 0},
            {"seed": "a"},
            {"terms": {"curvature": 1.0}},
            {"terms": {"relaxed_distortion": -1.0}},
            {"terms": {"relaxed_distortion": "much"}},
            {"logger": "csv"},
        ],
    )
    def test_options_out_of_range(self, settings):
        with pytest.raises(OptionError):
            AE(**{**SMALL, **settings}).fit(data())

    def test_options_of_the_kinds(self):
        for m in (
            MCAE(kind="mean"),
            MCAE(kind="intrinsic", latent_dim=1),
            NRAE(order=3),
            VAE(noise=0.0),
            VAE(beta=-1.0),
        ):
            with pytest.raises(OptionError):
                m.set_params(**SMALL).fit(data())

    def test_codes_of_another_dimension(self):
        with pytest.raises(ShapeError):
            AE(**SMALL).fit(data()).inverse_transform(np.zeros((2, 3)))


def test_the_contractive_term_is_the_loss_of_the_same_name():
    m = ContractiveAE(**SMALL, weight=0.1).fit(data())
    exact = losses.contraction(m.encoder_, torch.as_tensor(data()))
    assert (
        abs(m.history_["contraction"][-1] / exact.item() - 1) < 0.5
    )  # one probe, batches of 16, an epoch before


def test_networks_are_rebuilt_from_plain_arguments():
    from riemae.autoencoders.networks import Colour, PointCloudEncoder, Whiten

    m = AE(**SMALL, likelihood="chamfer").fit(np.random.default_rng(0).normal(size=(30, 6, 3)))
    cloud = next(e for e in m.encoder_ if isinstance(e, PointCloudEncoder))
    for module in (m.encoder_[0], m.decoder_[1], cloud):
        again = type(module)(**module.arguments())
        again.load_state_dict(module.state_dict(), assign=True)
        assert all(
            torch.equal(a, b)
            for a, b in zip(again.state_dict().values(), module.state_dict().values(), strict=True)
        )
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(cloud(x), cloud(x[:, [3, 1, 0, 5, 4, 2]]))  # a set has no order
    assert isinstance(m.encoder_[0], Whiten)
    assert isinstance(m.decoder_[1], Colour)
