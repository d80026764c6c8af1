"""An extractor in the parts that input gradients need."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.engine.splitting import tensors
from cortex_fast.engine.watching import Weights


@dataclass(frozen=True, eq=False)
class Parts:
    """An eval-mode extractor f_Y: E [B,d,h,w] -> logits [B,classes], in parts: prefix, then body, then head.

    prefix (x -> z, ...) is affine and linear is the same without its constants; gates: which z go through a ReLU then,
    none where empty; body (z, ... -> h); head the last linear layer, or None where h are the logits.
    notes: what was done, and what was not and why. bytes_of_copy: about what the activations of one noisy copy take
    while its gradient is computed.
    layout: the memory format of what goes in. scale: gradients are computed so much larger, for float16's sake.
    extractor: the user's module, which is not run; module: a stand-in that shares its weights and gives its logits.
    weights: those it had; classes: how many, where known; shape: [d,h,w], where the parts are for that alone.
    exact: float32 is not rounded to tf32.
    """

    extractor: nn.Module
    module: nn.Module
    prefix: nn.Module
    linear: nn.Module
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
        """x [n,d,h,w] as the parts take it: in their dtype and memory format."""
        return x.to(self.dtype, memory_format=self.layout)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the body takes, of x [n,d,h,w]."""
        z = tensors(self.prefix(self.cast(x)))
        if not self.gates:
            return z
        return tuple(F.relu(value) if gate else value for value, gate in zip(z, self.gates, strict=True))


def target_value(parts: Parts, z: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """The logit of each target [B], of what the body takes. A head gives only the rows that are asked for."""
    return value_of(parts, parts.body(*z), target)


def value_of(parts: Parts, h: Tensor, target: Tensor) -> Tensor:
    """The logit of each target [B], of what the body gives."""
    if parts.head is None:
        return h.gather(1, target[:, None])[:, 0]
    value = (h * parts.head.weight[target]).sum(dim=1)
    return value if parts.head.bias is None else value + parts.head.bias[target]


def total(values: Tensor) -> Tensor:
    """Their sum, at least in float32: its gradient in each is 1."""
    return values.to(torch.promote_types(values.dtype, torch.float32)).sum()
