"""Folders of taming-transformers: loaded models compute what the package's models do with the same weights."""

import copy
import re

import pytest
import torch
import yaml

from cortex_fast.vqgm import CheckpointError, UnsupportedError, load
from cortex_fast.vqgm.decoding import prepare_decoder
from cortex_fast.vqgm.sampling import decode_tokens
from cortex_fast.vqgm.transformer import GPT
from tests.official.fill import fill_
from tests.vqgm import real_taming
from tests.vqgm.f16_16384 import F16_16384

SMALL = {
    "n_embed": 20,
    "embed_dim": 6,
    "ddconfig": {
        "double_z": False,
        "z_channels": 8,
        "resolution": 16,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "dropout": 0.0,
    },
}
LOSS = {"lossconfig": {"target": "torch.nn.Identity"}}
PRIOR = {"vocab_size": 20, "block_size": 64, "n_layer": 3, "n_head": 2, "n_embd": 16}


def autoencoder_config(parameters=SMALL):
    return {"target": "taming.models.vqgan.VQModel", "params": {**parameters, **LOSS}}


def prior_config():
    return {
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "first_stage_key": "image",
            "cond_stage_key": "class_label",
            "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": dict(PRIOR)},
            "first_stage_config": autoencoder_config(),
            "cond_stage_config": {"target": "taming.modules.util.Labelator", "params": {"n_classes": 7}},
        },
    }


def write(folder, config, state, name="2021-04-03T19-39-50-project.yaml", **beside):
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "configs" / name).write_text(yaml.safe_dump({"model": config, "data": {"target": "unused"}}))
    torch.save({"state_dict": state, "epoch": 3, **beside}, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def taming():
    with real_taming.taming() as package:
        yield package


def scattered(theirs):
    """With codes among the latents, so that each is the nearest of some, and attention that is not uniform."""
    masks = {name: tensor.clone() for name, tensor in theirs.state_dict().items() if name.endswith("attn.mask")}
    fill_(theirs).load_state_dict(masks, strict=False)
    autoencoder = getattr(theirs, "first_stage_model", theirs)
    with torch.no_grad():
        latents = autoencoder.quant_conv(autoencoder.encoder(torch.rand(2, 3, *[16] * 2) * 2 - 1))
        spread = torch.randn(autoencoder.quantize.embedding.weight.shape, generator=torch.Generator().manual_seed(0))
        centre, scale = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        autoencoder.quantize.embedding.weight.copy_(centre + scale * spread)
    return theirs


@pytest.fixture(scope="module")
def autoencoder(taming):
    return scattered(taming.VQModel(**SMALL, **LOSS))


@pytest.fixture(scope="module")
def transformer(taming):
    return scattered(taming.Net2NetTransformer(**prior_config()["params"]))


def assert_same_autoencoder(model, theirs, images):
    """Compare codebook, latents, tokens and pixels."""
    with torch.no_grad():
        latents = theirs.quant_conv(theirs.encoder(images * 2 - 1))
        tokens = theirs.encode(images * 2 - 1)[2][2].view(len(images), model.grid, model.grid)
        torch.testing.assert_close(model.latents(images * 2 - 1), latents, rtol=1e-5, atol=1e-5 * latents.abs().max())
        assert torch.equal(model.codebook, theirs.quantize.embedding.weight)
        assert torch.equal(model.encode(images), tokens)
        assert len(tokens.unique()) > 2
        shape = (*tokens.shape, model.codebook.shape[1])
        pictures = theirs.decode(theirs.quantize.get_codebook_entry(tokens.flatten(), shape))
        torch.testing.assert_close(
            model.pixels(model.embed(tokens)), pictures, rtol=1e-5, atol=1e-5 * pictures.abs().max()
        )
    atol = 1e-5 * max(1.0, float(pictures.abs().max()))  # filled weights' pictures go beyond [-1, 1]
    torch.testing.assert_close(model.decode(tokens), ((pictures + 1) / 2).clamp(0, 1), rtol=0, atol=atol)


def test_an_autoencoder_is_tamings(tmp_path, autoencoder):
    state = autoencoder.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(3), "colorize": torch.zeros(1)}
    model = load("taming", write(tmp_path, autoencoder_config(), state))
    assert_same_autoencoder(model, autoencoder, torch.rand(3, 3, 16, 16))
    with pytest.raises(UnsupportedError, match="no prior"):
        model.sample(0, 1)


def test_a_class_conditional_transformer_is_tamings(tmp_path, transformer):
    folder = write(tmp_path, prior_config(), transformer.state_dict())
    assert any(name.endswith("attn.mask") for name in transformer.state_dict())
    greedy = load("taming", folder, sampling={"top_k": 1})
    assert_same_autoencoder(greedy, transformer.first_stage_model, torch.rand(2, 3, 16, 16))

    labels, images = torch.tensor([0, 4, 6]), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        logits, target = transformer(images * 2 - 1, labels)
        prior = GPT(**PRIOR)
        weights = {name.removeprefix("transformer."): t for name, t in transformer.state_dict().items()}
        prior.load_state_dict({name: weights[name] for name in prior.state_dict()})
        ours = prior.eval()(torch.cat([labels[:, None], target[:, :-1]], dim=1))
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5 * logits.abs().max())
        chosen = transformer.sample(target[:, :0], labels[:, None], steps=64, sample=False)  # the likeliest, always
    assert torch.equal(greedy.sample(labels).flatten(1), chosen)
    assert len(chosen.unique()) > 2
    drawn = load("taming", folder).sample(labels, seed=5)
    tokens = decode_tokens(prepare_decoder(prior, codebook_size=20), labels, 64, seed=5, item_ids=torch.arange(3))
    assert torch.equal(drawn.flatten(1), tokens)
    with pytest.raises(ValueError, match=r"^condition: .*\[0, 7\)"):
        greedy.sample(7, 1)


@pytest.mark.parametrize("stage", ["__is_unconditional__", {"target": "x.SOSProvider", "params": {"sos_token": 13}}])
def test_one_constant_token_is_one_condition(tmp_path, transformer, stage):
    config = prior_config()
    config["params"] |= {"cond_stage_config": stage, "sos_token": 13}
    model = load("taming", write(tmp_path, config, transformer.state_dict()), sampling={"top_k": 1})
    chosen = transformer.sample(torch.empty(2, 0).long(), torch.full((2, 1), 13), steps=64, sample=False)
    assert torch.equal(model.sample(0, 2).flatten(1), chosen)
    with pytest.raises(ValueError, match=r"^condition: .*\[0, 1\)"):
        model.sample(1, 1)


def test_another_condition_leaves_the_autoencoder(tmp_path, transformer):
    config = prior_config()
    config["params"]["cond_stage_config"] = autoencoder_config()
    state = transformer.state_dict() | {"cond_stage_model.encoder.conv_in.weight": torch.zeros(2)}
    model = load("taming", write(tmp_path, config, state))
    assert model.encode(torch.rand(1, 3, 16, 16)).shape == (1, 8, 8)
    with pytest.raises(UnsupportedError, match="sample: the prior's condition is a VQModel"):
        model.sample(0, 1)


def test_gumbel_tokens_are_the_largest_logits(tmp_path, autoencoder):
    """By the quantiser's definition: the release that is the oracle here has none."""
    state = {name: t for name, t in autoencoder.state_dict().items() if not name.startswith("quantize.")}
    # their projection takes z_channels, which must therefore be embed_dim
    settings = copy.deepcopy(SMALL) | {"embed_dim": 8}
    state |= {"quant_conv.weight": torch.randn(8, 8, 1, 1), "quant_conv.bias": torch.randn(8)}
    state["post_quant_conv.weight"] = torch.randn(8, 8, 1, 1)
    state |= {"quantize.proj.weight": torch.randn(20, 8, 1, 1), "quantize.proj.bias": torch.randn(20)}
    state["quantize.embed.weight"] = torch.randn(20, 8)
    config = {"target": "taming.models.vqgan.GumbelVQ", "params": {**settings, **LOSS, "kl_weight": 1e-8}}
    model = load("taming", write(tmp_path, config, state))
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        latents = torch.nn.functional.conv2d(
            autoencoder.encoder(images * 2 - 1), state["quant_conv.weight"], state["quant_conv.bias"]
        )
    logits = torch.einsum("kc,bchw->bkhw", state["quantize.proj.weight"][:, :, 0, 0], latents)
    assert torch.equal(model.encode(images), (logits + state["quantize.proj.bias"][:, None, None]).argmax(dim=1))
    assert torch.equal(model.codebook, state["quantize.embed.weight"])


def test_the_newest_project_is_read_or_else_model_yaml(tmp_path, autoencoder):
    state = autoencoder.state_dict()
    write(tmp_path, {**autoencoder_config(), "target": "x.Old"}, state, "2020-11-09T13-33-36-project.yaml")
    write(tmp_path, autoencoder_config(), state)
    assert load("taming", tmp_path).grid == 8
    for file in (tmp_path / "configs").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="configs"):
        load("taming", tmp_path)
    write(tmp_path, autoencoder_config(), state, "model.yaml")
    assert load("taming", tmp_path).grid == 8
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt"):
        load("taming", tmp_path)


def test_missing_unknown_and_misshapen_keys_are_named(tmp_path, autoencoder):
    state = dict(autoencoder.state_dict())
    state["encoder.nonsense"] = state.pop("encoder.conv_in.weight")
    state["quant_conv.bias"] = torch.zeros(3)
    write(tmp_path, autoencoder_config(), state)
    message = (
        r"last\.ckpt: .*missing: encoder\.conv_in\.weight; .*unknown: encoder\.nonsense; "
        r".*shape: quant_conv\.bias \(expected \[6\], got \[3\]\)"
    )
    with pytest.raises(CheckpointError, match=message):
        load("taming", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "taming.models.vqgan.VQSegmentationModel"}, "expected VQModel, VQModelInterface, GumbelVQ"),
        ({"params": None}, "do not make a VQModel"),
        ({"target": None}, "model: expected a target"),
        ({"params": "none"}, "model: expected params by name, got 'none'"),
        ({"params": {**SMALL, "n_embed": 0}}, "do not make a VQModel"),
        ({"params": {**SMALL, "ddconfig": {**SMALL["ddconfig"], "ch_mult": []}}}, "do not make a VQModel"),
    ],
)
def test_other_autoencoders_are_refused_by_name(tmp_path, autoencoder, change, message):
    write(tmp_path, autoencoder_config() | change, autoencoder.state_dict())
    with pytest.raises(CheckpointError, match=rf"project\.yaml: .*{message}"):
        load("taming", tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer_config", {"block_size": 63}, "block_size: expected at least 64"),
        ("transformer_config", {"vocab_size": 19}, "vocab_size: expected at least 20"),
        ("transformer_config", {"n_layer": 10**9}, "n_layer: expected at most 1000"),
        ("transformer_config", {"n_unmasked": 5}, "n_unmasked: expected 0"),
        ("transformer_config", {"n_unmasked": "x"}, "n_unmasked: expected 0"),
        ("cond_stage_config", {"n_classes": 21}, "tokens of the vocabulary, got 0 to 20"),
        ("cond_stage_config", {"n_classes": None}, "n_classes: expected a whole number, got None"),
    ],
)
def test_other_transformers_are_refused_by_name(tmp_path, transformer, part, change, message):
    config = prior_config()
    config["params"][part]["params"] |= change
    write(tmp_path, config, transformer.state_dict())
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load("taming", tmp_path)


LDM = {"target": "ldm.models.autoencoder.VQModel"}


def with_ddconfig(**changes):
    return autoencoder_config({**SMALL, "ddconfig": {**SMALL["ddconfig"], **changes}})


def test_images_of_other_sizes_give_other_grids(tmp_path, taming, autoencoder):
    """Against taming's own modules, which take any size that their strides divide."""
    folder = write(tmp_path, autoencoder_config(), autoencoder.state_dict())
    model = load("taming", folder)
    assert model.grid == 8
    for height, width in ((16, 16), (12, 20), (32, 8)):
        images = torch.rand(2, 3, height, width)
        with torch.no_grad():
            ids = autoencoder.encode(images * 2 - 1)[2][2].view(2, height // 2, width // 2)
            pictures = autoencoder.decode(autoencoder.quantize.embedding(ids).permute(0, 3, 1, 2))
        assert torch.equal(model.encode(images), ids)
        atol = 1e-5 * max(1.0, float(pictures.abs().max()))
        torch.testing.assert_close(model.decode(ids), ((pictures + 1) / 2).clamp(0, 1), rtol=0, atol=atol)
    assert model.encode(torch.rand(0, 3, 12, 20)).shape == (0, 6, 10)
    for size in ((15, 16), (16, 17), (1, 2), (0, 16)):
        with pytest.raises(ValueError, match=r"^images: expected sides that are multiples of 2, got"):
            model.encode(torch.rand(1, 3, *size))


@pytest.mark.parametrize(("grid", "expected"), [((6, 10), (6, 10)), ([6, 10], (6, 10)), (4, 4), ((4, 4), 4)])
def test_with_a_grid_only_its_images_are_encoded(tmp_path, autoencoder, grid, expected):
    model = load("taming", write(tmp_path, autoencoder_config(), autoencoder.state_dict()), grid=grid)
    height, width = (expected, expected) if isinstance(expected, int) else expected
    assert model.grid == expected
    assert model.encode(torch.rand(1, 3, 2 * height, 2 * width)).shape == (1, height, width)
    for size in ((16, 16), (2 * width + 2, 2 * height)):
        with pytest.raises(ValueError, match=r"^images: expected the size that gives a grid of"):
            model.encode(torch.rand(1, 3, *size))


@pytest.mark.parametrize("grid", [0, (6,), (6, 10, 2), "6", (6, 2.5)])
def test_other_grids_are_refused(tmp_path, grid):
    with pytest.raises((TypeError, ValueError), match=r"^grid: expected"):
        load("taming", tmp_path, grid=grid)


def test_a_transformer_samples_its_grid_alone(tmp_path, transformer):
    folder = write(tmp_path, prior_config(), transformer.state_dict())
    assert load("taming", folder).encode(torch.rand(1, 3, 12, 20)).shape == (1, 6, 10)
    assert load("taming", folder, grid=8).sample(0, 1).shape == (1, 8, 8)
    other = load("taming", folder, grid=(6, 10))
    assert other.encode(torch.rand(1, 3, 12, 20)).shape == (1, 6, 10)
    with pytest.raises(UnsupportedError, match=r"sample: the prior samples a grid of 8, and grid asks for \(6, 10\)"):
        other.sample(0, 1)


def test_settings_may_refer_to_others(tmp_path, autoencoder):
    config = with_ddconfig(z_channels="${channels}", resolution="${....size}")
    config["params"] |= {"embed_dim": "${sizes.0}", "lossconfig": "${oc.env:NOT_READ}"}
    folder = write(tmp_path, config, autoencoder.state_dict())
    file = folder / "configs" / "2021-04-03T19-39-50-project.yaml"
    text = yaml.safe_load(file.read_text(encoding="utf-8")) | {"channels": 8, "size": 16, "sizes": [6]}
    file.write_text("# é\n" + yaml.safe_dump(text), encoding="utf-8")
    assert_same_autoencoder(load("taming", folder), autoencoder, torch.rand(2, 3, 16, 16))
    text.pop("channels")
    file.write_text(yaml.safe_dump(text), encoding="utf-8")
    message = "project.yaml: model.params.ddconfig.z_channels: the interpolation ${channels} names no key of the file"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load("taming", folder)


def test_latent_diffusions_tanh_out_is_obeyed(tmp_path, autoencoder):
    state, tokens = autoencoder.state_dict(), torch.randint(20, (2, 8, 8))
    plain = load("taming", write(tmp_path / "plain", with_ddconfig(tanh_out=False), state))
    bent = load("taming", write(tmp_path / "bent", with_ddconfig(tanh_out=True) | LDM, state))
    wanted = (plain.pixels(plain.embed(tokens)).tanh() + 1) / 2
    assert float((wanted - plain.decode(tokens)).abs().max()) > 0.01
    torch.testing.assert_close(bent.decode(tokens), wanted)
    with pytest.raises(CheckpointError, match=r"ddconfig: tanh_out: expected none for taming\.models"):
        load("taming", write(tmp_path / "other", with_ddconfig(tanh_out=True), state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tanh_in": True}, "ddconfig: unknown key tanh_in; known are"),
        ({"num_head_channels": 8}, "ddconfig: unknown key num_head_channels"),
        ({"num_res_blocks": 10**8}, "num_res_blocks: expected at most 1000, got 100000000"),
        ({"attn_type": "linear"}, "ddconfig: attn_type: expected 'vanilla' or 'vanilla-xformers', got 'linear'"),
        ({"resamp_with_conv": False}, "ddconfig: resamp_with_conv: expected True, got False"),
        ({"give_pre_end": True}, "ddconfig: give_pre_end: expected False, got True"),
        ({"use_linear_attn": True}, "ddconfig: use_linear_attn: expected False, got True"),
    ],
)
def test_settings_of_another_architecture_are_named(tmp_path, autoencoder, change, message):
    with pytest.raises(CheckpointError, match=rf"project\.yaml: .*{re.escape(message)}"):
        load("taming", write(tmp_path, with_ddconfig(**change), autoencoder.state_dict()))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (("params",), {"n_embedd": 20}, "Net2NetTransformer: unknown settings n_embedd; known are"),
        (("params", "first_stage_config", "params"), {"l2_norm": True}, "VQModel: unknown settings l2_norm"),
        (("params", "first_stage_config", "params"), {"remap": "x.npy"}, "VQModel: remap: expected none"),
        (("params", "transformer_config", "params"), {"rotary": 1, "bias": 0}, "GPT: unknown settings bias, rotary"),
        (("params", "cond_stage_config", "params"), {"n_class": 3}, "Labelator: unknown settings n_class"),
    ],
)
def test_unknown_settings_are_named(tmp_path, transformer, place, change, message):
    config = prior_config()
    part = config
    for key in place:
        part = part[key]
    part |= change
    with pytest.raises(CheckpointError, match=rf"project\.yaml: {re.escape(message)}"):
        load("taming", write(tmp_path, config, transformer.state_dict()))


def test_settings_of_the_training_are_known(tmp_path, autoencoder):
    config = with_ddconfig(attn_type="vanilla", resamp_with_conv=True, give_pre_end=False, use_linear_attn=False) | LDM
    config["params"] |= {
        "ckpt_path": None,
        "ignore_keys": [],
        "image_key": "image",
        "colorize_nlabels": None,
        "monitor": "val/rec_loss",
        "batch_resize_range": None,
        "scheduler_config": {"target": "x"},
        "lr_g_factor": 1.0,
        "remap": None,
        "sane_index_shape": False,
        "use_ema": True,
    }
    for kind in ("VQModel", "VQModelInterface"):
        config["target"] = f"ldm.models.autoencoder.{kind}"
        model = load("taming", write(tmp_path, config, autoencoder.state_dict()))
        assert_same_autoencoder(model, autoencoder, torch.rand(1, 3, 16, 16))


def averaged_state(state, prefix="", factor=1.5):
    """With averages as latent-diffusion's LitEma saves them: under the parameters' names without their dots."""
    weights = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    averages = {f"{prefix}model_ema.{name.replace('.', '')}": tensor * factor for name, tensor in weights.items()}
    averages |= {
        f"{prefix}model_ema.decay": torch.tensor(0.9999),
        f"{prefix}model_ema.num_updates": torch.tensor(7),
        f"{prefix}model_ema.lossdiscriminatormain0weight": torch.zeros(3),
    }
    return state | averages, weights


def test_moving_averages_are_taken_or_not(tmp_path, autoencoder):
    state, weights = averaged_state(autoencoder.state_dict())
    folder = write(tmp_path, autoencoder_config() | LDM, state)
    theirs = copy.deepcopy(autoencoder)
    theirs.load_state_dict({name: tensor * 1.5 for name, tensor in weights.items()})
    images = torch.rand(2, 3, 16, 16)
    taken, left = load("taming", folder), load("taming", folder, averaged=False)
    assert_same_autoencoder(left, autoencoder, images)
    latents = theirs.quant_conv(theirs.encoder(images * 2 - 1)).detach()
    torch.testing.assert_close(taken.latents(images * 2 - 1), latents, rtol=1e-5, atol=1e-5 * latents.abs().max())
    assert torch.equal(taken.codebook, 1.5 * autoencoder.quantize.embedding.weight)
    assert taken.fingerprint != left.fingerprint
    assert left.fingerprint == load("taming", write(tmp_path / "x", autoencoder_config(), weights)).fingerprint
    write(tmp_path, autoencoder_config() | LDM, state | {"model_ema.nonsense": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unknown: model_ema\.nonsense"):
        load("taming", folder)
    load("taming", folder, averaged=False)


def test_the_first_stages_averages_are_taken_too(tmp_path, transformer):
    state, weights = averaged_state(transformer.state_dict(), "first_stage_model.")
    folder = write(tmp_path, prior_config(), state)
    codebook = weights["quantize.embedding.weight"]
    assert torch.equal(load("taming", folder).codebook, 1.5 * codebook)
    assert torch.equal(load("taming", folder, averaged=False).codebook, codebook)


def test_the_fingerprint_is_that_of_the_weights_used_and_the_settings(tmp_path, transformer):
    state = transformer.state_dict()
    folder = write(tmp_path, prior_config(), state)
    first = load("taming", folder)
    assert re.fullmatch("[0-9a-f]{16}", first.fingerprint)
    write(tmp_path, prior_config(), state | {"first_stage_model.loss.x": torch.ones(1)}, optimizer_states=[1])
    assert load("taming", folder).fingerprint == first.fingerprint
    assert load("taming", folder, sampling={"top_k": 5}).fingerprint != first.fingerprint
    changed = state["transformer.head.weight"].clone()
    changed[0, 0] += 1e-6
    write(tmp_path, prior_config(), state | {"transformer.head.weight": changed})
    assert load("taming", folder).fingerprint != first.fingerprint


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"^name: expected one of .*'taming'.*, got 'tame'"):
        load("tame", "nowhere")
    with pytest.raises(ValueError, match=r"^device: expected a torch device .*, got 'gpu'"):
        load("ibq", "nowhere", device="gpu")
    with pytest.raises(ValueError, match=r"^device: expected one of \d+ CUDA devices, got 'cuda:99'"):
        load("taming", "nowhere", device="cuda:99")
    with pytest.raises(ValueError, match=r"^sampling: .*got 'topk'"):
        load("taming", "nowhere", sampling={"topk": 3})
    (tmp_path / "last.ckpt").touch()
    with pytest.raises(NotADirectoryError, match=r"^path: expected the folder .*last\.ckpt"):
        load("taming", tmp_path / "last.ckpt")


@pytest.mark.slow
def test_f16_16384_is_tamings(tmp_path, taming):
    theirs = fill_(taming.VQModel(**F16_16384, **LOSS))
    with torch.no_grad():
        theirs.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    model = load("taming", write(tmp_path, autoencoder_config(F16_16384), theirs.state_dict()))
    assert_same_autoencoder(model, theirs, torch.rand(1, 3, 256, 256))


@pytest.mark.slow
def test_the_published_priors_logits_are_tamings(taming):
    """cin_transformer's sizes, 1.4 billion weights, which both share."""
    sizes = {"vocab_size": 16384, "block_size": 256, "n_layer": 48, "n_head": 24, "n_embd": 1536}
    theirs = taming.GPT(**sizes).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # zeros and ones
            parameter += 0.1 * torch.randn_like(parameter)
    with torch.device("meta"):
        ours = GPT(**sizes).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()}, assign=True)
    tokens = torch.randint(16384, (1, 48))
    with torch.no_grad():
        logits, _ = theirs(tokens)
        torch.testing.assert_close(ours(tokens), logits, rtol=1e-5, atol=1e-5 * logits.abs().max())
