"""The published CORTEX code's names, with its arguments, shapes and conventions, on this package's engine.

`python -m cortex_fast.compat.cortex run SCRIPT.py ARGS...` runs one of its scripts with these in place of its own.
"""

from cortex_fast.compat.cortex.activation import (
    generate_max_activation_image_embedding,
    generate_max_activation_image_token,
)
from cortex_fast.compat.cortex.networks import (
    ClassificationNet1,
    ClassificationNet2,
    ClassificationNet3,
    ClassificationNet4,
)
from cortex_fast.compat.cortex.saliency import AverageSaliency, SingleSaliency
from cortex_fast.compat.cortex.tokens import create_mask, decode_input_embedding, gumbel_softmax, sample_gumbel

__all__ = [
    "AverageSaliency",
    "ClassificationNet1",
    "ClassificationNet2",
    "ClassificationNet3",
    "ClassificationNet4",
    "SingleSaliency",
    "create_mask",
    "decode_input_embedding",
    "generate_max_activation_image_embedding",
    "generate_max_activation_image_token",
    "gumbel_softmax",
    "sample_gumbel",
]
