"""What every operator has by its registration. Each operator's own file has its opcheck."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cortex_fast import ops

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
    found = []
    for path in Path(ops.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("operator(" in ast.unparse(d) for d in node.decorator_list):
                found.append(node.name)
                assert not [a.arg for a in node.args.args if "list[" in ast.unparse(a.annotation)], node.name
    assert len(found) > 8
