"""The explanations: saliency of tokens, tokens of concepts, token selection, and its baselines."""

from cortex_fast.explain.baselines import draw_tokens, optimise_embedding
from cortex_fast.explain.concept_selection import select_concepts
from cortex_fast.explain.concepts import ConceptExplanations, explain_concepts
from cortex_fast.explain.recipes import PAPER, PUBLISHED, Recipe, Schedule
from cortex_fast.explain.results import Change, TokenSelection
from cortex_fast.explain.saliency import smoothgrad, token_saliency, top_tokens
from cortex_fast.explain.scores import Scores, score_tokens
from cortex_fast.explain.selection import select_tokens

__all__ = [
    "PAPER",
    "PUBLISHED",
    "Change",
    "ConceptExplanations",
    "Recipe",
    "Schedule",
    "Scores",
    "TokenSelection",
    "draw_tokens",
    "explain_concepts",
    "optimise_embedding",
    "score_tokens",
    "select_concepts",
    "select_tokens",
    "smoothgrad",
    "token_saliency",
    "top_tokens",
]
