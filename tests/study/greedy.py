"""A problem whose Hessian-free batches are larger than its data."""

from dataclasses import replace

from tests.study.toy import TOY


def build():
    return replace(TOY, name="greedy", gradient_batch=61)
