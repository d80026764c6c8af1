"""The loop of token selection and its baselines: many problems step together, stop alone, and can go on later."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cortex_fast.data import digests
from cortex_fast.data.locks import held
from cortex_fast.data.results import ResultFileError, load_result, read_header, save_result
from cortex_fast.explain.fingerprints import contents
from cortex_fast.explain.groups import Group, Judge, grouped, recut
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.stepping import Method, Moments, schedules_of, step_of

_KIND = "TokenSelectionState"


@dataclass(frozen=True, eq=False)
class Records:
    """What is kept of all problems: history int64 [T,P,h,w] and probability [T,P] by judged time, loss [steps,P], NaN
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
    moments: Moments | None
    latest: Tensor
    same: Tensor


def optimise(
    problems: Problems,
    method: Method,
    recipe: Recipe,
    *,
    bytes_of_row: int,
    memory: int,
    judge: Judge | None,
    checkpoint: Path | None,
    progress: str | None,
    fingerprint: dict[str, Any],
    startable: Tensor | None = None,
) -> TokenSelection:
    """Every problem's best selection. fingerprint: what made it, beside the problems. startable bool [P]: whose start
    may be the best; default all. The checkpoint is left to whoever has kept the result.

    The set is cut into groups, of problems with the same extractor and region, whose variables, `bytes_of_row` for each
    free position, fit into `memory` bytes together with their activations.
    """
    groups = grouped(
        problems, bytes_of_row=bytes_of_row, copies=recipe.draws, passes=recipe.steps, memory=memory, judge=judge
    )
    times = judged_at(recipe)
    records = blank(problems, times, recipe)
    own = (problems.number, problems.start, problems.region, problems.target, problems.item_ids)
    made = {**fingerprint, "problems": digests.of_parts(own)}
    with nullcontext() if checkpoint is None else held(checkpoint):
        kept = None if checkpoint is None else _resume(checkpoint, made, records)
        done, state = 0, None
        if kept is not None:
            sizes, done, state = kept  # the groups as they were, whatever memory is now
            groups = recut(groups, sizes)
        sizes = [len(group.rows) for group in groups]

        def save(number: int, state: State | None) -> None:
            if checkpoint is not None:
                _save(checkpoint, made, problems.target, sizes, number, state, records)

        description = progress or ""
        with tqdm(total=recipe.steps * len(groups), desc=description, unit="step", disable=progress is None) as bar:
            bar.update(done * recipe.steps + (state.step if state else 0))
            for number in range(done, len(groups)):
                _run(problems, groups[number], method, recipe, times, records, state, bar, partial(save, number))
                state = None
                save(number + 1, None)
    return result_of(problems, records, times, recipe, fingerprint, startable)


def _run(
    problems: Problems,
    group: Group,
    method: Method,
    recipe: Recipe,
    times: list[int],
    records: Records,
    state: State | None,
    bar: Any,
    save: Callable[[State], None],
) -> None:
    """One group, from its start or from a state that was kept, into its rows of the records."""
    own, rows = problems.take(group.rows), group.rows
    if state is None:
        state = _begin(own, method, recipe)
        record(records, rows, 0, own.start, group.judge(own.start, own.target))
    schedules = schedules_of(recipe, rows.device)
    step, stepping = None, own
    while state.step < recipe.steps and len(state.active):
        if step is None:
            stepping = own.take(state.active)
            step = step_of(group.prepared, stepping, method, recipe, state.variables, state.moments)
        records.loss[state.step, rows[state.active]] = step(schedules[state.step])[0]
        records.taken[rows[state.active]] = state.step + 1
        state.step += 1
        judged = state.step in times
        if judged or recipe.patience is not None:
            _decide(state, method.decide(state.variables, stepping))
        if recipe.patience is not None and _stop(state, recipe.patience):
            step = None
        bar.update()
        if judged:
            _look(records, group, own, times.index(state.step), state, bar)
            if state.step < recipe.steps:
                save(state)
    if state.step < recipe.steps:  # all stopped before: what was found then stays
        row = next(index for index, time in enumerate(times) if time >= state.step)
        _look(records, group, own, row, state, bar)
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


def _look(records: Records, group: Group, problems: Problems, row: int, state: State, bar: Any) -> None:
    """Judge the tokens that the group has now."""
    tokens = problems.filled(state.latest)
    probability = group.judge(tokens, problems.target)
    record(records, group.rows, row, tokens, probability)
    loss = float(records.loss[max(state.step - 1, 0), group.rows].nanmean())
    bar.set_postfix(loss=f"{loss:.3g}", probability=f"{float(probability.float().mean()):.3f}", refresh=False)


def judged_at(recipe: Recipe) -> list[int]:
    """After how many steps the selection is judged."""
    return sorted({*range(0, recipe.steps + 1, recipe.judge_every), recipe.steps})


def record(records: Records, rows: Tensor, row: int, tokens: Tensor, probability: Tensor) -> None:
    records.history[row, rows] = tokens
    records.probability[row, rows] = probability.float()


def blank(problems: Problems, times: list[int], recipe: Recipe) -> Records:
    shape, device = (len(times), len(problems)), problems.codebook.device
    return Records(
        history=torch.zeros((*shape, *problems.start.shape[1:]), dtype=torch.int64, device=device),
        probability=torch.full(shape, torch.nan, dtype=torch.float32, device=device),
        loss=torch.full((recipe.steps, len(problems)), torch.nan, dtype=torch.float32, device=device),
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
    if recipe.stay_penalty:
        changes = (records.history != problems.start).flatten(2).sum(dim=2)
        score = probability.log() - recipe.stay_penalty * changes
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
        region=problems.region[chosen],
        target=problems.target[chosen],
        steps=torch.tensor(times),
        history=history,
        probability=probability[:, chosen],
        loss=records.loss[:, chosen],
        taken=records.taken[chosen],
        best=best,
        fingerprint=fingerprint,
    )


def fingerprint_of(method: str, recipe: Recipe, problems: Problems, **more: Any) -> dict[str, Any]:
    """What made a result: method, settings, and digests of the extractors and the codebook; of the problems, which one
    has which of several extractors."""
    parts = [part for extractor in problems.extractors for part in contents(extractor)]
    inputs = {"extractor": digests.of_parts(parts), "codebook": digests.of_parts([problems.codebook])}
    numbers = {"extractor_numbers": problems.number.tolist()} if len(problems.extractors) > 1 else {}
    return {"method": method, **dataclasses.asdict(recipe), **inputs, **numbers, **more}


def targets_of(checkpoint: Path) -> list[int]:
    """The targets of the problems whose state a file keeps."""
    targets = read_header(checkpoint, _KIND).get("targets")
    if not isinstance(targets, list) or any(type(target) is not int for target in targets):
        raise ResultFileError(f"{checkpoint}: not the state of a token selection (targets: got {targets!r})")
    return targets


def _save(
    path: Path,
    made: dict[str, Any],
    targets: Tensor,
    sizes: list[int],
    group: int,
    state: State | None,
    records: Records,
) -> None:
    """The records, and the state of a group that is under way."""
    kept = {}
    if state is not None:
        kept = {"active": state.active, "variables": state.variables, "latest": state.latest, "same": state.same}
        if state.moments is not None:
            kept |= {"first": state.moments[0], "second": state.moments[1]}
    header = {
        "made": made,
        "targets": targets.tolist(),
        "sizes": sizes,
        "group": group,
        "step": None if state is None else state.step,
    }
    save_result(path, _KIND, kept | vars(records), header)


def _resume(path: Path, made: dict[str, Any], records: Records) -> tuple[list[int], int, State | None] | None:
    """The groups' sizes, the group and its state to go on from, and the records until then; None where nothing was
    kept."""
    if not path.exists():
        return None
    tensors, header = load_result(path, _KIND)
    device = records.history.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    if header.get("made") != made:
        raise ResultFileError(f"{path}: the state of a run with other settings, extractor or problems")
    problem = _problem(tensors, header, records)
    if problem is not None:
        raise ResultFileError(f"{path}: not the state of a token selection ({problem})")
    for name, tensor in vars(records).items():
        tensor.copy_(tensors[name])
    if header["step"] is None:
        return header["sizes"], header["group"], None
    moments = (tensors["first"], tensors["second"]) if "first" in tensors else None
    state = State(header["step"], tensors["active"], tensors["variables"], moments, tensors["latest"], tensors["same"])
    return header["sizes"], header["group"], state


def _problem(tensors: Mapping[str, Tensor], header: Mapping[str, Any], records: Records) -> str | None:
    """Why this is no state to go on from."""
    for name, tensor in vars(records).items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype):
            return f"{name}: expected {tensor.dtype} {list(tensor.shape)}"
    sizes, group, step = (header.get(name) for name in ("sizes", "group", "step"))
    if not isinstance(sizes, list) or any(type(size) is not int or size < 1 for size in sizes):
        return f"sizes: expected those of groups, got {sizes!r}"
    if sum(sizes) != records.history.shape[1] or type(group) is not int or not 0 <= group <= len(sizes):
        return f"group: expected one of {len(sizes)} for {records.history.shape[1]} problems, got {group!r}"
    if step is None:
        return None
    if type(step) is not int or not 0 < step < len(records.loss) or group == len(sizes):
        return f"step: expected one of {len(records.loss)} of a group, got {step!r}"
    names = ("active", "variables", "latest", "same", *(("first", "second") if "first" in tensors else ()))
    if any(name not in tensors for name in names):
        return f"expected {', '.join(names)}"
    active, variables = tensors["active"], tensors["variables"]
    if active.dtype != torch.int64 or active.ndim != 1 or len(variables) != len(active):
        return "active: expected the problems that still step"
    if not bool(((active >= 0) & (active < sizes[group])).all()):
        return f"active: expected problems of a group of {sizes[group]}"
    if any(tensors[name].shape != variables.shape for name in names[4:]):
        return "first, second: expected moments of the variables"
    if len(tensors["latest"]) != sizes[group] or tensors["same"].shape != (sizes[group],):
        return f"latest, same: expected those of {sizes[group]} problems"
    return None
