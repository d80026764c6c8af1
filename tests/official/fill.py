"""Deterministic weights and inputs, so that two implementations of one network can be compared without a checkpoint.

`fill_(module)` overwrites every parameter and buffer of `module`, in the sorted order of their state-dict names, from a
NumPy generator seeded by the CRC-32 of the name. `inputs(n)` gives n token-based embeddings [n, 256, 16, 16] and
targets.
"""

import zlib

import numpy as np
import torch


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) <= 1:
        centre = 1.0 if name.endswith("weight") else 0.0  # normalisation scales near 1, everything else near 0
        return (centre + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)


@torch.no_grad()
def fill_(module: torch.nn.Module) -> torch.nn.Module:
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape))))
    return module.eval()


def inputs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((n, 256, 16, 16)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 1000, n))
