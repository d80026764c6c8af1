"""How gradients of an extractor are computed."""

from cortex_fast.engine.gradients import frozen, ordinary, target_gradient, target_logits

__all__ = ["frozen", "ordinary", "target_gradient", "target_logits"]
