"""The pages of the demo's report: decoded pictures, token cards, edits."""

import numpy as np
import torch
from torch import Tensor

from cortex_fast import evaluate
from cortex_fast.data.grids import Grid, sides
from cortex_fast.demo.results import Results, Run, edit_problems
from cortex_fast.explain import ConceptExplanations, TokenSelection, top_tokens
from cortex_fast.report import ConceptPage, Edit, EditStep, ExampleImage, TokenCard

TOKENS_SHOWN = 12
IMAGES_SHOWN = 6


def to_pictures(images: Tensor) -> np.ndarray:
    """float [B,3,H,W] in [0,1] -> uint8 [B,H,W,3]."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def patch(picture: np.ndarray, position: int, grid: Grid) -> np.ndarray:
    """Cut a cell and its eight neighbours from a picture, whose edge is repeated at the border.

    Args:
        picture: uint8 [H,W,3].
        position: the cell's flat position in the grid.
        grid: m or (h, w).

    Returns:
        uint8 [3 H / h, 3 W / w, 3].
    """
    rows, columns = sides(grid)
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    padded = np.pad(picture, ((height, height), (width, width), (0, 0)), mode="edge")
    top, left = position // columns * height, position % columns * width
    return padded[top : top + 3 * height, left : left + 3 * width]


def concept_pages(run: Run, results: Results) -> list[ConceptPage]:
    """One page for each class, by the extractor CE and token selection."""
    explained, concepts, tsv = results.explained, results.concepts["ce"], results.tsv["ce"]
    pictures = to_pictures(run.zoo.vqgm.decode(explained.tokens))
    edits = edits_by_class(run, results, results.selections["token selection"])
    _, positions = top_tokens(tsv, explained.tokens, run.settings.top_n)
    columns = explained.tokens.shape[2]
    pages = []
    for concept, name in enumerate(concepts.names):
        images = torch.nonzero(explained.labels == concept).flatten()[:IMAGES_SHOWN].tolist()
        examples = [
            ExampleImage(pictures[row], tsv[row].numpy(), [divmod(place, columns) for place in positions[row].tolist()])
            for row in images
        ]
        page = ConceptPage(
            name=name,
            num_images=int(concepts.num_images[concept]),
            grid=explained.grid,
            tokens=_cards(concepts, concept, pictures, explained.grid),
            examples=examples,
            edits=edits.get(concept, []),
        )
        pages.append(page)
    return pages


def _cards(concepts: ConceptExplanations, concept: int, pictures: np.ndarray, grid: Grid) -> list[TokenCard]:
    """The cards of a concept's tokens, with patches of pictures uint8 [n,H,W,3] in which they were top tokens."""
    cards = []
    for rank, token in enumerate(concepts.tokens[concept, :TOKENS_SHOWN].tolist()):
        if token < 0:
            break
        places = [(image, place) for image, place in concepts.examples[concept, rank].tolist() if image >= 0]
        patches = [patch(pictures[image], place, grid) for image, place in places]
        count, share = int(concepts.counts[concept, rank]), float(concepts.shares[concept, rank])
        cards.append(TokenCard(token, count, share, patches))
    return cards


def edits_by_class(run: Run, results: Results, selection: TokenSelection) -> dict[int, list[Edit]]:
    """The edits of each source class, with the judges' mean probabilities at every recorded step."""
    _, source, target = edit_problems(run, results)
    edits: dict[int, list[Edit]] = {}
    for problem, (before, after) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        best = int(selection.best[problem])
        changes = [
            (row, column, int(selection.initial[problem, row, column]), int(selection.tokens[problem, row, column]))
            for row, column in selection.changed[problem].nonzero().tolist()
        ]
        probability = float(selection.probability[best, problem])
        edit = Edit(
            source=run.zoo.names[before],
            target=run.zoo.names[after],
            region=run.settings.region,
            steps=_steps(run, selection, problem, before, after),
            changes=changes,
            note=f"Result: step {int(selection.steps[best])}, at which the extractor gives the target "
            f"a probability of {probability:.3f}.",
        )
        edits.setdefault(before, []).append(edit)
    return edits


def _steps(run: Run, selection: TokenSelection, problem: int, source: int, target: int) -> list[EditStep]:
    """The recorded steps of an edit, decoded, with the judges' mean probabilities of both classes."""
    images = run.zoo.vqgm.decode(selection.history[:, problem])
    mean = evaluate.probabilities(run.zoo.judges, images).mean(dim=0)  # [T, classes]
    pictures = to_pictures(images)
    return [
        EditStep(int(step), pictures[row], float(mean[row, source]), float(mean[row, target]))
        for row, step in enumerate(selection.steps.tolist())
    ]
