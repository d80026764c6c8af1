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
    batch_size = checks.whole("batch_size", batch_size, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.stack(
        [
            torch.cat([judge(part).float().softmax(dim=1) for part in images.split(batch_size)])
            for judge in judges.values()
        ]
    )


def of_class(probability: Tensor, labels: checks.Integers, *, name: str = "labels") -> Tensor:
    """[judges,B,classes] and labels int [B] -> the labels' probabilities [judges,B]. name: the labels', in errors."""
    labels = class_of_each(labels, probability.shape[1], probability.shape[2], probability.device, name)
    return probability.gather(2, labels.expand(len(probability), -1)[:, :, None])[:, :, 0]


def correct(probability: Tensor, labels: checks.Integers) -> Tensor:
    """Whether the most probable class is the label: float32 [judges,B]."""
    labels = class_of_each(labels, probability.shape[1], probability.shape[2], probability.device)
    return (probability.argmax(dim=2) == labels).float()


def class_of_each(
    labels: checks.Integers, images: int, classes: int, device: torch.device, name: str = "labels"
) -> Tensor:
    """int64 [images] on the device. Raises TypeError or ValueError, with the name, for others than so many in
    [0, classes)."""
    found = checks.integers(name, labels)
    if found.shape != (images,):
        raise ValueError(f"{name}: expected one for each of {images} images, got shape {list(found.shape)}")
    checks.in_range(name, found, classes)
    return found.to(device, torch.int64)
