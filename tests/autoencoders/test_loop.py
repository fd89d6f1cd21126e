"""Steps made directly are lightning's to the bit, also when one loop goes on after the other."""

from functools import partial

import pytest
import torch
from lightning.pytorch.loops import _TrainingEpochLoop
from operations import counted

from riemae import datasets
from riemae.autoencoders import AE, IRAE, NRAE, VAE, training
from riemae.autoencoders.loop import Steps

X = datasets.patch_with_hole(n=60, generator=0, dtype=torch.float32).x
SMALL = {"hidden": (8,), "batch_size": 16, "epochs": 4}
FITS = {
    "AE": (AE, {}),
    "cosine, warm-up, limit": (IRAE, {"schedule": "cosine", "warmup": 5, "clip": 0.1}),
    "rate by step": (AE, {"schedule": "warmup_cosine"}),
    "plateau with validation": (AE, {"schedule": "plateau", "validation_fraction": 0.25}),
    "own schedule": (
        AE,
        {"schedule": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)},
    ),
    "stops early": (AE, {"early_stopping": 1, "validation_fraction": 0.25, "lr": 0.5}),
    "closure called again": (
        AE,
        {"optimizer": partial(torch.optim.LBFGS, max_iter=3, lr=0.1), "batch_size": 60},
    ),
    "neighbours": (NRAE, {"neighbors": 6}),
    "noise": (VAE, {"beta_schedule": "linear"}),
    "one batch": (IRAE, {"batch_size": 60}),
}


@pytest.fixture
def usual(monkeypatch):
    """Call it to train by lightning's own loop from then on."""
    return lambda: monkeypatch.setattr(training, "_plain", lambda run, batches: False)


@pytest.fixture
def loops(monkeypatch):
    """The loops whose steps were made, in their order."""
    seen = []
    for kind in (Steps, _TrainingEpochLoop):

        def advance(self, fetcher, kind=kind, usual=kind.advance):
            seen.append(kind)
            usual(self, fetcher)

        monkeypatch.setattr(kind, "advance", advance)
    return seen


def assert_same(a, b):
    assert a.history_ == b.history_
    for name, value in a.objective_.state_dict().items():
        assert torch.equal(value, b.objective_.state_dict()[name]), name
    one, other = a._optimizer_state, b._optimizer_state
    assert one["param_groups"] == other["param_groups"]
    for key, state in one["state"].items():
        for name, value in state.items():
            same = torch.equal if isinstance(value, torch.Tensor) else (lambda p, q: p == q)
            if name not in ("prev_flat_grad", "old_dirs", "old_stps", "ro", "al"):
                assert same(value, other["state"][key][name]), name


@pytest.mark.parametrize("name", FITS)
def test_both_loops_give_the_same_bits(name, usual, loops):
    kind, options = FITS[name]
    model = kind(**{**SMALL, **options})
    direct = model.fit(X)
    assert set(loops) == {Steps}
    usual()
    other = kind(**{**SMALL, **options}).fit(X)
    assert loops[-1] is _TrainingEpochLoop
    assert_same(direct, other)


@pytest.mark.parametrize("direct_first", [True, False])
def test_either_loop_goes_on_after_the_other(direct_first, usual, monkeypatch, tmp_path):
    options = {**SMALL, "schedule": "plateau", "checkpoint_every": 2}
    whole = IRAE(**options).fit(X)
    plain = training._plain
    if not direct_first:
        usual()
    IRAE(**options, directory=tmp_path).set_params(epochs=2).fit(X)
    if direct_first:
        usual()
    else:
        monkeypatch.setattr(training, "_plain", plain)
    assert_same(whole, IRAE(**options, directory=tmp_path).fit(X))


@pytest.mark.parametrize(
    "options",
    [{"trainer": {"max_time": "00:01:00:00"}}, {"logger": "csv"}, {"precision": "bf16-mixed"}],
)
def test_where_others_may_look_at_the_steps_lightning_makes_them(options, loops, tmp_path):
    AE(**SMALL, **options, directory=tmp_path).fit(X)
    assert set(loops) == {_TrainingEpochLoop}


def test_a_step_asks_for_no_more_operations_than_before(usual):
    def asked():
        few, many = (
            counted(lambda epochs=epochs: IRAE(**{**SMALL, "epochs": epochs}).fit(X))
            for epochs in (1, 5)
        )
        return {name: many[name] - few[name] for name in ("operations", "reads")}

    asked()
    direct = asked()
    usual()
    before = asked()
    assert direct["operations"] <= before["operations"]
    assert direct["reads"] <= before["reads"]
