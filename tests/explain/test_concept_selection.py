"""Selections of whole concepts: their files, a full disk, and two runs at once."""

import threading

import pytest
import torch

from cortex_fast import ResultFileError, select_concepts
from cortex_fast.explain import TokenSelection
from cortex_fast.explain.groups import extractor_judge
from tests.explain.problems import CHANNELS, CLASSES, CODES, codebook
from tests.known_extractors import Convolutional


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


def test_a_second_run_at_the_same_concepts_is_refused(tmp_path):
    torch.manual_seed(0)
    extractor = Convolutional(CHANNELS, CLASSES).eval()
    settings = {"grid": 4, "steps": 4, "lr": 0.3, "judge_every": 2, "together": 2}
    plain, errors = extractor_judge(extractor, codebook()), []
    alone = select_concepts(extractor, codebook(), tmp_path / "alone", judge=plain, **settings)

    def judge(tokens, target):
        def second():
            try:
                select_concepts(extractor, codebook(), tmp_path / "both", judge=plain, **settings)
            except BlockingIOError as error:
                errors.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        return plain(tokens, target)

    both = select_concepts(extractor, codebook(), tmp_path / "both", judge=judge, **settings)
    assert len(errors) == 6 and all("concepts-0000-0003-4: another run is writing it" in error for error in errors)
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in alone]
    assert sorted((tmp_path / "both").iterdir()) == both
