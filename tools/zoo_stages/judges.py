"""Stage 4: the four judges, trained on the pixels of composites."""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cortex_fast.data.results import replace_whole
from cortex_fast.zoo.judges import JUDGES, build_judge

from .common import Work, composites, cosine, resumable_steps
from .tokenizer import IMAGES

STEPS = {"residual-s": 700, "residual-m": 500, "transformer-s": 800, "transformer-m": 650}
PEAK = {"residual-s": 4e-3, "residual-m": 3e-3, "transformer-s": 1.5e-3, "transformer-m": 1e-3}
BATCH = 64


def _augment(images: Tensor) -> Tensor:
    """Vary brightness, contrast and blur, and blacken 4 x 4 px cells, so that masking is nothing unusual to a judge."""
    batch = len(images)
    gain, offset = 0.8 + 0.4 * torch.rand(batch, 1, 1, 1), 0.2 * torch.rand(batch, 3, 1, 1) - 0.1
    images = (images * gain + offset).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, blurred, torch.rand(batch, 1, 1, 1))
    dropped = 0.25 * torch.rand(batch, 1, 1, 1) * (torch.rand(batch, 1, 1, 1) < 0.5)
    visible = (torch.rand(batch, 1, 16, 16) >= dropped).float()
    return images * F.interpolate(visible, scale_factor=4)


def train(work: Work) -> dict[str, nn.Module]:
    """Train or load the judges."""
    trained = {}
    for name in JUDGES:
        path = work.folder / f"{name}.safetensors"
        torch.manual_seed(3)
        judge = build_judge(name, 12).to(memory_format=torch.channels_last)
        if path.exists():
            judge.load_state_dict(load_file(path))
        else:
            _train_judge(work, name, judge)
            weights = {key: tensor.contiguous() for key, tensor in judge.state_dict().items()}
            replace_whole(path, lambda file, weights=weights: save_file(weights, file))
        trained[name] = judge.eval()
    return trained


def _train_judge(work: Work, name: str, judge: nn.Module) -> None:
    images, labels = composites(work, "train", work.size(IMAGES))
    truth = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, weight_decay=0.02)
    steps = work.size(STEPS[name])
    for step in resumable_steps(work, name, steps, {"model": judge, "optimizer": optimizer}):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, steps, PEAK[name])
        rows = torch.randint(len(images), (BATCH,))
        pictures = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2).float() / 255
        loss = F.cross_entropy(judge(_augment(pictures)), truth[rows], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"{name}: loss {loss.item():.4f}", flush=True)
