"""Implementations of the operators: reference (the definition), native (csrc/cpu), cuda (csrc/cuda), triton."""
