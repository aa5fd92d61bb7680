"""The end of a DeepXDE training: `latephase.finish` for a compiled and trained `deepxde.Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latephase.finishing.call import finish as finish_network
from latephase.finishing.report import FinishReport
from latephase.integrations.missing import install_first

try:
    import deepxde
except ImportError as error:
    raise install_first("deepxde", "DeepXDE", error) from error


def finish(model: deepxde.Model, *, budget: float | str, **options: Any) -> FinishReport:
    """End the training of a DeepXDE model within a budget; see `latephase.finish`.

    The loss is the model's own: all terms with their weights, on the training points that it has. Variables beside the
    network (`external_trainable_variables`, of inverse problems) are trained with it. Afterwards the model is as after
    its own training: `model.train_state` and `model.losshistory` have one more entry, `model.predict` works.

    Args:
        model: Compiled, and trained before; with the backend PyTorch.
        budget: Seconds, `"10min"` or `"300gradients"`, which everything counts towards.
        **options: Those of `latephase.finish`: `strategies`, `seed`, `out`, `callbacks`, `progress`.

    Returns:
        What was tried, and what became of the loss.

    Raises:
        RuntimeError: If the backend is another, or the model has not been trained yet.
        ValueError: For training points that are drawn afresh at each step: there is no one loss to lower then.
    """
    if deepxde.backend.backend_name != "pytorch":
        raise RuntimeError(f"latephase is for DeepXDE's backend pytorch, not {deepxde.backend.backend_name}")
    if not isinstance(getattr(model, "opt", None), torch.optim.Optimizer) or model.train_state.X_train is None:
        raise RuntimeError("call model.compile(...) and model.train(...) first: latephase ends a training")
    if model.batch_size is not None:
        raise ValueError("the model was trained on batches drawn afresh; train without batch_size")
    for variable in model.external_trainable_variables:
        variable._is_param = True  # PyTorch's mark of tensors that are parameters without being of that class
    network = nn.ModuleList([model.net, nn.ParameterList(model.external_trainable_variables)])
    report = finish_network(network, _closure(model), budget=budget, optimizer=model.opt, **options)
    model.train_state.step += 1
    model._test(verbose=0)  # as after each of its own steps that are shown
    return report


def _closure(model: deepxde.Model) -> Callable[[], Tensor]:
    """The loss as the model's own training step computes it."""
    state = model.train_state

    def loss() -> Tensor:
        _, losses = model.outputs_losses_train(state.X_train, state.y_train, state.train_aux_vars)
        return torch.sum(losses)

    return loss
