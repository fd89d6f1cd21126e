"""Geometry logged during anybody's training, which it does not change."""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold, scores
from riemae.exceptions import DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.interop.lightning import GeometryLogger

lightning = pytest.importorskip("lightning.pytorch")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(64, 5)
CODES = draw(20, 2, seed=1)


class Plain(lightning.LightningModule):
    """An autoencoder as people write them, with layers that training mode makes random."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 2)
        self.decoder = nn.Sequential(
            nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 5)
        )

    def training_step(self, batch, index):
        return (self.decoder(self.encoder(batch)) - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def trained(callbacks, epochs=4):
    torch.manual_seed(0)
    module = Plain()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    loader = torch.utils.data.DataLoader(X, batch_size=16, shuffle=True)
    trainer.fit(module, loader)
    return module, trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
class TestTraining:
    def test_the_training_is_the_same_to_the_bit(self):
        logger = GeometryLogger(CODES)
        (with_it, trainer), (without, _) = trained([logger]), trained([])
        for a, b in zip(with_it.state_dict().values(), without.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        after = torch.rand(3)
        trained([])
        assert torch.equal(torch.rand(3), after)  # and so are random numbers
        assert all(math.isfinite(v) for values in logger.history.values() for v in values)
        names = {"condition_number", "volume_variation", "distortion", "curvature"}
        assert set(trainer.callback_metrics) == {f"geometry/{name}" for name in names}

    def test_the_numbers_are_those_of_the_manifold(self):
        logger = GeometryLogger(CODES, every=2)
        module, _ = trained([logger])
        assert logger.history["epoch"] == [1.0, 3.0]
        M = Manifold(module.decoder.eval().requires_grad_(False))
        expected = {
            "condition_number": scores.condition_number(M, CODES).median(),
            "volume_variation": M.log_volume(CODES).std(),
            "distortion": M.distortion(CODES, "scaled_isometry"),
            "curvature": M.gaussian_curvature(CODES).abs().median(),
        }
        for name, value in expected.items():
            found = logger.history[f"geometry/{name}"][-1]
            assert found == pytest.approx(float(value), rel=1e-3), name

    def test_a_decoder_by_name_and_a_history_that_goes_on(self):
        module, _ = trained([], epochs=1)
        module.net, module.decoder = module.decoder, None
        logger = GeometryLogger(CODES, decoder=lambda z: module.net(z), prefix="")
        again = GeometryLogger(CODES)
        logger.history = {"epoch": [0.0]}
        again.load_state_dict(logger.state_dict())
        assert again.history == {"epoch": [0.0]}
        assert set(logger.measured(logger._decoder(module))) > {"distortion"}
        with pytest.raises(DTypeError, match="a module with a decoder"):
            again._decoder(module)


class TestMeasured:
    def test_modes_gradients_and_random_numbers_stay(self):
        decoder = Plain().decoder
        decoder[3].eval()
        decoder(CODES).sum().backward()
        grads = [p.grad.clone() for p in decoder.parameters()]
        modes = [layer.training for layer in decoder.modules()]
        state = torch.get_rng_state()
        buffers = [b.clone() for b in decoder.buffers()]
        GeometryLogger(CODES).measured(decoder)
        assert torch.equal(state, torch.get_rng_state())
        assert modes == [layer.training for layer in decoder.modules()]
        for p, grad in zip(decoder.parameters(), grads, strict=True):
            assert torch.equal(p.grad, grad)
            assert p.requires_grad
        assert all(map(torch.equal, buffers, decoder.buffers()))

    def test_closed_forms(self):
        # A plane that is stretched three times in one direction.
        stretched = GeometryLogger(CODES).measured(lambda z: z * torch.tensor([3.0, 1.0]))
        assert stretched["condition_number"] == pytest.approx(9, rel=1e-5)
        assert stretched["volume_variation"] == pytest.approx(0, abs=1e-6)
        assert stretched["curvature"] == pytest.approx(0, abs=1e-5)

        def sphere(z):  # of radius 2, by stereographic projection
            square = z.square().sum(-1, keepdim=True)
            return 2 * torch.cat([2 * z, square - 1], -1) / (1 + square)

        found = GeometryLogger(CODES).measured(sphere)
        assert found["curvature"] == pytest.approx(0.25, rel=1e-3)
        assert found["condition_number"] == pytest.approx(1, rel=1e-4)
        density = (16 / (1 + CODES.square().sum(1)).square()).log()
        assert found["volume_variation"] == pytest.approx(float(density.std()), rel=1e-3)

    def test_nan_where_the_metric_is_singular(self):
        found = GeometryLogger(CODES).measured(lambda z: torch.cat([z[:, :1], z[:, :1]], -1))
        assert math.isnan(found["curvature"])
        assert math.isnan(found["volume_variation"]) or found["volume_variation"] == math.inf

    def test_refusals(self):
        with pytest.raises(DTypeError, match="codes"):
            GeometryLogger([[0.0, 1.0]])
        with pytest.raises(ShapeError, match="codes"):
            GeometryLogger(torch.zeros(3))
        with pytest.raises(NonFiniteError, match="codes"):
            GeometryLogger(torch.full((2, 2), math.nan))
        with pytest.raises(OptionError, match="every"):
            GeometryLogger(CODES, every=0)
        with pytest.raises(DTypeError, match="a decoder to call"):
            GeometryLogger(CODES, decoder="decode")
