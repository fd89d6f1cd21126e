"""The papers behind what was used, as BibTeX."""

from __future__ import annotations

from collections.abc import Iterator

from riemae.ensembles import Ensemble
from riemae.exceptions import OptionError
from riemae.geometry.conditioned import Conditioned
from riemae.geometry.pullback import PullbackMetric
from riemae.manifold import Manifold
from riemae.solvers import GeodesicResult
from riemae.version import __version__

__all__ = ["cite"]

# The software itself, and the paper whose methods it implements.
_ALWAYS = ("riemae", "lee2023geometric")
# Papers of classes and functions by their place. Names, because most of them are only imported when
# they are used; a test looks them all up. A class stands for those derived from it, too.
_PAPERS: dict[str, tuple[str, ...]] = {
    "riemae.manifold.Manifold": ("arvanitidis2018latent", "shao2018riemannian"),
    "riemae.ensembles.Ensemble": ("syrota2024decoder",),
    "riemae.ambient.clouds.InfoRiemannian": ("lee2022statistical",),
    "riemae.ambient.density.Density": (
        "arvanitidis2016locally",
        "arvanitidis2021geometrically",
    ),
    "riemae.ambient.features.ClassifierFisher": ("amari2016information",),
    "riemae.ambient.fisher.FisherRao": (
        "amari2016information",
        "atkinson1981rao",
        "arvanitidis2022pulling",
    ),
    "riemae.ambient.geoopt.Geoopt": ("kochurov2020geoopt",),
    "riemae.ambient.uncertain.Averaged": ("syrota2024decoder",),
    "riemae.ambient.uncertain.Expected": ("arvanitidis2018latent",),
    "riemae.autoencoders.variants.ContractiveAE": ("rifai2011contractive",),
    "riemae.autoencoders.variants.DenoisingAE": ("vincent2008extracting",),
    "riemae.autoencoders.variants.IRAE": ("lee2022regularized",),
    "riemae.autoencoders.variants.IRVAE": ("lee2022regularized",),
    "riemae.autoencoders.variants.MCAE": ("lee2023explicit",),
    "riemae.autoencoders.variants.NRAE": ("lee2021neighborhood",),
    "riemae.autoencoders.variants.VAE": ("kingma2014auto",),
    "riemae.solvers.methods.adam.Adam": ("kingma2015adam",),
    "riemae.solvers.methods.bvp.BVP": ("kierzenka2001bvp",),
    "riemae.solvers.methods.georce.GEORCE": ("rygaard2025georce",),
    "riemae.solvers.methods.lbfgs.LBFGS": ("liu1989limited",),
    "riemae.solvers.methods.newton.Newton": ("nocedal2006numerical",),
    "riemae.solvers.methods.newton_cg.NewtonCG": ("steihaug1983conjugate", "nocedal2006numerical"),
    "riemae.solvers.methods.quasi_newton.QuasiNewton": ("liu1989limited", "nocedal2006numerical"),
    "riemae.solvers.methods.spectral.Spectral": ("liu1989limited", "trefethen2000spectral"),
    "riemae.solvers.methods.spline.CubicSpline": ("detlefsen2021stochman",),
    "riemae.solvers.neighborhoods.Neighbors": ("mcinnes2018umap",),
    "riemae.statistics.clustering.GeodesicKMeans": ("arthur2007kmeans", "karcher1977riemannian"),
    "riemae.statistics.clustering.GeodesicKMedoids": (
        "kaufman1990finding",
        "schubert2021fast",
    ),
    "riemae.statistics.comparison.DistanceDistribution": ("syrota2025identifying",),
    "riemae.statistics.comparison.compare_distances": ("syrota2025identifying",),
    "riemae.statistics.components.TangentPCA": ("fletcher2004principal",),
    "riemae.statistics.components.tangent_pca": ("fletcher2004principal",),
    "riemae.statistics.density.GeodesicKDE": ("pelletier2005kernel",),
    "riemae.statistics.matrices.GeodesicMDS": ("deleeuw1977applications",),
    "riemae.statistics.matrices.energy_test": ("szekely2004testing",),
    "riemae.statistics.matrices.heat_kernel": ("coifman2006diffusion",),
    "riemae.statistics.means.Mean": ("afsari2011riemannian", "karcher1977riemannian"),
    "riemae.statistics.means.frechet_mean": ("karcher1977riemannian",),
    "riemae.statistics.medians.geometric_median": ("fletcher2009geometric",),
    "riemae.statistics.mixture.LAND": ("arvanitidis2016locally",),
    "riemae.statistics.normal.RiemannianNormal": ("arvanitidis2016locally",),
    "riemae.statistics.regression.GeodesicRegression": ("fletcher2013geodesic",),
    "riemae.statistics.regression.PrincipalGeodesic": ("sommer2010manifold",),
    "riemae.statistics.regression.geodesic_regression": ("fletcher2013geodesic",),
    "riemae.statistics.regression.principal_geodesics": ("sommer2010manifold",),
}

_ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    "riemae": (
        "software",
        {
            "author": "{The riemae authors}",
            "title": "riemae: the geometry of neural networks",
            "version": __version__,
        },
    ),
    "lee2023geometric": (
        "misc",
        {
            "author": "Lee, Yonghyeon",
            "title": "A Geometric Perspective on Autoencoders",
            "year": "2023",
            "eprint": "2309.08247",
            "archiveprefix": "arXiv",
        },
    ),
    "arvanitidis2018latent": (
        "inproceedings",
        {
            "author": "Arvanitidis, Georgios and Hansen, Lars Kai and Hauberg, S{\\o}ren",
            "title": "Latent Space Oddity: on the Curvature of Deep Generative Models",
            "booktitle": "International Conference on Learning Representations",
            "year": "2018",
        },
    ),
    "shao2018riemannian": (
        "inproceedings",
        {
            "author": "Shao, Hang and Kumar, Abhishek and Fletcher, P. Thomas",
            "title": "The {Riemannian} Geometry of Deep Generative Models",
            "booktitle": "IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops",
            "year": "2018",
        },
    ),
    "syrota2024decoder": (
        "misc",
        {
            "author": "Syrota, Stas and Moreno-Mu{\\~n}oz, Pablo and Hauberg, S{\\o}ren",
            "title": "Decoder Ensembling for Learned Latent Geometries",
            "year": "2024",
            "eprint": "2408.07507",
            "archiveprefix": "arXiv",
        },
    ),
    "lee2022statistical": (
        "inproceedings",
        {
            "author": "Lee, Yonghyeon and Kim, Seungyeon and Choi, Jinwon and Park, Frank C.",
            "title": "A Statistical Manifold Framework for Point Cloud Data",
            "booktitle": "International Conference on Machine Learning",
            "year": "2022",
        },
    ),
    "afsari2011riemannian": (
        "article",
        {
            "author": "Afsari, Bijan",
            "title": "{Riemannian} {$L^p$} Center of Mass: Existence, Uniqueness, and Convexity",
            "journal": "Proceedings of the American Mathematical Society",
            "volume": "139",
            "number": "2",
            "pages": "655--673",
            "year": "2011",
        },
    ),
    "arvanitidis2016locally": (
        "inproceedings",
        {
            "author": "Arvanitidis, Georgios and Hansen, Lars Kai and Hauberg, S{\\o}ren",
            "title": "A Locally Adaptive Normal Distribution",
            "booktitle": "Advances in Neural Information Processing Systems",
            "year": "2016",
        },
    ),
    "arvanitidis2021geometrically": (
        "inproceedings",
        {
            "author": 'Arvanitidis, Georgios and Hauberg, S{\\o}ren and Sch{\\"o}lkopf, Bernhard',
            "title": "Geometrically Enriched Latent Spaces",
            "booktitle": "International Conference on Artificial Intelligence and Statistics",
            "year": "2021",
        },
    ),
    "amari2016information": (
        "book",
        {
            "author": "Amari, Shun-ichi",
            "title": "Information Geometry and Its Applications",
            "publisher": "Springer",
            "year": "2016",
        },
    ),
    "atkinson1981rao": (
        "article",
        {
            "author": "Atkinson, Colin and Mitchell, Ann F. S.",
            "title": "{Rao's} Distance Measure",
            "journal": "Sankhy{\\=a} A",
            "volume": "43",
            "year": "1981",
        },
    ),
    "arvanitidis2022pulling": (
        "inproceedings",
        {
            "author": "Arvanitidis, Georgios and Gonz{\\'a}lez-Duque, Miguel and Pouplin, Alison "
            "and Kalatzis, Dimitris and Hauberg, S{\\o}ren",
            "title": "Pulling Back Information Geometry",
            "booktitle": "International Conference on Artificial Intelligence and Statistics",
            "year": "2022",
        },
    ),
    "kochurov2020geoopt": (
        "misc",
        {
            "author": "Kochurov, Max and Karimov, Rasul and Kozlukov, Serge",
            "title": "Geoopt: {Riemannian} Optimization in {PyTorch}",
            "year": "2020",
            "eprint": "2005.02819",
            "archiveprefix": "arXiv",
        },
    ),
    "rifai2011contractive": (
        "inproceedings",
        {
            "author": "Rifai, Salah and Vincent, Pascal and Muller, Xavier and Glorot, Xavier and "
            "Bengio, Yoshua",
            "title": "Contractive Auto-Encoders: Explicit Invariance During Feature Extraction",
            "booktitle": "International Conference on Machine Learning",
            "year": "2011",
        },
    ),
    "vincent2008extracting": (
        "inproceedings",
        {
            "author": "Vincent, Pascal and Larochelle, Hugo and Bengio, Yoshua and Manzagol, "
            "Pierre-Antoine",
            "title": "Extracting and Composing Robust Features with Denoising Autoencoders",
            "booktitle": "International Conference on Machine Learning",
            "year": "2008",
        },
    ),
    "lee2022regularized": (
        "inproceedings",
        {
            "author": "Lee, Yonghyeon and Yoon, Sangwoong and Son, MinJun and Park, Frank C.",
            "title": "Regularized Autoencoders for Isometric Representation Learning",
            "booktitle": "International Conference on Learning Representations",
            "year": "2022",
        },
    ),
    "lee2023explicit": (
        "inproceedings",
        {
            "author": "Lee, Yonghyeon and Park, Frank C.",
            "title": "On Explicit Curvature Regularization in Deep Generative Models",
            "booktitle": "Topological, Algebraic and Geometric Learning Workshops",
            "year": "2023",
        },
    ),
    "lee2021neighborhood": (
        "inproceedings",
        {
            "author": "Lee, Yonghyeon and Kwon, Hyeokjun and Park, Frank C.",
            "title": "Neighborhood Reconstructing Autoencoders",
            "booktitle": "Advances in Neural Information Processing Systems",
            "year": "2021",
        },
    ),
    "kingma2014auto": (
        "inproceedings",
        {
            "author": "Kingma, Diederik P. and Welling, Max",
            "title": "Auto-Encoding Variational {Bayes}",
            "booktitle": "International Conference on Learning Representations",
            "year": "2014",
        },
    ),
    "kingma2015adam": (
        "inproceedings",
        {
            "author": "Kingma, Diederik P. and Ba, Jimmy",
            "title": "Adam: A Method for Stochastic Optimization",
            "booktitle": "International Conference on Learning Representations",
            "year": "2015",
        },
    ),
    "kierzenka2001bvp": (
        "article",
        {
            "author": "Kierzenka, Jacek and Shampine, Lawrence F.",
            "title": "A {BVP} Solver Based on Residual Control and the {MATLAB} {PSE}",
            "journal": "ACM Transactions on Mathematical Software",
            "volume": "27",
            "year": "2001",
        },
    ),
    "rygaard2025georce": (
        "misc",
        {
            "author": 'Rygaard, Frederik M{\\"o}bius and Hauberg, S{\\o}ren',
            "title": "{GEORCE}: A Fast New Control Algorithm for Computing Geodesics",
            "year": "2025",
            "eprint": "2505.05961",
            "archiveprefix": "arXiv",
        },
    ),
    "liu1989limited": (
        "article",
        {
            "author": "Liu, Dong C. and Nocedal, Jorge",
            "title": "On the Limited Memory {BFGS} Method for Large Scale Optimization",
            "journal": "Mathematical Programming",
            "volume": "45",
            "year": "1989",
        },
    ),
    "nocedal2006numerical": (
        "book",
        {
            "author": "Nocedal, Jorge and Wright, Stephen J.",
            "title": "Numerical Optimization",
            "publisher": "Springer",
            "edition": "2",
            "year": "2006",
        },
    ),
    "trefethen2000spectral": (
        "book",
        {
            "author": "Trefethen, Lloyd N.",
            "title": "Spectral Methods in {MATLAB}",
            "publisher": "SIAM",
            "year": "2000",
        },
    ),
    "steihaug1983conjugate": (
        "article",
        {
            "author": "Steihaug, Trond",
            "title": "The Conjugate Gradient Method and Trust Regions in Large Scale Optimization",
            "journal": "SIAM Journal on Numerical Analysis",
            "volume": "20",
            "year": "1983",
        },
    ),
    "detlefsen2021stochman": (
        "software",
        {
            "author": "Detlefsen, Nicki S. and Pouplin, Alison and Feldager, Cilie W. and Geng, "
            "Cong and Kalatzis, Dimitris and Hauschultz, Helene and Gonz{\\'a}lez-Duque, Miguel "
            "and Warburg, Frederik and Miani, Marco and Hauberg, S{\\o}ren",
            "title": "{StochMan}",
            "year": "2021",
        },
    ),
    "mcinnes2018umap": (
        "misc",
        {
            "author": "McInnes, Leland and Healy, John and Melville, James",
            "title": "{UMAP}: Uniform Manifold Approximation and Projection for Dimension "
            "Reduction",
            "year": "2018",
            "eprint": "1802.03426",
            "archiveprefix": "arXiv",
        },
    ),
    "arthur2007kmeans": (
        "inproceedings",
        {
            "author": "Arthur, David and Vassilvitskii, Sergei",
            "title": "k-means++: The Advantages of Careful Seeding",
            "booktitle": "ACM-SIAM Symposium on Discrete Algorithms",
            "year": "2007",
        },
    ),
    "karcher1977riemannian": (
        "article",
        {
            "author": "Karcher, Hermann",
            "title": "{Riemannian} Center of Mass and Mollifier Smoothing",
            "journal": "Communications on Pure and Applied Mathematics",
            "volume": "30",
            "year": "1977",
        },
    ),
    "kaufman1990finding": (
        "book",
        {
            "author": "Kaufman, Leonard and Rousseeuw, Peter J.",
            "title": "Finding Groups in Data: An Introduction to Cluster Analysis",
            "publisher": "Wiley",
            "year": "1990",
        },
    ),
    "schubert2021fast": (
        "article",
        {
            "author": "Schubert, Erich and Rousseeuw, Peter J.",
            "title": "Fast and Eager k-Medoids Clustering: {O(k)} Runtime Improvement of the "
            "{PAM}, {CLARA}, and {CLARANS} Algorithms",
            "journal": "Information Systems",
            "volume": "101",
            "year": "2021",
        },
    ),
    "syrota2025identifying": (
        "inproceedings",
        {
            "author": "Syrota, Stas and Zainchkovskyy, Yevgen and Xi, Johnny and Bloem-Reddy, "
            "Benjamin and Hauberg, S{\\o}ren",
            "title": "Identifying Metric Structures of Deep Latent Variable Models",
            "booktitle": "International Conference on Machine Learning",
            "year": "2025",
        },
    ),
    "pelletier2005kernel": (
        "article",
        {
            "author": "Pelletier, Bruno",
            "title": "Kernel Density Estimation on {Riemannian} Manifolds",
            "journal": "Statistics {\\&} Probability Letters",
            "volume": "73",
            "year": "2005",
        },
    ),
    "deleeuw1977applications": (
        "incollection",
        {
            "author": "de Leeuw, Jan",
            "title": "Applications of Convex Analysis to Multidimensional Scaling",
            "booktitle": "Recent Developments in Statistics",
            "publisher": "North-Holland",
            "year": "1977",
        },
    ),
    "szekely2004testing": (
        "article",
        {
            "author": "Sz{\\'e}kely, G{\\'a}bor J. and Rizzo, Maria L.",
            "title": "Testing for Equal Distributions in High Dimension",
            "journal": "InterStat",
            "volume": "5",
            "year": "2004",
        },
    ),
    "coifman2006diffusion": (
        "article",
        {
            "author": "Coifman, Ronald R. and Lafon, St{\\'e}phane",
            "title": "Diffusion Maps",
            "journal": "Applied and Computational Harmonic Analysis",
            "volume": "21",
            "year": "2006",
        },
    ),
    "fletcher2004principal": (
        "article",
        {
            "author": "Fletcher, P. Thomas and Lu, Conglin and Pizer, Stephen M. and Joshi, Sarang",
            "title": "Principal Geodesic Analysis for the Study of Nonlinear Statistics of Shape",
            "journal": "IEEE Transactions on Medical Imaging",
            "volume": "23",
            "year": "2004",
        },
    ),
    "fletcher2009geometric": (
        "article",
        {
            "author": "Fletcher, P. Thomas and Venkatasubramanian, Suresh and Joshi, Sarang",
            "title": "The Geometric Median on {Riemannian} Manifolds with Application to Robust "
            "Atlas Estimation",
            "journal": "NeuroImage",
            "volume": "45",
            "year": "2009",
        },
    ),
    "fletcher2013geodesic": (
        "article",
        {
            "author": "Fletcher, P. Thomas",
            "title": "Geodesic Regression and the Theory of Least Squares on {Riemannian} "
            "Manifolds",
            "journal": "International Journal of Computer Vision",
            "volume": "105",
            "year": "2013",
        },
    ),
    "sommer2010manifold": (
        "inproceedings",
        {
            "author": "Sommer, Stefan and Lauze, Fran{\\c c}ois and Hauberg, S{\\o}ren and "
            "Nielsen, Mads",
            "title": "Manifold Valued Statistics, Exact Principal Geodesic Analysis and the Effect "
            "of Linear Approximations",
            "booktitle": "European Conference on Computer Vision",
            "year": "2010",
        },
    ),
}


def cite(*things: object) -> str:
    """BibTeX entries of the papers behind what was used, each once, in the order of ``things``.

    riemae itself and the paper that it implements come first. A manifold stands for its decoder and
    ambient metric as well; a result for the space in which it was found, where it knows it; a
    fitted autoencoder for its manifold. A result does not know its solver: give that, too, where it
    was chosen.

    Args:
        things: Manifolds, ambient metrics, ensembles, solvers, autoencoders, results, and functions
            or estimators of :mod:`riemae.statistics`, in any number. Classes stand for their
            instances.

    Raises:
        OptionError: For something that is not riemae's.

    Example:
        >>> import torch, riemae
        >>> M = riemae.Manifold(lambda z: torch.cat([z, z.square()], -1))
        >>> print(riemae.cite(M).splitlines()[6])
        @misc{lee2023geometric,
    """
    keys = dict.fromkeys(_ALWAYS)
    for thing in things:
        keys |= dict.fromkeys(key for part in _parts(thing) for key in _keys(part))
    return "\n\n".join(_bibtex(key) for key in keys)


def _parts(thing: object) -> Iterator[object]:
    """What a thing is made of that may have papers: itself first.

    Raises:
        OptionError: For something that is not riemae's.
    """
    kind = thing if isinstance(thing, type) or callable(thing) else type(thing)
    home = getattr(kind, "__module__", "")
    if not _is_ours(home) and not any(_is_ours(base.__module__) for base in type(thing).__mro__):
        hint = "Give a manifold, an ambient metric, a solver, an estimator, or a result."
        raise OptionError("cite", "something of riemae", repr(thing)[:80], hint)
    yield thing
    if isinstance(thing, Manifold):
        if isinstance(thing.decoder, Ensemble):
            yield thing.decoder
        yield thing.ambient
    elif isinstance(thing, GeodesicResult):
        space = thing.space
        if isinstance(space, Conditioned):
            space = space.core
        if isinstance(space, PullbackMetric):
            yield Manifold
            yield space.ambient
    else:
        # Estimators keep what they have learned under this name.
        fitted = vars(thing).get("manifold_") if hasattr(thing, "__dict__") else None
        if isinstance(fitted, Manifold):
            yield from _parts(fitted)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "riemae"


def _keys(thing: object) -> Iterator[str]:
    """The papers of one thing, and of the classes that its own derives from."""
    if isinstance(thing, type):
        kinds: tuple[object, ...] = thing.__mro__
    elif hasattr(thing, "__qualname__"):
        kinds = (thing,)
    else:
        kinds = type(thing).__mro__
    for kind in kinds:
        place = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
        yield from _PAPERS.get(place, ())


def _bibtex(key: str) -> str:
    kind, fields = _ENTRIES[key]
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
