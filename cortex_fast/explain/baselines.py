"""What token selection is compared with: optimising the embedding itself, then the nearest tokens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data.token_store import gather
from cortex_fast.explain.selection import OPTIMIZERS, Box, TokenSelection, check_problems, check_schedule, optimise


@torch.inference_mode(False)
def optimise_embedding(
    extractor: nn.Module,
    codebook: Tensor,
    target: int | Tensor,
    *,
    tokens: Tensor | None = None,
    region: Box | Tensor | None = None,
    grid: int | None = None,
    steps: int = 3000,
    lr: float = 0.01,
    regularisation: float = 0.0,
    optimizer: str = "adam",
    judge_every: int = 100,
    tick: Callable[[], object] = lambda: None,
) -> TokenSelection:
    """Gradient steps on E [P,d,m,m] in the region, then each position's nearest code: the baseline of eq. 10.

    Arguments and result as in `select_tokens`; the start is the image's own embedding, so there is no randomness.
    """
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    problems = check_problems(extractor, codebook, target, tokens, region, grid, None)
    check_schedule(steps, lr, regularisation, judge_every, 0)
    free = problems.region.flatten().nonzero().flatten()
    codebook = problems.codebook
    start = gather(problems.start, codebook).flatten(2).transpose(1, 2)[:, free]  # [P, rows, d]
    # at least float32, as the logits of token selection are: Adam's epsilon is 0 in float16
    embedding = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
    rule = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    update = rule([embedding.requires_grad_(True)], lr=lr)

    def learn(_step: int, gradient: Tensor) -> None:
        embedding.grad = gradient.to(embedding.dtype)
        update.step()

    return optimise(
        extractor,
        problems,
        propose=lambda step: embedding.to(codebook.dtype),
        learn=learn,
        decide=lambda: ops.nearest_code(embedding, codebook),
        steps=steps,
        regularisation=regularisation,
        judge_every=judge_every,
        tick=tick,
        fingerprint={"method": "embedding optimisation", "steps": steps, "lr": lr, "optimizer": optimizer}
        | {"regularisation": regularisation},
    )
