"""Information extractors f_Y: classifiers of token-based embeddings."""

from cortex_fast.extractors.build import NAMES, build
from cortex_fast.extractors.files import load_extractor, save_extractor
from cortex_fast.extractors.recipe import TrainingRecipe
from cortex_fast.extractors.testing import TOP, accuracy, mean_loss
from cortex_fast.extractors.training import train_extractor

Recipe = TrainingRecipe  # its name in earlier versions

__all__ = [
    "NAMES",
    "TOP",
    "Recipe",
    "TrainingRecipe",
    "accuracy",
    "build",
    "load_extractor",
    "mean_loss",
    "save_extractor",
    "train_extractor",
]
