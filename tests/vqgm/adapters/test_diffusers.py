"""The VQModel of diffusers: the adapter computes what the library does, and its embeddings can be explained."""

import pytest
import torch

from cortex_fast import token_saliency
from cortex_fast.vqgm import UnsupportedError, adapt
from tests.known_extractors import Linear
from tests.vqgm.adapters.published import filled

SMALL = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "vq_embed_dim": 5,
    "num_vq_embeddings": 40,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def library(**settings):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = diffusers.VQModel(**{**SMALL, **settings}).eval()
    model.load_state_dict(filled({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    return model


@torch.no_grad()
def test_it_is_the_library():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kinds = (  # settings; the range of the model's pixels; whether aMUSEd's lookup takes the place of E
        ({}, (-1, 1), False),
        ({"norm_type": "spatial", "vq_embed_dim": 4, "scaling_factor": 0.5}, (-1, 1), False),
        ({"lookup_from_codebook": True}, (0, 1), True),
    )
    for settings, (low, high), lookup in kinds:
        model = library(**settings)
        adapted = adapt(model)
        latents = model.encode(images * (high - low) + low).latents
        quantised, _, (_, _, ids) = model.quantize(latents)
        tokens = ids.view(3, 8, 8)
        assert len(tokens.unique()) > 7 and adapted.grid == 8
        torch.testing.assert_close(adapted.codebook, model.quantize.embedding.weight, rtol=0, atol=0)
        torch.testing.assert_close(adapted.encode(images), tokens, rtol=0, atol=0)
        torch.testing.assert_close(adapted.embed(tokens), quantised, rtol=0, atol=1e-6)
        if lookup:
            pictures = model.decode(tokens, force_not_quantize=True, shape=(3, 8, 8, 5)).sample
        else:
            pictures = model.decode(quantised, force_not_quantize=True).sample
        wanted = ((pictures - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(adapted.decode(tokens), wanted, rtol=0, atol=1e-5)
        # an E between the codes is decoded as it is; the library would take the nearest codes by default
        between = quantised + 0.1
        decoded = model.decoder(
            model.post_quant_conv(between), between if model.config.norm_type == "spatial" else None
        )
        wanted = ((decoded - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(adapted.decode(between), wanted, rtol=0, atol=1e-5)
        assert adapted.decode(tokens[:0]).shape == (0, 3, 16, 16)  # the library itself takes no empty batch
        with pytest.raises(UnsupportedError, match="sample: the model is an autoencoder"):
            adapted.sample(0, 1)


@torch.no_grad()
def test_images_of_other_sizes_give_other_grids():
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    for settings in ({}, {"norm_type": "spatial", "vq_embed_dim": 4}):
        model = library(**settings)
        _, _, (_, _, ids) = model.quantize(model.encode(images * 2 - 1).latents)
        tokens, adapted = ids.view(2, 6, 10), adapt(model)
        assert torch.equal(adapted.encode(images), tokens)
        pictures = model.decode(adapted.embed(tokens), force_not_quantize=True).sample
        torch.testing.assert_close(adapted.decode(tokens), ((pictures + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)
        held = adapt(model, grid=(6, 10))
        assert held.grid == (6, 10) and torch.equal(held.encode(images), tokens)
        with pytest.raises(ValueError, match=r"^images: expected the size that gives a grid of \(6, 10\)"):
            held.encode(images.transpose(2, 3))
        with pytest.raises(ValueError, match=r"^images: expected sides that are multiples of 2, got"):
            adapted.encode(images[:, :, 1:])


def test_it_can_be_explained():
    adapted = adapt(library())
    tokens = torch.randint(0, 40, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    extractor, target = Linear(5, 8, 3).eval(), torch.tensor([2, 0])
    tsv = token_saliency(extractor, adapted.embed(tokens), target, num_samples=3)
    torch.testing.assert_close(tsv, extractor.weight.detach()[target].view(2, 5, 8, 8).abs().amax(dim=1))


def test_half_precision_has_a_float32_codebook():
    adapted = adapt(library().to(torch.bfloat16), grid=4)
    assert adapted.codebook.dtype == torch.float32
    tokens = adapted.encode(torch.rand(1, 3, 8, 8))
    assert tokens.shape == (1, 4, 4) and adapted.decode(tokens).dtype == torch.float32
