"""Versions, devices, kernels and operators of this installation, each with the reason where it is unavailable."""

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.kernels import cuda, native, triton
from cortex_fast.ops.backends import IMPL_VARIABLE, REASONS, Verdict, verdicts

if native.UNAVAILABLE is None:
    from cortex_fast import _native

OPENMP_LIBRARIES = ("libgomp", "libomp", "libiomp")
MAPPED_FILES = Path("/proc/self/maps")
PROCESSORS = Path("/proc/cpuinfo")
SELF_TEST_BOUND = 1e-5


@dataclass(frozen=True)
class Info:
    """Facts about this installation. Where something is missing its value is the reason.

    Attributes:
        versions: package -> its version.
        devices: device -> its description.
        native: facts about the native core by name.
        cuda: facts about the CUDA kernels by name.
        triton: facts about the Triton kernels by name.
        operators: operator -> device -> each backend's verdict on a float32 tensor.
    """

    versions: dict[str, str]
    devices: dict[str, str]
    native: dict[str, str]
    cuda: dict[str, str]
    triton: dict[str, str]
    operators: dict[str, dict[str, list[Verdict]]]


def info() -> Info:
    """Facts about this installation, read anew at each call.

    Works without the native core, without a GPU and without an installed package.

    Returns:
        Versions, devices, kernels and operators.
    """
    return Info(_versions(), _devices(), _native_core(), _cuda_kernels(), _triton_kernels(), _operators())


def describe() -> str:
    """`info()` as text; prints nothing.

    Returns:
        A few short sections, one fact a line.
    """
    facts = info()
    forced = os.environ.get(IMPL_VARIABLE)
    lines = [*_section("versions", facts.versions), *_section("devices", facts.devices)]
    lines += _section("native core", facts.native)
    lines += _section("CUDA kernels", facts.cuda)
    lines += _section("Triton kernels", facts.triton)
    if forced is not None:
        lines += _section("environment", {IMPL_VARIABLE: f"{forced!r} stands for impl='auto' in every operator"})
    for operator, devices in facts.operators.items():
        for device, answers in devices.items():
            lines += _section(f"{operator} (float32, {device})", {answer.backend: answer.reason for answer in answers})
    return "\n".join(lines).rstrip()


def _section(title: str, entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries))
    return [title, *(f"  {name:<{width}}  {value}" for name, value in entries.items()), ""]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    named = {name: _version(name) for name in ("cortex-fast", "torch", "numpy", "triton")}
    named["torch"] = str(torch.__version__)  # with its build, for instance "+cpu"
    if triton.unavailable() is None:  # with torch's own builds its distribution has another name
        named["triton"] = importlib.import_module("triton").__version__
    return {"python": platform.python_version(), "platform": platform.platform(), **named}


def _devices() -> dict[str, str]:
    model = next((line.split(":", 1)[1].strip() for line in _lines(PROCESSORS) if line.startswith("model name")), "")
    cpu = model or platform.processor() or platform.machine()
    devices = {
        "CPU": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()} of torch, {os.cpu_count()} processors",
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = f"sm_{properties.major}{properties.minor}"
            devices[f"cuda:{index}"] = f"{properties.name}, {capability}, {properties.total_memory / 2**30:.1f} GiB"
    else:
        devices["CUDA"] = f"none: {_why_no_cuda()}"
    return devices


def _why_no_cuda() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch sees no device"


def _native_core() -> dict[str, str]:
    if native.UNAVAILABLE is not None:
        return {"missing": native.UNAVAILABLE}
    build = _native.build_info()
    return {
        "version": build["version"],
        "compiler": f"{build['compiler']}, {build['build_type']}, {build['flags']}",
        "vectors": f"{native.LEVEL}, of those that this processor has: {', '.join(_native.levels())}",
        "OpenMP": _openmp() if build["openmp"] else "no: built without it, so the native core runs on one thread",
        "self-test": _self_test(),
    }


def _cuda_kernels() -> dict[str, str]:
    if cuda.NOT_BUILT is not None:
        return {"missing": cuda.NOT_BUILT}
    reason = cuda.unavailable()
    return {
        "built": str(_native.build_info()["cuda"]),
        "run": "where they are forced: not yet measured against Triton on a GPU" if reason is None else f"no: {reason}",
    }


def _triton_kernels() -> dict[str, str]:
    reason = triton.unavailable()
    if reason is not None:
        return {"missing": reason}
    if triton.INTERPRETED:
        return {"run": "in Triton's interpreter, where forced: TRITON_INTERPRET is set"}
    return {"run": "compiled when first used, on tensors that are on a GPU"}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _openmp() -> str:
    """Whether torch and the native core share one OpenMP library, and so one pool of threads."""
    mapped = {Path(line.split(maxsplit=5)[-1]) for line in _lines(MAPPED_FILES) if "/" in line}
    loaded = sorted(str(path) for path in mapped if path.name.startswith(OPENMP_LIBRARIES))
    if not loaded:
        return "yes; unknown whether its threads are torch's: this system does not tell"
    if len(loaded) == 1:
        return f"yes, shared with torch: {loaded[0]}"
    return f"yes, but {len(loaded)} OpenMP libraries are loaded, so threads may compete: {', '.join(loaded)}"


def _self_test() -> str:
    """The largest error of the native core's operators against the reference, on a few numbers."""
    worst = 0.0
    for name, apply in _trials().items():
        got, expected = apply("native").double(), apply("reference").double()
        error = float((got - expected).abs().max())
        if not error < SELF_TEST_BOUND:
            return f"FAILED: {name} is {error:.1e} from the reference"
        worst = max(worst, error)
    return f"passed: every operator within {worst:.1e} of the reference"


def _trials() -> dict[str, Callable[[str], Tensor]]:
    """Operator -> a function from a backend to the operator's result, or an in-place operator's changed argument."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn((2, 5, 7, 3, 3), generator=generator, dtype=torch.float32)
    tokens = torch.randint(0, 5, (2, 3, 3), generator=generator)
    logits = torch.randn((2, 3, 19), generator=generator, dtype=torch.float32)
    codebook = torch.randn((19, 7), generator=generator, dtype=torch.float32)

    def stepped(impl: str) -> Tensor:
        changed, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        upstream = codebook[:6].reshape(2, 3, 7)
        ops.gumbel_codebook_step(changed, codebook, upstream, lr=0.01, moments=moments, impl=impl)
        return changed

    def gradient(impl: str) -> Tensor:
        with torch.enable_grad():
            leaf = logits.clone().requires_grad_()
            ops.gumbel_codebook(leaf, codebook, impl=impl)[0].sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return {
        "token_saliency": lambda impl: ops.token_saliency(grads, impl=impl),
        "concept_counts": lambda impl: ops.concept_counts(
            grads[:, 0, 0], tokens, torch.tensor([1, 0]), top_n=4, num_concepts=2, codebook_size=5, impl=impl
        ),
        "saliency_counts": lambda impl: ops.saliency_counts(
            grads, tokens, torch.tensor([1, 0]), top_n=4, num_concepts=2, codebook_size=5, impl=impl
        )[1],
        "smoothgrad_noise": lambda impl: ops.smoothgrad_noise(grads[:, 0], grads.new_ones(2), 3, seed=1, impl=impl),
        "gumbel_codebook": lambda impl: ops.gumbel_codebook(logits, codebook, hard=False, impl=impl)[0],
        "gumbel_codebook_backward": gradient,
        "gumbel_codebook_step": stepped,
        "conv3x3": lambda impl: ops.conv3x3(grads[0], ops.prepare_filters(grads[0] / 30, impl=impl), relu=True),
        "gather_error": lambda impl: ops.gather_error(grads[:, 0], tokens, codebook, impl=impl),
        "nearest_code": lambda impl: ops.nearest_code(logits[..., :7], codebook, impl=impl),
    }


def _operators() -> dict[str, dict[str, list[Verdict]]]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    tensors = {device: torch.zeros(1, dtype=torch.float32, device=device) for device in devices}
    return {
        operator: {device: verdicts(reasons, tensor) for device, tensor in tensors.items()}
        for operator, reasons in REASONS.items()
    }
