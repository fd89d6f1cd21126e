"""Losses and estimators on a device: known values, gradients, and a fit that stays there."""

import inspect
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from on_device import DTYPES, F32, F64, Given, assert_near, assert_placed, assert_true, network
from spaces import affine, sphere
from torch import nn

import riemae
from riemae import Manifold, autoencoders
from riemae.autoencoders import losses

ROUND = Manifold(sphere)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def given(device, dtype):
    return Given.drawn(6, 2, 3, device, dtype)


def test_curvatures_of_the_sphere(given):
    assert_true(losses.extrinsic_curvature(ROUND, given.z), 4.0, "second")
    value, x = losses.extrinsic_curvature(ROUND, given.z, decoded=True)
    assert_true(x, sphere(given.z), "value")
    assert_true(value, 4.0, "second")


@pytest.mark.parametrize(("kind", "expected"), [("riemann", 4.0), ("scalar", 4.0), ("ricci", 2.0)])
def test_intrinsic_curvatures_of_the_sphere(kind, expected, given):
    found = losses.intrinsic_curvature(ROUND, given.z, kind=kind)
    assert_placed(found, given.z.device, given.z.dtype)
    assert_true(found, expected, "second")


def test_distortions(given, generator):
    flat = Manifold(lambda z: torch.cat([2 * z, 0 * z[:, :1]], -1))
    for M, loss in ((flat, losses.relaxed_distortion), (ROUND, losses.conformal_distortion)):
        assert abs(float(loss(M, given.z))) < 1e-5
        drawn = loss(M, given.z, probes=2, mixup=0.2, generator=generator)
        assert_placed(drawn, given.z.device, given.z.dtype)
        assert drawn.isfinite()
    mixed = losses.latent_mixup(given.z, 0.2, generator)
    assert_placed(mixed, given.z.device, given.z.dtype)


def test_neighbourhoods_of_a_linear_map(given):
    found = losses.neighborhood_reconstruction(
        Manifold(affine), given.z, given.end, affine(given.end), order=2, x=affine(given.z)
    )
    assert_placed(found, given.z.device, given.z.dtype)
    assert float(found) < 1e-10


def test_contraction_of_a_linear_encoder(given, generator):
    found = losses.contraction(lambda x: x @ x.new_ones(3, 2), given.x)
    assert_placed(found, given.z.device, given.z.dtype)
    assert found >= 1 - 1e-5
    drawn = losses.contraction(lambda x: x[:, :2] * 2, given.x, probes=1, generator=generator)
    assert_placed(drawn, given.z.device, given.z.dtype)


LOSSES = {
    "relaxed_distortion": lambda M, g: losses.relaxed_distortion(M, g.z),
    "conformal_distortion": lambda M, g: losses.conformal_distortion(M, g.z),
    "extrinsic_curvature": lambda M, g: losses.extrinsic_curvature(M, g.z),
    "intrinsic_curvature": lambda M, g: losses.intrinsic_curvature(M, g.z),
    "neighborhood_reconstruction": lambda M, g: losses.neighborhood_reconstruction(
        M, g.z, g.end, g.x, order=2, x=g.x
    ),
    "contraction": lambda M, g: losses.contraction(M.decoder, g.z),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_cpu(name, device, dtype):
    found = []
    for place in (device, torch.device("cpu")):
        f = network(dtype, sizes=(2, 8, 3)).to(place).requires_grad_()
        given = Given.drawn(6, 2, 3, place, dtype)
        LOSSES[name](Manifold(f), given).backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in f.parameters()]
        assert_placed(gradients, place, dtype)
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert found[0].abs().max() > 0
    assert_near(found[0], found[1], {F32: 2e-3, F64: 1e-9}[dtype])


# Estimators.

ALL = ("AE", "VAE", "DenoisingAE", "ContractiveAE", "NRAE", "MCAE", "IRAE", "IRVAE")
needs_training = pytest.mark.skipif(
    not all(map(find_spec, ("lightning", "sklearn"))), reason="the train extra is not installed"
)
SMALL = {"latent_dim": 2, "hidden": (8,), "epochs": 2, "batch_size": 16}


def data(dtype):
    return np.random.default_rng(0).normal(size=(32, 4)).astype(str(dtype)[6:])


@needs_training
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, F32) for name in ALL), ("AE", F64), ("NRAE", F64)]
)
def test_a_fit_stays_where_it_is(name, dtype, device):
    x = data(dtype)
    kind = getattr(autoencoders, name)
    model = kind(**SMALL, device=str(device)).fit(x)
    assert_placed((model.encoder_, model.decoder_), device, dtype)
    codes = model.transform(torch.as_tensor(x).to(device))
    assert_placed(codes, device, dtype)
    assert_placed(model.inverse_transform(codes), device, dtype)
    assert isinstance(model.transform(x), np.ndarray)
    assert_placed(model.manifold_.metric(codes), device, dtype)
    assert np.isfinite(model.score(x))
    history = model.history_["loss"]
    assert len(history) == 2
    assert np.isfinite(history).all()
    if device.type != "cpu":
        again = kind(**SMALL, device="cpu").fit(x).history_["loss"]
        np.testing.assert_allclose(history, again, rtol=5e-3)


@needs_training
def test_models_travel(device, tmp_path):
    x = data(F32)
    model = autoencoders.IRAE(**SMALL, device=str(device)).fit(x)
    model.save(tmp_path)
    there = riemae.load(tmp_path, device=device)
    assert_placed(there.decoder_, device, F32)
    here = riemae.load(tmp_path)
    assert_placed(here.decoder_, torch.device("cpu"), F32)
    codes = torch.as_tensor(here.transform(x))
    assert_near(torch.as_tensor(there.transform(x)), codes, 1e-5)


@needs_training
def test_costs_and_report(device):
    x = data(F32)
    model = autoencoders.IRAE(**SMALL, device=str(device)).fit(x)
    costs = model.costs(x)
    assert {"reconstruction", "relaxed_distortion"} <= costs.keys() | {"reconstruction"}
    assert all(np.isfinite(list(part.values())).all() for part in costs.values())
    assert str(model.report_)


def test_no_loss_and_no_estimator_is_forgotten():
    functions = inspect.getmembers(losses, inspect.isfunction)
    own = {name for name, f in functions if f.__module__ == losses.__name__}
    public = {name for name in own if not name.startswith("_")}
    assert public == LOSSES.keys() | {"latent_mixup"}
    kinds = {name for name in autoencoders.__all__ if name.endswith("AE")}
    assert kinds == set(ALL)


def test_modules_of_ones_own(device, dtype):
    f = nn.Linear(2, 3, dtype=dtype, device=device)
    M = Manifold(f.eval())
    loss = losses.relaxed_distortion(M, torch.zeros(3, 2, dtype=dtype, device=device))
    loss.backward()
    assert_placed(f.weight.grad, device, dtype)
