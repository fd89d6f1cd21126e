"""The content of pictures of maps, curves, images and ellipses, read back from matplotlib."""

import numpy as np
import pytest
import spaces
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from riemae import Manifold, plotting
from riemae.exceptions import NonFiniteError, RiemaeError, ShapeError, SingularMetricError
from riemae.solvers import Curve

SPHERE = Manifold(spaces.sphere)
LOW, HIGH = torch.tensor([-1.0, -0.5]).double(), torch.tensor([2.0, 0.5]).double()


@pytest.fixture
def axes():
    """Axes of a figure on Agg, without pyplot; the drawing must also render without warnings."""
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    yield figure.subplots()
    canvas.draw()


def zigzag(*batch, m=2):
    return Curve.from_nodes(
        torch.rand(*batch, 5, m, generator=torch.Generator().manual_seed(0)).double()
    )


class TestMagnification:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_logarithm_of_the_volume_of_the_sphere(self, axes, dtype):
        # Inverse stereographic projection is conformal with factor 4/(1 + |z|²)², which for m = 2
        # is √det G itself.
        plotting.magnification(SPHERE, LOW.to(dtype), HIGH.to(dtype), resolution=31, ax=axes)
        (image,) = axes.images
        x, y = np.meshgrid(
            np.linspace(-1, 2, 31), np.linspace(-0.5, 0.5, 31)
        )  # one row per height, columns to the right
        expected = np.log10(4 / (1 + x**2 + y**2) ** 2)
        assert np.allclose(
            image.get_array(), expected, atol=1e-12 if dtype == torch.float64 else 1e-5
        )

    def test_lies_where_the_latent_space_does(self, axes):
        assert plotting.magnification(SPHERE, LOW, HIGH, resolution=5, ax=axes) is axes
        (image,) = axes.images
        assert image.get_extent() == [-1.0, 2.0, -0.5, 0.5]
        assert image.origin == "lower"
        assert (axes.get_xlim(), axes.get_ylim()) == ((-1.0, 2.0), (-0.5, 0.5))

    def test_options_are_those_of_imshow(self, axes):
        plotting.magnification(SPHERE, LOW, HIGH, resolution=4, ax=axes)
        style = {"cmap": "magma", "alpha": 0.5, "vmin": -3}
        plotting.magnification(SPHERE, LOW, HIGH, resolution=5, ax=axes, **style)
        default, image = axes.images
        assert (default.get_cmap().name, image.get_cmap().name) == ("Greys", "magma")
        assert image.get_alpha() == 0.5
        assert image.get_clim()[0] == -3
        assert image.get_array().shape == (5, 5)

    def test_asks_for_no_gradient_and_changes_nothing(self, axes):
        decoder = torch.nn.Sequential(
            torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        ).double()
        low, high = LOW.clone().requires_grad_(), HIGH.clone().requires_grad_()
        plotting.magnification(Manifold(decoder), low, high, resolution=4, ax=axes)
        assert torch.equal(low, LOW)
        assert torch.equal(high, HIGH)
        assert all(p.grad is None for p in decoder.parameters())

    def test_singular_places_are_left_blank(self, axes):
        # A fold along z₁ = 0, where √det G = |z₁|: log 0 in the middle column.
        fold = Manifold(lambda z: torch.stack([z[:, 0] ** 2 / 2, z[:, 1]], -1))
        plotting.magnification(fold, -HIGH, HIGH, resolution=5, ax=axes)
        (image,) = axes.images
        values = np.ma.filled(image.get_array(), np.nan)
        assert not np.isfinite(values[:, 2]).any()
        assert np.allclose(values[:, [0, 4]], np.log10(2.0))
        assert np.isfinite(image.get_clim()).all()
        assert [t.get_text() for t in axes.texts] == ["no finite value at 5 of 25 points"]

    def test_outside_of_the_domain(self, axes):
        half = Manifold(lambda z: torch.cat([z, z[:, :1].sqrt()], -1))
        with pytest.raises(NonFiniteError, match="domain"):
            plotting.magnification(half, LOW, HIGH, resolution=4, ax=axes)

    @pytest.mark.parametrize(("low", "high"), [(3, 3), (1, 1), (2, 3)])
    def test_corners_of_another_dimension(self, axes, low, high):
        with pytest.raises(ShapeError, match=r"corners of shape \(2,\)"):
            plotting.magnification(SPHERE, -torch.ones(low).double(), torch.ones(high).double())

    def test_latent_space_of_another_dimension(self, axes):
        solid = Manifold(spaces.sphere, latent_dim=3)
        with pytest.raises(ShapeError, match=r"\(\*b, 3\)"):
            plotting.magnification(solid, LOW, HIGH)


class TestCurves:
    @pytest.mark.parametrize("count", [0, 1, 4])
    def test_one_line_a_curve(self, axes, count):
        curve = zigzag(count)
        assert plotting.curves(curve, points=50, ax=axes) is axes
        assert len(axes.lines) == count
        t = torch.linspace(0, 1, 50, dtype=torch.float64)
        for line, expected in zip(axes.lines, curve(t), strict=True):
            assert np.allclose(line.get_xydata(), expected.numpy(), atol=1e-6)

    def test_ends_at_the_ends(self, axes):
        curve = zigzag(3)
        plotting.curves(curve, ax=axes)
        for line, nodes in zip(axes.lines, curve.nodes.numpy(), strict=True):
            assert np.array_equal(line.get_xydata()[[0, -1]], nodes[[0, -1]])

    def test_options_for_all_and_a_label_for_the_first(self, axes):
        options = {"label": "geodesic", "color": "crimson", "linewidth": 3}
        plotting.curves(zigzag(3), ax=axes, **options)
        assert [line.get_label() == "geodesic" for line in axes.lines] == [True, False, False]
        assert {line.get_linewidth() for line in axes.lines} == {3}
        assert {to_rgba(line.get_color()) for line in axes.lines} == {to_rgba("crimson")}
        assert len(axes.legend().get_texts()) == 1
        assert options["label"] == "geodesic"

    def test_of_a_result(self, axes):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(0), 2)
        r = SPHERE.geodesic(z0, z1)
        plotting.curves(r.curve, ax=axes)
        assert len(axes.lines) == 2
        assert np.array_equal(axes.lines[1].get_xydata()[-1], z1[1].numpy())

    def test_with_gradients(self, axes):
        nodes = zigzag(2).nodes.requires_grad_()
        plotting.curves(Curve.from_nodes(nodes), ax=axes)
        assert len(axes.lines) == 2

    @pytest.mark.parametrize(
        "curve", [zigzag(2, m=3), zigzag(2, m=1), zigzag(2, 2), zigzag()], ids=repr
    )
    def test_other_shapes(self, axes, curve):
        # Two of three coordinates would be drawn as if they were all.
        with pytest.raises(ShapeError, match=r"plotting\.curves.*\(p,\).*two dimensions"):
            plotting.curves(curve, ax=axes)
        assert not axes.lines


class TestStrip:
    def test_sheet(self, axes):
        # Every image in one grey of its own: images are laid out in rows, and each keeps its own
        # rows of pixels.
        images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        plotting.strip(images, ax=axes)
        (image,) = axes.images
        expected = np.block([[images[r, c].double().numpy() for c in range(3)] for r in range(2)])
        assert expected.shape == (8, 15)
        assert np.array_equal(image.get_array(), expected)

    def test_grey_from_nothing_to_ink_without_frames(self, axes):
        plotting.strip(torch.zeros(1, 2, 3, 3), ax=axes)
        (image,) = axes.images
        assert image.get_clim() == (0.0, 1.0)
        assert image.get_cmap().name == "gray_r"
        assert list(axes.get_xticks()) == list(axes.get_yticks()) == []

    def test_options_are_those_of_imshow(self, axes):
        plotting.strip(torch.zeros(1, 2, 3, 3), ax=axes, cmap="viridis", vmax=16)
        (image,) = axes.images
        assert image.get_cmap().name == "viridis"
        assert image.get_clim() == (0.0, 16.0)

    def test_decoded_images_with_gradients(self, axes):
        images = torch.rand(1, 2, 3, 3, requires_grad=True)
        plotting.strip(images, ax=axes)
        assert axes.images[0].get_array().shape == (3, 6)

    @pytest.mark.parametrize("shape", [(5,), (2, 3, 1, 1, 4, 5), (4, 5), (2, 0, 4, 5)], ids=str)
    def test_other_shapes(self, axes, shape):
        with pytest.raises(RiemaeError, match=r"plotting\.strip.*\(rows, columns, height, width\)"):
            plotting.strip(torch.zeros(shape), ax=axes)


class TestIndicatrices:
    def test_every_point_of_an_ellipse_has_the_same_length(self, axes):
        z = torch.rand(6, 2, generator=torch.Generator().manual_seed(0)).double()
        M = Manifold(lambda z: torch.cat([z.exp(), z[..., :1] * z[..., 1:]], -1))
        plotting.indicatrices(M, z, radius=0.1, ax=axes)
        (lines,) = axes.collections
        for centre, line in zip(z, lines.get_segments(), strict=True):
            v = torch.as_tensor(line) - centre
            assert torch.allclose(
                M.norm(centre.expand_as(v), v), torch.tensor(0.1).double(), rtol=1e-9
            )

    def test_of_a_conformal_map_they_are_circles_that_do_not_touch(self, axes):
        z = torch.cartesian_prod(
            torch.linspace(-0.2, 0.2, 3), torch.linspace(-0.2, 0.2, 3)
        ).double()
        plotting.indicatrices(SPHERE, z, ax=axes)
        sizes = [
            np.linalg.norm(s - c, axis=1)
            for s, c in zip(axes.collections[0].get_segments(), z.numpy(), strict=True)
        ]
        # v = r/√λ with √λ = 2/(1 + |z|²) on the sphere.
        for size, centre in zip(sizes, z, strict=True):
            radius = 2 * size / (1 + float(centre.square().sum()))
            assert np.allclose(radius, 2 * sizes[4], rtol=1e-9)  # the one at 0
            assert (size < 0.1).all()

    def test_singular_metrics_and_other_dimensions_are_refused(self, axes):
        flat = Manifold(lambda z: torch.cat([z[..., :1], z[..., :1] * 2, z[..., :1]], -1))
        with pytest.raises(SingularMetricError):
            plotting.indicatrices(flat, torch.zeros(3, 2).double(), ax=axes)
        with pytest.raises(ShapeError):
            plotting.indicatrices(SPHERE, torch.zeros(3, 3).double(), ax=axes)


def test_spread_points_are_the_corners_first():
    z = torch.cartesian_prod(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5))
    chosen = plotting.spread_points(z, 5)
    assert chosen[0].tolist() == [0.0, 0.0]
    assert {tuple(p) for p in chosen[1:].tolist()} == {
        (-1.0, -1.0),
        (-1.0, 1.0),
        (1.0, -1.0),
        (1.0, 1.0),
    }
    assert len(plotting.spread_points(z, 100)) == 25


def test_colours_of_a_plane_are_colours_and_tell_its_corners_apart():
    colours = plotting.plane_colours(
        torch.cartesian_prod(torch.tensor([-3.0, 5.0]), torch.tensor([0.0, 1.0]))
    )
    assert colours.shape == (4, 3)
    assert (colours >= 0).all()
    assert (colours <= 1).all()
    assert min(np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]) > 0.3
