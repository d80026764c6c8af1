"""A model prepared once, however often a caller asks for its gradients."""

from typing import Any

from torch import Tensor, nn

from cortex_fast.engine import Prepared, prepare

_NAME = "_cortex_fast_prepared"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class _Kept:
    """What was prepared of a model, kept by the model itself, so that both go together; its copies keep nothing."""

    def __init__(self, key: Any = None, prepared: Prepared | str = "") -> None:
        self.key, self.prepared = key, prepared

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


def prepared_of(model: nn.Module, x: Tensor) -> Prepared | str:
    """The model made ready for gradients in x [B,d,m,m], as it is now; or the reason why the engine cannot serve it:
    training mode, in which images see each other, or a forward that does not take what the engine tries."""
    if any(module.training for module in model.modules()):
        return "the model is in training mode"
    key = (x.shape[1:], x.dtype, x.device, _glance(model))
    kept = getattr(model, _NAME, None)
    if isinstance(kept, _Kept) and kept.key == key:
        if isinstance(kept.prepared, str):
            return kept.prepared
        try:
            kept.prepared.check_weights()
            return kept.prepared
        except ValueError:  # the weights changed
            pass
    try:
        prepared: Prepared | str = prepare(model, x[:1].detach())
    except Exception as error:  # the user's forward runs in it, and may raise anything
        prepared = str(error)
    object.__setattr__(model, _NAME, _Kept(key, prepared))
    return prepared


def _glance(model: nn.Module) -> tuple[Any, ...]:
    """What tells the changes that `Prepared.check_weights` does not: hooks, settings, another forward."""
    return tuple(
        (id(module), id(vars(module).get("forward")), module.extra_repr(), *_hooks(module))
        for module in model.modules()
    )


def _hooks(module: nn.Module) -> list[tuple[int, ...]]:
    """The numbers of its hooks, which torch gives only once."""
    return [tuple(getattr(module, hooks, ())) for hooks in _HOOKS]
