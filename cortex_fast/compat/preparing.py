"""A model prepared once, for any number of calls."""

from typing import Any

from torch import Tensor, nn

from cortex_fast.engine import Prepared, prepare

_NAME = "_cortex_fast_prepared"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class UnservedError(Exception):
    """The engine cannot serve a model; the message states the reason."""


class _Preparation:
    """A model as it was prepared, stored in the model itself, so that both are freed together; copies of it are empty.

    key: the model's state and the input's kind; prepared: None where the model cannot be served, for `reason`.
    """

    def __init__(self, key: Any = None, prepared: Prepared | None = None, reason: str = "") -> None:
        self.key, self.prepared, self.reason = key, prepared, reason

    def __reduce__(self) -> tuple[type["_Preparation"], tuple[()]]:
        return _Preparation, ()


def prepared_of(model: nn.Module, x: Tensor) -> Prepared:
    """The model in its present state, prepared for gradients in its input; a model is prepared once.

    Args:
        model: a module from embeddings to logits [B,classes].
        x: float [B,d,m,m], embeddings.
    Returns:
        The prepared model.
    Raises:
        UnservedError: the model is in training mode, in which images change each other's results, or its forward fails
            on the images that the engine tries.
    """
    if any(module.training for module in model.modules()):
        raise UnservedError("the model is in training mode")
    key = (x.shape[1:], x.dtype, x.device, _state(model))
    preparation = getattr(model, _NAME, None)
    if not isinstance(preparation, _Preparation) or preparation.key != key or _is_outdated(preparation):
        preparation = _prepared_now(key, model, x)
        object.__setattr__(model, _NAME, preparation)
    if preparation.prepared is None:
        raise UnservedError(preparation.reason)
    return preparation.prepared


def _is_outdated(preparation: _Preparation) -> bool:
    """Whether the weights have changed since."""
    try:
        if preparation.prepared is not None:
            preparation.prepared.check_weights()
    except ValueError:
        return True
    return False


def _prepared_now(key: Any, model: nn.Module, x: Tensor) -> _Preparation:
    try:
        return _Preparation(key, prepare(model, x[:1].detach()))
    except Exception as error:  # the user's forward may raise anything
        return _Preparation(key, reason=str(error))


def _state(model: nn.Module) -> tuple[Any, ...]:
    """A value that changes with what `Prepared.check_weights` does not see: hooks, settings, another forward."""
    return tuple(
        (id(module), id(vars(module).get("forward")), module.extra_repr(), *_hooks(module))
        for module in model.modules()
    )


def _hooks(module: nn.Module) -> list[tuple[int, ...]]:
    """The numbers of its hooks, which torch never reuses."""
    return [tuple(getattr(module, hooks, ())) for hooks in _HOOKS]
