"""The modules that a taming-transformers configuration describes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cortex_fast.data.grids import sides
from cortex_fast.vqgm.autoencoder import GumbelVQ, VQModel
from cortex_fast.vqgm.checkpoints import CheckpointError
from cortex_fast.vqgm.transformer import GPT

AUTOENCODERS = {"VQModel": VQModel, "VQModelInterface": VQModel, "GumbelVQ": GumbelVQ}
PRIOR = "Net2NetTransformer"
UNCONDITIONAL = "__is_unconditional__"  # stands in place of a stage's configuration

_MOST_BLOCKS = 1000
_CODES = {"ddconfig", "n_embed", "embed_dim", "remap"}
_TRAINING = {"lossconfig", "ckpt_path", "ignore_keys", "monitor", "scheduler_config", "learning_rate"}
_IMAGES = {"image_key", "colorize_nlabels", "batch_resize_range", "sane_index_shape"}
_STAGES = {"transformer_config", "first_stage_config", "cond_stage_config", "permuter_config"}
_SIZES = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_unmasked"}
# For each class: the settings that tokens or pixels depend on, and the other known ones. Unknown ones are refused.
SETTINGS: dict[str, tuple[set[str], set[str]]] = {
    "VQModel": (_CODES, _TRAINING | _IMAGES | {"lr_g_factor", "use_ema"}),
    "VQModelInterface": (_CODES, _TRAINING | _IMAGES | {"lr_g_factor", "use_ema"}),
    "GumbelVQ": (_CODES, _TRAINING | _IMAGES | {"temperature_scheduler_config", "kl_weight"}),
    PRIOR: (
        _STAGES | {"sos_token"},
        _TRAINING | {"first_stage_key", "cond_stage_key", "downsample_cond_size", "pkeep", "unconditional"},
    ),
    "GPT": (_SIZES, {"embd_pdrop", "resid_pdrop", "attn_pdrop"}),
    "Labelator": ({"n_classes"}, {"quantize_interface"}),
    "SOSProvider": ({"sos_token"}, {"quantize_interface"}),
    UNCONDITIONAL: (set(), set()),
}


class Part(NamedTuple):
    """A part of a configuration: its class with its module, the class's name alone, and its parameters."""

    target: str
    kind: str
    parameters: Mapping[str, Any]


def part_of(file: Path, config: Mapping[str, Any], name: str) -> Part:
    """The part `name` of a configuration. Raises CheckpointError if it has no class or parameters."""
    try:
        part = config[name]
        if part == UNCONDITIONAL:
            return Part(UNCONDITIONAL, UNCONDITIONAL, {})
        target, parameters = part["target"], part.get("params") or {}
        kind = target.rsplit(".")[-1]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: {name}: expected a target and its params") from error
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"{file}: {name}: expected params by name, got {parameters!r}")
    return Part(target, kind, parameters)


def relevant_settings(file: Path, part: Part) -> dict[str, Any]:
    """The parameters that tokens or pixels depend on. Unknown ones are refused, because they may matter too."""
    relevant, others = SETTINGS[part.kind]
    unknown = [str(name) for name in part.parameters if name not in relevant | others]
    if unknown:
        names = ", ".join(sorted(relevant | others))
        raise CheckpointError(f"{file}: {part.kind}: unknown settings {', '.join(unknown)}; known are {names}")
    return {name: part.parameters[name] for name in part.parameters if name in relevant}


def autoencoder_of(file: Path, part: Part) -> VQModel:
    """The autoencoder that a part describes, without memory for its weights."""
    if part.kind not in AUTOENCODERS:
        raise CheckpointError(f"{file}: expected {', '.join(AUTOENCODERS)} or {PRIOR}, got {part.kind}")
    settings = relevant_settings(file, part)
    if settings.pop("remap", None) is not None:
        raise CheckpointError(f"{file}: {part.kind}: remap: expected none, because it renumbers the tokens")
    of_diffusion = part.target.split(".")[0] == "ldm"
    if isinstance(settings.get("ddconfig"), Mapping):
        settings["ddconfig"] = dict(settings["ddconfig"])
        _check_block_count(file, settings["ddconfig"], "num_res_blocks")
        if settings["ddconfig"].get("tanh_out") and not of_diffusion:
            reason = "latent-diffusion's decoder (a target in ldm) obeys it, and taming's ignores it"
            raise CheckpointError(f"{file}: {part.kind}: ddconfig: tanh_out: expected none for {part.target}: {reason}")
    return _build(file, AUTOENCODERS[part.kind], settings)


def prior_of(file: Path, parameters: Mapping[str, Any], autoencoder: VQModel) -> GPT:
    """The transformer that a configuration describes, without memory for its weights."""
    part = part_of(file, parameters, "transformer_config")
    order = part_of(file, parameters, "permuter_config").kind if parameters.get("permuter_config") else "Identity"
    for name, got, expected in (("transformer_config", part.kind, "GPT"), ("permuter_config", order, "Identity")):
        if got != expected:
            raise CheckpointError(f"{file}: {name}: expected {expected}, got {got}")
    settings = relevant_settings(file, part)
    unmasked = settings.pop("n_unmasked", None)
    if unmasked not in (None, 0, 1):
        raise CheckpointError(f"{file}: n_unmasked: expected 0, for causal attention, got {unmasked}")
    _check_block_count(file, settings, "n_layer")
    prior = _build(file, GPT, settings)
    height, width = sides(autoencoder.grid)
    for name, got, least in (
        ("block_size", prior.block_size, height * width),
        ("vocab_size", prior.tok_emb.num_embeddings, len(autoencoder.codebook)),
    ):
        if got < least:
            raise CheckpointError(f"{file}: {name}: expected at least {least} with this first stage, got {got}")
    return prior


def conditions_of(file: Path, parameters: Mapping[str, Any], prior: GPT) -> tuple[range, str | None]:
    """The token of each condition, and the reason why images cannot be sampled by a condition's number, or None."""
    part = part_of(file, parameters, "cond_stage_config")
    if part.kind in (UNCONDITIONAL, "SOSProvider"):
        name, number = "sos_token", relevant_settings(file, part).get("sos_token", parameters.get("sos_token", 0))
    elif part.kind == "Labelator":
        name, number = "n_classes", relevant_settings(file, part).get("n_classes", 0)
    else:
        return range(0), f"the prior's condition is a {part.kind}, not a class label"
    if isinstance(number, bool) or not isinstance(number, int):
        raise CheckpointError(f"{file}: cond_stage_config: {name}: expected a whole number, got {number!r}")
    tokens = range(number) if name == "n_classes" else range(number, number + 1)
    if not tokens or tokens.start < 0 or tokens.stop > prior.tok_emb.num_embeddings:
        got = f"{tokens.start} to {tokens.stop - 1}"
        raise CheckpointError(f"{file}: cond_stage_config: expected tokens of the vocabulary, got {got}")
    return tokens, None


def _check_block_count(file: Path, settings: Mapping[str, Any], name: str) -> None:
    """Refuse an absurd number of blocks, which would take for ever to build."""
    if isinstance(settings.get(name), int) and settings[name] > _MOST_BLOCKS:
        raise CheckpointError(f"{file}: {name}: expected at most {_MOST_BLOCKS}, got {settings[name]}")


def _build(file: Path, build: type, settings: Mapping[str, Any]):  # type: ignore[no-untyped-def]
    """A module without memory for its weights."""
    try:
        with torch.device("meta"):
            return build(**settings)
    except Exception as error:  # settings of any kind may be in the file and raise nearly anything
        problem = str(error).partition("\n")[0]  # without torch's C++ frames
        raise CheckpointError(f"{file}: settings that do not make a {build.__name__} ({problem})") from error
