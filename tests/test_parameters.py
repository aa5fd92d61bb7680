"""The flat view of the parameters: one vector, in their order, with their storage kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latephase.parameters import Parameters


def made() -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, Parameters]:
    first, frozen = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T), nn.Parameter(torch.ones(5))
    second = nn.Parameter(torch.tensor([5.0], dtype=torch.float16))
    groups = [{"params": [first, frozen.requires_grad_(False)], "lr": 0.5}, {"params": [second], "lr": 2.0}]
    return first, frozen, second, Parameters(groups)


def test_theta_holds_what_is_trained_in_order_and_in_float32_at_least() -> None:
    *_, parameters = made()
    assert parameters.numel == 5
    assert parameters.read().tolist() == [1.0, 3.0, 2.0, 4.0, 5.0]
    assert parameters.read().dtype == torch.float32


def test_a_vector_that_is_written_keeps_storage_and_strides() -> None:
    first, frozen, second, parameters = made()
    before = first.data_ptr(), first.stride()
    parameters.write(torch.arange(5.0))
    assert first.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert second.tolist() == [4.0]
    assert frozen.tolist() == [1.0] * 5
    assert (first.data_ptr(), first.stride()) == before


def test_split_and_join_undo_each_other_and_none_is_zeros() -> None:
    *_, parameters = made()
    v = torch.arange(5.0)
    pieces = parameters.split(v)
    assert [piece.dtype for piece in pieces] == [torch.float32, torch.float16]
    assert torch.equal(parameters.join(pieces), v)
    assert parameters.join([None, pieces[1]]).tolist() == [0.0, 0.0, 0.0, 0.0, 4.0]


def test_an_option_is_a_number_where_groups_agree_and_a_vector_elsewhere() -> None:
    *_, parameters = made()
    spread = parameters.spread("lr")
    assert isinstance(spread, Tensor)
    assert spread.tolist() == [0.5, 0.5, 0.5, 0.5, 2.0]
    assert Parameters([{"params": [nn.Parameter(torch.ones(2))], "lr": 0.5}]).spread("lr") == 0.5


def test_no_parameters_are_an_empty_vector() -> None:
    parameters = Parameters([{"params": []}])
    parameters.write(torch.zeros(0))
    assert parameters.read().shape == (0,)


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ([torch.ones(2), torch.ones(2, device="meta")], ValueError, "one on meta"),
        ([torch.ones(2, dtype=torch.complex64)], TypeError, "complex dtype"),
        ([torch.ones(2).to_sparse()], TypeError, "layout torch.sparse_coo"),
        ([torch.ones(1).expand(3)], ValueError, "share memory"),
    ],
)
def test_what_has_no_flat_view_is_named(tensors: list[Tensor], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Parameters([{"params": [nn.Parameter(tensor) for tensor in tensors]}])
