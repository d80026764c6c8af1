"""Memory that the gradient of a prepared extractor takes."""

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from cortex_fast.engine.prepared import Prepared
from cortex_fast.engine.trial_images import TrialImages

_TRANSIENT_TENSORS = 5  # of the largest size that exist at once, beside those that autograd saves


def with_measured_memory(prepared: Prepared, images: TrialImages) -> Prepared:
    """The extractor with `bytes_of_copy`: what autograd saves for one more copy, and a few of the largest tensors."""
    saved_by_single, _ = _bytes_of_pass(prepared, images.more[:1])
    saved_by_pair, largest = _bytes_of_pass(prepared, images.more[:2])
    bytes_of_copy = saved_by_pair - saved_by_single + _TRANSIENT_TENSORS * largest // 2
    return replace(prepared, bytes_of_copy=max(1, bytes_of_copy))


def _bytes_of_pass(prepared: Prepared, x: Tensor) -> tuple[int, int]:
    """The bytes that the body saves for its backward pass, and the size of the largest saved tensor that grows with the
    batch."""
    saved: dict[int, int] = {}
    sizes = [x.nbytes]

    def note_size(tensor: Tensor) -> Tensor:
        with suppress(RuntimeError, NotImplementedError):  # a wrapper, or sparse: it has no storage
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            if tensor.ndim and len(tensor) == len(x):
                sizes.append(tensor.nbytes)
        return tensor.detach()  # not the tensor itself: its own node would hold it, and nothing free it

    with torch.enable_grad():
        leaves = tuple(z.detach().requires_grad_(True) for z in prepared.body_inputs(x))
        with torch.autograd.graph.saved_tensors_hooks(note_size, lambda tensor: tensor):
            prepared.body(*leaves)
    return sum(saved.values()), max(sizes + [leaf.nbytes for leaf in leaves])
