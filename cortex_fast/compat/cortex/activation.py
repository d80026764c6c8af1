"""The published code's optimisation of one image, towards what activates a class most."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cortex_fast import ops
from cortex_fast.compat.cortex.saliency import gradients_of
from cortex_fast.compat.cortex.tokens import decode_input_embedding

_JUDGED_EVERY = 500
_DECIDED = 64.0  # above the spread of the published code's Gumbel noise, which is within [-3.9, 46.1]
_SIDE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's classifiers take them

ToPicture = Callable[[Tensor], Image.Image]
ToInput = Callable[[Image.Image], Tensor]
Results = dict[str, dict[str, float]]


def to_picture(x: Tensor) -> Image.Image:
    """An image [3,h,w] in [-1, 1] as a picture."""
    levels = (x.detach().cpu().float().permute(1, 2, 0).numpy() + 1) / 2 * 255
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def to_input(picture: Image.Image) -> Tensor:
    """A picture as an ImageNet classifier takes it: [1,3,224,224]."""
    levels = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    normalised = (torch.from_numpy(levels) - _channels(_MEAN)) / _channels(_STD)
    return normalised.permute(2, 0, 1)[None].contiguous()


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def generate_max_activation_image_token(
    model: nn.Module,
    target_label: int,
    device: torch.device | str,
    P: Tensor,
    mask: Tensor,
    codebook: Tensor,
    VQ_model: Any,
    pretrained_models: Mapping[str, nn.Module],
    initial_label: int,
    initial_tokens: Any,
    num_steps: int = 5000,
    lr: float = 0.01,
    reg: float = 0,
    temperature: float = 1.0,
    *,
    to_picture: ToPicture = to_picture,
    to_input: ToInput = to_input,
) -> tuple[Tensor, Tensor, Tensor, Results]:
    """Adam on the logits P [m m,K] of tokens, straight through Gumbel-Softmax: (P, the last step's E [1,d,m,m], its
    tokens int64 [m m], the best result of each judge).

    Minimises -f_Y(E)[target_label] + reg mean(E^2) over the rows that mask [m m,K] has ones in. Every 500 steps and at
    the end pretrained_models judge the picture of VQ_model.decode, and each one's largest probability of target_label
    is kept: {name: {step, original_logit, target_logit, original_prob, target_prob}}, original being initial_label.
    Where P is on the device already it is changed in place, as there. initial_tokens is read by nothing.
    Noise is the package's, seeded by torch's generator. Rows that the mask leaves out keep their token where P has
    decided it, by 64 above all others; ValueError where it has not, and for a mask with rows of both ones and zeros.
    """
    logits = P.detach().to(device)
    free = _free_rows(mask.to(device), logits)
    side = round(len(logits) ** 0.5)
    if codebook.ndim != 2 or len(codebook) != logits.shape[1]:
        raise ValueError(f"codebook: expected [{logits.shape[1]}, d] as P has, got {list(codebook.shape)}")
    codebook = codebook.detach().to(device)
    start = logits[free].float().contiguous()
    moments = (torch.zeros_like(start), torch.zeros_like(start))
    seed = int(torch.randint(2**63 - 1, ()))
    tokens = logits.argmax(dim=1)
    embedding = codebook[tokens]
    judges = _Judges(VQ_model, pretrained_models, target_label, initial_label, device, to_picture, to_input)
    for step in range(num_steps):
        chosen, index = ops.gumbel_codebook(start, codebook, tau=float(temperature), seed=seed, draw=step)
        tokens[free], embedding[free] = index, chosen
        x = embedding.T.reshape(1, -1, side, side)
        gradient = _loss_gradient(model, x, target_label, reg)
        upstream = gradient.flatten(2)[0].T[free].contiguous()
        ops.gumbel_codebook_step(
            start, codebook, upstream, lr=lr, tau=float(temperature), seed=seed, draw=step, moments=moments,
            step_count=step + 1,
        )  # fmt: skip
        if step % _JUDGED_EVERY == 0 or step == num_steps - 1:
            judges.look(step, x)
    with torch.no_grad():
        logits[free] = start.to(logits.dtype)
    return logits.requires_grad_(True), embedding.T.reshape(1, -1, side, side).clone(), tokens, judges.best


def generate_max_activation_image_embedding(
    model: nn.Module,
    target_label: int,
    device: torch.device | str,
    initial_embedding: Tensor,
    mask: Tensor,
    VQ_model: Any,
    pretrained_models: Mapping[str, nn.Module],
    initial_label: int,
    num_steps: int = 5000,
    lr: float = 0.01,
    reg: float = 0,
    *,
    to_picture: ToPicture = to_picture,
    to_input: ToInput = to_input,
) -> tuple[Tensor, Results]:
    """Adam on E [1,d,m,m] where mask [1,d,m,m] has ones: (E, the best result of each judge).

    The loss and the judges are those of `generate_max_activation_image_token`; they see each position's nearest code.
    """
    x = initial_embedding.detach().clone().to(device).requires_grad_(True)
    mask = mask.to(device)
    optimizer = torch.optim.Adam([x], lr=lr)
    judges = _Judges(VQ_model, pretrained_models, target_label, initial_label, device, to_picture, to_input)
    for step in range(num_steps):
        x.grad = _loss_gradient(model, x.detach(), target_label, reg) * mask
        optimizer.step()
        if step % _JUDGED_EVERY == 0 or step == num_steps - 1:
            judges.look(step, x.detach())
    return x, judges.best


def _free_rows(mask: Tensor, logits: Tensor) -> Tensor:
    """The rows that the mask has ones in, int64."""
    if mask.shape != logits.shape:
        raise ValueError(f"mask: expected P's shape {list(logits.shape)}, got {list(mask.shape)}")
    free = mask[:, 0] > 0
    if not bool((mask == free[:, None]).all()):
        raise ValueError("mask: expected rows of ones and rows of zeros, got one with both, or other numbers")
    first, second = logits[~free].topk(2, dim=1).values.unbind(1)
    undecided = int((first - second < _DECIDED).sum())
    if undecided:
        raise ValueError(f"P: expected a token {_DECIDED:.0f} above others in fixed rows, got {undecided} rows without")
    return free.nonzero().flatten()


def _loss_gradient(model: nn.Module, x: Tensor, target: int, reg: float) -> Tensor:
    """The gradient of -f_Y(x)[target] + reg mean(x^2), [1,d,m,m]."""
    targets = torch.tensor([target], device=x.device)
    return reg * 2 / x.numel() * x - gradients_of(model, x, targets)


class _Judges:
    """The best result so far of each pixel classifier."""

    def __init__(
        self,
        VQ_model: Any,
        classifiers: Mapping[str, nn.Module],
        target: int,
        original: int,
        device: torch.device | str,
        to_picture: ToPicture,
        to_input: ToInput,
    ) -> None:
        self.model, self.classifiers, self.target, self.original = VQ_model, classifiers, target, original
        self.device, self.to_picture, self.to_input = device, to_picture, to_input
        kinds = ("original_logit", "target_logit", "original_prob", "target_prob")
        self.best: Results = {name: {"step": 0, **dict.fromkeys(kinds, 0)} for name in classifiers}

    @torch.no_grad()
    def look(self, step: int, x: Tensor) -> None:
        _, _, images = decode_input_embedding(x, self.model)
        pixels = self.to_input(self.to_picture(images[0])).to(self.device)
        for name, classifier in self.classifiers.items():
            logits = classifier(pixels)[0]
            shares = logits.softmax(dim=0)
            if float(shares[self.target]) > self.best[name]["target_prob"]:
                self.best[name] = {
                    "step": step,
                    "original_logit": float(logits[self.original]),
                    "target_logit": float(logits[self.target]),
                    "original_prob": float(shares[self.original]),
                    "target_prob": float(shares[self.target]),
                }
