"""Precision of training: float32 to the bit, lower precision in the network alone, and the scale of fp16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from divcon.training.precision import Precision

CPU = torch.device("cpu")


class Two(nn.Module):
    """Returns a product, and what it received."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, inputs: torch.Tensor, *, twice: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        self.dtype = (outputs := self.linear(inputs)).dtype
        return outputs * 2 if twice else outputs, inputs


@pytest.mark.parametrize(("name", "inside"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_lower_precision_is_inside_of_the_network_alone(name: str, inside: torch.dtype) -> None:
    torch.manual_seed(0)
    network, inputs = Two(), torch.randn(3, 8)
    outputs, same = Precision(name, CPU).forward(network, inputs, twice=True)
    assert network.dtype == inside
    assert outputs.dtype == same.dtype == network.linear.weight.dtype == torch.float32
    exact = network(inputs, twice=True)[0]
    assert torch.equal(same, inputs)
    assert torch.equal(outputs, exact) == (name == "fp32")
    torch.testing.assert_close(outputs, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_step_is_that_of_pytorch(name: str) -> None:
    weight, same = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    precision = Precision(name, CPU)
    for parameter in (weight, same):
        optimizer = torch.optim.SGD([parameter], 0.1)
        loss = (parameter**2).sum()
        if parameter is weight:
            precision.backward(loss)
            precision.step(optimizer)
        else:
            loss.backward()
            optimizer.step()
    assert torch.equal(weight, same)
    assert precision.state_dict() == {}
    precision.load_state_dict({})


def test_fp16_scales_the_loss_and_takes_no_step_on_a_gradient_that_is_not_finite() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], 0.1)
    precision = Precision("fp16", CPU)
    scale = precision.state_dict()["scale"]
    precision.backward(3 * weight.sum())
    assert weight.grad is not None and weight.grad.item() == 3 * scale
    precision.step(optimizer)
    assert weight.item() == pytest.approx(0.7)
    optimizer.zero_grad()
    precision.backward(float("inf") * weight.sum())
    precision.step(optimizer)
    assert weight.item() == pytest.approx(0.7)
    assert precision.state_dict()["scale"] == scale / 2
    other = Precision("fp16", CPU)
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == precision.state_dict()
