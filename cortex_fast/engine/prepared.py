"""A prepared extractor: its logits, and their gradients in the embedding."""

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.classes import Target, names_of, target_vector
from cortex_fast.engine.borrowing import borrowed
from cortex_fast.engine.gradients import at_least_float32, ordinary
from cortex_fast.engine.outputs import Logits
from cortex_fast.engine.precision import without_tf32
from cortex_fast.engine.smoothing import MEMORY, NoiseStream, mean_gradients
from cortex_fast.engine.split_model import SplitModel
from cortex_fast.engine.watching import changed, identity_of

_CHANGED = "extractor: its weights changed since it was prepared; call prepare() again"


class Prepared(SplitModel):
    """An extractor that `prepare` has split for input gradients, and checked.

    Targets are given as a class's number, as its name where the extractor has names, or as one of these for each
    image.

    Args:
        extractor: the user's module, which never runs.
        stand_in: a module that shares its weights and gives its logits.
        prefix: x [n,d,h,w] -> (z, ...), affine.
        linear_prefix: the prefix without its constants.
        body: (z, ...) -> h.
        head: the last linear layer, h -> logits; None where h are the logits.
        dtype: of the parts' inputs.
        notes: what was sped up, and what was not and why.
        bytes_of_copy: about the memory of one noisy copy's activations while its gradient is computed. Default 2^20.
        layout: memory format of the parts' inputs. Default channels last.
        gates: for each z whether a ReLU stands between prefix and body. Default (): none.
        weights: the extractor's weights when it was prepared. Default None: they are not checked.
        scale: the factor by which gradients are computed larger, so that they fit float16. Default 1.
        classes: number of classes. Default None: unknown.
        shape: [d,h,w], the only shape of embeddings that the parts serve. Default None: any.
        exact: whether float32 is never rounded to tf32. Default True.
    """

    def value(self, x: Tensor, target: Target) -> Tensor:
        """The logit of each image's target, differentiable in x.

        Args:
            x: float [B,d,h,w], embeddings.
            target: the class of all images, or [B], a class for each image.
        Returns:
            Logits [B] in the extractor's dtype.
        Raises:
            ValueError: x or target does not fit the extractor, or autograd saw its weights change.
            TypeError: x or target has a dtype of another kind.
        """
        target = self._targets(x, target)
        with without_tf32(self.exact):
            return self.body_value(self.body_inputs(x), target)

    def value_and_grad(self, x: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """The logit of each image's target, and its gradient in x.

        Args:
            x: float [B,d,h,w], embeddings.
            target: the class of all images, or [B], a class for each image.
        Returns:
            Logits [B] and gradients [B,d,h,w], both in float32 or wider, without an autograd graph.
        Raises:
            ValueError: x or target does not fit the extractor, or its weights have changed.
            TypeError: x or target has a dtype of another kind.
        """
        target = self._targets(x, target)
        self.check_weights()
        with torch.inference_mode(False), torch.enable_grad(), without_tf32(self.exact):
            x, target = at_least_float32(ordinary(x).detach()).requires_grad_(True), ordinary(target)
            value = self.value(x, target)
            (gradient,) = torch.autograd.grad(at_least_float32(value).sum() * self.scale, x)
        return value.detach().to(x.dtype), gradient / self.scale

    def smoothgrad(
        self, x: Tensor, target: Target, stream: NoiseStream, *, num_samples: int = 20, memory: int = MEMORY
    ) -> Tensor:
        """The mean over N noisy copies of d logit[target] / dE (eq. 5).

        Args:
            x: float [B,d,h,w], embeddings.
            target: the class of all images, or [B], a class for each image.
            stream: the noise of the B images.
            num_samples: N, the copies of each image. Default 20.
            memory: bytes that the activations of one pass may take; the result does not depend on it. Default 1 GiB.
        Returns:
            Mean gradients [B,d,h,w], in float32 or wider.
        Raises:
            ValueError: an argument does not fit the extractor, or its weights have changed.
            TypeError: x or target has a dtype of another kind.
        """
        target = self._targets(x, target)
        self.check_weights()
        num_samples, memory = checks.whole("num_samples", num_samples, 1), checks.whole("memory", memory, 1)
        pieces = mean_gradients(self, x, target, stream, range(num_samples), memory=memory)
        return torch.cat([gradient for _, gradient in pieces]) if len(x) else at_least_float32(x)

    def token_saliency(
        self,
        x: Tensor,
        target: Target,
        stream: NoiseStream,
        *,
        num_samples: int = 20,
        reduction: str = "absmax",
        memory: int = MEMORY,
    ) -> Tensor:
        """TSV of each token: `smoothgrad` reduced over the channels.

        Args:
            x: float [B,d,h,w], embeddings.
            target: the class of all images, or [B], a class for each image.
            stream: the noise of the B images.
            num_samples: N, the copies of each image. Default 20.
            reduction: of the channels, as in `ops.token_saliency`: "absmax" (the paper, default), "max" or "mean".
            memory: bytes that the activations of one pass may take; the result does not depend on it. Default 1 GiB.
        Returns:
            TSV [B,h,w], in float32 or wider.
        Raises:
            ValueError: an argument does not fit the extractor, or its weights have changed.
            TypeError: x or target has a dtype of another kind.
        """
        gradient = self.smoothgrad(x, target, stream, num_samples=num_samples, memory=memory)
        return ops.token_saliency(gradient[:, None], reduction=reduction)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The extractor's logits, without a gradient.

        Args:
            x: float [B,d,h,w], embeddings.
        Returns:
            Logits [B,classes] in the extractor's dtype.
        Raises:
            ValueError: the extractor's weights have changed.
        """
        self.check_weights()
        return self.stand_in(x.clone())

    def check_shape(self, name: str, x: Tensor) -> None:
        """Refuse embeddings of another shape than the extractor was prepared for.

        Args:
            name: of the argument, for the message.
            x: float [B,d,h,w], embeddings.
        Raises:
            ValueError: the shape [d,h,w] is another one.
        """
        if self.shape is not None and x.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"{name}: expected shape [B, {expected}], as the extractor was prepared for, got "
                             f"{list(x.shape)}; prepare it with a sample of that shape")  # fmt: skip

    def check_weights(self) -> None:
        """Refuse an extractor whose weights have changed since it was prepared. On a GPU this waits once.

        Changes past autograd, as by weight.data.mul_(), are noticed by a thousand elements of each parameter and
        buffer: a change of a whole tensor, or of more than a thousandth of it in one piece.

        Raises:
            ValueError: the weights have changed.
        """
        if self.weights is not None and changed(self.weights, self.extractor):
            raise ValueError(_CHANGED)

    def _targets(self, x: Tensor, target: Target) -> Tensor:
        """The targets as classes of the extractor, int64 [B]; checks x, target and, as autograd sees them, weights."""
        checks.rank("x", x, "[B, d, h, w]")
        checks.floating("x", x)
        self.check_shape("x", x)
        if not isinstance(target, Tensor):
            target = target_vector(target, len(x), x.device, names_of(self.extractor))
        checks.integral("target", target)
        checks.same_shape("target", target, "x's first dimension", x.shape[:1])
        checks.same_device(x=x, target=target)
        if target.device.type == "cpu":  # on a GPU reading the values would wait for it
            if self.classes is not None:
                checks.in_range("target", target, self.classes)
            elif bool((target < 0).any()):
                raise ValueError(f"target: expected classes from 0 on, got {int(target.min())}")
        if self.weights is not None and self.weights.identity != identity_of(self.extractor):
            raise ValueError(_CHANGED)
        return target.long()


def module_of(extractor: nn.Module | Prepared) -> nn.Module:
    """The user's module of an extractor that may be prepared.

    Args:
        extractor: a module, or a prepared one.
    Returns:
        The module that was given, or that was prepared.
    """
    return extractor.extractor if isinstance(extractor, Prepared) else extractor


@torch.no_grad()
def logits_of(extractor: nn.Module | Prepared, x: Tensor) -> Tensor:
    """An extractor's logits without a gradient; the extractor is left unchanged.

    Args:
        extractor: an eval-mode module from embeddings to logits, or a prepared one.
        x: float [B,d,h,w], embeddings.
    Returns:
        Logits [B,classes] in the extractor's dtype.
    Raises:
        ValueError: the extractor's result holds no logits. Exceptions of its forward pass through.
    """
    if isinstance(extractor, Prepared):
        return extractor.logits(x)
    return Logits(borrowed(extractor, tensors_too=True))(ordinary(x).clone())
