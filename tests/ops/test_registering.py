"""What every operator has by its registration. Each operator's own file has its opcheck."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cortex_fast import ops
from cortex_fast.ops import random_stream
from tests.ops.backends_under_test import same_bits

FIRST_CALLS = """
import sys, torch
from cortex_fast import ops
x = torch.randn(2, 3, 4, 4, requires_grad=True)
noisy = ops.smoothgrad_noise(x, torch.ones(2), 3, seed=0)
tsv = ops.token_saliency(noisy.square())
tsv.sum().backward()
logits = torch.zeros(4, 5)
ops.gumbel_codebook_step(logits, torch.randn(5, 3), torch.randn(4, 3), seed=0, lr=0.1)
ops.nearest_code(torch.randn(4, 3), torch.randn(5, 3))
print(sorted(name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"]))
"""


def test_no_call_imports_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


GENERATOR = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR)


ONES, ZEROS = torch.ones(2), torch.zeros(2, 3, 4, 4)
TOKENS = torch.arange(32).view(2, 4, 4) % 5
FILTERS, CODEBOOK = ops.prepare_filters(rand(3, 4, 3, 3)), rand(5, 3)
COUNTS = {"top_n": 3, "num_concepts": 2, "codebook_size": 5}
LOGITS, UPSTREAM = torch.zeros(2, 4, 5), torch.ones(2, 4, 3)
STEP = {"codebook": CODEBOOK, "lr": 0.1, "tau": 0.5}


def step(**changed: Any) -> Tensor:
    arguments = {"logits": LOGITS, "upstream": UPSTREAM, **STEP, **changed}
    arguments["logits"] = arguments["logits"] * 1
    ops.gumbel_codebook_step(**arguments)
    return arguments["logits"]


# Each differentiable tensor of each operator with a result of floats: a function of it, and its value.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "token_saliency": (ops.token_saliency, rand(2, 3, 4, 4, 4)),
    "smoothgrad_noise": (lambda x: ops.smoothgrad_noise(x, ONES, 3, seed=0), rand(2, 4, 4, 4)),
    "smoothgrad_noise sigma": (lambda s: ops.smoothgrad_noise(ZEROS, s, 3, seed=0), rand(2)),
    "smoothgrad_noise given": (
        lambda e: ops.smoothgrad_noise(ZEROS, ONES, 3, seed=0, normals=e),
        rand(2, 3, 3, 4, 4),
    ),
    "conv3x3": (lambda x: ops.conv3x3(x, FILTERS, relu=True, pool=True), rand(2, 4, 4, 4)),
    "conv3x3 weight": (lambda w: ops.conv3x3(ZEROS[:, :2], ops.prepare_filters(w)), rand(3, 2, 3, 3)),
    "gumbel_codebook soft": (lambda x: ops.gumbel_codebook(x, CODEBOOK, hard=False)[0], rand(2, 4, 5)),
    "gumbel_codebook hard": (lambda x: ops.gumbel_codebook(x, CODEBOOK)[0], rand(2, 4, 5)),
    "gumbel_codebook codebook": (lambda c: ops.gumbel_codebook(LOGITS, c)[0], CODEBOOK),
    "gumbel_codebook gumbel": (
        lambda g: ops.gumbel_codebook(LOGITS, CODEBOOK, gumbel=g, hard=False)[0],
        rand(2, 4, 5),
    ),
    "gumbel_codebook_with_row_stats": (lambda x: ops.gumbel_codebook_with_row_stats(x, CODEBOOK)[0], rand(2, 4, 5)),
    "gumbel_codebook_step": (lambda x: step(logits=x), rand(2, 4, 5)),
    "gumbel_codebook_step upstream": (lambda u: step(upstream=u), rand(2, 4, 3)),
    "gather_error": (lambda e: ops.gather_error(e, TOKENS, CODEBOOK), rand(2, 3, 4, 4)),
    "saliency_counts": (
        lambda g: ops.saliency_counts(g, TOKENS, torch.arange(2), **COUNTS)[0],
        rand(2, 3, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_raises(name: str) -> None:
    """torch takes the tangent of what it does not know for 0."""
    function, value = FUNCTIONS[name]
    tangent = torch.ones_like(value)
    transforms: dict[str, Callable[[], object]] = {
        "jvp": lambda: torch.func.jvp(function, (value,), (tangent,)),
        "jacfwd": lambda: torch.func.jacfwd(function)(value),
        "of each": lambda: torch.func.vmap(lambda t: torch.func.jvp(function, (value,), (t,)))(tangent[None]),
        "linearize": lambda: torch.func.linearize(function, value),
    }
    for transform in transforms.values():
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            transform()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, tangent)
        with pytest.raises(NotImplementedError, match="no forward-mode derivatives"):
            function(dual)
    function(value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reverse_mode_of_functorch_raises_too(name: str) -> None:
    function, value = FUNCTIONS[name]
    if name != "conv3x3 weight" and not name.endswith("upstream"):  # detached, as documented
        with pytest.raises((RuntimeError, ValueError)):
            torch.func.grad(lambda x: function(x).sum())(value)


@pytest.mark.filterwarnings("ignore:.*performance drop")
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "step" not in name and "weight" not in name])
def test_vmap_is_a_loop(name: str) -> None:
    function, value = FUNCTIONS[name]
    values = torch.stack([value, value / 2])
    assert torch.equal(torch.func.vmap(function)(values), torch.stack([function(value), function(value / 2)]))


def test_whole_numbers_have_no_tangents() -> None:
    z = rand(4, 3)
    _, tangent = torch.func.jvp(lambda z: z * ops.nearest_code(z, CODEBOOK)[:, None], (z,), (torch.ones_like(z),))
    assert torch.equal(tangent, ops.nearest_code(z, CODEBOOK)[:, None].expand(4, 3).float())


@pytest.mark.parametrize("name", ["gather_error", "saliency_counts"])
def test_what_is_not_differentiable_gives_constants(name: str) -> None:
    function, value = FUNCTIONS[name]
    assert not function(value.requires_grad_()).requires_grad
    value.requires_grad_(False)


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_zeros_that_are_in_no_memory(impl: str) -> None:
    """Such come out of autograd; their address is 0."""
    zeros = torch._efficientzerotensor
    grads = ops.token_saliency(zeros((2, 3, 4, 4, 4)), impl=impl)
    filters = ops.prepare_filters(zeros((3, 2, 3, 3)), zeros((3,)), impl=impl)
    assert not any(tensor.any() for tensor in (grads, ops.conv3x3(rand(1, 2, 4, 4), filters)))
    drawn = random_stream.normal(0, zeros((2,), dtype=torch.int64), zeros((1,), dtype=torch.int64), 1, 3, impl=impl)
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_lazily_negated_views_that_the_dispatcher_does_not_see(impl: str) -> None:
    x, weight, bias = rand(1, 2, 4, 4), rand(3, 2, 3, 3), rand(3)
    lazy = ops.prepare_filters(torch._neg_view(-weight), torch._neg_view(-bias), impl=impl)
    assert torch.equal(ops.conv3x3(x, lazy), ops.conv3x3(x, ops.prepare_filters(weight, bias, impl=impl)))
    items, draws = torch.tensor([3, 1]), torch.tensor([2])
    expected = random_stream.normal(0, items, draws, 1, 3, impl=impl)
    assert torch.equal(
        random_stream.normal(0, torch._neg_view(-items), torch._neg_view(-draws), 1, 3, impl=impl), expected
    )


def test_numbers_may_come_from_numpy_and_torch() -> None:
    selected = ops.gumbel_codebook(LOGITS, CODEBOOK, tau=0.5, seed=3, draw=2, hard=False)
    numbers = {"tau": np.float32(0.5), "seed": np.int64(3), "draw": torch.tensor(2), "hard": np.False_}
    assert same_bits(ops.gumbel_codebook(LOGITS, CODEBOOK, **numbers), selected)
    noisy = ops.smoothgrad_noise(ZEROS, ONES, 4, seed=3, first_sample=2, antithetic=True)
    numbers = {"num_samples": np.uint8(4), "seed": np.array(3), "first_sample": np.int32(2), "antithetic": np.True_}
    assert same_bits([ops.smoothgrad_noise(ZEROS, ONES, **numbers)], [noisy])
    stepped = step(lr=0.1, step_count=3, eps=1e-3, moments=(LOGITS + 1, LOGITS + 2), betas=(0.5, 0.75))
    numbers = {
        "lr": np.float64(0.1),
        "step_count": np.int16(3),
        "eps": torch.tensor(1e-3).double(),
        "betas": [0.5, 0.75],
    }
    assert same_bits([step(moments=(LOGITS + 1, LOGITS + 2), **numbers)], [stepped])
    counted = ops.concept_counts(ZEROS[:, 0], TOKENS, torch.arange(2), **COUNTS)
    numbers = {name: np.int64(number) for name, number in COUNTS.items()}
    assert torch.equal(ops.concept_counts(ZEROS[:, 0], TOKENS, torch.arange(2), **numbers), counted)
    assert torch.equal(ops.conv3x3(rand(1, 4, 4, 4) * 0, FILTERS, padding=np.int8(2)), torch.zeros(1, 3, 6, 6))


EVERYTHING = {
    **FUNCTIONS,
    "nearest_code": (lambda z: ops.nearest_code(z, CODEBOOK), rand(4, 3)),
    "concept_counts": (lambda tsv: ops.concept_counts(tsv, TOKENS, torch.arange(2), **COUNTS), rand(2, 4, 4)),
    "random_stream": (lambda _: random_stream.gumbel(0, torch.arange(2), torch.arange(1), 2, 3), rand(1)),
}


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("name", EVERYTHING)
def test_results_do_not_depend_on_torchs_defaults(name: str, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_FAST_IMPL", impl)
    function, value = EVERYTHING[name]
    expected = function(value)
    torch.set_default_dtype(torch.float64)
    try:
        assert same_bits([function(value)], [expected])
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_bits([function(value)], [expected])


@pytest.mark.parametrize("impl", ["native", "reference"])
def test_results_are_where_the_tensors_are(impl: str) -> None:
    z, embedding = rand(4, 3), rand(1, 3, 4, 4)
    with torch.device("meta"):
        assert ops.nearest_code(z, CODEBOOK, impl=impl).device.type == "cpu"
        assert ops.gather_error(embedding, TOKENS[:1], CODEBOOK, impl=impl).device.type == "cpu"


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_operator_compiles_whole(name: str) -> None:
    function, value = EVERYTHING[name]
    if name not in ("conv3x3 weight", "random_stream"):  # no operators: they stay outside
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(value), function(value))


def test_what_has_no_derivative_says_so() -> None:
    filters = ops.prepare_filters(torch.randn(2, 3, 3, 3))
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.conv3x3(x, filters).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="conv3x3_backward is not differentiable"):
        gradient.sum().backward()


def test_autograd_notices_what_a_step_changed() -> None:
    logits, codebook = torch.zeros(4, 5), torch.randn(5, 3)
    weight = torch.ones(4, 5, requires_grad=True)
    loss = (logits * weight).sum()  # keeps the logits for weight's gradient
    ops.gumbel_codebook_step(logits, codebook, torch.randn(4, 3), seed=0, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_in_inference_mode() -> None:
    with torch.inference_mode():
        logits = torch.zeros(4, 5)
        ops.gumbel_codebook_step(logits, torch.randn(5, 3), torch.randn(4, 3), seed=0, lr=0.1)
    assert logits.abs().min() > 0


def test_the_compiler_does_not_look_into_a_kernel() -> None:
    """Also not where it leaves a frame to Python, and the operator is called from there."""
    counters = torch._dynamo.utils.counters
    counters.clear()

    @torch._dynamo.disable(recursive=False)
    def left(grads: torch.Tensor) -> torch.Tensor:
        return ops.token_saliency(grads)

    grads = torch.randn(1, 2, 3, 4, 4)
    torch.testing.assert_close(torch.compile(lambda x: left(x) + 1, backend="eager")(grads), left(grads) + 1)
    assert not [reason for reason in counters["graph_break"] if "_native" in reason or "backends" in reason]


def test_annotations_are_those_that_torch_2_6_makes_schemas_of():
    """It knows typing.List alone, not list[int]; the schema is made at the import."""
    names = []
    for path in Path(ops.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("operator(" in ast.unparse(d) for d in node.decorator_list):
                names.append(node.name)
                assert not [a.arg for a in node.args.args if "list[" in ast.unparse(a.annotation)], node.name
    assert len(names) > 8
