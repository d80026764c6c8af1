"""A step of gradient descent, in place, as torch.optim has it."""

from torch import Tensor


def descend(
    variables: Tensor,
    moments: tuple[Tensor, Tensor] | None,
    gradient: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    count: int,
) -> None:
    """Step number `count` (from 1) of Adam (Kingma and Ba 2015), or without moments of SGD."""
    if moments is None:
        variables.sub_(gradient, alpha=lr)
        return
    first, second = moments
    first.lerp_(gradient, 1 - betas[0])
    second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    scale = (second / (1 - betas[1] ** count)).sqrt_().add_(eps)
    variables.addcdiv_(first, scale, value=-lr / (1 - betas[0] ** count))
