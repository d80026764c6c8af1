"""The weights of a taming-transformers checkpoint."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cortex_fast.vqgm.averages import average_name
from cortex_fast.vqgm.checkpoints import CheckpointError

_TRAINING = re.compile(
    r"(first_stage_model\.)?(loss\.|colorize$|model_ema\.(decay$|num_updates$|loss))"
    r"|cond_stage_model\.|transformer\..*\.attn\.mask$"
)
_AVERAGES = re.compile(r"(first_stage_model\.)?model_ema\.")


def weights_of(
    checkpoint: Mapping[str, Tensor], modules: Mapping[str, nn.Module], *, averaged: bool
) -> dict[str, Tensor]:
    """A checkpoint's tensors without those of its training; with `averaged`, averages in place of the weights.

    modules: by the prefix of their names in the checkpoint. Averages of no weight stay, so that `fill` names them.
    """
    remaining = {name: tensor for name, tensor in checkpoint.items() if not _TRAINING.match(name)}
    weights = {name: tensor for name, tensor in remaining.items() if not _AVERAGES.match(name)}
    if not averaged:
        return weights
    for prefix, module in modules.items():
        for name in module.state_dict():
            average = remaining.pop(average_name(name, prefix), None)
            if average is not None:
                weights[prefix + name] = average
    return weights | {name: tensor for name, tensor in remaining.items() if _AVERAGES.match(name)}


def fill(
    file: Path, modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], device: torch.device | str
) -> None:
    """Copy weights into modules, by their prefixes. Raises CheckpointError for missing, unknown or misshapen ones."""
    expected = {
        prefix + name: tensor for prefix, module in modules.items() for name, tensor in module.state_dict().items()
    }
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} (expected {list(tensor.shape)}, got {list(weights[name].shape)})"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        described = (f"{len(names)} keys {what}: {', '.join(names[:5])}" for what, names in problems.items() if names)
        raise CheckpointError(f"{file}: {'; '.join(described)}")
    for prefix, module in modules.items():
        module.to(torch.float32).to_empty(device=device)
        module.load_state_dict({name: weights[prefix + name] for name in module.state_dict()})
