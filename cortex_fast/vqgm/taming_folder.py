"""Trained models in the folders that taming-transformers writes: configs/*-project.yaml and checkpoints/last.ckpt."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cortex_fast.data.digests import of_state
from cortex_fast.data.grids import Grid, grid_of, sides
from cortex_fast.vqgm.autoencoder import GumbelVQ, VQModel
from cortex_fast.vqgm.averages import average_name
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state
from cortex_fast.vqgm.configs import read_config
from cortex_fast.vqgm.model import Model
from cortex_fast.vqgm.sampling import check_sampling
from cortex_fast.vqgm.taming import taming_model
from cortex_fast.vqgm.transformer import GPT

AUTOENCODERS = {"VQModel": VQModel, "VQModelInterface": VQModel, "GumbelVQ": GumbelVQ}
PRIOR = "Net2NetTransformer"
UNCONDITIONAL = "__is_unconditional__"  # in place of a stage's configuration
UNUSED = re.compile(
    r"(first_stage_model\.)?(loss\.|colorize$|model_ema\.(decay$|num_updates$|loss))"
    r"|cond_stage_model\.|transformer\..*\.attn\.mask$"
)
AVERAGES = re.compile(r"(first_stage_model\.)?model_ema\.")

_MOST_BLOCKS = 1000
_CODES = {"ddconfig", "n_embed", "embed_dim", "remap"}
_TRAINING = {"lossconfig", "ckpt_path", "ignore_keys", "monitor", "scheduler_config", "learning_rate"}
_IMAGES = {"image_key", "colorize_nlabels", "batch_resize_range", "sane_index_shape"}
_STAGES = {"transformer_config", "first_stage_config", "cond_stage_config", "permuter_config"}
_SIZES = {"vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_unmasked"}
# Of each class the settings that count, and those that neither tokens nor pixels depend on. Others are refused.
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


class _Part(NamedTuple):
    """A part of a configuration: its class as it stands there, with its module; the class's name; its parameters."""

    target: str
    kind: str
    parameters: Mapping[str, Any]


def load_taming(
    path: Path | str,
    *,
    grid: Grid | None = None,
    averaged: bool = True,
    tensors_only: bool = False,
    sampling: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """A VQGAN, or a transformer over one whose condition is a class label or nothing, in float32.

    path: the folder; its newest configs/*-project.yaml is read, or else configs/model.yaml, with ${...} resolved as
    OmegaConf does. grid: m or (h, w), to hold images to another size than the configuration's; by default images of any
    size are encoded that is made of whole cells. A transformer samples the grid that it was made for, and no other.
    averaged: the moving average of the weights where the checkpoint has it (latent-diffusion's `model_ema`); False: the
    weights themselves. tensors_only: for checkpoints that carry pickled Lightning objects, see `read_state`. sampling:
    settings of `sample_tokens` (temperature, top_k, top_p, dtype). The fingerprint is that of the tensors used and of
    `sampling`.
    A transformer with another kind of condition gives a model that cannot sample, and says so.
    Raises FileNotFoundError, NotADirectoryError for a file, ImportError without PyYAML, CheckpointError for models of
    another kind and for settings and keys that are missing or unknown, naming them, and what `taming_model` raises.
    """
    check_sampling(sampling or {})  # before a large file is read
    size = None if grid is None else sides(grid)
    file = _newest_config(Path(path))
    part = _part(file, read_config(file), "model")
    checkpoint = Path(path) / "checkpoints" / "last.ckpt"
    found = read_state(checkpoint, tensors_only=tensors_only)
    prior, condition, reason = None, range(0), None
    if part.kind == PRIOR:
        parameters = _known(file, part)
        autoencoder = _autoencoder(file, _part(file, parameters, "first_stage_config"))
        prior = _prior(file, parameters, autoencoder)
        condition, reason = _condition(file, parameters, prior)
        if size is not None and size != sides(autoencoder.grid):
            reason = f"the prior samples a grid of {autoencoder.grid}, and grid asks for {grid_of(size)}"
        modules = {"first_stage_model.": autoencoder, "transformer.": prior}
    else:
        autoencoder = _autoencoder(file, part)
        modules = {"": autoencoder}
    state = _used(found, modules, averaged)
    _fill(checkpoint, modules, state, device)
    return taming_model(
        autoencoder,
        None if reason else prior,
        grid=size or autoencoder.grid,
        fingerprint=of_state(state, str(sorted((sampling or {}).items()))),
        cell=autoencoder.cell if size is None else None,
        num_classes=len(condition),
        first_token=condition.start,
        sampling=dict(sampling or {}),
        reason=reason,
    )


def _newest_config(folder: Path) -> Path:
    if folder.is_file():
        raise NotADirectoryError(f"path: expected the folder of configs and checkpoints, got the file {folder}")
    configs = folder / "configs"
    file = max(configs.glob("*-project.yaml"), default=configs / "model.yaml")  # their names begin with the date
    if not file.is_file():
        raise FileNotFoundError(f"no *-project.yaml or model.yaml in {configs}")
    return file


def _part(file: Path, config: Mapping[str, Any], name: str) -> _Part:
    """The class and the parameters of the part `name`."""
    try:
        part = config[name]
        if part == UNCONDITIONAL:
            return _Part(UNCONDITIONAL, UNCONDITIONAL, {})
        target, parameters = part["target"], part.get("params") or {}
        kind = target.rsplit(".")[-1]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: {name}: expected a target and its params") from error
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"{file}: {name}: expected params by name, got {parameters!r}")
    return _Part(target, kind, parameters)


def _known(file: Path, part: _Part) -> dict[str, Any]:
    """The parameters that count. Others than those known of the class are refused: what they say may count too."""
    counts, beside = SETTINGS[part.kind]
    unknown = [str(name) for name in part.parameters if name not in counts | beside]
    if unknown:
        known = ", ".join(sorted(counts | beside))
        raise CheckpointError(f"{file}: {part.kind}: unknown settings {', '.join(unknown)}; known are {known}")
    return {name: part.parameters[name] for name in part.parameters if name in counts}


def _autoencoder(file: Path, part: _Part) -> VQModel:
    if part.kind not in AUTOENCODERS:
        raise CheckpointError(f"{file}: expected {', '.join(AUTOENCODERS)} or {PRIOR}, got {part.kind}")
    settings = _known(file, part)
    if settings.pop("remap", None) is not None:
        raise CheckpointError(f"{file}: {part.kind}: remap: expected none, since it gives tokens other numbers")
    of_diffusion = part.target.split(".")[0] == "ldm"
    if isinstance(settings.get("ddconfig"), Mapping):
        settings["ddconfig"] = dict(settings["ddconfig"])
        _few(file, settings["ddconfig"], "num_res_blocks")
        if settings["ddconfig"].get("tanh_out") and not of_diffusion:
            told = "latent-diffusion's decoder (a target in ldm) obeys it, and taming's ignores it"
            raise CheckpointError(f"{file}: {part.kind}: ddconfig: tanh_out: expected none for {part.target}: {told}")
    return _build(file, AUTOENCODERS[part.kind], settings)


def _prior(file: Path, parameters: Mapping[str, Any], autoencoder: VQModel) -> GPT:
    part = _part(file, parameters, "transformer_config")
    order = _part(file, parameters, "permuter_config").kind if parameters.get("permuter_config") else "Identity"
    for name, got, expected in (("transformer_config", part.kind, "GPT"), ("permuter_config", order, "Identity")):
        if got != expected:
            raise CheckpointError(f"{file}: {name}: expected {expected}, got {got}")
    settings = _known(file, part)
    unmasked = settings.pop("n_unmasked", None)
    if unmasked not in (None, 0, 1):
        raise CheckpointError(f"{file}: n_unmasked: expected 0, for causal attention, got {unmasked}")
    _few(file, settings, "n_layer")
    prior = _build(file, GPT, settings)
    height, width = sides(autoencoder.grid)
    for name, got, least in (
        ("block_size", prior.block_size, height * width),
        ("vocab_size", prior.tok_emb.num_embeddings, len(autoencoder.codebook)),
    ):
        if got < least:
            raise CheckpointError(f"{file}: {name}: expected at least {least} with this first stage, got {got}")
    return prior


def _condition(file: Path, parameters: Mapping[str, Any], prior: GPT) -> tuple[range, str | None]:
    """The tokens of the conditions, one for each; or why images cannot be sampled by a number."""
    part = _part(file, parameters, "cond_stage_config")
    if part.kind in (UNCONDITIONAL, "SOSProvider"):
        name, number = "sos_token", _known(file, part).get("sos_token", parameters.get("sos_token", 0))
    elif part.kind == "Labelator":
        name, number = "n_classes", _known(file, part).get("n_classes", 0)
    else:
        return range(0), f"the prior's condition is a {part.kind}, not a class label"
    if isinstance(number, bool) or not isinstance(number, int):
        raise CheckpointError(f"{file}: cond_stage_config: {name}: expected a whole number, got {number!r}")
    tokens = range(number) if name == "n_classes" else range(number, number + 1)
    if not tokens or tokens.start < 0 or tokens.stop > prior.tok_emb.num_embeddings:
        got = f"{tokens.start} to {tokens.stop - 1}"
        raise CheckpointError(f"{file}: cond_stage_config: expected tokens of the vocabulary, got {got}")
    return tokens, None


def _few(file: Path, settings: Mapping[str, Any], name: str) -> None:
    """Blocks are built one by one: a damaged number of them would take for ever."""
    if isinstance(settings.get(name), int) and settings[name] > _MOST_BLOCKS:
        raise CheckpointError(f"{file}: {name}: expected at most {_MOST_BLOCKS}, got {settings[name]}")


def _build(file: Path, build: type, settings: Mapping[str, Any]):  # type: ignore[no-untyped-def]
    """A module without memory for its weights yet."""
    try:
        with torch.device("meta"):
            return build(**settings)
    except Exception as error:  # settings of any kind may be in the file, and raise nearly anything
        told = str(error).partition("\n")[0]  # torch adds its C++ frames
        raise CheckpointError(f"{file}: settings that do not make a {build.__name__} ({told})") from error


def _used(found: Mapping[str, Tensor], modules: Mapping[str, nn.Module], averaged: bool) -> dict[str, Tensor]:
    """The checkpoint's tensors without those that belong to its training; with `averaged` the averages in the place of
    the weights."""
    kept = {name: tensor for name, tensor in found.items() if not UNUSED.match(name)}
    state = {name: tensor for name, tensor in kept.items() if not AVERAGES.match(name)}
    if not averaged:
        return state
    for prefix, module in modules.items():
        for name in module.state_dict():
            average = kept.pop(average_name(name, prefix), None)
            if average is not None:
                state[prefix + name] = average
    return state | {name: tensor for name, tensor in kept.items() if AVERAGES.match(name)}


def _fill(
    file: Path, modules: Mapping[str, nn.Module], state: Mapping[str, Tensor], device: torch.device | str
) -> None:
    """Copies the state into the modules, whose keys begin with their prefix; nothing may be missing or left."""
    wanted = {
        prefix + name: tensor for prefix, module in modules.items() for name, tensor in module.state_dict().items()
    }
    problems = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} (expected {list(tensor.shape)}, got {list(state[name].shape)})"
            for name, tensor in wanted.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        told = (f"{len(names)} keys {what}: {', '.join(names[:5])}" for what, names in problems.items() if names)
        raise CheckpointError(f"{file}: {'; '.join(told)}")
    for prefix, module in modules.items():
        module.to(torch.float32).to_empty(device=device)
        module.load_state_dict({name: state[prefix + name] for name in module.state_dict()})
