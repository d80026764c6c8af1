"""A whole study of a tiny model: its results, what makes them stale, and what goes on after a stop."""

import json
from collections import Counter

import pytest
import torch

import cortex_fast as cf
from cortex_fast.extractors import load_extractor
from cortex_fast.studies import StaleError, Study, run, status_of
from cortex_fast.studies.tasks import State
from tests.studies.small import begin, changed, results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = begin(tmp_path_factory.mktemp("study") / "tiny")
    run(Study.open(folder), progress=False)
    return folder


def states(folder):
    return {(phase.stage, phase.title): phase.counts for phase in status_of(Study.open(folder)) if phase.counts}


def test_every_stage_is_done(finished):
    counts = states(finished)
    assert all(set(of_phase) == {State.DONE} for of_phase in counts.values())
    assert counts["score", "images"][State.DONE] == 5  # 24 images in fives
    stages = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in stages] == ["sample", "train", "score", "explain", "select", "edit"]
    assert all(entry["outcome"] == "done" for entry in stages)


def test_samples_are_the_models_own(finished):
    store = cf.TokenStore.load(finished / "samples" / "train.safetensors")
    assert store.tokens.shape == (24, 8, 8) and store.labels.tolist() == [0, 1, 2] * 8
    preferred = (store.tokens.long() // 4 == store.labels[:, None, None]).float().mean()
    assert preferred > 0.4  # 0.25 by chance
    other = cf.TokenStore.load(finished / "samples" / "test.safetensors")
    assert not torch.equal(other.tokens, store.select(slice(0, 6)).tokens)


def test_concepts_are_those_of_the_functions_for_one_process(finished):
    """Against score_tokens and explain_concepts on the whole data set."""
    store = cf.TokenStore.load(finished / "samples" / "train.safetensors")
    extractor = load_extractor(finished / "extractors" / "ce.safetensors")
    tsv = cf.score_tokens(extractor, store, num_samples=3, batch_size=24, progress=False)
    expected = cf.explain_concepts(extractor, store, tsv=tsv, top_n=5, top_k=6, examples=3)
    got = cf.ConceptExplanations.load(finished / "concepts" / "ce.safetensors")
    for name in ("tokens", "counts", "frequent_tokens", "frequent_counts", "num_images", "examples"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert got.names == ("class 0", "class 1", "class 2")


def test_selections_and_edits_keep_to_their_settings(finished):
    selection = cf.TokenSelection.load(finished / "selections" / "concept-0002.safetensors")
    assert selection.target.tolist() == [2] and selection.loss.shape == (6, 1)
    store = cf.TokenStore.load(finished / "samples" / "test.safetensors")
    edit = cf.TokenSelection.load(finished / "edits" / "0001-to-0000.safetensors")
    assert edit.target.tolist() == [0, 0]
    assert torch.equal(edit.initial, store.tokens[store.labels == 1].long())
    assert not edit.changed[:, :2].any() and not edit.changed[:, :, 6:].any()


def test_a_second_run_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    run(Study.open(finished), progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("table", "value", "stages"),
    [
        ("scoring", {"alpha": 0.5}, {"score"}),
        ("concepts", {"top_k": 3}, {"explain"}),
        ("selection", {"lr": 0.1}, {"select"}),
        ("edits", {"steps": 7}, {"edit"}),
        ("samples", {"seed": 1}, {"sample"}),
        ("run", {"batch_size": 3}, set()),
        ("run", {"sampling_batch_size": 2}, set()),
    ],
)
def test_a_setting_makes_stale_what_depends_on_it(finished, table, value, stages):
    begin(finished, changed(**{table: value}))
    try:
        stale = {stage for (stage, _), counts in states(finished).items() if State.STALE in counts}
    finally:
        begin(finished)
    assert stale == stages


def test_stale_files_stay_until_they_are_asked_for_again(finished, tmp_path):
    before = results(finished)
    begin(finished, changed(scoring={"alpha": 0.5}))
    try:
        with pytest.raises(StaleError, match=r"scoring.alpha was 0.2, is 0.5\n.*--again score"):
            run(Study.open(finished), progress=False)
        assert results(finished) == before
        run(Study.open(finished), ["score", "explain"], again=["score", "explain"], progress=False)
        assert Counter(old == results(finished)[path] for path, old in before.items())[False] == 6  # scores, concepts
    finally:
        begin(finished)
        run(Study.open(finished), again=["score", "explain"], progress=False)
    assert results(finished) == before


def test_a_truncated_file_is_named_and_the_others_stay(finished):
    before = results(finished)
    path = finished / "scores" / "ce" / "shard-00000005.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StaleError, match=str(path.name)):
        run(Study.open(finished), progress=False)
    run(Study.open(finished), again=["score"], progress=False)
    assert results(finished) == before


def test_a_study_without_edits_or_selections(tmp_path):
    settings = changed(edits={"pairs": []}, selection={"classes": "none"}, samples={"test": 0, "validation": 0})
    folder = begin(tmp_path / "tiny", settings)
    run(Study.open(folder), progress=False)
    assert not (folder / "edits").exists() and not (folder / "selections").exists()
    assert (folder / "concepts" / "ce.safetensors").exists()


def test_stores_and_labels_of_the_users_own(finished, tmp_path):
    """Concepts by a CSV: an image may have several labels or none."""
    store = finished / "samples" / "train.safetensors"
    lines = ["image,label"]
    lines += [f"{image},{'even' if image % 2 == 0 else 'odd'}" for image in range(20)]
    lines += ["3,third", "7,third"]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    settings = changed(
        samples={"files": {"train": str(store)}, "labels": {"train": "labels.csv"}, "test": 0, "validation": 0},
        edits={"pairs": []},
        selection={"classes": ["odd"]},
    )
    folder = begin(tmp_path / "own", settings)
    (tmp_path / "labels.csv").rename(folder / "labels.csv")
    run(Study.open(folder), progress=False)
    concepts = cf.ConceptExplanations.load(folder / "concepts" / "ce.safetensors")
    assert concepts.names == ("even", "odd", "third") and concepts.num_images.tolist() == [10, 10, 2]
    assert [path.name for path in (folder / "selections").iterdir()] == ["concept-0001.safetensors"]


def test_settings_that_only_the_model_can_judge(tmp_path):
    folder = begin(tmp_path / "tiny", changed(classes={"chosen": [0, 3]}))
    with pytest.raises(ValueError, match=r"classes.chosen: expected classes below 3, got 3"):
        run(Study.open(folder), progress=False)
    folder = begin(tmp_path / "tiny", changed(model={"source": "taiming:x"}))
    with pytest.raises(ValueError, match=r"model.source: expected one of .*taming:PATH"):
        run(Study.open(folder), progress=False)
    with pytest.raises(FileNotFoundError, match=r"cortex-fast init"):
        Study.open(tmp_path)


def test_some_classes_by_number(tmp_path):
    folder = begin(tmp_path / "tiny", changed(classes={"chosen": [2, 0]}, edits={"pairs": []}))
    run(Study.open(folder), ["sample"], progress=False)
    store = cf.TokenStore.load(folder / "samples" / "train.safetensors")
    assert store.names == ("class 2", "class 0")
    assert (store.tokens.long() // 4 == torch.tensor([2, 0])[store.labels][:, None, None]).float().mean() > 0.4
