"""Training on lightning: it is silent, can be resumed bit for bit, runs on several processes, and
keeps the best weights when the loss explodes."""

import html
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemae.autoencoders import AE, IRAE, MCAE, NRAE, VAE, GeometricModule, Variation
from riemae.autoencoders.batches import Batches, derived_seed
from riemae.autoencoders.history import History
from riemae.exceptions import (
    DecoderError,
    DivergenceWarning,
    DTypeError,
    FileError,
    OptionError,
    RiemaeError,
    TrainingError,
)
from riemae.numerics.bars import bars

SMALL = {"hidden": (8,), "epochs": 4, "batch_size": 16}
# Weight 0: the term is computed in each process, by its own probes and its own mean, and changes no
# weights.
TOGETHER = {**SMALL, "epochs": 20, "lr": 5e-3, "weight": 0.0}


def data(n=40, d=3, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def weights(m):
    return torch.cat([p.flatten() for p in m.objective_.parameters()])


class TestBatches:
    def test_every_sample_once_an_epoch_in_an_order_of_its_own(self):
        x = torch.arange(10.0)[:, None]
        batches = Batches(x, 4, seed=0)
        seen = []
        for epoch in range(3):
            batches.set_epoch(epoch)
            parts = [b["x"].flatten() for b in batches]
            assert [len(p) for p in parts] == [4, 4, 2]
            assert len(batches) == 3
            seen.append(torch.cat(parts))
            assert torch.equal(seen[-1].sort().values, x.flatten())
        assert not torch.equal(seen[0], seen[1])
        batches.set_epoch(1)
        assert torch.equal(torch.cat([b["x"].flatten() for b in batches]), seen[1])

    def test_lightning_tells_the_epoch(self):
        class Orders(Callback):
            def __init__(self):
                self.first = []

            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if batch_idx == 0:
                    self.first.append(batch["x"].flatten().tolist())

        orders, x = Orders(), data()
        AE(**SMALL, trainer={"callbacks": orders}).fit(x)
        batches = Batches(torch.as_tensor(x), 16, derived_seed(0, 4))
        for epoch, first in enumerate(orders.first):
            batches.set_epoch(epoch)
            assert next(iter(batches))["x"].flatten().tolist() == first

    def test_processes_share_each_batch(self, monkeypatch):
        from torch import distributed

        x = torch.arange(10.0)[:, None]
        whole = [set(b["x"].flatten().tolist()) for b in Batches(x, 4, seed=3)]
        monkeypatch.setattr(distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        shares = []
        for rank in (0, 1):
            monkeypatch.setattr(distributed, "get_rank", lambda r=rank: r)
            shares.append([set(b["x"].flatten().tolist()) for b in Batches(x, 4, seed=3)])
        assert [a | b for a, b in zip(*shares, strict=True)] == whole
        assert not any(a & b for a, b in zip(*shares, strict=True))

    def test_seeds_differ_and_fit_the_generator(self):
        seeds = {derived_seed(a, b) for a in range(60) for b in range(60)}
        assert len(seeds) == 3600
        assert 0 <= min(seeds)
        assert max(seeds) < 2**32


class TestSilence:
    def test_nothing_is_said_unless_asked(self, capfd, caplog):
        with caplog.at_level("DEBUG"):
            IRAE(**SMALL).fit(data())
            AE(**SMALL).fit(DataLoader(TensorDataset(torch.as_tensor(data())), batch_size=10))
        out, err = capfd.readouterr()
        assert out == ""
        assert err == ""
        assert not [r for r in caplog.records if r.name.startswith("lightning")]

    def test_a_bar_with_the_terms_when_asked(self, capfd):
        IRAE(**SMALL, progress=True).fit(data())
        out, err = capfd.readouterr()
        assert out == ""  # stdout belongs to what a program prints
        assert "4/4" in err
        assert "relaxed_distortion" in err

    def test_in_a_notebook_a_widget_or_the_last_state(self, monkeypatch, capfd):
        """As rich sees a notebook; without ipywidgets it would warn in every call."""
        from rich import console

        monkeypatch.setattr(console, "_is_jupyter", lambda: True)
        find = importlib.util.find_spec
        for there in (False, True):
            known = {"ipywidgets": object() if there else None}
            monkeypatch.setattr(
                importlib.util, "find_spec", lambda name, known=known: known.get(name, find)
            )
            assert bars().console.is_jupyter == there
            assert bars(only_where_seen=True).disable != there
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with bars() as shown:
            shown.update(shown.add_task("work", total=3), completed=3)
        out, err = capfd.readouterr()
        assert out == ""
        assert "100%" in err

    def test_history_and_report_as_tables(self):
        m = IRAE(**SMALL).fit(data())
        text = m.history_._repr_html_()
        assert "Training, 4 epochs" in text
        assert text.count("<tr>") == 5
        for name, values in m.history_.items():
            assert name in text
            assert f"{values[-1]:.4g}" in text
        assert f"The lowest loss is {min(m.history_['loss']):.4g}" in text
        assert isinstance(m.history_, dict)
        long = History(loss=[float(k) for k in range(100)], late=[1.0])
        assert long._repr_html_().count("<tr>") == 11
        assert "0 epochs" in History()._repr_html_()
        page = m.report_._repr_html_()
        assert f"{m.report_.trustworthiness:.4g}" in page
        for sentence in m.report_.sentences:
            assert html.escape(sentence) in page

    def test_settings_of_lightning_are_restored(self):
        import logging

        level = logging.getLogger("lightning.pytorch").level
        AE(**SMALL).fit(data())
        assert logging.getLogger("lightning.pytorch").level == level


class TestLightning:
    def module(self, x, **options):
        encoder, decoder = (
            nn.Linear(3, 2),
            nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 3)),
        )
        return GeometricModule(encoder, decoder, data=x, **options)

    def trainer(self, **options):
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(
            max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet, **options
        )

    def fit(self, trainer, *args):
        with warnings.catch_warnings():  # the user's own trainer may warn
            warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
            warnings.filterwarnings("ignore", message=".*(num_workers|LeafSpec).*")
            trainer.fit(*args)

    def test_a_trainer_and_a_loader_of_ones_own(self):
        x = torch.as_tensor(data(dtype=np.float32))
        module = self.module(x, terms={"relaxed_distortion": 0.1, "extrinsic_curvature": 1e-3})
        self.fit(
            self.trainer(),
            module,
            DataLoader(TensorDataset(x), batch_size=20),
            DataLoader(x, batch_size=40),
        )
        assert len(module.history["loss"]) == 3
        assert "val_relaxed_distortion" in module.history
        assert module(x).shape == x.shape
        assert module.manifold.metric(torch.zeros(1, 2)).shape == (1, 2, 2)

    def test_neighbours_come_in_mappings(self):
        x = torch.as_tensor(data(dtype=np.float32))
        module = self.module(x, variation=Variation(order=2))
        self.fit(
            self.trainer(),
            module,
            DataLoader([{"x": x, "neighbor": x.roll(1, 0)}], batch_size=None),
        )
        assert "neighborhood" in module.history
        with pytest.raises(OptionError, match="neighbours"):
            self.fit(
                self.trainer(),
                self.module(x, variation=Variation(order=1)),
                DataLoader(x, batch_size=40),
            )
        with pytest.raises(DTypeError, match="batches"):
            self.fit(self.trainer(), self.module(x), DataLoader(["text"]))

    def test_batch_norm_is_refused_before_training(self):
        x = torch.as_tensor(data(dtype=np.float32))
        decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.1), nn.Linear(8, 3))
        module = GeometricModule(
            nn.Linear(3, 2), decoder, data=x, terms={"relaxed_distortion": 0.1}
        )
        with pytest.raises(DecoderError, match="Dropout"):
            self.fit(self.trainer(), module, DataLoader(x, batch_size=40))

    @pytest.mark.parametrize("kind", [IRAE, NRAE, MCAE, VAE])
    def test_mixed_precision_takes_derivatives_in_full(self, kind):
        x = data(dtype=np.float32)
        whole, mixed = kind(**SMALL).fit(x), kind(**SMALL, precision="bf16-mixed").fit(x)
        assert abs(mixed.history_["loss"][-1] / whole.history_["loss"][-1] - 1) < 0.05
        assert weights(mixed).dtype == torch.float32
        # At the first step weights agree: the term itself has the accuracy of float32 codes in
        # bf16.
        if kind is MCAE:
            ratio = (
                mixed.history_["extrinsic_curvature"][0] / whole.history_["extrinsic_curvature"][0]
            )
            assert abs(ratio - 1) < 0.05

    def test_half_precision_throughout_is_refused(self):
        with pytest.raises(DTypeError, match="mixed"):
            IRAE(**SMALL, precision="bf16-true").fit(data(dtype=np.float32))

    def test_early_stopping_counts_epochs_without_progress(self):
        m = AE(**{**SMALL, "epochs": 60}, lr=1e-9, early_stopping=3, validation_fraction=0.25).fit(
            data()
        )
        assert m.n_epochs_ < 60
        assert "val_loss" in m.history_
        m = AE(**{**SMALL, "epochs": 300}, lr=0.03, early_stopping=2).fit(data())
        loss = m.history_["loss"]
        assert len(loss) < 300
        assert min(loss) == min(loss[:-2])

    def test_validation_of_neighbourhoods(self):
        m = NRAE(**SMALL, neighbors=3, validation_fraction=0.25).fit(data())
        assert len(m.history_["val_neighborhood"]) == 4

    def test_gradients_are_clipped(self):
        class Norms(Callback):
            def __init__(self):
                self.values = []

            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
                self.values.append(float(torch.stack([g.norm() for g in grads]).norm()))

        free, bound = Norms(), Norms()
        AE(**SMALL, trainer={"callbacks": [free]}).fit(data())
        a = AE(**SMALL, clip=1e-3, trainer={"callbacks": [bound]}).fit(data())
        assert max(free.values) > 1e-2
        assert a.n_epochs_ == 4

    def test_cosine_schedule_ends_at_zero(self):
        class Rates(Callback):
            def __init__(self):
                self.values = []

            def on_train_epoch_start(self, trainer, pl_module):
                self.values.append(trainer.optimizers[0].param_groups[0]["lr"])

        rates = Rates()
        AE(**SMALL, lr=1.0e-3, schedule="cosine", trainer={"callbacks": rates}).fit(data())
        expected = [5e-4 * (1 + np.cos(np.pi * e / 4)) for e in range(4)]
        assert np.allclose(rates.values, expected)

    def test_csv_and_tensorboard_logs(self, tmp_path):
        m = IRAE(**SMALL, logger="csv", directory=tmp_path / "csv").fit(data())
        rows = (tmp_path / "csv" / "log" / "version_0" / "metrics.csv").read_text().splitlines()
        header = rows[0].split(",")
        losses = [float(row.split(",")[header.index("loss")]) for row in rows[1:]]
        assert np.allclose(losses, m.history_["loss"], rtol=1e-5)
        assert "relaxed_distortion" in header
        AE(**SMALL, logger="tensorboard", directory=tmp_path / "board").fit(data())
        assert list((tmp_path / "board" / "log").rglob("events.out.*"))
        with pytest.raises(OptionError):
            AE(**SMALL, logger="printer", directory=tmp_path / "other").fit(data())


class TestExplosions:
    def test_the_best_weights_are_kept_and_it_says_so(self):
        class Blow(Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch == 5:
                    for group in trainer.optimizers[0].param_groups:
                        group["lr"] = 1e30

        x = data()
        with pytest.warns(DivergenceWarning, match=r"weights\. The best weights"):
            m = AE(**{**SMALL, "epochs": 20}, trainer={"callbacks": Blow()}).fit(x)
        assert m.n_epochs_ == 5
        assert np.isfinite(m.transform(x)).all()
        # The weights are those from which the best epoch started.
        best = int(np.argmin(m.history_["loss"]))
        assert best > 0
        assert torch.equal(weights(m), weights(AE(**{**SMALL, "epochs": best}).fit(x)))

    def test_nothing_to_keep_is_an_error(self):
        with pytest.raises(TrainingError, match=r"lr .*weights\. There are no"):
            AE(**{**SMALL, "batch_size": 5}, lr=1e30).fit(data())

    def test_a_term_that_is_not_finite_is_named(self):
        from riemae.autoencoders import Term

        with pytest.raises(TrainingError, match="nan"):
            AE(**SMALL, terms={"mine": Term(1.0, lambda M, z: z.sum() * float("nan"))}).fit(data())


# All that is random: order, neighbours, probes and mixup.
MIXED = {"hidden": (8,), "batch_size": 16, "terms": {"relaxed_distortion": 0.1}}
SCRIPT = f"""
import sys, numpy as np, torch
torch.set_num_threads(1)
from riemae.autoencoders import NRAE
x = np.random.default_rng(0).normal(size=(40, 3))
NRAE(**{MIXED}, epochs=100_000, directory=sys.argv[1], checkpoint_every=1).fit(x)
"""


class TestResuming:
    def test_a_finished_run_is_taken_as_it_is(self, tmp_path):
        a = AE(**SMALL, directory=tmp_path, checkpoint_every=1).fit(data())
        b = AE(**SMALL, directory=tmp_path, checkpoint_every=1).fit(data())
        assert torch.equal(weights(a), weights(b))
        assert b.history_ == a.history_

    @pytest.mark.parametrize(
        "options",
        [
            {"early_stopping": 50, "validation_fraction": 0.2},
            {"schedule": "cosine", "clip": 0.1, "logger": "csv"},
            {"precision": "bf16-mixed"},
        ],
    )
    def test_every_option_resumes_to_the_bit(self, tmp_path, options):
        class Cut(Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch == 5:
                    raise InterruptedError

        x = data(dtype=np.float32)
        settings = {**SMALL, "epochs": 8, "checkpoint_every": 2, **options}
        with pytest.raises(InterruptedError):
            IRAE(**settings, directory=tmp_path / "a", trainer={"callbacks": Cut()}).fit(x)
        resumed = IRAE(**settings, directory=tmp_path / "a").fit(x)
        whole = IRAE(**settings, directory=tmp_path / "b").fit(x)
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.history_ == whole.history_

    def test_warm_starts_leave_checkpoints_alone(self, tmp_path):
        m = AE(**SMALL, directory=tmp_path, checkpoint_every=1, warm_start=True).fit(data())
        before = (tmp_path / "last.ckpt").read_bytes()
        first = weights(m).clone()
        m.fit(data())
        m.partial_fit(data())
        assert m.n_epochs_ == 9
        assert not torch.equal(first, weights(m))
        assert (tmp_path / "last.ckpt").read_bytes() == before

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path):
        AE(**SMALL, directory=tmp_path, checkpoint_every=1).fit(data())
        for m, x in (
            (AE(**SMALL, lr=0.1), data()),
            (AE(**SMALL), data(seed=1)),
            (IRAE(**SMALL), data()),
        ):
            with pytest.raises(TrainingError, match="other settings or other data"):
                m.set_params(directory=tmp_path).fit(x)
        (tmp_path / "last.ckpt").write_bytes(b"torn")
        with pytest.raises(TrainingError, match="cannot be read"):
            AE(**SMALL, directory=tmp_path).fit(data())


def epochs_done(directory):
    return torch.load(directory / "last.ckpt", weights_only=True)["epoch"] + 1


@dataclass
class Killed:
    """A fit of 100,000 epochs in another process, refused to a second one and then killed."""

    directory: Path
    process: int
    second: NRAE
    refusal: FileError
    more: int  # epochs of the first after the refusal

    def copy(self, to):
        shutil.copytree(self.directory, to, dirs_exist_ok=True)
        return epochs_done(to)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("killed")
    job = subprocess.Popen([sys.executable, "-c", SCRIPT, str(directory)])

    def wait_for(done):
        deadline = time.monotonic() + 120
        while not done():
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    try:
        wait_for((directory / "last.ckpt").exists)
        second = NRAE(**MIXED, epochs=100_000, directory=directory)
        with pytest.raises(FileError) as caught:
            second.fit(data())
        before = epochs_done(directory)
        wait_for(lambda: epochs_done(directory) >= before + 3)
        os.kill(job.pid, signal.SIGKILL)
    finally:
        job.kill()
        job.wait()
    more = epochs_done(directory) - before
    return Killed(directory, job.pid, second, caught.value, more)


class TestTwoFitsAtOnce:
    def test_the_second_is_refused_at_once_and_the_first_goes_on(self, killed):
        message = (
            rf"fit: expected directory=.* got .* process {killed.process} .* remove .*fit\.lock"
        )
        assert re.search(message, str(killed.refusal))
        assert not hasattr(killed.second, "objective_")
        assert killed.more >= 3

    def test_a_killed_one_leaves_nothing_that_blocks(self, killed, tmp_path):
        done = killed.copy(tmp_path)
        assert (tmp_path / "fit.lock").exists()
        m = NRAE(**MIXED, epochs=done + 2, directory=tmp_path).fit(data())
        assert m.n_epochs_ == done + 2
        assert not (tmp_path / "fit.lock").exists()

    def test_killed_and_resumed_is_uninterrupted_to_the_bit(self, killed, tmp_path):
        # One process trained towards 100,000 epochs and was killed somewhere; another goes on from
        # what it left.
        done = killed.copy(tmp_path)
        resumed = NRAE(**MIXED, epochs=done + 5, directory=tmp_path).fit(data())
        whole = NRAE(**MIXED, epochs=done + 5).fit(data())
        assert done >= 1
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.history_ == whole.history_

    def test_the_model_that_is_refused_stays_as_it_was(self, tmp_path):
        class Again(Callback):
            def __init__(self, model):
                self.model, self.errors = model, []

            def on_train_epoch_start(self, trainer, pl_module):
                try:
                    self.model.fit(data(seed=1))
                except FileError as reason:
                    self.errors.append(reason)

        other = AE(**SMALL).fit(data(seed=2)).set_params(directory=tmp_path)
        before = weights(other).clone()
        again = Again(other)
        m = AE(**SMALL, directory=tmp_path, trainer={"callbacks": again}).fit(data())
        assert len(again.errors) == m.n_epochs_ == 4
        assert torch.equal(weights(other), before)

    def test_nothing_is_locked_where_nothing_is_written(self, tmp_path):
        class Warm(Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                warm.fit(data())

        warm = AE(**SMALL, warm_start=True).fit(data()).set_params(directory=tmp_path)
        m = AE(**SMALL, directory=tmp_path, trainer={"callbacks": Warm()}).fit(data())
        assert (m.n_epochs_, warm.n_epochs_) == (4, 20)

    def test_restarts_are_one_fit(self, tmp_path):
        settings = {**SMALL, "restarts": 2, "directory": tmp_path, "checkpoint_every": 1}

        class Again(Callback):
            errors = 0

            def on_train_epoch_start(self, trainer, pl_module):
                if trainer.current_epoch == 0:
                    try:
                        NRAE(**settings).fit(data())
                    except FileError as reason:
                        Again.errors += f"directory={str(tmp_path)!r}" in str(reason)

        NRAE(**settings, trainer={"callbacks": Again()}).fit(data())
        assert Again.errors == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["restart-0", "restart-1"]

    def test_what_is_made_for_the_lock_alone_goes_with_it(self, tmp_path):
        with pytest.raises(RiemaeError):
            AE(**SMALL, directory=tmp_path / "a" / "b").fit(np.full((40, 3), np.nan))
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_place_of_the_directory(self, tmp_path):
        (tmp_path / "a").write_text("mine")
        with pytest.raises(FileError, match="fit: expected a directory .* Choose another"):
            AE(**SMALL, directory=tmp_path / "a").fit(data())
        assert (tmp_path / "a").read_text() == "mine"


# Two processes that are forked, and two of which lightning starts one by the script itself. Each
# strategy fits twice: the second time, it finds a finished run. Those that are forked also train
# with a term, and the same is done by one process.
RANKS = f"""
import os, sys, numpy as np, torch
torch.set_num_threads(1)
from riemae.autoencoders import AE, IRAE
x = np.random.default_rng(0).normal(size=(40, 3))
first = "LOCAL_RANK" not in os.environ
for strategy in ("ddp_fork", "ddp") if first else ("ddp",):
    trainer = {{"devices": 2, "strategy": strategy}}
    directory = os.path.join(sys.argv[1], strategy)
    for _ in range(2):
        m = AE(**{SMALL}, directory=directory, checkpoint_every=1, trainer=trainer).fit(x)
        # In one piece: several processes write to the same pipe.
        os.write(1, f"{{strategy}} {{m.n_epochs_}} {{float(m.score(x))}}\\n".encode())
    if strategy == "ddp_fork":
        x64 = np.random.default_rng(0).normal(size=(64, 3))
        settings = {TOGETHER}
        for name, given in (("two", trainer), ("one", None)):  # once trained, nothing can be forked
            m = IRAE(**settings, trainer=given).fit(x64)
            weights = torch.nn.utils.parameters_to_vector(m.decoder_.parameters())
            np.savez(os.path.join(sys.argv[2], name), weights=weights.detach(), **m.history_)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder with what several processes and one have trained, and what the script printed."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "fit.py").write_text(RANKS)
    job = subprocess.run(
        [sys.executable, folder / "fit.py", folder / "runs", folder],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert job.returncode == 0, job.stderr
    return folder, job.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_processes_of_one_run_share_its_directory(ranks):
    folder, printed = ranks
    said = [line.split() for line in printed.splitlines()]
    # With fork, one process fits and two train; with ddp, two fit.
    assert sorted(words[:2] for words in said) == [["ddp", "4"]] * 4 + [["ddp_fork", "4"]] * 2
    assert len({score for *_, score in said}) == 1
    for strategy in ("ddp", "ddp_fork"):
        assert [path.name for path in (folder / "runs" / strategy).iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_reach_the_loss_of_one(ranks):
    one, two = (np.load(ranks[0] / f"{name}.npz") for name in ("one", "two"))
    assert len(two["loss"]) == TOGETHER["epochs"]
    # The same batches, split between the two, with averaged gradients: equal up to rounding.
    assert np.allclose(one["reconstruction"], two["reconstruction"], rtol=1e-6)
    assert np.allclose(one["weights"], two["weights"], atol=1e-6)
    # The term itself is estimated from other probes and half batches: equal within noise.
    a, b = (np.mean(m["relaxed_distortion"]) for m in (one, two))
    assert abs(a / b - 1) < 0.2


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.skipif(
    not os.environ.get("RIEMAE_THOROUGH"), reason="as with forked processes, in half a minute"
)
def test_two_spawned_processes_share_a_directory(tmp_path):
    trainer = {"devices": 2, "strategy": "ddp_spawn"}
    m = AE(**SMALL, directory=tmp_path, checkpoint_every=1, trainer=trainer).fit(data())
    assert m.n_epochs_ == SMALL["epochs"]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
