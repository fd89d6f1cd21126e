"""The tail of a language model as a decoder, and steering along its geodesics."""

import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.ambient import FisherRao
from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.interop.transformers import Tail, manifold, steer

F64 = torch.float64
PROMPT = torch.tensor([1, 2, 3])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix, self.drop = nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, hidden):
        past = hidden.cumsum(1) / torch.arange(1, hidden.shape[1] + 1)[:, None].to(hidden)
        return (hidden + self.drop(self.mix(past).tanh()),)


class StandIn(nn.Module):
    """A causal language model with the interface of transformers' ones."""

    config = SimpleNamespace(vocab_size=11)

    def __init__(self, width=6):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.tokens = nn.Embedding(11, width)
            self.blocks = nn.ModuleList([Block(width), Block(width)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)
        self.double()

    def forward(self, input_ids, use_cache=True, logits_to_keep=0):
        hidden = self.tokens(input_ids)
        for block in self.blocks:
            (hidden,) = block(hidden)
        kept = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        return SimpleNamespace(logits=self.head(self.norm(kept)))


def directions(width=6, m=2):
    return torch.randn(m, width, generator=torch.Generator().manual_seed(1), dtype=F64)


def origin(m=2):
    return torch.zeros(m, dtype=F64)


class TestTail:
    @pytest.mark.parametrize("layer", [-2, -1, 0, 1])
    def test_its_own_state_gives_its_own_next_token(self, layer):
        model = StandIn()
        tail = Tail(model, PROMPT, layer)
        expected = model.eval()(PROMPT[None]).logits[:, -1].log_softmax(-1)
        found = tail(tail.hidden[None]).logits
        torch.testing.assert_close(found, expected)

    def test_the_state_is_that_behind_the_block(self):
        model = StandIn().eval()
        (first,) = model.blocks[0](model.tokens(PROMPT[None]))
        assert torch.equal(Tail(model, PROMPT, 0).hidden, first[0, -1])
        moved = first.clone()
        moved[0, -1] += 0.5
        (second,) = model.blocks[1](moved)
        expected = model.head(model.norm(second[:, -1])).log_softmax(-1)
        torch.testing.assert_close(Tail(model, PROMPT, 0)(moved[:, -1]).logits, expected)

    def test_the_model_stays_as_it_is(self):
        model = StandIn()
        tail = Tail(model, PROMPT[None])
        assert model.training
        assert not tail.training or not tail.model.training
        assert not any(block._forward_hooks for block in model.blocks)
        assert not any(block._forward_hooks for block in tail.model.blocks)

    def test_bad_input(self):
        for wrong in (nn.Linear(2, 2), object()):
            with pytest.raises(DTypeError, match="causal language model"):
                Tail(wrong, PROMPT)
        bare = nn.Linear(2, 2)
        bare.config = None
        with pytest.raises(DTypeError, match="without blocks"):
            Tail(bare, PROMPT)
        with pytest.raises(ShapeError, match="one prompt"):
            Tail(StandIn(), PROMPT.expand(2, 3))
        with pytest.raises(OptionError, match="layer from -2 to 1"):
            Tail(StandIn(), PROMPT, 2)


class TestManifold:
    def test_metric_is_the_fisher_information(self):
        M = manifold(StandIn(), PROMPT, directions(), layer=0)
        assert isinstance(M, Manifold)
        assert M.latent_dim == 2
        z = torch.tensor([[0.1, -0.2]], dtype=F64)
        G = M.metric(z)[0]
        assert isinstance(M.ambient, FisherRao)
        logits = torch.autograd.functional.jacobian(lambda p: M.decoder(p[None]).logits[0], z[0])
        p = M.distribution(z).probs[0]
        expected = logits.T @ (p.diag() - p[:, None] * p) @ logits
        torch.testing.assert_close(G, expected)

    def test_origin(self):
        model = StandIn()
        tail = Tail(model, PROMPT)
        away = tail.hidden + directions()[0]
        M = manifold(model, PROMPT, directions(), origin=away)
        N = manifold(model, PROMPT, directions())
        z = torch.tensor([[0.3, 0.1]], dtype=F64)
        torch.testing.assert_close(M.metric(z), N.metric(z + torch.tensor([1.0, 0.0])))

    def test_elsewhere(self):
        """In another dtype, and in another process."""
        M = manifold(StandIn(), PROMPT, directions(), layer=0)
        z = torch.tensor([[0.1, -0.2]], dtype=F64)
        single = M.to(dtype=torch.float32).metric(z.float())
        torch.testing.assert_close(single.double(), M.metric(z), rtol=1e-3, atol=1e-6)
        assert torch.equal(pickle.loads(pickle.dumps(M)).metric(z), M.metric(z))

    def test_bad_directions(self):
        with pytest.raises(ShapeError, match="directions"):
            manifold(StandIn(), PROMPT, directions(5))
        with pytest.raises(OptionError, match="independent"):
            manifold(StandIn(), PROMPT, directions()[:1].expand(2, 6))
        with pytest.raises(ShapeError, match="origin"):
            manifold(StandIn(), PROMPT, directions(), origin=torch.zeros(5))


class TestSteering:
    def test_report(self):
        M = manifold(StandIn(), PROMPT, 3 * directions())
        z1 = torch.tensor([1.0, 0.5], dtype=F64)
        found = steer(M, origin(), z1, [4, 7], steps=5)
        assert found.vectors.shape == (5, 6)
        assert torch.equal(found.vectors[0], torch.zeros(6, dtype=F64))
        torch.testing.assert_close(found.vectors[-1], z1 @ (3 * directions()))
        torch.testing.assert_close(found.straight_vectors[-1], found.vectors[-1])
        assert found.length <= found.straight_length * (1 + 1e-3)
        # Ends are the same on both ways, and so is what they do.
        for curved, straight in (
            (found.target, found.straight_target),
            (found.off_target, found.straight_off_target),
        ):
            torch.testing.assert_close(curved[[0, -1]], straight[[0, -1]])
        p = M.distribution(torch.stack([origin(), z1])).probs
        torch.testing.assert_close(found.target[[0, -1]], p[:, [4, 7]].sum(1))
        others = [i for i in range(11) if i not in (4, 7)]
        rest = p[:, others] / p[:, others].sum(1, keepdim=True)
        divergence = (rest[1] * (rest[1] / rest[0]).log()).sum()
        torch.testing.assert_close(found.off_target[-1], divergence)
        assert float(found.off_target[0]) == 0
        assert "off-target divergence" in repr(found)
        assert "<table" in found._repr_html_()

    def test_bad_input(self):
        M = manifold(StandIn(), PROMPT, directions())
        with pytest.raises(DTypeError, match="of a language model"):
            steer(Manifold(lambda z: z), origin(), origin() + 1, [3])
        with pytest.raises(ShapeError, match="z1"):
            steer(M, origin(), origin()[None], [3])
        for target in ([], [0.5]):
            with pytest.raises(OptionError, match="numbers of tokens"):
                steer(M, origin(), origin() + 0.1, target)
        for target in ([11], list(range(11))):
            with pytest.raises(OptionError, match="target"):
                steer(M, origin(), origin() + 0.1, target)
        with pytest.raises(OptionError, match="steps"):
            steer(M, origin(), origin() + 0.1, [3], steps=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_real_ones(name):
    """Tiny models from a configuration, with random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("transformers")
    tokens = {"vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "GPT2":
            config = package.GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=8, **tokens)
            model = package.GPT2LMHeadModel(config)
        else:
            config = package.LlamaConfig(
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                **tokens,
            )
            model = package.LlamaForCausalLM(config)
    model.double()
    M = manifold(model, PROMPT, directions(8), layer=0)
    p = M.distribution(origin()[None]).probs
    expected = model.eval()(input_ids=PROMPT[None]).logits[:, -1].softmax(-1)
    torch.testing.assert_close(p, expected)
    z = torch.tensor([[0.1, -0.2]], dtype=F64)
    logits = torch.autograd.functional.jacobian(lambda p: M.decoder(p[None]).logits[0], z[0])
    p = M.distribution(z).probs[0]
    wanted = logits.T @ (p.diag() - p[:, None] * p) @ logits
    torch.testing.assert_close(M.metric(z)[0], wanted)
