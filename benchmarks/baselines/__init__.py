"""Implementations that the operators are timed against, beyond those in this package."""
