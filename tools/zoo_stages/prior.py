"""Stage 2: the class-conditional autoregressive transformer over token grids, and the images sampled from it."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cortex_fast.data.results import replace_whole
from cortex_fast.ops import nearest_code
from cortex_fast.vqgm.autoencoder import VQModel
from cortex_fast.vqgm.decoding import prepare_decoder
from cortex_fast.vqgm.sampling import decode_tokens
from cortex_fast.vqgm.transformer import GPT

from . import tokenizer
from .common import Work, composites, cosine, pixels, resumable_steps

CONFIG = {"vocab_size": 1024, "block_size": 256, "n_layer": 8, "n_head": 6, "n_embd": 192}
SEQUENCES = 36_000
STEPS = 2_400
BATCH = 16
SAMPLING = {"temperature": 0.9, "top_k": 200}
TRAIN_SAMPLES, TEST_SAMPLES = 4_800, 960
SAMPLE_BATCH = 240
SAMPLE_SEED = 20_000


@torch.no_grad()
def encoded(work: Work, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Token grids int64 [n,256] and labels [n] of composites, by the tokenizer."""
    path = work.folder / f"encoded-{split}-{count}.safetensors"
    if not path.exists():
        model = tokenizer.train(work)
        images, labels = composites(work, split, count)
        parts = [encode(model, images[start : start + 100]) for start in range(0, count, 100)]
        tensors = {"tokens": torch.cat(parts).to(torch.int16), "labels": torch.from_numpy(labels)}
        replace_whole(path, lambda file: save_file(tensors, file))
    loaded = load_file(path)
    return loaded["tokens"].long(), loaded["labels"]


def encode(model: VQModel, images) -> Tensor:
    """uint8 images [B,64,64,3] -> tokens [B,256]."""
    latents = model.latents(pixels(images)).flatten(2).transpose(1, 2)
    return nearest_code(latents, model.quantize.embedding.weight)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "emb" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "emb" in name]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def train(work: Work) -> GPT:
    """Train or load the prior."""
    path = work.folder / "prior.safetensors"
    torch.manual_seed(1)
    model = GPT(**CONFIG)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    tokens, labels = encoded(work, "train", work.size(SEQUENCES))
    inputs = torch.cat((labels[:, None], tokens[:, :-1]), dim=1)
    optimizer = _optimizer(model)
    steps = work.size(STEPS)
    running = 0.0
    for step in resumable_steps(work, "prior", steps, {"model": model, "optimizer": optimizer}):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, 1.5e-3)
        rows = torch.randint(len(tokens), (BATCH,))
        loss = F.cross_entropy(model(inputs[rows]).flatten(0, 1), tokens[rows].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if (step + 1) % 50 == 0:
            print(f"prior: loss {running / 50:.4f} nats a token", flush=True)
            running = 0.0
    replace_whole(path, lambda file: save_file(model.state_dict(), file))
    return model.eval()


def samples(work: Work) -> dict[str, tuple[Tensor, Tensor]]:
    """Sampled token grids [n,256] and labels [n] of "train" and "test"; the labels take turns."""
    path = work.folder / "samples.safetensors"
    sizes = {"train": work.size(TRAIN_SAMPLES), "test": work.size(TEST_SAMPLES)}
    if not path.exists():
        decoder = prepare_decoder(train(work))
        total = sum(sizes.values())
        parts = []
        for start in range(0, total, SAMPLE_BATCH):
            items = torch.arange(start, min(start + SAMPLE_BATCH, total))
            parts.append(decode_tokens(decoder, items % 12, 256, seed=SAMPLE_SEED, item_ids=items, **SAMPLING))
            print(f"samples: {int(items[-1]) + 1}/{total}", flush=True)
        tensors = {"tokens": torch.cat(parts).to(torch.int16)}
        replace_whole(path, lambda file: save_file(tensors, file))
    tokens = load_file(path)["tokens"].long()
    labels = torch.arange(len(tokens)) % 12
    cut = sizes["train"]
    return {"train": (tokens[:cut], labels[:cut]), "test": (tokens[cut:], labels[cut:])}
