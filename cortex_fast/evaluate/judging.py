"""What image classifiers, which never see a token, say of pictures."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cortex_fast import checks

Judges = Mapping[str, nn.Module]


@torch.no_grad()
def probabilities(judges: Judges, images: Tensor, *, batch_size: int = 128) -> Tensor:
    """Class probabilities float32 [judges,B,classes] for images [B,3,H,W] in [0,1]."""
    checks.rank("images", images, "[B, 3, H, W]")
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.stack(
        [
            torch.cat([judge(part).float().softmax(dim=1) for part in images.split(batch_size)])
            for judge in judges.values()
        ]
    )


def of_class(probability: Tensor, labels: Tensor) -> Tensor:
    """[judges,B,classes] and labels int64 [B] -> the labels' probabilities [judges,B]."""
    return probability.gather(2, labels.expand(len(probability), -1)[:, :, None])[:, :, 0]


def correct(probability: Tensor, labels: Tensor) -> Tensor:
    """Whether the most probable class is the label: float32 [judges,B]."""
    return (probability.argmax(dim=2) == labels).float()
