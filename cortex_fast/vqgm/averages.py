"""Moving averages of the weights, which latent-diffusion's LitEma stores beside the weights."""

from collections.abc import Mapping

from torch import Tensor


def average_name(name: str, prefix: str = "") -> str:
    """The name of the average of the parameter `prefix` + `name` in a checkpoint: the parameter's without its dots."""
    return f"{prefix}model_ema.{name.replace('.', '')}"


def averages(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """`weights`, by names without the prefix, or their averages where `state` has them."""
    return {name: state.get(average_name(name, prefix), tensor) for name, tensor in weights.items()}
