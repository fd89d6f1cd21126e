"""Checks that are answered together find what they would have found at their place."""

import threading

import pytest
import torch
from operations import counted
from operations import test_of_the_counter as check_counter

from riemae.numerics.deferral import (
    holds,
    immediate,
    in_one_look,
    left_to_the_caller,
    noted_as_finite,
    noted_as_true,
)
from riemae.numerics.values import evidently_finite

GOOD = torch.tensor([True, True])
BAD = torch.tensor([True, False])


def source():
    return torch.Generator().manual_seed(0)


def test_the_counter_counts():
    check_counter()


def test_a_condition_is_answered_at_once():
    assert holds(GOOD)
    assert not holds(BAD)
    assert holds(BAD.to("meta"))
    assert torch.vmap(lambda ok: torch.tensor(holds(ok)))(BAD[:, None]).all()
    assert not noted_as_true(BAD)
    assert not noted_as_finite(torch.ones(()))


def test_checks_that_the_caller_makes():
    with left_to_the_caller():
        assert holds(BAD)
        assert evidently_finite(torch.tensor([torch.nan]))
        with immediate():
            assert not holds(BAD)
    assert not holds(BAD)


def run(masks=(), sums=()):
    """How often a computation with such checks is run, and what its checks say each time."""
    answers = []

    def f():
        conditions = [holds(mask) for mask in masks]
        finite = [evidently_finite(x) for x in sums]
        answers.append(all(conditions) and all(finite))
        return len(answers)

    assert in_one_look(f, source()) == len(answers)
    return answers


@pytest.mark.parametrize(
    ("checks", "answers"),
    [
        ({}, [True]),
        ({"masks": [GOOD, GOOD]}, [True]),
        ({"masks": [GOOD, BAD]}, [True, False]),
        ({"sums": [torch.ones(3), torch.ones(2).double()]}, [True]),
        ({"sums": [torch.ones(3), torch.tensor([torch.nan])]}, [True, False]),
        ({"sums": [torch.tensor([torch.inf]), torch.tensor([-torch.inf])]}, [True, False]),
        ({"masks": [BAD], "sums": [torch.ones(3)]}, [True, False]),
    ],
)
def test_it_runs_again_where_a_check_fails(checks, answers):
    assert run(**checks) == answers


def test_all_checks_are_one_read():
    def f():
        return [holds(GOOD) for _ in range(5)] + [evidently_finite(torch.ones(3))]

    assert counted(lambda: in_one_look(f, source()))["reads"] == 1
    assert counted(f)["reads"] == 6


def test_the_second_run_draws_the_same():
    generator = source()
    drawn = []

    def f():
        drawn.append(torch.rand(3, generator=generator))
        holds(BAD)

    in_one_look(f, generator)
    assert len(drawn) == 2
    assert torch.equal(*drawn)


def test_without_a_generator_checks_are_answered_at_their_place():
    assert not in_one_look(lambda: holds(BAD), None)


def test_probes_are_answered_at_once():
    def f():
        with immediate():
            assert not holds(BAD)
        return holds(GOOD)

    assert in_one_look(f, source())


def test_an_error_ends_the_noting():
    def fail():
        holds(BAD)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        in_one_look(fail, source())
    assert not holds(BAD)


def test_an_error_behind_a_failed_check_is_that_of_the_check():
    def f():
        if not holds(BAD):
            raise KeyError("typed")
        raise ValueError("of garbage")

    with pytest.raises(KeyError, match="typed"):
        in_one_look(f, source())


def test_inside_of_each_other_they_are_one():
    def inner():
        return in_one_look(lambda: holds(GOOD), source())

    assert counted(lambda: in_one_look(inner, source()))["reads"] == 1


def test_other_threads_are_not_noted():
    found = []

    def f():
        thread = threading.Thread(target=lambda: found.append(holds(BAD)))
        thread.start()
        thread.join()

    in_one_look(f, source())
    assert found == [False]


def test_inside_a_transform_checks_are_answered_at_their_place():
    def f(x):
        assert not holds(x > 2)
        return x.sum()

    def g(x):
        return in_one_look(lambda: f(x), source())

    assert torch.equal(torch.func.grad(g)(torch.ones(2)), torch.ones(2))
