"""The VQGAN modules: published names and sizes, and the results of encode and decode."""

import pytest
import torch

from cortex_fast.vqgm import UnsupportedError, VQModel, taming_model
from tests.vqgm.f16_16384 import F16_16384

SMALL = {
    "n_embed": 20,
    "embed_dim": 6,
    "ddconfig": {
        "z_channels": 8,
        "resolution": 16,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
    },
}


def test_paper_scale_has_the_published_keys_and_parameters():
    with torch.device("meta"):
        model = VQModel(**F16_16384)
    state = model.state_dict()
    assert len(state) == 343
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 76.07
    assert round(sum(parameter.numel() for parameter in model.decoder.parameters()) / 1e6, 1) == 42.4
    for key, shape in {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.4.attn.1.proj_out.bias": (512,),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "decoder.up.4.attn.2.norm.weight": (512,),
        "decoder.up.1.upsample.conv.weight": (128, 128, 3, 3),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.norm_out.bias": (128,),
        "quantize.embedding.weight": (16384, 256),
        "quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }.items():
        assert tuple(state[key].shape) == shape, key


def model():
    torch.manual_seed(0)
    return taming_model(VQModel(**SMALL), None, grid=8, fingerprint="test")


def test_encode_gives_the_nearest_codes_of_the_latents():
    vqgm, images = model(), torch.rand(3, 3, 16, 16)
    tokens = vqgm.encode(images, batch_size=2)
    latents = vqgm.latents(images * 2 - 1)
    distance = (latents.permute(0, 2, 3, 1)[..., None, :] - vqgm.codebook).square().sum(dim=-1)
    assert tokens.shape == (3, 8, 8) and torch.equal(tokens, distance.argmin(dim=-1))


def test_decode_takes_tokens_or_embeddings_in_any_batch():
    vqgm, tokens = model(), torch.randint(20, (5, 8, 8))
    whole = vqgm.decode(tokens)
    assert whole.shape == (5, 3, 16, 16) and whole.min() >= 0 and whole.max() <= 1
    torch.testing.assert_close(vqgm.decode(tokens, batch_size=2), whole)
    torch.testing.assert_close(vqgm.decode(vqgm.embed(tokens)), whole)
    raw = vqgm.pixels(vqgm.embed(tokens))
    torch.testing.assert_close(whole, ((raw + 1) / 2).clamp(0, 1))
    assert vqgm.decode(tokens[:0]).shape[0] == 0 and vqgm.encode(torch.rand(0, 3, 16, 16)).shape == (0, 8, 8)


def test_bad_arguments_and_missing_prior_are_named():
    vqgm = model()
    with pytest.raises(ValueError, match=r"^tokens: .*\[0, 20\)"):
        vqgm.decode(torch.full((1, 8, 8), 20))
    with pytest.raises(ValueError, match=r"^images:"):
        vqgm.encode(torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match=r"^images: expected the size that gives a grid of 8"):
        vqgm.encode(torch.rand(1, 3, 32, 32))
    with pytest.raises(UnsupportedError, match=r"^sample: .*no prior"):
        vqgm.sample(0, 2)


def test_any_float_dtype_is_taken_and_other_inputs_are_refused():
    vqgm = model()
    images = torch.randint(0, 256, (2, 3, 16, 16)) / 256  # as float16 holds them exactly
    tokens = vqgm.encode(images)
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(vqgm.encode(images.to(dtype)), tokens)
        torch.testing.assert_close(vqgm.decode(vqgm.embed(tokens).to(dtype)), vqgm.decode(tokens), rtol=0, atol=1e-3)
    for off, message in ((images * 2 - 1, "-1 to"), (images * 255, "0 to 2"), (images.log() - images.log(), "nan")):
        with pytest.raises(ValueError, match=rf"^images: expected values in \[0, 1\], got {message}"):
            vqgm.encode(off)
    with pytest.raises(ValueError, match=r"^source: expected 6 channels, got \[1, 5, 8, 8\]"):
        vqgm.decode(torch.zeros(1, 5, 8, 8))
    with pytest.raises(TypeError, match=r"^tokens: expected a torch\.Tensor, got list"):
        vqgm.decode(tokens.tolist())
    assert vqgm.decode(tokens[:0]).shape == (0, 3, 16, 16) and vqgm.encode(images[:0]).shape == (0, 8, 8)
