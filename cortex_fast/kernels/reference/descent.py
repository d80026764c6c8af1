"""A step of gradient descent, in place, as torch.optim takes it."""

from torch import Tensor


def descend(
    variables: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    gradient: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    step_count: int | Tensor,
) -> None:
    """Adam's step number `step_count`, from 1 (Kingma and Ba 2015); without moments, SGD's step.

    lr and step_count: numbers, or scalar tensors on the variables' device.
    """
    if moments is None:
        variables.sub_(gradient * lr)
        return
    first, second = moments
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    scale = (second / (1 - betas[1] ** step_count)).sqrt_().add_(eps)
    variables.sub_((first / scale).mul_(lr / (1 - betas[0] ** step_count)))
