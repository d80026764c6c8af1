"""An extractor split into the parts that input gradients need: prefix, body and head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.engine.splitting import as_tuple
from cortex_fast.engine.watching import Weights


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitModel:
    """An eval-mode extractor f_Y: E [B,d,h,w] -> logits [B,classes], as head(body(relu(prefix(E)))).

    `Prepared`, which adds no field, documents the fields.
    """

    extractor: nn.Module
    stand_in: nn.Module
    prefix: nn.Module
    linear_prefix: nn.Module
    body: nn.Module
    head: nn.Linear | None
    dtype: torch.dtype
    notes: tuple[str, ...]
    bytes_of_copy: int = 1 << 20
    layout: torch.memory_format = torch.channels_last
    gates: tuple[bool, ...] = ()
    weights: Weights | None = None
    scale: float = 1.0
    classes: int | None = None
    shape: torch.Size | None = None
    exact: bool = True

    def cast(self, x: Tensor) -> Tensor:
        """x [n,d,h,w] in the parts' dtype and memory format."""
        return x.to(self.dtype, memory_format=self.layout)

    def body_inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """The body's inputs (z, ...) for x [n,d,h,w]."""
        z = as_tuple(self.prefix(self.cast(x)))
        if not self.gates:
            return z
        return tuple(F.relu(value) if gate else value for value, gate in zip(z, self.gates, strict=True))

    def body_value(self, z: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """The logit of each target [B], from the body's inputs."""
        return self.head_value(self.body(*z), target)

    def head_value(self, h: Tensor, target: Tensor) -> Tensor:
        """The logit of each target [B], from the body's result h. A head computes the targets' rows alone."""
        if self.head is None:
            return h.gather(1, target[:, None])[:, 0]
        value = (h * self.head.weight[target]).sum(dim=1)
        return value if self.head.bias is None else value + self.head.bias[target]
