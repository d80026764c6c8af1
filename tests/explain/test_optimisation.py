"""Optimisations of many problems: groups, regions, draws, restarts, early stops, prices."""

import pytest
import torch

from cortex_fast import (
    Recipe,
    ResultFileError,
    Schedule,
    draw_tokens,
    embed,
    optimise_embedding,
    select_tokens,
)
from cortex_fast.data.results import save_result
from cortex_fast.engine import prepare
from cortex_fast.explain import TokenSelection
from cortex_fast.explain.problems import check_problems
from cortex_fast.explain.stepping import schedules_of, step_of
from cortex_fast.explain.token_method import token_method
from cortex_fast.ops.random_stream import gumbel, normal
from tests.explain.problems import BOTH, CHANNELS, CLASSES, CODES, GRID, REGION, assert_same, codebook, grids, targets
from tests.known_extractors import Convolutional, Linear, tiny


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
