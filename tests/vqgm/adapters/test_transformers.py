"""The tokenizers of transformers: the adapters compute what the library does."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from cortex_fast.vqgm import UnsupportedError, adapt
from tests.vqgm.adapters.published import filled

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 6, "latent_channels": 6}


def library(name, spread=1.0, **settings):
    pytest.importorskip("transformers", reason="transformers is not installed")
    # straight from its file: the package's own names import far more
    module = importlib.import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")
    model = getattr(module, f"{name}VQVAE")(getattr(module, f"{name}VQVAEConfig")(**{**SMALL, **settings})).eval()
    values = filled({key: tuple(value.shape) for key, value in model.named_parameters()})
    model.load_state_dict(values, strict=False)  # the library's own would leave every latent near zero
    model.quantize.embedding.weight.data *= spread
    return model


def near(got, wanted):
    torch.testing.assert_close(got, ((wanted + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_janus():
    model = library("Janus", num_patches=8, num_embeddings=40)
    adapted, codes = adapt(model), model.quantize.embedding.weight
    tokens = model.encode(IMAGES * 2 - 1).image_tokens.view(2, 8, 8)
    assert len(tokens.unique()) > 10 and adapted.grid == 8
    torch.testing.assert_close(adapted.codebook, codes / codes.norm(dim=1, keepdim=True))
    torch.testing.assert_close(adapted.encode(IMAGES), tokens, rtol=0, atol=0)
    latents = model.quant_conv(model.encoder(IMAGES * 2 - 1)).permute(0, 2, 3, 1)
    assert (torch.cdist(latents.flatten(0, 2), F.normalize(codes)).argmin(1) != tokens.flatten()).any()  # not those
    near(adapted.decode(tokens), model.decode(tokens.flatten(1)))
    torch.testing.assert_close(
        adapted.embed(tokens), model.quantize.get_codebook_entry(tokens.flatten(1)), rtol=0, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize(("name", "settings"), [("Janus", {"num_patches": 8}), ("Chameleon", {"resolution": 16})])
def test_images_of_other_sizes_give_other_grids(name, settings):
    model = library(name, num_embeddings=40, **settings)
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    tokens = model.encode(images * 2 - 1).image_tokens.view(2, 6, 10)
    assert len(tokens.unique()) > 10
    assert torch.equal(adapt(model).encode(images), tokens)
    assert torch.equal(adapt(model, grid=(6, 10)).encode(images), tokens)


@torch.no_grad()
def test_emu3():
    model = library("Emu3", 0.2, codebook_size=4000, hidden_size=32, attn_resolutions=[1], temporal_downsample_factor=4)
    with pytest.raises(ValueError, match="grid: expected a whole number"):
        adapt(model)
    adapted = adapt(model, grid=8)
    sizes = torch.tensor([[16, 16]]).expand(2, 2)
    tokens = torch.stack(model.encode(IMAGES * 2 - 1, sizes).image_tokens)
    assert len(tokens.unique()) > 10 and adapted.codebook.shape == (4000, 6)
    torch.testing.assert_close(adapted.encode(IMAGES), tokens, rtol=0, atol=0)
    near(adapted.decode(tokens), model.decode(tokens))


@torch.no_grad()
def test_chameleon():
    model = library("Chameleon", resolution=16, num_embeddings=40)
    adapted = adapt(model)
    tokens = model.encode(IMAGES * 2 - 1).image_tokens.view(2, 8, 8)
    assert len(tokens.unique()) > 10 and adapted.grid == 8
    torch.testing.assert_close(adapted.encode(IMAGES), tokens, rtol=0, atol=0)
    with pytest.raises(UnsupportedError, match="decode: transformers' ChameleonVQVAE has no decoder"):
        adapted.decode(tokens)
