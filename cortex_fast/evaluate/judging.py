"""The answers of judges: image classifiers, which see pictures and never tokens."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cortex_fast import checks

Judges = Mapping[str, nn.Module]  # by name: images [B,3,H,W] in [0,1] -> logits [B,classes]


@torch.no_grad()
def probabilities(judges: Judges, images: Tensor, *, batch_size: int = 128) -> Tensor:
    """Every judge's probabilities of the classes.

    Args:
        judges: J modules by name, images -> logits [B,classes].
        images: float [B,3,H,W] in [0,1].
        batch_size: number of images at once. Default 128.

    Returns:
        float32 [J,B,classes].

    Raises:
        TypeError, ValueError: images of another rank, or batch_size below 1.
    """
    checks.rank("images", images, "[B, 3, H, W]")
    batch_size = checks.whole("batch_size", batch_size, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.stack(
        [
            torch.cat([judge(batch).float().softmax(dim=1) for batch in images.split(batch_size)])
            for judge in judges.values()
        ]
    )


def of_class(probability: Tensor, labels: checks.Integers, *, name: str = "labels") -> Tensor:
    """The probability of each image's label.

    Args:
        probability: float32 [J,B,classes].
        labels: int [B] in [0, classes).
        name: the labels' name in errors. Default "labels".

    Returns:
        float32 [J,B].

    Raises:
        TypeError, ValueError: labels of another type, number or range.
    """
    labels = image_labels(labels, probability.shape[1], probability.shape[2], probability.device, name)
    return probability.gather(2, labels.expand(len(probability), -1)[:, :, None])[:, :, 0]


def correct(probability: Tensor, labels: checks.Integers) -> Tensor:
    """Whether the most probable class is the label.

    Args:
        probability: float32 [J,B,classes].
        labels: int [B] in [0, classes).

    Returns:
        float32 [J,B], 1 or 0.

    Raises:
        TypeError, ValueError: labels of another type, number or range.
    """
    labels = image_labels(labels, probability.shape[1], probability.shape[2], probability.device)
    return (probability.argmax(dim=2) == labels).float()


def image_labels(
    labels: checks.Integers, images: int, classes: int, device: torch.device, name: str = "labels"
) -> Tensor:
    """The labels of a number of images as int64 [images] on the device.

    Raises:
        TypeError, ValueError: labels of another type, number, or outside [0, classes); the message has the name.
    """
    tensor = checks.integers(name, labels)
    if tensor.shape != (images,):
        raise ValueError(f"{name}: expected one for each of {images} images, got shape {list(tensor.shape)}")
    checks.in_range(name, tensor, classes)
    return tensor.to(device, torch.int64)
