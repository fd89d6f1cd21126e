"""Pages in a headless Chromium: geodesics solved there, drags, keys, and what must not happen."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import riemae

_SPEC = importlib.util.spec_from_file_location("browsers", Path(__file__).with_name("browsers.py"))
browsers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(browsers)

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'riemae[browser]'")
pytestmark = pytest.mark.skipif(
    browsers.chromium() is None, reason="no Chromium is installed; RIEMAE_CHROMIUM names one"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browsers.chromium(), args=browsers.ARGUMENTS
        )
        yield browser
        browser.close()


def points(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def digits_like():
    """A network with folds like those of a decoder of images, 2 to 64 outputs."""
    generator = torch.Generator().manual_seed(3)
    sizes = (2, 64, 64, 64)
    layers = []
    for k, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layer = torch.nn.Linear(a, b, dtype=torch.float64)
        gain = (1.6, 1.4, 1.0)[k]
        layer.weight.data = gain * torch.randn(b, a, generator=generator).double() / a**0.5
        layer.bias.data = 0.5 * torch.randn(b, generator=generator).double()
        layers += [layer, torch.nn.SiLU()]
    return torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid()).requires_grad_(False)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """The report of a network with 100 pairs."""
    path = tmp_path_factory.mktemp("digits") / "digits.html"
    z = 1.5 * points(200)
    labels = [f"class {int(x > 0)}" for x in z[:, 0]]
    return riemae.report(
        riemae.Manifold(digits_like()), z, labels, path=path, images=(8, 8), rtol=1e-3
    )


@pytest.fixture
def page(browser, folded):
    with browsers.opened(browser, folded.path) as page:
        yield page
        assert page.said == []
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


def solved(browser, path, ends):
    """Lengths that the page finds between pairs ``(p, 2, 2)``."""
    with browsers.opened(browser, path) as page:
        found = page.evaluate(
            "ends => ends.map(([a, b]) => {"
            "  const r = riemae.page.solver.solve(a, b);"
            "  return [r.length, r.straight, r.resolved];"
            "})",
            ends.tolist(),
        )
        assert page.said == []
    assert all(one[2] for one in found)
    return torch.tensor([one[:2] for one in found], dtype=torch.float64)


def lengths_shown(page):
    return page.locator("#lengths dd").all_inner_texts()


class TestSolver:
    def test_a_sphere(self, browser, tmp_path):
        def sphere(z):  # stereographic, of radius 1
            square = z.square().sum(-1, keepdim=True)
            return torch.cat([2 * z, square - 1], -1) / (1 + square)

        z = points(30)
        path = tmp_path / "sphere.html"
        r = riemae.report(riemae.Manifold(sphere), z, path=path, pairs=5)
        assert r.numbers["curvature"] > 0
        # Within a disc whose geodesics stay in the table: others pass through infinity.
        a, b = 0.35 * z[:15], 0.35 * z[15:]
        found = solved(browser, path, torch.stack([a, b], 1))
        exact = torch.acos((sphere(a) * sphere(b)).sum(-1))
        torch.testing.assert_close(found[:, 0], exact, rtol=1e-4, atol=0)
        assert (found[:, 1] >= exact * (1 - 1e-6)).all()

    def test_the_hyperbolic_half_plane_whose_table_has_an_edge(self, browser, tmp_path):
        def metric(x):  # of (x, log y)
            return torch.diag_embed(torch.stack([(-2 * x[:, 1]).exp(), torch.ones(len(x))], -1))

        M = riemae.Manifold(lambda z: torch.stack([z[:, 0], z[:, 1].log()], -1), metric)
        z = torch.stack([points(30)[:, 0], points(30)[:, 1].abs() + 0.3], 1)
        path = tmp_path / "half.html"
        riemae.report(M, z, path=path, pairs=8)
        a, b = z[:15], z[15:]
        found = solved(browser, path, torch.stack([a, b], 1))
        square = (a - b).square().sum(1)
        exact = torch.acosh(1 + square / (2 * a[:, 1] * b[:, 1]))
        torch.testing.assert_close(found[:, 0], exact, rtol=1e-3, atol=0)

    def test_a_network_within_one_per_cent_or_marked(self, page, folded):
        while page.evaluate("riemae.page.differences.length") < 100:
            page.wait_for_timeout(50)
        differences = torch.tensor(page.evaluate("riemae.page.differences")).double()
        converged = folded.pairs.result.converged
        marked = (differences.abs() > 0.01) | ~converged
        assert int(marked.sum()) <= 5
        assert float(differences.abs().median()) < 1e-4
        # The check's list names the marked ones, and no others.
        assert page.locator("#checked li button").count() == int(marked.sum())
        # Wherever both are right, what is shorter is the better local geodesic.
        assert float(differences[~marked].abs().max()) <= 0.01

    def test_a_pair_that_differs_is_marked_in_words(self, page):
        assert page.inner_text("#mark") == ""
        page.evaluate(
            "() => { const p = riemae.page; p.data.pairs.length[7] *= 1.2; p.showPair(7); }"
        )
        assert "more than 1 % shorter than riemae's" in page.inner_text("#mark")


def around(n, seed=0):
    """Angles in [0, 2π)."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * math.pi * torch.rand(n, 2, generator=generator, dtype=torch.float64)


def short(angle):
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def ring(z):  # a torus of revolution
    radius = 2 + z[:, 1].cos()
    return torch.stack([radius * z[:, 0].cos(), radius * z[:, 0].sin(), z[:, 1].sin()], -1)


@pytest.fixture(scope="module")
def torus(tmp_path_factory):
    """The report of a torus of revolution."""
    path = tmp_path_factory.mktemp("torus") / "torus.html"
    M = riemae.Manifold(ring, latent=(2 * math.pi, 2 * math.pi))
    return riemae.report(M, around(60), path=path, pairs=40)


class TestComingRound:
    def test_a_flat_torus(self, browser, tmp_path):
        def angles(z):
            return torch.cat([z.cos(), z.sin()], -1)

        def ambient(x):  # the second circle is twice as wide
            return torch.diag(torch.tensor([1.0, 4.0, 1.0, 4.0]).to(x)).expand(len(x), 4, 4)

        M = riemae.Manifold(angles, ambient, latent=(2 * math.pi, 2 * math.pi))
        z = around(40)
        r = riemae.report(M, z, path=tmp_path / "flat.html", pairs=5)
        found = solved(browser, r.path, torch.stack([z[:20], z[20:]], 1))
        exact = (short(z[:20] - z[20:]) * torch.tensor([1.0, 2.0])).norm(dim=1)
        torch.testing.assert_close(found[:, 0], exact, rtol=1e-5, atol=0)
        # The straight line takes the short way as well, and is the geodesic.
        torch.testing.assert_close(found[:, 1], exact, rtol=1e-5, atol=0)

    def test_a_cylinder_whose_codes_lie_in_another_period(self, browser, tmp_path):
        def cylinder(z):
            return torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1)

        z = torch.stack([3 * around(40)[:, 0], points(40)[:, 1]], 1)  # up to three turns
        M = riemae.Manifold(cylinder, latent=(2 * math.pi, None))
        r = riemae.report(M, z, path=tmp_path / "cylinder.html", pairs=5)
        assert r.numbers["spearman"] > 0.999  # it can be unrolled
        found = solved(browser, r.path, torch.stack([z[:20], z[20:]], 1))
        way = z[:20] - z[20:]
        exact = torch.stack([short(way[:, 0]), way[:, 1]], 1).norm(dim=1)
        torch.testing.assert_close(found[:, 0], exact, rtol=1e-5, atol=0)

    def test_a_torus_within_one_per_cent_of_riemae(self, browser, torus):
        with browsers.opened(browser, torus.path) as page:
            while page.evaluate("riemae.page.differences.length") < 40:
                page.wait_for_timeout(50)
            differences = torch.tensor(page.evaluate("riemae.page.differences")).double()
            assert page.said == []
        assert bool(torus.pairs.result.converged.all())
        assert float(differences.abs().max()) < 1e-3
        # Some of these geodesics cross a side: they would be longer without.
        stop = torus.pairs.result.curve.nodes[:, -1]
        assert bool(((stop < 0) | (stop > 2 * math.pi)).any())

    def test_a_curve_across_a_side_is_drawn_on_both(self, browser, torus):
        with browsers.opened(browser, torus.path) as page:
            page.evaluate(
                "() => { const [a, b] = riemae.page.handles;"
                "a.moveTo([0.4, 3]); b.moveTo([6, 3.2]); }"
            )
            page.wait_for_timeout(100)
            nodes = page.evaluate("Array.from(riemae.page.solution.nodes)")
            assert nodes[-2] == pytest.approx(6 - 2 * math.pi)
            copies = page.evaluate(
                "riemae.page.map.copiesOf(riemae.page.map.curves[1])"
                ".map(({points}) => [points[0], points[points.length - 1]])"
            )
            ends = sorted((a[0], b[0]) for a, b in copies)
            turn = 2 * math.pi
            shown = [(0.4, 6 - turn), (0.4 + turn, 6.0)]
            assert ends == [pytest.approx(pair) for pair in shown]
            # Curve pixels next to both sides, and none beyond them.
            columns = page.evaluate(
                "() => { const m = riemae.page.map; const c = m.overlay;"
                "const { width, height } = c; const d = width / m.width;"
                "const data = c.getContext('2d').getImageData(0, 0, width, height).data;"
                "const drawn = (x) => { let n = 0; const i = Math.round(x * d);"
                "for (let y = 0; y < height; y++) n += data[4 * (y * width + i) + 3] > 0;"
                "return n; };"
                "const { low, high } = riemae.page.extent;"
                "const l = m.toScreen(...low)[0]; const r = m.toScreen(...high)[0];"
                "return [l + 4, r - 4, l - 4, r + 4, (l + r) / 2].map(drawn); }"
            )
            assert min(columns[:2]) > 0
            assert columns[2:] == [0, 0, 0]
            assert "sides are the same" in page.inner_text("#how")
            assert [text for text in page.said if "willReadFrequently" not in text] == []

    def test_a_handle_that_leaves_on_one_side_comes_in_on_the_other(self, browser, torus):
        with browsers.opened(browser, torus.path) as page:
            page.evaluate("riemae.page.handles[0].moveTo([-0.25, 7])")
            found = page.evaluate("riemae.page.handles[0].position")
            turn = 2 * math.pi
            low = page.evaluate("riemae.page.extent.low")
            expected = [(c - s) % turn + s for c, s in zip((-0.25, 7), low, strict=True)]
            assert found == pytest.approx(expected)

    def test_a_circle(self, browser, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1), latent=(2 * math.pi,))
        r = riemae.report(M, around(15)[:, :1], path=tmp_path / "r.html", pairs=4)
        assert r.numbers["spearman"] > 0.999
        with browsers.opened(browser, r.path) as page:
            page.evaluate(
                "() => { const [a, b] = riemae.page.handles;"
                "a.moveTo([0.5, 0]); b.moveTo([5.9, 0]); }"
            )
            page.wait_for_timeout(80)
            exact = 2 * math.pi - 5.4
            assert float(lengths_shown(page)[0].split()[0]) == pytest.approx(exact, rel=1e-3)
            assert page.said == []


class TestPage:
    def test_a_drag_changes_curve_and_number(self, page):
        before = lengths_shown(page)
        curve = page.evaluate("Array.from(riemae.page.solution.nodes)")
        handle = page.locator("button.handle", has_text="A")
        box = handle.bounding_box()
        page.mouse.move(box["x"] + 16, box["y"] + 16)
        page.mouse.down()
        page.mouse.move(box["x"] + 70, box["y"] + 60, steps=4)
        page.mouse.up()
        page.wait_for_timeout(100)
        assert lengths_shown(page)[0] != before[0]
        assert page.evaluate("Array.from(riemae.page.solution.nodes)") != curve
        assert "known for checked pairs" in lengths_shown(page)[2]
        moved = handle.bounding_box()
        assert moved["x"] - box["x"] == pytest.approx(54, abs=2)

    def test_keys_move_the_handle_that_has_the_focus(self, page):
        handle = page.locator("button.handle", has_text="B")
        handle.focus()
        before = page.evaluate("riemae.page.handles[1].position")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowUp")
        after = page.evaluate("riemae.page.handles[1].position")
        step = page.evaluate("1 / riemae.page.map.scale")
        assert after[0] - before[0] == pytest.approx(4 * step)
        assert after[1] - before[1] == pytest.approx(20 * step)
        page.keyboard.press("Enter")
        page.wait_for_timeout(100)
        assert "next to #" in handle.get_attribute("aria-label")
        spot = page.evaluate("riemae.page.handles[1].position")
        coordinates = page.evaluate("Array.from(riemae.page.points.coordinates)")
        assert spot in [coordinates[k : k + 2] for k in range(0, len(coordinates), 2)]

    def test_tab_reaches_everything(self, page):
        seen = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            seen.add(
                page.evaluate(
                    "() => { const e = document.activeElement; return e.id || e.innerText; }"
                )
            )
        assert {"background", "ellipses", "zoom-in", "A", "B", "pairs"} <= seen

    def test_hovering_shows_the_point(self, page):
        x, y = page.evaluate(
            "() => { const m = riemae.page.map; const c = riemae.page.points.coordinates;"
            "const p = m.toScreen(c[0], c[1]); const b = m.root.getBoundingClientRect();"
            "return [b.left + p[0], b.top + p[1]]; }"
        )
        page.mouse.move(x, y)
        tooltip = page.locator(".tooltip")
        assert tooltip.is_visible()
        assert "class" in tooltip.inner_text()
        assert tooltip.locator("canvas").count() == 1

    def test_backgrounds_ellipses_classes_and_zoom_redraw_the_map(self, page):
        def picture():
            page.wait_for_timeout(80)
            return page.evaluate("document.querySelector('.base').toDataURL()")

        seen = {picture()}
        names = page.locator("#background option").all_inner_texts()
        assert names == [
            "Volume",
            "Condition number",
            "Gaussian curvature",
            "Distance to the data",
            "None",
        ]
        for name in names[1:]:
            page.select_option("#background", label=name)
            seen.add(picture())
        page.check("#ellipses")
        seen.add(picture())
        page.locator("#classes button").first.click()
        seen.add(picture())
        page.click("#zoom-in")
        seen.add(picture())
        assert len(seen) == len(names) + 3
        page.click("#zoom-fit")
        assert page.evaluate("riemae.page.map.zoom") == 1

    def test_worst_pairs_can_be_clicked(self, page, folded):
        k = folded.pairs.worst(1)[0]
        page.locator("button.pair").first.click()
        assert page.evaluate("riemae.page.pair") == k

    def test_decoded_images_follow_the_curve(self, page):
        assert page.locator(".strip").count() == 2
        assert page.locator(".strip canvas").count() == 18
        # The atlas between its nodes is close to the decoder itself.
        value = page.evaluate(
            "() => { const p = riemae.page; const c = document.createElement('canvas');"
            "p.atlas.blend(c, corners(p.data.atlas, 0.3, -0.2));"
            "return Array.from(c.getContext('2d').getImageData(0, 0, 8, 8).data); }"
        )
        true = 255 * digits_like()(torch.tensor([[0.3, -0.2]]).double())[0]
        shown = torch.tensor(value[::4]).double()
        assert float((shown - true).abs().mean()) < 8

    @pytest.mark.parametrize("size", [(390, 844), (1920, 1080)])
    def test_no_size_scrolls_sideways(self, browser, folded, size):
        viewport = {"width": size[0], "height": size[1]}
        with browsers.opened(browser, folded.path, viewport=viewport) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert page.locator("#map").bounding_box()["height"] > 250
            assert page.said == []


class TestOtherPages:
    def test_paper_is_light_in_the_dark_as_well(self, browser, folded):
        def corner(page):
            return page.evaluate(
                "Array.from(document.querySelector('.base').getContext('2d')"
                ".getImageData(2, 2, 1, 1).data).slice(0, 3)"
            )

        with browsers.opened(browser, folded.path, color_scheme="dark") as page:
            page.wait_for_timeout(100)
            assert max(corner(page)) < 60
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            assert min(corner(page)) > 200
            page.evaluate("window.dispatchEvent(new Event('afterprint'))")
            assert max(corner(page)) < 60
            # Chromium remarks that this test reads pixels often.
            assert [text for text in page.said if "willReadFrequently" not in text] == []

    def test_paper_shows_the_curve_on_the_map(self, browser, folded):
        # A second canvas would erase the first one on paper, and buttons do not move to their
        # places there.
        drawn = """() => {
            const canvas = document.querySelector('.base');
            const context = canvas.getContext('2d');
            const seen = context.getImageData(0, 0, canvas.width, canvas.height).data;
            const curve = document.createElement('canvas').getContext('2d');
            const style = getComputedStyle(document.documentElement);
            curve.fillStyle = style.getPropertyValue('--curve');
            curve.fillRect(0, 0, 1, 1);
            const wanted = curve.getImageData(0, 0, 1, 1).data;
            let count = 0;
            for (let i = 0; i < seen.length; i += 4) {
                if ([0, 1, 2].every((k) => seen[i + k] === wanted[k])) count += 1;
            }
            return count;
        }"""
        with browsers.opened(browser, folded.path) as page:
            page.wait_for_timeout(100)
            assert page.evaluate(drawn) == 0
            page.emulate_media(media="print")
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
            assert page.evaluate(drawn) > 100
            assert not page.locator(".handle").first.is_visible()
            assert not page.locator("#map .overlay").is_visible()
            page.emulate_media(media="screen")
            page.evaluate("window.dispatchEvent(new Event('afterprint'))")
            assert page.evaluate(drawn) == 0
            assert page.locator(".handle").first.is_visible()

    def test_nothing_defined_is_said_and_breaks_nothing(self, browser, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z[:, :1], 2 * z[:, :1]], -1))
        r = riemae.report(M, points(20), path=tmp_path / "r.html", pairs=3)
        with browsers.opened(browser, r.path) as page:
            page.wait_for_timeout(300)
            assert "outside the mapped region" in page.inner_text("#mark")
            assert "No pair could be checked" in page.inner_text("#checked")
            page.check("#ellipses")
            assert page.said == []

    def test_labels_run_no_code(self, browser, tmp_path):
        evil = "</script><img src=x onerror=window.evil=1><script>window.evil=1</script>"
        M = riemae.Manifold(lambda z: torch.cat([z, z.square()], -1))
        r = riemae.report(
            M,
            points(20),
            [evil, "b"] * 10,
            path=tmp_path / "r.html",
            pairs=4,
            title=evil,
            features=[evil, "b", "c", "d"],
        )
        with browsers.opened(browser, r.path) as page:
            assert page.evaluate("window.evil") is None
            assert page.inner_text("h1") == evil
            assert page.locator("img").count() == 0
            assert evil in page.locator("#classes button span").first.inner_text()
            assert page.said == []

    def test_a_line(self, browser, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1))
        z = torch.linspace(0, 3, 20, dtype=torch.float64)[:, None]
        r = riemae.report(M, z, path=tmp_path / "r.html", pairs=4)
        with browsers.opened(browser, r.path) as page:
            page.evaluate("() => { riemae.page.handles[0].moveTo([0.5, 0]); }")
            page.evaluate("() => { riemae.page.handles[1].moveTo([2.5, 0]); }")
            page.wait_for_timeout(80)
            assert float(lengths_shown(page)[0].split()[0]) == pytest.approx(2, rel=1e-3)
            assert page.said == []

    def test_a_section_shows_the_geodesics_among_landmarks(self, browser, tmp_path):
        M = riemae.Manifold(lambda z: torch.cat([z, z.square()], -1))
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        r = riemae.report(M, z, path=tmp_path / "r.html", pairs=4, landmarks=4)
        with browsers.opened(browser, r.path) as page:
            buttons = page.locator("button.landmark")
            assert buttons.count() == 4
            content = json.loads(page.locator("#data").text_content())
            page.locator("#choice select").first.select_option("1")
            page.locator("#choice select").last.select_option("3")
            k = content["landmarks"]["pairs"].index([1, 3])
            shown = float(lengths_shown(page)[0].split()[0])
            assert shown == pytest.approx(content["landmarks"]["length"][k], rel=1e-3)
            assert page.locator("#parallel svg").count() == 1
            page.locator("button.pair").first.click()
            assert "of this pair" in lengths_shown(page)[0]
            # The curve of that pair, from one of its codes to the other, seen in the section.
            line, curve = page.evaluate("riemae.page.map.curves.map((one) => one.points)")
            assert len(curve) == content["landmarks"]["times"]
            assert curve[0] == pytest.approx(line[0], abs=1e-4)
            assert curve[-1] == pytest.approx(line[1], abs=1e-4)
            assert page.locator("#parallel svg").count() == 1
            assert page.said == []
