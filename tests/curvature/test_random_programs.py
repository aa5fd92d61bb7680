"""Curvature of programs composed at random: each product is right, or refused by name. None is silently wrong.

The programs are in ``programs``, what is held against what in ``program_checks``. Many more of them:
``python -m tests.curvature.random_programs --programs 2000``; one in detail: ``--seed 17``.
"""

from collections import Counter
from functools import cache

import pytest
import torch
from tests.curvature.program_checks import Report, check, closed_afterwards
from tests.curvature.programs import (
    USES,
    Program,
    default_dtype,
    gradient,
    jacobian,
    real,
    true_ggn,
    true_hessian,
    watched,
)

from latephase.curvature.math_kernels import math_kernels

SEEDS = range(60)
BESIDE_A_FRESH_PROCESS = range(0, 60, 24)
FOR_DIFFERENCES = range(20)


@pytest.fixture(scope="module", autouse=True)
def _no_process_stays():
    with closed_afterwards():
        yield


@cache
def report(seed: int) -> Report:
    return check(seed, fresh=seed in BESIDE_A_FRESH_PROCESS)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_or_refused(seed):
    assert not report(seed).wrong, str(report(seed))


def test_few_are_refused():
    """Refusing is always safe, and is no way to pass this test."""
    verdicts = Counter(finding.verdict for seed in SEEDS for finding in report(seed).findings)
    assert verdicts["right"] >= 0.8 * verdicts.total(), verdicts


def test_a_seed_decides_on_everything():
    for seed in SEEDS:
        first, second = Program(seed), Program(seed)
        assert first.description == second.description
        assert all(map(torch.equal, first.params, second.params))


# ---------------------------------------------------------------------- the references themselves


def differences(function, params, step=1e-6):
    """The Jacobian of ``function() -> vector`` in the parameters by central differences, shape (entries, P)."""
    columns = []
    for p in params:
        values = p.detach().view(-1)
        for i in range(len(values)):
            middle = values[i].item()
            ends = []
            for value in (middle + step, middle - step):
                values[i] = value
                ends.append(function())
            values[i] = middle
            columns.append((ends[0] - ends[1]) / (2.0 * step))
    return torch.stack(columns, dim=1)


def again(program, use):
    """The closure's loss and outputs at the present parameters, with random numbers and buffers as at the start."""
    values = [p.detach().clone() for p in program.params]
    closure = program.at(use)
    with torch.no_grad():
        for p, value in zip(program.params, values, strict=True):
            p.copy_(value)
    return watched(program, closure)


@pytest.mark.parametrize("seed", [seed for seed in FOR_DIFFERENCES if Program(seed).exact and Program(seed).smooth])
@pytest.mark.filterwarnings("ignore")
def test_references_agree_with_differences(seed):
    with default_dtype(torch.float64), math_kernels():
        program, use = Program(seed, exact=True), USES[seed % 3]

        def outputs():
            return torch.cat([real(z.detach()).reshape(-1) for z in again(program, use)[1]])

        def slope():
            return gradient(again(program, use)[0], program.params)

        identity = torch.eye(sum(p.numel() for p in program.params))
        J = jacobian(watched(program, program.at(use))[1], program.params)
        G, H = (matrix(program, program.at(use), identity) for matrix in (true_ggn, true_hessian))
        program.at(use)
        for mine, theirs in [(J, differences(outputs, program.params)), (H, differences(slope, program.params))]:
            assert (mine - theirs).norm() <= 1e-5 * mine.norm() + 1e-7
        assert torch.allclose(G, G.T)
        assert torch.allclose(H, H.T, atol=1e-10)
