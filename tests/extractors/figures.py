"""Writes logits and gradients of extractors with the golden figures' weights: fill.py, the .npz to write, names."""

import importlib.util
import sys

import numpy as np
import torch

from cortex_fast.extractors import build


def figures_of(fill, name: str) -> dict[str, np.ndarray]:
    with torch.device("meta"):  # no numbers drawn that are then written over
        extractor = build(name)
    extractor = fill.fill_(extractor.to_empty(device="cpu")).requires_grad_(False)
    x, target = fill.inputs(3)
    x.requires_grad_(True)
    logits = extractor(x)
    logits.gather(1, target[:, None]).sum().backward()
    return {
        f"{name}.logits": logits.detach().numpy(),
        f"{name}.grad_absmax": x.grad.abs().amax(dim=1).numpy(),
        f"{name}.grad_max": x.grad.amax(dim=1).numpy(),
        f"{name}.grad_mean": x.grad.mean(dim=1).numpy(),
    }


if __name__ == "__main__":
    path, to, *names = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("official_fill", path)
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    np.savez(to, **{key: value for name in names for key, value in figures_of(fill, name).items()})
