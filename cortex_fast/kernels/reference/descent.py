"""A step of gradient descent, in place, as torch.optim has it."""

from torch import Tensor


def descend(
    variables: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    gradient: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    count: int | Tensor,
) -> None:
    """Step number `count` (from 1) of Adam (Kingma and Ba 2015), or without moments of SGD. lr and count: numbers, or
    scalar tensors on the variables' device."""
    if moments is None:
        variables.sub_(gradient * lr)
        return
    first, second = moments
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    scale = (second / (1 - betas[1] ** count)).sqrt_().add_(eps)
    variables.sub_((first / scale).mul_(lr / (1 - betas[0] ** count)))
