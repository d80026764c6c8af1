"""LlamaGen's tokenizers: the published layout, figures of the published code, and its quantiser's formula.

The code is in no package. Its state dict at VQ-16's size is in llamagen_vq16.txt, and the golden tokens and pixels were
computed by it (commit ce98ec4), narrowed, with the weights and the image of `published`.
"""

import pytest
import torch

from cortex_fast.vqgm import CheckpointError, VQModel, adapt, load
from cortex_fast.vqgm.adapters.llamagen import taming_names
from tests.vqgm.adapters.published import filled, layout, picture
from tests.vqgm.f16_16384 import F16_16384

TOKENS = [[21, 32, 47, 58], [14, 52, 25, 59], [40, 25, 7, 15], [41, 40, 12, 25]]
PIXELS = (0.58387, 0.69988, 0.6902, 0.67233, 0.72003, 0.8757, 1.0, 0.52673, 1.0, 0.54975, 0.93683, 0.48677)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("llamagen") / "vq_ds16_c2i.pt"
    torch.save({"model": filled(layout("llamagen_vq16", narrowed=True))}, path)
    return path


def test_published_names_and_shapes_are_those_of_our_modules():
    published = {name: torch.empty(shape, device="meta") for name, shape in layout("llamagen_vq16").items()}
    assert published.pop("quantize.codebook_used").shape == (65536,)
    with torch.device("meta"):
        ours = VQModel(**{**F16_16384, "embed_dim": 8}).state_dict()
    named = taming_names(published)
    assert {name: value.shape for name, value in named.items()} == {name: value.shape for name, value in ours.items()}


def test_the_published_code_s_tokens_and_pixels(checkpoint):
    model = load("llamagen", checkpoint, grid=4)
    assert model.codebook.shape == (64, 8)
    torch.testing.assert_close(model.codebook.norm(dim=1), torch.ones(64))
    assert model.encode(picture(64))[0].tolist() == TOKENS
    pixels = model.decode(torch.tensor([TOKENS]))
    torch.testing.assert_close(pixels[0, 0, ::21, ::21].flatten()[:12], torch.tensor(PIXELS), rtol=0, atol=1e-4)
    assert load("llamagen", checkpoint).grid == 16
    assert load("llamagen", checkpoint, normalised=False).fingerprint != model.fingerprint  # another codebook


def test_the_published_class_is_recognised_and_quantised_by_its_formula():
    for normalised in (True, False):
        model = stand_in(normalised)
        z = model.quant_conv(model.encoder(picture(32) * 2 - 1)).double().permute(0, 2, 3, 1)
        codes = model.quantize.embedding.weight.double()
        if normalised:
            z, codes = (x / x.norm(dim=-1, keepdim=True) for x in (z, codes))
        wanted = (z[..., None, :] - codes).pow(2).sum(-1).argmin(-1)
        adapted = adapt(model, grid=8)
        assert adapted.encode(picture(32)).tolist() == wanted.tolist() and len(wanted.unique()) > 5
        torch.testing.assert_close(adapted.codebook.double(), codes.detach())
        assert adapt(model).grid == 64  # of 256 x 256 images


def stand_in(normalised):
    """Our modules under the published class's name and module, at three resolutions."""
    sizes = {**F16_16384["ddconfig"], "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []}
    model = type("VQModel", (VQModel,), {"__module__": "tokenizer.tokenizer_image.vq_model"})(
        n_embed=50, embed_dim=8, ddconfig=sizes
    )
    model.load_state_dict(filled({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    model.quantize.l2_norm = normalised
    model.config = type("ModelArgs", (), {"encoder_ch_mult": [1, 1, 1]})()
    return model.eval()


def test_other_files_are_refused_by_name(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load("llamagen", tmp_path / "absent.pt")
    state = torch.load(checkpoint)["model"]
    del state["decoder.mid.1.q.weight"]
    torch.save({"model": state}, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"(?s)short\.pt.*decoder\.mid\.attn_1\.q\.weight"):
        load("llamagen", tmp_path / "short.pt")
    torch.save({"state_dict": taming_names(torch.load(checkpoint)["model"])}, tmp_path / "tamings.pt")
    with pytest.raises(CheckpointError, match=r"tamings\.pt: expected LlamaGen's names"):
        load("llamagen", tmp_path / "tamings.pt")
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        load("llamagen", tmp_path / "other.pt")
