"""Right calls of each operator: every backend of the CPU against the definition in float64."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cortex_fast import ops
from cortex_fast.kernels.reference import gather_error as reference_error
from cortex_fast.kernels.reference import gumbel_codebook as reference_gumbel
from cortex_fast.kernels.reference import gumbel_codebook_backward as reference_gradients
from cortex_fast.kernels.reference import token_saliency as reference_saliency
from cortex_fast.kernels.reference.conv3x3 import conv3x3 as reference_conv3x3
from cortex_fast.kernels.reference.conv3x3_backward import conv3x3_backward
from cortex_fast.kernels.reference.smoothgrad_noise import standard_normals
from cortex_fast.ops import random_stream
from cortex_fast.ops.token_saliency import REDUCTIONS
from fuzz_calls.inputs import HALVES, Draw, plain, wide
from fuzz_calls.judging import Unchanged, close, expect, same

UNIT = 2.0**-24  # of float32's rounding
TINY = 2.0**-126
TOKENS = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64, torch.uint32, torch.uint64)


def _dtype(draw: Draw) -> torch.dtype:
    return draw.among((torch.float32, torch.float32, *HALVES))


def _unit(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _impl(draw: Draw) -> str:
    return draw.among(("native", "native", "auto", "reference"))


def _grid(draw: Draw, most: int = 9) -> tuple[int, int]:
    return draw.whole(1, most), draw.whole(1, most)


def token_saliency(draw: Draw) -> None:
    shape = draw.whole(0, 3), draw.whole(1, 5), draw.whole(1, 70), *_grid(draw)
    grads = draw.tensor(*shape, dtype=_dtype(draw), scale=draw.among((1, 1e-6, 1e4)), special=True)
    reduction = draw.among(REDUCTIONS)
    unchanged = Unchanged(grads=grads)
    got = ops.token_saliency(grads, reduction=reduction, impl=_impl(draw))
    unchanged.check()
    _close_tsv(got, grads, reduction)
    if grads.requires_grad:
        upstream = draw.tensor(*got.shape)
        (gradient,) = torch.autograd.grad(got, grads, upstream)
        expect(gradient.shape == grads.shape and gradient.dtype == grads.dtype, "gradient: another form than grads")


def _close_tsv(got: Tensor, grads: Tensor, reduction: str) -> None:
    expect(got.dtype == torch.float32, f"tsv: {got.dtype}")
    exact = reference_saliency.token_saliency(grads=wide(grads), reduction=reduction)
    rough = reference_saliency.token_saliency(grads=plain(grads), reduction=reduction)
    of_sums = 2.0**-46 * wide(grads).abs().amax(dim=(1, 2)).nan_to_num(0, 0, 0)  # in which large terms may cancel
    close("tsv", got, exact, rough, 4 * UNIT * exact.abs().nan_to_num(0, 0, 0) + of_sums + TINY)


def _counting(draw: Draw, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    codes, concepts = draw.whole(1, 40), draw.whole(1, 5)
    tokens = draw.laid_out(draw.integers(codes, *shape).to(draw.among(TOKENS)))
    labels = draw.laid_out(draw.integers(concepts, shape[0]).to(draw.among(TOKENS)))
    sizes = {"top_n": draw.whole(1, shape[1] * shape[2]), "num_concepts": concepts, "codebook_size": codes}
    return tokens, labels, sizes | {"per": draw.among(("occurrence", "image"))}


def _expected_counts(tsv: Tensor, tokens: Tensor, labels: Tensor, sizes: dict[str, Any]) -> Tensor:
    """Image by image, as the words say it."""
    counts = torch.zeros(sizes["num_concepts"], sizes["codebook_size"], dtype=torch.int64)
    for image, values in enumerate(plain(tsv).flatten(1).tolist()):
        order = sorted(range(len(values)), key=lambda position: (-values[position], position))[: sizes["top_n"]]
        chosen = plain(tokens).long().flatten(1)[image, order].tolist()
        for token in chosen if sizes["per"] == "occurrence" else set(chosen):
            counts[int(plain(labels).long()[image]), token] += 1
    return counts


@contextlib.contextmanager
def _refused_if(wrong: bool, start: str) -> Iterator[None]:
    """A ValueError of this start is raised within, exactly where it must be."""
    try:
        yield
    except ValueError as error:
        if not wrong or not str(error).startswith(start):
            raise
    else:
        expect(not wrong, f"accepted what must be refused: {start}")


def concept_counts(draw: Draw) -> None:
    shape = draw.whole(0, 4), *_grid(draw, 6)
    tsv = draw.tensor(*shape, dtype=_dtype(draw), special=True)
    if draw.chance(0.5):
        tsv = draw.laid_out(plain(tsv).round())  # ties
    tokens, labels, sizes = _counting(draw, shape)
    unchanged = Unchanged(tsv=tsv, tokens=tokens, labels=labels)
    with _refused_if(bool(tsv.isnan().any()), "tsv: expected numbers, got NaN"):
        impl = "auto" if tsv.dtype != torch.float32 else _impl(draw)
        got = ops.concept_counts(tsv, tokens, labels, impl=impl, **sizes)
        same("counts", got, _expected_counts(tsv, tokens, labels, sizes))
    unchanged.check()


def saliency_counts(draw: Draw) -> None:
    shape = draw.whole(0, 3), draw.whole(1, 4), draw.whole(1, 20), *_grid(draw, 5)
    grads = draw.tensor(*shape, dtype=_dtype(draw), special=True)
    tokens, labels, sizes = _counting(draw, (shape[0], *shape[3:]))
    reduction = draw.among(REDUCTIONS)
    unchanged = Unchanged(grads=grads, tokens=tokens, labels=labels)
    exact = reference_saliency.token_saliency(grads=wide(grads), reduction=reduction)
    with _refused_if(bool(exact.isnan().any()), "tsv: expected numbers, got NaN"):
        tsv, got = ops.saliency_counts(grads, tokens, labels, reduction=reduction, impl=_impl(draw), **sizes)
        _close_tsv(tsv, grads, reduction)
        same("counts", got, _expected_counts(tsv, tokens, labels, sizes))
    unchanged.check()


def smoothgrad_noise(draw: Draw) -> None:
    batch, samples, channels, grid = draw.whole(0, 4), draw.whole(0, 5), draw.whole(1, 40), _grid(draw)
    dtype, given, antithetic = _dtype(draw), draw.chance(0.3), draw.chance(0.4)
    x = draw.tensor(batch, channels, *grid, dtype=dtype, special=True)
    sigma = draw.tensor(batch, dtype=draw.among((dtype, torch.float32)), special=draw.chance(0.2))
    normals = draw.tensor(batch, samples, channels, *grid, special=True) if given else None
    if normals is not None and dtype == torch.float32 and draw.chance(0.2):
        normals = draw.laid_out(plain(normals).bfloat16())
    ids = draw.laid_out(draw.integers(draw.among((2, 2**32)), batch)) if draw.chance(0.6) else None
    first = draw.among((0, 2 * draw.whole(0, 9), 2**31, 2**32 - samples - samples % 2))
    options = {"seed": draw.whole(0, 2**63 - 1), "item_ids": ids, "first_sample": first}
    options["antithetic"] = antithetic and not given
    unchanged = Unchanged(x=x, sigma=sigma, normals=normals, item_ids=ids)
    got = ops.smoothgrad_noise(x, sigma, samples, normals=normals, impl=_impl(draw), **options)
    unchanged.check()
    expect(got.dtype == dtype, f"copies: {got.dtype}")
    items = torch.arange(batch) if ids is None else plain(ids)
    if normals is not None:
        e = plain(normals)
    else:
        numbers = range(first, first + samples)
        e = standard_normals(items, numbers, channels, grid, options["seed"], options["antithetic"])
    exact = _copies(wide(x), wide(sigma), e.double())
    rough = _copies(plain(x), plain(sigma), e)
    scale = wide(sigma).abs()[:, None, None, None, None]
    of_e = (42 if normals is None else 2) * UNIT * (scale * (e.double().abs() + (normals is None))).nan_to_num(0, 0, 0)
    allowed = 2 * _unit(dtype) * exact.abs().nan_to_num(0, 0, 0) + of_e + torch.finfo(dtype).tiny
    close("copies", got, exact, rough, allowed)


def _copies(x: Tensor, sigma: Tensor, normals: Tensor) -> Tensor:
    """The definition's noisy copies of given normals."""
    return ops.smoothgrad_noise(x, sigma, normals.shape[1], seed=0, normals=normals, impl="reference")


def nearest_code(draw: Draw) -> None:
    codes, channels, lead = draw.whole(1, 300), draw.whole(1, 40), [draw.whole(0, 6) for _ in range(draw.whole(0, 2))]
    dtype, scale = _dtype(draw), draw.among((1.0, 1.0, 1e-22, 1e-3, 100.0, 1e15))
    scale = min(scale, 100.0) if dtype == torch.float16 else scale
    codebook = draw.tensor(codes, channels, dtype=dtype, scale=scale, special=True)
    z = draw.tensor(*lead, channels, dtype=dtype, scale=scale * draw.among((1, 1e-3, 1e3)), special=True)
    if draw.chance(0.3):
        codebook = draw.laid_out(plain(codebook)[draw.integers(codes, codes)])  # equal codes
    unchanged = Unchanged(z=z, codebook=codebook)
    got = ops.nearest_code(z, codebook, impl=_impl(draw))
    unchanged.check()
    expect(got.dtype == torch.int64 and got.shape == z.shape[:-1], f"index: {got.dtype} {list(got.shape)}")
    rows = wide(codebook)
    finite = rows.isfinite().all(dim=1)
    distances = (wide(z).reshape(-1, 1, channels) - rows).square().sum(dim=2).where(finite, torch.inf)
    for vector, distance, index in zip(wide(z).reshape(-1, channels), distances, got.flatten().tolist(), strict=True):
        if not bool(vector.isfinite().all()) or not bool(finite.any()):
            expect(index == 0, f"index {index} where nothing is near")
            continue
        least = float(distance.min())
        off = float(distance[index]) - least
        expect(off <= 8 * channels * 2.0**-52 * least, f"index {index} is farther than the nearest by {off} of {least}")
        twin = int((rows == rows[index]).all(dim=1).nonzero()[0])
        expect(twin == index, f"index {index}, though code {twin} is equal to it")


def conv3x3(draw: Draw) -> None:
    images, inputs, outputs = draw.whole(0, 3), draw.whole(1, 20), draw.whole(1, 40)
    padding, relu, pool = draw.whole(0, 2), draw.chance(0.5), draw.chance(0.5)
    least = max(1, 3 - 2 * padding + pool)
    height, width = draw.whole(least, 13), draw.whole(least, 13)
    x, weight = draw.tensor(images, inputs, height, width), draw.tensor(outputs, inputs, 3, 3)
    bias = draw.tensor(outputs) if draw.chance(0.6) else None
    x = draw.laid_out(plain(x).contiguous(memory_format=torch.channels_last)) if draw.chance(0.3) else x
    unchanged = Unchanged(x=x, weight=weight, bias=bias)
    filters = ops.prepare_filters(weight, bias, impl=_impl(draw))
    got = ops.conv3x3(x, filters, relu=relu, pool=pool, padding=padding)
    exact, _ = reference_conv3x3(
        x=wide(x),
        weight=wide(weight),
        bias=None if bias is None else wide(bias),
        winograd=torch.empty(0),
        relu=relu,
        pool=pool,
        padding=padding,
    )
    most = exact.abs().amax() if exact.numel() else 0
    terms = torch.nn.functional.conv2d(wide(x).abs(), wide(weight).abs(), padding=padding)
    of_terms = 1e-5 * max(float(most), float(terms.amax()) / 30 if terms.numel() else 0)
    close("y", got, exact, exact.float(), of_terms)
    if x.requires_grad and got.numel():
        upstream = draw.tensor(*got.shape)
        (gradient,) = torch.autograd.grad(got, x, upstream)
        _, mask = torch.ops.cortex_fast.conv3x3(
            x.detach(),
            weight=filters.weight,
            bias=filters.bias,
            winograd=filters.winograd,
            winograd_transposed=filters.winograd_transposed,
            relu=relu,
            pool=pool,
            padding=padding,
            backend=filters.backend,
        )
        exact = conv3x3_backward(
            upstream=wide(upstream),
            mask=mask,
            weight=wide(weight),
            winograd_transposed=torch.empty(0),
            pool=pool,
            size=(height, width),
            padding=padding,
        )
        close("gradient", gradient, exact, exact.float(), 2e-5 * float(exact.abs().amax()) + 1e-6)
    unchanged.check()


def _embeddings(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, grid, codes = draw.whole(0, 4), draw.whole(1, 40), _grid(draw), draw.whole(1, 20)
    codebook = draw.tensor(codes, channels, special=True)
    tokens = draw.laid_out(draw.integers(codes, images, *grid).to(draw.among(TOKENS)))
    embedding = plain(codebook)[plain(tokens).long()].permute(0, 3, 1, 2) + draw.normal(images, channels, *grid) * 1e-3
    if embedding.numel() and draw.chance(0.2):
        embedding.view(-1) if embedding.is_contiguous() else None
        embedding = embedding.contiguous()
        embedding.view(-1)[draw.whole(0, embedding.numel() - 1)] = draw.among((torch.nan, torch.inf, 1e30))
    return draw.laid_out(embedding.float()), tokens, codebook


def _close_error(got: Tensor, embedding: Tensor, tokens: Tensor, codebook: Tensor) -> None:
    exact = reference_error.gather_error(embedding=wide(embedding), tokens=plain(tokens).int(), codebook=wide(codebook))
    rough = reference_error.gather_error(
        embedding=plain(embedding), tokens=plain(tokens).int(), codebook=plain(codebook)
    )
    expect(got.dtype == torch.float32, f"error: {got.dtype}")
    close("error", got, exact, rough, 2 * UNIT * exact.abs().nan_to_num(0, 0, 0) + TINY)


def gather_error(draw: Draw) -> None:
    embedding, tokens, codebook = _embeddings(draw)
    unchanged = Unchanged(embedding=embedding, tokens=tokens, codebook=codebook)
    _close_error(ops.gather_error(embedding, tokens, codebook, impl=_impl(draw)), embedding, tokens, codebook)
    unchanged.check()


def _selection(draw: Draw) -> tuple[Tensor, Tensor, dict[str, Any], Tensor]:
    """Logits [P,R,K], codebook, settings, and the scores' noise in float32."""
    problems, rows, channels = draw.whole(0, 3), draw.whole(1, 5), draw.whole(1, 20)
    codes = draw.among((1, 2, 9, 33, 769, 1000, 1600)) if draw.chance(0.5) else draw.whole(1, 100)
    logits = draw.tensor(problems, rows, codes, scale=draw.among((1, 1, 1e-3, 30)))
    if draw.chance(0.4) and codes > 1:
        banned = draw.integers(2, problems, rows, codes).bool()
        begin = draw.whole(0, codes - 1)
        banned = banned if draw.chance(0.5) else torch.arange(codes).ge(begin).expand(problems, rows, codes).clone()
        banned[..., draw.whole(0, codes - 1)] = False
        limited = draw.laid_out(plain(logits).masked_fill(banned, -torch.inf))
        free = bool(limited.isfinite().any(dim=2).all())  # not where one banned code was laid out as all
        logits = limited if free else plain(logits)
    codebook = draw.tensor(codes, channels, scale=draw.among((1, 1e-3, 100)))
    with_gumbel = draw.chance(0.4)
    settings: dict[str, Any] = {"seed": draw.whole(0, 2**63 - 1), "draw": draw.among((0, draw.whole(0, 2**32 - 1)))}
    tau = (1.0, 0.5, 2.0, 30.0, 1e30, 1e39, 1e300)
    settings["tau"] = draw.among((*tau, 1e-3, 1e-30, 1e-46, 1e-310)) if with_gumbel else draw.among(tau)
    ids = draw.laid_out(draw.integers(draw.among((3, 2**32)), problems)) if draw.chance(0.5) else None
    g = (
        draw.tensor(problems, rows, codes)
        if with_gumbel
        else reference_gumbel.gumbel_noise(
            torch.arange(problems) if ids is None else plain(ids), rows, codes, settings["seed"], settings["draw"]
        )
    )
    settings |= {"item_ids": ids, "gumbel": g if with_gumbel else None}
    return logits, codebook, settings, plain(g)


def _within(tau: float) -> float:
    """A temperature in the range of float32."""
    return min(max(tau, TINY), torch.finfo(torch.float32).max)


def _formula(logits: Tensor, codebook: Tensor, noise: Tensor, tau: float, hard: bool) -> tuple[Tensor, Tensor]:
    """In float64, of scores as float32 has them."""
    scores = (plain(logits).float() + noise).double()
    embedding, index, _ = reference_gumbel.gumbel_codebook(
        logits=scores,
        codebook=wide(codebook),
        tau=tau,
        seed=0,
        draw=0,
        item_ids=torch.arange(len(scores)),
        hard=hard,
        gumbel=torch.zeros_like(scores),
        schedule=None,
        with_row_stats=False,
    )
    return embedding, index


def _gradients(
    upstream: Tensor, logits: Tensor, codebook: Tensor, noise: Tensor, index: Tensor, tau: float, hard: bool
) -> tuple[Tensor, Tensor]:
    scores = (plain(logits).float() + noise).double()
    return reference_gradients.gumbel_codebook_backward(
        upstream=wide(upstream),
        logits=scores,
        codebook=wide(codebook),
        tau=tau,
        seed=0,
        draw=0,
        item_ids=torch.arange(len(scores)),
        hard=hard,
        gumbel=torch.zeros_like(scores),
        schedule=None,
        index=index,
        row_stats=None,
        codebook_needed=True,
    )


def _check_index(index: Tensor, logits: Tensor, noise: Tensor, drawn: bool) -> None:
    scores = plain(logits).double() + noise.double()
    chosen = scores.gather(2, index[..., None])[..., 0]
    best = scores.amax(dim=2)
    slack = UNIT * (8 + 8 * best.abs()) if drawn else 2 * UNIT * best.abs()
    expect(bool((best - chosen <= slack).all()), "index: a score is larger than that of the selected code")


def _terms(upstream: Tensor, codebook: Tensor) -> Tensor:
    """What D's rounding is relative to, [P,R,1]."""
    return (wide(upstream).abs() @ wide(codebook).abs().T).amax(dim=2, keepdim=True)


def gumbel_codebook(draw: Draw) -> None:
    logits, codebook, settings, noise = _selection(draw)
    hard, tau = draw.chance(0.5), _within(settings["tau"])
    if draw.chance(0.5):
        logits, codebook = logits.detach().requires_grad_(), draw.laid_out(plain(codebook)).requires_grad_()
    inputs = Unchanged(logits=logits, codebook=codebook, gumbel=settings["gumbel"], item_ids=settings["item_ids"])
    call: Callable[..., Any] = draw.among((ops.gumbel_codebook, ops.gumbel_codebook_with_row_stats))
    embedding, index = call(logits, codebook, hard=hard, impl=_impl(draw), **settings)[:2]
    _check_index(index, logits, noise, settings["gumbel"] is None)
    if hard:
        same("embedding", plain(embedding), plain(codebook)[index])
    else:
        exact, _ = _formula(logits, codebook, noise, tau, hard)
        close("embedding", embedding, exact, exact.float(), 128 * UNIT * wide(codebook).abs().amax())
    if logits.requires_grad and codebook.requires_grad:
        upstream = draw.tensor(*embedding.shape)
        got = torch.autograd.grad(embedding, (logits, codebook), upstream)
        exact, exact_codebook = _gradients(upstream, logits, codebook, noise, index, tau, hard)
        allowed = 128 * UNIT * _terms(upstream, codebook) / tau
        close("logits' gradient", got[0], exact, exact.float(), allowed + TINY)
        banned = plain(logits) == -torch.inf
        expect(not bool(got[0][banned].any()), "logits' gradient: banned tokens have one")
        most = 128 * UNIT * wide(upstream).abs().sum(dim=(0, 1))
        close("codebook's gradient", got[1], exact_codebook, exact_codebook.float(), most)
    inputs.check()


def gumbel_codebook_step(draw: Draw) -> None:
    logits, codebook, settings, noise = _selection(draw)
    tau = _within(settings["tau"])
    logits, adam, step_count = plain(logits), draw.chance(0.6), draw.whole(1, 50)
    shape, before = logits.shape, plain(logits).double()
    upstream = draw.tensor(*shape[:2], codebook.shape[1])
    moments = (draw.normal(*shape).float(), draw.normal(*shape).square().float()) if adam else None
    moments64 = None if moments is None else tuple(map(wide, moments))
    anchor = draw.laid_out(draw.integers(shape[2], *shape[:2])) if draw.chance(0.4) else None
    stay_penalty = draw.among((0.0, 0.5, 3.0)) if anchor is not None else 0.0
    lr, eps, betas = draw.among((0.0, 0.1, 10.0)), draw.among((1e-8, 1e-2)), draw.among(((0.9, 0.999), (0.0, 0.5)))
    inputs = Unchanged(codebook=codebook, upstream=upstream, anchor=anchor, item_ids=settings["item_ids"])
    ops.gumbel_codebook_step(
        logits, codebook, upstream, lr=lr, moments=moments, step_count=step_count, betas=betas, eps=eps,
        anchor=anchor, stay_penalty=stay_penalty, impl=_impl(draw), **settings,
    )  # fmt: skip
    inputs.check()
    scores = (before.float() + noise).double()
    y = reference_gumbel.softened(scores, tau, wide(codebook))
    held = None if anchor is None or stay_penalty == 0 else plain(anchor)
    gradient = reference_gradients.logits_gradient(y, wide(codebook), wide(upstream), tau, held, stay_penalty)
    off = 128 * UNIT * (_terms(upstream, codebook) + stay_penalty) / tau + TINY
    banned = before == -torch.inf
    expect(bool((logits[banned] == -torch.inf).all()), "logits: a banned token is no longer")
    if moments is None or moments64 is None:
        exact = before - lr * gradient
        close("logits", logits, exact, exact.float(), lr * off + 4 * UNIT * before.abs().nan_to_num(0, 0, 0) + 1e-40)
        return
    first, second = moments64[0].lerp(gradient, 1 - betas[0]), moments64[1] * betas[1] + (1 - betas[1]) * gradient**2
    more = 8 * UNIT * (gradient.abs() + 1)
    close("moments[0]", moments[0], first, first.float(), off + more)
    close("moments[1]", moments[1], second, second.float(), (off + more) * (2 * gradient.abs() + off + 1))
    # from the moments as they are: dividing by small ones magnifies their rounding
    size = lr / (1 - betas[0] ** step_count)
    change = size * wide(moments[0]) / ((wide(moments[1]) / (1 - betas[1] ** step_count)).sqrt() + eps)
    exact = before - change
    allowed = 1e-5 * change.abs() + 4 * UNIT * (before.abs().nan_to_num(0, 0, 0) + size)
    close("logits", logits, exact, exact.float(), allowed.nan_to_num(0, 0, 0))


def stream(draw: Draw) -> None:
    """random_stream: the native numbers and the definition's are within a few last bits."""
    kind = draw.among((random_stream.normal, random_stream.gumbel))
    items = draw.laid_out(draw.integers(draw.among((5, 2**32)), draw.whole(0, 4)))
    draws = draw.laid_out(
        draw.integers(draw.among((5, 2**32)), draw.whole(0, 4)).to(draw.among((torch.int64, torch.uint32)))
    )
    sizes = draw.whole(0, 2**63 - 1), items, draws, draw.whole(0, 5), draw.whole(0, 300)
    got, expected = (kind(*sizes, impl=impl) for impl in ("native", "reference"))
    close("numbers", got, expected.double(), expected, 64 * UNIT * (1 + expected.double().abs()))


OPERATORS: dict[str, Callable[[Draw], None]] = {
    operator.__name__: operator
    for operator in (
        token_saliency,
        concept_counts,
        saliency_counts,
        smoothgrad_noise,
        nearest_code,
        conv3x3,
        gather_error,
        gumbel_codebook,
        gumbel_codebook_step,
        stream,
    )
}
