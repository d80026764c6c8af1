"""Information extractors f_Y: classifiers of token-based embeddings."""

from cortex_fast.extractors.build import build
from cortex_fast.extractors.training import Recipe, accuracy, train_extractor

__all__ = ["Recipe", "accuracy", "build", "train_extractor"]
