"""The published code's optimisation of one image, towards the largest logit of a class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cortex_fast import ops
from cortex_fast.compat.cortex.saliency import gradients_of
from cortex_fast.compat.cortex.tokens import decode_input_embedding

_JUDGED_EVERY = 500
_DECIDED = 64.0  # larger than the spread of the published code's Gumbel noise, which is within [-3.9, 46.1]
_SIDE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's classifiers take them

ToPicture = Callable[[Tensor], Image.Image]
ToInput = Callable[[Image.Image], Tensor]
Results = dict[str, dict[str, float]]


def to_picture(x: Tensor) -> Image.Image:
    """Convert an image to a picture.

    Args:
        x: floating-point [3, h, w] in [-1, 1].
    """
    levels = (x.detach().cpu().float().permute(1, 2, 0).numpy() + 1) / 2 * 255
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def to_input(picture: Image.Image) -> Tensor:
    """Convert a picture to the input of an ImageNet classifier.

    Args:
        picture: of any size.
    Returns:
        float32 [1, 3, 224, 224], normalised.
    """
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
    """Optimise tokens by Adam on their logits, straight through Gumbel-Softmax.

    Minimises -f_Y(E)[target_label] + reg mean(E^2) over the rows that the mask frees. Every 500 steps and at the end
    the classifiers judge the picture. Noise is the package's, seeded by torch's generator.

    Args:
        model: f_Y, E [1, d, m, m] -> logits [1, classes].
        target_label: the class to optimise for.
        device: where to compute.
        P: logits [m m, K]; changed in place where it is on the device already, as by the published code. Rows that the
            mask leaves out keep their token, which P must have decided, by 64 above all others.
        mask: [m m, K], rows of ones to optimise and rows of zeros to leave.
        codebook: C [K, d].
        VQ_model: has `decode` and its codebook in quantize.embedding, see `decode_input_embedding`.
        pretrained_models: classifiers of pictures by name.
        initial_label: the image's class, whose logit and probability are reported.
        initial_tokens: never read, as in the published code.
        num_steps: steps of Adam. Default 5000.
        lr: its learning rate. Default 0.01.
        reg: weight of mean(E^2). Default 0.
        temperature: of Gumbel-Softmax. Default 1.
        to_picture: an image [3, h, w] in [-1, 1] as a picture. Default the function of this name.
        to_input: a picture as the classifiers' input. Default the function of this name.
    Returns:
        P; the last step's E [1, d, m, m]; its tokens int64 [m m]; and for each classifier the step of its largest
        probability of target_label: {name: {step, original_logit, target_logit, original_prob, target_prob}}, original
        being initial_label.
    Raises:
        ValueError: shapes do not fit, a row outside the mask is undecided, or a row of the mask has ones and zeros.
    """
    logits = P.detach().to(device)
    free = _free_rows(mask.to(device), logits)
    if codebook.ndim != 2 or len(codebook) != logits.shape[1]:
        raise ValueError(f"codebook: expected [{logits.shape[1]}, d] as P has, got {list(codebook.shape)}")
    search = _TokenSearch(logits, free, codebook.detach().to(device), tau=float(temperature), lr=lr)
    judges = _Judges(
        model=VQ_model,
        classifiers=pretrained_models,
        target=target_label,
        original=initial_label,
        device=device,
        to_picture=to_picture,
        to_input=to_input,
    )
    for step in range(num_steps):
        x = search.draw(step)
        search.move(step, _loss_gradient(model, x, target_label, reg))
        if _is_judged(step, num_steps):
            judges.look(step, x)
    return search.moved_logits().requires_grad_(True), search.image().clone(), search.tokens, judges.best


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
    """Optimise an embedding by Adam where a mask has ones.

    The loss and the judges are those of `generate_max_activation_image_token`; the judges see each position's nearest
    code.

    Args:
        model: f_Y, E [1, d, m, m] -> logits [1, classes].
        target_label: the class to optimise for.
        device: where to compute.
        initial_embedding: E [1, d, m, m]; not changed.
        mask: [1, d, m, m], factors of the gradient.
        VQ_model: has `decode` and its codebook in quantize.embedding, see `decode_input_embedding`.
        pretrained_models: classifiers of pictures by name.
        initial_label: the image's class, whose logit and probability are reported.
        num_steps: steps of Adam. Default 5000.
        lr: its learning rate. Default 0.01.
        reg: weight of mean(E^2). Default 0.
        to_picture: an image [3, h, w] in [-1, 1] as a picture. Default the function of this name.
        to_input: a picture as the classifiers' input. Default the function of this name.
    Returns:
        E [1, d, m, m], and the best result of each classifier.
    """
    x = initial_embedding.detach().clone().to(device).requires_grad_(True)
    mask = mask.to(device)
    optimizer = torch.optim.Adam([x], lr=lr)
    judges = _Judges(
        model=VQ_model,
        classifiers=pretrained_models,
        target=target_label,
        original=initial_label,
        device=device,
        to_picture=to_picture,
        to_input=to_input,
    )
    for step in range(num_steps):
        x.grad = _loss_gradient(model, x.detach(), target_label, reg) * mask
        optimizer.step()
        if _is_judged(step, num_steps):
            judges.look(step, x.detach())
    return x, judges.best


def _is_judged(step: int, num_steps: int) -> bool:
    return step % _JUDGED_EVERY == 0 or step == num_steps - 1


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


class _TokenSearch:
    """The state of a search: logits [m m,K] of which the rows `free` are optimised, and the image drawn last."""

    def __init__(self, logits: Tensor, free: Tensor, codebook: Tensor, *, tau: float, lr: float) -> None:
        self.logits, self.free, self.codebook, self.tau, self.lr = logits, free, codebook, tau, lr
        self.free_logits = logits[free].float().contiguous()
        self.moments = (torch.zeros_like(self.free_logits), torch.zeros_like(self.free_logits))
        self.seed = int(torch.randint(2**63 - 1, ()))
        self.tokens = logits.argmax(dim=1)
        self.embedding = codebook[self.tokens]

    def draw(self, step: int) -> Tensor:
        """E [1,d,m,m] of newly drawn tokens in the free rows."""
        selected, index = ops.gumbel_codebook(self.free_logits, self.codebook, tau=self.tau, seed=self.seed, draw=step)
        self.tokens[self.free], self.embedding[self.free] = index, selected
        return self.image()

    def move(self, step: int, gradient: Tensor) -> None:
        """A step of Adam against the loss's gradient in E [1,d,m,m]."""
        upstream = gradient.flatten(2)[0].T[self.free].contiguous()
        ops.gumbel_codebook_step(
            self.free_logits, self.codebook, upstream, lr=self.lr, tau=self.tau, seed=self.seed, draw=step,
            moments=self.moments, step_count=step + 1,
        )  # fmt: skip

    def image(self) -> Tensor:
        """E [1,d,m,m] of the tokens."""
        side = round(len(self.logits) ** 0.5)
        return self.embedding.T.reshape(1, -1, side, side)

    @torch.no_grad()
    def moved_logits(self) -> Tensor:
        """The logits, with the optimised rows in place."""
        self.logits[self.free] = self.free_logits.to(self.logits.dtype)
        return self.logits


@dataclass(eq=False)
class _Judges:
    """Classifiers of pictures, and the result of each with its largest probability of the target so far.

    model: decodes embeddings. target, original: the classes whose logits and probabilities are reported.
    """

    model: Any
    classifiers: Mapping[str, nn.Module]
    target: int
    original: int
    device: torch.device | str
    to_picture: ToPicture
    to_input: ToInput
    best: Results = field(init=False)

    def __post_init__(self) -> None:
        kinds = ("original_logit", "target_logit", "original_prob", "target_prob")
        self.best = {name: {"step": 0, **dict.fromkeys(kinds, 0)} for name in self.classifiers}

    @torch.no_grad()
    def look(self, step: int, x: Tensor) -> None:
        """Judge the picture of E [1,d,m,m]."""
        _, _, images = decode_input_embedding(x, self.model)
        pixels = self.to_input(self.to_picture(images[0])).to(self.device)
        for name, classifier in self.classifiers.items():
            logits = classifier(pixels)[0]
            probabilities = logits.softmax(dim=0)
            if float(probabilities[self.target]) > self.best[name]["target_prob"]:
                self.best[name] = {
                    "step": step,
                    "original_logit": float(logits[self.original]),
                    "target_logit": float(logits[self.target]),
                    "original_prob": float(probabilities[self.original]),
                    "target_prob": float(probabilities[self.target]),
                }
