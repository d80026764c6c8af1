"""The optimisation-based explanation: a token selection over the whole codebook (eq. 7-9)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.results import read_result, save_result
from cortex_fast.data.token_store import gather
from cortex_fast.engine import frozen, ordinary, prepare
from cortex_fast.explain.arguments import check_classes, check_extractor, target_vector
from cortex_fast.ops.random_stream import normal

_KIND = "TokenSelection"
_START_DRAW = 2**32 - 1  # the draw that makes the first logits; steps use 0, 1, 2, ...
OPTIMIZERS = ("adam", "sgd")

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class TokenSelection:
    """P selections, one for each problem.

    tokens int64 [P,m,m]: the selection of largest target probability among those judged. initial int64 [P,m,m]: the
    start. region bool [m,m]: the free positions. target int64 [P]. steps int64 [T]: when the selection was judged, 0
    first; history int64 [T,P,m,m] and probability float32 [T,P]: the tokens then, and f_Y's probability of the target.
    loss float32 [steps,P]: eq. 9 at every step, with that step's noise. best int64 [P]: the row of `steps` that
    `tokens` is.
    """

    tokens: Tensor
    initial: Tensor
    region: Tensor
    target: Tensor
    steps: Tensor
    history: Tensor
    probability: Tensor
    loss: Tensor
    best: Tensor
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def changed(self) -> Tensor:
        """Where `tokens` differs from `initial`: bool [P,m,m]."""
        return self.tokens != self.initial

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        save_result(path, _KIND, tensors, {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "TokenSelection":
        """Read what `save` wrote. Raises ResultFileError for anything else, naming the file."""
        return read_result(path, _KIND, cls)


@dataclass(frozen=True)
class Problems:
    """Checked arguments of P problems: codebook [K,d], start [P,m,m], region bool [m,m], target [P], item ids [P].

    `given`: the start is the user's, so that it may itself be the best.
    """

    codebook: Tensor
    start: Tensor
    region: Tensor
    target: Tensor
    item_ids: Tensor
    given: bool


@torch.inference_mode(False)
def select_tokens(
    extractor: nn.Module,
    codebook: Tensor,
    target: int | Tensor,
    *,
    tokens: Tensor | None = None,
    region: Box | Tensor | None = None,
    grid: int | None = None,
    steps: int = 3000,
    lr: float = 0.01,
    tau: float = 1.0,
    regularisation: float = 0.0,
    optimizer: str = "adam",
    seed: int = 0,
    item_ids: Tensor | None = None,
    judge_every: int = 100,
    tick: Callable[[], object] = lambda: None,
) -> TokenSelection:
    """Choose tokens, from the whole codebook, that make the extractor see `target` (eq. 7-9), for P problems at once.

    Minimises -f_Y(E)[target] + regularisation |E|^2 over logits P [rows, K] of the free positions, where
    E = M gumbel_softmax(P; tau) C + (1 - M) E_tokens, with straight-through hard selection.

    codebook C: float [K,d]. target: a class, or int [P]. tokens: int [P,m,m] to start from and to keep outside the
    region; without it every position is free and `grid` is m (default 16). region: a half-open box (top, left, bottom,
    right) or a boolean [m,m] mask; default everything. lr and optimizer ("adam", "sgd") as in torch. The selection
    without noise is judged every `judge_every` steps and at the end, and the one of largest target probability is kept
    (the tokens given are a candidate too).
    Noise and start are fixed by seed and item_ids int [P] (default 0, 1, 2, ...). tick is called after each step.
    Raises TypeError or ValueError naming the argument: shapes that do not fit, tokens outside [0, K), a target outside
    the classes, an empty region, tau <= 0, steps < 1.
    """
    checks.positive("tau", tau)
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    problems = check_problems(extractor, codebook, target, tokens, region, grid, item_ids)
    check_schedule(steps, lr, regularisation, judge_every, seed)
    codebook = problems.codebook
    rows = problems.region.flatten().nonzero().flatten()
    start = torch.tensor([_START_DRAW], device=codebook.device)
    logits = normal(seed, problems.item_ids, start, len(rows), codebook.shape[0])[:, 0].contiguous()
    moments = (torch.zeros_like(logits), torch.zeros_like(logits)) if optimizer == "adam" else None
    noise: dict[str, Any] = {"tau": tau, "seed": seed, "item_ids": problems.item_ids}

    def propose(step: int) -> Tensor:
        selected, _ = ops.gumbel_codebook(logits, codebook, draw=step, **noise)
        return selected

    def learn(step: int, gradient: Tensor) -> None:
        ops.gumbel_codebook_step(logits, codebook, gradient, lr=lr, moments=moments, step=step + 1, draw=step, **noise)

    return optimise(
        extractor,
        problems,
        propose=propose,
        learn=learn,
        decide=lambda: logits.argmax(dim=2),
        steps=steps,
        regularisation=regularisation,
        judge_every=judge_every,
        tick=tick,
        fingerprint={"method": "token selection", "steps": steps, "lr": lr, "tau": tau, "seed": seed}
        | {"optimizer": optimizer, "regularisation": regularisation},
    )


def optimise(
    extractor: nn.Module,
    problems: Problems,
    *,
    propose: Callable[[int], Tensor],
    learn: Callable[[int, Tensor], None],
    decide: Callable[[], Tensor],
    steps: int,
    regularisation: float,
    judge_every: int,
    tick: Callable[[], object],
    fingerprint: dict[str, Any],
) -> TokenSelection:
    """The loop that token selection and its baseline share.

    propose(step): the embedding [P,rows,d] of the free positions; learn(step, gradient): the step taken along the
    loss's gradient in it; decide(): the positions' tokens [P,rows] now.
    """
    batch, codebook = len(problems.target), problems.codebook
    free = problems.region.flatten().nonzero().flatten()
    fixed = gather(problems.start, codebook).flatten(2)  # [P, d, m*m]
    grid = problems.start.shape[1:]
    losses = torch.empty(steps, batch, device=codebook.device)
    judged = [problems.start]
    probabilities = [_probability(extractor, codebook, problems.start, problems.target)]
    times = [0]
    prepared = prepare(extractor, gather(problems.start[:1], codebook), copies=steps * batch)
    with frozen(extractor):
        for step in range(steps):
            with torch.enable_grad():
                proposed = propose(step).detach().requires_grad_(True)
                embedding = fixed.index_copy(2, free, proposed.transpose(1, 2)).unflatten(2, grid)
                loss = -prepared.value(embedding, problems.target).float()
                if regularisation:  # in float32: the sum of squares overflows float16
                    loss = loss + regularisation * embedding.float().square().sum(dim=(1, 2, 3))
                (gradient,) = torch.autograd.grad(loss.sum(), proposed)
            learn(step, gradient)
            losses[step] = loss.detach()
            if (step + 1) % judge_every == 0 or step + 1 == steps:
                tokens = problems.start.flatten(1).index_copy(1, free, decide()).view_as(problems.start)
                judged.append(tokens)
                probabilities.append(_probability(extractor, codebook, tokens, problems.target))
                times.append(step + 1)
            tick()
    history, probability = torch.stack(judged), torch.stack(probabilities)
    if not probability.isfinite().any(dim=0).all():
        raise ValueError("extractor: expected finite logits, got none for any selection that was judged")
    first = 0 if problems.given else 1  # without tokens the start is no selection of anyone's
    best = probability[first:].nan_to_num(nan=-1.0).argmax(dim=0) + first
    return TokenSelection(
        tokens=history[best, torch.arange(batch, device=best.device)],
        initial=problems.start,
        region=problems.region,
        target=problems.target,
        steps=torch.tensor(times),
        history=history,
        probability=probability,
        loss=losses,
        best=best,
        fingerprint=fingerprint,
    )


@torch.no_grad()
def _probability(extractor: nn.Module, codebook: Tensor, tokens: Tensor, target: Tensor) -> Tensor:
    probability = extractor(gather(tokens, codebook)).softmax(dim=1)
    return probability.gather(1, target[:, None])[:, 0].float()


def check_schedule(steps: int, lr: float, regularisation: float, judge_every: int, seed: int) -> None:
    checks.whole("steps", steps, 1)
    checks.positive("lr", lr)
    checks.non_negative("regularisation", regularisation)
    checks.whole("judge_every", judge_every, 1)
    checks.seed(seed)


def check_problems(
    extractor: nn.Module,
    codebook: Tensor,
    target: int | Tensor,
    tokens: Tensor | None,
    region: Box | Tensor | None,
    grid: int | None,
    item_ids: Tensor | None,
) -> Problems:
    """The arguments that every optimisation shares, checked and made whole."""
    checks.rank("codebook", codebook, "[K, d]")
    checks.floating("codebook", codebook)
    checks.finite("codebook", codebook)
    check_extractor(extractor, codebook=codebook)
    codebook, device = ordinary(codebook.detach()), codebook.device
    given = tokens is not None
    if tokens is None:
        size = 16 if grid is None else grid
        checks.whole("grid", size, 1)
        batch = len(target) if isinstance(target, Tensor) and target.ndim else 1
        tokens = torch.zeros(batch, size, size, dtype=torch.int64, device=device)
        if region is not None:
            raise ValueError("region: expected None without tokens, since nothing is kept outside it")
    elif grid is not None:
        raise ValueError("grid: expected None with tokens, whose shape gives it")
    checks.rank("tokens", tokens, "[P, m, m]")
    checks.integral("tokens", tokens)
    checks.same_device(codebook=codebook, tokens=tokens, item_ids=item_ids)
    checks.in_range("tokens", tokens, codebook.shape[0])
    tokens = ordinary(tokens.long())
    targets = ordinary(target_vector(target, len(tokens), device))
    if len(tokens):
        check_classes(extractor, gather(tokens[:1], codebook), targets)
    if item_ids is None:
        item_ids = torch.arange(len(tokens), device=device)
    checks.integral("item_ids", item_ids)
    checks.same_shape("item_ids", item_ids, "tokens' first dimension", tokens.shape[:1])
    return Problems(codebook, tokens, region_mask(region, tokens.shape[1:]).to(device), targets, item_ids.long(), given)


def region_mask(region: Box | Tensor | None, grid: torch.Size) -> Tensor:
    """A half-open box (top, left, bottom, right), a boolean [m,m] mask or None (everything) as a boolean [m,m] mask.

    Raises TypeError or ValueError for anything else, a box outside the grid, or an empty region.
    """
    if region is None:
        return torch.ones(grid, dtype=torch.bool)
    if isinstance(region, Tensor):
        if region.dtype != torch.bool:
            raise TypeError(f"region: expected a boolean mask or a box, got a tensor of {region.dtype}")
        checks.same_shape("region", region, "the grid", grid)
        mask = region
    else:
        if not isinstance(region, Sequence) or len(region) != 4 or not all(type(side) is int for side in region):
            raise ValueError(f"region: expected whole numbers (top, left, bottom, right), got {region!r}")
        top, left, bottom, right = region
        if not (0 <= top <= bottom <= grid[0] and 0 <= left <= right <= grid[1]):
            raise ValueError(f"region: expected a box within the {grid[0]} x {grid[1]} grid, got {region!r}")
        mask = torch.zeros(grid, dtype=torch.bool)
        mask[top:bottom, left:right] = True
    if not bool(mask.any()):
        raise ValueError(f"region: expected at least one position, got an empty region {region!r}")
    return mask
