"""Checkpoints: exact round trips.

Files that were cut or changed, or are something else, are refused. Crashes leave a whole file.
"""

import hashlib
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import riemae
from riemae import storage
from riemae.exceptions import CheckpointError, DTypeError, OptionError
from riemae.storage import architectures

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and signals of POSIX")


def example():
    g = torch.Generator().manual_seed(0)
    return {"weight": torch.randn(3, 4, generator=g, dtype=torch.float64), "count": torch.arange(5)}


METADATA = {
    "latent_dim": 2,
    "hidden": [16, 16],
    "history": {"loss": [1.5, 0.25]},
    "ambient": None,
    "name": "Ünïcode",
}


def tensor_file(folder):
    (path,) = folder.glob("tensors-*.safetensors")
    return path


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def rewrite(folder, change, checksum=True):
    """Change the JSON and the checksum with it, as an attacker would."""
    path = folder / "checkpoint.json"
    body = json.loads(path.read_text())
    change(body)
    if checksum:
        rest = {k: v for k, v in body.items() if k != "checksum"}
        body["checksum"] = hashlib.sha256(
            json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()
    path.write_text(json.dumps(body))


class TestRoundTrip:
    def test_tensors_and_metadata(self, tmp_path):
        folder = storage.save(tmp_path / "a" / "b", example(), METADATA)
        assert folder == tmp_path / "a" / "b"
        tensors, metadata = storage.load(str(folder))
        assert same(tensors, example())
        assert metadata == METADATA
        assert sorted(p.name for p in folder.iterdir()) == [
            "checkpoint.json",
            tensor_file(folder).name,
        ]

    @pytest.mark.parametrize(
        "dtype",
        [
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.uint8,
            torch.bool,
        ],
    )
    def test_dtypes(self, tmp_path, dtype):
        x = (torch.arange(7) - 3).abs().to(dtype)
        assert same(storage.load(storage.save(tmp_path, {"x": x}, {}))[0], {"x": x})

    def test_values_that_text_would_lose(self, tmp_path):
        x = torch.tensor([math.nan, math.inf, -0.0, 5e-324, 1 / 3], dtype=torch.float64)
        found = storage.load(storage.save(tmp_path, {"x": x}, {}))[0]["x"]
        assert torch.equal(found.view(torch.int64), x.view(torch.int64))

    def test_views_shared_memory_gradients_and_empty_ones(self, tmp_path):
        base = torch.arange(12.0).view(3, 4)
        given_ = {
            "t": base.T,
            "slice": base[1],
            "again": base,
            "grad": base.clone().requires_grad_(),
            "none": torch.empty(0, 3),
            "scalar": torch.tensor(2.0),
        }
        found, _ = storage.load(storage.save(tmp_path, given_, {}))
        assert all(torch.equal(found[k], v) for k, v in given_.items())
        assert not found["grad"].requires_grad
        found["slice"] += 1
        assert torch.equal(found["again"], base)
        assert storage.load(storage.save(tmp_path, {}, {})) == ({}, {})

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False)
                | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                ),
                max_leaves=8,
            ),
            max_size=4,
        )
    )
    def test_any_plain_metadata(self, tmp_path_factory, metadata):
        folder = tmp_path_factory.mktemp("plain")
        assert storage.load(storage.save(folder, {}, metadata))[1] == metadata

    def test_what_json_says_otherwise(self, tmp_path):
        _, metadata = storage.load(
            storage.save(
                tmp_path, {}, {"loss": [math.nan, -math.inf], "hidden": (1, 2), "x": np.float64(2)}
            )
        )
        assert math.isnan(metadata["loss"][0])
        assert metadata["loss"][1] == -math.inf
        assert metadata["hidden"] == [1, 2]
        assert metadata["x"] == 2

    def test_a_new_checkpoint_replaces_the_old_and_nothing_else(self, tmp_path):
        storage.save(tmp_path, example(), {"step": 1})
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "tensors-mine.safetensors").write_text("mine")
        (tmp_path / "checkpoint.json.0123abcd.part").write_text("left by a killed save")
        storage.save(tmp_path, {"other": torch.ones(2)}, {"step": 2})
        tensors, metadata = storage.load(tmp_path)
        assert same(tensors, {"other": torch.ones(2)})
        assert metadata == {"step": 2}
        assert len(list(tmp_path.iterdir())) == 4
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_saving_the_same_twice(self, tmp_path):
        for _ in range(2):
            storage.save(tmp_path, example(), METADATA)
        assert same(storage.load(tmp_path)[0], example())

    def test_files_say_what_they_are(self, tmp_path):
        storage.save(tmp_path, example(), METADATA)
        body = json.loads((tmp_path / "checkpoint.json").read_text())
        content = tensor_file(tmp_path).read_bytes()
        assert body["version"] == storage.VERSION == 1
        assert body["riemae"] == riemae.__version__
        assert body["tensors"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert (
            tensor_file(tmp_path).name
            == f"tensors-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        )
        from safetensors.torch import load_file

        assert same(
            load_file(tensor_file(tmp_path)), example()
        )  # any reader of safetensors can read it


class TestRefusedAtSaving:
    @pytest.mark.parametrize(
        ("metadata", "text"),
        [
            ({"a": {"b": [0, torch.ones(1)]}}, r"metadata\['a'\]\['b'\]\[1\], got Tensor"),
            ({"a": np.ones(2)}, r"metadata\['a'\], got ndarray"),
            ({"a": {1: 2}}, r"keys of metadata\['a'\], got 1"),
            ({"a": {1, 2}}, "got set"),
            ({"a": 1j}, "got complex"),
            ({"a": len}, "got builtin"),
        ],
    )
    def test_metadata(self, tmp_path, metadata, text):
        storage.save(tmp_path, {}, {"step": 1})
        with pytest.raises(DTypeError, match=text):
            storage.save(tmp_path, {}, metadata)
        assert storage.load(tmp_path)[1] == {"step": 1}

    @pytest.mark.parametrize(
        ("tensors", "text"),
        [
            ({"a": [1.0]}, "list under 'a'"),
            ({3: torch.ones(1)}, "under 3"),
            ({"a": torch.eye(2).to_sparse()}, "sparse_coo"),
            ({"a": torch.empty(2, device="meta")}, "on meta"),
        ],
    )
    def test_tensors(self, tmp_path, tensors, text):
        with pytest.raises(DTypeError, match=text):
            storage.save(tmp_path, tensors, {})
        assert list(tmp_path.iterdir()) == []

    def test_a_file_where_the_directory_should_be(self, tmp_path):
        (tmp_path / "model").write_text("mine")
        with pytest.raises(CheckpointError, match=r"got the file .*model"):
            storage.save(tmp_path / "model", {}, {})
        assert (tmp_path / "model").read_text() == "mine"


class TestRefusedAtLoading:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"checkpoint at .*absent, got nothing"):
            storage.load(tmp_path / "absent")
        with pytest.raises(CheckpointError, match=r"checkpoint\.json, got nothing"):
            storage.load(tmp_path)
        storage.save(tmp_path, example(), {})
        name = tensor_file(tmp_path).name
        tensor_file(tmp_path).unlink()
        with pytest.raises(CheckpointError, match=f"{name}, got nothing"):
            storage.load(tmp_path)

    def test_pickles(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "exploded",))

        torch.save({"a": torch.ones(2)}, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"model\.pt, got a pickle\. .*never read"):
            storage.load(tmp_path / "model.pt")
        folder = storage.save(tmp_path / "c", example(), {})
        (tmp_path / "c" / "checkpoint.json").write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match=r"checkpoint\.json in JSON, got a pickle"):
            storage.load(folder)
        storage.save(folder, example(), {})
        tensor_file(folder).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match=r"safetensors with \d+ bytes .* got a pickle"):
            storage.load(folder)
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"format": "other"}', "[" * 100_000, "\xff\xfe"]
    )
    def test_foreign_json(self, tmp_path, text):
        (tmp_path / "checkpoint.json").write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
            storage.load(tmp_path)

    @pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
    def test_unknown_versions(self, tmp_path, version):
        storage.save(tmp_path, example(), {})
        rewrite(tmp_path, lambda body: body.update(version=version))
        with pytest.raises(CheckpointError, match=r"checkpoint\.json of version 1, got .*update"):
            storage.load(tmp_path)

    def test_changed_metadata(self, tmp_path):
        storage.save(tmp_path, example(), {"weight": 0.1})
        rewrite(tmp_path, lambda body: body["metadata"].update(weight=0.2), checksum=False)
        with pytest.raises(CheckpointError, match="checksum"):
            storage.load(tmp_path)

    @pytest.mark.parametrize(
        "entry",
        [
            None,
            {},
            {"file": "tensors-0123456789abcdef.safetensors"},
            {"file": 3, "bytes": 1, "sha256": ""},
            {"file": "../tensors-0123456789abcdef.safetensors", "bytes": 1, "sha256": ""},
            {"file": "/etc/passwd", "bytes": 1, "sha256": ""},
            {"file": "tensors-0123456789abcdef.safetensors\n", "bytes": 1, "sha256": ""},
        ],
    )
    def test_paths_that_lead_elsewhere(self, tmp_path, entry):
        storage.save(tmp_path, example(), {})
        rewrite(tmp_path, lambda body: body.update(tensors=entry))
        with pytest.raises(CheckpointError, match="same directory"):
            storage.load(tmp_path)

    def test_metadata_that_are_no_dictionary(self, tmp_path):
        storage.save(tmp_path, example(), {})
        rewrite(tmp_path, lambda body: body.update(metadata=[]))
        with pytest.raises(CheckpointError, match="with metadata"):
            storage.load(tmp_path)

    def test_right_sum_wrong_format(self, tmp_path):
        storage.save(tmp_path, example(), {})
        content = b"these are no tensors"
        digest = hashlib.sha256(content).hexdigest()
        tensor_file(tmp_path).write_bytes(content)
        rewrite(tmp_path, lambda body: body["tensors"].update(bytes=len(content), sha256=digest))
        with pytest.raises(CheckpointError, match="safetensors format"):
            storage.load(tmp_path)

    @posix
    def test_links(self, tmp_path):
        folder = storage.save(tmp_path / "real", example(), {})
        (tmp_path / "latest").symlink_to(folder)
        assert same(
            storage.load(tmp_path / "latest")[0], example()
        )  # a link to the directory is a user's own way to name it
        for path in (tensor_file(folder), folder / "checkpoint.json"):
            content = path.read_bytes()
            (tmp_path / "elsewhere").write_bytes(content)
            path.unlink()
            path.symlink_to(tmp_path / "elsewhere")
            with pytest.raises(CheckpointError, match=f"{path.name}, got a symbolic link"):
                storage.load(folder)
            path.unlink()
            path.write_bytes(content)

    @posix
    def test_saving_replaces_a_link_and_leaves_its_target(self, tmp_path):
        (tmp_path / "precious").write_text("mine")
        folder = tmp_path / "c"
        folder.mkdir()
        (folder / "checkpoint.json").symlink_to(tmp_path / "precious")
        storage.save(folder, example(), {"step": 1})
        assert (tmp_path / "precious").read_text() == "mine"
        assert storage.load(folder)[1] == {"step": 1}

    @posix
    def test_a_pipe_does_not_block(self, tmp_path):
        os.mkfifo(tmp_path / "checkpoint.json")
        with pytest.raises(CheckpointError, match="pipe"):
            storage.load(tmp_path)

    @posix
    def test_directories_in_place_of_files(self, tmp_path):
        (tmp_path / "checkpoint.json").mkdir()
        with pytest.raises(CheckpointError, match=r"checkpoint\.json"):
            storage.load(tmp_path)


class TestDamage:
    def test_truncation_at_every_byte(self, tmp_path):
        storage.save(tmp_path, example(), METADATA)
        for path in (tensor_file(tmp_path), tmp_path / "checkpoint.json"):
            content = path.read_bytes()
            for length in range(len(content)):
                path.write_bytes(content[:length])
                with pytest.raises(CheckpointError, match=path.name):
                    storage.load(tmp_path)
            path.write_bytes(content)
        assert same(storage.load(tmp_path)[0], example())

    def test_truncation_of_a_header_that_claims_to_be_whole(self, tmp_path):
        # Size and checksum are rewritten to match, so only the parser of safetensors can refuse the
        # file.
        storage.save(tmp_path, example(), {})
        path = tensor_file(tmp_path)
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        for length in range(header + 1):
            part = content[:length]
            path.write_bytes(part)
            entry = {"bytes": length, "sha256": hashlib.sha256(part).hexdigest()}
            rewrite(tmp_path, lambda body, entry=entry: body["tensors"].update(entry))
            with pytest.raises(CheckpointError, match=path.name):
                storage.load(tmp_path)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.booleans(), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
    def test_flipped_bits(self, tmp_path_factory, in_json, place, bit):
        folder = storage.save(tmp_path_factory.mktemp("flip"), example(), METADATA)
        path = folder / "checkpoint.json" if in_json else tensor_file(folder)
        content = bytearray(path.read_bytes())
        before = parsed(content) if in_json else None
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
        if in_json and parsed(content) == before:  # a blank turned into another kind of blank
            assert storage.load(folder)[1] == METADATA
        else:
            with pytest.raises(CheckpointError, match=re.escape(str(folder))):
                storage.load(folder)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.binary(max_size=200), st.binary(max_size=200))
    def test_random_files(self, tmp_path_factory, first, second):
        folder = storage.save(tmp_path_factory.mktemp("random"), example(), {})
        (folder / "checkpoint.json").write_bytes(first)
        with pytest.raises(CheckpointError):
            storage.load(folder)
        storage.save(folder, example(), {})
        tensor_file(folder).write_bytes(second)
        with pytest.raises(CheckpointError):
            storage.load(folder)


# A child saves checkpoint 2 over checkpoint 1 and kills itself at its n-th call of the operating
# system, for every n.
_EVERY_STEP = """
import os, signal, sys, tempfile
from pathlib import Path
import torch
torch.set_num_threads(1)
from riemae import storage

CALLS = ("open", "fsync", "replace", "unlink", "fdopen")
left = 0

def counted(call):
    def one(*arguments, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return one

def content(step):
    return {"x": torch.full((1000,), float(step))}, {"step": step}

import safetensors.torch
safetensors.torch.save({"x": torch.ones(1)})  # imported before the children are made
seen, n = [], 0
while True:
    n += 1
    with tempfile.TemporaryDirectory() as name:
        folder = storage.save(Path(name) / "c", *content(1))
        child = os.fork()
        if not child:
            left = n
            for call in CALLS:
                setattr(os, call, counted(getattr(os, call)))
            storage.save(folder, *content(2))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        tensors, metadata = storage.load(folder)
        assert torch.equal(tensors["x"], content(metadata["step"])[0]["x"]), (n, metadata)
        if not os.WIFSIGNALED(status):
            assert (os.WEXITSTATUS(status), metadata["step"]) == (0, 2)
            break
        seen.append(metadata["step"])
        storage.save(folder, *content(3))  # and what the killed one left is swept away
        assert storage.load(folder)[1] == {"step": 3}
        assert len(list(folder.iterdir())) == 2, list(folder.iterdir())
print(seen)
"""

# Saves one checkpoint after the other until it is killed.
_FOREVER = """
import sys, torch
from riemae import storage
torch.set_num_threads(1)
step = 0
while True:
    step += 1
    storage.save(sys.argv[1], {"x": torch.full((200_000,), float(step))}, {"step": step})
    print(step, flush=True)
"""


@posix
class TestKilled:
    def test_at_every_step(self, tmp_path):
        run = subprocess.run(
            [sys.executable, "-c", _EVERY_STEP], capture_output=True, text=True, cwd=tmp_path
        )
        assert (run.returncode, run.stderr) == (0, "")
        seen = json.loads(run.stdout)
        assert seen == sorted(seen)  # first always the old one, from some step on the new one
        assert set(seen) == {1, 2}
        assert len(seen) >= 8

    def test_at_any_time(self, tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-c", _FOREVER, str(tmp_path / "c")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        try:
            done = [process.stdout.readline() for _ in range(3)]
            time.sleep(0.0137)
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
        last = int((done + rest.split())[-1])
        tensors, metadata = storage.load(tmp_path / "c")
        assert metadata["step"] in (last, last + 1)
        assert (tensors["x"] == metadata["step"]).all()

    def test_a_full_disk_leaves_the_old_one(self, tmp_path, monkeypatch):
        storage.save(tmp_path, example(), {"step": 1})

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            storage.save(tmp_path, {"other": torch.ones(3)}, {"step": 2})
        monkeypatch.undo()
        assert storage.load(tmp_path)[1] == {"step": 1}
        assert len(list(tmp_path.iterdir())) == 2  # no part is left


class TestArchitecture:
    @pytest.mark.parametrize(
        ("module", "shape"),
        [
            (nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2, bias=False)), (4, 3)),
            (
                nn.Sequential(
                    nn.Linear(3, 4),
                    nn.ELU(0.5),
                    nn.LayerNorm(4),
                    nn.LeakyReLU(0.3),
                    nn.GELU("tanh"),
                ),
                (2, 3),
            ),
            (
                nn.Sequential(
                    nn.Linear(3, 4),
                    nn.Softplus(2, 10),
                    nn.Dropout(0.3),
                    nn.BatchNorm1d(4, momentum=0.2),
                ),
                (2, 3),
            ),
            (
                nn.Sequential(
                    nn.LayerNorm(3, bias=False), nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.Identity()
                ),
                (2, 3),
            ),
            (
                nn.Sequential(
                    nn.Conv2d(1, 4, 3, 2, padding="valid"),
                    nn.SiLU(),
                    nn.Flatten(),
                    nn.Linear(36, 2),
                ),
                (2, 1, 8, 8),
            ),
            (
                nn.Sequential(
                    nn.Linear(2, 16),
                    nn.Unflatten(1, (4, 2, 2)),
                    nn.ConvTranspose2d(4, 1, 3, stride=2, output_padding=1, bias=False),
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                ),
                (2, 2),
            ),
            (
                nn.Sequential(
                    nn.Sequential(nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")),
                    nn.Flatten(1),
                ),
                (2, 1, 5),
            ),
            (
                nn.Sequential(
                    nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.BatchNorm2d(2)
                ),
                (2, 1, 8, 8),
            ),
        ],
    )
    def test_layers_come_back_from_text(self, tmp_path, module, shape):
        module = module.double().eval()
        description = storage.describe(module)
        folder = storage.save(tmp_path, module.state_dict(), {"decoder": description})
        tensors, metadata = storage.load(folder)
        again = storage.build(metadata["decoder"]).eval()
        again.load_state_dict(tensors, assign=True)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.equal(again(x), module(x))
        assert repr(again) == repr(module)
        assert storage.describe(again) == description

    def test_names_of_parts_stay(self):
        module = nn.Sequential()
        module.add_module("hidden", nn.Linear(2, 3))
        module.add_module("out", nn.Tanh())
        assert list(storage.build(storage.describe(module)).state_dict()) == [
            "hidden.weight",
            "hidden.bias",
        ]

    def test_building_leaves_the_random_numbers_alone(self):
        description = storage.describe(nn.Linear(3, 3))
        state = torch.get_rng_state()
        storage.build(description)
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_cannot_be_described(self):
        class Own(nn.Module):
            pass

        class Linear(nn.Linear):
            pass

        for module in (Own(), Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2))):
            assert storage.describe(module) is None
            assert storage.describe(nn.Sequential(nn.Linear(2, 2), nn.Sequential(module))) is None

    def test_registered_classes(self, monkeypatch):
        monkeypatch.setattr(architectures, "_BY_NAME", dict(architectures._BY_NAME))

        @storage.register("test.Scale")
        class Scale(nn.Module):
            def __init__(self, size, power=1):
                super().__init__()
                self.scale, self.power = nn.Parameter(torch.ones(size)), power

            def arguments(self):
                return {"size": len(self.scale), "power": self.power}

        description = storage.describe(nn.Sequential(Scale(3, 2)))
        again = storage.build(json.loads(json.dumps(description)))
        assert again[0].power == 2
        assert again[0].scale.shape == (3,)
        assert storage.register("test.Scale")(Scale) is Scale  # a module that is imported again
        for name in ("torch.Linear", "torch.Sequential"):
            with pytest.raises(OptionError, match="free"):
                storage.register(name)(Scale)
        with pytest.raises(DTypeError, match="arguments"):
            storage.register("test.Tanh")(type("Mine", (nn.Tanh,), {}))

    def test_arguments_must_be_plain(self, monkeypatch):
        monkeypatch.setattr(architectures, "_BY_NAME", dict(architectures._BY_NAME))

        @storage.register("test.Odd")
        class Odd(nn.Module):
            def arguments(self):
                return {"function": len}

        with pytest.raises(DTypeError, match=r"arguments of Odd\['function'\]"):
            storage.describe(Odd())

    @pytest.mark.parametrize(
        ("description", "text"),
        [
            (None, "got None"),
            ({}, "known module"),
            ({"name": "os.system", "arguments": {"command": "true"}}, "encoder= and decoder="),
            ({"name": ["torch.Linear"], "arguments": {}}, "known module"),
            ({"name": "torch.Linear"}, "known module"),
            ({"name": "torch.Sequential", "modules": None}, "known module"),
            (
                {"name": "torch.Linear", "arguments": {"size": 3}},
                "arguments that torch.Linear takes",
            ),
            (
                {"name": "torch.Sequential", "modules": {"0": {"name": "x", "arguments": {}}}},
                "'name': 'x'",
            ),
        ],
    )
    def test_descriptions_that_name_nothing(self, description, text):
        with pytest.raises(CheckpointError, match=text):
            storage.build(description)
