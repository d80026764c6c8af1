"""A 6 x 10 grid from sampling to the report, each step against its definition."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cortex_fast import (
    ConceptExplanations,
    ResultFileError,
    TokenSelection,
    TokenStore,
    evaluate,
    explain_concepts,
    score_tokens,
    select_concepts,
    select_tokens,
    smoothgrad,
    top_tokens,
)
from cortex_fast.demo.pages import patch, to_pictures
from cortex_fast.extractors import NAMES as EXTRACTORS
from cortex_fast.extractors import TrainingRecipe, accuracy, load_extractor
from cortex_fast.extractors.fitting import fit
from cortex_fast.report import ConceptPage, Edit, EditStep, ExampleImage, Report, Table, TokenCard, write_report
from cortex_fast.vqgm import GPT, VQModel, sample_store, taming_model
from cortex_fast.vqgm.decoding import prepare_decoder
from cortex_fast.vqgm.sampling import decode_tokens
from tests.known_extractors import tiny
from tests.vqgm.test_autoencoder import SMALL

ROWS, COLUMNS, CELLS, CODES, CHANNELS, TOP = 6, 10, 60, 20, 6, 5
LABELS, NAMES = torch.arange(12) % 3, ("a", "b", "c")


class Corner(nn.Module):
    """A judge of images 12 x 20: logit c is 5 times the mean of channel c over the rightmost column of cells."""

    def forward(self, images):
        return 5 * images[:, :, :, -2:].mean(dim=(2, 3))


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return GPT(vocab_size=CODES, block_size=64, n_layer=1, n_head=2, n_embd=8)


@pytest.fixture(scope="module")
def model(prior):
    torch.manual_seed(1)
    autoencoder = VQModel(**SMALL)
    autoencoder.quantize.embedding.weight.data.normal_()
    return taming_model(autoencoder, prior, grid=(ROWS, COLUMNS), fingerprint="test", num_classes=3)


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    return sample_store(model, LABELS, tmp_path_factory.mktemp("whole") / "store", names=NAMES, seed=3, batch_size=5)


@pytest.fixture(scope="module")
def extractor():
    """A module of the user's, which tells rows from columns and takes no other grid."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(CHANNELS, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 3 * 5, 3)).eval()


@pytest.fixture(scope="module")
def tsv(extractor, store):
    return score_tokens(extractor, store, num_samples=4, progress=False)


def test_sampling_saving_and_reading(prior, model, store, tmp_path):
    flat = decode_tokens(prepare_decoder(prior), LABELS, CELLS, seed=3, item_ids=torch.arange(12))
    assert model.grid == store.grid == (ROWS, COLUMNS)
    assert torch.equal(store.tokens.long(), flat.view(12, ROWS, COLUMNS))  # row by row
    store.save(tmp_path / "again")
    again = TokenStore.load(tmp_path / "again").select(torch.tensor([7, 2]))
    assert torch.equal(again.tokens.long(), flat.view(12, ROWS, COLUMNS)[[7, 2]])
    for y, x in ((0, 9), (5, 0), (2, 7)):
        assert torch.equal(again.embedding(slice(0, 1))[0, :, y, x], store.codebook[flat[7, y * COLUMNS + x]])


def test_images_and_tokens(model, store):
    images = model.decode(store.tokens)
    assert images.shape == (12, 3, 2 * ROWS, 2 * COLUMNS)
    tokens = model.encode(images)
    latents = model.latents(images * 2 - 1).permute(0, 2, 3, 1)
    assert torch.equal(tokens, (latents[..., None, :] - model.codebook).square().sum(dim=-1).argmin(dim=-1))
    with pytest.raises(ValueError, match=r"^images: expected the size that gives a grid of \(6, 10\), got \[20, 12\]"):
        model.encode(images.transpose(2, 3))


def test_saliency_is_the_gradient_of_autograd(extractor, store):
    E = store.embedding(slice(0, 3)).double()
    wide = extractor.double()
    leaf = E.clone().requires_grad_(True)
    wide(leaf).gather(1, LABELS[:3, None]).sum().backward()
    got = smoothgrad(wide, E, LABELS[:3], alpha=0.0, num_samples=2)
    extractor.float()
    torch.testing.assert_close(got, leaf.grad, rtol=1e-9, atol=1e-12)
    scores = score_tokens(extractor, store, alpha=0.0, num_samples=2, progress=False)
    torch.testing.assert_close(scores[:3].double(), leaf.grad.abs().amax(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_packages_extractors_on_such_grids(name):
    grid = (8, 12) if name in ("ce", "ce_deep") else (6, 10)
    extractor = tiny(name, grid=grid).double()
    x = torch.randn(2, 5, *grid, dtype=torch.float64)
    leaf = x.clone().requires_grad_(True)
    extractor(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(smoothgrad(extractor, x, 1, alpha=0.0, num_samples=2), leaf.grad, rtol=1e-7, atol=1e-10)
    if name != "re":  # as many tokens in other rows
        for turned in (x.transpose(2, 3).contiguous(), x.reshape(2, 5, grid[0] // 2, grid[1] * 2)):
            with pytest.raises(ValueError, match=r"^extractor: expected a grid of \(\d, 1\d\), got"):
                smoothgrad(extractor, turned, 1, num_samples=2)


def test_training_and_its_file(store, tmp_path):
    out = tmp_path / "te.safetensors"
    settings = {"width": 16, "validation": store, "resume": True}
    fit(store, out, "te", TrainingRecipe(epochs=1, batch_size=6), **settings)
    lines = []
    fit(store, out, "te", TrainingRecipe(epochs=1, batch_size=6), **settings, report=lines.append)
    assert lines == [f"{out}: already trained"]
    trained = load_extractor(out)
    assert trained(store.embedding(slice(0, 2))).shape == (2, 3)
    turned = store.tokens.long().transpose(1, 2)
    for tokens in (turned, turned.reshape(12, 5, 12)):
        with pytest.raises(ValueError, match=r"^extractor: expected a grid of \(6, 10\), got"):
            accuracy(trained, store.codebook, tokens, store.labels)
    square = TokenStore(torch.zeros(4, 8, 8).long(), torch.zeros(4).long(), store.codebook, NAMES)
    with pytest.raises(ValueError, match=r"^validation: expected grid \(6, 10\) as in the training store, got 8"):
        fit(store, tmp_path / "x", "te", TrainingRecipe(epochs=1, batch_size=6), width=16, validation=square)


def test_an_interrupted_training_is_resumed(store, tmp_path):
    seen = []

    def stop(images):
        seen.append(images)
        if len(seen) == 3:
            raise KeyboardInterrupt

    recipe, settings = TrainingRecipe(epochs=1, batch_size=4), {"width": 16, "every": 1, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        fit(store, tmp_path / "e", "te", recipe, **settings, tick=stop)
    fit(store, tmp_path / "e", "te", recipe, **settings, tick=seen.append)
    assert seen == [4] * 4  # the third batch again
    fit(store, tmp_path / "whole", "te", recipe, **settings)
    resumed, whole = (load_extractor(tmp_path / name).state_dict() for name in ("e", "whole"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_top_tokens_and_concepts(extractor, store, tsv, tmp_path):
    chosen, positions = top_tokens(tsv, store.tokens, TOP)
    for image in range(12):
        places = sorted(range(CELLS), key=lambda p, i=image: (-float(tsv[i, p // COLUMNS, p % COLUMNS]), p))[:TOP]
        assert positions[image].tolist() == places
        assert chosen[image].tolist() == [int(store.tokens.long()[image, p // COLUMNS, p % COLUMNS]) for p in places]
    explain_concepts(extractor, store, tsv=tsv, top_n=TOP, top_k=3, progress=False).save(tmp_path / "c")
    concepts = ConceptExplanations.load(tmp_path / "c")
    for concept in range(3):
        counts = Counter(chosen[concept == LABELS].flatten().tolist())
        best = sorted(counts, key=lambda token, c=counts: (-c[token], token))[:3]
        assert concepts.tokens[concept].tolist() == best
        assert concepts.counts[concept].tolist() == [counts[token] for token in best]
    image, place = concepts.examples[0, 0, 0].tolist()
    assert int(store.tokens.long()[image, place // COLUMNS, place % COLUMNS]) == int(concepts.tokens[0, 0])
    with pytest.raises(ValueError, match=r"^top_n: expected a whole number from 1 to 60, got 61"):
        explain_concepts(extractor, store, tsv=tsv, top_n=61)


def test_selection_in_a_region(extractor, model, store):
    tokens, region = store.tokens.long()[:2], (1, 6, 4, 9)
    edit = select_tokens(extractor, store.codebook, 1, tokens=tokens, region=region, steps=6, judge_every=3, lr=0.5)
    inside = torch.zeros(2, ROWS, COLUMNS, dtype=torch.bool)
    inside[:, 1:4, 6:9] = True
    assert torch.equal(edit.region, inside) and torch.equal(edit.tokens[~inside], tokens[~inside])
    with torch.no_grad():
        wanted = extractor(F.embedding(edit.tokens, store.codebook).permute(0, 3, 1, 2)).softmax(dim=1)[:, 1]
    torch.testing.assert_close(edit.probability.max(dim=0).values, wanted)
    assert all(1 <= change.row < 4 and 6 <= change.column < 9 for change in edit.changes())
    assert edit.strip(model.decode).shape == (3, 3, 12, 20)
    mask = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[1:4, 6:9] = True
    by_mask = select_tokens(extractor, store.codebook, 1, tokens=tokens, region=mask, steps=6, judge_every=3, lr=0.5)
    assert torch.equal(by_mask.tokens, edit.tokens)
    with pytest.raises(ValueError, match="region: expected a box within the 6 x 10 grid"):
        select_tokens(extractor, store.codebook, 1, tokens=tokens, region=(6, 1, 9, 4), steps=1)


def test_whole_concepts(extractor, store, tmp_path):
    settings = {"grid": (ROWS, COLUMNS), "steps": 3, "lr": 0.5}
    paths = select_concepts(extractor, store.codebook, tmp_path, classes=[0, 2], **settings)
    alone = select_tokens(extractor, store.codebook, torch.tensor([2]), item_ids=torch.tensor([2]), **settings)
    again = TokenSelection.load(paths[1])
    assert again.tokens.shape == (1, ROWS, COLUMNS) and torch.equal(again.tokens, alone.tokens)
    assert select_concepts(extractor, store.codebook, tmp_path, classes=[0, 2], **settings) == paths
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 3)).eval()
    select_concepts(flat, store.codebook, tmp_path / "flat", classes=[0], **settings)
    with pytest.raises(ResultFileError, match="of other settings, extractor, codebook or grid"):
        select_concepts(flat, store.codebook, tmp_path / "flat", classes=[0], **settings | {"grid": (10, 6)})


def test_evaluation(extractor, model, store, tsv):
    judges, tokens = {"corner": Corner()}, store.tokens.long()
    images = model.decode(tokens)
    curves = evaluate.image_level(judges, images, tokens, tsv, LABELS, ns=(TOP,))
    _, positions = top_tokens(tsv, tokens, TOP)
    dark = images.clone()
    for image, places in enumerate(positions.tolist()):
        for place in places:
            y, x = divmod(place, COLUMNS)
            dark[image, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = 0
    wanted = judges["corner"](dark).softmax(dim=1).gather(1, LABELS[:, None]).mean()
    torch.testing.assert_close(curves.ours[0, 0], wanted)
    concepts = explain_concepts(extractor, store, tsv=tsv, top_n=TOP, top_k=3)
    masking = evaluate.concept_level(judges, images, tokens, LABELS, concepts.tokens, concepts.frequent_tokens)
    hit = torch.stack([torch.isin(grid, concepts.tokens[label]) for grid, label in zip(tokens, LABELS, strict=True)])
    assert masking.masked[0] == hit.flatten(1).sum(dim=1).float().mean()
    objects = torch.zeros(12, 12, 20)
    objects[:, :4, 10:] = 1.0  # the upper right
    cells = evaluate.object_cells(objects, store.grid)
    assert torch.equal(cells[0].nonzero(), torch.cartesian_prod(torch.arange(2), torch.arange(5, 10)))
    frequency = torch.ones(3, CODES)
    grounded = evaluate.grounding(tsv, tokens, LABELS, cells, frequency, TOP)
    on_it = [sum(p // COLUMNS < 2 and p % COLUMNS >= 5 for p in places) / TOP for places in positions.tolist()]
    torch.testing.assert_close(grounded.ours, torch.tensor(on_it))
    torch.testing.assert_close(grounded.random, torch.full((12,), 10 / CELLS))
    edits = evaluate.edit_scores(judges, model.decode, tokens[:3], {"same": tokens[:3]}, LABELS[:3], LABELS[1:4])
    assert float(edits.target_change.abs().max()) == 0
    moved = evaluate.intervention(judges, model.decode, tokens, tsv, LABELS, ns=(3, 29))
    assert moved.after.shape == (3, 1, 2) and bool(moved.after.isfinite().all())
    with pytest.raises(ValueError, match="ns: expected at most 29 of 60 tokens"):
        evaluate.intervention(judges, model.decode, tokens, tsv, LABELS, ns=(30,))


def test_the_report(model, store, tsv, tmp_path):
    pictures = to_pictures(model.decode(store.tokens[:1]))
    corner = patch(pictures[0], 5 * COLUMNS + 9, store.grid)  # the last cell, at two edges of the image
    assert corner.shape == (6, 6, 3)
    assert np.array_equal(corner[:4, :4], pictures[0][8:12, 16:20])
    example = ExampleImage(pictures[0], tsv[0].numpy(), [(0, 9), (5, 0)])
    edit = Edit("a", "b", (1, 6, 4, 9), [EditStep(0, pictures[0], 0.5, 0.5)], [(1, 6, 0, 1)])
    page = ConceptPage("a", 4, store.grid, [TokenCard(3, 2, 0.5, [corner])], [example], [edit])
    index = write_report(Report("t", "", Table("s", ["c"], []), [page], []), tmp_path / "report")
    written = (tmp_path / "report" / "concepts" / "a-1.html").read_text(encoding="utf-8")
    assert index.is_file() and "6 × 10 tokens" in " ".join(written.split())
    with pytest.raises(ValueError, match=r"tsv: expected the concept's grid, \[6, 10\], got \[10, 6\]"):
        turned = ExampleImage(pictures[0], tsv[0].T.numpy(), [])
        page = ConceptPage("a", 4, store.grid, [], [turned])
        write_report(Report("t", "", Table("s", ["c"], []), [page], []), tmp_path / "other")
