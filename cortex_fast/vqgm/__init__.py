"""Vector-quantised generative models."""

from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.model import TamingVQGM
from cortex_fast.vqgm.transformer import GPT

__all__ = ["GPT", "TamingVQGM", "VQModel"]
