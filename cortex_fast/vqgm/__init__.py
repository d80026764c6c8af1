"""Vector-quantised generative models."""

from cortex_fast.vqgm.adapters import adapt
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.model import VQGM, Model, Sampler, UnsupportedError
from cortex_fast.vqgm.taming import taming_model
from cortex_fast.vqgm.transformer import GPT

__all__ = ["GPT", "VQGM", "Model", "Sampler", "UnsupportedError", "VQModel", "adapt", "taming_model"]
