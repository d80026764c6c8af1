"""cortex-fast: concept explanations of vector-quantised generative models by their codebook tokens (CORTEX), fast."""

from cortex_fast.data import ResultFileError, TokenStore, embed
from cortex_fast.explain import (
    ConceptExplanations,
    TokenSelection,
    explain_concepts,
    optimise_embedding,
    score_tokens,
    select_tokens,
    smoothgrad,
    token_saliency,
    top_tokens,
)
from cortex_fast.version import __version__

__all__ = [
    "ConceptExplanations",
    "ResultFileError",
    "TokenSelection",
    "TokenStore",
    "__version__",
    "embed",
    "explain_concepts",
    "optimise_embedding",
    "score_tokens",
    "select_tokens",
    "smoothgrad",
    "token_saliency",
    "top_tokens",
]
