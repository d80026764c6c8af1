"""The published names build extractors with the published state dict."""

import json
from pathlib import Path

import pytest
import torch

from cortex_fast.compat import cortex

SHAPES = json.loads((Path(__file__).parents[2] / "official" / "state_dict_shapes.json").read_text())


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_state_dicts_are_the_published_ones(number):
    with torch.device("meta"):
        model = getattr(cortex, f"ClassificationNet{number}")(1000)
    expected = SHAPES[f"ClassificationNet{number}"]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected


def test_a_transformer_of_other_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers: expected 12 for embed_dim 512, got 6"):
        cortex.ClassificationNet4(1000, num_layers=6)
