"""Data in all forms that fit and transform take give the same codes. Others are refused with an
error that says what to pass."""

import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from riemae.autoencoders import AE, IRAE, NRAE, ContractiveAE, checkpoints
from riemae.exceptions import (
    DataError,
    DTypeError,
    NonFiniteError,
    OptionError,
    RiemaeError,
    ShapeError,
)

SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}


def data(n=40, d=3):
    return np.random.default_rng(0).normal(size=(n, d)) * (
        np.random.default_rng(1).random((n, d)) < 0.6
    )


class Items(Dataset):
    """A map-style dataset."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    """A dataset without a length."""

    def __iter__(self):
        return iter(torch.zeros(4, 2))


class Cells:
    """The parts of an AnnData that riemae uses."""

    isbacked = False

    def __init__(self, X, backed=None):
        self.X, self.backed = X, backed
        self.isbacked = backed is not None

    def to_memory(self):
        return Cells(self.backed)

    def __iter__(self):
        raise AssertionError("nobody walks through cells one by one")

    def __len__(self):
        return 40


@pytest.fixture
def anndata(monkeypatch):
    package = types.ModuleType("anndata")
    package.AnnData = Cells
    monkeypatch.setitem(sys.modules, "anndata", package)


class TestForms:
    x = data()
    plain = AE(**SMALL).fit(data())

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: np.ascontiguousarray(x[::-1])[::-1],
            lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1],
            lambda x: np.asfortranarray(x),
            lambda x: x.tolist(),
            pandas.DataFrame,
            scipy.sparse.csr_matrix,
            scipy.sparse.csc_array,
            scipy.sparse.coo_matrix,
            scipy.sparse.lil_array,
        ],
        ids=[
            "rows reversed",
            "columns reversed",
            "Fortran",
            "list",
            "table",
            "csr",
            "csc",
            "coo",
            "lil",
        ],
    )
    def test_arrays_of_all_kinds_give_the_same_codes(self, make):
        x = make(self.x)
        m = AE(**SMALL).fit(x)
        assert isinstance(m.transform(x), np.ndarray)
        assert np.array_equal(m.transform(x), self.plain.transform(self.x))
        assert m.score(x) == self.plain.score(self.x)

    def test_what_is_read_only_or_ours_is_left_alone(self):
        x = self.x[::-1]
        x.flags.writeable = False
        before = x.copy()
        AE(**SMALL).fit(x)
        assert np.array_equal(x, before)

    @pytest.mark.parametrize(
        "make",
        [
            lambda t: t.to_sparse(),
            lambda t: t.to_sparse_csr(),
            lambda t: t.flip(0).flip(0),
            TensorDataset,
            lambda t: TensorDataset(t, torch.arange(len(t))),
            lambda t: TensorDataset(t.to_sparse()),
            lambda t: Items(list(t)),
            lambda t: Items([(row, "label") for row in t]),
            lambda t: Items([[row.numpy(), 1] for row in t]),
            lambda t: Items([{"x": row, "y": 0} for row in t]),
        ],
        ids=[
            "coo",
            "csr",
            "flipped",
            "one",
            "labels",
            "sparse",
            "rows",
            "tuples",
            "arrays",
            "mappings",
        ],
    )
    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
    def test_tensors_and_datasets(self, make):
        x = make(torch.as_tensor(self.x))
        m = AE(**SMALL).fit(x)
        assert isinstance(m.transform(x), torch.Tensor)
        assert np.array_equal(m.transform(x).numpy(), self.plain.transform(self.x))

    @pytest.mark.parametrize(
        "make", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_array, None]
    )
    def test_cells_are_read_from_X_at_once(self, anndata, make):
        cells = Cells(None, backed=self.x) if make is None else Cells(make(self.x))
        m = AE(**SMALL).fit(cells)
        assert np.array_equal(m.transform(cells), self.plain.transform(self.x))

    def test_cells_without_values(self, anndata):
        with pytest.raises(DataError, match=r"values in X.*adata\.layers"):
            AE(**SMALL).fit(Cells(None))

    @pytest.mark.parametrize(
        "x",
        [
            Cells(data()),  # an unknown object, because anndata is not imported
            iter([1, 2]),
            {"x": [[1.0]]},
            "data.csv",
            b"data",
            None,
            5,
            torch.empty(3, 2, device="meta"),
            Items([("a", 1), ("b", 2)]),
            Items([None, None]),
            Items([torch.zeros(2), torch.zeros(3)]),
            Items([]),
            Stream(),
            np.array([[object()]]),
            torch.zeros(4, 2, dtype=torch.complex64),
        ],
        ids=lambda x: type(x).__name__,
    )
    def test_what_is_no_data_is_refused_at_once(self, x):
        with pytest.raises((RiemaeError, ValueError, TypeError)) as caught:
            AE(**SMALL).fit(x)
        if not isinstance(x, np.ndarray):  # the error for arrays is that of scikit-learn
            assert isinstance(caught.value, RiemaeError), caught.value
            assert caught.value.expected

    def test_sparse_data_with_holes(self):
        x = self.x.copy()
        x[3, 1] = np.nan
        with pytest.raises(NonFiniteError, match=r"first: \[3\]"):
            AE(**SMALL).fit(scipy.sparse.csr_matrix(x))

    def test_codes_in_tables_and_other_forms(self):
        z = self.plain.transform(self.x)
        expected = self.plain.inverse_transform(z)
        for codes in (
            pandas.DataFrame(z),
            z[::-1][::-1],
            z.tolist(),
            pandas.DataFrame(z, columns=["u", "v"]),
        ):
            assert np.array_equal(self.plain.inverse_transform(codes), expected)
        assert torch.equal(
            self.plain.inverse_transform(torch.as_tensor(z)), torch.as_tensor(expected)
        )
        table = AE(**SMALL).set_output(transform="pandas").fit(self.x)
        codes = table.transform(self.x)
        assert isinstance(codes, pandas.DataFrame)
        assert np.array_equal(table.inverse_transform(codes), expected)
        for bad, error in (
            (pandas.DataFrame({"a": ["x"], "b": ["y"]}), DTypeError),
            ([["x", "y"]], DTypeError),
            (None, DTypeError),
            (z[:, :1], ShapeError),
            (z * np.nan, NonFiniteError),
        ):
            with pytest.raises(error):
                self.plain.inverse_transform(bad)


class TestOptions:
    @pytest.mark.parametrize("hidden", [8, np.int64(8), [8], (8,)])
    def test_one_width_is_one_layer(self, hidden):
        m = AE(**{**SMALL, "hidden": hidden}).fit(data())
        assert np.array_equal(m.transform(data()), AE(**SMALL).fit(data()).transform(data()))
        assert m.get_params()["hidden"] is hidden

    @pytest.mark.parametrize("hidden", [0, -3, True, 2.5, "8", None, (8, 0), (8, "a")])
    def test_widths_that_are_none(self, hidden):
        with pytest.raises(OptionError, match="hidden"):
            AE(**{**SMALL, "hidden": hidden}).fit(data())

    @pytest.mark.parametrize("clip", [float("nan"), -1, -1.0, 0, float("inf"), "a", True])
    def test_clips_that_are_none(self, clip):
        with pytest.raises(OptionError, match="clip > 0"):
            AE(**SMALL, clip=clip).fit(data())

    @pytest.mark.parametrize("weight", [None, "a", float("nan"), float("inf"), [1.0]])
    @pytest.mark.parametrize("kind", [ContractiveAE, IRAE, NRAE])
    def test_weights_that_are_none(self, kind, weight):
        with pytest.raises(OptionError, match="weight as a finite number"):
            kind(**SMALL, weight=weight).fit(data())

    @pytest.mark.parametrize(
        ("fraction", "n"),
        [
            (0.995, 120),
            (0.99, 40),
            (0.999, 10),
            (-0.1, 40),
            (1.0, 40),
            (None, 40),
            (float("nan"), 9),
        ],
    )
    def test_fractions_that_leave_nothing(self, fraction, n):
        with pytest.raises(OptionError, match="validation_fraction"):
            AE(**SMALL, validation_fraction=fraction).fit(data(n))


SLOW = """
import sys, time, numpy as np, torch
from riemae.autoencoders import AE
real, count = torch.save, []
def slow(content, stream):
    real(content, stream)
    count.append(1)
    if len(count) == 3:  # all but the last bytes of the third
        stream.truncate(stream.tell() - 100)
        stream.flush()
        print("writing", flush=True)
        time.sleep(60)
torch.save = slow
AE(hidden=(8,), epochs=50, batch_size=16, directory=sys.argv[1], checkpoint_every=1).fit(
    np.random.default_rng(0).normal(size=(40, 3)))
"""


class Stop(Callback):
    """Presses Ctrl-C."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)


class TestInterruptions:
    x = np.random.default_rng(0).normal(size=(40, 3))

    def test_killed_while_a_checkpoint_is_written_the_one_before_is_there(self, tmp_path):
        job = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert job.stdout.readline() == "writing\n"
        job.kill()
        job.wait()
        job.stdout.close()
        assert len(list(tmp_path.glob("last.ckpt.*.part"))) == 1
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 1
        settings = {"hidden": (8,), "epochs": 5, "batch_size": 16}
        resumed = AE(**settings, directory=tmp_path, checkpoint_every=1).fit(self.x)
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        assert np.array_equal(
            resumed.transform(self.x), AE(**settings).fit(self.x).transform(self.x)
        )

    def test_checkpoints_are_written_where_they_belong(self, tmp_path, monkeypatch):
        replaced = []
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append((a, b)), replace(a, b)))
        AE(**SMALL, directory=tmp_path, checkpoint_every=1).fit(self.x)
        assert len(replaced) == 2
        assert all(part.parent == target.parent == tmp_path for part, target in replaced)

    @pytest.mark.parametrize("call", ["save", "fsync", "replace"])
    def test_a_disk_that_is_full_leaves_the_checkpoint_before(self, tmp_path, monkeypatch, call):
        AE(**SMALL, directory=tmp_path, checkpoint_every=1).fit(self.x)
        before = (tmp_path / "last.ckpt").read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch if call == "save" else os, call, full)
        with pytest.raises(OSError, match="No space"):
            checkpoints.AtomicCheckpoints().save_checkpoint({"epoch": 7}, tmp_path / "last.ckpt")
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        assert (tmp_path / "last.ckpt").read_bytes() == before

    def test_parts_of_others_are_left_alone(self, tmp_path):
        here = checkpoints.machine()
        names = {
            f"last.ckpt.{here}-{2**22 + 9}.part": False,  # more processes than Linux counts
            f"last.ckpt.{here}-{os.getpid()}.part": True,
            f"last.ckpt.ff-{2**22 + 9}.part": True,
            "mine.part": True,
            "last.ckpt.part": True,
        }
        for name in names:
            (tmp_path / name).write_bytes(b"x")
        checkpoints.sweep(tmp_path)
        assert {name: (tmp_path / name).exists() for name in names} == names
        checkpoints.sweep(tmp_path / "nowhere")

    @pytest.fixture
    def ctrl_c(self):
        """As in a terminal: a job in the background of a script is started with this signal
        ignored."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @pytest.mark.usefixtures("ctrl_c")
    def test_ctrl_c_is_a_keyboard_interrupt_and_the_model_is_usable(self):
        before = signal.getsignal(signal.SIGINT)
        m = AE(**{**SMALL, "epochs": 6}, trainer={"callbacks": Stop()})
        with pytest.raises(KeyboardInterrupt):
            m.fit(self.x)
        assert signal.getsignal(signal.SIGINT) is before
        assert m.n_epochs_ == 3
        three = AE(**{**SMALL, "epochs": 3}).fit(self.x)
        assert np.array_equal(m.transform(self.x), three.transform(self.x))
        assert not any(p.requires_grad for p in m.objective_.parameters())
        assert m.set_params(trainer=None).fit(self.x).n_epochs_ == 6

    def test_another_exit_is_an_exit(self):
        class Leave(Callback):
            def on_train_epoch_start(self, trainer, pl_module):
                raise SystemExit(3)

        with pytest.raises(SystemExit) as caught:
            AE(**SMALL, trainer={"callbacks": Leave()}).fit(self.x)
        assert caught.value.code == 3

    def test_plugins_of_ones_own_stay(self, tmp_path):
        class Mine(checkpoints.TorchCheckpointIO):
            saved = 0

            def save_checkpoint(self, checkpoint, path, storage_options=None):
                Mine.saved += 1
                super().save_checkpoint(checkpoint, path, storage_options)

        AE(**SMALL, directory=tmp_path, checkpoint_every=1, trainer={"plugins": Mine()}).fit(self.x)
        assert Mine.saved == 2
