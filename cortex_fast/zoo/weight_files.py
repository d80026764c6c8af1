"""Weight files of the bundled model: half-precision safetensors with the module's configuration beside the tensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cortex_fast import checks
from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.data.results import ResultFileError, parse_json, replace_whole


def save_weights(path: Path, module: nn.Module, config: dict[str, Any]) -> None:
    """Write a module's state in float16, with integers unchanged, and its configuration.

    Args:
        path: the file, which is replaced.
        module: the module.
        config: JSON-able arguments that build it.

    Raises:
        ValueError: a weight is not finite in float16; the message names it.
    """
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().contiguous()
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in half.items():
        if tensor.is_floating_point():
            checks.finite(name, tensor)
    replace_whole(path, lambda file: save_file(half, file, {"config": json.dumps(config, sort_keys=True)}))


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a weight file.

    Args:
        path: the file.

    Returns:
        The configuration that `save_weights` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: it is damaged; the message names it.
    """
    refuse_foreign(path, ResultFileError)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(parse_json(file.metadata()["config"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: a truncated or damaged weight file ({error})") from error


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """Fill a module from a file of `save_weights`.

    Args:
        path: the file.
        module: the module to fill, in place.

    Returns:
        The module, in float32, channels last, in eval mode, without parameter gradients.

    Raises:
        FileNotFoundError: the file does not exist.
        ResultFileError: it is damaged; the message names it.
    """
    read_config(path)  # raises an error that names a damaged file
    state = load_file(path)
    module.load_state_dict({k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()})
    module.to(dtype=torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)
