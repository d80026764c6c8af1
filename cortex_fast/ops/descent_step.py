"""One step of gradient descent in place, for optimisations whose gradient exists as a tensor."""

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.kernels.reference.descent import descend


def descent_step(
    variables: Tensor,
    gradient: Tensor,
    *,
    lr: float | Tensor,
    moments: tuple[Tensor, Tensor] | None = None,
    step_count: int | Tensor = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """Take torch.optim.Adam's step on `variables` in place, or without moments torch.optim.SGD's.

    For the package's own optimisations, which checked the numbers before: only tensors are checked here.
    `gumbel_codebook_step` takes the same step on logits without ever writing their gradient.

    Args:
        variables: float [...], changed in place.
        gradient: float [...], the loss's gradient in the variables.
        lr: the learning rate, a number or a scalar tensor on the variables' device.
        moments: Adam's averages of the gradient and of its square, each shaped as variables and zero before step 1;
            changed in place. None: SGD. Default None.
        step_count: the number of this step, from 1; a number or a scalar tensor on the variables' device. Default 1.
        betas: Adam's decay rates, two numbers in [0, 1). Default (0.9, 0.999).
        eps: Adam's epsilon, above 0. Default 1e-8.

    Raises:
        TypeError: variables, gradient or moments that are not floating-point tensors of one dtype.
        ValueError: shapes or devices that differ.
    """
    tensors = {"variables": variables, "gradient": gradient}
    if moments is not None:
        tensors |= {"moments[0]": moments[0], "moments[1]": moments[1]}
    for name, tensor in tensors.items():
        checks.floating(name, tensor)
        if tensor.dtype != variables.dtype:
            raise TypeError(f"{name}: expected {variables.dtype}, the variables' dtype, got {tensor.dtype}")
        checks.same_shape(name, tensor, "variables", variables.shape)
    checks.same_device(**tensors)
    with torch.no_grad():
        descend(variables, moments, gradient, lr=lr, betas=betas, eps=eps, step_count=step_count)
