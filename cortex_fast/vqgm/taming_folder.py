"""Trained models in the folders that taming-transformers writes: configs/*-project.yaml and checkpoints/last.ckpt."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.data.digests import of_state
from cortex_fast.vqgm.autoencoder import GumbelVQ, VQModel
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state
from cortex_fast.vqgm.model import Model
from cortex_fast.vqgm.sampling import check_sampling
from cortex_fast.vqgm.taming import taming_model
from cortex_fast.vqgm.transformer import GPT

AUTOENCODERS = {"VQModel": VQModel, "GumbelVQ": GumbelVQ}
PRIOR = "Net2NetTransformer"
UNCONDITIONAL = "__is_unconditional__"  # in place of a stage's configuration
UNUSED = re.compile(r"(first_stage_model\.)?(loss\.|colorize$)|cond_stage_model\.|transformer\..*\.attn\.mask$")

Config = Mapping[str, Any]


def load_taming(
    path: Path | str,
    *,
    tensors_only: bool = False,
    sampling: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """A VQGAN, or a transformer over one whose condition is a class label or nothing, in float32.

    path: the folder; its newest configs/*-project.yaml is read, or else configs/model.yaml. tensors_only: for
    checkpoints that carry pickled Lightning objects, see `read_state`. sampling: settings of `sample_tokens`
    (temperature, top_k, top_p, dtype). The fingerprint is that of the tensors used and of `sampling`.
    A transformer with another kind of condition gives a model that cannot sample, and says so.
    Raises FileNotFoundError, NotADirectoryError for a file, ImportError without PyYAML, CheckpointError for models of
    another kind and for keys that are missing or unknown, naming them, and what `taming_model` raises.
    """
    check_sampling(sampling or {})  # before a large file is read
    file, config = _newest_config(Path(path))
    checkpoint = Path(path) / "checkpoints" / "last.ckpt"
    found = read_state(checkpoint, tensors_only=tensors_only)
    state = {name: tensor for name, tensor in found.items() if not UNUSED.match(name)}
    kind, parameters = _target(file, config, "model")
    prior, condition, reason = None, range(0), None
    if kind == PRIOR:
        autoencoder = _autoencoder(file, *_target(file, parameters, "first_stage_config"))
        prior = _prior(file, parameters, autoencoder)
        condition, reason = _condition(file, parameters, prior)
        modules = {"first_stage_model.": autoencoder, "transformer.": prior}
    else:
        autoencoder = _autoencoder(file, kind, parameters)
        modules = {"": autoencoder}
    _fill(checkpoint, modules, state, device)
    return taming_model(
        autoencoder,
        None if reason else prior,
        grid=autoencoder.grid,
        fingerprint=of_state(state, str(sorted((sampling or {}).items()))),
        num_classes=len(condition),
        first_token=condition.start,
        sampling=dict(sampling or {}),
        reason=reason,
    )


def _newest_config(folder: Path) -> tuple[Path, Config]:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("taming's configurations need PyYAML: pip install pyyaml") from error
    if folder.is_file():
        raise NotADirectoryError(f"path: expected the folder of configs and checkpoints, got the file {folder}")
    configs = folder / "configs"
    file = max(configs.glob("*-project.yaml"), default=configs / "model.yaml")  # their names begin with the date
    if not file.is_file():
        raise FileNotFoundError(f"no *-project.yaml or model.yaml in {configs}")
    try:
        return file, yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not a YAML file ({error})") from error


def _target(file: Path, config: Config, name: str) -> tuple[str, Config]:
    """The class's name, without its module, and its parameters, of the part `name`."""
    try:
        part = config[name]
        if part == UNCONDITIONAL:
            return UNCONDITIONAL, {}
        target, parameters = part["target"].rsplit(".")[-1], part.get("params") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: {name}: expected a target and its params") from error
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"{file}: {name}: expected params by name, got {parameters!r}")
    return target, parameters


def _autoencoder(file: Path, kind: str, parameters: Config) -> VQModel:
    if kind not in AUTOENCODERS:
        raise CheckpointError(f"{file}: expected {', '.join(AUTOENCODERS)} or {PRIOR}, got {kind}")
    return _build(file, AUTOENCODERS[kind], parameters)


def _prior(file: Path, parameters: Config, autoencoder: VQModel) -> GPT:
    kind, settings = _target(file, parameters, "transformer_config")
    order = _target(file, parameters, "permuter_config")[0] if parameters.get("permuter_config") else "Identity"
    for name, got, expected in (("transformer_config", kind, "GPT"), ("permuter_config", order, "Identity")):
        if got != expected:
            raise CheckpointError(f"{file}: {name}: expected {expected}, got {got}")
    if settings.get("n_unmasked") not in (None, 0, 1):
        raise CheckpointError(f"{file}: n_unmasked: expected 0, for causal attention, got {settings['n_unmasked']}")
    prior = _build(file, GPT, settings)
    for name, got, least in (
        ("block_size", prior.block_size, autoencoder.grid**2),
        ("vocab_size", prior.tok_emb.num_embeddings, len(autoencoder.codebook)),
    ):
        if got < least:
            raise CheckpointError(f"{file}: {name}: expected at least {least} with this first stage, got {got}")
    return prior


def _condition(file: Path, parameters: Config, prior: GPT) -> tuple[range, str | None]:
    """The tokens of the conditions, one for each; or why images cannot be sampled by a number."""
    kind, settings = _target(file, parameters, "cond_stage_config")
    if kind in (UNCONDITIONAL, "SOSProvider"):
        name, number = "sos_token", settings.get("sos_token", parameters.get("sos_token", 0))
    elif kind == "Labelator":
        name, number = "n_classes", settings.get("n_classes", 0)
    else:
        return range(0), f"the prior's condition is a {kind}, not a class label"
    if isinstance(number, bool) or not isinstance(number, int):
        raise CheckpointError(f"{file}: cond_stage_config: {name}: expected a whole number, got {number!r}")
    tokens = range(number) if name == "n_classes" else range(number, number + 1)
    if not tokens or tokens.start < 0 or tokens.stop > prior.tok_emb.num_embeddings:
        got = f"{tokens.start} to {tokens.stop - 1}"
        raise CheckpointError(f"{file}: cond_stage_config: expected tokens of the vocabulary, got {got}")
    return tokens, None


def _build(file: Path, build: type, settings: Config):  # type: ignore[no-untyped-def]
    """A module without memory for its weights yet."""
    try:
        with torch.device("meta"):
            return build(**settings)
    except Exception as error:  # settings of any kind may be in the file, and raise nearly anything
        raise CheckpointError(f"{file}: settings that do not make a {build.__name__} ({error})") from error


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
