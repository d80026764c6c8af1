"""descent_step against torch.optim."""

import pytest
import torch

from cortex_fast.ops.descent_step import descent_step


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_three_steps_of_torch_optim(optimizer, as_tensors):
    generator = torch.Generator().manual_seed(0)
    variables = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    expected = variables.clone().requires_grad_(True)
    moments = (torch.zeros_like(variables), torch.zeros_like(variables)) if optimizer == "adam" else None
    reference = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([expected], lr=0.3)
    for step_count in (1, 2, 3):
        expected.grad = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
        reference.step()
        numbers = [0.3, step_count]
        if as_tensors:
            numbers = torch.tensor(numbers, dtype=torch.float64).unbind()
        descent_step(variables, expected.grad, lr=numbers[0], moments=moments, step_count=numbers[1])
    torch.testing.assert_close(variables, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"gradient": torch.zeros(2, 4)}, ValueError, "gradient"),
        ({"gradient": torch.zeros(2, 3).double()}, TypeError, "gradient"),
        ({"variables": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "variables"),
        ({"moments": (torch.zeros(2, 3), torch.zeros(3))}, ValueError, r"moments\[1\]"),
        ({"gradient": torch.zeros(2, 3, device="meta")}, ValueError, "variables, gradient"),
    ],
)
def test_bad_arguments_are_named(change, error, argument):
    arguments = {"variables": torch.zeros(2, 3), "gradient": torch.zeros(2, 3), "lr": 0.1} | change
    with pytest.raises(error, match=rf"^{argument}: expected"):
        descent_step(**arguments)
