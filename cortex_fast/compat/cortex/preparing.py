"""A model prepared once, however often a script asks for its gradients."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.engine import Prepared, prepare

_NAME = "_cortex_fast_prepared"


class _Kept:
    """What was prepared of a model, kept by the model itself, so that both go together; its copies keep nothing."""

    def __init__(self, key: Any = None, prepared: Prepared | None = None) -> None:
        self.key, self.prepared = key, prepared

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


def prepared_of(model: nn.Module, x: Tensor) -> Prepared | None:
    """The model made ready for gradients in x [B,d,m,m], as it is now; None where the engine cannot serve it: in
    training mode, when images see each other, or where its forward does not take what the engine tries."""
    if any(module.training for module in model.modules()):
        return None
    key = (x.shape[1:], x.dtype, x.device)
    kept = getattr(model, _NAME, None)
    if isinstance(kept, _Kept) and kept.key == key:
        if kept.prepared is None:
            return None
        try:
            kept.prepared.check_weights()
            return kept.prepared
        except ValueError:  # the weights changed
            pass
    try:
        prepared: Prepared | None = prepare(model, x[:1].detach())
    except Exception as error:  # the user's forward runs in it, and may raise anything
        warnings.warn(f"gradients one image at a time, as the published code takes them: {error}", stacklevel=4)
        prepared = None
    object.__setattr__(model, _NAME, _Kept(key, prepared))
    return prepared


def own_gradients(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """d logit[target] / dx of each image, by a backward pass for each: images may see each other."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        outputs = model(x)
        gradients = []
        for image, target in enumerate(targets.tolist()):
            (gradient,) = torch.autograd.grad(outputs[image, target].sum(), x, retain_graph=True)
            gradients.append(gradient[image])
    return torch.stack(gradients)
