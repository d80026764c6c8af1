"""Composites: reproducible, balanced, and with the object's true mask."""

import numpy as np
import pytest

from cortex_fast.zoo.composites import class_names, make_composites


def test_twelve_classes():
    names = class_names()
    assert len(names) == len(set(names)) == 12 and "penguin" in names


def test_a_composite_depends_on_its_number_alone():
    whole, part = make_composites("train", 0, 30), make_composites("train", 17, 5)
    for field in ("images", "labels", "masks", "styles"):
        assert np.array_equal(getattr(whole, field)[17:22], getattr(part, field))
    assert not np.array_equal(make_composites("test", 17, 5).images, part.images)
    assert whole.labels.tolist() == [number % 12 for number in range(30)]


def test_shapes_types_and_ranges():
    composites = make_composites("demo", 5, 24)
    assert composites.images.shape == (24, 64, 64, 3) and composites.images.dtype == np.uint8
    assert composites.masks.shape == (24, 64, 64) and composites.masks.min() >= 0 and composites.masks.max() <= 1
    assert len(make_composites("demo", 0, 0).images) == 0


def test_the_background_outside_the_mask_is_smooth():
    """Backgrounds are plain, gradients or low-frequency noise: neighbours differ by little, except at objects."""
    composites = make_composites("test", 0, 60)
    bare = composites.masks == 0
    pairs = bare[:, :, 1:] & bare[:, :, :-1]
    steps = np.abs(np.diff(composites.images.astype(int), axis=2)).max(axis=3)
    assert steps[pairs].max() <= 12
    covered = composites.masks == 1
    inside = covered[:, :, 1:] & covered[:, :, :-1]
    assert np.percentile(steps[inside], 90) > 12
    share = composites.masks.mean(axis=(1, 2))
    assert share.min() > 0.02 and share.max() < 0.85


def test_unknown_split():
    with pytest.raises(ValueError, match=r"^split:"):
        make_composites("validation", 0, 1)
