"""Trainings with compile=: the same weights as without, and what is said where torch cannot."""

import pickle
import warnings

import numpy as np
import pytest
import torch

import riemae
from riemae.autoencoders import AE, IRAE, NRAE
from riemae.exceptions import DTypeError, FallbackWarning, OptionError

X = np.random.default_rng(0).normal(size=(50, 5))
SMALL = {"latent_dim": 2, "hidden": (8,), "epochs": 2, "batch_size": 32}
CURVED = {"terms": {"extrinsic_curvature": 1e-2, "relaxed_distortion": 0.1}}


@pytest.fixture(autouse=True)
def clean():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that compiles nothing and counts what it gets."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize(
    ("kind", "options"), [(AE, {}), (IRAE, {}), (NRAE, {}), (AE, CURVED)], ids=str
)
def test_weights_are_those_of_a_training_without(kind, options):
    plain = kind(**SMALL, **options).fit(X)
    compiled = kind(**SMALL, **options, compile="aot_eager").fit(X)
    torch.testing.assert_close(
        dict(compiled.decoder_.state_dict()),
        dict(plain.decoder_.state_dict()),
        rtol=1e-9,
        atol=1e-9,
    )
    assert compiled.objective_._compiled.reason is None
    steps = compiled.objective_._manifolds.get("parameter in training")
    if kind is not AE or options:
        assert steps._pullback.immersion.compiler.made >= 2


def test_batches_of_two_sizes_take_few_compilations():
    backend = Counting()
    AE(**{**SMALL, "epochs": 3}, compile={"backend": backend}).fit(X)
    assert backend.graphs == 4  # two networks


def test_estimators_of_sklearn_hold_with_the_option():
    from sklearn.base import clone

    model = IRAE(**SMALL, compile={"backend": "eager"})
    assert model.get_params()["compile"] == {"backend": "eager"}
    assert clone(model).compile == {"backend": "eager"}
    model.set_params(compile=False)
    assert model.fit(X).manifold_.compile is False


def test_saved_models_load_with_and_without(tmp_path):
    model = AE(**SMALL, compile="eager").fit(X)
    model.save(tmp_path / "model")
    again = riemae.load(tmp_path / "model")
    assert again.compile == again.manifold_.compile == "eager"
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    assert pickle.loads(pickle.dumps(model)).manifold_.compile == "eager"
    again.set_params(compile=False).partial_fit(X)
    assert again.manifold_.compile is False
    plain = AE(**SMALL).fit(X)
    plain.save(tmp_path / "plain")
    assert riemae.load(tmp_path / "plain").compile is False


def broken(graph, inputs):
    raise ValueError("this backend is broken")


def wrong(graph, inputs):
    return lambda *args: tuple(x * 1.01 for x in graph.forward(*args))


@pytest.mark.parametrize(("backend", "reason"), [(broken, "is broken"), (wrong, "other numbers")])
def test_what_cannot_be_compiled_is_trained_without(backend, reason):
    model = AE(**SMALL, compile={"backend": backend})
    with pytest.warns(FallbackWarning, match=reason) as caught:
        model.fit(X)
    assert len(caught) == 1
    assert model.history_["loss"] == AE(**SMALL).fit(X).history_["loss"]


def test_random_layers_draw_the_same_numbers():
    def noisy():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 2), torch.nn.Dropout(0.5)).double()

    plain = AE(**SMALL, encoder=noisy()).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        compiled = AE(**SMALL, encoder=noisy(), compile="aot_eager").fit(X)
    np.testing.assert_allclose(compiled.history_["loss"], plain.history_["loss"], rtol=1e-12)


@pytest.mark.parametrize(("given", "error"), [(3, DTypeError), ("no such backend", OptionError)])
def test_options_that_mean_nothing(given, error):
    with pytest.raises(error, match="AE: expected"):
        AE(**SMALL, compile=given).fit(X)
