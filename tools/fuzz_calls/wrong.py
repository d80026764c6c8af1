"""Calls with arguments of the wrong kind: a TypeError or ValueError that names the argument, or a result."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cortex_fast import ops
from cortex_fast.ops import random_stream
from cortex_fast.ops.backends import BackendUnavailableError
from fuzz_calls.inputs import Draw
from fuzz_calls.judging import WrongError

OPERATORS: dict[str, Callable[..., Any]] = {
    call.__name__: call
    for call in (
        ops.token_saliency,
        ops.concept_counts,
        ops.saliency_counts,
        ops.smoothgrad_noise,
        ops.nearest_code,
        ops.prepare_filters,
        ops.conv3x3,
        ops.gather_error,
        ops.gumbel_codebook,
        ops.gumbel_codebook_with_row_stats,
        ops.gumbel_codebook_step,
        random_stream.normal,
        random_stream.gumbel,
        random_stream.sampling_gumbel,
    )
}


def _right(name: str) -> dict[str, Any]:
    """A right call's arguments."""
    tokens, codebook, weight = torch.arange(32).view(2, 4, 4) % 5, torch.ones(5, 4), torch.ones(3, 2, 3, 3)
    saliency = {"grads": torch.ones(2, 3, 4, 4, 4), "reduction": "max"}
    counting = {"tokens": tokens, "labels": torch.arange(2), "top_n": 3, "num_concepts": 2, "codebook_size": 5}
    counting["per"] = "image"
    selection = {"logits": torch.zeros(2, 3, 5), "codebook": codebook, "gumbel": torch.zeros(2, 3, 5), "tau": 0.5}
    selection |= {"seed": 1, "draw": 2, "item_ids": torch.arange(2), "schedule": None}
    step = {
        "upstream": torch.ones(2, 3, 4),
        "lr": 0.1,
        "step_count": 2,
        "betas": (0.9, 0.99),
        "eps": 1e-8,
        "stay_penalty": 0.5,
    }
    step |= {
        "moments": (torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)),
        "anchor": torch.zeros(2, 3).long(),
        "row_stats": None,
    }
    noise = {"x": torch.ones(2, 3, 4, 4), "sigma": torch.ones(2), "num_samples": 4, "seed": 0, "first_sample": 2}
    noise |= {"item_ids": torch.arange(2), "antithetic": True, "normals": None}
    stream = {"seed": 3, "items": torch.arange(2), "draws": torch.arange(3), "length": 5}
    given: dict[str, dict[str, Any]] = {
        "token_saliency": saliency,
        "concept_counts": {"tsv": torch.ones(2, 4, 4), **counting},
        "saliency_counts": saliency | counting,
        "smoothgrad_noise": noise,
        "nearest_code": {"z": torch.ones(2, 3, 4), "codebook": codebook},
        "prepare_filters": {"weight": weight, "bias": torch.ones(3)},
        "gather_error": {"embedding": torch.ones(2, 4, 4, 4), "tokens": tokens, "codebook": codebook},
        "gumbel_codebook": selection | {"hard": True},
        "gumbel_codebook_with_row_stats": selection | {"hard": True},
        "gumbel_codebook_step": selection | step,
        "normal": stream | {"rows": 2},
        "gumbel": stream | {"rows": 2},
        "sampling_gumbel": stream,
    }
    if name == "conv3x3":
        filters = ops.prepare_filters(weight)
        return {"x": torch.ones(2, 2, 4, 4), "filters": filters, "relu": True, "pool": True, "padding": 1}
    return given[name] | {"impl": "auto"}


def _scalars() -> list[Any]:
    many = [None, True, False, 0, 1, 2, 3, -1, 2**31, 2**32, 2**63, 2**64, 10**400, 0.0, -0.5, 0.5, 1e39, 1e-50, 3j]
    many += [float("nan"), float("inf"), "", "x", "image", "native", b"x", [], [1], [1.0, "x"], (), (1, 2), {}, {1}]
    many += [int, len, object(), torch.float32, torch.device("cpu"), slice(3), range(3), ..., Exception("x")]
    many += [np.int64(2), np.uint64(2**64 - 1), np.float32(0.5), np.float16("nan"), np.bool_(True), np.str_("image")]
    many += [
        np.zeros(3),
        np.array(2),
        np.array("x"),
        np.array(None),
        np.array([2]),
        np.ma.masked,
        np.datetime64(3, "s"),
    ]
    return many


def _tensors(draw: Draw, like: Any) -> list[Any]:
    """Tensors of other kinds, most of the shape of the right one."""
    base = like.detach().clone() if isinstance(like, torch.Tensor) else torch.ones(draw.whole(0, 3), 2)
    real = base.float()
    nested = [real.flatten()[:1], real.flatten()[:2]]
    forms: list[Callable[[], Any]] = [
        real.to_sparse,
        lambda: real.flatten(0, -2).to_sparse_csr() if real.ndim > 1 else real.to_sparse(),
        lambda: torch.nested.nested_tensor(nested),
        lambda: torch.nested.nested_tensor(nested, layout=torch.jagged),
        lambda: torch.quantize_per_tensor(real, 0.1, 0, torch.quint8),
        lambda: real.to(draw.among((torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool))),
        lambda: real.to(draw.among((torch.float16, torch.bfloat16, torch.float32, torch.float64))),
        lambda: real.to(draw.among((torch.int8, torch.uint8, torch.uint16, torch.int32, torch.int64, torch.uint64))),
        lambda: base.to("meta"),
        lambda: base[None],
        lambda: base[0] if len(base.shape) and len(base) else base[None],
        lambda: base[:0] if base.ndim else base,
        lambda: base[..., :-1] if base.ndim else base,
        lambda: torch.tensor(draw.among((0, 2, -1, 0.5, True, 1j))),
        lambda: torch.zeros(draw.among(((), (0,), (1,), (2, 3), (1, 1, 1, 1, 1, 1)))),
        lambda: real * float("nan"),
        lambda: base * -1 if base.dtype.is_signed else base,
        lambda: base + 2**40 if base.dtype == torch.int64 else base,
        lambda: torch._neg_view(real),
        lambda: torch._efficientzerotensor(base.shape, dtype=base.dtype),
        lambda: real.to_mkldnn(),
        lambda: torch.nn.Parameter(real),
        lambda: real.numpy(),
        lambda: real.tolist(),
    ]
    return [draw.among(forms)()]


def wrong(name: str, draw: Draw) -> None:
    """One to two arguments of a right call replaced. Whatever is raised begins with the name of an argument."""
    given = _right(name)
    for argument in draw.sample(sorted(given), 1 if draw.chance(0.8) else 2):
        right = given[argument]
        if argument == "moments" and draw.chance(0.5):
            given[argument] = (right[0], draw.among(_tensors(draw, right[1])))
        elif draw.chance(0.5 if isinstance(right, torch.Tensor) else 0.85):
            given[argument] = draw.among(_scalars())
        else:
            given[argument] = draw.among(_tensors(draw, right))
    if argument == "impl" and draw.chance(0.3):
        given["impl"] = draw.among(("cuda", "triton", "native", "reference"))
    try:
        OPERATORS[name](**given)
    except BackendUnavailableError:
        return
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # a right call, of which this machine has not enough
            raise
    except (TypeError, ValueError) as error:
        start = re.match(r"([a-z_0-9]+)(\[\d\]|\.[a-z_]+)?(, [a-z_0-9\[\]]+)*: .*expected ", str(error), re.DOTALL)
        if start is None or not (start[1] in given or start[1] == "tsv"):
            raise WrongError(f"unnamed {type(error).__name__}: {error}") from error
