"""The package's in the place of a script's own definitions, as far as those do what the published ones do."""

import ast
import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast.compat import cortex
from cortex_fast.data.grids import sides

HOOK = "__cortex_fast_replace__"  # the name that changed code calls a Replacer by
SALIENCY = ("AverageSaliency", "SingleSaliency")
NETWORKS = ("ClassificationNet1", "ClassificationNet2", "ClassificationNet3", "ClassificationNet4")
SEARCHES = ("generate_max_activation_image_token", "generate_max_activation_image_embedding")
NAMES = frozenset(cortex.__all__)
_OWN_DEFAULTS = ("num_steps", "lr")  # the published code takes them from its command line
_HELPERS = {"to_picture": "chw_to_pillow", "to_input": "preprocess_image"}  # which a script may have of its own


class DifferentError(Exception):
    """A script's definition is not the published one; says why."""


def with_replacements(source: str | bytes, filename: str) -> ast.Module:
    """The module's syntax tree, in which each definition of a known name is handed to HOOK, in its own line."""
    return ast.fix_missing_locations(_Hooking().visit(ast.parse(source, filename)))


class _Hooking(ast.NodeTransformer):
    """Looks at what stands in the module itself, also within an if or a try there."""

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
    """Decides what stands for a definition, and remembers: replaced and left, name -> the file, or the reason."""

    def __init__(self) -> None:
        self.replaced: dict[str, str] = {}
        self.left: dict[str, str] = {}

    def __call__(self, name: str, theirs: Any) -> Any:
        """What the name is to mean in the script: the package's, or theirs where that differs."""
        ours = getattr(cortex, name)
        if name in NETWORKS and isinstance(theirs, type):
            return _network(name, theirs, ours, self)
        try:
            with torch.random.fork_rng(devices=[]):  # a trial leaves the script's random numbers as they were
                torch.manual_seed(0)
                _compare(name, theirs, ours)
        except Exception as error:  # the script's code runs in a trial, and may raise anything
            self.keep(name, error)
            return theirs
        self.took(name, theirs)
        return _search(theirs, ours) if name in SEARCHES else ours

    def took(self, name: str, theirs: Any) -> None:
        self.replaced[name] = theirs.__module__

    def keep(self, name: str, error: Exception) -> None:
        self.left[name] = str(error) if isinstance(error, DifferentError) else f"{type(error).__name__}: {error}"


def _compare(name: str, theirs: Any, ours: Any) -> None:
    """Raise DifferentError, or whatever a trial of theirs raises, where theirs is not the published one."""
    if name in SALIENCY:
        for method in ("__init__", "get_grad", "get_average_grad"):
            _same_arguments(getattr(theirs, method, None), getattr(ours, method), f"{name}.{method}")
        _try_saliency(theirs)
        return
    _same_arguments(theirs, ours, name)
    if name in _TRIALS and not _alike(_TRIALS[name](theirs), _TRIALS[name](ours)):
        raise DifferentError("it gives other results than the published one")


def _same_arguments(theirs: Any, ours: Callable[..., Any], name: str) -> None:
    if not callable(theirs):
        raise DifferentError(f"it has no {name}")
    got, expected = (
        {
            parameter.name: None if parameter.name in _OWN_DEFAULTS else parameter.default
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not parameter.KEYWORD_ONLY
        }
        for function in (theirs, ours)
    )
    if list(got.items()) != list(expected.items()):
        raise DifferentError(f"{name} has other arguments or defaults than the published one")


class _Squares(nn.Module):
    """logit t = (t + 1) |x|^2 / 2, of which the gradient is (t + 1) x."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(dim=1, keepdim=True) / 2 * torch.arange(1.0, 5.0)


def _try_saliency(theirs: type) -> None:
    """Gradients without noise must be the same; with it, what it adds must be as large, for a known model."""
    x, targets = torch.randn(2, 8, 16, 16), torch.tensor([2, 1])
    x[1] *= 4  # sigma is of the batch
    factors = (targets + 1).view(-1, 1, 1, 1)
    saliency = theirs(_Squares().eval())
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


def _search(theirs: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Ours with the defaults of theirs, and with the script's own way from an image to a classifier's input."""
    signature = inspect.signature(theirs)

    def search(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        found = {to: theirs.__globals__[own] for to, own in _HELPERS.items() if own in theirs.__globals__}
        return ours(**bound.arguments, **found)

    search.__name__, search.__doc__ = theirs.__name__, ours.__doc__
    return search


def _network(name: str, theirs: type, ours: type[nn.Module], replacer: Replacer) -> type:
    """Their class still, whose models are built as ever, with their first weights, and then are of our class where both
    compute the same. (Another class of that name would be what their super(NAME, self) looks for.)"""
    initialise = theirs.__init__  # type: ignore[misc]

    def __init__(self: nn.Module, *arguments: Any, **named: Any) -> None:  # noqa: N807
        initialise(self, *arguments, **named)
        if type(self) is not theirs:  # a subclass of the script's
            return
        try:
            twin = _twin(self, ours, arguments, named)
        except Exception as error:  # the script's forward runs in it, and may raise anything
            replacer.keep(name, error)
            return
        self.__class__, self.__dict__ = ours, twin.__dict__
        replacer.took(name, theirs)

    theirs.__init__ = __init__  # type: ignore[misc]
    return theirs


@torch.no_grad()
def _twin(model: nn.Module, ours: type[nn.Module], arguments: tuple[Any, ...], named: dict[str, Any]) -> nn.Module:
    """Ours with the very parameters of theirs, tried on two images. Raises DifferentError where they differ."""
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(model).eval()
    for tensor in probe.state_dict().values():  # fresh norms do nothing, and fresh layers shrink what goes through
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.mul_(6**0.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.empty_like(tensor).uniform_(0.1, 0.9, generator=generator))
    x = torch.randn(2, named.get("in_channels", 256), *sides(named.get("grid", 16)), generator=generator)
    theirs, own = (one(x).diff(dim=0) for one in (probe, _sharing(probe, ours, arguments, named).eval()))
    if theirs.shape != own.shape or not (own - theirs).norm() <= 1e-3 * theirs.norm():
        raise DifferentError("it computes something else than the published one")
    twin = _sharing(model, ours, arguments, named)
    rates = [sorted(m.p for m in one.modules() if isinstance(m, nn.Dropout)) for one in (model, twin)]
    if rates[0] != rates[1]:
        raise DifferentError("its dropout differs from the published one's")
    return twin.train(model.training)


def _sharing(model: nn.Module, ours: type[nn.Module], arguments: tuple[Any, ...], named: dict[str, Any]) -> nn.Module:
    """Ours, made of the model's parameters and buffers themselves."""
    with torch.device("meta"):
        twin = ours(*arguments, **named)
    state = model.state_dict(keep_vars=True)
    shapes = [{name: t.shape for name, t in tensors.items()} for tensors in (state, twin.state_dict())]
    if shapes[0] != shapes[1]:
        raise DifferentError("its parameters are others than the published one's")
    twin.load_state_dict(state, assign=True)
    return twin
