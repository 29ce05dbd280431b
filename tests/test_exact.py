"""Protects the element-wise functions: accurate, and the same bits whatever the size of the tensor and place in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from penstock.kernels import exact

pytestmark = pytest.mark.torch


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = torch.linspace(-86.9, 87.9, 200_001)
    true = x.double().exp()
    spacing = torch.nextafter(true.float(), torch.tensor(float("inf"))).double() - true.float().double()
    assert float(((exact.exp(x).double() - true).abs() / spacing).max()) <= 2.0
    assert exact.exp(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(exact.silu, functional.silu), (exact.gelu_tanh, lambda x: functional.gelu(x, approximate="tanh"))],
)
def test_activations_agree_with_torch(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> None:
    x = torch.cat((torch.linspace(-30, 30, 10_001), torch.tensor([-1e4, 1e4, 0.0])))
    torch.testing.assert_close(ours(x), theirs(x), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("function", [exact.exp, exact.silu, exact.gelu_tanh, exact.sigmoid])
def test_size_and_place_do_not_change_a_bit(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(70_001, generator=torch.Generator().manual_seed(1)) * 20
    whole = function(x)
    for start, size in ((0, 1), (3, 7), (17, 33), (1000, 4097), (69_990, 11), (5, 65_003)):
        assert torch.equal(function(x[start : start + size]), whole[start : start + size])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 48, 64, 100, 1025])
def test_a_tree_sum_depends_on_its_row_alone(width: int) -> None:
    x = torch.randn(300, width, generator=torch.Generator().manual_seed(2))
    whole = exact.tree_sum(x)
    torch.testing.assert_close(whole[:, 0].double(), x.double().sum(-1), rtol=1e-5, atol=1e-5)
    for start, count in ((0, 1), (5, 2), (77, 130)):
        assert torch.equal(exact.tree_sum(x[start : start + count]), whole[start : start + count])
