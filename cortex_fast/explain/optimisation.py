"""The loop of token selection and its baselines: many problems step together, stop alone, and can go on later."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from cortex_fast.data.results import ResultFileError, load_result, save_result
from cortex_fast.data.token_store import gather
from cortex_fast.engine import Prepared, frozen, module_of, prepare
from cortex_fast.engine.parts import value_of
from cortex_fast.engine.regional import Box, regional
from cortex_fast.engine.replay import Graphs, replayed
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.explain.results import TokenSelection

Judge = Callable[[Tensor, Tensor], Tensor]
_KIND = "TokenSelectionState"


@dataclass(frozen=True, eq=False)
class Method:
    """What tells one optimisation from another. Variables are float [P,rows,...], changed in place.

    start(problems) -> variables; propose(variables, problems, step) -> embeddings [draws * P, rows, d] of the free
    positions, one draw after the other; learn(variables, moments, problems, step, the mean loss's gradient in those);
    decide(variables, problems) -> tokens [P,rows].
    """

    name: str
    start: Callable[[Problems], Tensor]
    propose: Callable[[Tensor, Problems, int], Tensor]
    learn: Callable[[Tensor, tuple[Tensor, Tensor] | None, Problems, int, Tensor], None]
    decide: Callable[[Tensor, Problems], Tensor]


@dataclass(frozen=True, eq=False)
class Records:
    """What is kept of all problems: history int64 [T,P,m,m] and probability [T,P] by judged time, loss [steps,P], NaN
    after a problem stopped, and taken int64 [P], the steps until then."""

    history: Tensor
    probability: Tensor
    loss: Tensor
    taken: Tensor


@dataclass(eq=False)
class State:
    """Of the problems of one group: those that still step (int64 [A]), their variables and moments [A,...], the tokens
    [G,rows] of all when last looked at, and for how many looks they have been the same [G]."""

    step: int
    active: Tensor
    variables: Tensor
    moments: tuple[Tensor, Tensor] | None
    latest: Tensor
    same: Tensor


def optimise(
    extractor: nn.Module | Prepared,
    problems: Problems,
    method: Method,
    recipe: Recipe,
    *,
    bytes_of_problem: int,
    memory: int,
    judge: Judge | None,
    checkpoint: Path | None,
    progress: str | None,
    fingerprint: dict[str, Any],
    startable: Tensor | None = None,
) -> TokenSelection:
    """Every problem's best selection. fingerprint: what made it, beside the problems. startable bool [P]: whose start
    may be the best; default all.

    The set is cut into groups whose variables, `bytes_of_problem` each, fit into `memory` bytes together with their
    activations.
    """
    prepared = prepare(extractor, gather(problems.start[:1], problems.codebook), copies=recipe.steps * len(problems))
    judge = checked_judge(judge or by_extractor(prepared.extractor, problems.codebook))
    times = judged_at(recipe)
    records = blank(problems, times, recipe)
    own = (problems.start, problems.region, problems.target, problems.item_ids)
    made = {**fingerprint, "problems": digest(own)}
    size = max(1, memory // (bytes_of_problem + recipe.draws * prepared.bytes_of_copy))
    kept = None if checkpoint is None else _resume(checkpoint, made, records)
    done, state = 0, None
    if kept is not None:
        size, done, state = kept  # the groups as they were, whatever memory is now
    groups = [slice(first, first + size) for first in range(0, len(problems), size)]

    def save(group: int, state: State | None) -> None:
        if checkpoint is not None:
            _save(checkpoint, made, size, group, state, records)

    description = progress or ""
    with tqdm(total=recipe.steps * len(groups), desc=description, unit="step", disable=progress is None) as bar:
        bar.update(done * recipe.steps + (state.step if state else 0))
        for group in range(done, len(groups)):
            _run(prepared, problems, groups[group], method, recipe, judge, times, records, state, bar, group, save)
            state = None
            save(group + 1, None)
    result = result_of(problems, records, times, recipe, fingerprint, startable)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return result


def _run(
    prepared: Prepared,
    problems: Problems,
    rows: slice,
    method: Method,
    recipe: Recipe,
    judge: Judge,
    times: list[int],
    records: Records,
    state: State | None,
    bar: Any,
    group: int,
    save: Callable[[int, State | None], None],
) -> None:
    """One group, from its start or from a state that was kept, into its rows of the records."""
    own = problems.take(rows)
    if state is None:
        state = _begin(own, method, recipe)
        record(records, rows, 0, own.start, judge(own.start, own.target))
    objective, stepping = None, own
    while state.step < recipe.steps and len(state.active):
        if objective is None:
            stepping = own.take(state.active)
            objective = objective_of(prepared, stepping, recipe)
        loss, gradient = objective(method.propose(state.variables, stepping, state.step))
        method.learn(state.variables, state.moments, stepping, state.step, gradient)
        records.loss[state.step, rows][state.active] = loss
        records.taken[rows][state.active] = state.step + 1
        state.step += 1
        judged = state.step in times
        if judged or recipe.patience is not None:
            _decide(state, method.decide(state.variables, stepping))
        if recipe.patience is not None and _stop(state, recipe.patience):
            objective = None
        bar.update()
        if judged:
            _look(records, rows, own, times.index(state.step), state, judge, bar)
            if state.step < recipe.steps:
                save(group, state)
    if state.step < recipe.steps:  # all stopped before: what was found then stays
        row = next(index for index, time in enumerate(times) if time >= state.step)
        _look(records, rows, own, row, state, judge, bar)
        records.history[row:, rows] = records.history[row, rows].clone()
        records.probability[row:, rows] = records.probability[row, rows].clone()
        bar.update(recipe.steps - state.step)


def _begin(problems: Problems, method: Method, recipe: Recipe) -> State:
    variables = method.start(problems)
    adam = recipe.optimizer == "adam"
    return State(
        step=0,
        active=torch.arange(len(problems), device=variables.device),
        variables=variables,
        moments=(torch.zeros_like(variables), torch.zeros_like(variables)) if adam else None,
        latest=method.decide(variables, problems),
        same=torch.zeros(len(problems), dtype=torch.int64, device=variables.device),
    )


def objective_of(prepared: Prepared, problems: Problems, recipe: Recipe) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From proposals [draws * P, rows, d] to the mean loss [P] over the draws and its gradient in them: eq. 9.

    Where the region is a part of the grid only what it reaches is computed.
    """
    box = Box(*problems.box)
    fixed = gather(problems.start, problems.codebook).repeat(recipe.draws, 1, 1, 1)
    target = problems.target.repeat(recipe.draws)
    reached = None if box == Box(0, 0, *problems.region.shape) else regional(prepared, fixed, box)
    window, inside = fixed, problems.region
    if reached is not None:
        window = fixed[:, :, box.top : box.bottom, box.left : box.right]
        inside = problems.region[box.top : box.bottom, box.left : box.right]
    free = inside.flatten().nonzero().flatten()
    kept = fixed.float().square().sum(dim=1).flatten(1)[:, ~problems.region.flatten()].sum(dim=1)
    scale = prepared.scale / recipe.draws
    graphs: Graphs = {}
    captured = isinstance(prepared.body, fx.GraphModule)

    def gradient_of(proposed: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), frozen(prepared.extractor):
            # at least in float32, like the gradient: what is small fits a half only as long as it is scaled
            wide = proposed.detach().to(torch.promote_types(proposed.dtype, torch.float32))
            leaf = wide.requires_grad_(True)
            embedding = (
                window.flatten(2).index_copy(2, free, leaf.transpose(1, 2).to(window.dtype)).unflatten(2, inside.shape)
            )
            if reached is None:
                value = prepared.value(embedding, target)
            else:
                value = value_of(prepared, reached(embedding), target)
            loss = -value.float()
            if recipe.regularisation:  # in float32: the sum of squares overflows float16
                loss = loss + recipe.regularisation * (kept + leaf.float().square().sum(dim=(1, 2)))
            (gradient,) = torch.autograd.grad(loss.sum() * scale, leaf)
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / prepared.scale
        return loss.detach().unflatten(0, (recipe.draws, -1)).mean(dim=0), gradient

    def objective(proposed: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = replayed(gradient_of, graphs, proposed) if captured else gradient_of(proposed)
        return loss, gradient

    return objective


def _decide(state: State, tokens: Tensor) -> None:
    """Note the active problems' tokens, and for how long they have been the same."""
    unchanged = (tokens == state.latest[state.active]).all(dim=1)
    state.same[state.active] = torch.where(unchanged, state.same[state.active] + 1, 0)
    state.latest[state.active] = tokens


def _stop(state: State, patience: int) -> bool:
    """Take out the problems that have kept their tokens for long enough; whether there were any."""
    going = state.same[state.active] < patience
    if bool(going.all()):
        return False
    state.active, state.variables = state.active[going], state.variables[going]
    if state.moments is not None:
        state.moments = (state.moments[0][going], state.moments[1][going])
    return True


def _look(records: Records, rows: slice, problems: Problems, row: int, state: State, judge: Judge, bar: Any) -> None:
    """Judge the tokens that the group has now."""
    tokens = problems.filled(state.latest)
    probability = judge(tokens, problems.target)
    record(records, rows, row, tokens, probability)
    loss = float(records.loss[max(state.step - 1, 0), rows].nanmean()) if len(problems) else 0.0
    bar.set_postfix(loss=f"{loss:.3g}", probability=f"{float(probability.float().mean()):.3f}", refresh=False)


def judged_at(recipe: Recipe) -> list[int]:
    """After how many steps the selection is judged."""
    return sorted({*range(0, recipe.steps + 1, recipe.judge_every), recipe.steps})


def record(records: Records, rows: slice, row: int, tokens: Tensor, probability: Tensor) -> None:
    records.history[row, rows] = tokens
    records.probability[row, rows] = probability.float()


def by_extractor(extractor: nn.Module, codebook: Tensor) -> Judge:
    """The extractor's own probability of the target."""

    @torch.no_grad()
    def judge(tokens: Tensor, target: Tensor) -> Tensor:
        probability = extractor(gather(tokens, codebook).contiguous()).softmax(dim=1)
        return probability.gather(1, target[:, None])[:, 0].float()

    return judge


def checked_judge(judge: Judge) -> Judge:
    """A judge whose answers are looked at, and that keeps no graph."""

    @torch.no_grad()
    def judged(tokens: Tensor, target: Tensor) -> Tensor:
        probability = judge(tokens, target)
        if not isinstance(probability, Tensor) or probability.shape != target.shape:
            got = list(probability.shape) if isinstance(probability, Tensor) else type(probability).__name__
            raise ValueError(f"judge: expected probabilities of shape {list(target.shape)}, got {got}")
        return probability.detach().float()

    return judged


def blank(problems: Problems, times: list[int], recipe: Recipe) -> Records:
    shape, device = (len(times), len(problems)), problems.codebook.device
    return Records(
        history=torch.zeros((*shape, *problems.start.shape[1:]), dtype=torch.int64, device=device),
        probability=torch.full(shape, torch.nan, device=device),
        loss=torch.full((recipe.steps, len(problems)), torch.nan, device=device),
        taken=torch.zeros(len(problems), dtype=torch.int64, device=device),
    )


def result_of(
    problems: Problems,
    records: Records,
    times: list[int],
    recipe: Recipe,
    fingerprint: dict[str, Any],
    startable: Tensor | None = None,
) -> TokenSelection:
    """Of each problem the restart with the best selection: the likeliest, or with a price on changes the largest
    logarithm of the probability less the price."""
    probability, restarts = records.probability, recipe.restarts
    if not probability.isfinite().any(dim=0).all():
        raise ValueError("extractor: expected finite logits, got none for any selection that was judged")
    first = 0 if problems.given else 1  # without tokens the start is no selection of anyone's
    score = probability
    if recipe.stay:
        changes = (records.history != problems.start).flatten(2).sum(dim=2)
        score = probability.log() - recipe.stay * changes
    score = score.nan_to_num(nan=-torch.inf)
    if startable is not None:
        score[0] = score[0].where(startable, -torch.inf)
    top, best = score[first:].max(dim=0)
    count = len(problems) // restarts
    winner = top.view(count, restarts).argmax(dim=1) if count else top.long()
    chosen = torch.arange(count, device=best.device) * restarts + winner
    best = best[chosen] + first
    history = records.history[:, chosen]
    return TokenSelection(
        tokens=history[best, torch.arange(count, device=best.device)],
        initial=problems.start[chosen],
        region=problems.region,
        target=problems.target[chosen],
        steps=torch.tensor(times),
        history=history,
        probability=probability[:, chosen],
        loss=records.loss[:, chosen],
        taken=records.taken[chosen],
        best=best,
        fingerprint=fingerprint,
    )


def fingerprint_of(
    method: str, recipe: Recipe, extractor: nn.Module | Prepared, codebook: Tensor, **more: Any
) -> dict[str, Any]:
    """What made a result, beside its problems: method, settings, and digests of the extractor and the codebook."""
    state = module_of(extractor).state_dict()
    inputs = {"extractor": digest([list(state), *state.values()]), "codebook": digest([codebook])}
    return {"method": method, **dataclasses.asdict(recipe), **inputs, **more}


def digest(tensors: Iterable[Any]) -> str:
    """Of tensors' shapes, types and contents."""
    found = hashlib.sha256()
    for tensor in tensors:
        if not isinstance(tensor, Tensor):  # a module's extra state
            found.update(repr(tensor).encode())
            continue
        whole = tensor.detach().cpu().contiguous()
        found.update(f"{list(whole.shape)} {whole.dtype}".encode())
        found.update(whole.view(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b"")
    return found.hexdigest()


def _save(path: Path, made: dict[str, Any], size: int, group: int, state: State | None, records: Records) -> None:
    """The records, and the state of a group that is under way."""
    kept = {}
    if state is not None:
        kept = {"active": state.active, "variables": state.variables, "latest": state.latest, "same": state.same}
        if state.moments is not None:
            kept |= {"first": state.moments[0], "second": state.moments[1]}
    header = {"made": made, "size": size, "group": group, "step": None if state is None else state.step}
    save_result(path, _KIND, kept | vars(records), header)


def _resume(path: Path, made: dict[str, Any], records: Records) -> tuple[int, int, State | None] | None:
    """The groups' size, the group and its state to go on from, and the records until then; None where nothing was
    kept."""
    if not path.exists():
        return None
    tensors, header = load_result(path, _KIND)
    device = records.history.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if header.get("made") != made:
        raise ResultFileError(f"{path}: the state of a run with other settings, extractor or problems")
    for name, tensor in vars(records).items():
        tensor.copy_(tensors[name])
    if header["step"] is None:
        return header["size"], header["group"], None
    moments = (tensors["first"], tensors["second"]) if "first" in tensors else None
    state = State(header["step"], tensors["active"], tensors["variables"], moments, tensors["latest"], tensors["same"])
    return header["size"], header["group"], state
