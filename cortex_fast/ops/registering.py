"""Registration of the operators in torch.ops.cortex_fast.

`torch.library.custom_op` would do, but it imports torch._dynamo at its first call, which takes two seconds of every
process.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


class _Library(torch.library.Library):
    """A library whose operators raise in forward mode, where torch would silently take their tangents as 0."""

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        if dispatch_key == "Autograd":
            fn = _without_tangents(fn)
        super().impl(op_name, fn, dispatch_key, **options)


def refuse_tangents(*arguments: Any) -> None:
    """Refuse tensors that carry a tangent of forward-mode differentiation.

    Args:
        *arguments: an operator's arguments; tensors may also be in lists.

    Raises:
        NotImplementedError: if one of the tensors carries a tangent.
    """
    if forward_ad._current_level < 0:  # no tangents exist outside a dual level
        return
    for tensor in _tensors(arguments):
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "the operators of cortex_fast have no forward-mode derivatives (jvp, jacfwd, dual tensors): expected "
                "reverse mode (backward or torch.autograd.grad)"
            )


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments, also those in lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from (tensor for tensor in argument if isinstance(tensor, Tensor))


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor with a lazy negation or lazy zeros written out: the dispatcher does this for operators only.

    Args:
        tensor: of any shape and dtype.

    Returns:
        The same values, in memory; the tensor itself where it is in memory already.
    """
    tensor = tensor.resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def _without_tangents(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def run(keyset: Any, *arguments: Any) -> Any:
        refuse_tangents(*arguments)
        return kernel(keyset, *arguments)

    return run


_LIBRARY = _Library("cortex_fast", "FRAGMENT")


class Operator:
    """A kernel as an operator of torch.ops.cortex_fast, called as the kernel is, positionally or by keyword.

    Args:
        name: the operator's name in torch.ops.cortex_fast.
        kernel: what it runs on every device; its annotations are the operator's schema.
        mutates_args: names of the arguments that it changes in place.
    """

    def __init__(self, name: str, kernel: Callable[..., Any], mutates_args: Sequence[str]) -> None:
        self.name = f"cortex_fast::{name}"
        self._backward: Callable[..., Any] = self._no_backward
        self._setup_context: Callable[..., None] = lambda ctx, inputs, output: None
        schema = torch.library.infer_schema(kernel, mutates_args=mutates_args)
        _LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        self._overload = getattr(torch.ops.cortex_fast, name).default
        self._names = [argument.name for argument in self._overload._schema.arguments]
        mutated = [self._names.index(argument) for argument in mutates_args]
        _LIBRARY.impl(name, _run(kernel, mutated), "CompositeExplicitAutograd")
        if mutates_args:
            _LIBRARY.impl(name, self._below_autograd, "Autograd", with_keyset=True)
        else:
            torch.library.register_autograd(
                self.name,
                lambda *arguments: self._backward(*arguments),
                setup_context=lambda *arguments, **named: self._setup_context(*arguments, **named),
                lib=_LIBRARY,
            )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if named:  # by position, since torch takes 3 us for nine names
            arguments = (*arguments, *map(named.pop, self._names[len(arguments) :]))
        return self._overload(*arguments, **named)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator of a function of the operator's signature whose results have the right shapes and dtypes."""
        torch.library.register_fake(self.name, fake, lib=_LIBRARY)
        return fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Make the operator differentiable in reverse mode, with functions as torch.library.register_autograd's.

        Args:
            backward: (ctx, *upstream gradients) -> a gradient or None for each argument.
            setup_context: (ctx, inputs, output) -> None, saves what `backward` needs.
        """
        self._backward, self._setup_context = backward, setup_context

    def constant(self) -> None:
        """Declare the results as constants in reverse mode. Forward mode still raises."""
        self._setup_context = lambda ctx, inputs, output: ctx.mark_non_differentiable(
            *((output,) if isinstance(output, Tensor) else output)
        )

    def _below_autograd(self, keyset: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self._overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    def _no_backward(self, *_: Any) -> None:
        raise RuntimeError(f"{self.name} is not differentiable")


def operator(name: str, *, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that registers a kernel as an operator.

    Args:
        name: the operator's name in torch.ops.cortex_fast.
        mutates_args: names of the arguments that the kernel changes in place. Default none.

    Returns:
        A function from the kernel, whose annotations are the schema, to its `Operator`.
    """
    return lambda kernel: Operator(name, kernel, mutates_args)


def _run(kernel: Callable[..., Any], mutated: Sequence[int]) -> Callable[..., Any]:
    """The kernel as the dispatcher runs it: not traced by torch.compile, and outside autocast, which would have it
    compute in another dtype than its result has. Autograd learns which arguments were changed, by position."""
    untraced: Callable[..., Any] | None = None

    def run(*arguments: Any) -> Any:
        nonlocal untraced
        if untraced is None and "torch._dynamo" in sys.modules:
            untraced = torch.compiler.disable(kernel)
        for tensor in _tensors([arguments[position] for position in mutated]) if mutated else ():
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
        with torch._C._DisableAutocast():
            return (untraced or kernel)(*arguments)

    return run
