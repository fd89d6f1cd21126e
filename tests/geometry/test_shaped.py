"""Codes that are not flat, and decoders whose output holds the data among other things."""

import pickle
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import DecoderError, DTypeError, OptionError, ShapeError

SHAPE = (2, 3)


class Decoder(nn.Module):
    """Codes (k, 2, 3) to data (k, 5)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9))

    def forward(self, z):
        assert z.shape[1:] == SHAPE
        return self.layers(z)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Decoder().double().eval()


def draw(*batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *SHAPE, generator=generator, dtype=torch.float64)


class TestShapedCodes:
    def test_every_quantity_is_that_of_flat_codes(self, net):
        shaped = Manifold(net, latent_shape=SHAPE)
        flat = Manifold(lambda z: net(z.unflatten(-1, SHAPE)))
        z, v = draw(4), draw(4, seed=1)
        for name in ("metric", "christoffel", "log_volume", "jacobian", "decode", "eigenvalues"):
            torch.testing.assert_close(
                getattr(shaped, name)(z), getattr(flat, name)(z.flatten(1)), rtol=1e-12, atol=1e-12
            )
        for name in ("norm", "pushforward"):
            torch.testing.assert_close(
                getattr(shaped, name)(z, v), getattr(flat, name)(z.flatten(1), v.flatten(1))
            )

    def test_flat_codes_are_taken_as_well(self, net):
        shaped = Manifold(net, latent_shape=SHAPE)
        z = draw(4)
        assert torch.equal(shaped.metric(z), shaped.metric(z.flatten(1)))

    @pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
    def test_batch_axes_come_first(self, net, batch):
        shaped = Manifold(net, latent_shape=SHAPE)
        assert shaped.metric(draw(*batch)).shape == (*batch, 6, 6)
        assert shaped.decode(draw(*batch)).shape == (*batch, 9)

    def test_points_and_tangents_are_returned_in_that_shape(self, net):
        shaped = Manifold(net, latent_shape=SHAPE)
        z, v = draw(2), 0.1 * draw(2, seed=1)
        assert shaped.exp(z, v).shape == (2, *SHAPE)
        assert shaped.acceleration(z, v).shape == (2, *SHAPE)
        assert shaped.pullback(z, shaped.pushforward(z, v)).shape == (2, *SHAPE)
        back = shaped.log(z, shaped.exp(z, v), rtol=1e-6)
        torch.testing.assert_close(back, v, rtol=1e-4, atol=1e-5)

    def test_geodesics_and_distances(self, net):
        shaped = Manifold(net, latent_shape=SHAPE)
        flat = Manifold(lambda z: net(z.unflatten(-1, SHAPE)))
        a, b = draw(2), draw(2, seed=1)
        r = shaped.geodesic(a, b)
        assert torch.equal(r.length, flat.geodesic(a.flatten(1), b.flatten(1)).length)
        assert r.curve.nodes.shape[-1] == 6
        assert shaped.decode(r.curve(torch.tensor(0.5, dtype=torch.float64))).shape == (2, 9)
        matrix = shaped.distance_matrix(draw(3))
        assert matrix.shape == (3, 3)

    def test_copies_keep_it(self, net):
        shaped = Manifold(net, latent_shape=SHAPE)
        z = draw(2)
        assert shaped.to(dtype=torch.float32).metric(z.float()).shape == (2, 6, 6)
        again = pickle.loads(pickle.dumps(shaped))
        assert again.latent_shape == SHAPE
        assert torch.equal(again.metric(z), shaped.metric(z))

    def test_gradients_reach_the_codes(self, net):
        z = draw(2).requires_grad_()
        Manifold(net, latent_shape=SHAPE).log_volume(z).sum().backward()
        assert z.grad.shape == (2, *SHAPE)

    def test_other_shapes_are_refused(self, net):
        with pytest.raises(ShapeError, match=r"codes of shape \(\*b, 2, 3\)"):
            Manifold(net, latent_shape=SHAPE).metric(torch.zeros(4, 3, 2, dtype=torch.float64))

    @pytest.mark.parametrize("shape", [6, (), (2, 0), (2, 3.0), "23"])
    def test_what_is_no_shape_is_refused(self, net, shape):
        with pytest.raises(OptionError, match="latent_shape"):
            Manifold(net, latent_shape=shape)

    def test_a_contradiction_is_refused(self, net):
        with pytest.raises(OptionError, match="latent_dim=6"):
            Manifold(net, latent_dim=5, latent_shape=SHAPE)


@dataclass
class Output:
    sample: torch.Tensor
    loss: object = None


Pair = namedtuple("Pair", ["image", "labels"])


class TestForeignOutputs:
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @staticmethod
    def data(z):
        return torch.cat([z.sin(), z.square()], -1)

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: Output(x),
            lambda x: {"sample": x, "loss": None},
            lambda x: (x,),
            lambda x: [x, "name"],
            lambda x: Pair(x, torch.zeros(len(x), dtype=torch.int64)),
        ],
        ids=["object", "dict", "tuple", "list", "named tuple"],
    )
    def test_the_only_floating_tensor_is_taken(self, wrap):
        wrapped = Manifold(lambda z: wrap(self.data(z)))
        assert torch.equal(wrapped.metric(self.z), Manifold(self.data).metric(self.z))

    @pytest.mark.parametrize(
        ("wrap", "advice"),
        [
            (lambda x: Output(x, x.sum()), r"lambda o: o\.sample"),
            (lambda x: {"a": x, "b": x}, r"lambda o: o\['a'\]"),
            (lambda x: (x, x), r"lambda o: o\[0\]"),
        ],
        ids=["object", "dict", "tuple"],
    )
    def test_of_several_one_must_be_named(self, wrap, advice):
        with pytest.raises(DecoderError, match=advice):
            Manifold(lambda z: wrap(self.data(z))).metric(self.z)

    def test_the_named_one_is_taken(self):
        both = Manifold(lambda z: (z, self.data(z)), output=lambda o: o[1])
        assert torch.equal(both.metric(self.z), Manifold(self.data).metric(self.z))

    def test_output_must_be_a_function(self):
        with pytest.raises(DTypeError, match="output as a function"):
            Manifold(self.data, output="sample")
