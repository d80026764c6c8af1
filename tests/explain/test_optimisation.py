"""Optimisations of many problems: groups, draws, restarts, early stops, resumed runs, forbidden tokens."""

import math

import pytest
import torch

from cortex_fast import (
    Recipe,
    ResultFileError,
    Schedule,
    draw_tokens,
    embed,
    optimise_embedding,
    select_concepts,
    select_tokens,
)
from cortex_fast.data.results import save_result
from cortex_fast.engine import prepare
from cortex_fast.explain import TokenSelection
from cortex_fast.explain.groups import extractor_judge
from cortex_fast.explain.problems import check_problems
from cortex_fast.explain.stepping import schedules_of, step_of
from cortex_fast.explain.token_method import token_method
from cortex_fast.ops.random_stream import gumbel, normal
from tests.known_extractors import Convolutional, Linear, tiny

CODES, CHANNELS, GRID, CLASSES = 12, 5, 8, 4
BOTH = [select_tokens, optimise_embedding]
REGION = (2, 2, 5, 5)


def codebook():
    return torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(3))


def grids(count=3):
    return torch.randint(CODES, (count, GRID, GRID), generator=torch.Generator().manual_seed(4))


def targets(count=3):
    return torch.arange(count) % CLASSES


def assert_same(result: TokenSelection, expected: TokenSelection):
    for name, value in vars(result).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(nan=-9), getattr(expected, name).nan_to_num(nan=-9)), name


@pytest.mark.parametrize("optimise", BOTH)
def test_results_do_not_depend_on_groups(optimise):
    arguments = {"tokens": grids(5), "region": REGION, "steps": 15, "lr": 0.2, "judge_every": 5}
    whole = optimise(tiny("ce"), codebook(), targets(5), **arguments)
    alone = optimise(tiny("ce"), codebook(), targets(5), memory=1, **arguments)
    assert torch.equal(whole.history, alone.history)
    torch.testing.assert_close(whole.loss, alone.loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimise", BOTH)
def test_a_region_alone_gives_the_same_as_the_whole_grid(optimise, monkeypatch):
    from cortex_fast.explain import stepping

    arguments = {"tokens": grids(), "region": REGION, "steps": 25, "lr": 0.2, "regularisation": 1e-3}
    reached = optimise(tiny("ce"), codebook(), targets(), **arguments)
    monkeypatch.setattr(stepping, "regional", lambda *_: None)
    everything = optimise(tiny("ce"), codebook(), targets(), **arguments)
    torch.testing.assert_close(reached.loss, everything.loss, rtol=1e-3, atol=1e-4)
    assert torch.equal(reached.tokens, everything.tokens)


REGIONS = [(2, 2, 5, 5), (0, 0, 8, 8), (2, 2, 5, 5), (7, 0, 8, 2), (2, 2, 5, 5)]


def masks() -> torch.Tensor:
    region_masks = torch.zeros(len(REGIONS), GRID, GRID, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(region_masks, REGIONS, strict=True):
        mask[top:bottom, left:right] = True
    return region_masks


@pytest.mark.parametrize(
    ("optimise", "memory"),
    [(select_tokens, 1), (select_tokens, 1 << 30), (optimise_embedding, 1 << 30), (draw_tokens, 1)],
)
def test_each_problem_can_have_its_region_and_its_extractor(optimise, memory):
    """A problem's result does not depend on the problems that step beside it."""
    extractors = [tiny("ce"), tiny("re")]
    extractor_of = [extractors[index] for index in (0, 1, 1, 0, 0)]
    arguments = {"steps": 12, "judge_every": 4} | ({} if optimise is draw_tokens else {"lr": 0.3})
    frequency = torch.rand(5, CODES, generator=torch.Generator().manual_seed(6)) ** 4
    weights = [{"frequency": frequency[n]} if optimise is draw_tokens else {} for n in (slice(None), *range(5))]
    arguments |= {"tokens": grids(5)}
    together = optimise(extractor_of, codebook(), targets(5), region=REGIONS, memory=memory, **weights[0], **arguments)
    assert torch.equal(together.region, masks()) and not together.changed[~masks()].any()
    by_mask = optimise(extractor_of, codebook(), targets(5), region=masks(), **weights[0], **arguments)
    assert torch.equal(by_mask.history, together.history)
    for problem, (extractor, region) in enumerate(zip(extractor_of, REGIONS, strict=True)):
        rows = slice(problem, problem + 1)
        items = {} if optimise is optimise_embedding else {"item_ids": torch.tensor([problem])}
        arguments["tokens"] = grids(5)[rows]
        alone = optimise(
            extractor, codebook(), targets(5)[rows], region=region, **items, **weights[1 + problem], **arguments
        )
        beside = together.problem(problem)
        assert torch.equal(beside.history, alone.history) and torch.equal(beside.region, alone.region)
        torch.testing.assert_close(beside.loss, alone.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(beside.probability, alone.probability, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_has_each_problems_region_extractor_and_limits(tmp_path):
    """Stopped in the middle, then resumed in groups of another size."""
    extractors, boxes = [tiny("ce"), tiny("re")], [(2, 2, 5, 5), (0, 0, 3, 3), (2, 2, 5, 5), (2, 2, 5, 5), (5, 5, 8, 8)]
    extractor_of = [extractors[index] for index in (0, 1, 1, 0, 1)]
    allowed = torch.rand(5, 9, CODES, generator=torch.Generator().manual_seed(8)) < 0.6
    arguments = {"tokens": grids(5), "region": boxes, "allowed": allowed, "steps": 8, "lr": 0.4, "judge_every": 4}
    straight = select_tokens(extractor_of, codebook(), targets(5), **arguments)
    selected = torch.stack([grid[top:bottom, left:right].flatten() for grid, (top, left, bottom, right)
                            in zip(straight.history[-1], boxes, strict=True)])  # fmt: skip
    assert allowed.gather(2, selected[..., None]).all()
    judges, looks = [extractor_judge(extractor, codebook()) for extractor in extractors], []

    def judge(tokens, target):  # problem 1's for all: each problem's judge has a test below
        looks.append(None)
        if len(looks) == 6:
            raise StoppedError
        return judges[1](tokens, target)

    expected = select_tokens(extractor_of, codebook(), targets(5), judge=judges[1], **arguments)
    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor_of, codebook(), targets(5), judge=judge, checkpoint=path, memory=1, **arguments)
    other = [extractors[index] for index in (0, 1, 0, 0, 1)]
    with pytest.raises(ResultFileError):
        select_tokens(other, codebook(), targets(5), judge=judge, checkpoint=path, **arguments)
    got = select_tokens(extractor_of, codebook(), targets(5), judge=judge, checkpoint=path, **arguments)
    assert torch.equal(got.history, expected.history) and got.fingerprint == expected.fingerprint
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.probability, expected.probability, rtol=1e-4, atol=1e-6)
    swapped = select_tokens(other, codebook(), targets(5), judge=judges[1], **arguments)
    assert swapped.fingerprint != got.fingerprint


def test_a_resumed_run_judges_each_problem_by_its_extractor(tmp_path, monkeypatch):
    from cortex_fast.explain import optimisation

    extractors = [tiny("ce"), tiny("re")]
    extractor_of = [extractors[index] for index in (0, 1, 0, 1)]
    arguments = {"tokens": grids(4), "region": REGION, "steps": 6, "lr": 0.4, "judge_every": 3}
    expected = select_tokens(extractor_of, codebook(), targets(4), **arguments)
    path, calls = tmp_path / "state", []

    def stopping(*arguments):
        calls.append(None)
        if len(calls) == 5:
            raise StoppedError
        return judge(*arguments)

    judge = optimisation._judge
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(optimisation, "_judge", stopping)
        select_tokens(extractor_of, codebook(), targets(4), checkpoint=path, memory=1, **arguments)
    got = select_tokens(extractor_of, codebook(), targets(4), checkpoint=path, **arguments)
    torch.testing.assert_close(got.probability, expected.probability, rtol=1e-4, atol=1e-6)
    assert torch.equal(got.history, expected.history)


def test_an_extractor_is_prepared_once(monkeypatch):
    from cortex_fast.explain import groups

    prepared = []
    monkeypatch.setattr(groups, "prepare", lambda *a, **k: prepared.append(k["copies"]) or prepare(*a, **k))
    extractor_of = [tiny("ce")] * 5
    select_tokens(extractor_of, codebook(), targets(5), tokens=grids(5), region=REGIONS, steps=3, lr=0.3)
    draw_tokens(extractor_of[0], codebook(), targets(5), tokens=grids(5), region=REGIONS, steps=3)
    assert prepared == [15, 0]


def test_no_problems_with_any_other_arguments():
    none = {"tokens": grids(0), "steps": 2}
    mask = torch.ones(9, CODES, dtype=torch.bool)
    for given in (
        {"allowed": mask[0]},
        {"allowed": mask, "region": REGION},
        {"region": []},
        {"banned": ~mask[None][:0]},
    ):
        got = select_tokens(tiny("ce"), codebook(), targets(0), **none, **given)
        assert got.tokens.shape == (0, GRID, GRID) and got.region.shape == (0, GRID, GRID)
    assert draw_tokens(tiny("ce"), codebook(), targets(0), **none).tokens.shape == (0, GRID, GRID)


@pytest.mark.parametrize("memory", [0, 1.5, "1 GiB", None])
@pytest.mark.parametrize("optimise", [*BOTH, draw_tokens])
def test_bad_memory_is_named(optimise, memory):
    with pytest.raises((ValueError, TypeError), match=r"^memory:"):
        optimise(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, memory=memory)


def test_results_of_another_version_are_refused(tmp_path):
    got = select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1)
    tensors = {name: value for name, value in vars(got).items() if isinstance(value, torch.Tensor)}
    save_result(tmp_path / "old", "TokenSelection", tensors | {"region": got.region[0]}, {"fingerprint": {}})
    with pytest.raises(ResultFileError, match="region"):
        TokenSelection.load(tmp_path / "old")


def test_several_regions_with_prices_and_bans():
    banned = torch.arange(CODES) < 9
    arguments = {"steps": 10, "lr": 0.5, "restarts": 2, "judge_every": 5}
    got = select_tokens(
        tiny("ce"),
        codebook(),
        targets(5),
        tokens=grids(5),
        region=REGIONS,
        banned=banned,
        stay_penalty=0.01,
        **arguments,
    )
    assert (got.history[-1][masks()] >= 9).all() and not got.changed[~masks()].any()
    dear, free = (
        select_tokens(tiny("ce"), codebook(), targets(5), tokens=grids(5), region=REGIONS, stay_penalty=stay_penalty,
                      start="image", **arguments)
        for stay_penalty in (50.0, 0.0)
    )  # fmt: skip
    assert not dear.changed.any() and free.changed.any()
    with pytest.raises(ValueError, match=r"^banned: expected shape \[12\], got \[9, 12\]"):
        select_tokens(tiny("ce"), codebook(), targets(5), tokens=grids(5), region=REGIONS, banned=banned.expand(9, -1))


@pytest.mark.parametrize(
    "region",
    [REGIONS[:4], masks()[:4], [*REGIONS[:4], (0, 0, 0, 0)], [*REGIONS[:4], (0, 0, 9, 1)], [*REGIONS[:4], 3]],
)
def test_bad_regions_are_named(region):
    with pytest.raises(ValueError, match=r"^region:"):
        select_tokens(tiny("ce"), codebook(), targets(5), tokens=grids(5), region=region, steps=1)


def test_bad_extractors_are_named():
    for extractors in ([], [tiny("ce")] * 2, [tiny("ce"), tiny("ce"), tiny("ce").train()]):
        with pytest.raises(ValueError, match=r"^extractor:"):
            select_tokens(extractors, codebook(), targets(), tokens=grids(), steps=1)
    with pytest.raises(TypeError, match=r"^extractor: .*float32"):
        select_tokens(tiny("ce"), codebook().double(), targets(), tokens=grids(), steps=1)


def test_a_whole_step_is_a_function_of_its_schedule():
    """A CUDA graph replays it: the variables change in place, and nothing else carries over from step to step."""
    recipe = Recipe(steps=6, lr=Schedule(0.4, 0.0), tau=Schedule(2.0, 0.5, "geometric"))
    expected = select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), region=REGION, recipe=recipe)
    problems = check_problems(tiny("ce"), codebook(), targets(), tokens=grids(), region=REGION)
    method, prepared = token_method(recipe, 0, None), prepare(tiny("ce"), embed(grids(), codebook()))
    variables = method.start(problems)
    moments = (torch.zeros_like(variables), torch.zeros_like(variables))
    places = [tensor.data_ptr() for tensor in (variables, *moments)]
    step, schedule = (
        step_of(prepared, problems, method, recipe, variables, moments),
        torch.zeros(1, 4, dtype=torch.float64),
    )
    losses = []
    for now in schedules_of(recipe, schedule.device):
        schedule.copy_(now)  # as in a replay: the same memory, new values
        losses.append(step(schedule)[0].clone())
    torch.testing.assert_close(torch.stack(losses), expected.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(method.decide(variables, problems), expected.history[-1, :, 2:5, 2:5].flatten(1))
    assert [tensor.data_ptr() for tensor in (variables, *moments)] == places


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("optimise", BOTH)
@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_gives_the_same_bits(optimise, memory, optimizer, tmp_path):
    extractor = tiny("ce")
    arguments = {"tokens": grids(), "region": REGION, "steps": 20, "lr": 0.2, "judge_every": 4, "patience": 9}
    arguments |= {"memory": memory, "optimizer": optimizer}
    straight = optimise(extractor, codebook(), targets(), **arguments)
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 3:
            raise StoppedError
        with torch.no_grad():
            return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        optimise(extractor, codebook(), targets(), judge=judge, checkpoint=path, **arguments)
    assert path.exists()
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="state"):
        optimise(extractor, codebook(), targets(), checkpoint=path, **(arguments | {"lr": 0.1}))
    assert path.read_bytes() == before
    assert_same(optimise(extractor, codebook(), targets(), judge=judge, checkpoint=path, **arguments), straight)
    assert not path.exists()
    if memory > 1:  # no judgement is repeated
        assert len(looks) <= len(straight.steps) + 2


def test_draws_follow_the_mean_gradient_by_hand():
    """One step of one position from two draws, written out in float64."""
    extractor, rate, tau, draws = Linear(CHANNELS, 1, CLASSES).eval(), 3.0, 0.8, 2
    items, anchor = torch.tensor([0]), 4
    for optimizer, price in (("adam", 0.0), ("sgd", 0.0), ("sgd", 1.0)):
        settings = {"steps": 1, "lr": rate, "tau": tau, "optimizer": optimizer, "draws": draws, "stay_penalty": price}
        changed = 0
        for seed in range(8):
            got = select_tokens(extractor, codebook(), 1, tokens=torch.tensor([[[anchor]]]), seed=seed, **settings)
            start = normal(seed, items, torch.tensor([2**32 - 1]), 1, CODES)[0, 0, 0].double()
            d = codebook().double() @ -extractor.weight.detach()[1].double()
            priced = d - price * (torch.arange(CODES) == anchor)
            gradients, losses = [], []
            for draw in range(draws):
                noise = gumbel(seed, items, torch.tensor([draw]), 1, CODES)[0, 0, 0].double()
                y = ((start + noise) / tau).softmax(dim=0)
                gradients.append(y * (priced - y @ priced) / tau)
                losses.append(float(d[(start + noise).argmax()]))
            gradient = sum(gradients) / draws
            step = gradient / (gradient.abs() + 1e-8) if optimizer == "adam" else gradient
            after = start - rate * step
            assert int(got.history[-1]) == int(after.argmax())
            assert float(got.loss) == pytest.approx(sum(losses) / draws, rel=1e-5)
            changed += int(after.argmax() != start.argmax())
        assert changed >= 2


def test_the_regulariser_counts_each_position_once():
    """With codes of norm 1 it is the number of positions, whatever is selected."""
    codes = torch.nn.functional.normalize(codebook())
    arguments = {"tokens": grids(), "region": REGION, "steps": 1}
    plain, more = (select_tokens(tiny("ce"), codes, targets(), regularisation=r, **arguments) for r in (0.0, 0.5))
    torch.testing.assert_close(more.loss - plain.loss, torch.full((1, 3), 0.5 * GRID * GRID), rtol=1e-4, atol=1e-4)


def test_every_draw_has_its_number():
    draws = schedules_of(Recipe(steps=4, draws=3), torch.device("cpu"))[..., 1]
    assert draws.flatten().tolist() == list(range(12))


def test_more_draws_disagree_less():
    """The loss of a step is its draws' mean, whose spread falls with their number."""
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    spread = []
    for draws in (1, 16):
        got = select_tokens(
            extractor, codebook(), torch.zeros(1, dtype=torch.long), grid=GRID, steps=40, lr=1e-6, draws=draws
        )
        spread.append(float(got.loss.std()))
    assert spread[1] < 0.5 * spread[0]


def test_restarts_keep_the_best_of_independent_runs():
    arguments = {"tokens": grids(), "region": REGION, "steps": 6, "lr": 0.2, "judge_every": 2}
    many = select_tokens(tiny("ce"), codebook(), targets(), restarts=3, **arguments)
    runs = [
        select_tokens(
            tiny("ce"), codebook(), targets(), item_ids=torch.arange(3) + restart * 2**26, **arguments
        ).probability.amax(dim=0)
        for restart in range(3)
    ]
    torch.testing.assert_close(many.probability.amax(dim=0), torch.stack(runs).amax(dim=0), rtol=1e-4, atol=1e-5)
    assert many.tokens.shape == (3, GRID, GRID)
    with pytest.raises(ValueError, match=r"^item_ids:"):
        select_tokens(tiny("ce"), codebook(), targets(), restarts=2, item_ids=torch.tensor([0, 1, 2**26]), **arguments)


@pytest.mark.parametrize("optimise", BOTH)
def test_a_problem_stops_alone(optimise):
    """With steps so small that no token changes every problem stops after `patience` steps."""
    arguments = {"tokens": grids(), "region": REGION, "judge_every": 7}
    still = optimise(tiny("ce"), codebook(), targets(), steps=40, lr=1e-9, patience=5, **arguments)
    assert still.taken.tolist() == [5, 5, 5]
    assert still.loss[:5].isfinite().all() and still.loss[5:].isnan().all()
    assert torch.equal(still.history[1:], still.history[1:2].expand_as(still.history[1:]))
    assert still.probability.isfinite().all()
    moving = optimise(tiny("ce"), codebook(), targets(), steps=30, lr=0.3, patience=8, **arguments)
    free = optimise(tiny("ce"), codebook(), targets(), steps=30, lr=0.3, **arguments)
    for problem, taken in enumerate(moving.taken.tolist()):  # nothing differs before a problem stops
        torch.testing.assert_close(moving.loss[:taken, problem], free.loss[:taken, problem], rtol=1e-3, atol=1e-4)


def test_only_allowed_tokens_are_taken():
    rows = 9
    allowed = torch.zeros(3, rows, CODES, dtype=torch.bool)
    allowed[0, :, :3] = True
    allowed[1, :, 5:] = True
    allowed[2, range(rows), [position % CODES for position in range(rows)]] = True
    arguments = {"tokens": grids(), "region": REGION, "steps": 20, "lr": 0.5, "judge_every": 20}
    for optimizer in ("adam", "sgd"):
        got = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed, optimizer=optimizer, **arguments)
        last = got.history[-1, :, 2:5, 2:5].flatten(1)
        assert (last[0] < 3).all() and (last[1] >= 5).all() and last[2].tolist() == list(range(rows))
        assert got.loss.isfinite().all()
    many = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed, restarts=2, **arguments)
    last = many.history[-1, :, 2:5, 2:5].flatten(1)
    assert (last[0] < 3).all() and (last[1] >= 5).all() and last[2].tolist() == list(range(rows))
    drawn = select_tokens(tiny("ce"), codebook(), targets(), allowed=allowed[0, 0], restarts=2, draws=2, **arguments)
    assert (drawn.history[-1, :, 2:5, 2:5] < 3).all()


def test_banned_is_the_complement_of_allowed():
    banned = torch.rand(9, CODES, generator=torch.Generator().manual_seed(5)) < 0.4
    some = torch.arange(CODES) % 4 > 0
    arguments = {"tokens": grids(), "region": REGION, "steps": 8, "lr": 0.5}
    got = select_tokens(tiny("ce"), codebook(), targets(), banned=banned, **arguments)
    other = select_tokens(tiny("ce"), codebook(), targets(), allowed=~banned, **arguments)
    assert_same(got, other)
    assert got.fingerprint == other.fingerprint
    both = select_tokens(tiny("ce"), codebook(), targets(), banned=banned, allowed=some, **arguments)
    taken = both.history[-1, :, 2:5, 2:5].flatten(1)
    assert some[taken].all() and not banned.expand(3, -1, -1).gather(2, taken[..., None]).any()
    with pytest.raises(ValueError, match=r"^banned:"):
        select_tokens(tiny("ce"), codebook(), targets(), banned=torch.ones(CODES, dtype=torch.bool), **arguments)


@pytest.mark.parametrize(
    "allowed",
    [torch.ones(CODES + 1, dtype=torch.bool), torch.ones(CODES), torch.zeros(CODES, dtype=torch.bool), [True] * CODES],
)
def test_bad_allowed_is_named(allowed):
    with pytest.raises((ValueError, TypeError), match=r"^allowed:"):
        select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), allowed=allowed, steps=1)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_price_keeps_the_images_tokens(draws):
    arguments = {"tokens": grids(), "region": REGION, "steps": 60, "lr": 0.2, "judge_every": 60, "start": "image"}
    counts = []
    for price in (0.0, 0.5, 1e3):
        got = select_tokens(tiny("ce"), codebook(), targets(), stay_penalty=price, draws=draws, **arguments)
        counts.append(int((got.history[-1] != got.initial).sum()))
    assert counts[0] > counts[1] >= counts[2] == 0


def test_a_start_from_the_image_is_the_image():
    got = select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, lr=1e-6, start="image")
    assert torch.equal(got.history[1], grids())
    for settings in ({"start": "image"}, {"stay_penalty": 1.0}):
        with pytest.raises(ValueError, match=r"^tokens:"):
            select_tokens(tiny("ce"), codebook(), 1, grid=GRID, steps=1, **settings)


def test_a_schedule_sets_each_steps_temperature_and_rate():
    """A constant schedule changes nothing; a falling one has the same first step."""
    arguments = {"tokens": grids(), "region": REGION, "steps": 8, "judge_every": 2}
    plain = select_tokens(tiny("ce"), codebook(), targets(), lr=0.2, tau=1.0, **arguments)
    flat = select_tokens(
        tiny("ce"), codebook(), targets(), lr=Schedule(0.2, 0.2), tau=Schedule(1.0, 1.0, "geometric"), **arguments
    )
    assert_same(flat, plain)
    falling = select_tokens(tiny("ce"), codebook(), targets(), lr=0.2, tau=Schedule(1.0, 0.1, "geometric"), **arguments)
    assert torch.equal(falling.loss[:2], plain.loss[:2]) and not torch.equal(falling.loss, plain.loss)


def test_a_given_judge_decides():
    """It judges by the number of positions with token 7."""

    def judge(tokens, target):
        return (tokens == 7).float().mean(dim=(1, 2))

    got = select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), steps=40, lr=0.3, judge_every=2, judge=judge)
    counts = (got.history == 7).float().mean(dim=(2, 3))
    torch.testing.assert_close(got.probability, counts)
    assert torch.equal(got.best, counts.argmax(dim=0))


def test_unknown_settings_are_named():
    for optimise in (*BOTH, draw_tokens):
        with pytest.raises(TypeError, match=r"^temperature:"):
            optimise(tiny("ce"), codebook(), targets(), tokens=grids(), temperature=2.0)
    for name, value in {"tau": 0.5, "draws": 2, "restarts": 2, "start": "image", "stay_penalty": 1.0}.items():
        with pytest.raises(ValueError, match=rf"^{name}:"):
            optimise_embedding(tiny("ce"), codebook(), targets(), tokens=grids(), **{name: value})


def test_an_edit_position_by_position():
    got = select_tokens(
        tiny("ce"), codebook(), targets(), tokens=grids(), region=REGION, steps=60, lr=0.4, judge_every=5
    )
    rebuilt = got.initial[1].clone()
    for change in got.changes(1):
        assert rebuilt[change.row, change.column] == change.before != change.after
        rebuilt[change.row, change.column] = change.after
    assert torch.equal(rebuilt, got.tokens[1]) and got.changes(1)
    pictures = got.strip(lambda tokens: tokens[:, None].expand(-1, 3, -1, -1).float(), 2)
    assert torch.equal(pictures[:, 0].long(), got.history[:, 2])
    alone = got.problem(2)
    assert torch.equal(alone.tokens[0], got.tokens[2]) and alone.changes() == got.changes(2)
    with pytest.raises(ValueError, match=r"^problem:"):
        got.changes(3)


def test_every_concept_is_written_once(tmp_path):
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    settings = {"grid": 4, "steps": 6, "lr": 0.3, "judge_every": 3}
    paths = select_concepts(extractor, codebook(), tmp_path, together=3, **settings)
    assert sorted(tmp_path.iterdir()) == paths and len(paths) == CLASSES
    selections = [TokenSelection.load(path) for path in paths]
    assert [int(selection.target) for selection in selections] == list(range(CLASSES))
    for label in range(CLASSES):  # independent of what stepped beside it
        (alone,) = select_concepts(extractor, codebook(), tmp_path / "alone", classes=[label], together=1, **settings)
        assert torch.equal(TokenSelection.load(alone).history, selections[label].history)
    written = {path: path.stat().st_mtime_ns for path in paths}
    paths[1].unlink()
    select_concepts(extractor, codebook(), tmp_path, together=3, **settings)
    assert [path for path in paths if path.stat().st_mtime_ns != written[path]] == [paths[1]]
    assert torch.equal(TokenSelection.load(paths[1]).history, selections[1].history)
    for other in ({"lr": 0.1}, {"seed": 3}, {"tau": 0.5}):
        with pytest.raises(ResultFileError, match="concept-0000"):
            select_concepts(extractor, codebook(), tmp_path, together=3, **(settings | other))
    with pytest.raises(ResultFileError, match="concept-0000"):
        select_concepts(extractor, codebook() + 1, tmp_path, together=3, **settings)
    with pytest.raises(ResultFileError, match="concept-0000"):
        select_concepts(extractor, codebook(), tmp_path, together=3, **(settings | {"grid": 5}))
    with pytest.raises(TypeError, match=r"^allowed:"):
        select_concepts(extractor, codebook(), tmp_path, allowed=[True] * CODES, **settings)
    with pytest.raises(TypeError, match=r"^region:"):
        select_concepts(extractor, codebook(), tmp_path, region=(0, 0, 1, 1), **settings)


@pytest.mark.parametrize("written", [[], [1]])
def test_a_full_disk_costs_no_work(written, tmp_path, monkeypatch):
    """A group's state exists until its concepts do, also where some were written before."""
    extractor, asked = Convolutional(CHANNELS, CLASSES).eval(), []
    settings = {"grid": 4, "steps": 6, "lr": 0.3, "judge_every": 3, "together": 4, "restarts": 2}
    save = TokenSelection.save

    def full(self, path):
        if int(self.target) == 2:
            raise OSError("no space left on device")
        save(self, path)

    def judge(tokens, target):
        asked.append(target)
        return extractor_judge(extractor, codebook())(tokens, target)

    select_concepts(extractor, codebook(), tmp_path, judge=judge, classes=written, **settings)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
        patch.setattr(TokenSelection, "save", full)
        select_concepts(extractor, codebook(), tmp_path, judge=judge, **settings)
    looks = len(asked)
    assert select_concepts(extractor, codebook(), tmp_path, judge=judge, classes=[0], **settings)
    with pytest.raises(ResultFileError):
        select_concepts(extractor, codebook(), tmp_path, judge=judge, **(settings | {"lr": 0.4}))
    paths = select_concepts(extractor, codebook(), tmp_path, judge=judge, **settings)
    assert len(asked) == looks and sorted(tmp_path.iterdir()) == paths
    whole = select_concepts(extractor, codebook(), tmp_path / "whole", **settings)
    for path, expected in zip(paths, whole, strict=True):
        assert torch.equal(TokenSelection.load(path).history, TokenSelection.load(expected).history)


@pytest.mark.parametrize("weighted", [False, True])
def test_drawn_tokens_are_the_best_draw(weighted):
    frequency = torch.zeros(3, CODES)
    frequency[:, 2], frequency[:, 9] = 3.0, 1.0
    weights = {"frequency": frequency} if weighted else {}
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    got = draw_tokens(
        extractor, codebook(), targets(), tokens=grids(), region=REGION, steps=30, judge_every=10, **weights
    )
    logits = -got.loss
    for row, step in enumerate(got.steps.tolist()[1:], start=1):
        logit = extractor(embed(got.history[row], codebook())).detach().gather(1, targets()[:, None])[:, 0]
        torch.testing.assert_close(logit, logits[:step].amax(dim=0), rtol=1e-4, atol=1e-4)
    inside = got.history[1:, :, 2:5, 2:5]
    if weighted:
        assert set(inside.unique().tolist()) == {2, 9} and 0.5 < float((inside == 2).float().mean()) < 0.95
    else:
        assert len(inside.unique()) == CODES
    assert not got.changed[~got.region].any()


def test_only_a_better_draw_replaces_the_best():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    extractor.weight.data.zero_()
    got = draw_tokens(extractor, codebook(), targets(), tokens=grids(), steps=4, judge_every=1)
    assert (got.history[1:] == got.history[1]).all()


@pytest.mark.parametrize("setting", [{"lr": 0.01}, {"tau": 2.0}, {"restarts": 2}, {"draws": 3}, {"patience": 4}])
def test_drawn_tokens_refuse_settings_without_effect(setting):
    (name,) = setting
    with pytest.raises(TypeError, match=rf"^{name}: expected steps or judge_every for drawn tokens"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, **setting)


@pytest.mark.parametrize(
    "setting", [{"restarts": 2}, {"draws": 3}, {"patience": 4}, {"start": "image"}, {"stay_penalty": 0.1}]
)
def test_drawn_tokens_refuse_a_recipe_for_other_methods(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^{name}: expected .* for drawn tokens, got"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), recipe=Recipe(steps=1, **setting))
    recipe = Recipe(steps=2, lr=0.3, tau=2.0, optimizer="sgd")  # settings of other methods, without effect here
    assert len(draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), recipe=recipe).loss) == 2


@pytest.mark.parametrize(
    "frequency", [torch.ones(CODES + 1), -torch.ones(CODES), torch.zeros(CODES), torch.full((CODES,), math.inf), [1.0]]
)
def test_bad_frequencies_are_named(frequency):
    with pytest.raises((ValueError, TypeError), match=r"^frequency:"):
        draw_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), frequency=frequency, steps=1)


def test_infinite_logits_of_forbidden_tokens_stay_out_of_the_moments():
    allowed = torch.ones(CODES, dtype=torch.bool)
    allowed[3] = False
    got = select_tokens(
        Linear(CHANNELS, GRID, CLASSES).eval(),
        codebook(),
        1,
        tokens=grids(1),
        allowed=allowed,
        steps=50,
        lr=0.3,
        tau=0.1,
    )
    assert not math.isnan(float(got.loss.sum())) and not (got.history[1:] == 3).any()


@pytest.mark.parametrize(("memory", "later"), [(1, 1 << 30), (40_000, 5), (40_000, 1 << 30), (1 << 30, 1)])
def test_a_run_resumed_with_another_memory(memory, later, tmp_path):
    """The groups stay as they were, so that every problem is run once."""
    extractor = tiny("ce")
    arguments = {"tokens": grids(5), "region": REGION, "steps": 20, "lr": 0.2, "judge_every": 4}
    straight = select_tokens(extractor, codebook(), targets(5), memory=memory, **arguments)
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 5:
            raise StoppedError
        return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor, codebook(), targets(5), judge=judge, memory=memory, checkpoint=path, **arguments)
    again = select_tokens(extractor, codebook(), targets(5), memory=later, checkpoint=path, **arguments)
    assert_same(again, straight)
    assert not again.probability.requires_grad and not path.exists()


def test_finished_groups_are_saved_without_a_judgement_between(tmp_path):
    extractor = tiny("ce")
    arguments = {"tokens": grids(3), "region": REGION, "steps": 6, "lr": 0.2, "memory": 1}
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 4:
            raise StoppedError
        return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor, codebook(), targets(3), judge=judge, checkpoint=path, **arguments)
    got = select_tokens(extractor, codebook(), targets(3), judge=judge, checkpoint=path, **arguments)
    assert len(looks) == 4 + 4  # two for each of the second and the third problem
    assert_same(got, select_tokens(extractor, codebook(), targets(3), **arguments))


def test_an_image_with_forbidden_tokens_is_no_candidate():
    for token in range(CODES):
        allowed = torch.zeros(CODES, dtype=torch.bool)
        allowed[token] = True
        got = select_tokens(
            tiny("ce"), codebook(), targets(), tokens=grids(), region=REGION, steps=3, lr=0.2, allowed=allowed
        )
        assert (got.tokens[:, 2:5, 2:5] == token).all()


def test_an_image_with_forbidden_tokens_at_fixed_positions_is_a_candidate():
    tokens = torch.full((1, GRID, GRID), 7)
    tokens[:, 2:5, 2:5] = 1

    def judge(selected, _target):
        return (selected == tokens).flatten(1).float().mean(dim=1)

    got = select_tokens(
        tiny("ce"), codebook(), 0, tokens=tokens, region=REGION, steps=3, allowed=torch.arange(CODES) < 7, judge=judge
    )
    assert int(got.best) == 0 and not got.changed.any()


def test_a_high_price_prevents_changes():
    got = select_tokens(
        tiny("ce"),
        codebook(),
        targets(),
        tokens=grids(),
        region=REGION,
        steps=60,
        lr=0.3,
        judge_every=5,
        stay_penalty=1e3,
    )
    assert not got.changed.any()


@pytest.mark.parametrize(
    "answer", [lambda t: torch.tensor(0.5), lambda t: torch.ones(len(t), 2), lambda t: [0.5] * len(t)]
)
def test_a_judges_answer_is_checked(answer):
    with pytest.raises(ValueError, match=r"^judge:"):
        select_tokens(
            tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, judge=lambda tokens, target: answer(target)
        )


def test_small_logits_in_float16_still_move():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    with torch.no_grad():
        extractor.weight.mul_(1e-5)
    arguments = {"tokens": grids(), "region": REGION, "steps": 25, "lr": 0.3, "judge_every": 25}
    exact = select_tokens(extractor, codebook(), targets(), **arguments)
    half = prepare(extractor, embed(grids(1), codebook()), precision="float16")
    rough = select_tokens(half, codebook(), targets(), **arguments)
    same = (exact.history[-1] == rough.history[-1])[:, 2:5, 2:5].float().mean()
    assert same > 0.8


def test_other_recipes_and_item_ids_are_refused():
    with pytest.raises(TypeError, match=r"^recipe:"):
        select_tokens(tiny("ce"), codebook(), targets(), tokens=grids(), recipe="paper")
    for optimise in (select_tokens, draw_tokens):
        with pytest.raises(ValueError, match=r"^item_ids:"):
            optimise(tiny("ce"), codebook(), targets(), tokens=grids(), steps=1, item_ids=torch.tensor([0, -1, 2**32]))


class Viewing(Convolutional):
    """Takes a view, which channels-last memory does not allow."""

    def forward(self, x):
        return super().forward(x.view(len(x), CHANNELS, GRID * GRID).view_as(x))


def test_an_extractor_that_takes_views():
    arguments = {"tokens": grids(), "region": REGION, "steps": 5, "lr": 0.2}
    got = select_tokens(Viewing(CHANNELS, CLASSES).eval(), codebook(), targets(), **arguments)
    plain = select_tokens(Convolutional(CHANNELS, CLASSES).eval(), codebook(), targets(), **arguments)
    torch.testing.assert_close(got.loss, plain.loss, rtol=1e-4, atol=1e-5)
