"""Vector-quantised generative models."""

from cortex_fast.vqgm.adapters import adapt
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.checkpoints import CheckpointError
from cortex_fast.vqgm.loading import load
from cortex_fast.vqgm.model import VQGM, Model, Sampler, UnsupportedError
from cortex_fast.vqgm.sampling_store import sample_store
from cortex_fast.vqgm.taming import taming_model
from cortex_fast.vqgm.transformer import GPT

__all__ = [
    "GPT",
    "VQGM",
    "CheckpointError",
    "Model",
    "Sampler",
    "UnsupportedError",
    "VQModel",
    "adapt",
    "load",
    "sample_store",
    "taming_model",
]
