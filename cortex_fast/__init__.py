"""cortex-fast: concept explanations of vector-quantised generative models by their codebook tokens (CORTEX), fast."""

from cortex_fast.data import ResultFileError, TokenStore, embed
from cortex_fast.engine import prepare
from cortex_fast.explain import (
    PAPER,
    PUBLISHED,
    ConceptExplanations,
    Recipe,
    Schedule,
    Scores,
    TokenSelection,
    draw_tokens,
    explain_concepts,
    optimise_embedding,
    score_tokens,
    select_concepts,
    select_tokens,
    smoothgrad,
    token_saliency,
    top_tokens,
)
from cortex_fast.version import __version__

__all__ = [
    "PAPER",
    "PUBLISHED",
    "ConceptExplanations",
    "Recipe",
    "ResultFileError",
    "Schedule",
    "Scores",
    "TokenSelection",
    "TokenStore",
    "__version__",
    "draw_tokens",
    "embed",
    "explain_concepts",
    "optimise_embedding",
    "prepare",
    "score_tokens",
    "select_concepts",
    "select_tokens",
    "smoothgrad",
    "token_saliency",
    "top_tokens",
]
