"""Every kind of picture: what it draws, what it takes, and what it refuses."""

import ast
import inspect
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import spaces
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from riemae import Manifold, plotting, solvers
from riemae.exceptions import (
    DTypeError,
    FileError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from riemae.plotting import colours
from riemae.solvers import Curve, Status

LOW, HIGH = torch.tensor([-1.0, -0.5]).double(), torch.tensor([1.0, 0.5]).double()
SPHERE = Manifold(spaces.sphere)
PLANE = Manifold(lambda z: 2 * z)
# An image of 2 × 2 grey values.
PICTURES = Manifold(lambda z: torch.stack([z[:, 0], z[:, 1], z.sum(1), 0 * z[:, 0]], 1))


def points(n=30, m=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(n, m, generator=generator, dtype=torch.float64) - 1).to(dtype)


def with_nan(z):
    z = z.clone()
    z[1] = torch.nan
    return z


def remarks(ax):
    return [text.get_text() for text in ax.texts if text.get_gid() == "remark"]


@pytest.fixture
def ax():
    """Axes of a figure without pyplot; the drawing must also render without warnings."""
    figure = Figure()
    yield figure.subplots()
    figure.canvas.draw()


R = SPHERE.geodesic(points(3), points(3, seed=1))
FILE = "picture.gif"

# A call of every function that draws, without its axes.
CALLS = {
    "balls": lambda **k: plotting.balls(SPHERE, points(2), [0.1, 0.2], 12, **k),
    "codes": lambda **k: plotting.codes(points(), np.arange(30) % 3, **k),
    "condition_number": lambda **k: plotting.condition_number(SPHERE, LOW, HIGH, 5, **k),
    "curvature": lambda **k: plotting.curvature(SPHERE, LOW, HIGH, resolution=5, **k),
    "curves": lambda **k: plotting.curves(R.curve, **k),
    "distance_field": lambda **k: plotting.distance_field(PLANE, LOW, LOW, HIGH, 7, **k),
    "distance_spectrum": lambda **k: plotting.distance_spectrum(
        torch.cdist(points(), points()), **k
    ),
    "distortion": lambda **k: plotting.distortion(SPHERE, LOW, HIGH, resolution=5, **k),
    "error_against_time": lambda **k: plotting.error_against_time({"a": ([1, 2], [3, 1])}, **k),
    "field": lambda **k: plotting.field(lambda z: z.sum(1), LOW, HIGH, 5, label="sum", **k),
    "geodesics": lambda **k: plotting.geodesics(R, **k),
    "history": lambda **k: plotting.history({"loss": [3.0, 2.0]}, **k),
    "indicatrices": lambda **k: plotting.indicatrices(SPHERE, points(5), **k),
    "latent": lambda **k: plotting.latent(SPHERE, points(), resolution=5, **k),
    "magnification": lambda **k: plotting.magnification(SPHERE, LOW, HIGH, 5, **k),
    "matrix": lambda **k: plotting.matrix(torch.cdist(points(), points()), **k),
    "metric_spectrum": lambda **k: plotting.metric_spectrum(SPHERE, points(), **k),
    "strip": lambda **k: plotting.strip(torch.rand(1, 3, 4, 4), **k),
    "strips": lambda **k: plotting.strips(PICTURES, {"a": R.curve[0]}, 3, shape=(2, 2), **k),
    "time_bars": lambda **k: plotting.time_bars({"a": 1.0, "b": None}, **k),
}


class TestAxes:
    def test_every_function_is_in_the_table(self):
        drawing = {
            name
            for name in plotting.__all__
            if "ax" in inspect.signature(getattr(plotting, name)).parameters
        }
        assert drawing == set(CALLS)

    @pytest.mark.parametrize("name", CALLS)
    def test_are_returned_and_nothing_else_is_touched(self, name, ax):
        before = dict(matplotlib.rcParams)
        assert CALLS[name](ax=ax) is ax
        assert ax.has_data()
        assert plt.get_fignums() == []
        assert dict(matplotlib.rcParams) == before

    @pytest.mark.parametrize("name", CALLS)
    def test_are_made_without_pyplot(self, name, tmp_path):
        new = CALLS[name]()
        assert isinstance(new, Axes)
        assert plt.get_fignums() == []
        new.figure.savefig(tmp_path / "picture.png")  # renders without warnings
        assert (tmp_path / "picture.png").stat().st_size > 1000

    @pytest.mark.parametrize("name", CALLS)
    def test_are_refused_when_they_are_something_else(self, name):
        with pytest.raises(DTypeError, match=r"plotting\..*one matplotlib Axes.*Figure"):
            CALLS[name](ax=Figure())

    @pytest.mark.parametrize(
        "name", sorted(set(CALLS) - {"strip", "strips", "matrix", "time_bars"})
    )
    def test_have_names_at_both_sides(self, name, ax):
        CALLS[name](ax=ax)
        assert ax.get_xlabel()
        assert ax.get_ylabel()

    @pytest.mark.parametrize(
        "name",
        [
            "condition_number",
            "curvature",
            "distance_field",
            "distortion",
            "magnification",
            "matrix",
        ],
    )
    def test_a_colour_bar_says_what_colours_mean(self, name, ax):
        CALLS[name](ax=ax)
        (bar,) = [other for other in ax.figure.axes if other is not ax]
        assert len(bar.get_ylabel()) > 5
        CALLS[name](ax=ax, colorbar=False)
        assert len(ax.figure.axes) == 2

    def test_importing_the_package_does_not_import_matplotlib(self):
        for path in Path(plotting.__file__).parent.glob("*.py"):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    assert "matplotlib" not in ast.unparse(node), path.name


class TestInputs:
    """Tensors of both dtypes, arrays and lists give the same picture."""

    @pytest.mark.parametrize(
        "given",
        [
            lambda z: z.float(),
            lambda z: z.requires_grad_(),
            lambda z: z.numpy(),
            lambda z: z.float().numpy(),
            lambda z: z.tolist(),
        ],
        ids=["float32", "gradient", "numpy", "numpy float32", "list"],
    )
    def test_of_points(self, given, ax):
        z = points(6)
        plotting.codes(given(z.clone()), ax=ax)
        plotting.indicatrices(SPHERE, given(z.clone()), 0.1, ax=ax)
        plotting.balls(SPHERE, given(z.clone()), 0.1, 8, ax=ax)
        plotting.latent(SPHERE, given(z.clone()), resolution=4, ax=ax)
        scatter, ellipses = ax.collections[:2]
        assert np.allclose(scatter.get_offsets(), z, atol=1e-6)
        (expected,) = plotting.indicatrices(SPHERE, z, 0.1).collections
        for own, other in zip(ellipses.get_segments(), expected.get_segments(), strict=True):
            assert np.allclose(own, other, atol=1e-5)

    def test_arrays_get_the_dtype_of_the_decoder(self, ax):
        M = Manifold(torch.nn.Linear(2, 3).requires_grad_(False))
        plotting.latent(M, points(5).numpy(), ax=ax, resolution=4, ellipses=2)
        plotting.metric_spectrum(M, points(5).numpy(), ax=ax)

    def test_what_is_no_number(self):
        with pytest.raises(DTypeError, match=r"plotting\.codes.*real numbers"):
            plotting.codes([["a", "b"]])
        with pytest.raises(DTypeError, match="real numbers"):
            plotting.matrix(torch.ones(2, 2, dtype=torch.complex64))
        with pytest.raises(DTypeError, match=r"riemae\.Manifold first.*Linear"):
            plotting.latent(torch.nn.Linear(2, 3), points())

    @pytest.mark.parametrize("m", [1, 3])
    def test_other_dimensions(self, m):
        z = points(4, m)
        for draw in (
            lambda: plotting.codes(z),
            lambda: plotting.latent(Manifold(lambda z: z), z),
            lambda: plotting.balls(Manifold(lambda z: z), z, 0.1),
        ):
            with pytest.raises(ShapeError, match=r"shape \(n, 2\).*Only m = 2 is flat"):
                draw()


class TestCodes:
    def test_classes_have_their_colours_and_names_at_their_medians(self, ax):
        z = points(31)
        labels = np.array(["b", "a"] * 15 + ["b"])
        plotting.codes(z, labels, ax=ax)
        names = {text.get_text(): text for text in ax.texts}
        assert set(names) == {"a", "b"}
        for name, scatter in zip("ab", ax.collections, strict=True):
            own = z[torch.as_tensor(labels == name)]
            assert np.allclose(scatter.get_offsets(), own)
            assert np.allclose(names[name].xy, np.median(own, axis=0))
            patch = names[name].get_bbox_patch().get_facecolor()
            assert np.allclose(patch[:3], scatter.get_facecolor()[0, :3])

    def test_a_legend_where_names_are_not_written(self, ax):
        plotting.codes(points(), np.arange(30) % 3, names=False, label="digit", ax=ax)
        legend = ax.get_legend()
        assert legend.get_title().get_text() == "digit"
        assert [text.get_text() for text in legend.get_texts()] == ["0", "1", "2"]

    def test_values_have_a_colour_bar(self, ax):
        plotting.codes(points(), torch.linspace(0, 1, 30), label="time (s)", ax=ax)
        (bar,) = ax.figure.axes[1:]
        assert bar.get_ylabel() == "time (s)"

    def test_points_and_labels_that_are_missing(self, ax):
        labels = np.arange(30) % 2 + 0.0
        labels[4:6] = np.nan
        plotting.codes(with_nan(points()), labels, ax=ax)
        unknown = ax.collections[0]
        assert unknown.get_label() == "no label"
        assert [len(c.get_offsets()) for c in ax.collections] == [2, 14, 13]
        assert remarks(ax) == ["1 of 30 points are not finite"]

    def test_many_classes_differ_in_colour_or_marker(self, ax):
        labels = np.repeat(np.arange(25), 2)
        plotting.codes(points(50), labels, ax=ax)
        styles = {(c.get_facecolor().tobytes(), len(c.get_paths()[0])) for c in ax.collections}
        assert len(styles) == 25
        assert len(ax.get_legend().get_texts()) == 25

    def test_categories_keep_their_order(self, ax):
        pandas = pytest.importorskip("pandas")
        labels = pandas.Categorical(["low", "high"] * 15, categories=["low", "middle", "high"])
        plotting.codes(points(), pandas.Series(labels), ax=ax)
        assert [c.get_label() for c in ax.collections] == ["low", "high"]

    def test_bad_input(self):
        with pytest.raises(ShapeError, match=r"labels of shape \(30,\)"):
            plotting.codes(points(), [1, 2])
        with pytest.raises(NonFiniteError, match="finite points"):
            plotting.codes(torch.full((3, 2), torch.nan))

    def test_region_is_the_box_with_a_margin(self):
        z = torch.tensor([[0.0, 5.0], [10.0, 5.0], [torch.nan, 0.0]])
        low, high = plotting.region(z, 0.1)
        assert low.tolist() == pytest.approx([-1.0, 4.9])
        assert high.tolist() == pytest.approx([11.0, 5.1])
        assert low.dtype == torch.float32
        with pytest.raises(NonFiniteError):
            plotting.region(z[2:])


class TestMaps:
    def test_curvature_of_the_sphere(self, ax):
        plotting.curvature(SPHERE, LOW, HIGH, resolution=5, ax=ax)
        (image,) = ax.images
        assert np.allclose(image.get_array(), 1.0, atol=1e-9)
        assert image.get_clim() == pytest.approx((-1, 1))  # 0 is in the middle

    @pytest.mark.parametrize(("kind", "value"), [("scalar", 2.0), ("extrinsic", 4.0)])
    def test_other_curvatures(self, kind, value, ax):
        plotting.curvature(SPHERE, LOW, HIGH, kind, 4, ax=ax)
        assert np.allclose(ax.images[0].get_array(), value, atol=1e-9)

    def test_curvature_is_blank_where_the_metric_is_singular(self, ax):
        fold = Manifold(lambda z: torch.stack([z[:, 0] ** 2, z[:, 1], z[:, 0] * z[:, 1] ** 2], -1))
        plotting.curvature(fold, -HIGH, HIGH, resolution=5, ax=ax)
        values = np.ma.filled(ax.images[0].get_array(), np.nan)
        assert np.isnan(values[2, 2])
        assert np.isfinite(values[:, [0, 4]]).all()
        assert remarks(ax)

    def test_distortion_and_condition(self, ax):
        stretched = Manifold(lambda z: torch.stack([10 * z[:, 0], z[:, 1]], -1))
        plotting.condition_number(stretched, LOW, HIGH, 4, ax=ax)
        plotting.distortion(stretched, LOW, HIGH, "isometry", 4, ax=ax)
        plotting.distortion(PLANE, LOW, HIGH, resolution=4, ax=ax)
        condition, far, none = (image.get_array() for image in ax.images)
        assert np.allclose(condition, 1.0)
        assert np.allclose(far, np.log10(99.0**2))
        assert np.allclose(none, -12)

    def test_a_function_of_ones_own(self, ax):
        plotting.field(lambda z: z[:, 0] * 10, LOW, HIGH, 5, ax=ax, vmax=5)
        assert np.allclose(ax.images[0].get_array()[:, 4], 10)
        assert ax.images[0].colorbar.extend == "max"

    def test_corners(self):
        with pytest.raises(OptionError, match=r"lower left.*plotting\.region"):
            plotting.magnification(SPHERE, HIGH, LOW)
        with pytest.raises(DTypeError, match="ax="):
            plotting.magnification(SPHERE, Figure().subplots(), LOW)
        with pytest.raises(OptionError, match="resolution"):
            plotting.magnification(SPHERE, LOW, HIGH, 1)
        with pytest.raises(ShapeError, match="values"):
            plotting.field(lambda z: z, LOW, HIGH, 5)
        with pytest.raises(NonFiniteError):
            plotting.field(lambda z: z[:, 0] * torch.nan, LOW, HIGH, 5)
        with pytest.raises(OptionError, match="'gaussian', 'scalar', 'extrinsic'"):
            plotting.curvature(SPHERE, LOW, HIGH, "mean")


class TestDistances:
    @pytest.mark.parametrize(("method", "accuracy"), [("geodesic", 1e-2), ("graph", 0.06)])
    def test_levels_of_a_plane_are_circles(self, method, accuracy, ax):
        corner = [-1.0, -1.0], [1.0, 1.0]
        plotting.distance_field(PLANE, [0.0, 0.0], *corner, 11, method=method, ax=ax)
        lines = ax.collections[1]  # on the filled areas
        for level, path in zip(lines.levels, lines.get_paths(), strict=True):
            for vertices in path.to_polygons(closed_only=False):
                radii = np.linalg.norm(vertices, axis=1)
                # Between lattice points the levels are those of a linear interpolation.
                assert np.allclose(radii, level / 2, rtol=accuracy, atol=0.05)

    def test_source_is_marked(self, ax):
        plotting.distance_field(PLANE, [0.25, 0.5], LOW, HIGH, 7, ax=ax)
        assert ax.collections[-1].get_offsets().tolist() == [[0.25, 0.5]]

    def test_bad_input(self):
        with pytest.raises(ShapeError, match=r"source of shape \(2,\)"):
            plotting.distance_field(PLANE, points(3), LOW, HIGH)
        with pytest.raises(NonFiniteError, match="finite source"):
            plotting.distance_field(PLANE, [np.nan, 0.0], LOW, HIGH)
        with pytest.raises(OptionError, match="'graph', 'geodesic'"):
            plotting.distance_field(PLANE, LOW, LOW, HIGH, method="chord")

    def test_balls_have_their_radius(self, ax):
        z = points(2) / 2
        plotting.balls(SPHERE, z, torch.tensor([0.5, 0.2]), 16, ax=ax)
        rings = ax.collections[0].get_segments()
        assert len(rings) == 4
        centres = z.repeat_interleave(2, 0)
        for centre, ring, radius in zip(centres, rings, [0.2, 0.5] * 2, strict=True):
            ends = torch.as_tensor(ring)
            distances = spaces.great_circle(centre.expand_as(ends), ends)
            assert torch.allclose(distances, torch.full_like(distances, radius), atol=1e-6)

    def test_balls_that_leave_the_domain_have_gaps(self, ax):
        half = Manifold(lambda z: torch.cat([z, z[:, :1].sqrt()], -1))
        plotting.balls(half, [[0.3, 0.0]], 0.9, 6, ax=ax)
        assert "geodesics leave the domain" in remarks(ax)[0]

    @pytest.mark.parametrize("radius", [0.0, -1.0, [0.1, np.nan], "big"])
    def test_radii(self, radius):
        with pytest.raises(OptionError, match="radius"):
            plotting.balls(SPHERE, points(2), radius)


class TestGeodesics:
    def test_straight_lines_and_ends(self, ax):
        plotting.geodesics(R, lengths=True, ax=ax)
        straight, curved = ax.lines[:3], ax.lines[3:]
        assert len(curved) == 3
        for line, other, first, last in zip(
            straight, curved, points(3), points(3, seed=1), strict=True
        ):
            assert np.allclose(line.get_xydata(), torch.stack([first, last]))
            assert np.allclose(other.get_xydata()[[0, -1]], torch.stack([first, last]))
            assert line.get_linestyle() == "--"
        written = [text.get_text() for text in ax.texts]
        assert written == [f"{length:.3g}" for length in R.length.tolist()]

    def test_those_that_failed_are_dotted_and_counted(self, ax):
        import dataclasses

        status = R.status.clone()
        status[1] = int(Status.MAX_STEPS)
        plotting.geodesics(dataclasses.replace(R, status=status), straight=False, ax=ax)
        assert [line.get_linestyle() for line in ax.lines] == ["-", "-", ":"]
        assert remarks(ax) == ["1 of 3 geodesics did not converge"]

    def test_bad_input(self):
        with pytest.raises(DTypeError, match="GeodesicResult"):
            plotting.geodesics(R.curve)
        with pytest.raises(ShapeError, match=r"curves \(p,\)"):
            plotting.geodesics(R[0])
        with pytest.raises(DTypeError, match=r"solvers\.Curve"):
            plotting.curves(points())


class TestImages:
    COLOURED = torch.rand(2, 3, 4, 5, 3, generator=torch.Generator().manual_seed(0))

    def test_any_order_of_channels(self, ax):
        x = self.COLOURED
        plotting.strip(x, ax=ax)
        plotting.strip(x.permute(0, 1, 4, 2, 3), ax=ax)
        plotting.strip(x.flatten(2), shape=(4, 5, 3), ax=ax)
        plotting.strip(x.permute(0, 1, 4, 2, 3).flatten(2), shape=(3, 4, 5), ax=ax)
        plotting.strip(x, channels="last", ax=ax)
        first, *others = (image.get_array() for image in ax.images)
        assert first.shape == (8, 15, 3)
        assert np.allclose(first[:4, 5:10], x[0, 1])
        assert all(np.array_equal(first, other) for other in others)

    def test_one_row(self, ax):
        plotting.strip(self.COLOURED[0], channels="last", ax=ax)
        plotting.strip(self.COLOURED[0, ..., 0], ax=ax)
        plotting.strip(self.COLOURED[0, ..., :1], channels="last", ax=ax)
        assert [image.get_array().shape for image in ax.images] == [(4, 15, 3), (4, 15), (4, 15)]

    def test_where_the_channels_are_has_to_be_clear(self):
        with pytest.raises(OptionError, match=r"one axis of 1, 3 or 4 channels.*channels='first'"):
            plotting.strip(torch.rand(1, 2, 3, 5, 3))
        with pytest.raises(ShapeError, match="1, 3 or 4 channels"):
            plotting.strip(torch.rand(1, 2, 5, 4, 4), channels="first")

    def test_gaps_and_names_of_rows(self, ax):
        plotting.strip(torch.ones(2, 3, 4, 5), gap=2, rows=["a", "b"], ax=ax)
        sheet = np.ma.filled(ax.images[0].get_array(), np.nan)
        assert sheet.shape == (10, 19)
        assert np.isnan(sheet[4:6]).all()
        assert np.isnan(sheet[:, 5:7]).all()
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
        assert list(ax.get_yticks()) == [1.5, 7.5]

    @pytest.mark.parametrize(
        ("low", "high", "limits"),
        [
            (0, 1, (0, 1)),
            (-0.05, 1.1, (0, 1)),
            (-1, 1, (-1, 1)),
            (0, 250, (0, 255)),
            (-9, 9, (-9, 9)),
        ],
    )
    def test_range_of_values(self, low, high, limits, ax):
        images = torch.linspace(low, high, 200).view(1, 2, 10, 10)
        plotting.strip(images, ax=ax)
        assert ax.images[0].get_clim() == limits
        plotting.strip(images, limits=(-2, 3), ax=ax)
        assert ax.images[1].get_clim() == (-2, 3)

    def test_colours_are_scaled_and_missing_ones_white(self, ax):
        x = (self.COLOURED[:1] * 255).round()
        x[0, 0, 0, 0] = torch.nan
        plotting.strip(x, ax=ax)
        shown = ax.images[0].get_array()
        assert (shown[0, 0] == 1).all()
        assert np.allclose(shown[1:, :5], x[0, 0, 1:] / 255)

    def test_bad_input(self):
        with pytest.raises(NonFiniteError, match="finite images"):
            plotting.strip(torch.full((1, 1, 2, 2), torch.nan))
        with pytest.raises(ShapeError, match="6 values"):
            plotting.strip(torch.rand(1, 2, 7), shape=(2, 3))
        with pytest.raises(OptionError, match="shape of one image"):
            plotting.strip(torch.rand(1, 2, 6), shape=(6,))
        with pytest.raises(OptionError, match="names of rows"):
            plotting.strip(torch.rand(1, 2, 3, 3), rows=["a", "b"])
        with pytest.raises(OptionError, match="limits"):
            plotting.strip(torch.rand(1, 2, 3, 3), limits=(1, 0))

    def test_decoded_at_equal_times(self):
        curve = Curve.line(points(2), points(2, seed=1))
        x = plotting.decoded(PICTURES, curve, 5)
        t = torch.linspace(0, 1, 5).double()
        assert x.shape == (2, 5, 4)
        assert torch.allclose(x[1], PICTURES.decode(curve(t)[1]))
        with pytest.raises(DTypeError, match=r"solvers\.Curve"):
            plotting.decoded(PICTURES, points())
        with pytest.raises(OptionError, match="frames"):
            plotting.decoded(PICTURES, curve, 1)

    def test_strips_name_curves_and_their_lengths(self, ax):
        line = Curve.line(torch.zeros(2).double(), torch.tensor([1.0, 0.0]).double())
        plotting.strips(PICTURES, {"line": line}, 3, shape=(2, 2), ax=ax)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["line\n1.41 long"]
        sheet = np.ma.filled(ax.images[0].get_array(), np.nan)
        assert np.allclose(sheet[:2, 6:8], [[1, 0], [1, 0]])
        with pytest.raises(ShapeError, match=r"curve\[0\]"):
            plotting.strips(PICTURES, {"many": R.curve}, shape=(2, 2))
        with pytest.raises(OptionError, match="at least one curve"):
            plotting.strips(PICTURES, {})


class TestFilms:
    def test_frames_there_and_back(self, tmp_path):
        images = torch.linspace(0, 1, 4)[None, :, None, None].expand(2, 4, 3, 5)
        path = plotting.gif(images, tmp_path / FILE, scale=2, fps=20)
        with Image.open(path) as film:
            assert film.size == (10, 12)
            assert film.info["loop"] == 0
            assert film.n_frames == 6
            greys = []
            for frame in range(film.n_frames):
                film.seek(frame)
                assert film.info["duration"] == 50
                greys.append(film.convert("L").getpixel((0, 0)))
        assert greys == pytest.approx([255, 170, 85, 0, 85, 170], abs=2)
        assert list(tmp_path.iterdir()) == [path]

    def test_colours_and_flat_images(self, tmp_path):
        flat = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # two frames of one pixel
        path = plotting.gif(flat, tmp_path / FILE, shape=(1, 1, 3), bounce=False)
        with Image.open(path) as film:
            assert film.n_frames == 2
            assert film.convert("RGB").getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=4)
            assert film.height >= 100

    def test_bad_input(self, tmp_path):
        with pytest.raises(FileError, match="a file that can be written"):
            plotting.gif(torch.rand(3, 4, 4), tmp_path / "none" / FILE)
        with pytest.raises(OptionError, match="fps"):
            plotting.gif(torch.rand(3, 4, 4), tmp_path / FILE, fps=0)
        with pytest.raises(ShapeError):
            plotting.gif(torch.rand(3, 4), tmp_path / FILE)
        assert list(tmp_path.iterdir()) == []


class TestMatrix:
    def test_in_the_order_of_the_labels(self, ax):
        d = torch.cdist(points(5), points(5))
        labels = ["b", "a", "b", "a", "c"]
        plotting.matrix(d, labels, ax=ax)
        order = [1, 3, 0, 2, 4]
        assert np.allclose(ax.images[0].get_array(), d[order][:, order])
        assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
        assert list(ax.get_xticks()) == [0.5, 2.5, 4.0]
        assert sorted({line.get_xydata()[0, 1] for line in ax.lines[::2]}) == [1.5, 3.5]

    def test_of_a_result_with_failures(self, ax):
        d = torch.cdist(points(4), points(4))
        d[0, 1] = torch.nan
        given = solvers.DistanceMatrix(d, torch.tensor([[0, 1]]), torch.tensor([1]), 1e-3)
        plotting.matrix(given, ax=ax)
        assert remarks(ax) == ["1 of 16 entries are not finite"]
        assert np.isnan(np.ma.filled(ax.images[0].get_array(), np.nan)[0, 1])
        assert ax.images[0].get_clim()[0] == 0

    def test_sorted_by_values(self, ax):
        d = torch.cdist(points(50), points(50))
        plotting.matrix(d, points(50)[:, 0], ax=ax)
        order = points(50)[:, 0].argsort()
        assert np.allclose(ax.images[0].get_array(), d[order][:, order])

    def test_bad_input(self):
        with pytest.raises(ShapeError, match=r"shape \(n, n\)"):
            plotting.matrix(torch.rand(2, 3))
        with pytest.raises(NonFiniteError):
            plotting.matrix(torch.full((2, 2), torch.nan))
        with pytest.raises(ShapeError, match="labels"):
            plotting.matrix(torch.rand(3, 3), [1, 2])


class TestSpectra:
    def test_of_a_metric_that_is_the_same_everywhere(self, ax):
        stretched = Manifold(lambda z: z * torch.tensor([1.0, 3.0, 0.0]).double())
        plotting.metric_spectrum(stretched, points(9, 3), ax=ax)
        (median,) = ax.lines
        assert np.allclose(median.get_ydata(), [9, 1, 0.01])
        assert remarks(ax) == ["9 of 27 eigenvalues are 0"]
        assert ax.get_yscale() == "log"

    def test_of_distances_in_a_plane(self, ax):
        z = points()
        plotting.distance_spectrum(torch.cdist(z, z), 5, ax=ax)
        heights = [bar.get_height() for bar in ax.patches]
        centred = z - z.mean(0)
        shares = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
        assert np.allclose(heights[:2], 100 * shares / shares.sum())
        assert np.allclose(heights[2:], 0, atol=1e-6)

    def test_of_distances_that_no_flat_space_has(self, ax):
        # Three corners and a point that is as far from all as half their distance.
        d = 2 * (1 - torch.eye(4))
        d[3, :3] = d[:3, 3] = 1.0
        plotting.distance_spectrum(d, ax=ax)
        negative = [bar for bar in ax.patches if bar.get_height() < 0]
        assert len(negative) == 1
        assert to_rgb(negative[0].get_facecolor()) == to_rgb(colours.LINES[5])
        assert "below 0" in ax.get_legend().get_title().get_text()

    def test_bad_input(self):
        with pytest.raises(NonFiniteError, match="entries with NaN"):
            plotting.distance_spectrum(torch.full((3, 3), torch.nan))
        with pytest.raises(NonFiniteError, match="above 0"):
            plotting.distance_spectrum(torch.zeros(3, 3))
        with pytest.raises(ShapeError):
            plotting.metric_spectrum(SPHERE, points(0))
        with pytest.raises(NonFiniteError):
            plotting.metric_spectrum(Manifold(lambda z: 0 * z), points(3))


class TestHistory:
    def test_of_a_model(self, ax):
        class Model:
            history_ = {"loss": [10.0, 1.0, 0.1], "isometry": [1.0, np.nan, 0.5]}

        plotting.history(Model(), ax=ax)
        loss, isometry = ax.lines
        assert loss.get_xydata().tolist() == [[1, 10], [2, 1], [3, 0.1]]
        assert isometry.get_label() == "isometry"
        assert ax.get_yscale() == "log"
        assert remarks(ax) == ["1 values are not finite"]

    def test_negative_values_are_on_a_linear_scale(self, ax):
        plotting.history({"loss": [-1.0, -200.0]}, ax=ax)
        assert ax.get_yscale() == "linear"

    def test_bad_input(self):
        with pytest.raises(OptionError, match="at least one epoch"):
            plotting.history({"loss": []})
        with pytest.raises(DTypeError, match="a history"):
            plotting.history(3)


class TestComparison:
    def test_errors_against_times(self, ax):
        runs = {"a": ([2, 1, 3], [1e-3, 1e-1, np.nan]), "b": ([5.0], [0.0])}
        plotting.error_against_time(runs, targets=[1e-2], ax=ax)
        first, _, second, exact, target = ax.lines
        assert first.get_xydata().tolist() == [[1, 1e-1], [2, 1e-3]]
        assert exact.get_ydata()[0] == pytest.approx(1e-3 / 3)
        assert second.get_label() == "b"
        assert list(target.get_ydata()) == [1e-2, 1e-2]
        assert remarks(ax) == ["▼ error 0"]
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")

    def test_bars_have_numbers(self, ax):
        plotting.time_bars({"a": 0.5, "b": float("nan"), "c": 200}, ax=ax)
        texts = {text.get_text() for text in ax.texts}
        assert texts == {"0.5", "200", "not reached"}
        assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
        ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
        assert ends == pytest.approx([0.5, 200])

    def test_bad_input(self):
        with pytest.raises(ShapeError, match="2 and 1 of 'a'"):
            plotting.error_against_time({"a": ([1, 2], [1])})
        with pytest.raises(OptionError, match="times above 0"):
            plotting.error_against_time({"a": ([0, 2], [1, 1])})
        with pytest.raises(OptionError, match="at least one method"):
            plotting.error_against_time({})
        with pytest.raises(NonFiniteError):
            plotting.error_against_time({"a": ([1], [0])})
        with pytest.raises(OptionError, match="times above 0"):
            plotting.time_bars({"a": 0})
        with pytest.raises(NonFiniteError):
            plotting.time_bars({"a": None})


class TestLatent:
    def test_everything_in_one_picture(self, ax):
        labels = np.arange(30) % 3
        plotting.latent(SPHERE, points(), labels, resolution=6, ellipses=5, geodesics=R, ax=ax)
        assert len(ax.images) == 1
        written = [text.get_text() for text in ax.get_legend().get_texts()]
        assert written[0].startswith("metric circles")
        assert written[1:] == ["straight line", "geodesic"]

    def test_the_region_holds_the_geodesics(self, ax):
        far = SPHERE.geodesic(points(1) - 3, points(1) + 3, throw=False, n_starts=1)
        plotting.latent(SPHERE, points(), geodesics=far, resolution=6, ax=ax)
        lines = np.concatenate([line.get_xydata() for line in ax.lines])
        for axis, limits in enumerate((ax.get_xlim(), ax.get_ylim())):
            assert limits[0] <= lines[:, axis].min()
            assert lines[:, axis].max() <= limits[1]

    @pytest.mark.parametrize("background", ["curvature", "distortion", "condition_number", None])
    def test_backgrounds(self, background, ax):
        plotting.latent(SPHERE, points(), background=background, resolution=5, ax=ax)
        assert len(ax.images) == (background is not None)

    def test_points_that_are_not_finite(self, ax):
        plotting.latent(SPHERE, with_nan(points()), ellipses=3, resolution=5, ax=ax)
        assert remarks(ax) == ["1 of 30 points are not finite"]

    def test_bad_input(self):
        with pytest.raises(OptionError, match="'magnification', 'curvature'"):
            plotting.latent(SPHERE, points(), background="volume")
        with pytest.raises(OptionError, match="ellipses"):
            plotting.latent(SPHERE, points(), ellipses=-1)


class TestIndicatrices:
    def test_centres_that_are_not_finite(self, ax):
        plotting.indicatrices(SPHERE, with_nan(points(5)), ax=ax)
        assert len(ax.collections[0].get_segments()) == 4
        assert remarks(ax) == ["1 of 5 centres are not finite"]

    def test_bad_input(self):
        with pytest.raises(OptionError, match="radius"):
            plotting.indicatrices(SPHERE, points(), radius=-1)
        with pytest.raises(NonFiniteError):
            plotting.indicatrices(SPHERE, with_nan(points(2))[1:])

    def test_a_centre_that_is_given_twice(self, ax):
        plotting.indicatrices(SPHERE, points(3)[[0, 0, 1]], ax=ax)
        sizes = [np.ptp(segment) for segment in ax.collections[0].get_segments()]
        assert min(sizes) > 0


def test_class_colours_differ_for_people_who_see_no_red_or_no_green():
    """Simulated by the matrices of F. Viénot, H. Brettel, J. Mollon (1999) for linear RGB."""
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    for palette in (colours.LINES, colours.CLASSES):
        linear = np.array([to_rgb(colour) for colour in palette]) ** 2.2
        for seen in (np.eye(3), protan, deutan):
            shown = np.clip(linear @ seen.T, 0, 1) ** (1 / 2.2)
            apart = np.linalg.norm(shown[:, None] - shown, axis=-1)
            assert apart[~np.eye(len(palette), dtype=bool)].min() > 0.06
