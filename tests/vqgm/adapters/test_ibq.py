"""IBQ's tokenizers: the published layout, figures of the published code, and its quantiser's formula.

The code is in no package. ibq_small.txt is its state dict at a small size, and the golden tokens and pixels were
computed by it with the weights and the image of `published`.
"""

import pytest
import torch

from cortex_fast.vqgm import VQModel, adapt, load
from cortex_fast.vqgm.adapters.ibq import largest_product
from tests.vqgm.adapters.published import filled, layout, picture

TOKENS = [[36, 6, 33, 48], [45, 55, 60, 61], [6, 46, 55, 61], [6, 36, 45, 27]]  # the nearest codes are others
PIXELS = (0.70513, 0.52363, 0.61381, 0.45193, 0.55114, 0.59072, 0.70346, 0.27872, 0.94673, 1.0, 0.0, 0.52065)


@pytest.fixture(scope="module")
def state():
    return filled(layout("ibq_small"))


def test_the_published_code_s_tokens_and_pixels(state, tmp_path):
    torch.save({"state_dict": {**state, "loss.discriminator.weight": torch.zeros(3)}, "epoch": 1}, tmp_path / "i.ckpt")
    model = load("ibq", tmp_path / "i.ckpt", grid=4)
    assert model.codebook.shape == (64, 8)
    assert model.encode(picture(64))[0].tolist() == TOKENS
    pixels = model.decode(torch.tensor([TOKENS]))
    torch.testing.assert_close(pixels[0, 0, ::21, ::21].flatten()[:12], torch.tensor(PIXELS), rtol=0, atol=1e-4)
    assert load("ibq", tmp_path / "i.ckpt").grid == 16


def test_the_averaged_weights_are_taken_by_default(state, tmp_path):
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in state.items()}
    extra = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    torch.save({"state_dict": {**zeros, **averages, **extra}}, tmp_path / "i.ckpt")
    assert load("ibq", tmp_path / "i.ckpt", grid=4).encode(picture(64))[0].tolist() == TOKENS
    assert not load("ibq", tmp_path / "i.ckpt", averaged=False).codebook.any()


def test_the_published_class_is_recognised(state):
    model = stand_in(state)
    assert adapt(model).encode(picture(64))[0].tolist() == TOKENS
    model.quantize.remap = "used.npy"
    with pytest.raises(ValueError, match=r"without remap, got 'used\.npy'"):
        adapt(model)


def stand_in(state):
    """Our modules under the published class's name and module."""
    ddconfig = {"z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1, 2]}
    ddconfig |= {"num_res_blocks": 1, "attn_resolutions": [4]}
    model = type("IBQ", (VQModel,), {"__module__": "src.IBQ.models.ibqgan"})(n_embed=64, embed_dim=8, ddconfig=ddconfig)
    model.load_state_dict(state)
    model.quantize.remap, model.encoder.resolution, model.encoder.num_resolutions = None, 64, 5
    return model


@pytest.mark.parametrize(("rows", "codes"), [(1, 1), (7, 8191), (1025, 8193), (0, 3)])
def test_the_largest_product_across_the_blocks_of_rows_and_codes(rows, codes):
    generator = torch.Generator().manual_seed(0)
    z, codebook = torch.randn(rows, 4, generator=generator), torch.randn(codes, 4, generator=generator)
    assert largest_product(z, codebook).tolist() == (z.double() @ codebook.double().T).argmax(dim=1).tolist()


def test_among_equal_products_the_lowest_index():
    codebook = torch.zeros(20000, 2)
    codebook[[9, 12, 10000]] = 1
    assert largest_product(torch.ones(2, 2), codebook).tolist() == [9, 9]
