"""Implementations of the operators: reference (the definition), native (csrc/), triton."""
