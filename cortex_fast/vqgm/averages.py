"""Moving averages of the weights, as latent-diffusion's LitEma keeps them beside the weights themselves."""

from collections.abc import Mapping

from torch import Tensor


def average_name(name: str, prefix: str = "") -> str:
    """Under which name a checkpoint has the average of `prefix` + `name`: the parameter's own without its dots."""
    return f"{prefix}model_ema.{name.replace('.', '')}"


def averages(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """`wanted`, by names without the prefix, with the averages of `state` where it has them."""
    return {name: state.get(average_name(name, prefix), tensor) for name, tensor in wanted.items()}
