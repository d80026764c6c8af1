"""token_saliency on noisy gradients of 4 images at paper scale: every CPU backend, validated before it is timed.

Floor: one read of the gradients. `make bench` runs this; compare the medians within one run.
"""

import pytest
import torch

from cortex_fast import ops

SHAPE = (4, 20, 256, 16, 16)
IMPLS = ("reference", "native")
LAYOUTS = ("contiguous", "channels_last")


def gradients(layout: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if layout == "contiguous":
        return torch.randn(SHAPE, generator=generator)
    batch, samples, channels, *grid = SHAPE
    return torch.randn((batch, samples, *grid, channels), generator=generator).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl", IMPLS)
def test_token_saliency(benchmark, impl, layout):
    grads = gradients(layout)
    wanted = grads.double().mean(dim=1).abs().amax(dim=1)
    error = float((ops.token_saliency(grads, impl=impl).double() - wanted).abs().max())
    assert error < 1e-6
    benchmark.group = f"token_saliency {layout}"
    benchmark.extra_info.update(bytes=grads.numel() * 4, max_error=error, threads=torch.get_num_threads())
    benchmark(ops.token_saliency, grads, impl=impl)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_read(benchmark, layout):
    """The floor, in the same run: torch's sum over everything."""
    benchmark.group = f"token_saliency {layout}"
    benchmark(gradients(layout).sum)
