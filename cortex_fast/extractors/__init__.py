"""Information extractors f_Y: classifiers of token-based embeddings."""

from cortex_fast.extractors.build import NAMES, build
from cortex_fast.extractors.training import Recipe, accuracy, train_extractor

__all__ = ["NAMES", "Recipe", "accuracy", "build", "train_extractor"]
