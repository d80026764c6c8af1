"""The operators, one file each: checks, torch.library registration, autograd and the choice of backend.

Two files differ: `descent_step` is plain PyTorch without backends, and `random_stream` has backends but is not
registered with torch.library.
"""

from cortex_fast.ops.concept_counts import concept_counts
from cortex_fast.ops.conv3x3 import Filters, conv3x3, prepare_filters
from cortex_fast.ops.gather_error import gather_error
from cortex_fast.ops.gather_error_of_files import gather_error_of_files
from cortex_fast.ops.gumbel_codebook import gumbel_codebook, gumbel_codebook_with_row_stats
from cortex_fast.ops.gumbel_codebook_step import gumbel_codebook_step
from cortex_fast.ops.nearest_code import nearest_code
from cortex_fast.ops.saliency_counts import saliency_counts
from cortex_fast.ops.smoothgrad_noise import smoothgrad_noise
from cortex_fast.ops.token_saliency import token_saliency

__all__ = [
    "Filters",
    "concept_counts",
    "conv3x3",
    "gather_error",
    "gather_error_of_files",
    "gumbel_codebook",
    "gumbel_codebook_step",
    "gumbel_codebook_with_row_stats",
    "nearest_code",
    "prepare_filters",
    "saliency_counts",
    "smoothgrad_noise",
    "token_saliency",
]
