"""Why an extractor cannot be recorded, or cannot be prepared at all."""


class UntraceableError(ValueError):
    """The extractor's forward is no fixed graph of operators; the message states the reason.

    by_value: the forward reads the values of its input, so images or copies of one batch may change each other's
    results.
    """

    def __init__(self, reason: str, *, by_value: bool = False) -> None:
        super().__init__(reason)
        self.by_value = by_value


class WritesError(RuntimeError):
    """The forward writes into a tensor that existed before it, most likely one of the model's own."""


class CachingError(ValueError):
    """The extractor's first forward stores results that later ones read."""


class NoLogitsError(ValueError):
    """The extractor's result holds no logits [B, classes] at the expected position."""
