"""Checkpoints from elsewhere: impossible ones are refused, and a small file never makes large
tensors."""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import riemae
from riemae import storage
from riemae.autoencoders import AE, IRAE, NRAE
from riemae.exceptions import CheckpointError, RiemaeError

SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}
HUGE = 10**6
NORM = {"name": "torch.LayerNorm", "arguments": {"normalized_shape": HUGE}}


def data(n=40, d=3):
    return np.random.default_rng(0).normal(size=(n, d))


def sealed(folder, change):
    """Change the metadata and the checksum with it, as an attacker would."""
    path = folder / "checkpoint.json"
    body = json.loads(path.read_text())
    change(body["metadata"])
    rest = {k: v for k, v in body.items() if k != "checksum"}
    body["checksum"] = hashlib.sha256(
        json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()
    path.write_text(json.dumps(body))


class Largest(TorchDispatchMode):
    """The most numbers of one tensor with values."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and not x.is_meta:
                self.numbers = max(self.numbers, x.numel())
        return out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return IRAE(**SMALL).fit(data()).save(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def folder(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def layer(name, **arguments):
    """The description of a layer."""
    return {"name": name, "arguments": arguments}


def linear(a, b):
    return {
        "name": "torch.Linear",
        "arguments": {"in_features": a, "out_features": b, "bias": True},
    }


def stack(*parts):
    return {"name": "torch.Sequential", "modules": {str(i): part for i, part in enumerate(parts)}}


def inflate(*layers):
    """The decoder as it is, followed by more."""

    def change(m):
        m["networks"]["decoder"] = stack(m["networks"]["decoder"], *layers)

    return change


class TestMemory:
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m["networks"].update(encoder=linear(12_000, 12_000)),
            lambda m: m["networks"].update(decoder=stack(*[linear(12_000, 12_000)] * 3)),
            lambda m: m["networks"].update(decoder=linear(10**9, 10**9)),
            lambda m: m["networks"].update(encoder=layer("riemae.Whiten", shape=[HUGE, 50])),
            lambda m: m["networks"].update(encoder=NORM),
            lambda m: m["own"].update(encoder=linear(12_000, 12_000)),
            lambda m: m.update(latent_dim=10**8),
            lambda m: m.update(data_shape=[10**8]),
            lambda m: m.update(data_shape=[1, 1, 1, 10**12]),
            inflate(
                layer("torch.Unflatten", dim=1, unflattened_size=[3, 1, 1]),
                layer(
                    "torch.Upsample",
                    size=[9000, 9000],
                    scale_factor=None,
                    mode="nearest",
                    align_corners=None,
                ),
            ),
        ],
        ids="encoder stack beyond buffer norm own latent data shape upsample".split(),
    )
    def test_a_small_file_takes_little(self, folder, change):
        sealed(folder, change)
        held = sum(x.numel() for x in storage.load(folder)[0].values())
        with Largest() as seen, pytest.raises(CheckpointError):
            riemae.load(folder)
        assert seen.numbers <= max(held, 2000)

    def test_what_is_right_is_loaded(self, folder):
        with Largest() as seen:
            m = riemae.load(folder)
        assert seen.numbers <= 2000
        assert m.transform(data()).shape == (40, 2)

    def test_build_compares_with_the_tensors_first(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.LayerNorm(3), nn.Conv1d(1, 2, 3))
        description, state = storage.describe(net), net.state_dict()
        again = storage.build(description, state)
        again.load_state_dict(state, assign=True)
        assert all(torch.equal(x, state[name]) for name, x in again.state_dict().items())
        for name in ("0.weight", "1.running_mean", "2.bias", "3.weight"):
            with pytest.raises(CheckpointError, match=f"'{name}' missing"):
                storage.build(description, {key: x for key, x in state.items() if key != name})
            with pytest.raises(CheckpointError, match=f"'{name}' of shape"):
                storage.build(description, {**state, name: torch.zeros(7, 7)})
        with pytest.raises(CheckpointError, match="'more' of shape"):
            storage.build(description, {**state, "more": torch.zeros(1)})

    def test_a_class_of_ones_own_may_look_at_values(self):
        @storage.register("test.Normed")
        class Normed(nn.Linear):
            def __init__(self, size):
                super().__init__(size, size)
                self.scale = float(self.weight.detach().norm())  # not possible on the meta device

            def arguments(self):
                return {"size": self.in_features}

        net = Normed(3)
        assert isinstance(storage.build(storage.describe(net), net.state_dict()), Normed)
        assert storage.outline(storage.describe(net)) is None

    def test_descriptions_without_an_end(self):
        deep = linear(1, 1)
        for _ in range(5000):
            deep = {"name": "torch.Sequential", "modules": {"0": deep}}
        with pytest.raises(CheckpointError):
            storage.build(deep)


class TestWhereALaterFitWrites:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("directory", "/tmp/elsewhere"),
            ("logger", "csv"),
            ("trainer", {"default_root_dir": "/tmp/elsewhere"}),
            ("trainer", {"logger": True}),
            ("trainer", {"enable_checkpointing": True}),
        ],
    )
    def test_a_file_does_not_choose(self, folder, name, value):
        sealed(folder, lambda m: m["settings"].update({name: value}))
        assert getattr(riemae.load(folder), name) is None

    def test_what_was_set_in_training_stays_behind(self, tmp_path):
        m = AE(**SMALL, directory=tmp_path / "run", logger="csv", trainer={"max_steps": 3}).fit(
            data()
        )
        m.save(tmp_path / "saved")
        metadata = storage.load(tmp_path / "saved")[1]
        assert not {"directory", "logger", "trainer"} & set(metadata["settings"])
        assert {"directory", "logger", "trainer"} <= set(metadata["dropped"])
        again = riemae.load(tmp_path / "saved")
        assert (again.directory, again.logger, again.trainer) == (None, None, None)
        assert np.array_equal(again.transform(data()), m.transform(data()))

    def test_one_width_comes_back_as_one(self, tmp_path):
        m = NRAE(**{**SMALL, "hidden": 8}).fit(data())
        assert riemae.load(m.save(tmp_path)).hidden == 8


class TestMetadata:
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.pop("class"),
            lambda m: m.pop("networks"),
            lambda m: m.pop("settings"),
            lambda m: m.pop("own"),
            lambda m: m.pop("data_shape"),
            lambda m: m.update({"class": 5}),
            lambda m: m.update({"class": ["IRAE"]}),
            lambda m: m.update(networks={"encoder": "not described"}),
            lambda m: m.update(networks=[]),
            lambda m: m.update(settings=[]),
            lambda m: m["settings"].update(encoder="os.system"),
            lambda m: m["settings"].update(ambient="fisher"),
            lambda m: m.update(history={"loss": "abc"}),
            lambda m: m.update(history={"loss": [1.0, "x"]}),
            lambda m: m.update(history=[1.0]),
            lambda m: m.update(history={"loss": None}),
            lambda m: m.update(history={"loss": [[1.0]]}),
            lambda m: m.update(feature_names=5),
            lambda m: m.update(feature_names=["a"]),
            lambda m: m.update(feature_names=["a", "b", 3]),
            lambda m: m.update(feature_names="abc"),
            lambda m: m.update(n_features="3"),
            lambda m: m.update(n_features=-1),
            lambda m: m.update(latent_dim=2.0),
            lambda m: m.update(latent_dim=True),
            lambda m: m.update(data_shape="3"),
            lambda m: m.update(data_shape=[-3]),
            lambda m: m.update(data_shape=[4]),
            lambda m: m.update(terms={"x": {"loss": "os.system"}}),
            lambda m: m.update(terms={"x": "heavy"}),
            lambda m: m.update(terms=[1]),
            lambda m: m.update(restart_losses="low"),
            lambda m: m.update(restart_losses=[None]),
            lambda m: m.update(report=5),
            lambda m: m.update(report={"samples": 3}),
            lambda m: m.update(own={"x": 1}),
            lambda m: m.update(dtype="float16"),
            lambda m: m.update(dtype=["float32"]),
            lambda m: m.update(likelihood=5),
            lambda m: m.update(likelihood={"name": "SquaredError"}),
            lambda m: m.update(ambient=[1]),
            lambda m: m.update(ambient={"name": "Constant"}),
        ],
    )
    def test_entries_that_cannot_be(self, folder, change):
        sealed(folder, change)
        with pytest.raises(CheckpointError) as caught:
            riemae.load(folder)
        assert caught.value.expected

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("part", ["encoder", "decoder"])
    def test_weights_that_are_no_numbers(self, folder, tmp_path, value, part):
        tensors, metadata = storage.load(folder)
        name = next(
            name
            for name in tensors
            if name.startswith(f"objective.{part}") and name.endswith("weight")
        )
        tensors[name].view(-1)[1] = value
        with pytest.raises(CheckpointError, match=f"NaN or infinity in {name}"):
            riemae.load(storage.save(tmp_path / "bad", tensors, metadata))

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, '{"format": "riemae checkpoint", "metadata": ' + "[" * 90_000]
    )
    def test_json_without_an_end(self, folder, text):
        (folder / "checkpoint.json").write_text(text)
        with pytest.raises(CheckpointError):
            riemae.load(folder)


class TestArguments:
    @pytest.mark.parametrize("path", [None, 5, 2.5, b"model", ["model"], object()])
    def test_paths_that_are_none(self, path):
        for call in (riemae.load, storage.load, AE.load):
            with pytest.raises(CheckpointError, match="path of a directory"):
                call(path)
        with pytest.raises(CheckpointError, match="path of a directory"):
            storage.save(path, {}, {})

    @pytest.mark.parametrize("device", ["cuda:99", "gpu", "", type(None), "cpu:x", 2.5])
    def test_devices_that_are_none(self, folder, device):
        for call in (riemae.load, storage.load):
            with pytest.raises(CheckpointError, match="a device of this machine"):
                call(folder, device=device)

    def test_a_gpu_where_there_is_none(self, folder, monkeypatch):
        def none(*_, **__):
            raise AssertionError("Torch not compiled with CUDA enabled")

        monkeypatch.setattr(torch, "empty", none)
        with pytest.raises(RiemaeError, match="Torch not compiled with CUDA"):
            storage.present("riemae.load", "cuda")
