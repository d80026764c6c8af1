"""TSV and its counts in one pass over the gradients are the two operators one after the other."""

import pytest
import torch

from cortex_fast.kernels import native
from cortex_fast.kernels.cuda import concept_counts as kernel
from cortex_fast.ops import concept_counts, token_saliency
from tests.ops.backends_under_test import WHY_NO_CUDA, random
from tests.ops.conftest import cuda_there, running

if native.UNAVAILABLE is not None or WHY_NO_CUDA is not None:
    pytest.skip(str(native.UNAVAILABLE or WHY_NO_CUDA), allow_module_level=True)


@pytest.mark.parametrize("shape", [(3, 2, 5, 4, 4), (2, 3, 70, 17, 19), (1, 1, 1, 1, 1), (0, 2, 3, 4, 4)])
@pytest.mark.parametrize("per", ["occurrence", "image"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_one_operator_after_the_other(shape: tuple[int, ...], per: str, channels_last: bool) -> None:
    grads, labels = random(*shape), torch.arange(shape[0]) % 2
    if channels_last:
        grads = grads.movedim(2, -1).contiguous().movedim(-1, 2)
    tokens = (random(shape[0], *shape[3:], seed=1).abs() * 5).to(torch.uint16)
    sizes = (min(7, shape[3] * shape[4]), 2, 40)
    with running(None), cuda_there():
        tsv, counts = kernel.of_gradients(grads, "absmax", tokens, labels, *sizes, per)
    torch.testing.assert_close(tsv, token_saliency(grads, impl="reference"))
    options = dict(zip(("top_n", "num_concepts", "codebook_size"), sizes, strict=True))
    assert torch.equal(counts, concept_counts(tsv, tokens, labels, per=per, impl="reference", **options))


def test_tokens_and_labels_out_of_range_are_left_out() -> None:
    grads = torch.ones(3, 1, 1, 1, 4)
    tokens, labels = torch.tensor([[[0, 9, -1, 2]]]).expand(3, 1, 4), torch.tensor([0, 5, -1])
    with running(None), cuda_there():
        _, counts = kernel.of_gradients(grads, "absmax", tokens, labels, 4, 1, 3, "occurrence")
    assert counts.tolist() == [[1, 0, 1]]
