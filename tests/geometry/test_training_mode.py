"""Layers in training mode: which are refused, and how their statistics are frozen in a loop."""

import copy

import pytest
import torch
from torch import nn

import riemae
from riemae import Manifold
from riemae.autoencoders import losses
from riemae.exceptions import DecoderError, DTypeError

Z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(norm=nn.BatchNorm1d):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(2, 8), norm(8), nn.SiLU(), nn.Sequential(nn.Linear(8, 5), norm(5))]
        decoder = nn.Sequential(*layers).double()
        for _ in range(3):  # running statistics that are not those of any batch
            decoder(2 * torch.randn(32, 2, dtype=torch.float64) + 1)
    return decoder


def test_the_metric_is_that_of_running_statistics_and_training_goes_on():
    decoder = network()
    frozen = copy.deepcopy(decoder).eval()
    before = copy.deepcopy(decoder.state_dict())
    M = Manifold(decoder)
    with riemae.frozen_statistics(decoder):
        assert decoder.training
        assert [part.training for part in decoder[3]] == [True, False]
        assert torch.equal(M.metric(Z), Manifold(frozen).metric(Z))
    assert all(part.training for part in decoder.modules())
    after = decoder.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    with pytest.raises(DecoderError, match=r"BatchNorm1d '1' in training.*frozen_statistics"):
        M.metric(Z)


def test_gradients_reach_all_weights_and_are_those_of_evaluation_mode():
    decoder = network()
    twin = copy.deepcopy(decoder).eval()
    with riemae.frozen_statistics(decoder):
        losses.relaxed_distortion(Manifold(decoder), Z).backward()
    losses.relaxed_distortion(Manifold(twin), Z).backward()
    # The last bias moves nothing but the decoded points.
    moving = dict(decoder.named_parameters())
    for name, other in twin.named_parameters():
        if other.grad is not None:
            torch.testing.assert_close(moving[name].grad, other.grad, rtol=1e-10, atol=1e-12)
    assert all(moving[name].grad.abs().max() > 0 for name in ("0.weight", "1.weight", "3.1.weight"))


def test_a_training_loop_takes_both_terms():
    decoder = network()
    M = Manifold(decoder)
    optimiser = torch.optim.SGD(decoder.parameters(), lr=1e-2)
    statistics = decoder[1].running_mean.clone()
    found = []
    for _ in range(8):
        target = torch.cat([Z, Z.square(), Z[:, :1]], 1)
        loss = (decoder(Z) - target).square().mean()
        with riemae.frozen_statistics(decoder):
            loss = loss + losses.relaxed_distortion(M, Z)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    assert found[-1] < found[0]
    assert not torch.equal(decoder[1].running_mean, statistics)  # by the reconstruction


def test_layers_come_back_after_an_error_and_only_those_that_were_in_training():
    decoder = network()
    decoder[1].eval()
    modes = [part.training for part in decoder.modules()]
    with pytest.raises(ValueError, match="inside"), riemae.frozen_statistics(decoder):
        raise ValueError("inside")
    assert [part.training for part in decoder.modules()] == modes
    with riemae.frozen_statistics(decoder), riemae.frozen_statistics(decoder, decoder[3]):
        pass
    assert [part.training for part in decoder.modules()] == modes


def test_functions_of_modules_are_taken_and_dropout_is_still_refused():
    decoder = nn.Sequential(network(), nn.Dropout(0.3))

    def decode(z):
        return decoder(z)

    with riemae.frozen_statistics(decode):
        assert not decoder[0][1].training
        assert decoder[1].training
        with pytest.raises(DecoderError, match="Dropout '1' in training mode"):
            Manifold(decoder).metric(Z)


def test_what_has_no_running_statistics_or_no_module_is_refused():
    bare = network(lambda width: nn.BatchNorm1d(width, track_running_stats=False))
    with pytest.raises(DecoderError, match="running statistics.*track_running_stats=True"):
        with riemae.frozen_statistics(bare):
            pass
    with pytest.raises(DTypeError, match=r"nn\.Module"), riemae.frozen_statistics(torch.sin):
        pass


def test_instance_norm_without_running_statistics_is_a_map_of_single_points():
    decoder = nn.Sequential(
        nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 3, 1), nn.InstanceNorm1d(3), nn.Flatten()
    ).double()
    moved = Z + torch.tensor([0.0, 3.0], dtype=torch.float64)
    g = Manifold(decoder).metric(moved)
    assert torch.equal(Manifold(copy.deepcopy(decoder).eval()).metric(moved), g)
    tracked = nn.Sequential(decoder[0], decoder[1], nn.InstanceNorm1d(3, track_running_stats=True))
    with pytest.raises(DecoderError, match="InstanceNorm1d '2' in training mode"):
        Manifold(tracked.double()).metric(moved)
