"""saliency_counts: TSV and its counts are the two operators' definitions, one after the other."""

import pytest
import torch
from torch import Tensor

from cortex_fast.ops import saliency_counts
from cortex_fast.ops.backends import BackendUnavailableError
from tests.ops.backends_under_test import random, skip_in_interpreter
from tests.ops.test_concept_counts import formula


def given(
    *shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, tokens and labels."""
    grads = random(*shape, dtype=dtype)
    if channels_last:
        grads = grads.movedim(2, -1).contiguous().movedim(-1, 2)
    tokens = (random(shape[0], *shape[3:], seed=1).abs() * 5).to(torch.uint16)
    return grads, tokens, torch.arange(shape[0]) % 2


SIZES = {"num_concepts": 2, "codebook_size": 40}


@pytest.mark.parametrize("shape", [(3, 2, 5, 4, 4), (2, 3, 70, 17, 19), (1, 1, 1, 1, 1), (0, 2, 3, 4, 4)], ids=str)
@pytest.mark.parametrize("per", ["occurrence", "image"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_is_one_formula_after_the_other(impl: str, shape: tuple[int, ...], per: str, channels_last: bool) -> None:
    if shape[3] * shape[4] > 256:
        skip_in_interpreter(impl)
    grads, tokens, labels = given(*shape, channels_last=channels_last)
    top_n = min(7, shape[3] * shape[4])
    tsv, counts = saliency_counts(grads, tokens, labels, top_n=top_n, per=per, impl=impl, **SIZES)
    torch.testing.assert_close(tsv.double(), grads.double().mean(dim=1).abs().amax(dim=1), rtol=1e-6, atol=1e-7)
    assert counts.tolist() == formula(tsv, tokens.long(), labels, top_n, (2, 40), per).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_reductions_of_half_precision(impl: str, dtype: torch.dtype, reduction: str) -> None:
    grads, tokens, labels = given(2, 3, 9, 3, 5, dtype=dtype)
    tsv, counts = saliency_counts(grads, tokens, labels, top_n=4, reduction=reduction, impl=impl, **SIZES)
    mean = grads.double().mean(dim=1)
    expected = mean.amax(dim=1) if reduction == "max" else mean.mean(dim=1)
    torch.testing.assert_close(tsv.double(), expected, rtol=1e-6, atol=1e-7)
    assert counts.tolist() == formula(tsv, tokens.long(), labels, 4, (2, 40), "occurrence").tolist()


def test_refuses_what_the_two_operators_refuse(impl: str) -> None:
    grads, tokens, labels = given(2, 3, 4, 2, 2)
    spoiled = grads.clone()
    spoiled[1, 2, 3, 1, 0] = torch.nan
    for wrong, message in (
        ({"grads": grads[0]}, "^grads: expected"),
        ({"grads": grads[:, :0]}, "^grads: expected at least one sample"),
        ({"grads": spoiled}, "^tsv: expected numbers, got NaN"),
        ({"tokens": tokens[:, :1]}, "^tokens: expected"),
        ({"tokens": tokens.long() + 40}, "^tokens: expected"),
        ({"labels": labels + 1}, "^labels: expected"),
        ({"top_n": 5}, "^top_n: expected"),
        ({"reduction": "median"}, "^reduction: expected"),
    ):
        arguments = {"grads": grads, "tokens": tokens, "labels": labels, "top_n": 3, **SIZES, "impl": impl, **wrong}
        with pytest.raises(ValueError, match=message):
            saliency_counts(**arguments)


def test_float64_has_only_the_reference() -> None:
    grads, tokens, labels = given(1, 2, 3, 2, 2, dtype=torch.float64)
    tsv, _ = saliency_counts(grads, tokens, labels, top_n=1, **SIZES)
    assert tsv.dtype == torch.float64
    with pytest.raises(BackendUnavailableError, match="saliency_counts: impl='native' cannot serve"):
        saliency_counts(grads, tokens, labels, top_n=1, impl="native", **SIZES)


def test_opcheck(impl: str) -> None:
    grads, tokens, labels = given(2, 3, 4, 2, 2)
    arguments = (grads, tokens, labels, 3, 2, 40, "absmax", "image", impl)
    checked = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.cortex_fast.saliency_counts.default, arguments, test_utils=checked)
