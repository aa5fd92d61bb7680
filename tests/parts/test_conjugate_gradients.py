"""Conjugate gradients: beside the slow version, and what must hold for every system."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import reference
from tests.comparison import assert_close, definite_matrix, normal_vector, property_test, seeds, symmetric_matrix
from torch import Tensor

from latephase import CGStop
from latephase.parts.backtracking import Backtracking
from latephase.parts.conjugate_gradients import CGPath, NonPositiveCurvature, cg, relative_progress_stalled

ALL = frozenset(range(1000))
sizes = st.integers(1, 12)
conditions = st.floats(1.0, 100.0)


def vector(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)


def phi(A: Tensor, b: Tensor, x: Tensor) -> float:
    return float(0.5 * x @ A @ x - b @ x)


def assert_same_path(path: CGPath, want: reference.Path) -> None:
    assert path.stop.name.lower() == want.stop
    assert path.last == want.last
    assert_close(torch.tensor(path.values), torch.tensor(want.values))
    assert list(path.iterates) == list(range(want.last + 1))
    for n, iterate in path.iterates.items():
        assert_close(iterate, want.iterates[n])


# ---------------------------------------------------------------------- beside the slow version


@property_test
@given(seeds, st.booleans(), st.booleans(), st.integers(1, 9))
def test_path_on_definite_systems(seed: int, warm: bool, preconditioned: bool, max_iter: int):
    A, b = definite_matrix(20, 100.0, seed), normal_vector(20, seed + 1)
    # A warm start as in training: near the solution. And M, an approximation of the inverse.
    x0 = torch.linalg.solve(A, b) * (1.0 + 0.3 * normal_vector(20, seed + 2)) if warm else None
    M = torch.linalg.inv(A + 0.1 * definite_matrix(20, 3.0, seed + 3)) if preconditioned else None
    path = cg(A.mv, b, x0, None if M is None else M.mv, max_iter=max_iter, keep=ALL)
    assert_same_path(path, reference.conjugate_gradients(A, b, x0, M, max_iter=max_iter))


@property_test
@given(seeds, st.sampled_from(list(NonPositiveCurvature)), st.integers(1, 6))
def test_path_on_indefinite_systems(seed: int, option: NonPositiveCurvature, max_iter: int):
    A = symmetric_matrix(torch.linspace(-0.4, 1.0, 20, dtype=torch.float64), seed)
    b = normal_vector(20, seed + 1)
    path = cg(A.mv, b, nonpos_curv_option=option, max_iter=max_iter, keep=ALL)
    assert_same_path(path, reference.conjugate_gradients(A, b, max_iter=max_iter, nonpos=option.value))


def test_path_that_ends_by_martens_rule():
    A, b = definite_matrix(60, 300.0, seed=0), normal_vector(60, 1)
    path = cg(A.mv, b, keep=ALL)
    assert path.stop is CGStop.RELATIVE_PROGRESS
    assert 11 <= path.last < 60
    assert path.last == reference.conjugate_gradients(A, b).last
    assert cg(A.mv, b, martens_conv_crit=False).last > path.last


# ---------------------------------------------------------------------- what must always hold


@property_test
@given(seeds, sizes, conditions, st.booleans(), st.booleans())
def test_solves_definite_systems(seed: int, size: int, condition: float, warm: bool, preconditioned: bool):
    A, b = definite_matrix(size, condition, seed), normal_vector(size, seed + 1)
    x0 = normal_vector(size, seed + 2) if warm else None
    M = definite_matrix(size, 10.0, seed + 3).mv if preconditioned else None
    path = cg(A.mv, b, x0, M, max_iter=20 * size, martens_conv_crit=False)
    assert_close(path.iterates[path.last], torch.linalg.solve(A, b))


@property_test
@given(seeds, sizes, st.floats(1.0, 1e6), st.booleans(), st.booleans())
def test_model_values_never_rise_and_are_those_of_the_iterates(
    seed: int, size: int, condition: float, warm: bool, preconditioned: bool
):
    A, b = definite_matrix(size, condition, seed), normal_vector(size, seed + 1)
    x0 = normal_vector(size, seed + 2) if warm else None
    M = definite_matrix(size, 10.0, seed + 3).mv if preconditioned else None
    path = cg(A.mv, b, x0, M, martens_conv_crit=False, max_iter=3 * size, keep=ALL)
    rounding = 1e-12 * max(map(abs, path.values))
    assert all(after <= before + rounding for before, after in pairwise(path.values))
    assert path.values[0] <= 0.0
    for n, value in enumerate(path.values):
        assert value == pytest.approx(phi(A, b, path.iterates[n]), rel=1e-9, abs=1e3 * rounding)


@property_test
@given(
    seed=seeds,
    lowest=st.sampled_from([-0.5, 0.01, 0.2]),
    option=st.sampled_from(list(NonPositiveCurvature)),
    bad_product=st.integers(0, 30),
    martens=st.booleans(),
    warm=st.booleans(),
    max_iter=st.sampled_from([1, 4, 5, 7, 250, None]),
    keep=st.frozensets(st.integers(0, 20)),
)
def test_path_does_not_depend_on_how_often_numbers_are_looked_at(
    seed, lowest, option, bad_product, martens, warm, max_iter, keep
):
    A = symmetric_matrix(torch.linspace(lowest, 1.0, 20, dtype=torch.float64), seed)
    b, x0 = normal_vector(20, seed + 1), normal_vector(20, seed + 2) if warm else None

    def path(check_every: int) -> CGPath:
        products, walking = 0, True

        def product(v: Tensor) -> Tensor:
            nonlocal products
            products += walking  # a path that is walked again meets what it met before, which was finite
            return A @ v * (math.nan if walking and products == bad_product else 1.0)

        found = cg(
            product,
            b,
            x0,
            max_iter=max_iter,
            martens_conv_crit=martens,
            nonpos_curv_option=option,
            keep=keep,
            check_every=check_every,
        )
        walking = False
        return found

    want = path(1)
    for check_every in (5, 10**9):
        got = path(check_every)
        assert (got.stop, got.values, list(got.iterates)) == (want.stop, want.values, list(want.iterates))
        assert all(torch.equal(got.iterates[n], want.iterates[n]) for n in want.iterates)


@property_test
@given(seeds, st.integers(1, 20), st.sampled_from(list(NonPositiveCurvature)))
def test_a_product_that_is_not_finite_ends_the_path_before_it_is_used(seed: int, bad_product: int, option):
    A, b = definite_matrix(40, 1e4, seed), normal_vector(40, seed)
    products = 0

    def product(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return A @ v * (math.inf if products == bad_product else 1.0)

    path = cg(product, b, nonpos_curv_option=option, martens_conv_crit=False, keep=ALL)
    assert path.stop is CGStop.NON_FINITE
    assert path.last == bad_product - 1
    assert all(bool(x.isfinite().all()) for x in path.iterates.values())
    assert all(map(math.isfinite, path.values))


@pytest.mark.parametrize("option", ["saddle-free", "ignore"])
def test_a_direction_without_curvature_ends_the_path(option: str):
    path = cg(lambda v: 0.0 * v, vector(1.0, 2.0), nonpos_curv_option=NonPositiveCurvature(option))
    assert (path.stop, path.values) == (CGStop.NON_FINITE, [0.0])


def test_an_iterate_that_overflows_ends_the_path():
    # dᵀAd = 1e-20 is a number; the minimum along d, 1e320, is none.
    path = cg(lambda v: 1e-220 * v, vector(1e100))
    assert (path.stop, path.values) == (CGStop.NON_FINITE, [0.0])


@property_test
@given(seeds, st.frozensets(st.integers(0, 30)), st.integers(1, 25))
def test_keeps_the_iterates_asked_for_and_the_last(seed: int, keep: frozenset[int], max_iter: int):
    A, b = definite_matrix(25, 1e3, seed), normal_vector(25, seed)
    path = cg(A.mv, b, max_iter=max_iter, martens_conv_crit=False, keep=keep)
    assert list(path.iterates) == sorted({n for n in keep if n <= path.last} | {path.last})
    assert len(path.values) == path.last + 1


@property_test
@given(seeds, st.frozensets(st.integers(0, 30)), st.integers(1, 4), st.booleans(), st.randoms())
def test_iterates_out_of_memory_come_back_to_the_bit(
    seed: int, keep: frozenset[int], in_memory: int, warm: bool, random: Random
):
    A, b = definite_matrix(25, 1e3, seed), normal_vector(25, seed)
    x0 = 0.5 * torch.linalg.solve(A, b) if warm else None
    frugal, lavish = (
        cg(A.mv, b, x0, A.diagonal().reciprocal().mul, max_iter=25, keep=keep, in_memory=most)
        for most in (in_memory, 100)
    )
    assert list(frugal.iterates) == list(lavish.iterates)
    for n in random.choices(list(lavish.iterates), k=10):
        assert torch.equal(frugal.iterates[n], lavish.iterates[n])
        # With those before it: the next better than it, and the last for the warm start.
        assert len(frugal.iterates._in_memory) <= in_memory + 3
    with pytest.raises(KeyError):
        frugal.iterates[31]


def test_walking_back_through_all_iterates_repeats_less_than_the_path():
    A, b = definite_matrix(200, 1e4, 0), normal_vector(200, 1)
    products = 0

    def counted(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return A.mv(v)

    path = cg(counted, b, martens_conv_crit=False, max_iter=100, keep=Backtracking().wanted(100))
    assert (path.last, products) == (100, 100)
    for n in list(path.iterates)[:-5:-1]:
        assert path.iterates[n].shape == b.shape
    assert products == 100  # the latest four are in memory
    for n in list(path.iterates)[::-1]:
        assert path.iterates[n].shape == b.shape
    assert 100 < products < 200


@property_test
@given(seeds, st.floats(-3.0, 3.0))
def test_starts_at_x0_only_where_the_model_is_lower_than_at_zero(seed: int, share: float):
    A, b = definite_matrix(8, 10.0, seed), normal_vector(8, seed + 1)
    x0 = share * torch.linalg.solve(A, b)
    path = cg(A.mv, b, x0, max_iter=1, keep=ALL)
    # φ is lower than at zero between zero and twice the solution.
    if 1e-9 < share < 2.0 - 1e-9:
        assert torch.equal(path.iterates[0], x0)
        assert path.values[0] == pytest.approx(phi(A, b, x0), abs=1e-12)
    elif share < 0.0 or share > 2.0 + 1e-9:
        assert not path.iterates[0].any()
        assert path.values[0] == 0.0


# ---------------------------------------------------------------------- how it ends


def test_ends_after_max_iter_or_as_many_iterations_as_unknowns():
    A, b = definite_matrix(30, 1e6, seed=0), normal_vector(30, 1)
    assert cg(A.mv, b, max_iter=7).stop is CGStop.MAX_ITERATIONS
    assert cg(A.mv, b, max_iter=7).last == 7
    assert cg(A.mv, b, max_iter=None, martens_conv_crit=False).last == 30


def test_ends_where_the_system_is_solved():
    A, b = vector(1.0, 2.0, 4.0).diag(), vector(1.0, 1.0, 0.0)
    path = cg(A.mv, b)
    assert path.stop is CGStop.SOLVED
    assert path.last == 2
    assert_close(path.iterates[2], vector(1.0, 0.5, 0.0))


def test_a_residual_above_rounding_is_not_yet_a_solution():
    A, b = vector(1.0, 2.0, 4.0).diag(), vector(1.0, 1.0, 1.0)
    nearly = vector(1.0, 1.0 + 1e-14, 1.0 - 1e-14)  # 50 roundings away
    assert cg(A.mv, b, M=lambda v: nearly * v / A.diag()).last == 2


def test_a_start_at_the_solution_is_the_whole_path():
    A, b = vector(1.0, 2.0).diag(), vector(1.0, 4.0)
    path = cg(A.mv, b, x0=vector(1.0, 2.0))
    assert (path.stop, path.last, path.values) == (CGStop.SOLVED, 0, [-4.5])
    assert torch.equal(path.iterates[0], vector(1.0, 2.0))


def test_a_start_that_is_not_finite_is_not_used():
    A, b = vector(1.0, 2.0).diag(), vector(1.0, 4.0)
    path = cg(A.mv, b, x0=vector(math.nan, 1.0), keep=ALL)
    assert not path.iterates[0].any()
    assert_close(path.iterates[path.last], vector(1.0, 2.0))


def test_stops_at_non_positive_curvature():
    A, b = vector(1.0, -2.0).diag(), vector(2.0, 0.1)
    path = cg(A.mv, b, keep=ALL)
    assert path.stop is CGStop.NON_POSITIVE_CURVATURE
    assert path.last == len(path.iterates) - 1 == 1
    assert path.values[1] < 0.0


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_a_first_direction_of_non_positive_curvature_leaves_the_start(curvature: float):
    path = cg(lambda v: curvature * v, vector(1.0, 2.0))
    assert (path.stop, path.last, path.values) == (CGStop.NON_POSITIVE_CURVATURE, 0, [0.0])
    assert not path.iterates[0].any()


@pytest.mark.parametrize(("option", "first"), [("saddle-free", 0.5), ("ignore", -0.5)])
def test_one_step_at_negative_curvature(option: str, first: float):
    path = cg(lambda v: -2.0 * v, vector(1.0, 0.0), max_iter=1, nonpos_curv_option=NonPositiveCurvature(option))
    assert_close(path.iterates[1], vector(first, 0.0))


def test_an_exact_preconditioner_needs_one_iteration():
    A, b = vector(1.0, 10.0, 100.0).diag(), vector(1.0, 1.0, 1.0)
    assert cg(A.mv, b).last >= 3
    assert cg(A.mv, b, M=lambda v: v / A.diag()).last == 1


# ---------------------------------------------------------------------- how it treats its arguments


def test_leaves_its_arguments_alone():
    A, b, x0 = definite_matrix(8, 10.0, seed=0), normal_vector(8, 1), normal_vector(8, 2)
    x0 = x0 * torch.sign(b @ x0) * 0.1
    arguments = [b.clone(), x0.clone()]
    path = cg(A.mv, b, x0, keep=ALL)
    assert path.values[0] < 0.0
    assert torch.equal(b, arguments[0])
    assert torch.equal(x0, arguments[1])


def test_maps_may_return_their_argument():
    A, b = definite_matrix(8, 10.0, seed=0), normal_vector(8, 1)
    same = cg(A.mv, b, M=lambda v: v)
    assert same.values == cg(A.mv, b).values
    assert_close(cg(lambda v: v, b).iterates[1], b)


@pytest.mark.parametrize(("check_every", "products"), [(1, 4), (5, 6), (100, 41)])
def test_makes_one_product_for_the_start_and_one_per_iteration_up_to_the_next_look(check_every: int, products: int):
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return v * vector(1.0, 2.0, 4.0)

    path = cg(product, vector(1.0, 1.0, 1.0), vector(0.1, 0.1, 0.1), max_iter=40, check_every=check_every)
    assert path.stop is CGStop.SOLVED
    assert path.last == 3
    assert len(calls) == products


# ---------------------------------------------------------------------- Martens' stop rule


@property_test
@given(seeds, st.integers(1, 300), st.floats(0.5, 0.9999), st.sampled_from([1e-6, 1.0, 1e6]))
def test_martens_rule_as_published(seed: int, length: int, rate: float, scale: float):
    numbers = torch.arange(length, dtype=torch.float64)
    values = (scale * (rate**numbers - 1.0 + 1e-3 * normal_vector(length, seed) * rate**numbers)).tolist()
    for i in range(1, length + 1):
        assert relative_progress_stalled(values[:i]) == reference.martens_rule(values[:i])


@pytest.mark.parametrize(("i", "k"), [(50, 10), (109, 10), (110, 11), (200, 20)])
def test_martens_rule_looks_back_k_iterations(i: int, k: int):
    # All of the last progress was made just after iteration i − k.
    values = [-0.9] * (i - k + 1) + [-1.0] * k
    assert not relative_progress_stalled(values)
    assert relative_progress_stalled([*values, -1.0]) == (max(10, (i + 1) // 10) == k)


def test_martens_rule_compares_the_mean_progress_of_an_iteration():
    # After i iterations of equal progress each brought 1/i of the whole: less than 0.0005 where i > 2000.
    values = [-float(i) for i in range(2002)]
    assert not relative_progress_stalled(values[:-1])
    assert relative_progress_stalled(values)


def test_martens_rule_waits_for_ten_iterations_and_a_decrease():
    assert not relative_progress_stalled([-1.0] * 11)
    assert relative_progress_stalled([-1.0] * 12)
    assert not relative_progress_stalled([0.0] * 12)
    assert not relative_progress_stalled([0.0] * 11 + [1.0])


def test_a_direction_that_is_flat_up_to_rounding_has_no_curvature():
    A = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    path = cg(A.mv, torch.tensor([2.0, 0.1], dtype=torch.float64), martens_conv_crit=False)
    assert path.stop is CGStop.NON_POSITIVE_CURVATURE
    assert path.iterates[path.last].norm() < 10.0
