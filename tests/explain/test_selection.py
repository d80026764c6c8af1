"""Token selection and its baseline on extractors with known best tokens."""

import pytest
import torch

from cortex_fast import ResultFileError, TokenSelection, embed, optimise_embedding, select_tokens
from cortex_fast.explain.problems import region_masks
from tests.known_extractors import Convolutional, Linear

CODES, CHANNELS, GRID, CLASSES = 12, 5, 4, 3
BOTH = [select_tokens, optimise_embedding]


def codebook():
    return torch.randn(CODES, CHANNELS, generator=torch.Generator().manual_seed(3))


def grids(count=2):
    return torch.randint(CODES, (count, GRID, GRID), generator=torch.Generator().manual_seed(4))


def best_tokens(extractor, target):
    """The best token of a linear extractor's position has the code of largest inner product with its weight."""
    weight = extractor.weight.detach()[target].view(CHANNELS, -1)
    return (codebook() @ weight).argmax(dim=0).view(GRID, GRID)


def test_finds_the_best_tokens_of_a_linear_extractor():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    target = torch.tensor([2, 0])
    got = select_tokens(extractor, codebook(), target, grid=GRID, steps=400, lr=0.3, judge_every=50)
    for problem, klass in enumerate(target.tolist()):
        best = best_tokens(extractor, klass)
        score = extractor(embed(torch.stack((got.tokens[problem], best)), codebook()))[:, klass]
        start = extractor(embed(torch.zeros(1, GRID, GRID, dtype=torch.int64), codebook()))[0, klass]
        assert (got.tokens[problem] == best).float().mean() >= 0.75
        assert (score[0] - start) >= 0.85 * (score[1] - start)
    assert got.loss.shape == (400, 2) and got.loss[-20:].mean() < got.loss[:20].mean()


@pytest.mark.parametrize("optimise", BOTH)
@pytest.mark.parametrize("region", [(1, 0, 3, 2), (0, 3, 1, 4), "mask"])
def test_only_the_region_changes(optimise, region):
    if region == "mask":
        region = torch.eye(GRID, dtype=torch.bool)
    got = optimise(
        Convolutional(CHANNELS, CLASSES).eval(), codebook(), 1, tokens=grids(), region=region, steps=30, lr=0.5
    )
    free = region_masks(region, grids().shape)
    assert torch.equal(got.region, free) and not got.changed[~free].any()
    assert torch.equal(got.initial, grids()) and torch.equal(got.history[0], grids())


@pytest.mark.parametrize("optimise", BOTH)
def test_the_result_is_the_best_of_the_history(optimise):
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    got = optimise(extractor, codebook(), torch.tensor([1, 2]), tokens=grids(), steps=25, lr=0.2, judge_every=10)
    assert got.steps.tolist() == [0, 10, 20, 25]
    for row, tokens in enumerate(got.history):
        wanted = extractor(embed(tokens, codebook())).softmax(dim=1).gather(1, got.target[:, None])[:, 0]
        torch.testing.assert_close(got.probability[row], wanted.detach())
    for problem in range(2):
        best = int(got.best[problem])
        assert got.probability[best, problem] == got.probability[:, problem].max()
        assert torch.equal(got.tokens[problem], got.history[best, problem])


class Partial(Linear):
    """NaN for images whose first token is 0."""

    def forward(self, x):
        return super().forward(x) + torch.where(x[:, :1, 0, 0] == codebook()[0, 0], torch.nan, 0.0)


def test_nan_is_never_the_best():
    extractor = Partial(CHANNELS, GRID, CLASSES).eval()
    starts = torch.zeros(1, GRID, GRID, dtype=torch.int64)
    got = select_tokens(extractor, codebook(), 1, tokens=starts, steps=12, lr=0.5, judge_every=2)
    assert got.probability[0].isnan().all() and got.probability[int(got.best[0]), 0].isfinite()
    with pytest.raises(ValueError, match=r"^extractor: expected finite logits"):
        select_tokens(extractor, codebook(), 1, tokens=starts, region=(3, 3, 4, 4), steps=2)


@pytest.mark.parametrize("optimise", BOTH)
def test_never_worse_than_the_start(optimise):
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    good = select_tokens(extractor, codebook(), torch.tensor([0, 1]), tokens=grids(), steps=60, lr=0.3).tokens
    got = optimise(extractor, codebook(), torch.tensor([0, 1]), tokens=good, steps=1)
    assert (got.probability.gather(0, got.best[None])[0] >= got.probability[0]).all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_problem_does_not_depend_on_the_others(optimizer):
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    arguments = {"region": (0, 0, 3, 3), "steps": 20, "lr": 0.2, "optimizer": optimizer, "judge_every": 5, "seed": 8}
    target = torch.tensor([0, 1, 2])
    together = select_tokens(extractor, codebook(), target, tokens=grids(3), **arguments)
    alone = select_tokens(
        extractor, codebook(), target[2:], tokens=grids(3)[2:], item_ids=torch.tensor([2]), **arguments
    )
    torch.testing.assert_close(alone.loss[:, 0], together.loss[:, 2], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.tokens[0], together.tokens[2])


def test_the_loss_is_minus_the_logit_plus_the_regulariser():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    plain = select_tokens(extractor, codebook(), 1, tokens=grids(1), steps=1)
    bound = select_tokens(extractor, codebook(), 1, tokens=grids(1), steps=1, regularisation=0.5)
    # the first step draws the same tokens in both; |E|^2 lies between the extreme code norms times the positions
    norms = codebook().square().sum(dim=1) * GRID * GRID * 0.5
    assert norms.min() <= float(bound.loss[0] - plain.loss[0]) <= norms.max()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_first_step_by_hand(optimizer):
    """One step of one position, written out in float64 with the straight-through gradient: it changes the winner."""
    from cortex_fast.ops.random_stream import gumbel, normal

    extractor, rate, tau = Linear(CHANNELS, 1, CLASSES).eval(), 3.0, 0.8
    items = torch.tensor([0])
    changed = 0
    for seed in range(8):
        got = select_tokens(extractor, codebook(), 1, grid=1, steps=1, lr=rate, tau=tau, seed=seed, optimizer=optimizer)
        start = normal(seed, items, torch.tensor([2**32 - 1]), 1, CODES)[0, 0, 0].double()
        noise = gumbel(seed, items, torch.tensor([0]), 1, CODES)[0, 0, 0].double()
        y = ((start + noise) / tau).softmax(dim=0)
        d = codebook().double() @ -extractor.weight.detach()[1].double()  # loss = -logit
        gradient = y * (d - y @ d) / tau
        step = gradient / (gradient.abs() + 1e-8) if optimizer == "adam" else gradient  # Adam's first, bias corrected
        after = start - rate * step
        assert int(got.tokens) == int(after.argmax())
        assert float(got.loss) == pytest.approx(float(d[(start + noise).argmax()]), rel=1e-5)
        changed += int(after.argmax() != start.argmax())
    assert changed >= 3


@pytest.mark.parametrize("optimise", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite_and_improves(optimise, dtype):
    extractor = Linear(CHANNELS, GRID, CLASSES).eval().to(dtype)
    target = torch.tensor([0, 2])
    got = optimise(
        extractor, codebook().to(dtype), target, tokens=grids(), steps=60, lr=0.3, regularisation=1e-3, judge_every=20
    )
    assert torch.isfinite(got.loss).all() and torch.isfinite(got.probability).all()
    assert (got.loss[-5:].mean(dim=0) < got.loss[:5].mean(dim=0)).all()


@pytest.mark.parametrize("optimise", BOTH)
def test_a_codebook_that_is_a_parameter_and_inference_mode(optimise):
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    arguments = {"tokens": grids(), "steps": 4, "lr": 0.2}
    plain = optimise(extractor, codebook(), 1, **arguments)
    learnt = torch.nn.Parameter(codebook())
    assert torch.equal(optimise(extractor, learnt, 1, **arguments).history, plain.history) and learnt.grad is None
    with torch.inference_mode():
        inside = optimise(extractor, codebook().clone(), torch.tensor([1, 1]), **(arguments | {"tokens": grids() + 0}))
    assert torch.equal(inside.history, plain.history)


def test_embedding_baseline_ends_at_the_nearest_codes_of_the_optimised_embedding():
    extractor = Linear(CHANNELS, GRID, CLASSES).eval()
    got = optimise_embedding(extractor, codebook(), 1, tokens=grids(1), steps=7, lr=0.3, optimizer="sgd")
    weight = extractor.weight.detach()[1].view(CHANNELS, GRID, GRID)
    moved = embed(grids(1), codebook())[0] + 7 * 0.3 * weight  # a linear logit has a constant gradient
    distance = (moved.permute(1, 2, 0)[..., None, :] - codebook()).square().sum(dim=-1)
    assert torch.equal(got.tokens[0], distance.argmin(dim=-1))


def test_save_and_load(tmp_path):
    got = select_tokens(Convolutional(CHANNELS, CLASSES).eval(), codebook(), 1, tokens=grids(), steps=3)
    got.save(tmp_path / "edit")
    again = TokenSelection.load(tmp_path / "edit")
    for name, value in vars(got).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    (tmp_path / "edit").write_bytes((tmp_path / "edit").read_bytes()[:-1])
    with pytest.raises(ResultFileError, match="edit"):
        TokenSelection.load(tmp_path / "edit")


@pytest.mark.parametrize("optimise", BOTH)
def test_no_problem_at_all(optimise):
    got = optimise(Convolutional(CHANNELS, CLASSES).eval(), codebook(), 1, tokens=grids(0), steps=2)
    assert got.tokens.shape == (0, GRID, GRID)


@pytest.mark.parametrize("optimise", BOTH)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens": torch.full((1, 4, 4), CODES)}, "tokens"),
        ({"tokens": torch.full((1, 4, 4), -1)}, "tokens"),
        ({"tokens": torch.zeros(1, 4, 4)}, "tokens"),
        ({"tokens": torch.zeros(4, 4, dtype=torch.int64)}, "tokens"),
        ({"target": CLASSES}, "target"),
        ({"target": torch.tensor([0, 1, 1])}, "target"),
        ({"codebook": torch.randn(CODES)}, "codebook"),
        ({"codebook": torch.full((CODES, CHANNELS), torch.inf)}, "codebook"),
        ({"codebook": torch.ones(CODES, CHANNELS, dtype=torch.int64)}, "codebook"),
        ({"region": (1, 1, 1, 3)}, "region"),
        ({"region": (0, 0, 5, 4)}, "region"),
        ({"region": (0, 0, 4)}, "region"),
        ({"region": 5}, "region"),
        ({"region": (False, False, True, True)}, "region"),
        ({"tokens": [[[0]]]}, "tokens"),
        ({"region": (0.0, 0.0, 2.0, 2.0)}, "region"),
        ({"region": torch.zeros(4, 4, dtype=torch.bool)}, "region"),
        ({"region": torch.ones(3, 4, dtype=torch.bool)}, "region"),
        ({"region": torch.ones(4, 4)}, "region"),
        ({"grid": 4}, "grid"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"regularisation": -1.0}, "regularisation"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"judge_every": 0}, "judge_every"),
    ],
)
def test_bad_arguments_are_named(optimise, change, named):
    arguments = {"codebook": codebook(), "target": 1, "tokens": grids(), "steps": 2} | change
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        optimise(Convolutional(CHANNELS, CLASSES).eval(), **arguments)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_tau_must_be_positive(tau):
    with pytest.raises(ValueError, match=r"^tau:"):
        select_tokens(Convolutional(CHANNELS, CLASSES).eval(), codebook(), 1, grid=4, tau=tau)


def test_devices_must_agree():
    with pytest.raises(ValueError, match="expected one device"):
        select_tokens(Convolutional(CHANNELS, CLASSES).eval(), codebook(), 1, tokens=grids().to("meta"))
