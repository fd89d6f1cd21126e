"""The benchmark's arithmetic: quadrature, quantiles, exponents, tables. No timing, and no other
package."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jvp

from riemae import Manifold
from riemae.autoencoders import losses
from riemae.solvers import NewtonCG

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("a checkout is needed: the wheel holds no benchmarks", allow_module_level=True)
sys.path.append(str(ROOT))  # benchmarks are a folder of the checkout, not a part of the package

from benchmarks import (  # noqa: E402
    batches,
    device,
    error_bars,
    error_cases,
    missing,
    problems,
    report,
    training,
)
from benchmarks.contenders import CONTENDERS, OURS, Worker  # noqa: E402
from benchmarks.geodesics import _LATE, Race, Row, Task, _entry, _put, entrants, tasks  # noqa: E402
from benchmarks.growth import surface  # noqa: E402
from benchmarks.measure import by_collocation, exponent, fastest, lengths, quantiles  # noqa: E402
from benchmarks.peers import mlp  # noqa: E402
from benchmarks.problems import network  # noqa: E402


def sphere(z):
    """Stereographic from the north pole: the unit sphere."""
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


def layers(seed=0, sizes=(2, 16, 16, 5)):
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(b, a)) / a**0.5, rng.normal(size=b))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]


@pytest.fixture
def problem(tmp_path):
    arrays = {"z0": np.zeros((3, 2)), "z1": np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])}
    for i, (weight, bias) in enumerate(layers()):
        arrays[f"w{i}"], arrays[f"b{i}"] = weight, bias
    np.savez(tmp_path / "problem.npz", **arrays)
    return tmp_path / "problem.npz"


class TestErrors:
    def test_length_is_that_of_the_spline_and_not_of_the_polyline(self):
        # The unit circle is the equator. A quarter of it has length π/2; the chords of 8 segments
        # are shorter by 1 − sin(π/32)/(π/32) = 1.6e-3, and the spline through their ends is off by
        # O(h⁴).
        angle = torch.linspace(0, math.pi / 2, 9, dtype=torch.float64)
        nodes = torch.stack([angle.cos(), angle.sin()], -1)[None]
        assert lengths(Manifold(sphere), nodes).item() == pytest.approx(math.pi / 2, rel=1e-5)

    def test_quadrature_is_finer_than_any_contender(self):
        # A meridian: z = tan(θ/2) runs through angle θ, at a very uneven speed.
        z = torch.linspace(0, 1, 513, dtype=torch.float64)
        nodes = torch.stack([z, torch.zeros_like(z)], -1)[None]
        assert lengths(Manifold(sphere), nodes).item() == pytest.approx(math.pi / 2, rel=1e-13)

    def test_quantile_is_an_error_that_95_percent_do_not_exceed(self):
        errors = torch.arange(1, 101, dtype=torch.float64).flip(0)
        assert quantiles(errors) == (50, 95, 100)
        few = torch.tensor([3.0, 1.0, 2.0])
        assert quantiles(few) == (2, 3, 3)  # of three pairs, 95 % are all three

    def test_pair_without_a_length_counts_as_infinitely_wrong(self):
        assert quantiles(torch.tensor([0.0, torch.nan]))[1] == torch.inf

    def test_error_is_beside_the_shortest_curve_known(self):
        row = Row(
            "someone", {}, 2, seconds=[1.0], cpu=[1.0], sweeps=[2.0], found=torch.tensor([1.1, 2.0])
        )
        entry = _entry(row, torch.tensor([1.0, 2.0, 9.0]))
        assert entry["error"][2] == pytest.approx(0.1, rel=1e-6)
        assert _entry(Row("nobody", {}, 2, failure="more than 9 s"), torch.ones(2)) == {
            "contender": "nobody",
            "settings": {},
            "failure": "more than 9 s",
        }


class TestReference:
    def test_collocation_finds_the_great_circle(self):
        z0, z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        nodes = torch.from_numpy(by_collocation(sphere, z0, z1).copy())
        assert lengths(Manifold(sphere), nodes[None]).item() == pytest.approx(math.pi / 2, rel=1e-9)

    def test_collocation_that_fails_says_so(self):
        z0, z1 = torch.tensor([[1.0, 0.0], [torch.nan, 1.0]], dtype=torch.float64)
        with pytest.raises((RuntimeError, ValueError)):
            by_collocation(sphere, z0, z1)

    def test_written_out_network_is_the_module(self):
        z = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        f, g = mlp.decoder(layers(), torch.get_num_threads()), mlp.formula(layers())
        torch.testing.assert_close(f(z), g(z), rtol=1e-13, atol=1e-13)
        twice = jvp(lambda z: jvp(g, (z,), (torch.ones_like(z),))[1], (z,), (torch.ones_like(z),))[
            1
        ]
        assert twice.isfinite().all()


class TestGrowth:
    @pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
    def test_exponent_is_the_power(self, power):
        sizes = [3.0, 10.0, 70.0]
        assert exponent(sizes, [5 * s**power for s in sizes]) == pytest.approx(power, abs=1e-12)

    def test_more_data_dimensions_change_no_length(self):
        # The last layer is an isometry, so the metric is the same, and only the work grows.
        z = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        small, large = surface("D", 64)[0], surface("D", 256)[0]
        torch.testing.assert_close(small.metric(z), large.metric(z), rtol=1e-10, atol=1e-12)


class TestReport:
    @staticmethod
    def task(*rows):
        return {
            "task": "digits, 4 pairs",
            "decoder": "MLP",
            "pairs": 4,
            "ours": False,
            "limit": 9.0,
            "reference": {"converged": 4, "shorter_known": 0, "collocation": [1e-12]},
            "sweep": {"riemae": 0.01, "torch": 0.02},
            "rows": list(rows),
        }

    @staticmethod
    def row(name, seconds, error):
        measured = {
            "seconds": [seconds],
            "cpu": [seconds],
            "sweeps": 3.0,
            "first": 9.0,
            "missed": 0,
            "error": [0.0, error, 1.0],
        }
        return {
            "contender": name,
            "settings": {"rtol": 0.1},
            "failure": None,
            "reported": [0, 0.1, 1],
            "timed_on": 4,
            **measured,
        }

    def test_fastest_setting_that_is_accurate_enough_counts(self):
        assert fastest([1.0, 3.0, 2.0], [1e-2, 1e-4, 1e-4], 1e-3) == 2
        assert fastest([1.0], [1e-2], 1e-3) is None
        task = self.task(
            self.row("riemae", 0.5, 1e-4), self.row("a", 1.0, 1e-2), self.row("b", 4.0, 1e-4)
        )
        assert report.ratios(task, 1e-3) == ("b", 8.0)
        assert report.ratios(task, 1e-5) is None
        plain = self.task(*task["rows"], self.row("chord energy, Adam", 2.0, 1e-4))
        assert report.ratios(plain, 1e-3) == ("chord energy, Adam", 4.0)
        assert report.ratios(plain, 1e-3, report._PLAIN) == ("b", 8.0)

    def test_solvers_of_ours_have_a_table_and_a_panel(self, tmp_path):
        own = self.task(self.row("riemae", 0.5, 1e-4), self.row("riemae, Newton", 2.0, 1e-6))
        own |= {"ours": True, "task": "digits, 1,000 pairs"}
        own["rows"][1]["decodings"] = 321.0
        text = "\n".join(report._reach({"tasks": [self.task(*own["rows"][:1]), own]}))
        assert "| riemae, Newton | 2 s (3 sweeps, 321 decodings per pair) |" in text
        assert text.count("| riemae | ") == 4
        report._draw({"tasks": [own]}, tmp_path / "own.png")
        assert (tmp_path / "own.png").stat().st_size > 10_000

    def test_losses_are_written_down_as_they_are(self):
        task = self.task(self.row("riemae", 3.0, 1e-4), self.row("a", 1.5, 1e-4))
        assert report.ratios(task, 1e-3) == ("a", 0.5)

    def test_report_holds_every_row_and_every_failure(self, tmp_path):
        failed = {"contender": "late", "settings": {"nodes": 9}, "failure": "more than 9 s"}
        growth = {"kind": "m", "what": "x", "exponents": {"seconds": 1.25, "megabytes": 1.0}}
        growth["rows"] = [{"size": 2, "seconds": 0.01, "megabytes": 5.0, "steps": 3.0}]
        machine = {
            "cpu": "abacus",
            "cores": 2,
            "threads": 1,
            "load": 0.0,
            "system": "s",
            "python": "3",
        }
        results = {
            "machine": machine,
            "versions": {"a": {"numpy": "1"}},
            "minutes": 1.0,
            "quick": True,
        }
        results |= {"tasks": [self.task(self.row("riemae", 0.5, 1e-4), failed)], "growth": [growth]}
        report.write(json.loads(json.dumps(results)), tmp_path)
        text = (tmp_path / "geodesics.md").read_text(encoding="utf-8")
        for part in (
            "abacus",
            "more than 9 s",
            "within the limit per call: 9 s for ",
            "| riemae | rtol 0.1 | 0.5 s | 0.5 s | 3 |",
            "1.25",
            "quick run",
            "numpy 1",
        ):
            assert part in text
        assert (tmp_path / "geodesics.png").stat().st_size > 10_000


class TestContenders:
    def test_comparison_leaves_out_contenders_that_exist(self):
        names = {contender.name for contender in CONTENDERS}
        assert all(set(without) < names for _, without in report._RIVALS)

    def test_quick_settings_exist_and_names_differ(self):
        assert len({c.name for c in CONTENDERS}) == len(CONTENDERS)
        assert OURS.name == "riemae"
        for contender in CONTENDERS:
            assert all(i < len(contender.settings) for i in contender.quick)
            assert (ROOT / "benchmarks" / "peers" / f"{contender.module}.py").exists()

    def test_a_task_measured_once_more_takes_its_old_place(self):
        entries = [{"task": "a", "x": 1}, {"task": "b", "x": 2}]
        _put(entries, {"task": "a", "x": 3}, "task")
        _put(entries, {"task": "c", "x": 4}, "task")
        assert [(e["task"], e["x"]) for e in entries] == [("a", 3), ("b", 2), ("c", 4)]

    def test_one_32_and_1000_pairs_are_measured(self):
        found = [(t.problem.m, t.pairs, t.alone) for t in tasks("full")]
        assert {
            (8, 32, False),
            (32, 32, False),
            (8, 1000, False),
            (32, 1000, False),
            (8, 4, True),
        } <= set(found)

    def test_a_short_run_has_every_contender_and_our_solvers_in_many_dimensions(self):
        chosen = {str(task): entrants(task, "short") for task in tasks("short")}
        for task in ("digits-8, 32 pairs", "digits-8, one pair"):
            assert [c.name for c, _ in chosen[task]] == [c.name for c in CONTENDERS]
            assert {s["rtol"] for s in chosen[task][0][1]} == {1e-2, 1e-3, 1e-4, 1e-5}
        for task in ("digits-32, 32 pairs", "convolutions, 8 pairs", "digits-8, 1,000 pairs"):
            names = [c.name for c, _ in chosen[task]]
            assert names[0] == "riemae"
            assert len(set(names)) == len(names) > 3

    def test_contenders_that_take_mlps_alone_are_spared_images(self):
        images = Task(problems.PROBLEMS["convolutions"], 8)
        names = {c.name for c, _ in entrants(images, "full")}
        assert "riemae" in names
        assert "chord energy, L-BFGS" in names
        assert not any(name.startswith(("finslerax", "geomstats")) for name in names)

    def test_no_call_begins_after_the_end_of_a_run(self, problem):
        race = Race(problem, 1, 60.0, rounds=1, few=1, deadline=0.0)
        task = Task(dataclasses.replace(problems.PROBLEMS["digits-8"], m=2), 3, ours=True)
        try:
            found = race.run(task, [(OURS, [{"rtol": 1e-2}])])
        finally:
            race.close()
        assert [row["failure"] for row in found["rows"]] == [_LATE]

    def test_a_solver_can_be_named_and_decodings_are_counted(self, problem, tmp_path):
        worker = Worker("ours", problem, 1)
        try:
            counts = [
                worker.solve((0, 3), False, {"rtol": 1e-3, **named}, tmp_path / "out.npz", 120)
                for named in ({}, {"solver": "NewtonCG", "options": {"max_segments": 16}})
            ]
        finally:
            worker.stop()
        assert all(answer["decodings"] >= 17 for answer in counts)
        assert counts[0]["decodings"] != counts[1]["decodings"]

    def test_process_answers_and_its_curves_join_the_points(self, problem, tmp_path):
        worker = Worker("ours", problem, 1)
        try:
            answer = worker.solve((0, 3), False, {"rtol": 1e-6}, tmp_path / "out.npz", 120)
            alone = worker.solve((0, 2), True, {"rtol": 1e-6}, tmp_path / "alone.npz", 120)
            wrong = worker.solve((0, 3), False, {"rtol": -1.0}, tmp_path / "wrong.npz", 120)
        finally:
            worker.stop()
        assert answer["missed"] == 0
        assert answer["points"] >= 27
        assert "torch" in worker.versions
        nodes = np.load(tmp_path / "out.npz")["nodes0"]
        file = np.load(problem)
        np.testing.assert_array_equal(nodes[:, 0], file["z0"])
        np.testing.assert_array_equal(nodes[:, -1], file["z1"])
        assert alone["points"] < answer["points"]
        assert sorted(np.load(tmp_path / "alone.npz").files) == ["nodes0", "nodes1", "reported"]
        assert wrong["error"].startswith("OptionError")

    def test_process_that_cannot_start_says_why(self, problem, tmp_path):
        worker = Worker("nobody", problem, 1)
        answer = worker.solve((0, 1), False, {}, tmp_path / "out.npz", 60)
        assert "nobody" in answer["error"]

    def test_process_that_takes_too_long_is_ended(self, problem, tmp_path):
        worker = Worker("chord", problem, 1)
        endless = {"optimizer": "adam", "segments": 64, "steps": 10**9, "rate": 0.1}
        answer = worker.solve((0, 3), False, endless, tmp_path / "out.npz", 0.2)
        assert answer["error"].startswith("more than")
        assert worker._process is None


def test_network_has_smooth_layers_between_linear_ones():
    assert [type(layer).__name__ for layer in network((2, 3, 4))] == ["Linear", "SiLU", "Linear"]


class TestConvolutions:
    """The decoder of images is the same for its training and for those who race on it."""

    SMALL = dataclasses.replace(
        problems.PROBLEMS["convolutions"], name="small", m=3, width=8, epochs=0
    )

    def test_decoder_of_the_file_is_the_one_that_was_trained(self, tmp_path, monkeypatch):
        monkeypatch.setattr(problems, "FOLDER", tmp_path)
        file = np.load(problems.prepare(self.SMALL))
        weights = problems.layers_of(file)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            decoder, _ = problems._convolutional(self.SMALL)
        z = torch.from_numpy(file["z0"][:5])
        read = mlp.decoder(weights, torch.get_num_threads())
        torch.testing.assert_close(read(z), decoder.double()(z))
        assert read(z).shape == (5, 32 * 32)

    def test_curves_are_measured_on_the_whole_decoder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(problems, "FOLDER", tmp_path)
        path = problems.prepare(self.SMALL)
        decoder = mlp.decoder(problems.layers_of(np.load(path)), torch.get_num_threads())
        race = Race(path, torch.get_num_threads(), 60.0, rounds=1, few=1)
        try:
            z = race.ends[0][:3]
            torch.testing.assert_close(race.manifold.decode(z), decoder(z))
        finally:
            race.close()


class TestBatches:
    """Pairs per second: what fits into the time, the table, and the picture."""

    @pytest.fixture
    def small(self, problem, monkeypatch):
        manifold = Manifold(mlp.decoder(layers(), torch.get_num_threads()))
        file = np.load(problem)
        ends = [torch.from_numpy(file[name]) for name in ("z0", "z1")]
        monkeypatch.setattr(batches, "problem", lambda name, quick: (manifold, *ends))
        monkeypatch.setattr(batches, "_BATCHES", (16,))

    def test_what_does_not_fit_is_left_out_and_said(self, small, tmp_path):
        first, second, third = batches.measured("digits-8", True, until=0.0)
        assert [row["start"] for row in (first, second)] == ["line", "result"]
        assert third == {"task": "digits-8", "pairs": 2, "left_out": True}
        text = batches.written([first, second, third], {"digits-8": "today"})
        assert "Left out, because the time would not have sufficed: 2 pairs of digits-8." in text
        assert "| digits-8 | line | 1 | " in text
        batches.draw([first, second, third], tmp_path / "batches.png")
        assert (tmp_path / "batches.png").stat().st_size > 10_000

    def test_limits_are_those_of_the_decodings(self, small):
        for row in batches.measured("digits-8", True, until=math.inf):
            sweep = 17 * 3  # of two latent dimensions
            assert row["sweeps"] == pytest.approx(row["decodings"] / sweep)
            assert row["limit"] * row["sweeps"] == pytest.approx(row["sweep_limit"])
            assert row["value_limit"] == pytest.approx(3 * row["sweep_limit"])
            assert row["error"] < 1e-3


class TestTraining:
    """The published losses, whose steps are compared with ours, have the right values."""

    def setup_method(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder, self.decoder = training.mlp(5, 8, 2), training.mlp(2, 8, 5)
            for p in self.decoder.parameters():
                p.data *= 2.0  # curved enough to make a difference
            self.x, self.neighbor = torch.randn(4000, 5), torch.randn(4000, 5)
        self.z = self.encoder(self.x).detach()
        self.fit = (self.x - self.decoder(self.z)).square().sum(1).mean()

    @pytest.mark.parametrize("order", [1, 2])
    def test_neighbourhoods_are_ours(self, order):
        loss = [training.published_neighborhood_linear, training.published_neighborhood_quadratic][
            order - 1
        ]
        M, other = Manifold(self.decoder), self.encoder(self.neighbor)
        ours = losses.neighborhood_reconstruction(
            M, self.z, other, self.neighbor, order=order, x=self.x
        )
        assert torch.allclose(
            loss(self.encoder, self.decoder, self.x, self.neighbor), ours, rtol=1e-4
        )

    def test_distortion_and_curvature_are_unbiased(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            isometric = training.published_isometric(self.encoder, self.decoder, self.x) - self.fit
            curved = (
                training.published_minimum_curvature(self.encoder, self.decoder, self.x) - self.fit
            )
        isometric, curved = (
            float(loss) / training.WEIGHT for loss in (isometric.detach(), curved.detach())
        )
        M = Manifold(self.decoder)
        # E Tr G²/(E Tr G)², 1/m² of ours and its minimum m; at mixed codes, which another draw of α
        # gives too
        expected = (
            losses.relaxed_distortion(
                M, self.z, mixup=0.2, generator=torch.Generator().manual_seed(2)
            )
            + 2
        )
        assert abs(isometric / float(expected.detach() / 4) - 1) < 0.15
        exact = M.extrinsic_curvature(self.z).mean()
        assert abs(curved / float(exact.detach()) - 1) < 0.15

    def test_every_case_runs_and_its_memory_is_counted(self):
        plain, ours, theirs = training.cases(8, batch=16, data=5)
        assert set(ours) == set(theirs) == set(training.FLOORS) == set(training.TARGETS)
        for case in (plain, *ours.values(), *theirs.values()):
            assert case.step() >= 0
        # Memory grows with the batch, and a plain step needs the least.
        assert plain.peak() < training.cases(8, batch=160, data=5)[0].peak()
        assert all(plain.peak() < case.peak() for case in ours.values())


class TestErrorBars:
    """The page about status and error bar: its counts, its tables, and a run of a few pairs."""

    @staticmethod
    def tally(length, error, truth, status):
        return error_bars.Tally(
            *(torch.tensor(x, dtype=torch.float64) for x in (length, error, truth)), status
        )

    def counts(self, length, error, status, truth=None, rtol=0.01):
        truth = truth or [1.0] * len(length)
        return self.tally(length, error, truth, torch.tensor(status)).counts(rtol, torch.float64)

    def test_a_pair_counts_where_it_belongs(self):
        # Within rtol and covered; within and not covered; beyond; beyond three times; not
        # converged, covered.
        counts = self.counts(
            [1.001, 1.002, 1.02, 1.05, 1.5], [0.002, 1e-3, 1e-4, 0.006, 0.6], [0, 0, 0, 0, 2]
        )
        assert (counts["pairs"], counts["converged"], counts["beyond"], counts["beyond_3"]) == (
            5,
            4,
            2,
            1,
        )
        assert counts["worst"] == pytest.approx(5)
        assert (counts["covered"], counts["covered_10"], counts["close"]) == (1, 3, 3)
        assert (counts["claims"], counts["claims_covered"]) == (1, 1)
        assert counts["others"] == {"resolution": 1}
        assert counts["median"] == pytest.approx(2)

    def test_a_length_that_is_too_short_is_wrong_too(self):
        counts = self.counts([0.9], [1e-3], [0])
        assert (counts["beyond"], counts["covered"]) == (1, 0)

    def test_nan_is_neither_accurate_nor_a_claim(self):
        counts = self.counts([torch.nan, 1.0], [torch.nan, torch.nan], [0, 3])
        assert (counts["beyond"], counts["covered"], counts["claims"]) == (1, 0, 0)

    def test_rounding_is_nobodys_error_and_points_have_no_ratio(self):
        counts = self.counts([1 + 1e-13, 0.0], [0.0, 0.0], [0, 0], [1.0, 0.0])
        assert (counts["covered"], counts["median"], counts["worst"]) == (2, 0.0, 0.0)

    def test_pairs_without_a_truth_are_left_out(self):
        counts = self.counts([1.0, 2.0], [0.1, 0.1], [0, 0], [1.0, torch.nan])
        assert (counts["pairs"], counts["unknown"], counts["converged"]) == (1, 1, 1)

    @pytest.mark.parametrize(
        ("part", "whole", "text"),
        [(0, 7, "0 %"), (1, 3, "33 %"), (9999, 10000, "99.9 %"), (7, 7, "100 %"), (0, 0, "")],
    )
    def test_all_is_said_of_all_alone(self, part, whole, text):
        assert error_bars.share(part, whole) == text

    def test_work_that_takes_too_long_is_ended_and_leaves_no_trace(self):
        case = next(case for case in error_bars.cases() if case.name == "sine .45 m=2")
        problem = case.make(2, torch.float64)
        assert error_bars.tally(problem, slice(0, 2), 1e-4, None, 1e-3) is None
        whole = error_bars.tally(problem, slice(0, 2), 1e-4, None, 60.0)
        alone = problem.space.geodesic(problem.z0, problem.z1, rtol=1e-4, throw=False)
        # The child uses one thread, so its sums may be taken in another order.
        torch.testing.assert_close(whole.length, alone.length, rtol=1e-12, atol=0)
        assert whole.status.tolist() == alone.status.tolist()
        row = error_bars.measure(
            case, "default", error_bars.Plan(None, 2, {}, 0.0), 1e-4, torch.float64, problem
        )
        assert (row["pairs"], row["given_up"]) == (0, 2)

    def test_names_are_unique(self):
        names = [case.name for case in error_bars.cases()]
        assert len(set(names)) == len(names) > 60
        assert set(error_bars.QUICK) <= set(names)

    def test_quick_run_keeps_the_prose_and_is_not_repeated(self, tmp_path, capsys):
        page = tmp_path / "error_bars.md"
        page.write_text(
            f"# Title\n\nBefore.\n\n{error_bars.BEGIN}\nold\n{error_bars.END}\n\nAfter.\n", "utf-8"
        )
        arguments = ["--quick", "--folder", str(tmp_path), "--solver", "default", "--pairs", "2"]
        error_bars.main(arguments)
        text = page.read_text("utf-8")
        assert text.startswith(f"# Title\n\nBefore.\n\n{error_bars.BEGIN}\n")
        assert text.endswith(f"{error_bars.END}\n\nAfter.\n")
        assert "old" not in text
        assert all(name in text for name in error_bars.QUICK)
        rows = json.loads((tmp_path / "error_bars.json").read_text("utf-8"))
        assert {(row["pairs"], row["solver"]) for row in rows} == {(2, "default")}
        # What is measured is kept, and --only measures it anew.
        capsys.readouterr()
        error_bars.main(arguments)
        assert "converged, " not in capsys.readouterr().out
        error_bars.main([*arguments, "--only", "half plane"])
        assert capsys.readouterr().out.count("converged, ") == 4
        assert len(json.loads((tmp_path / "error_bars.json").read_text("utf-8"))) == len(rows)
        # In two processes, all of it anew; what other solvers did is kept.
        path = tmp_path / "error_bars.json"
        path.write_text(json.dumps([*rows, {**rows[0], "solver": "newton_cg"}]), "utf-8")
        error_bars.main([*arguments, "--anew", "--workers", "2"])
        again = json.loads(path.read_text("utf-8"))
        timeless = [
            [{key: row[key] for key in row if key != "seconds"} for row in some]
            for some in (rows, again)
        ]
        assert timeless[1][: len(rows)] == timeless[0]
        assert [row["solver"] for row in again[len(rows) :]] == ["newton_cg"]

    def test_plans_leave_out_what_their_solver_is_not_for(self):
        found = {case.name: case for case in error_bars.cases()}
        kinked = next(case for case in found.values() if case.kind != "smooth")
        steep = found["steep, gain 2, m=2"]
        plans = error_bars.PLANS
        assert [plans[name].covers(kinked) for name in ("default", "spectral")] == [True, False]
        assert [plans[name].covers(steep) for name in ("spectral", "georce")] == [True, False]

    def test_every_kind_of_network_has_a_truth(self):
        for name in ("steep, gain 2, m=2", "digits, m=2"):
            case = next(case for case in error_bars.cases() if case.name == name)
            problem = case.make(2, torch.float64)
            found = error_bars.tally(problem, slice(0, 2), 1e-2, None, 60.0)
            assert found.truth.isfinite().all()
            torch.testing.assert_close(found.length, found.truth, rtol=0.05, atol=0)

    def test_wide_networks_are_compared_with_the_shortest_curve(self):
        problem = error_cases._wide(6, 1, torch.float64)
        found = error_bars.tally(problem, slice(0, 1), 1e-3, NewtonCG(), 60.0)
        assert (found.truth <= found.length).all()
        torch.testing.assert_close(found.length, found.truth, rtol=1e-3, atol=0)


class TestDevice:
    """The table of promises: its counts, its judgements, and every part of it with small sizes."""

    SMALL = dataclasses.replace(device.QUICK, pairs=(2,), channels=4, decoders=("Gaussian",))

    def test_operations_and_reads_are_counted(self):
        x = torch.ones(3)
        assert device.counted(lambda: x + x) == {"operations": 1, "reads": 0}
        assert device.counted(lambda: (x[0].item(), x.nonzero(), bool(x.all())))["reads"] == 3

    def test_a_copy_to_the_processor_is_a_read(self):
        away = torch.ones(3, device="meta")
        assert device._arrives(torch.ones(3), (away,))
        assert not device._arrives(away, (torch.ones(3),))
        assert not device._arrives(torch.ones(3), (torch.ones(3),))

    @pytest.mark.parametrize("part", device.PARTS, ids=lambda part: part.__name__)
    def test_every_part_runs(self, part):
        rows = list(part(self.SMALL, "cpu"))
        assert rows
        assert all(row.kept for row in rows if row.promised == "0")
        counts = [row for row in rows if row.operations is not None]
        assert all(0 <= row.reads < row.operations for row in counts)

    def test_what_fails_is_a_row_and_the_rest_is_measured(self, monkeypatch):
        def broken(sizes, place):
            raise RuntimeError("out of memory\nmore")
            yield

        monkeypatch.setattr(device, "PARTS", (broken, device.training_rows))
        first, *rest = device.measured(self.SMALL, "cpu")
        assert (first.found, first.kept) == ("RuntimeError: out of memory", False)
        assert len(rest) == 5

    def test_table_says_what_is_not_kept(self):
        rows = [device.Row("a", "9 ms", "≤ 3 ms", False, 1234, 5), device.Row("b", "1")]
        text = device.table(rows)
        assert "| a | 9 ms | ≤ 3 ms | **no** | 1,234 | 5 |" in text
        assert "| b | 1 |  |  |  |  |" in text
        assert device.without_limits(rows[0]).kept is None

    def test_the_caller_gets_torchs_setting_back(self):
        before = torch.get_float32_matmul_precision()
        with device.coarse_products():
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == before

    def test_images_have_the_size_that_is_promised(self):
        assert device.ResNet(64, 8)(torch.zeros(1, 8)).shape == (1, 3, 64, 64)

    def test_missing_packages_are_named(self):
        assert missing.missing(["no-such-package>=1", "torch", "scipy>=1.10"]) == [
            "no-such-package>=1"
        ]
        assert "safetensors>=0.4" in missing.direct((ROOT / "pyproject.toml").read_text("utf-8"))
