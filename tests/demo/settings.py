"""The demo's settings at their smallest."""

from cortex_fast.demo import Settings

TINY = Settings(
    images_per_class=1,
    held_out_per_class=1,
    composites_per_class=1,
    num_samples=2,
    edits_per_class=1,
    edit_steps=3,
    top_k=10,
)
