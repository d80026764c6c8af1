"""Replaces a script's definitions by the package's, where they do what the published ones do."""

import ast
import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.compat import cortex
from cortex_fast.data.grids import sides

HOOK = "__cortex_fast_replace__"  # a Replacer's name in changed code
SALIENCY = ("AverageSaliency", "SingleSaliency")
NETWORKS = ("ClassificationNet1", "ClassificationNet2", "ClassificationNet3", "ClassificationNet4")
SEARCHES = ("generate_max_activation_image_token", "generate_max_activation_image_embedding")
NAMES = frozenset(cortex.__all__)
_FREE_DEFAULTS = ("num_steps", "lr")  # the published code takes them from its command line
_HELPERS = {"to_picture": "chw_to_pillow", "to_input": "preprocess_image"}  # which a script may define


class DifferentError(Exception):
    """A script's definition is not the published one; the message states the difference."""


def with_replacements(source: str | bytes, filename: str) -> ast.Module:
    """Parse a module so that each definition of a published name is passed to HOOK, under the definition's line number.

    Args:
        source: the module's text.
        filename: for messages and tracebacks.
    Returns:
        The changed syntax tree.
    Raises:
        SyntaxError: the text is not Python.
    """
    return ast.fix_missing_locations(_Hooking().visit(ast.parse(source, filename)))


class _Hooking(ast.NodeTransformer):
    """Changes the module's own definitions, also those within an if or a try there."""

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._hooked(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return self._hooked(node)

    def _hooked(self, node: ast.ClassDef | ast.FunctionDef) -> Any:
        if node.name not in NAMES:
            return node
        call = ast.parse(f"{node.name} = {HOOK}({node.name!r}, {node.name})").body[0]
        for part in ast.walk(call):
            ast.copy_location(part, node)
        return [node, call]


class Replacer:
    """Decides what a definition is replaced by.

    replaced: name -> module of each definition that was replaced. left: name -> why a definition was not.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def __call__(self, name: str, definition: Any) -> Any:
        """Choose what a name means in the script.

        Args:
            name: one of `NAMES`.
            definition: the script's class or function of that name.
        Returns:
            The package's class or function, or the script's where that is not the published one.
        """
        replacement = getattr(cortex, name)
        if name in NETWORKS and isinstance(definition, type):
            return _network(name, definition, replacement, self)
        try:
            with torch.random.fork_rng(devices=[]):  # a trial leaves the script's random numbers as they were
                torch.manual_seed(0)
                _compare(name, definition, replacement)
        except Exception as error:  # the script's code runs in a trial, and may raise anything
            self.leave(name, error)
            return definition
        self.replace(name, definition)
        return _search(definition, replacement) if name in SEARCHES else replacement

    def replace(self, name: str, definition: Any) -> None:
        """Note that a definition was replaced."""
        self.replaced[name] = definition.__module__

    def leave(self, name: str, error: Exception) -> None:
        """Note why a definition was not replaced."""
        self.left[name] = str(error) if isinstance(error, DifferentError) else f"{type(error).__name__}: {error}"


def _compare(name: str, definition: Any, replacement: Any) -> None:
    """Raise DifferentError, or the error of a trial, where the script's definition is not the published one."""
    if name in SALIENCY:
        for method in ("__init__", "get_grad", "get_average_grad"):
            _same_arguments(getattr(definition, method, None), getattr(replacement, method), f"{name}.{method}")
        _try_saliency(definition)
        return
    _same_arguments(definition, replacement, name)
    if name in _TRIALS and not _alike(_TRIALS[name](definition), _TRIALS[name](replacement)):
        raise DifferentError("it gives other results than the published one")


def _same_arguments(definition: Any, replacement: Callable[..., Any], name: str) -> None:
    if not callable(definition):
        raise DifferentError(f"it has no {name}")
    got, expected = (
        {
            parameter.name: None if parameter.name in _FREE_DEFAULTS else parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not parameter.KEYWORD_ONLY
        }
        for function in (definition, replacement)
    )
    if list(got.items()) != list(expected.items()):
        raise DifferentError(f"{name} has other arguments or defaults than the published one")


class _Squares(nn.Module):
    """logit t = (t + 1) |x|^2 / 2, of which the gradient is (t + 1) x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(dim=1, keepdim=True) / 2 * torch.arange(1.0, 5.0)


def _try_saliency(definition: type) -> None:
    """Of a known model, gradients without noise must be equal, and with noise they must spread as far."""
    x, targets = torch.randn(2, 8, 16, 16), torch.tensor([2, 1])
    x[1] *= 4  # sigma is of the batch
    factors = (targets + 1).view(-1, 1, 1, 1)
    saliency = definition(_Squares().eval())
    calm = saliency.get_average_grad(x.clone(), targets, stdev_spread=0.0)
    if calm.dtype != torch.float64 or not _alike(calm.detach().to(x.dtype), x * factors):
        raise DifferentError("its gradients differ from the published one's")
    drawn = (saliency.get_average_grad(x.clone(), targets).detach() / factors - x).std()
    expected = 0.2 * (x.max() - x.min()) / 20**0.5
    if abs(drawn / expected - 1) > 0.1:
        raise DifferentError("its noise differs from the published one's")


def _try_gumbel(function: Any) -> Any:
    torch.manual_seed(1)
    return function((8, 16))


def _try_softmax(function: Any) -> Any:
    torch.manual_seed(1)
    logits = torch.linspace(-1, 1, 128).view(8, 16).requires_grad_(True)
    y, index = function(logits, 0.5)
    (gradient,) = torch.autograd.grad((y * torch.arange(16.0)).sum(), logits)
    return y.detach(), index, gradient


def _try_mask(function: Any) -> Any:
    return function((256, 3), (7, 7), (10, 10)), function((1, 2, 16, 16), (2, 7), (10, 12))


class _Quantiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(32, 256)
        torch.manual_seed(2)
        nn.init.normal_(self.quantize.embedding.weight)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :3] * 2


def _try_decoding(function: Any) -> Any:
    torch.manual_seed(1)
    return tuple(result.detach() for result in function(torch.randn(2, 256, 16, 16), _Quantiser()))


_TRIALS: dict[str, Callable[[Any], Any]] = {
    "sample_gumbel": _try_gumbel,
    "gumbel_softmax": _try_softmax,
    "create_mask": _try_mask,
    "decode_input_embedding": _try_decoding,
}


def _alike(got: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return len(got) == len(expected) and all(map(_alike, got, expected))
    return got.shape == expected.shape and got.dtype == expected.dtype and torch.allclose(got, expected, 1e-4, 1e-5)


def _search(definition: Any, replacement: Callable[..., Any]) -> Callable[..., Any]:
    """The package's search with the script's defaults and the script's functions from an image to a picture and on."""
    signature = inspect.signature(definition)

    def search(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        defined = definition.__globals__
        helpers = {argument: defined[name] for argument, name in _HELPERS.items() if name in defined}
        return replacement(**bound.arguments, **helpers)

    search.__name__, search.__doc__ = definition.__name__, replacement.__doc__
    return search


def _network(name: str, definition: type, replacement: type[nn.Module], replacer: Replacer) -> type:
    """The script's class, whose models get the script's first weights and then the package's class, where both compute
    the same. (A new class of that name would break the script's super(NAME, self).)"""
    initialise = definition.__init__  # type: ignore[misc]

    def __init__(self: nn.Module, *arguments: Any, **named: Any) -> None:  # noqa: N807
        initialise(self, *arguments, **named)
        if type(self) is not definition:  # a subclass of the script's
            return
        try:
            twin = _twin(self, replacement, arguments, named)
        except Exception as error:  # the script's forward runs in it, and may raise anything
            replacer.leave(name, error)
            return
        self.__class__, self.__dict__ = replacement, twin.__dict__
        replacer.replace(name, definition)

    definition.__init__ = __init__  # type: ignore[misc]
    return definition


@torch.no_grad()
def _twin(
    model: nn.Module, replacement: type[nn.Module], arguments: tuple[Any, ...], named: dict[str, Any]
) -> nn.Module:
    """The package's model with the very parameters of the script's. Raises DifferentError where two images tell them
    apart."""
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).eval()
    for tensor in probe.state_dict().values():  # fresh norms do nothing, and fresh layers shrink their input
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.mul_(6**0.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.empty_like(tensor).uniform_(0.1, 0.9, generator=generator))
    x = torch.randn(2, named.get("in_channels", 256), *sides(named.get("grid", 16)), generator=generator)
    probe_twin = _sharing(probe, replacement, arguments, named).eval()
    expected, logits = (network(x).diff(dim=0) for network in (probe, probe_twin))
    if expected.shape != logits.shape or not (logits - expected).norm() <= 1e-3 * expected.norm():
        raise DifferentError("it computes something else than the published one")
    twin = _sharing(model, replacement, arguments, named)
    rates = [sorted(m.p for m in network.modules() if isinstance(m, nn.Dropout)) for network in (model, twin)]
    if rates[0] != rates[1]:
        raise DifferentError("its dropout differs from the published one's")
    return twin.train(model.training)


def _sharing(
    model: nn.Module, replacement: type[nn.Module], arguments: tuple[Any, ...], named: dict[str, Any]
) -> nn.Module:
    """The package's model that shares the script's model's parameters and buffers."""
    with torch.device("meta"):
        twin = replacement(*arguments, **named)
    state = model.state_dict(keep_vars=True)
    shapes = [{name: t.shape for name, t in tensors.items()} for tensors in (state, twin.state_dict())]
    if shapes[0] != shapes[1]:
        raise DifferentError("its parameters differ from the published one's")
    twin.load_state_dict(state, assign=True)
    return twin
