"""adapt: a class's name and module select the adapter, and for others the error lists the known ones."""

import dataclasses

import pytest
import torch
from torch import nn

from cortex_fast.vqgm import Model, adapt
from cortex_fast.vqgm.adapters import unit_range


def test_the_error_for_an_unknown_class_lists_the_known_ones():
    with pytest.raises(TypeError, match=r"VQModel \(diffusers\).*JanusVQVAE.*IBQ.*got torch\.nn\..*Linear"):
        adapt(nn.Linear(2, 2))
    elsewhere = type("VQModel", (nn.Module,), {"__module__": "mine.models"})
    with pytest.raises(TypeError, match=r"got mine\.models\.VQModel"):
        adapt(elsewhere())


def test_pixels_of_unit_range_reach_the_model_unchanged():
    seen = []
    model = Model(torch.eye(3), 2, "x", latents=lambda x: seen.append(x) or x, pixels=lambda E: E)
    images = torch.rand(1, 3, 2, 2)
    adapted = unit_range(model)
    adapted.encode(images)
    torch.testing.assert_close(seen[0], images)
    torch.testing.assert_close(adapted.decode(images * 2 - 0.5), (images * 2 - 0.5).clamp(0, 1))
    assert unit_range(dataclasses.replace(model, latents=None)).latents is None
