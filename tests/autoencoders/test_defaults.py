"""Training as it comes: no worse than a plane, with limited gradients, and advice where terms drown
the reconstruction."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from riemae import Manifold
from riemae.autoencoders import AE, IRAE, MCAE, ContractiveAE
from riemae.autoencoders.balance import Balance
from riemae.autoencoders.report import report
from riemae.exceptions import OptionError

SMALL = {"hidden": (8,), "epochs": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def iris():
    return StandardScaler().fit_transform(load_iris().data).astype("float32")


def data(n=40, d=3):
    return np.random.default_rng(0).normal(size=(n, d))


class Norms(Callback):
    """The norm of the gradient with which each step is made."""

    def __init__(self):
        self.values = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if grads:
            self.values.append(float(torch.stack([g.norm() for g in grads]).norm()))


def norms(kind, **options):
    seen = Norms()
    trainer = {"callbacks": seen, **options.pop("trainer", {})}
    kind(**SMALL, **options, trainer=trainer).fit(data())
    return seen.values


class TestIris:
    @pytest.mark.parametrize("kind", ["extrinsic", "intrinsic"])
    def test_minimum_curvature_is_no_worse_than_a_plane(self, iris, kind):
        # A plane has no curvature and leaves 4.2 % of the variance.
        plane = PCA(2).fit(iris).explained_variance_ratio_.sum()
        assert MCAE(kind=kind, seed=0).fit(iris).score(iris) > plane - 0.02 > 0.93

    def test_without_limits_a_term_can_drown_the_reconstruction_and_the_report_says_so(self, iris):
        model = MCAE(clip=None, probes=1, weight=1.0, epochs=60).fit(iris)
        assert model.score(iris) < 0.5
        first = model.report_.sentences[0]
        assert first.startswith("The terms drowned the reconstruction")
        for part in ("weight=1 ", "try 0.1", "set clip=1.0", "warmup=200 steps, now 0"):
            assert part in first
        assert not any("Train longer" in s for s in model.report_.sentences)


class TestClip:
    def test_gradients_of_geometric_terms_are_limited_to_1(self):
        strong = {"terms": {"relaxed_distortion": 1e3}}
        assert max(norms(AE, **strong)) <= 1 + 1e-6
        assert max(norms(AE, **strong, clip=None)) > 10
        assert max(norms(ContractiveAE, weight=1e3)) <= 1 + 1e-6

    def test_a_plain_autoencoder_has_no_limit(self):
        assert max(norms(AE)) == max(norms(AE, clip=None))
        assert max(norms(AE, clip=1e-3)) <= 1e-3 * (1 + 1e-6)

    def test_the_trainers_own_limit_comes_first(self):
        own = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "norm"}
        assert max(norms(IRAE, trainer=own)) <= 0.01 * (1 + 1e-6)

    def test_fused_steps_in_mixed_precision(self):
        # Lightning refuses to clip the gradients of a fused optimizer there.
        x = data().astype("float32")
        IRAE(**SMALL, precision="bf16-mixed").fit(x)


class TestWarmup:
    def test_weights_rise_over_the_first_steps(self):
        seen = []

        def mine(z):
            return z.square().mean()

        class Factors(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                seen.append(pl_module._factors(batch_idx).get("mine", 1.0))

        from riemae.autoencoders import Term

        # Three steps per epoch.
        AE(
            **SMALL,
            warmup=5,
            terms={"mine": Term(1.0, mine)},
            trainer={"callbacks": Factors()},
        ).fit(data())
        assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 8)

    def test_the_history_counts_the_whole_weight(self):
        m = IRAE(**SMALL, warmup=1000, weight=0.5).fit(data())
        h = m.history_
        whole = np.array(h["reconstruction"]) + 0.5 * np.array(h["relaxed_distortion"])
        assert np.allclose(h["loss"], whole, rtol=1e-5)

    def test_a_term_that_never_rises_changes_nothing(self):
        x = data()
        long = IRAE(**SMALL, warmup=10**12, mixup=None).fit(x)
        none = IRAE(**SMALL, weight=0.0, mixup=None).fit(x)
        assert np.allclose(long.transform(x), none.transform(x), atol=1e-9)

    @pytest.mark.parametrize("warmup", [-1, 0.5, "long"])
    def test_other_values(self, warmup):
        with pytest.raises(OptionError, match="warmup"):
            AE(**SMALL, warmup=warmup).fit(data())


class TestBalance:
    def test_a_report_knows_what_a_plane_leaves(self):
        x = torch.as_tensor(data(60, 5))
        f = torch.nn.Linear(2, 5).double().requires_grad_(False)
        z = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        found = report(Manifold(f), None, x, z)
        expected = 1 - PCA(2).fit(x.numpy()).explained_variance_ratio_.sum()
        assert found.plane == pytest.approx(expected, rel=1e-9)
        wide = torch.as_tensor(data(30, 80))
        g = torch.nn.Linear(2, 80).double().requires_grad_(False)
        found = report(Manifold(g), None, wide, z[:30])
        expected = 1 - PCA(2).fit(wide.numpy()).explained_variance_ratio_.sum()
        assert found.plane == pytest.approx(expected, rel=1e-9)

    def test_terms_are_blamed_only_when_a_plane_is_better(self):
        x = torch.as_tensor(data(60, 5))
        f = torch.nn.Linear(2, 5).double().requires_grad_(False)
        bad = report(Manifold(f), None, x, 3 * x[:, :2])
        history = {"a": [5.0] * 40, "b": [9.0] * 40}
        blamed = Balance.of({"a": 2.0, "b": 0.1}, history, clip=1.0, warmup=300)
        assert blamed.sizes == pytest.approx({"a": 10.0, "b": 0.9})
        first = blamed.sentences(bad)[0]
        assert "'a', with weight=2 times a value of 5" in first
        assert "keep clip=1.0" in first
        assert "warmup=600 steps, now 300" in first
        # A training that was too short is not the fault of its terms.
        for falling in ([0.99**k for k in range(40)], [1.02, 1.01, 1.0]):
            short = Balance.of({"a": 2.0}, history | {"reconstruction": falling}, 1.0, 0)
            first, *others = short.sentences(bad)
            assert "still falling" in first
            assert "more epochs" in first
            assert not any(s.startswith("The reconstruction ") for s in others)
        for rested in ([1.0] * 40, [0.5, 0.6], [0.9, 0.5, 0.6] * 10, [1.0]):
            rest = Balance.of({"a": 2.0}, history | {"reconstruction": rested}, 1.0, 0)
            assert "drowned" in rest.sentences(bad)[0]
        free = Balance.of({"a": 0.0}, history, clip=None, warmup=0)
        assert free.sentences(bad) == bad.sentences
        assert Balance.of({}, {}, None, 0).sentences(bad) == bad.sentences
