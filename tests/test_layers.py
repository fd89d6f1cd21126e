"""The plan of the package: every module is in one layer, imports point down and form no circles,
and nothing private is used by another module."""

import ast
import importlib
from pathlib import Path

import pytest

import riemae

ROOT = Path(riemae.__file__).parent

# From the lowest layer up. A module imports from layers below its own, and from its own as long as
# imports form no circle. Imports inside functions and for annotations alone count as well.
LAYERS = {
    "words": "environment exceptions version",
    "numerics": """
        numerics numerics.arithmetic numerics.bars numerics.batch_invariance numerics.checks
        numerics.compiling numerics.constants
        numerics.contradiction numerics.deferral numerics.dependence numerics.frames numerics.html
        numerics.leftovers numerics.memory numerics.metric numerics.offers numerics.precision
        numerics.probe numerics.random numerics.reach numerics.sums numerics.threads
        numerics.tolerances numerics.transforms numerics.values
    """,
    "files and data": """
        datasets datasets.base datasets.images datasets.shapes datasets.synthetic datasets.tables
        storage storage.architectures storage.atomic storage.blocks storage.checkpoint
        storage.claims storage.digests storage.identity storage.kinds storage.lock storage.runs
    """,
    "derivatives": """
        differential differential.activations differential.chain differential.chunks
        differential.comparison differential.compiled differential.conditions
        differential.derivatives differential.functional differential.jets differential.known
        differential.modes differential.modes.base differential.modes.differences
        differential.modes.nested differential.modes.order differential.modes.plain
        differential.modes.taylor differential.placement differential.primitives
        differential.recording differential.results differential.rowwise differential.rules
        differential.rules.attention differential.rules.contractions
        differential.rules.convolutions
        differential.rules.elementwise differential.rules.generic
        differential.rules.inplace differential.rules.matrices differential.rules.normalising
        differential.rules.norms differential.rules.operators differential.rules.products
        differential.rules.queries differential.rules.recurrent differential.rules.scans
        differential.rules.selections differential.rules.structural differential.rules.sums
        differential.spellings differential.tangents differential.tape differential.trust
    """,
    "solvers": """
        solvers solvers.bounds solvers.brackets solvers.budget solvers.bumps solvers.candidates
        solvers.certificate solvers.choice solvers.chunk solvers.curve solvers.edges solvers.energy
        solvers.executors solvers.fans solvers.fields solvers.flows solvers.foresight
        solvers.flows.conjugate solvers.flows.exponential solvers.flows.integrator
        solvers.flows.jacobi solvers.flows.logarithm solvers.flows.parallel
        solvers.flows.second_variation solvers.flows.volume solvers.gauss_newton solvers.graph
        solvers.hooks
        solvers.krylov solvers.lattice solvers.linear solvers.matrix solvers.matrix_identity
        solvers.matrix_layout solvers.matrix_work solvers.measure solvers.methods
        solvers.methods.adam solvers.methods.bvp solvers.methods.descent
        solvers.methods.gauss_newton solvers.methods.georce solvers.methods.lbfgs
        solvers.methods.newton
        solvers.methods.newton_cg solvers.methods.newton_expansion
        solvers.methods.newton_limits solvers.methods.newton_run
        solvers.methods.newton_saddles solvers.methods.newton_sweep
        solvers.methods.quasi_newton solvers.methods.shooting solvers.methods.spectral
        solvers.methods.spline solvers.mode_descent solvers.mode_hessian
        solvers.mode_looks solvers.mode_metric solvers.model
        solvers.morse solvers.near solvers.nearest
        solvers.neighborhoods solvers.neighbors solvers.outcome solvers.pairs solvers.path
        solvers.path_metric solvers.polynomials solvers.products solvers.progress
        solvers.quadrature solvers.queue solvers.result solvers.safeguard solvers.scouts
        solvers.search solvers.secants solvers.shortest solvers.solver solvers.space
        solvers.spectral solvers.speeds solvers.state solvers.unroll solvers.unrolling
        solvers.verdict solvers.verification
    """,
    "distributions": """
        distributions distributions.closed_form distributions.continuous distributions.counts
        distributions.discrete distributions.dispersion distributions.fallback distributions.family
        distributions.inflated distributions.layout distributions.multivariate
        distributions.numerical distributions.registry distributions.special
    """,
    "ambient metrics": """
        ambient ambient.base ambient.checks ambient.clouds ambient.custom ambient.density
        ambient.features ambient.fisher ambient.geoopt ambient.kinds ambient.shaped
        ambient.uncertain
    """,
    "geometry": """
        geometry geometry.arrays geometry.bending geometry.checks geometry.composition
        geometry.conditioned geometry.decoder geometry.distortion geometry.ends geometry.envelope
        geometry.explanation geometry.extrinsic geometry.factors geometry.failures geometry.frames
        geometry.coordinates geometry.given
        geometry.integration geometry.intrinsic geometry.latent geometry.measured geometry.memory
        geometry.operators geometry.outputs geometry.paths geometry.pullback geometry.shaped
        geometry.smoothness geometry.structure geometry.training_mode geometry.variation
        geometry.varying
    """,
    "manifold": "ensembles manifold",
    "clients": """
        autoencoders autoencoders.balance autoencoders.batches autoencoders.card
        autoencoders.checkpoints autoencoders.compiled autoencoders.counts
        autoencoders.covariates
        autoencoders.diagnostics autoencoders.edges autoencoders.embedding
        autoencoders.encoder_losses autoencoders.estimators autoencoders.expansion
        autoencoders.fitting autoencoders.graph_losses autoencoders.history
        autoencoders.inputs autoencoders.latents autoencoders.likelihood
        autoencoders.likelihoods autoencoders.loop autoencoders.losses autoencoders.metadata
        autoencoders.module autoencoders.nearest
        autoencoders.neighborhood autoencoders.networks autoencoders.objective
        autoencoders.optimization autoencoders.outputs autoencoders.plain autoencoders.priors
        autoencoders.progress autoencoders.report autoencoders.saved autoencoders.settings
        autoencoders.step autoencoders.terms autoencoders.timing autoencoders.training
        autoencoders.units autoencoders.variants autoencoders.wants autoencoders.weighting citations
        interop interop.anndata interop.diffusers interop.frozen interop.geoopt interop.lightning
        interop.pythae interop.scvi interop.sklearn interop.transformers interop.zuko plotting
        plotting.balls plotting.canvas plotting.colours plotting.comparison plotting.curves
        plotting.distances plotting.ellipses
        plotting.images plotting.inputs plotting.maps plotting.matrices plotting.movies
        plotting.overview plotting.scatter plotting.spectra plotting.training scores statistics
        statistics.arguments statistics.clustering statistics.comparison statistics.components
        statistics.density statistics.diffusion statistics.grouped statistics.groups
        statistics.implicit statistics.joint statistics.lloyd statistics.matrices statistics.means
        statistics.medians statistics.minimum statistics.mixture statistics.normal statistics.polar
        statistics.regression statistics.romberg statistics.sampling statistics.tangents
        statistics.uniqueness testing
        testing.ambient testing.laws testing.manifold testing.solver testing.space
    """,
    "people": """
        __main__ cli cli.builtin cli.cells cli.commands cli.commands.check cli.commands.demo
        cli.commands.distances cli.commands.embed cli.commands.geodesic cli.commands.info
        cli.commands.neighbors cli.commands.report cli.commands.train cli.conditions cli.delimited
        cli.demo
        cli.failures cli.main cli.models cli.options cli.output cli.pairs cli.points cli.preparation
        cli.progress cli.sources cli.tables loading reporting reporting.arguments reporting.document
        reporting.embedding reporting.findings reporting.lattice reporting.measures
        reporting.payload reporting.periods reporting.pictures reporting.training
    """,
    "package": "",
}
# What solvers may know: neither networks nor manifolds.
BELOW_SOLVERS = ("riemae.exceptions", "riemae.numerics", "riemae.storage", "riemae.solvers")


def module_name(path):
    return ".".join(("riemae", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


# riemae/solvers is a link in the checkout, and a recursive search need not follow it.
SOURCES = {
    module_name(path): path for path in {*ROOT.rglob("*.py"), *(ROOT / "solvers").rglob("*.py")}
}
LEVELS = {
    f"riemae.{name}": level for level, names in enumerate(LAYERS.values()) for name in names.split()
}
LEVELS["riemae"] = len(LAYERS) - 1


def tree(name):
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imports(name):
    """Modules of riemae that a module imports, anywhere in its file."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "riemae":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in SOURCES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)


EDGES = {name: sorted(set(imports(name)) - {name}) for name in sorted(SOURCES)}


def circle(name, path=()):
    """A path along imports from a module back to itself, or None."""
    if name in path:
        return path[path.index(name) :]
    if name in circle.clear:
        return None
    for other in EDGES[name]:
        if found := circle(other, (*path, name)):
            return found
    circle.clear.add(name)
    return None


def test_every_module_has_its_layer():
    assert sorted(LEVELS) == sorted(SOURCES)
    named = [name for names in LAYERS.values() for name in names.split()]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_point_down(name):
    assert [other for other in EDGES[name] if LEVELS[other] > LEVELS[name]] == []


def test_nothing_turns_in_a_circle():
    circle.clear = set()
    assert [found for name in sorted(SOURCES) if (found := circle(name))] == []


def test_solvers_know_neither_networks_nor_manifolds():
    for name in (n for n in SOURCES if n.split(".")[1:2] == ["solvers"]):
        assert [other for other in EDGES[name] if not other.startswith(BELOW_SOLVERS)] == [], name


def test_geometry_and_what_is_below_never_see_the_manifold():
    above = {"riemae", "riemae.manifold"}
    for name in (n for n in SOURCES if LEVELS[n] < LEVELS["riemae.manifold"]):
        assert above.isdisjoint(EDGES[name]), name


def test_packages_have_a_docstring_and_a_table_of_contents():
    for name, path in SOURCES.items():
        if path.name == "__init__.py":
            assert importlib.import_module(name).__doc__, name
            lines = [
                node
                for node in tree(name).body
                if not isinstance(node, (ast.Import, ast.ImportFrom))
            ]
            if name != "riemae.autoencoders":  # its names are imported when they are used
                assert all(isinstance(node, (ast.Expr, ast.Assign)) for node in lines), name


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_nothing_private_is_reached_from_elsewhere(name):
    body = tree(name)
    own = {
        node.name for node in ast.walk(body) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    own |= {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    own |= {
        node.target.id
        for node in ast.walk(body)
        if isinstance(node, ast.AnnAssign) and is_name(node.target)
    }
    for node in ast.walk(body):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "riemae":
            assert [alias.name for alias in node.names if is_private(alias.name)] == []
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            text = ast.unparse(node)
            assert text in FOREIGN or text.split(".")[0] in (
                "torch",
                "nn",
                "td",
                "parametrizations",
            ), text


# Private names of torch's objects and of Python that have no public counterpart.
FOREIGN = {
    "Tensor._make_wrapper_subclass",
    "func._schema",
    "jet.value._is_view",
    "q._is_zerotensor",
    "script._debug_flush_compilation_cache",
    "self._extended_shape",
    "self._replace",
    "self._validate_args",
    "self._validate_sample",
    "sys._getframe",
}


def is_name(node):
    return isinstance(node, ast.Name)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
