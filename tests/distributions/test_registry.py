"""Families that users register: recognised, measured, checked, forgotten."""

import pytest
import torch
from spaces import rand
from torch import distributions as td
from torch.testing import assert_close

from riemae import Manifold, ambient
from riemae.distributions.closed_form import NAMED
from riemae.distributions.registry import ELSEWHERE, family_of
from riemae.exceptions import AmbientError, OptionError
from riemae.testing import check_manifold

Z = rand(torch.Generator().manual_seed(0), 4, 2)


class Rayleigh(td.Distribution):
    """``p(x) = x/σ² exp(−x²/2σ²)``, with ``I = 4/σ²``."""

    arg_constraints = {"scale": td.constraints.positive}

    def __init__(self, scale, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def log_prob(self, value):
        return value.log() - 2 * self.scale.log() - (value / self.scale).square() / 2


class Gaussian(td.Distribution):
    """A normal by mean and precision: ``I = diag(τ, 1/(2τ²))``."""

    arg_constraints = {"mean_": td.constraints.real, "precision": td.constraints.positive}

    def __init__(self, mean_, precision, validate_args=None):
        self.mean_, self.precision = torch.broadcast_tensors(mean_, precision)
        super().__init__(self.mean_.shape, validate_args=validate_args)

    def log_prob(self, value):
        return (self.precision.log() - self.precision * (value - self.mean_).square()) / 2


def rayleigh(p):
    return 4 / p["scale"][..., None, None].square()


def gaussian(p):
    tau = p["precision"]
    return torch.diag_embed(torch.stack([tau, 1 / (2 * tau.square())], -1))


def decoder(z):
    return Gaussian(z[:, :1], z[:, 1:].exp())


@pytest.fixture
def register():
    """``register_family``, undone afterwards."""
    names = []

    def call(name, *args, **options):
        ambient.register_family(name, *args, **options)
        names.append(name)

    yield call
    for name in names:
        if name in NAMED:
            ambient.unregister_family(name)


class TestRecognition:
    def test_a_class(self, register):
        register("rayleigh", Rayleigh, ["scale"], rayleigh)
        M = Manifold(lambda z: Rayleigh(z.exp()))
        assert_close(M.metric(Z), 4 * torch.eye(2).double().expand(4, 2, 2))
        assert_close(M.distance(Z[0], Z[1]), 2 * (Z[0] - Z[1]).norm(), rtol=1e-4, atol=0.0)
        assert repr(M.ambient) == "FisherRao(rayleigh)"

    def test_several_parameters_obey_the_laws(self, register):
        register("gaussian", Gaussian, ["mean_", "precision"], gaussian)
        M = Manifold(decoder)
        known = Manifold(lambda z: td.Normal(z[:, :1], (-z[:, 1:] / 2).exp()))
        assert_close(M.metric(Z), known.metric(Z))
        assert_close(M.distance(Z[0], Z[1]), known.distance(Z[0], Z[1]), rtol=1e-4, atol=0.0)
        check_manifold(M, Z[:2])

    def test_fixed_parameters_are_left_out(self, register):
        register("gaussian", Gaussian, ["mean_", "precision"], gaussian)
        M = Manifold(lambda z: Gaussian(z, torch.full((2,), 4.0).double()))
        assert_close(M.metric(Z), 4 * torch.eye(2).double().expand(4, 2, 2))

    def test_a_predicate(self, register):
        register("duck", lambda d: hasattr(d, "precision"), ["mean_", "precision"], gaussian)
        assert family_of(decoder(Z)).name == "duck"
        M = Manifold(decoder)
        M.metric(Z)
        with pytest.raises(AmbientError, match="build="):
            M.distribution(Z)

    def test_a_reader_and_a_builder(self, register):
        register(
            "read",
            Gaussian,
            ["m", "t"],
            lambda p: gaussian({"precision": p["t"]}),
            read=lambda d: {"m": d.mean_, "t": d.precision},
            build=lambda m, t: Gaussian(m, t),
        )
        M = Manifold(decoder)
        assert_close(M.metric(Z)[:, 0, 0], Z[:, 1].exp())
        assert_close(M.distribution(Z).precision, Z[:, 1:].exp())

    def test_tensors_name_it(self, register):
        register("rayleigh", Rayleigh, ["scale"], rayleigh)
        M = Manifold(lambda z: z.exp(), ambient=ambient.FisherRao("rayleigh"))
        assert_close(M.metric(Z), 4 * torch.eye(2).double().expand(4, 2, 2))

    def test_it_comes_before_what_is_known(self, register):
        register("my poisson", td.Poisson, ["rate"], lambda p: 9 / p["rate"][..., None, None])
        assert_close(
            Manifold(lambda z: td.Poisson(z.exp())).metric(Z), torch.diag_embed(9 * Z.exp())
        )
        ambient.unregister_family("my poisson")
        assert_close(Manifold(lambda z: td.Poisson(z.exp())).metric(Z), torch.diag_embed(Z.exp()))

    def test_the_newest_predicate_comes_first(self, register):
        register("first", lambda d: isinstance(d, Rayleigh), ["scale"], rayleigh)
        register("second", lambda d: isinstance(d, Rayleigh), ["scale"], rayleigh)
        assert family_of(Rayleigh(Z.exp())).name == "second"

    def test_subclasses_count_unless_their_density_differs(self, register):
        class Same(Rayleigh):
            pass

        class Other(Rayleigh):
            def log_prob(self, value):
                return super().log_prob(value) / 2

        register("rayleigh", Rayleigh, ["scale"], rayleigh)
        assert family_of(Same(Z.exp())).name == "rayleigh"
        assert family_of(Other(Z.exp())) is None

    def test_a_parameter_of_the_support_must_not_move(self, register):
        register("gaussian", Gaussian, ["mean_", "precision"], gaussian, support=["mean_"])
        with pytest.raises(AmbientError, match="mean_ that depend on z"):
            Manifold(decoder).metric(Z)

    def test_nothing_is_imported_for_other_packages(self):
        import subprocess
        import sys

        packages = sorted({package for package, _ in ELSEWHERE})
        code = (
            "import sys, torch, riemae; from riemae import Manifold; "
            "Manifold(lambda z: torch.distributions.Poisson(z.exp())).metric(torch.zeros(1, 1)); "
            f"print([m for m in {packages!r} if m in sys.modules])"
        )
        assert (
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True
            ).stdout.strip()
            == "[]"
        )


class TestChecks:
    @pytest.mark.parametrize(
        ("information", "match"),
        [
            (lambda p: p["precision"], r"information of shape \(.*, 2, 2\).*got \("),
            (lambda p: gaussian(p)[..., :1], r"information of shape \(.*, 2, 2\).*got \("),
            (lambda p: gaussian(p)[0], r"information of shape \(.*, 2, 2\).*got \("),
            (lambda p: 3.0, "got float"),
            (lambda p: gaussian(p).float(), "float64, got torch.float32"),
            (lambda p: gaussian(p) * torch.nan, "finite metric"),
            (lambda p: gaussian(p) + torch.tensor([[0.0, 1.0], [0.0, 0.0]]), "symmetric metric"),
            (lambda p: -gaussian(p), "positive metric"),
            (lambda p: gaussian(p) * p["precision"].sum(), "."),
        ],
        ids=[
            "vector",
            "column",
            "row lost",
            "float",
            "dtype",
            "nan",
            "asymmetric",
            "negative",
            "coupled",
        ],
    )
    def test_a_wrong_information_is_refused(self, register, information, match):
        register("wrong", Gaussian, ["mean_", "precision"], information)
        with pytest.raises(AmbientError, match=match):
            Manifold(decoder).metric(Z)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"name": "poisson"}, "a name that is not taken, got 'poisson'"),
            ({"name": ""}, "a name"),
            ({"of": "Rayleigh"}, "of, a class or a function"),
            ({"parameters": "scale"}, "list of different names"),
            ({"parameters": []}, "list of different names"),
            ({"parameters": ["scale", "scale"]}, "list of different names"),
            ({"information": 4.0}, "information, a class or a function"),
            ({"support": ["loc"]}, "support of some of scale"),
        ],
    )
    def test_wrong_arguments_are_refused(self, options, match):
        given = {
            "name": "x",
            "of": Rayleigh,
            "parameters": ["scale"],
            "information": rayleigh,
            **options,
        }
        with pytest.raises(OptionError, match=match):
            ambient.register_family(**given)
        assert "x" not in NAMED

    def test_a_class_once(self, register):
        register("one", Rayleigh, ["scale"], rayleigh)
        with pytest.raises(OptionError, match=r"unregister_family\('one'\)"):
            register("two", Rayleigh, ["scale"], rayleigh)

    def test_missing_attributes_are_named(self, register):
        register("x", Rayleigh, ["sigma"], rayleigh)
        with pytest.raises(AmbientError, match="attributes sigma.*read="):
            Manifold(lambda z: Rayleigh(z.exp())).metric(Z)

    def test_a_reader_that_forgets(self, register):
        register("x", Rayleigh, ["scale"], rayleigh, read=lambda d: {"s": d.scale})
        with pytest.raises(AmbientError, match="parameters scale, got s"):
            Manifold(lambda z: Rayleigh(z.exp())).metric(Z)

    @pytest.mark.parametrize("name", ["poisson", "nobody"])
    def test_only_registered_ones_are_forgotten(self, name):
        with pytest.raises(OptionError, match="a registered family among none"):
            ambient.unregister_family(name)
