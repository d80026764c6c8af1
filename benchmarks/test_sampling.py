"""Sampling 32 images of 16 x 16 tokens from a small prior, top 100, against the procedure of taming-transformers.

Floor: the products of the prior's weights, once for each token, and the attention over the tokens before it.
taming-transformers takes the whole sequence through the prior at each step. Some of its steps are timed: those in the
middle, whose sequences have the mean length.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.baselines import taming_sampling
from benchmarks.harness import SEED, Case, Sibling
from benchmarks.machine import Floor
from cortex_fast.vqgm.decoding import Decoder, new_cache, prepare_decoder, step
from cortex_fast.vqgm.sampling import decode_tokens
from cortex_fast.vqgm.transformer import GPT
from tests.vqgm import real_taming

TOLERANCE = 1e-4  # of logits of size 1 to 10
STEPS = 4  # of taming-transformers, which are timed


@dataclass(frozen=True)
class Sampling:
    prior: GPT
    decoder: Decoder
    labels: Tensor
    length: int


def sampling(config: dict[str, int], batch: int, device: torch.device) -> Sampling:
    torch.manual_seed(SEED)
    prior = GPT(**config).eval().requires_grad_(False)
    for parameter in prior.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    prior.to(device)
    labels = torch.arange(batch, device=device)
    return Sampling(prior, prepare_decoder(prior), labels, config["block_size"])


def cached(data: Sampling) -> Tensor:
    items = torch.arange(len(data.labels), device=data.labels.device)
    return decode_tokens(data.decoder, data.labels, data.length, seed=SEED, item_ids=items, top_k=100)


def cache_error(data: Sampling, tokens: Tensor) -> float:
    """The error of the logits of single steps along the first two sequences, against one pass in float64."""
    ids = torch.cat([data.labels[:2, None], tokens[:2, :-1]], dim=1)
    cache = new_cache(data.decoder, 2, data.length)
    logits = [
        step(data.decoder, cache, ids[:, t], torch.tensor([t], device=ids.device), t + 1) for t in range(data.length)
    ]
    exact = copy.deepcopy(data.prior).double().cpu()(ids.cpu())
    return float((torch.stack(logits, dim=1).cpu() - exact).abs().max())


def settings_of(prior: GPT) -> dict[str, int]:
    return {
        "vocab_size": prior.tok_emb.num_embeddings,
        "block_size": prior.block_size,
        "n_layer": len(prior.blocks),
        "n_head": prior.n_head,
        "n_embd": prior.tok_emb.embedding_dim,
    }


def procedure(data: Sampling) -> Tensor:
    """STEPS steps of taming-transformers' procedure from the middle of the sequence."""
    tokens = torch.randint(100, (len(data.labels), data.length // 2 - STEPS // 2), device=data.labels.device)
    pasts = [torch.cat([data.labels[:, None], tokens], dim=1)]

    def logits_of(ids: Tensor) -> Tensor:
        return data.prior(torch.cat([pasts[0], ids[:, 1:]], dim=1))

    return taming_sampling.sample(logits_of, data.labels, STEPS, 1.0, 100)


def taming_itself(data: Sampling) -> Callable[[], Tensor]:
    """The same steps by taming-transformers' own function and transformer."""
    with real_taming.taming() as taming:
        theirs = taming.GPT(**settings_of(data.prior))
        theirs.load_state_dict(data.prior.state_dict(), strict=False)  # all but its constant masks
        whole = SimpleNamespace(transformer=theirs.eval().to(data.labels.device), pkeep=1.0)
        whole.top_k_logits = partial(taming.Net2NetTransformer.top_k_logits, whole)
        sample = partial(taming.Net2NetTransformer.sample, whole)
    tokens = torch.randint(100, (len(data.labels), data.length // 2 - STEPS // 2), device=data.labels.device)
    return lambda: sample(tokens, data.labels[:, None], STEPS, sample=True, top_k=100)


def without_taming(_data: Sampling) -> str | None:
    return None if find_spec("taming") else "taming-transformers is not installed"


def cases(quick: bool) -> list[Case]:
    small = {"vocab_size": 1024, "block_size": 256, "n_layer": 4, "n_head": 4, "n_embd": 256}
    config = small | {"block_size": 16, "n_layer": 1} if quick else small
    batch, length, width = 32, config["block_size"], config["n_embd"]
    weights = config["n_layer"] * 12 * width**2 + config["vocab_size"] * width
    operations = 2 * batch * length * (weights + config["n_layer"] * width * length)  # attention: twice half of length
    return [
        Case(
            operator="sampling",
            name=f"{batch} images of {length} tokens",
            sizes=f"{config['n_layer']} layers of {width}, {config['vocab_size']} codes, top 100, float32",
            floor=Floor(bytes=0, operations=operations),
            data=partial(sampling, config, batch),
            siblings=(
                Sibling("static cache", cached, cache_error, TOLERANCE),
                Sibling(f"published, {STEPS} steps", procedure, None, TOLERANCE, share=STEPS / length),
                Sibling(
                    f"taming, {STEPS} steps",
                    lambda sample: sample(),
                    None,
                    TOLERANCE,
                    prepare=taming_itself,
                    unavailable=without_taming,
                    share=STEPS / length,
                ),
            ),
        )
    ]


def test_sampling(measure):
    measure()
