"""Operators that no graph can replay."""

from typing import Any

import torch
from torch import Tensor

from cortex_fast.engine.nested import instances
from cortex_fast.engine.recording import Call, Recording

BY_VALUE = "its forward depends on values: it reads its input in Python"
_BATCH_NORMS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit")
_BY_LAYOUT = ("as_strided", "as_strided_copy")


def refuse_unrepeatable(recording: Recording, call: Call) -> None:
    """Refuse a call that a graph cannot repeat; stop before one that updates running statistics."""
    tags = call.operator.tags
    if torch.Tag.nondeterministic_seeded in tags and not _is_switched_off(call):
        recording.refuse(f"it is random ({call.name})")
    if not call.depends:
        return
    if torch.Tag.dynamic_output_shape in tags and not _indexes_by_position(call):
        recording.refuse(f"the shapes of its results depend on values ({call.name})", by_value=True)
    if torch.Tag.data_dependent_output in tags:
        recording.refuse(BY_VALUE, by_value=True)
    if call.name in _BY_LAYOUT:
        recording.refuse(f"it depends on how its tensors are laid out ({call.name})")
    if call.name in _BATCH_NORMS and call.args[5] is True and isinstance(call.args[3], Tensor):
        recording.stop("it updates its running statistics")


def _is_switched_off(call: Call) -> bool:
    """Whether the arguments switch the randomness of an operator off."""
    parameters = call.operator._schema.arguments
    passed = dict(zip((parameter.name for parameter in parameters), call.args, strict=False)) | call.kwargs
    defaults = {parameter.name: parameter.default_value for parameter in parameters}
    off: dict[str, Any] = {"dropout_p": 0, "training": False, "train": False}
    return any(name in defaults and passed.get(name, defaults[name]) == value for name, value in off.items())


def _indexes_by_position(call: Call) -> bool:
    """Whether an index is by positions: a mask's result has as many rows as the mask has ones."""
    masks = (torch.bool, torch.uint8)
    return call.name in ("index", "index_put") and not any(
        index.dtype in masks for index in instances(Tensor, call.args[1])
    )
