"""The numbers of a step that a schedule tensor may stand for."""

import math
from typing import Any

from torch import Tensor


def scheduled_values(
    schedule: Tensor | None, *, tau: float = 1.0, draw: int = 0, lr: float = 0.0, step_count: int = 1
) -> tuple[Any, Any, Any, Any]:
    """The temperature, draw, learning rate and step count of a step: a schedule's, or without one those given.

    Args:
        schedule: float64 [4], (tau, draw, lr, step_count), or None.
        tau: used without a schedule. Default 1.
        draw: used without a schedule. Default 0.
        lr: used without a schedule. Default 0.
        step_count: used without a schedule. Default 1.

    Returns:
        (tau, draw, lr, step_count): numbers, or scalar tensors of a schedule on a GPU, where reading them would wait.

    Raises:
        ValueError: a schedule on the CPU with values out of range.
    """
    if schedule is None:
        return tau, draw, lr, step_count
    if schedule.device.type != "cpu":
        scheduled_tau, scheduled_draw, scheduled_lr, scheduled_count = schedule.unbind()
        return scheduled_tau, scheduled_draw.long(), scheduled_lr, scheduled_count
    values = schedule.tolist()
    tau, scheduled_draw, lr, scheduled_count = values
    if not (0 < tau < math.inf and 0 <= scheduled_draw < 2**32 and 0 <= lr < math.inf and scheduled_count >= 1):
        raise ValueError(f"schedule: expected tau > 0, a draw in [0, 2^32), lr >= 0 and step_count >= 1, got {values}")
    return tau, int(scheduled_draw), lr, int(scheduled_count)
