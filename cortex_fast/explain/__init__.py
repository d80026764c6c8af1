"""The explanations: saliency of tokens, tokens of concepts, token selection, and its baseline."""

from cortex_fast.explain.baselines import optimise_embedding
from cortex_fast.explain.concepts import ConceptExplanations, explain_concepts, score_tokens
from cortex_fast.explain.saliency import smoothgrad, token_saliency, top_tokens
from cortex_fast.explain.selection import TokenSelection, select_tokens

__all__ = [
    "ConceptExplanations",
    "TokenSelection",
    "explain_concepts",
    "optimise_embedding",
    "score_tokens",
    "select_tokens",
    "smoothgrad",
    "token_saliency",
    "top_tokens",
]
