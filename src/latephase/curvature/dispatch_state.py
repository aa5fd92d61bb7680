"""What PyTorch keeps per thread while it traces, and that a trace that fails may leave behind."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack, _pop_mode

from latephase.watching import function_modes, leave_function_modes


@contextmanager
def unchanged_dispatch_state() -> Iterator[None]:
    """Leave the thread's dispatch keys, modes, grad mode and forward-mode level as they were, whatever happens within.

    An operation that fails inside of a trace can leave keys excluded: then autograd would be off for the whole process.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it prints what is raised as well
    modes, dispatch_modes = len(function_modes()), len(_get_current_dispatch_mode_stack())
    level = forward_ad._current_level
    keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch.set_grad_enabled(torch.is_grad_enabled()), _compiled_code_as_it_is():
        try:
            with torch._C._ForceDispatchKeyGuard(*keys):
                try:
                    logger.disabled = True
                    yield
                except BaseException as error:
                    _let_go_of_frames(error)
                    raise
        finally:
            logger.disabled = False
            leave_function_modes(modes)
            while len(_get_current_dispatch_mode_stack()) > dispatch_modes:
                _pop_mode()
            while forward_ad._current_level > level:
                forward_ad.exit_dual_level()


def _let_go_of_frames(error: BaseException | None) -> None:
    """Free what the frames of an error hold: guards among it change the dispatch keys when they are freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


@contextmanager
def _compiled_code_as_it_is() -> Iterator[None]:
    """Let the compiler be called within a trace; it runs its functions uncompiled there."""
    if "torch._dynamo" not in sys.modules:
        yield
    else:
        with torch._dynamo.config.patch(error_on_nested_fx_trace=False):
            yield
