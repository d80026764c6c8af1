"""How gradients of an extractor are computed."""

from cortex_fast.engine.gradients import frozen, target_gradient, target_logits

__all__ = ["frozen", "target_gradient", "target_logits"]
