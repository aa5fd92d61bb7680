"""The updates of Broyden's family beside dense definitions."""

import numpy as np
import pytest
import torch

from latephase.parts.broyden import HELD, Choice, Dense, LowRank, change, self_scaled, update

N = 6


def spd(seed=0):
    torch.manual_seed(seed)
    root = torch.randn(N, N, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(N, dtype=torch.float64)


def bfgs(h, b, n):
    return Choice(1.0, 1.0)


@pytest.mark.parametrize("choose", [self_scaled, bfgs, lambda h, b, n: Choice(0.3, 2.0)])
def test_the_update_fulfils_the_secant_equation_and_stays_symmetric_and_positive(choose):
    H = spd(0)
    s = torch.randn(N, dtype=torch.float64)
    y = spd(1) @ s
    update(H, s, y, float(s @ torch.linalg.solve(H, s)), choose)
    torch.testing.assert_close(H @ y, s)
    torch.testing.assert_close(H, H.T)
    assert torch.linalg.eigvalsh(H).min() > 0


def test_bfgs_is_a_special_case():
    H, s = spd(0), torch.randn(N, dtype=torch.float64)
    y = spd(1) @ s
    rest = torch.eye(N, dtype=torch.float64) - torch.outer(s, y) / (s @ y)
    expected = rest @ H @ rest.T + torch.outer(s, s) / (s @ y)
    update(H, s, y, float("nan"), bfgs)
    torch.testing.assert_close(H, expected)


def test_dfp_is_another():
    H, s = spd(0), torch.randn(N, dtype=torch.float64)
    y = spd(1) @ s
    expected = H - torch.outer(H @ y, H @ y) / (y @ H @ y) + torch.outer(s, s) / (s @ y)
    update(H, s, y, float("nan"), lambda h, b, n: Choice(0.0, 1.0))
    torch.testing.assert_close(H, expected)


@pytest.mark.parametrize("seed", range(5))
def test_with_exact_line_searches_any_member_ends_after_n_steps_on_a_quadratic(seed):
    """And then has found the inverse, if nothing is scaled."""
    A, theta = spd(seed), torch.randn(N, dtype=torch.float64)
    H = torch.eye(N, dtype=torch.float64)
    for _ in range(N):
        g = A @ theta
        p = -H @ g
        s = -(g @ p) / (p @ A @ p) * p
        update(H, s, A @ s, float(s @ torch.linalg.solve(H, s)), bfgs)
        theta = theta + s
    assert (A @ theta).norm() < 1e-7
    torch.testing.assert_close(H, torch.linalg.inv(A), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("h", "b"), [(2.0, 3.0), (0.5, 4.0), (5.0, 0.4), (1.0, 1.0), (3.0, 1.0), (0.9, 1.2)])
def test_the_choice_is_that_of_the_paper(h, b):
    """Equations written out once more, with B's member θ between its bounds and φ that of the inverse."""
    phi, tau = self_scaled(h, b, N)
    a = max(h * b - 1, 2.3e-16)
    c = (a / (a + 1)) ** 0.5
    low, high = (min(1, h * (1 - c)) - 1) / a, 1 / min(1, h * (1 - c))
    theta = np.clip((1 - b) / b, low, high)
    assert phi == pytest.approx((1 - theta) / (1 + theta * a))
    shrink = (1 + theta * a) ** (1 / (1 - N))
    scale = min(1, 1 / b)
    expected = min(scale * shrink, 1 + theta * a) if theta <= 0 else scale * min(shrink, 1 / theta)
    assert tau == pytest.approx(expected)
    assert 0 < tau <= max(1, shrink)


@pytest.mark.parametrize("updates", [1, HELD, HELD + 1, 3 * HELD - 1])
def test_updates_kept_apart_are_those_of_the_matrix(updates):
    """Products before and after each, whether it was added to the matrix already or not."""
    H, A = torch.eye(N, dtype=torch.float64), spd(1)
    given = H.clone()
    inverse = Dense(given)
    for _ in range(updates):
        s, g = torch.randn(2, N, dtype=torch.float64)
        Hg, y = inverse.times(g), A @ s
        torch.testing.assert_close(Hg, H @ g)
        sBs = float(s @ torch.linalg.solve(H, s))
        following = change(s, y, inverse.times(y), sBs)
        update(H, s, y, sBs)
        inverse.add(following)
        torch.testing.assert_close(following.of(Hg, g), H @ g)
        torch.testing.assert_close(inverse.times(g), H @ g)
    torch.testing.assert_close(inverse.dense(), H)
    torch.testing.assert_close(inverse.times(g), H @ g)
    assert torch.equal(given, torch.eye(N, dtype=torch.float64))


def low_rank(updates, columns=0):
    """Of so many updates, and the matrix that it stands for."""
    torch.manual_seed(0)
    P, A = 40, torch.logspace(-2, 2, 40, dtype=torch.float64)
    U = torch.linalg.qr(torch.randn(P, columns, dtype=torch.float64)).Q
    M = torch.linspace(-1.5, 3.0, columns, dtype=torch.float64).diag()
    inverse, H = LowRank(U, M, 2.0, updates), 2.0 * torch.eye(P, dtype=torch.float64) + U @ M @ U.T
    for _ in range(updates):
        s = torch.randn(P, dtype=torch.float64)
        y, sBs = A * s, float(s @ torch.linalg.solve(H, s))
        inverse.add(change(s, y, inverse.times(y), sBs))
        update(H, s, y, sBs)
    return inverse, H


def as_matrix(U, M, scale):
    return scale * torch.eye(len(U), dtype=U.dtype) + U @ M @ U.T


@pytest.mark.parametrize("columns", [0, 3])
def test_of_low_rank_it_is_the_same(columns):
    inverse, H = low_rank(9, columns)
    eye = torch.eye(len(H), dtype=torch.float64)
    torch.testing.assert_close(torch.stack([inverse.times(e) for e in eye]), H, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(as_matrix(*inverse.kept(columns + 18)), H, rtol=1e-9, atol=1e-9)


def test_of_low_rank_it_goes_on_from_what_was_kept():
    inverse, H = low_rank(4)
    U, M, scale = inverse.kept(8)
    again = LowRank(U, M, scale, updates=1)
    torch.testing.assert_close(again.times(H[0]), H @ H[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("most", [1, 2, 6, 17])
def test_of_too_many_directions_those_stay_that_differ_most(most):
    """In the ratio to the multiple of the identity; beside all eigenvalues of the matrix."""
    inverse, H = low_rank(9)
    U, M, scale = inverse.kept(most)
    k = max(most // 2, 1)
    assert U.shape == (40, k)
    assert M.shape == (k, k)
    torch.testing.assert_close(U.T @ U, torch.eye(k, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(H)
    far = (values / scale).log().abs().argsort(descending=True)[:k]
    expected = (vectors[:, far] * (values[far] - scale)) @ vectors[:, far].T
    torch.testing.assert_close(U @ M @ U.T, expected, rtol=1e-6, atol=1e-8)
    assert float(torch.linalg.eigvalsh(as_matrix(U, M, scale))[0]) > 0.0
