"""The shared random stream, for whoever draws outside an operator: starts of optimisations, sampled tokens."""

from cortex_fast.kernels.reference.philox import gumbel, normal, sampling_gumbel

__all__ = ["gumbel", "normal", "sampling_gumbel"]
