"""The operators: one file each, with checks, torch.library registration, autograd and the choice of backend."""

from cortex_fast.ops.concept_counts import concept_counts
from cortex_fast.ops.gumbel_codebook import gumbel_codebook
from cortex_fast.ops.gumbel_codebook_step import gumbel_codebook_step
from cortex_fast.ops.nearest_code import nearest_code
from cortex_fast.ops.smoothgrad_noise import smoothgrad_noise
from cortex_fast.ops.token_saliency import token_saliency

__all__ = [
    "concept_counts",
    "gumbel_codebook",
    "gumbel_codebook_step",
    "nearest_code",
    "smoothgrad_noise",
    "token_saliency",
]
