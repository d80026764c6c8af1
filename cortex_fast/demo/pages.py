"""The demo's results as the report's pages: decoded pictures, token cards, edits."""

import numpy as np
import torch
from torch import Tensor

from cortex_fast import evaluate
from cortex_fast.data import TokenStore
from cortex_fast.data.grids import Grid, sides
from cortex_fast.demo.settings import Settings
from cortex_fast.demo.stages import edit_problems
from cortex_fast.explain import ConceptExplanations, TokenSelection, top_tokens
from cortex_fast.report import ConceptPage, Edit, EditStep, ExampleImage, TokenCard
from cortex_fast.zoo import Zoo

TOKENS_SHOWN = 12
IMAGES_SHOWN = 6


def to_pictures(images: Tensor) -> np.ndarray:
    """float [B,3,H,W] in [0,1] -> uint8 [B,H,W,3]."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def patch(picture: np.ndarray, position: int, grid: Grid) -> np.ndarray:
    """The cell at a flat position and its eight neighbours, cut from uint8 [H,W,3]; borders repeat their edge."""
    rows, columns = sides(grid)
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    padded = np.pad(picture, ((height, height), (width, width), (0, 0)), mode="edge")
    top, left = position // columns * height, position % columns * width
    return padded[top : top + 3 * height, left : left + 3 * width]


def concept_pages(
    zoo: Zoo,
    explained: TokenStore,
    held_out: TokenStore,
    tsv: Tensor,
    concepts: ConceptExplanations,
    selection: TokenSelection,
    settings: Settings,
) -> list[ConceptPage]:
    """One page for each class."""
    pictures = to_pictures(zoo.vqgm.decode(explained.tokens))
    edits = edits_by_class(zoo, held_out, selection, settings)
    _, boxes = top_tokens(tsv, explained.tokens, settings.top_n)
    grid, columns = explained.grid, explained.tokens.shape[2]
    pages = []
    for concept, name in enumerate(concepts.names):
        cards = []
        for rank, token in enumerate(concepts.tokens[concept, :TOKENS_SHOWN].tolist()):
            if token < 0:
                break
            places = [(image, place) for image, place in concepts.examples[concept, rank].tolist() if image >= 0]
            patches = [patch(pictures[image], place, grid) for image, place in places]
            count, share = int(concepts.counts[concept, rank]), float(concepts.shares[concept, rank])
            cards.append(TokenCard(token, count, share, patches))
        images = torch.nonzero(explained.labels == concept).flatten()[:IMAGES_SHOWN].tolist()
        examples = [
            ExampleImage(pictures[row], tsv[row].numpy(), [divmod(place, columns) for place in boxes[row].tolist()])
            for row in images
        ]
        number = int(concepts.num_images[concept])
        pages.append(ConceptPage(name, number, grid, cards, examples, edits.get(concept, [])))
    return pages


def edits_by_class(
    zoo: Zoo, held_out: TokenStore, selection: TokenSelection, settings: Settings
) -> dict[int, list[Edit]]:
    """The edits of each source class, with the judges' mean probabilities at every recorded step."""
    _, source, target = edit_problems(zoo, held_out, settings)
    found: dict[int, list[Edit]] = {}
    for problem, (before, after) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        history = selection.history[:, problem]
        images = zoo.vqgm.decode(history)
        mean = evaluate.probabilities(zoo.judges, images).mean(dim=0)  # [T, classes]
        pictures = to_pictures(images)
        best = int(selection.best[problem])
        steps = [
            EditStep(int(step), pictures[row], float(mean[row, before]), float(mean[row, after]))
            for row, step in enumerate(selection.steps.tolist())
        ]
        changes = [
            (row, column, int(selection.initial[problem, row, column]), int(selection.tokens[problem, row, column]))
            for row, column in selection.changed[problem].nonzero().tolist()
        ]
        reached = float(selection.probability[best, problem])
        note = f"Kept: step {int(selection.steps[best])}, where the extractor gives the target {reached:.3f}."
        edit = Edit(zoo.names[before], zoo.names[after], settings.region, steps, changes, note)
        found.setdefault(before, []).append(edit)
    return found
