"""The loop of token selection and its baselines: many problems step together, stop alone, and can be resumed."""

from collections.abc import Callable
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
from cortex_fast.explain.checkpoints import Checkpoint, GroupState, Position, load_checkpoint, save_checkpoint
from cortex_fast.explain.groups import Group, Judge, grouped, regrouped
from cortex_fast.explain.problems import Problems
from cortex_fast.explain.recipes import Recipe
from cortex_fast.explain.results import TokenSelection
from cortex_fast.explain.stepping import Method, schedules_of, step_of
from cortex_fast.explain.trajectories import Trajectory, best_selection, empty_trajectory, judged_steps


@dataclass(frozen=True, eq=False)
class _Run:
    """What all groups of one optimisation share; `bar` is its progress bar."""

    problems: Problems
    method: Method
    recipe: Recipe
    trajectory: Trajectory
    bar: Any


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
    """Every problem's best selection.

    The problems step in groups of one extractor and one region, as many as fit into memory.

    Args:
        problems: P problems, each repeated for its restarts.
        method: what tells this optimisation from another.
        recipe: its settings.
        bytes_of_row: bytes of the variables of one free position.
        memory: bytes for a group's variables and activations.
        judge: (tokens, target) -> probability. None: each problem's extractor.
        checkpoint: a file for the run's state, which stays when the run is done. None: none.
        progress: the progress bar's title. None: no bar.
        fingerprint: what the result was computed from, besides the problems.
        startable: bool [P], whether a problem's start may be the best selection. Default None: where it is the user's.

    Returns:
        P / restarts selections.

    Raises:
        ResultFileError: a damaged checkpoint, or another run's.
        BlockingIOError: another run writes to the checkpoint.
    """
    groups = grouped(
        problems, bytes_of_row=bytes_of_row, copies=recipe.draws, passes=recipe.steps, memory=memory, judge=judge
    )
    trajectory = empty_trajectory(problems, recipe)
    file = None if checkpoint is None else _checkpoint(checkpoint, fingerprint, problems)
    with nullcontext() if file is None else held(file.path):
        position = None if file is None else load_checkpoint(file, trajectory)
        if position is None:
            position = Position([len(group.rows) for group in groups], 0, None)
        else:  # the groups as they were, whatever memory is now
            groups = regrouped(groups, position.sizes)
        title, total = progress or "", recipe.steps * len(groups)
        with tqdm(total=total, desc=title, unit="step", disable=progress is None) as bar:
            _run_groups(_Run(problems, method, recipe, trajectory, bar), groups, position, file)
    return best_selection(problems, trajectory, recipe, fingerprint, startable)


def _checkpoint(path: Path, fingerprint: dict[str, Any], problems: Problems) -> Checkpoint:
    """The file of a run, identified by its settings and its problems."""
    arguments = (problems.extractor_index, problems.start, problems.region, problems.target, problems.item_ids)
    return Checkpoint(path, {**fingerprint, "problems": digests.of_parts(arguments)}, problems.target.tolist())


def _run_groups(run: _Run, groups: list[Group], position: Position, checkpoint: Checkpoint | None) -> None:
    """Run the groups that are left, from a position, and save the position as it moves on."""

    def save(group: int, state: GroupState | None) -> None:
        if checkpoint is not None:
            save_checkpoint(checkpoint, run.trajectory, Position(position.sizes, group, state))

    state = position.state
    run.bar.update(position.group * run.recipe.steps + (state.step_count if state else 0))
    for group in range(position.group, len(groups)):
        _run_group(run, groups[group], state, partial(save, group))
        state = None
        save(group + 1, None)


def _run_group(run: _Run, group: Group, state: GroupState | None, save: Callable[[GroupState], None]) -> None:
    """Run one group, from its start or from a saved state, into its rows of the trajectory."""
    method, recipe, trajectory = run.method, run.recipe, run.trajectory
    problems, steps = run.problems.take(group.rows), judged_steps(recipe)
    if state is None:
        state = _begin(problems, method, recipe)
        trajectory.add(0, group.rows, problems.start, group.judge(problems.start, problems.target))
    schedules = schedules_of(recipe, group.rows.device)
    step, active = None, problems
    while state.step_count < recipe.steps and len(state.active):
        if step is None:
            active = problems.take(state.active)
            step = step_of(group.prepared, active, method, recipe, state.variables, state.moments)
        rows = group.rows[state.active]
        trajectory.loss[state.step_count, rows] = step(schedules[state.step_count])[0]
        state.step_count += 1
        trajectory.taken[rows] = state.step_count
        judged = state.step_count in steps
        if judged or recipe.patience is not None:
            _decide(state, method.decide(state.variables, active))
        if recipe.patience is not None and _stop(state, recipe.patience):
            step = None
        run.bar.update()
        if judged:
            _judge(run, group, problems, steps.index(state.step_count), state)
            if state.step_count < recipe.steps:
                save(state)
    if state.step_count < recipe.steps:
        _repeat_last(run, group, problems, state)


def _begin(problems: Problems, method: Method, recipe: Recipe) -> GroupState:
    """The state of a group before its first step."""
    variables = method.start(problems)
    adam = recipe.optimizer == "adam"
    return GroupState(
        step_count=0,
        active=torch.arange(len(problems), device=variables.device),
        variables=variables,
        moments=(torch.zeros_like(variables), torch.zeros_like(variables)) if adam else None,
        latest=method.decide(variables, problems),
        unchanged=torch.zeros(len(problems), dtype=torch.int64, device=variables.device),
    )


def _decide(state: GroupState, tokens: Tensor) -> None:
    """Store the active problems' tokens [A,rows], and count for how many decisions they have been the same."""
    same = (tokens == state.latest[state.active]).all(dim=1)
    state.unchanged[state.active] = torch.where(same, state.unchanged[state.active] + 1, 0)
    state.latest[state.active] = tokens


def _stop(state: GroupState, patience: int) -> bool:
    """Deactivate the problems whose tokens have been the same for `patience` steps; whether there were any."""
    going = state.unchanged[state.active] < patience
    if bool(going.all()):
        return False
    state.active, state.variables = state.active[going], state.variables[going]
    if state.moments is not None:
        state.moments = (state.moments[0][going], state.moments[1][going])
    return True


def _judge(run: _Run, group: Group, problems: Problems, row: int, state: GroupState) -> None:
    """Judge the group's latest tokens, for one row of the trajectory and the progress bar."""
    tokens = problems.filled(state.latest)
    probability = group.judge(tokens, problems.target)
    run.trajectory.add(row, group.rows, tokens, probability)
    loss = float(run.trajectory.loss[max(state.step_count - 1, 0), group.rows].nanmean())
    run.bar.set_postfix(loss=f"{loss:.3g}", probability=f"{float(probability.float().mean()):.3f}", refresh=False)


def _repeat_last(run: _Run, group: Group, problems: Problems, state: GroupState) -> None:
    """Judge the tokens of a group whose problems have all stopped, for this and all later judged steps."""
    steps, history, probability = judged_steps(run.recipe), run.trajectory.history, run.trajectory.probability
    row = next(index for index, step_count in enumerate(steps) if step_count >= state.step_count)
    _judge(run, group, problems, row, state)
    history[row:, group.rows] = history[row, group.rows].clone()
    probability[row:, group.rows] = probability[row, group.rows].clone()
    run.bar.update(run.recipe.steps - state.step_count)
