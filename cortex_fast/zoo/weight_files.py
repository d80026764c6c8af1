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
    """Write a module's state in float16 (integers as they are) and its configuration."""
    half = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().contiguous()
        for name, tensor in module.state_dict().items()
    }
    for name, tensor in half.items():
        if tensor.is_floating_point():
            checks.finite(name, tensor)
    replace_whole(path, lambda file: save_file(half, file, {"config": json.dumps(config, sort_keys=True)}))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration beside the tensors. Raises ResultFileError, naming the file, where it is not whole."""
    refuse_foreign(path, ResultFileError)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(parse_json(file.metadata()["config"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path}: not a whole weight file ({error})") from error


def load_weights(path: Path, module: nn.Module) -> nn.Module:
    """Fill a module from `save_weights`'s file, in float32, and put it into eval mode without parameter gradients."""
    read_config(path)  # refuses a damaged file by its name
    state = load_file(path)
    module.load_state_dict({k: v.float() if v.dtype == torch.float16 else v for k, v in state.items()})
    module.to(dtype=torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)
