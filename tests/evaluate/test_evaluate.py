"""The evaluation on judges with known answers: they measure the brightness of certain pixels."""

import pytest
import torch
from torch import Tensor, nn

from cortex_fast import evaluate
from cortex_fast.evaluate.intervention import replace_tokens
from cortex_fast.evaluate.masking import blacken, cells_at, cells_of_tokens, random_positions

GRID, CELL, CLASSES = 4, 3, 2


class Brightness(nn.Module):
    """Logit 1 is the mean brightness of a window (rows, columns of pixels) times `gain`; logit 0 is 0."""

    def __init__(self, gain: float, window=(slice(None), slice(None))) -> None:
        super().__init__()
        self.gain, self.window = gain, window

    def forward(self, images: Tensor) -> Tensor:
        seen = images[:, :, self.window[0], self.window[1]].mean(dim=(1, 2, 3))
        return torch.stack((torch.zeros_like(seen), self.gain * seen), dim=1)


def decode(tokens: Tensor) -> Tensor:
    """Token t is a cell of brightness t / 10."""
    return (tokens.float() / 10).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, None].repeat(1, 3, 1, 1)


def grids(count=6, seed=0):
    return torch.randint(1, 10, (count, GRID, GRID), generator=torch.Generator().manual_seed(seed))


JUDGES = {"a": Brightness(2.0), "b": Brightness(-1.0)}
ONES = torch.ones(6, dtype=torch.int64)


def expected(gain: float, brightness: Tensor) -> Tensor:
    return torch.sigmoid(gain * brightness)


def test_probabilities_and_correctness():
    got = evaluate.probabilities(JUDGES, decode(grids()), batch_size=4)
    brightness = grids().float().flatten(1).mean(dim=1) / 10
    torch.testing.assert_close(got[0, :, 1], expected(2.0, brightness))
    torch.testing.assert_close(got.sum(dim=2), torch.ones(2, 6))
    assert evaluate.correct(got, ONES).tolist() == [[1.0] * 6, [0.0] * 6]
    torch.testing.assert_close(evaluate.of_class(got, torch.tensor([0, 1] * 3))[1, 1], got[1, 1, 1])


def test_blacken_and_masks_by_hand():
    mask = cells_at(torch.tensor([[0, 5], [15, 15]]), (GRID, GRID))
    assert mask.sum(dim=(1, 2)).tolist() == [2, 1] and bool(mask[0, 1, 1]) and bool(mask[1, 3, 3])
    images = blacken(torch.ones(2, 3, 12, 12), mask)
    assert images[0, :, 3:6, 3:6].sum() == 0 and images[0].sum() == 3 * (144 - 18) and images[1].sum() == 3 * 135
    tokens = torch.tensor([[[1, 2], [2, 3]]])
    assert cells_of_tokens(tokens, torch.tensor([[2, -1]])).tolist() == [[[False, True], [True, False]]]
    places = random_positions(50, 16, 16, 0)
    assert all(sorted(row) == list(range(16)) for row in places.tolist())
    assert torch.equal(random_positions(50, 16, 3, 0), places[:, :3])


@pytest.mark.parametrize("by", ["position", "token"])
def test_image_level_by_hand(by):
    tokens, ns = grids(), (1, 4, 16)
    tsv = tokens.float()  # the brightest tokens are the most salient
    got = evaluate.image_level(JUDGES, decode(tokens), tokens, tsv, ONES, ns=ns, by=by)
    assert got.ours.shape == got.random.shape == (2, 3) and got.judges == ("a", "b") and got.ns == ns
    flat = tokens.flatten(1)
    for column, n in enumerate(ns):
        threshold = flat.sort(dim=1, descending=True).values[:, :n]
        if by == "position":
            left = flat.float().sum(dim=1) - threshold.float().sum(dim=1)
        else:
            hit = (flat[:, :, None] == threshold[:, None, :]).any(dim=2)
            left = (flat * ~hit).float().sum(dim=1)
        torch.testing.assert_close(got.ours[0, column], expected(2.0, left / 160).mean())
    torch.testing.assert_close(got.before[0], expected(2.0, flat.float().mean(dim=1) / 10).mean())
    torch.testing.assert_close(got.random[:, 2], torch.full((2,), 0.5))  # everything is black


def test_concept_level_by_hand():
    tokens, labels = grids(), torch.tensor([0, 1] * 3)
    concept, frequent = torch.tensor([[1, 2, -1], [9, 8, 7]]), torch.tensor([[3, -1, -1], [1, 2, 3]])
    got = evaluate.concept_level(JUDGES, decode(tokens), tokens, labels, concept, frequent)
    for row, chosen in ((0, concept), (2, frequent)):
        hit = torch.stack(
            [torch.isin(grid, chosen[label][chosen[label] >= 0]) for grid, label in zip(tokens, labels, strict=True)]
        )
        assert got.masked[row] == hit.flatten(1).sum(dim=1).float().mean()
        start = expected(2.0, tokens.float().flatten(1).mean(dim=1) / 10)
        after = expected(2.0, (tokens * ~hit).float().flatten(1).mean(dim=1) / 10)
        change = torch.where(labels == 1, after - start, start - after).mean()
        torch.testing.assert_close(got.probability[row, 0], change)
        assert got.masked[row + 1] == got.masked[row]  # the control masks as many


def test_edit_scores_by_hand():
    before, after = grids(3, 1), grids(3, 2)
    source, target = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    got = evaluate.edit_scores(JUDGES, decode, before, {"ours": after, "none": before}, source, target)
    rise = expected(2.0, after.float().flatten(1).mean(1) / 10) - expected(2.0, before.float().flatten(1).mean(1) / 10)
    torch.testing.assert_close(got.target_change[0, 0], rise.mean())
    torch.testing.assert_close(got.source_change[0, 0], -rise.mean())  # two classes: what one wins the other loses
    assert got.target_change[1].abs().max() == 0 and got.methods == ("ours", "none")


def test_the_lead_of_a_method_and_its_interval():
    """Against the t interval of paired differences, which the bootstrap meets at 400 problems."""
    generator = torch.Generator().manual_seed(0)
    after = torch.rand(2, 2, 400, generator=generator)
    after[0] += 0.1
    scores = evaluate.EditScores(("ours", "theirs"), ("a", "b"), after[0], after[0], after.flip(0), after)
    lead = evaluate.edit_lead(scores, "ours", "theirs")
    assert lead.judges == ("a", "b")
    for got in (lead.target, lead.source):
        difference = after[0].double() - after[1].double()
        half = 1.966 * difference.std(dim=1) / 400**0.5
        mean = difference.mean(dim=1)
        torch.testing.assert_close(got, torch.stack((mean, mean - half, mean + half), dim=1), rtol=0, atol=0.004)
    back = evaluate.edit_lead(scores, "theirs", "ours")
    torch.testing.assert_close(back.target[:, 0], -lead.target[:, 0])
    with pytest.raises(ValueError, match=r"^other:"):
        evaluate.edit_lead(scores, "ours", "nobody's")


def test_grounding_by_hand():
    cells = torch.zeros(2, GRID, GRID, dtype=torch.bool)
    cells[:, :2] = True  # the upper half is object
    tokens = torch.zeros(2, GRID, GRID, dtype=torch.int64)
    tokens[:, :, 0] = 1  # token 1 fills the left column
    tsv = torch.zeros(2, GRID, GRID)
    tsv[0, 0] = 1.0  # on the object
    tsv[1, 3, 0:3] = 1.0  # three of four off it
    tsv[1, 0, 0] = 0.5
    frequency = torch.tensor([[1, 5]])
    got = evaluate.grounding(tsv, tokens, torch.zeros(2, dtype=torch.int64), cells, frequency, 4)
    assert got.ours.tolist() == [1.0, 0.25] and got.random.tolist() == [0.5, 0.5]
    assert got.frequency.tolist() == [0.5, 0.5]  # the left column
    few = evaluate.grounding(tsv, tokens, torch.zeros(2, dtype=torch.int64), cells, frequency, 2)
    assert few.frequency.tolist() == [0.5, 0.5]  # two of the four that tie: half of them lie on the object
    for n in (0, 17):
        with pytest.raises(ValueError, match=r"^n:"):
            evaluate.grounding(tsv, tokens, torch.zeros(2, dtype=torch.int64), cells, frequency, n)
    masks = torch.zeros(1, 12, 12)
    masks[:, :6, :5] = 1.0
    assert evaluate.object_cells(masks, GRID)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_replace_tokens_by_hand():
    tokens = torch.arange(16).view(1, 4, 4)
    tokens[0, 1, 1] = 0  # the preferred donor of position 0 holds the token that is lost there
    order = torch.tensor([[[0.9, 0.5], [0.9, 0.5]]])
    got = replace_tokens(tokens, torch.tensor([[0, 15]]), torch.tensor([[5, 6]]), order).flatten().tolist()
    assert got == [6, 1, 2, 3, 4, 0, *range(6, 15), 0]
    same = torch.full((1, 4, 4), 7)
    assert torch.equal(replace_tokens(same, torch.tensor([[0, 15]]), torch.tensor([[5, 6]]), order), same)


def test_intervention_on_the_cells_that_matter():
    """A judge of the top row of cells only, and a TSV that is largest there: only the top arm changes its answer."""
    tokens = torch.full((6, GRID, GRID), 2)
    tokens[:, 0] = 9
    window = (slice(0, CELL), slice(None))
    tsv = torch.zeros(6, GRID, GRID)
    tsv[:, 0] = 5.0
    tsv[:, 3] = -5.0
    got = evaluate.intervention({"window": Brightness(4.0, window)}, decode, tokens, tsv, ONES, ns=(2, 4), seed=1)
    torch.testing.assert_close(got.before, expected(4.0, torch.tensor([0.9])))
    torch.testing.assert_close(got.after[0, 0, 1], expected(4.0, torch.tensor(0.2)))  # donors come from the middle
    torch.testing.assert_close(got.after[2, 0], got.before.expand(2))  # the lowest tokens are not looked at
    assert got.after[0, 0, 0] < got.after[1, 0, 0] < got.before[0]
    with pytest.raises(ValueError, match=r"^ns:"):
        evaluate.intervention(JUDGES, decode, tokens, tsv, ONES, ns=(8,))
