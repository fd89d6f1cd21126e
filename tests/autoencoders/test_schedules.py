"""Optimisers and schedules by name or function, validation, the end of a run, its checkpoints."""

import functools
import math

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemae.autoencoders import AE, IRAE, MCAE, NRAE, VAE, Term
from riemae.autoencoders.optimization import FACTORS, OPTIMIZERS
from riemae.exceptions import DeviceError, OptionError, ShapeError, TrainingError

SMALL = {"hidden": (8,), "epochs": 4, "batch_size": 16}


def data(n=40, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def weights(m):
    return torch.cat([p.flatten() for p in m.objective_.parameters()])


class Rates(Callback):
    """The learning rate of each step."""

    def __init__(self):
        self.values = []
        self.optimizer = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.optimizer = trainer.optimizers[0]
        self.values.append(self.optimizer.param_groups[0]["lr"])


def rates(**options):
    seen = Rates()
    AE(**{**SMALL, **options}, trainer={"callbacks": seen}).fit(data())
    return seen


class TestOptimisers:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_by_name(self, name):
        seen = rates(optimizer=name, lr=2e-3)
        assert isinstance(seen.optimizer, OPTIMIZERS[name])
        assert seen.values[0] == 2e-3

    def test_a_function_of_the_parameters(self):
        seen = rates(optimizer=functools.partial(torch.optim.Adagrad, lr=0.5))
        assert isinstance(seen.optimizer, torch.optim.Adagrad)
        assert seen.values[0] == 0.5

    def test_moments_go_on_with_the_present_rates(self):
        m = AE(**SMALL).fit(data())
        m.set_params(lr=0.125)
        seen = Rates()
        m.set_params(trainer={"callbacks": seen}).partial_fit(data())
        assert seen.values[0] == 0.125
        assert float(seen.optimizer.state[m.objective_.encoder[1][0].weight]["step"]) == 15

    @pytest.mark.parametrize(
        "wrong", [{"optimizer": "lion"}, {"schedule": "up"}, {"lr": 0.0}, {"weight_decay": -1.0}]
    )
    def test_unknown(self, wrong):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            AE(**SMALL, **wrong).fit(data())

    def test_a_function_that_returns_anything_else(self):
        with pytest.raises(OptionError, match="returns an Optimizer"):
            AE(**SMALL, optimizer=lambda parameters: 3).fit(data())


class TestSchedules:
    def test_warmup_rises_over_100_steps(self):
        seen = rates(schedule="warmup", epochs=40, lr=1.0e-3).values
        assert seen[:3] == pytest.approx([1e-5, 2e-5, 3e-5])
        assert seen[99:] == pytest.approx([1e-3] * 21)

    def test_warmup_cosine_ends_at_0(self):
        seen = rates(schedule="warmup_cosine", epochs=60, lr=1.0e-3).values
        assert max(seen) == pytest.approx(1e-3)
        assert int(np.argmax(seen)) in (99, 100)
        assert seen[-1] < 1e-6

    def test_plateau_halves_when_nothing_gets_lower(self):
        # A rate so small that no loss gets lower by the threshold of 1e-4.
        seen = rates(schedule="plateau", epochs=13, lr=1e-7, batch_size=40).values
        assert seen == pytest.approx([1e-7] * 12 + [5e-8])
        held = rates(schedule="plateau", epochs=13, lr=1e-7, validation_fraction=0.2).values
        assert held[-1] == 5e-8

    def test_a_function_of_the_optimizer(self):
        step = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
        seen = rates(schedule=step, lr=1.0e-3).values
        assert seen[0] == 1e-3
        assert seen[-1] == pytest.approx(1e-4)

    @pytest.mark.parametrize("name", FACTORS)
    def test_factors_run_from_0_to_1(self, name):
        factor = FACTORS[name]
        assert factor(0.0) == 0
        assert all(0 <= factor(t / 50) <= 1 for t in range(50))
        assert factor(0.999) == pytest.approx(1, abs=1e-4)

    def test_weights_of_terms_follow_the_progress(self):
        seen = []

        def halves(progress):
            seen.append(progress)
            return 0.5

        terms = {"relaxed_distortion": Term(0.4, schedule=halves)}
        x = data()
        half = AE(**SMALL, terms=terms).fit(x)
        # Three batches in each of four epochs.
        assert seen == pytest.approx([t / 12 for t in range(12)])
        fixed = AE(**SMALL, terms={"relaxed_distortion": 0.2}).fit(x)
        assert torch.equal(weights(half), weights(fixed))
        whole = 0.4 * half.history_["relaxed_distortion"][-1] + half.history_["reconstruction"][-1]
        assert half.history_["loss"][-1] == pytest.approx(whole, rel=1e-6)

    def test_beta(self):
        x = data()
        none = VAE(**SMALL, beta_schedule=lambda progress: 0.0).fit(x)
        assert torch.equal(weights(none), weights(VAE(**SMALL, beta=0.0).fit(x)))
        cycles = VAE(**SMALL, beta_schedule="cyclical").fit(x)
        assert not torch.equal(weights(cycles), weights(VAE(**SMALL).fit(x)))
        with pytest.raises(OptionError, match="schedule among"):
            VAE(**SMALL, beta_schedule="slow").fit(x)


class TestValidation:
    def test_data_of_ones_own(self):
        x, held = data(), data(seed=1)
        m = AE(**SMALL).fit(x, validation=held)
        assert len(m.history_["val_loss"]) == 4
        # The same weights as without: nothing of the validation data is trained on.
        last = AE(**SMALL, restore_best=False).fit(x, validation=held)
        assert torch.equal(weights(last), weights(AE(**SMALL).fit(x)))
        assert last.history_["val_loss"][-1] == pytest.approx(1 - last.score(held), rel=1e-9)

    def test_loaders(self):
        x = DataLoader(TensorDataset(torch.as_tensor(data())), batch_size=10)
        held = DataLoader(TensorDataset(torch.as_tensor(data(seed=1))), batch_size=10)
        assert "val_loss" in AE(**SMALL).fit(x, validation=held).history_

    def test_the_best_weights_are_kept(self):
        # So high a rate that the loss of the validation data goes up and down.
        settings = {**SMALL, "epochs": 30, "lr": 0.2}
        x, held = data(), data(seed=1)
        best = AE(**settings).fit(x, validation=held)
        losses = best.history_["val_loss"]
        assert int(np.argmin(losses)) < 29
        assert 1 - best.score(held) == pytest.approx(min(losses), rel=1e-9)
        last = AE(**settings, restore_best=False).fit(x, validation=held)
        assert 1 - last.score(held) == pytest.approx(losses[-1], rel=1e-9)

    def test_refusals(self):
        x = data()
        with pytest.raises(OptionError, match="validation data, or a share"):
            AE(**SMALL, validation_fraction=0.2).fit(x, validation=x)
        loader = DataLoader(TensorDataset(torch.as_tensor(x)), batch_size=10)
        with pytest.raises(OptionError, match="validation_fraction=0 with a DataLoader"):
            AE(**SMALL, validation_fraction=0.2).fit(loader)
        with pytest.raises(OptionError, match="weights=None with a DataLoader"):
            AE(**SMALL).fit(loader, weights=np.ones(40))


class Cut(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 5:
            raise InterruptedError


class TestCheckpoints:
    def done(self, folder):
        return torch.load(folder / "last.ckpt", weights_only=True)["epoch"] + 1

    def test_there_is_one_at_the_end(self, tmp_path):
        x = data()
        a = AE(**SMALL, directory=tmp_path).fit(x)
        assert self.done(tmp_path) == 4
        b = AE(**SMALL, directory=tmp_path).fit(x)
        assert torch.equal(weights(a), weights(b))
        assert a.history_ == b.history_

    def test_and_training_goes_on_from_it(self, tmp_path):
        x = data()
        AE(**SMALL, directory=tmp_path).fit(x)
        more = AE(**{**SMALL, "epochs": 7}, directory=tmp_path).fit(x)
        assert torch.equal(weights(more), weights(AE(**{**SMALL, "epochs": 7}).fit(x)))

    def test_fewer_epochs_than_it_has(self, tmp_path):
        AE(**SMALL, directory=tmp_path).fit(data())
        with pytest.raises(OptionError, match=r"epochs of at least 4.*got epochs = 2"):
            AE(**{**SMALL, "epochs": 2}, directory=tmp_path).fit(data())

    def test_a_run_that_stopped_early_is_over(self, tmp_path):
        settings = {**SMALL, "epochs": 60, "lr": 1e-9, "early_stopping": 3}
        settings["validation_fraction"] = 0.25
        a = AE(**settings, directory=tmp_path).fit(data())
        assert self.done(tmp_path) == a.n_epochs_ < 60
        b = AE(**settings, directory=tmp_path).fit(data())
        assert b.n_epochs_ == a.n_epochs_
        assert torch.equal(weights(a), weights(b))

    @pytest.mark.parametrize(
        "options",
        [
            {"schedule": "plateau", "optimizer": "radam"},
            {"schedule": "warmup_cosine", "warmup": 10},
            {"terms": {"absolute_isometry": Term(0.1, schedule="linear"), "separation": 0.1}},
            {"validation_fraction": 0.25, "lr": 0.2},
        ],
    )
    def test_runs_resume_to_the_bit(self, tmp_path, options):
        x = data()
        settings = {**SMALL, "epochs": 8, "checkpoint_every": 2, **options}
        with pytest.raises(InterruptedError):
            IRAE(**settings, directory=tmp_path / "a", trainer={"callbacks": Cut()}).fit(x)
        resumed = IRAE(**settings, directory=tmp_path / "a").fit(x)
        whole = IRAE(**settings, directory=tmp_path / "b").fit(x)
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.history_ == whole.history_

    def test_a_plateau_is_counted_across_the_interruption(self, tmp_path):
        settings = {**SMALL, "epochs": 14, "lr": 1e-7, "schedule": "plateau", "batch_size": 40}
        for cut in (True, False):
            seen = Rates()
            callbacks = [seen, Cut()] if cut else [seen]
            m = AE(**settings, directory=tmp_path, checkpoint_every=2)
            m.set_params(trainer={"callbacks": callbacks})
            if cut:
                with pytest.raises(InterruptedError):
                    m.fit(data())
            else:
                m.fit(data())
                assert seen.values == pytest.approx([1e-7] * 8 + [5e-8] * 2)

    def test_weights_belong_to_the_run(self, tmp_path):
        w = np.arange(40.0)
        AE(**SMALL, directory=tmp_path).fit(data(), weights=w)
        AE(**SMALL, directory=tmp_path).fit(data(), weights=w)
        with pytest.raises(TrainingError, match="other data"):
            AE(**SMALL, directory=tmp_path).fit(data())

    def test_epochs_belong_to_a_schedule(self, tmp_path):
        terms = {"relaxed_distortion": Term(0.1, schedule="cosine")}
        AE(**SMALL, terms=terms, directory=tmp_path).fit(data())
        with pytest.raises(TrainingError, match="other settings"):
            AE(**{**SMALL, "epochs": 9}, terms=terms, directory=tmp_path).fit(data())


class TestDevices:
    @pytest.mark.parametrize("device", ["cuda:77", "tpu", 3.5])
    def test_absent(self, device):
        with pytest.raises(DeviceError, match="device of this machine"):
            AE(**SMALL, device=device).fit(data())


class TestKernel:
    def test_a_bandwidth_is_a_gaussian_in_units_of_the_extent(self):
        x = data()
        extent = float(((x - x.mean(0)) ** 2).sum(1).mean())

        def own(neighbor, centre):
            return (-(neighbor - centre).square().sum(1) / (2 * 0.5**2 * extent)).exp()

        by_number = NRAE(**SMALL, kernel=0.5).fit(x)
        by_function = NRAE(**SMALL, kernel=own).fit(x)
        assert torch.allclose(weights(by_number), weights(by_function), atol=1e-12)
        assert not torch.allclose(weights(by_number), weights(NRAE(**SMALL).fit(x)), atol=1e-6)
        ones = NRAE(**SMALL, kernel=lambda neighbor, centre: torch.ones(len(centre))).fit(x)
        assert torch.equal(weights(ones), weights(NRAE(**SMALL).fit(x)))

    @pytest.mark.parametrize("kernel", [0.0, -1, "gaussian", math.inf])
    def test_others(self, kernel):
        with pytest.raises(OptionError, match="kernel"):
            NRAE(**SMALL, kernel=kernel).fit(data())


class TestProbes:
    @pytest.mark.parametrize("kind", [IRAE, MCAE])
    def test_automatic_ones_are_exact_for_two_dimensions(self, kind):
        x = data(d=5)
        exact = kind(**SMALL, probes=None).fit(x)
        assert torch.equal(weights(kind(**SMALL).fit(x)), weights(exact))
        # And one probe for more.
        one = kind(**SMALL, latent_dim=3, probes=1).fit(x)
        assert torch.equal(weights(kind(**SMALL, latent_dim=3).fit(x)), weights(one))


def test_a_module_of_ones_own_trainer_clips_too():
    from lightning.pytorch import Trainer

    from riemae.autoencoders import GeometricModule

    class Largest(Callback):
        value = 0.0

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norm = float(torch.stack([g.norm() for g in grads]).norm())
                self.value = max(self.value, norm)

    x = torch.as_tensor(data()).float()
    largest = Largest()
    module = GeometricModule(
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3)),
        data=x,
        terms={"relaxed_distortion": 1e4},
        optimizer="sgd",
    )
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[largest], **quiet)
        trainer.fit(module, DataLoader(TensorDataset(x), batch_size=20))
    assert 0 < largest.value <= 1 + 1e-5


class TestMistakes:
    """What a function of the user's returns is looked at where it is called."""

    @pytest.mark.parametrize(
        ("model", "error", "text"),
        [
            (AE(**SMALL, schedule=lambda optimizer: None), OptionError, "scheduler"),
            (
                AE(
                    **SMALL,
                    terms={"relaxed_distortion": Term(0.1, schedule=lambda progress: None)},
                ),
                OptionError,
                "factor of 'relaxed_distortion'",
            ),
            (VAE(**SMALL, beta_schedule=lambda progress: math.nan), OptionError, "'beta'"),
            (NRAE(**SMALL, kernel=lambda a, b: torch.ones(len(a), 3)), ShapeError, "kernel"),
            (NRAE(**SMALL, kernel=lambda a, b: 1.0), OptionError, "kernel"),
            (IRAE(**SMALL, probes=1.5), OptionError, "probes"),
            (IRAE(**SMALL, probes="all"), OptionError, "probes"),
        ],
    )
    def test_typed(self, model, error, text):
        with pytest.raises(error, match=text):
            model.fit(np.random.default_rng(0).normal(size=(40, 3)))
