"""Conditions in the contract, the pictures and the report give the results of a decoder that has
them closed over."""

import math
import warnings

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from riemae import Manifold, ambient, plotting
from riemae.autoencoders.report import report
from riemae.exceptions import ContractError, DTypeError, ShapeError
from riemae.testing import check_manifold

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(inputs, outputs, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))
    return layers.to(F64).eval().requires_grad_(False)


NET = network(5, 4)


def decoder(z, c):
    return 3 * NET(torch.cat([z, c], 1))


def closed(f, c):
    return lambda z: f(z, c.expand(len(z), *c.shape[1:]))


Z, COND = draw(6, 2, seed=1), draw(6, 3, seed=2)


class TestContract:
    @pytest.mark.parametrize("metric", [None, lambda x: 1 + x.square()], ids=["flat", "custom"])
    def test_one_condition_is_that_of_a_decoder_that_has_it(self, metric):
        found = check_manifold(Manifold(decoder, metric), Z, condition=COND[:1])
        expected = check_manifold(Manifold(closed(decoder, COND[:1]), metric), Z)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9)

    def test_one_condition_for_each_is_that_of_every_row_alone(self):
        found = check_manifold(Manifold(decoder), Z, condition=COND)
        assert max(found.values()) < 1e-6

    def test_structures_and_labels(self):
        table = draw(4, 3, seed=3)
        M = Manifold(lambda z, c: c["size"] * decoder(z, table[c["class"]]))
        given = {"class": torch.tensor([0, 3, 1, 0, 2, 2]), "size": COND[:, :1].exp()}
        assert max(check_manifold(M, Z, condition=given).values()) < 1e-6

    def test_distributions(self):
        def heads(z, c):
            return torch.distributions.Normal(decoder(z, c), 1 + c[:, :1].square())

        assert max(check_manifold(Manifold(heads), Z, condition=COND).values()) < 1e-6

    def test_a_law_that_one_condition_breaks_is_named(self):
        class Wrong(torch.autograd.Function):
            """sin, whose derivative is wrong."""

            generate_vmap_rule = True

            @staticmethod
            def forward(x):
                return x.sin()

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(inputs[0])

            @staticmethod
            def backward(ctx, grad):
                return 2 * grad * ctx.saved_tensors[0].cos()

        def f(z, c):  # the identity, and something else under a positive condition
            return torch.cat([z, torch.where(c > 0, Wrong.apply(z), z.sin())], 1)

        sound, broken = torch.zeros(6, 1, dtype=F64), torch.zeros(6, 1, dtype=F64)
        broken[4] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert check_manifold(Manifold(f), Z, condition=sound)["adjoint"] < 1e-6
            with pytest.raises(ContractError, match="adjoint"):
                check_manifold(Manifold(f), Z, condition=broken)

    def test_subclasses_without_conditions_stay_as_they_are(self):
        class Own(Manifold):
            def metric(self, z):
                return super().metric(z)

        assert max(check_manifold(Own(closed(decoder, COND[:1])), Z).values()) < 1e-6

    def test_conditions_that_do_not_fit(self):
        with pytest.raises(ShapeError, match=r"check_manifold.*\(6, \*shape\)"):
            check_manifold(Manifold(decoder), Z, condition=COND[:3])
        with pytest.raises(DTypeError, match="as_tensor"):
            check_manifold(Manifold(decoder), Z, condition="a")


@pytest.fixture
def axes():
    return Figure().subplots()


LOW, HIGH = torch.tensor([-1.0, -0.5]).double(), torch.tensor([2.0, 0.5]).double()


class TestPictures:
    def test_magnification(self, axes):
        style = {"resolution": 7, "ax": axes, "cmap": "magma"}
        plotting.magnification(Manifold(decoder), LOW, HIGH, condition=COND[1:2], **style)
        plotting.magnification(Manifold(closed(decoder, COND[1:2])), LOW, HIGH, **style)
        plotting.magnification(Manifold(decoder), LOW, HIGH, condition=COND[:1], **style)
        image, expected, other = axes.images
        assert image.get_array().shape == (7, 7)
        assert abs(image.get_array() - expected.get_array()).max() < 1e-9
        assert abs(image.get_array() - other.get_array()).max() > 1e-3
        assert image.get_cmap().name == "magma"

    def test_magnification_is_that_under_one_condition(self, axes):
        with pytest.raises(ShapeError, match=r"plotting\.magnification.*\(1, \*shape\)"):
            plotting.magnification(Manifold(decoder), LOW, HIGH, ax=axes, condition=COND[:2])

    def test_indicatrices(self, axes):
        plotting.indicatrices(Manifold(decoder), Z, radius=0.1, ax=axes, condition=COND)
        (drawn,) = axes.collections
        for centre, c, line in zip(Z, COND, drawn.get_segments(), strict=True):
            M = Manifold(closed(decoder, c[None]))
            v = torch.as_tensor(line) - centre
            lengths = M.norm(centre.expand_as(v), v)
            assert torch.allclose(lengths, torch.full_like(lengths, 0.1), rtol=1e-9)

    def test_indicatrices_under_one_condition(self, axes):
        plotting.indicatrices(Manifold(decoder), Z, ax=axes, condition=COND[:1])
        plotting.indicatrices(Manifold(closed(decoder, COND[:1])), Z, ax=axes)
        shown, expected = axes.collections
        for own, other in zip(shown.get_segments(), expected.get_segments(), strict=True):
            assert abs(own - other).max() < 1e-9

    def test_indicatrices_with_conditions_that_do_not_fit(self, axes):
        with pytest.raises(ShapeError, match=r"\(6, \*shape\)"):
            plotting.indicatrices(Manifold(decoder), Z, ax=axes, condition=COND[:2])


class TestReport:
    """Numbers of samples under conditions, and of a decoder that has them closed over."""

    CODES = draw(80, 2, seed=4)
    CONDITIONS = draw(80, 3, seed=5)

    @classmethod
    def data(cls, c, codes=CODES):
        return decoder(codes, c.expand(len(codes), -1)) + 0.01 * draw(len(codes), 4, seed=6)

    @staticmethod
    def compared(found, expected):
        for name, value in vars(expected).items():
            if isinstance(value, float | tuple) and name != "sentences":
                assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name
            else:
                assert getattr(found, name) == value, name

    @pytest.mark.parametrize("metric", [None, ambient.Diagonal(torch.arange(1.0, 5.0).double())])
    def test_one_condition_is_that_of_a_decoder_that_has_it(self, metric):
        c = self.CONDITIONS[:1]
        x = self.data(c)
        found = report(Manifold(decoder, metric), None, x, self.CODES, condition=c)
        expected = report(Manifold(closed(decoder, c), metric), None, x, self.CODES)
        self.compared(found, expected)

    @pytest.mark.parametrize("most", [80, 40])
    def test_one_condition_for_each(self, most):
        # A decoder of more latent dimensions would be another geometry: the rows know their
        # conditions here.
        x = self.data(self.CONDITIONS)
        found = report(
            Manifold(decoder), None, x, self.CODES, condition=self.CONDITIONS, max_samples=most
        )
        codes, table = self.CODES, self.CONDITIONS

        def alone(z):
            return decoder(z, table[torch.cdist(z.detach(), codes).argmin(1)])

        chosen = torch.arange(80)
        if most < 80:
            chosen = (
                torch.randperm(80, generator=torch.Generator().manual_seed(0))[:most].sort().values
            )
        M, z = Manifold(decoder), codes[chosen]
        residual = x[chosen] - alone(z)
        assert found.samples == most
        assert found.reconstruction == pytest.approx(
            float(residual.square().sum(1).mean()), rel=1e-9
        )
        singles = [Manifold(closed(decoder, c[None])) for c in table[chosen]]
        ratio = [m.eigenvalues(p[None])[0] for m, p in zip(singles, z, strict=True)]
        assert found.mcn == pytest.approx(float(sum(v[1] / v[0] for v in ratio)) / most, rel=1e-6)
        bend = [float(m.extrinsic_curvature(p[None])) for m, p in zip(singles, z, strict=True)]
        assert found.extrinsic_curvature == pytest.approx(math.fsum(bend) / most, rel=1e-6)
        metrics = torch.cat([m.metric(p[None]) for m, p in zip(singles, z, strict=True)])
        torch.testing.assert_close(M.metric(z, condition=table[chosen]), metrics)
        spread = torch.linalg.eigvals(torch.cov(z.T, correction=0) @ metrics.mean(0)).real
        spread = (spread / spread.sum()).sort(descending=True).values
        assert found.spread == pytest.approx(spread.tolist(), rel=1e-6)

    def test_distributions(self):
        def heads(z, c):
            return torch.distributions.Normal(decoder(z, c), torch.ones(1, dtype=F64))

        c = self.CONDITIONS
        found = report(Manifold(heads), None, self.data(c), self.CODES, condition=c)
        expected = report(Manifold(decoder), None, self.data(c), self.CODES, condition=c)
        assert found.reconstruction == pytest.approx(expected.reconstruction, rel=1e-9)

    def test_many_dimensions_by_estimates_in_parts(self, monkeypatch):
        f, codes = network(7, 8, seed=3), draw(60, 4, seed=7)
        c = self.CONDITIONS[:1]
        rows = self.CONDITIONS[:60]
        several = lambda z, c: f(torch.cat([z, c], 1))  # noqa: E731 (one expression)
        x = several(codes, c.expand(60, -1))
        monkeypatch.setattr("riemae.autoencoders.diagnostics._CHUNK", 8 * 16 * 7)
        found = report(Manifold(several), None, x, codes, condition=c)
        self.compared(found, report(Manifold(closed(several, c)), None, x, codes))
        apart = report(Manifold(several), None, x, codes, condition=rows)
        assert math.isfinite(apart.extrinsic_curvature)
        assert apart.extrinsic_curvature != found.extrinsic_curvature

    def test_conditions_that_do_not_fit(self):
        x = self.data(self.CONDITIONS)
        with pytest.raises(ShapeError, match=r"report.*\(80, \*shape\)"):
            report(Manifold(decoder), None, x, self.CODES, condition=self.CONDITIONS[:7])
        with pytest.raises(DTypeError):
            report(Manifold(decoder), None, x, self.CODES, condition=3.0)
