"""Stage 1: the VQGAN-type tokenizer, 64 x 64 pixels to 16 x 16 tokens and back."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cortex_fast.data.results import replace_whole
from cortex_fast.vqgm.autoencoder import VQModel

from .common import Work, composites, cosine, pixels, resumable_steps

CONFIG = {
    "n_embed": 1024,
    "embed_dim": 32,
    "ddconfig": {
        "double_z": False,
        "z_channels": 32,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "norm_groups": 4,
    },
}
IMAGES = 36_000
STEPS = 1_700
BATCH = 16
FREE_STEPS = 150  # of the autoencoder without quantisation, so that the codebook starts among real latents
DECAY = 0.98


class CodebookAverage(nn.Module):
    """The codebook as a moving average of each token's latents; an unused token is moved to a random latent."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(n_embed))
        self.register_buffer("total", torch.zeros(n_embed, embed_dim))

    @torch.no_grad()
    def start(self, codebook: Tensor, latents: Tensor) -> None:
        """Start from k-means on latents [n,d], whose centres start from random latents."""
        centres = latents[torch.randperm(len(latents))[: len(codebook)]].clone()
        for _ in range(10):
            nearest = torch.cdist(latents, centres).argmin(1)
            count = torch.bincount(nearest, minlength=len(centres)).float()
            total = torch.zeros_like(centres).index_add_(0, nearest, latents)
            centres = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], centres)
        codebook.copy_(centres)
        self.count.fill_(1.0)
        self.total.copy_(centres)

    @torch.no_grad()
    def update(self, codebook: Tensor, latents: Tensor, tokens: Tensor) -> None:
        """One step of the average, by latents [n,d] and their tokens int64 [n]."""
        count = torch.bincount(tokens, minlength=len(codebook)).float()
        self.count.lerp_(count, 1 - DECAY)
        self.total.lerp_(torch.zeros_like(self.total).index_add_(0, tokens, latents), 1 - DECAY)
        unused = torch.nonzero(self.count < 0.02).flatten()
        fresh = latents[torch.randint(len(latents), (len(unused),))]
        self.count[unused] = 1.0
        self.total[unused] = fresh
        codebook.copy_(self.total / self.count.clamp(min=1e-5)[:, None])


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of both image gradients, because drawings consist of edges."""
    error = output - target
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + edges


def _quantised_loss(
    model: VQModel, average: CodebookAverage, codebook: Tensor, latents: Tensor, target: Tensor
) -> Tensor:
    """The loss of the quantised images, straight through to the latents [B,d,h,w]; updates the codebook."""
    flat = latents.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
    tokens = torch.cdist(flat.detach(), codebook).argmin(1)
    quantised = F.embedding(tokens, codebook)
    commitment = (flat - quantised).square().mean()
    straight = (flat + (quantised - flat).detach()).view(BATCH, *latents.shape[2:], -1).permute(0, 3, 1, 2)
    loss = _loss(model.decode(straight), target) + 0.25 * commitment
    average.update(codebook, flat.detach(), tokens)
    return loss


def train(work: Work) -> VQModel:
    """Train or load the tokenizer."""
    path = work.folder / "tokenizer.safetensors"
    torch.manual_seed(0)
    model = VQModel(**CONFIG).to(memory_format=torch.channels_last)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    images, _ = composites(work, "train", work.size(IMAGES))
    codebook = model.quantize.embedding.weight.requires_grad_(False)
    average = CodebookAverage(*codebook.shape)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95))
    steps, free_steps = work.size(STEPS), work.size(FREE_STEPS)
    samples: list[Tensor] = []  # of latents, from which the codebook starts
    for step in resumable_steps(work, "tokenizer", steps, {"model": model, "average": average, "optimizer": optimizer}):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, 1.5e-3)
        target = pixels(images[torch.randint(len(images), (BATCH,)).numpy()])
        latents = model.latents(target)
        if step < free_steps:
            flat = latents.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
            loss = _loss(model.decode(latents), target) + 0.01 * flat.square().mean()
            samples.append(flat.detach()[torch.randperm(len(flat))[:2000]])
            if step == free_steps - 1:
                average.start(codebook, torch.cat(samples[-16:]))
                samples.clear()
        else:
            loss = _quantised_loss(model, average, codebook, latents, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            used = int((average.count > 0.1).sum())
            print(f"tokenizer: loss {loss.item():.4f}, {used} tokens in use", flush=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    replace_whole(path, lambda file: save_file(weights, file))
    return model.eval()
