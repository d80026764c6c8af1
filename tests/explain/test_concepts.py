"""Concept explanations against counting by hand, and their files."""

from collections import Counter

import pytest
import torch

from cortex_fast import ConceptExplanations, ResultFileError, TokenStore, explain_concepts, score_tokens
from cortex_fast.explain.concepts import token_frequency
from tests.known_extractors import Convolutional

NAMES = ("red", "green", "blue")


def store(count=12, codes=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(codes, (count, 4, 4), generator=generator)
    labels = torch.randint(2, (count,), generator=generator)  # "blue" has no image
    return TokenStore(tokens, labels, torch.randn(codes, 5, generator=generator), NAMES)


def by_hand(data, tsv, top_n, per):
    counts = {concept: Counter() for concept in range(3)}
    for image in range(len(data)):
        flat = tsv[image].flatten().tolist()
        order = sorted(range(16), key=lambda place: (-flat[place], place))[:top_n]
        top_ids = [int(data.tokens[image].int().flatten()[place]) for place in order]
        counts[int(data.labels[image])].update(set(top_ids) if per == "image" else top_ids)
    return counts


@pytest.mark.parametrize("per", ["occurrence", "image"])
@pytest.mark.parametrize("top_n", [1, 5, 16])
def test_counts_ranks_and_padding(per, top_n):
    data, tsv = store(), torch.rand(12, 4, 4, generator=torch.Generator().manual_seed(5)).round(decimals=1)
    got = explain_concepts(Convolutional(5, 3).eval(), data, top_n=top_n, top_k=8, per=per, tsv=tsv, progress=False)
    for concept, counts in by_hand(data, tsv, top_n, per).items():
        wanted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]
        wanted += [(-1, 0)] * (8 - len(wanted))
        assert list(zip(got.tokens[concept].tolist(), got.counts[concept].tolist(), strict=True)) == wanted
        images = int((data.labels == concept).sum())
        total = images * top_n if per == "occurrence" else images
        for rank, (_, count) in enumerate(wanted):
            assert float(got.shares[concept, rank]) == pytest.approx(count / total if total else 0.0)
    assert got.num_images.tolist() == [int((data.labels == c).sum()) for c in range(3)]


def test_frequency_baseline_counts_every_position():
    data = store()
    got = explain_concepts(Convolutional(5, 3).eval(), data, top_n=3, top_k=4, tsv=torch.rand(12, 4, 4), progress=False)
    counts = Counter(data.tokens[data.labels == 0].int().flatten().tolist())
    wanted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    assert list(zip(got.frequent_tokens[0].tolist(), got.frequent_counts[0].tolist(), strict=True)) == wanted


def test_examples_are_occurrences_of_their_token_by_falling_tsv():
    data, tsv = store(), torch.rand(12, 4, 4)
    got = explain_concepts(Convolutional(5, 3).eval(), data, top_n=6, top_k=9, tsv=tsv, examples=3, progress=False)
    for concept in range(3):
        for rank, token in enumerate(got.tokens[concept].tolist()):
            places = [tuple(place) for place in got.examples[concept, rank].tolist() if place[0] >= 0]
            assert len(places) == min(3, int(got.counts[concept, rank]))
            values = [float(tsv[image].flatten()[position]) for image, position in places]
            assert values == sorted(values, reverse=True)
            for image, position in places:
                assert int(data.tokens[image].int().flatten()[position]) == token
                assert int(data.labels[image]) == concept


def test_scores_do_not_depend_on_the_batch():
    extractor, data = Convolutional(5, 3).eval(), store()
    settings = {"num_samples": 4, "noise": "independent", "seed": 3, "progress": False}
    whole = score_tokens(extractor, data, batch_size=12, **settings)
    torch.testing.assert_close(score_tokens(extractor, data, batch_size=5, **settings), whole)


def test_save_load_and_pandas(tmp_path):
    got = explain_concepts(Convolutional(5, 3).eval(), store(), top_n=4, top_k=5, progress=False, num_samples=2, seed=4)
    got.save(tmp_path / "concepts")
    again = ConceptExplanations.load(tmp_path / "concepts")
    for name, value in vars(got).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    saliency = again.fingerprint["saliency"]
    assert saliency["seed"] == "4" and saliency["num_samples"] == "2" and saliency["alpha"] == "0.2"
    frame = got.to_pandas()
    assert list(frame.columns) == ["concept", "rank", "token", "count", "share"]
    assert frame["count"].sum() == got.counts.sum() and (frame["token"] >= 0).all()
    store().save(tmp_path / "tokens")
    with pytest.raises(ResultFileError, match="tokens"):
        ConceptExplanations.load(tmp_path / "tokens")


def test_scores_keep_double_precision():
    """TSVs with relative differences of 1e-9, which would tie in float32."""
    from tests.known_extractors import Linear

    extractor = Linear(5, 4, 3).eval().double()
    with torch.no_grad():
        extractor.weight.copy_(1 + 1e-9 * torch.arange(80.0).double().expand(3, 80))
    data = store()
    wide = TokenStore(data.tokens, data.labels, data.codebook.double(), NAMES)
    scores = score_tokens(extractor, wide, num_samples=2, progress=False)
    assert scores.dtype == torch.float64 and scores.flatten(1).argmax(dim=1).tolist() == [15] * 12


@pytest.mark.parametrize("name", ["item_ids", "tick"])
def test_arguments_set_by_the_data_set_are_refused(name):
    with pytest.raises(TypeError, match=rf"^{name}:"):
        score_tokens(Convolutional(5, 3).eval(), store(), progress=False, **{name: None})


def test_settings_with_given_scores_are_refused():
    with pytest.raises(TypeError, match=r"^num_samples:"):
        explain_concepts(Convolutional(5, 3).eval(), store(), top_n=4, tsv=torch.rand(12, 4, 4), num_samples=5)


def test_token_frequency_by_hand():
    tokens, labels = torch.tensor([[[0, 1], [1, 2]], [[2, 2], [2, 2]]]), torch.tensor([1, 0])
    assert token_frequency(tokens, labels, 3, 4).tolist() == [[0, 0, 4, 0], [1, 2, 1, 0], [0, 0, 0, 0]]


def test_an_empty_data_set():
    got = explain_concepts(Convolutional(5, 3).eval(), store(0), top_n=4, top_k=5, progress=False)
    assert (got.tokens == -1).all() and got.num_images.sum() == 0 and len(got.to_pandas()) == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"top_n": 17}, "top_n"),
        ({"top_n": 0}, "top_n"),
        ({"top_k": 0}, "top_k"),
        ({"per": "class"}, "per"),
        ({"tsv": torch.rand(11, 4, 4)}, "tsv"),
        ({"batch_size": 0}, "batch_size"),
        ({"examples": -1}, "examples"),
    ],
)
def test_bad_arguments_are_named(change, named):
    with pytest.raises((ValueError, TypeError), match=rf"^{named}:"):
        explain_concepts(Convolutional(5, 3).eval(), store(), progress=False, **({"top_n": 4} | change))


def test_more_classes_than_the_extractor_has():
    with pytest.raises(ValueError, match=r"^target:"):
        explain_concepts(Convolutional(5, 1).eval(), store(), top_n=4, progress=False)


def test_names_of_concepts_are_texts():
    zeros = torch.zeros(1, 1, dtype=torch.int64)
    counts = dict.fromkeys(("tokens", "counts", "frequent_tokens", "frequent_counts"), zeros)
    examples = zeros[None, :, :, None]
    with pytest.raises(TypeError, match=r"^names: expected texts, got None"):
        ConceptExplanations((None,), **counts, num_images=zeros[0], examples=examples, top_n=1, per="image")
