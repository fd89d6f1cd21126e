"""Terms get what they name, and the named losses have their minimum where they say."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from riemae import Manifold, load
from riemae.autoencoders import AE, IRAE, MCAE, NRAE, Term, encoder_losses, graph_losses, losses
from riemae.autoencoders.wants import Wants
from riemae.exceptions import OptionError, ShapeError

SMALL = {"hidden": (8,), "epochs": 2, "batch_size": 16}
F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=gen(seed), dtype=F64)


def data(n=40, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def frame(d=5, m=2):
    """Orthonormal columns (d, m)."""
    return torch.linalg.qr(randn(d, m)).Q


class TestWants:
    def test_what_a_term_names_it_gets(self):
        seen = {}

        def mine(manifold, z, x, encoder, index, neighbor, weights, generator, decoded):
            seen.update(locals())
            assert torch.allclose(decoded, manifold.decode(z))
            assert torch.allclose(encoder(x), z)
            return (encoder(x) - z).square().sum() + (decoded - x).square().mean()

        x = data()
        w = np.arange(40.0)
        AE(**SMALL, terms={"mine": Term(1e-3, mine)}).fit(x, weights=w)
        assert isinstance(seen["manifold"], Manifold)
        assert seen["z"].shape == (8, 2)
        rows = torch.as_tensor(x)[seen["index"]]
        assert torch.equal(seen["x"], rows)
        # One of the ten nearest others.
        d = torch.cdist(seen["x"], torch.as_tensor(x))
        near = d.topk(11, largest=False).indices
        chosen = torch.cdist(seen["neighbor"], torch.as_tensor(x)).argmin(1)
        assert bool((near == chosen[:, None]).any(1).all())
        assert not bool((chosen == seen["index"]).any())
        assert torch.allclose(seen["weights"], torch.as_tensor(w / w.mean())[seen["index"]])
        assert isinstance(seen["generator"], torch.Generator)
        assert seen["decoded"].shape == (8, 3)

    @pytest.mark.parametrize(
        ("loss", "expected"),
        [
            (lambda M, z: 0, Wants()),
            (lambda a, b, x: 0, Wants(True, frozenset("x"), frozenset("x"))),
            (lambda z: 0, Wants(False, frozenset("z"), frozenset("z"))),
            (lambda x, z: 0, Wants(False, frozenset("xz"), frozenset("xz"))),
            (lambda z, k=3: 0, Wants(False, frozenset("z"), frozenset("z"))),
            (lambda *a: 0, Wants()),
            (lambda M, z, decoded=False: 0, Wants(shares=True)),
            (
                lambda z, decoded: 0,
                Wants(False, frozenset({"z", "decoded"}), frozenset({"z", "decoded"})),
            ),
            (functools.partial(lambda M, z, a: 0, a=1), Wants()),
            (math.hypot, Wants()),
            (lambda M, z, weights=None: 0, Wants(True, frozenset({"weights"}), frozenset())),
        ],
    )
    def test_signatures(self, loss, expected):
        assert Wants.of("mine", loss, {}) == expected

    @pytest.mark.parametrize("loss", [lambda M: 0, lambda M, z, foo: 0, lambda z, foo, bar: 0])
    def test_what_nobody_can_fill(self, loss):
        with pytest.raises(OptionError, match=r"'mine' with parameters among manifold, z"):
            AE(**SMALL, terms={"mine": Term(1.0, loss)}).fit(data())

    def test_options_fill_parameters(self):
        def mine(z, power):
            return z.abs().pow(power).mean()

        term = Term(0.1, mine, options={"power": 3})
        m = AE(**SMALL, terms={"mine": term}).fit(data())
        assert m.history_["mine"][-1] > 0

    def test_signatures_that_python_allows(self):
        class Counting:
            calls = 0

            def loss(self, z):
                self.calls += 1
                return z.square().mean()

        def scaled(M, z, k):
            assert isinstance(M, Manifold)
            return k * z.square().mean()

        def first(k, z):
            return k * z.square().mean()

        def by_place(M, z, /):
            return z.square().mean()

        def by_name(*, z, **others):
            return z.square().mean()

        counting = Counting()
        x = data()
        found = [
            AE(**SMALL, terms={"own": Term(0.1, loss)}).fit(x).history_["own"]
            for loss in (
                counting.loss,
                functools.partial(scaled, k=1.0),
                functools.partial(first, 1.0),
                by_place,
                by_name,
                lambda *given: given[1].square().mean(),
                lambda z, factor=1.0: factor * z.square().mean(),
            )
        ]
        assert all(values == found[0] for values in found)
        assert counting.calls == 6

    @pytest.mark.parametrize(
        ("loss", "options", "text"),
        [
            (lambda z, frobnicate: z.sum(), {}, "frobnicate"),
            (lambda M, x: x.sum(), {}, "M"),
            (lambda z, scale=2.0: z.sum(), {"scal": 3.0}, "scal"),
            (lambda z: z.square().sum(1), {}, "one number"),
            (lambda z: (z.sum(), z), {}, "one number"),
            (lambda z: None, {}, "one number"),
        ],
    )
    def test_mistakes(self, loss, options, text):
        with pytest.raises(OptionError, match=text):
            AE(**SMALL, terms={"own": Term(0.1, loss, options=options)}).fit(data())

    def test_batches_without_what_is_asked_for(self):
        loader = DataLoader(TensorDataset(torch.as_tensor(data())), batch_size=10)
        by_number = {"mine": Term(1.0, lambda z, index: z.square().mean())}
        with pytest.raises(OptionError, match=r"'mine' asks for, got none of: index"):
            AE(**SMALL, terms=by_number).fit(loader)
        with pytest.raises(OptionError, match="use validation_fraction"):
            AE(**SMALL, terms=by_number).fit(data(), validation=data(seed=1))
        held = AE(**SMALL, terms=by_number, validation_fraction=0.2).fit(data())
        assert len(held.history_["val_mine"]) == 2

    def test_numbers_are_those_of_the_data_also_when_some_are_kept_out(self):
        x = data()
        seen = []

        def mine(x, index):
            seen.append((x, index))
            return x.sum() * 0

        AE(**SMALL, terms={"mine": Term(1.0, mine)}, validation_fraction=0.25).fit(x)
        for batch, index in seen:
            assert torch.equal(batch, torch.as_tensor(x)[index])

    def test_a_loader_may_give_numbers_and_weights(self):
        x = torch.as_tensor(data())
        rows = [{"x": x[i], "index": i, "weights": 1.0} for i in range(40)]
        terms = {"mine": Term(1.0, lambda z, index, weights: (weights * z[:, 0] * index).mean())}
        AE(**SMALL, terms=terms).fit(DataLoader(rows, batch_size=10))

    def test_a_module_is_trained_and_the_callers_stays(self):
        class Scale(nn.Module):
            def __init__(self):
                super().__init__()
                self.s = nn.Parameter(torch.ones((), dtype=F64))

            def forward(self, z):
                return (self.s - 3).square()

        own = Scale()
        m = AE(**SMALL, lr=0.1, terms={"scale": Term(1.0, own)}).fit(data())
        assert float(own.s.detach()) == 1
        assert float(m.objective_.learned["scale"].s) > 1.1


class TestWeightsThatAreNone:
    @pytest.mark.parametrize("weight", [-1.0, float("nan"), math.sin, "0.1", True])
    def test_of_a_term(self, weight):
        with pytest.raises(OptionError, match="weight"):
            AE(**SMALL, terms={"relaxed_distortion": Term(weight)}).fit(data())
        with pytest.raises(OptionError, match="weight"):
            IRAE(**SMALL, weight=weight).fit(data())

    def test_unknown_schedule(self):
        with pytest.raises(OptionError, match=r"schedule among 'linear', 'cosine', 'cyclical'"):
            AE(**SMALL, terms={"relaxed_distortion": Term(0.1, schedule="up")}).fit(data())


def project(x, f):
    return x @ f


class TestEncoderIsometry:
    def test_projections_are_the_minimum(self):
        f = frame()
        for scale in (1.0, 0.2):
            value = encoder_losses.encoder_isometry(lambda x, s=scale: s * x @ f, randn(50, 5))
            assert float(value) == pytest.approx(0, abs=1e-12)

    def test_value_of_a_linear_encoder(self):
        # K = diag(4, 1): 4 · 17/25 − 2.
        f = frame() * torch.tensor([2.0, 1.0], dtype=F64)
        value = encoder_losses.encoder_isometry(lambda x: x @ f, randn(9, 5))
        assert float(value) == pytest.approx(4 * 17 / 25 - 2, rel=1e-12)
        absolute = encoder_losses.encoder_isometry(lambda x: x @ f, randn(9, 5), scale=2.0)
        assert float(absolute) == pytest.approx((0 + 0.75**2) / 2, rel=1e-12)

    def test_probes_are_unbiased(self):
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        net.requires_grad_(False)
        x = randn(40, 5)
        exact = float(encoder_losses.encoder_isometry(net, x, scale=1.0, probes=None).detach())
        many = encoder_losses.encoder_isometry(net, x, scale=1.0, probes=400, generator=gen())
        found = float(many.detach())
        assert found == pytest.approx(exact, rel=0.03)

    def test_weights_are_repetitions(self):
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        x = randn(6, 5)
        w = torch.tensor([1.0, 2, 1, 0, 1, 3], dtype=F64)
        twice = x.repeat_interleave(w.long(), 0)
        a = encoder_losses.encoder_isometry(net, x, weights=w)
        assert torch.allclose(a, encoder_losses.encoder_isometry(net, twice), rtol=1e-12)

    @pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"probes": 0}])
    def test_wrong_options(self, wrong):
        with pytest.raises(OptionError):
            encoder_losses.encoder_isometry(lambda x: x, randn(4, 2), **wrong)


class TestJacobianMatching:
    def test_an_encoder_that_undoes_the_decoder(self):
        f = frame()
        M = Manifold(lambda z: torch.tanh(z) @ f.T)
        z = randn(20, 2) / 3
        back = encoder_losses.jacobian_matching(M, z, lambda x: torch.atanh(x @ f))
        assert float(back) == pytest.approx(0, abs=1e-20)
        # J_g J_f = 2: ‖1‖² / m = 1.
        double = encoder_losses.jacobian_matching(M, z, lambda x: 2 * torch.atanh(x @ f))
        assert float(double) == pytest.approx(1, rel=1e-10)
        probed = encoder_losses.jacobian_matching(
            M, z, lambda x: 2 * torch.atanh(x @ f), probes=2, generator=gen()
        )
        assert float(probed) == pytest.approx(1, rel=1e-10)

    def test_gradients_reach_both_networks(self):
        e = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        d = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4)).double()
        encoder_losses.jacobian_matching(Manifold(d), randn(7, 2), e).backward()
        assert all(p.grad is not None for p in [e[0].weight, d[0].weight])


class TestBiLipschitz:
    def test_inside_the_bounds_it_is_0(self):
        a = torch.diag(torch.tensor([1.4, 1 / 1.4], dtype=F64)) * 7
        M = Manifold(lambda z: z @ a)
        assert float(encoder_losses.bi_lipschitz(M, randn(5, 2))) == 0
        # Both singular values are off by log 1.4 − log 1.2.
        value = encoder_losses.bi_lipschitz(M, randn(5, 2), bound=1.2)
        assert float(value) == pytest.approx(2 * math.log(1.4 / 1.2) ** 2, rel=1e-10)
        with pytest.raises(OptionError, match="bound of at least 1"):
            encoder_losses.bi_lipschitz(M, randn(5, 2), bound=0.5)


class TestAbsoluteIsometry:
    def test_given_scale(self):
        f = frame()
        M = Manifold(lambda z: 3 * z @ f.T)
        z = randn(5, 2)
        loss = encoder_losses.AbsoluteIsometry(3.0).fitted(randn(9, 5))
        assert float(loss(M, z)) == pytest.approx(0, abs=1e-20)
        one = encoder_losses.AbsoluteIsometry(1.0).fitted(randn(9, 5))
        assert float(one(M, z)) == pytest.approx(64, rel=1e-12)

    def test_learned_scale_finds_the_isometry_s(self):
        f = frame()
        M = Manifold(lambda z: 3 * z @ f.T)
        loss = encoder_losses.AbsoluteIsometry().fitted(randn(200, 5))
        z = randn(5, 2)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            value = loss(M, z)
            value.backward()
            optimizer.step()
        assert value.item() < 1e-6
        assert (loss.unit * loss.log_scale.exp()).item() == pytest.approx(3, rel=1e-3)

    def test_it_is_saved_with_its_scale(self, tmp_path):
        m = AE(**SMALL, lr=0.05, terms={"absolute_isometry": 0.1}).fit(data())
        scale = m.objective_.learned["absolute_isometry"].log_scale
        assert float(scale.abs()) > 0.01
        again = load(m.save(tmp_path))
        assert torch.equal(again.objective_.learned["absolute_isometry"].log_scale, scale)
        again.partial_fit(data())


class TestTopology:
    def test_equal_trees_up_to_a_scale(self):
        z = randn(30, 2)
        assert float(encoder_losses.topology(z, 7 * z @ frame().T)) == pytest.approx(0, abs=1e-15)

    def test_what_merges_elsewhere(self):
        # Data: 0, 1, 3. Codes: 0, 1, 2, whose tree edges have other lengths.
        x = torch.tensor([[0.0], [1.0], [3.0]], dtype=F64)
        z = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
        s = math.sqrt((2 * (1 + 4 + 9)) / 9)
        t = math.sqrt((2 * (1 + 1 + 4)) / 9)
        expected = ((1 / s - 1 / t) ** 2 + (2 / s - 1 / t) ** 2) / 2
        assert float(encoder_losses.topology(z, x)) == pytest.approx(expected, rel=1e-7)

    def test_duplicates_have_a_gradient(self):
        z = torch.zeros(4, 2, dtype=F64, requires_grad=True)
        y = torch.cat([z, torch.ones(2, 2, dtype=F64)])
        encoder_losses.topology(y, randn(6, 3)).backward()
        assert bool(z.grad.isfinite().all())

    def test_one_sample(self):
        with pytest.raises(ShapeError, match="2 samples"):
            encoder_losses.topology(randn(1, 2), randn(1, 3))


class TestStraightening:
    def line(self, n=12):
        t = torch.arange(n, dtype=F64)[:, None]
        return t * torch.tensor([[1.0, 2.0]], dtype=F64) * (1 + t)

    def test_lines_are_straight_and_corners_are_not(self):
        index = torch.arange(12)
        loss = encoder_losses.TemporalStraightening().fitted(self.line())
        assert float(loss(lambda x: x, index)) == pytest.approx(0, abs=1e-12)
        # Steps to and fro turn by π.
        zigzag = torch.tensor([[0.0], [1.0]], dtype=F64).repeat(6, 1)
        back = encoder_losses.TemporalStraightening().fitted(zigzag)
        assert float(back(lambda x: x, index)) == pytest.approx(2, rel=1e-12)

    def test_sequences_are_kept_apart(self):
        x = torch.cat([self.line(6), self.line(6)])
        apart = encoder_losses.TemporalStraightening([0] * 6 + [1] * 6).fitted(x)
        assert float(apart(lambda x: x, torch.arange(12))) == pytest.approx(0, abs=1e-12)
        one = encoder_losses.TemporalStraightening().fitted(x)
        assert float(one(lambda x: x, torch.arange(12))) > 0.1
        # A batch may have no sample with both neighbours.
        assert float(apart(lambda x: x, torch.tensor([0, 5]))) == 0

    def test_wrong_sequences(self):
        for wrong in ([0, 1], list(range(12))):
            with pytest.raises((ShapeError, OptionError)):
                encoder_losses.TemporalStraightening(wrong).fitted(self.line())


def graph_loss(kind, x, **options):
    return kind(**options).fitted(x)


class TestGraphLosses:
    def setup_method(self):
        # Half a circle, densely: distances along it are those of the angle.
        self.t = torch.linspace(0, math.pi, 80, dtype=F64)[:, None]
        self.x = torch.cat([self.t.cos(), self.t.sin()], 1)
        self.index = torch.arange(80)

    def encoder(self, f):
        return lambda x: f(torch.atan2(x[:, 1:], x[:, :1]))

    def test_distances_along_the_curve_are_matched_up_to_a_scale(self):
        loss = graph_loss(graph_losses.DistanceMatching, self.x, neighbors=2)
        for scale in (1.0, 40.0):
            value = loss(scale * self.t, self.index, self.encoder(lambda t, s=scale: s * t), gen())
            assert float(value) == pytest.approx(0, abs=1e-6)
        chords = loss(self.x, self.index, lambda x: x, gen())
        assert float(chords) > 5e-3

    def test_value_by_hand(self):
        x = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
        loss = graph_loss(graph_losses.DistanceMatching, x, neighbors=1)
        # Codes 0, 1, 3: ratios 1, 1, 3/2, 2 ..., each pair twice.
        codes = {0.0: 0.0, 1.0: 1.0, 2.0: 3.0}
        z = torch.tensor([[0.0], [1.0], [3.0]], dtype=F64)
        value = loss(
            z,
            torch.arange(3),
            lambda y: torch.tensor([[codes[float(v)]] for v in y[:, 0]], dtype=F64),
            gen(),
        )
        logs = np.log([1, 2, 1.5])
        assert float(value) == pytest.approx(logs.var(), rel=1e-6)

    def test_a_fold_is_seen_by_separation_and_a_stretch_is_not(self):
        loss = graph_loss(graph_losses.Separation, self.x, neighbors=2)
        stretched = self.encoder(lambda t: t + 0.3 * t.square())
        value = loss(stretched(self.x), self.index, stretched, gen())
        assert float(value) == 0
        folded = self.encoder(lambda t: (t - math.pi / 2).abs())
        value = loss(folded(self.x), self.index, folded, gen())
        assert float(value) > 0.05

    def test_the_gradient_at_a_fold_separates(self):
        # Codes of a folded line: the two ends share their codes, up to noise.
        loss = graph_loss(graph_losses.Separation, self.x, neighbors=2)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        with torch.no_grad():
            z = net(self.x)
        codes = z.requires_grad_()
        value = loss(codes, self.index, net, gen())
        value.backward()
        assert bool(codes.grad.isfinite().all())

    def test_landmarks_of_large_data(self):
        few = graph_loss(graph_losses.DistanceMatching, self.x, neighbors=2, landmarks=10)
        assert few.lengths.shape == (10, 80)
        value = few(self.t, self.index, self.encoder(lambda t: t), gen())
        assert float(value) == pytest.approx(0, abs=1e-6)

    def test_components_are_joined(self):
        two = torch.cat([self.x, self.x + 100])
        with pytest.warns(match="component"):
            loss = graph_loss(graph_losses.DistanceMatching, two, neighbors=2)
        assert bool(loss.lengths.isfinite().all())

    def test_an_embedding_is_pulled_to(self):
        e = randn(80, 2)
        loss = graph_loss(graph_losses.EmbeddingPull, self.x, embedding=e)
        assert float(loss(e[:9], self.index[:9])) == 0
        far = loss(e.mean(0).expand(80, 2), self.index)
        assert float(far) == pytest.approx(1, rel=1e-12)
        isomap = graph_loss(graph_losses.EmbeddingPull, self.x, embedding="isomap", neighbors=3)
        line = (self.t - self.t.mean()) / self.t.std(correction=0)
        value = min(float(isomap(s * line, self.index)) for s in (1, -1))
        assert value < 1e-3

    @pytest.mark.parametrize(
        "make",
        [
            lambda: graph_losses.EmbeddingPull("pca"),
            lambda: graph_losses.Separation(share=0.0),
            lambda: graph_losses.Separation(far=2.0),
            lambda: graph_losses.DistanceMatching(neighbors=0),
            lambda: graph_losses.DistanceMatching()(randn(3, 2), torch.arange(3), lambda x: x),
            lambda: graph_losses.EmbeddingPull()(randn(3, 2), torch.arange(3)),
            lambda: encoder_losses.TemporalStraightening()(lambda x: x, torch.arange(3)),
        ],
    )
    def test_wrong_options(self, make):
        with pytest.raises(OptionError):
            make()

    def test_wrong_embeddings(self):
        with pytest.raises(ShapeError):
            graph_losses.EmbeddingPull(randn(5, 2)).fitted(self.x)
        with pytest.raises(ShapeError, match=r"\(n, 1\)"):
            graph_losses.EmbeddingPull(randn(80, 2)).fitted(self.x)(self.t, self.index)


ALL = {
    "encoder_isometry": 1e-3,
    "jacobian_matching": 1e-3,
    "bi_lipschitz": 1e-3,
    "absolute_isometry": 1e-3,
    "topology": 1e-3,
    "temporal_straightening": 1e-3,
    "distance_matching": 1e-3,
    "separation": Term(1e-3, options={"share": 0.5, "neighbors": 5}),
    "embedding_pull": 1e-3,
    "contraction": 1e-3,
}


class TestByName:
    def test_all_together_are_trained_saved_and_priced(self, tmp_path):
        x = data().astype("float32")
        m = AE(**SMALL, terms=ALL).fit(x)
        assert set(ALL) <= set(m.history_)
        assert np.isfinite([m.history_[name][-1] for name in ALL]).all()
        assert set(ALL) <= set(m.costs(x))
        again = load(m.save(tmp_path))
        assert np.array_equal(again.transform(x), m.transform(x))
        again.partial_fit(x)
        assert np.isfinite(again.history_["separation"][-1])

    def test_under_neighbourhoods_validation_and_mixed_precision(self):
        x = data().astype("float32")
        m = NRAE(**SMALL, terms=ALL, validation_fraction=0.2, precision="bf16-mixed").fit(x)
        assert np.isfinite(m.history_["val_distance_matching"]).all()

    def test_unknown_names(self):
        with pytest.raises(OptionError, match="distance_matching"):
            AE(**SMALL, terms={"isometry": 0.1}).fit(data())


class TestWeightsOfSamples:
    def weighted(self, loss, M, z, w, **options):
        twice = z.repeat_interleave(w.long(), 0)
        a = loss(M, z, weights=w, **options)
        b = loss(M, twice, **options)
        assert torch.allclose(a, b, rtol=1e-9)
        assert not torch.allclose(a, loss(M, z, **options), rtol=1e-3)

    @pytest.mark.parametrize(
        ("loss", "options"),
        [
            (losses.relaxed_distortion, {"probes": None}),
            (losses.conformal_distortion, {}),
            (losses.extrinsic_curvature, {"estimator": "exact"}),
            (losses.intrinsic_curvature, {}),
            (encoder_losses.bi_lipschitz, {"bound": 1.1}),
            (encoder_losses.AbsoluteIsometry(1.0), {}),
        ],
    )
    def test_a_weight_is_a_repetition(self, loss, options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            f = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 5)).double()
        w = torch.tensor([1.0, 2, 1, 0, 1, 3], dtype=F64)
        self.weighted(loss, Manifold(f), randn(6, 2), w, **options)

    def test_probes_and_mixup_take_weights(self):
        f = nn.Linear(2, 5).double()
        M = Manifold(f)
        w = torch.ones(30, dtype=F64)
        for options in ({"probes": 3}, {"probes": 2, "independent": True}, {"mixup": 0.2}):
            a = losses.relaxed_distortion(M, randn(30, 2), generator=gen(), **options)
            b = losses.relaxed_distortion(M, randn(30, 2), generator=gen(), weights=w, **options)
            assert torch.allclose(a, b, rtol=1e-9)

    def test_equal_weights_change_nothing_in_a_fit_and_others_do(self):
        x = data()
        plain = IRAE(**SMALL).fit(x).transform(x)
        assert np.allclose(IRAE(**SMALL).fit(x, weights=np.full(40, 7.0)).transform(x), plain)
        assert not np.allclose(IRAE(**SMALL).fit(x, weights=np.arange(40)).transform(x), plain)

    @pytest.mark.parametrize("kind", [IRAE, MCAE])
    def test_batches_without_any_weight_count_nothing(self, kind):
        w = np.zeros(40)
        w[3] = 1.0
        m = kind(**{**SMALL, "batch_size": 8}).fit(data(), weights=w)
        assert np.isfinite(m.history_["loss"]).all()

    def test_a_sample_of_weight_0_is_not_learned(self):
        # Two far groups; only one counts.
        x = data(60, 4)
        x[30:] += 20
        w = np.repeat([1.0, 0.0], 30)
        m = AE(hidden=(16,), epochs=150, lr=1e-2).fit(x, weights=w)
        error = ((m.inverse_transform(m.transform(x)) - x) ** 2).sum(1)
        assert error[:30].mean() * 5 < error[30:].mean()

    @pytest.mark.parametrize(
        "wrong", [np.ones(39), -np.ones(40), np.zeros(40), np.full(40, np.nan)]
    )
    def test_wrong_weights(self, wrong):
        with pytest.raises((ShapeError, OptionError), match="weights"):
            AE(**SMALL).fit(data(), weights=wrong)
