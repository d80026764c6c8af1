"""The checkpoints of token selections: damaged ones are refused, and two runs never share one."""

import threading

import pytest
import torch

from cortex_fast import ResultFileError, select_concepts, select_tokens
from cortex_fast.data.results import load_result, save_result
from cortex_fast.explain import ConceptExplanations
from cortex_fast.explain.groups import extractor_judge
from tests.explain.test_optimisation import CHANNELS, CLASSES, CODES, assert_same, codebook, grids, targets
from tests.known_extractors import Convolutional

KIND = "TokenSelectionState"
SETTINGS = {"region": (2, 2, 5, 5), "steps": 6, "lr": 0.4, "judge_every": 2}


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    return Convolutional(CHANNELS, CLASSES).eval()


@pytest.fixture(scope="module")
def state(extractor, tmp_path_factory):
    """Tensors and header of a run of three problems, stopped in the middle."""
    path, looks = tmp_path_factory.mktemp("state") / "state", []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 3:
            raise StoppedError
        return extractor_judge(extractor, codebook())(tokens, target)

    with pytest.raises(StoppedError):
        select_tokens(extractor, codebook(), targets(), tokens=grids(), judge=judge, checkpoint=path, **SETTINGS)
    return load_result(path, KIND)


def resume(extractor, path):
    judge = extractor_judge(extractor, codebook())
    return select_tokens(extractor, codebook(), targets(), tokens=grids(), judge=judge, checkpoint=path, **SETTINGS)


BAD = {
    "sizes are a number": ({}, {"sizes": 3}),
    "sizes of other problems": ({}, {"sizes": [2]}),
    "sizes are texts": ({}, {"sizes": ["3"]}),
    "no such group": ({}, {"group": 2}),
    "group is a text": ({}, {"group": "0"}),
    "no such step": ({}, {"step": 7}),
    "step is a text": ({}, {"step": "2"}),
    "no step of a group": ({}, {"group": 1}),
    "another run": ({}, {"made": [1]}),
    "no problem of the group": ({"active": torch.tensor([0, 1, 3])}, {}),
    "active of another type": ({"active": torch.tensor([0.0, 1.0, 2.0])}, {}),
    "fewer variables": ({"variables": torch.zeros(2, 9, CODES)}, {}),
    "history of one dimension": ({"history": torch.zeros(1, dtype=torch.int64)}, {}),
    "loss of other steps": ({"loss": torch.zeros(5, 3)}, {}),
    "moments of another shape": ({"first": torch.zeros(3, 9, 1)}, {}),
    "same of other problems": ({"same": torch.zeros(2, dtype=torch.int64)}, {}),
    "no variables": ({"variables": None}, {}),
    "no history": ({"history": None}, {}),
    "no second moments": ({"second": None}, {}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_malformed_state_is_refused_by_name(what, extractor, state, tmp_path):
    tensors, header = BAD[what]
    changed = {name: value for name, value in (state[0] | tensors).items() if value is not None}
    save_result(tmp_path / "state", KIND, changed, state[1] | header)
    with pytest.raises(ResultFileError, match="/state: "):
        resume(extractor, tmp_path / "state")


def test_an_intact_state_is_resumed_to_the_same_bits(extractor, state, tmp_path):
    save_result(tmp_path / "state", KIND, *state)
    assert_same(resume(extractor, tmp_path / "state"), resume(extractor, tmp_path / "none"))
    save_result(tmp_path / "state", KIND, *state)
    whole = (tmp_path / "state").read_bytes()
    at = whole.index(state[0]["variables"].numpy().tobytes())
    (tmp_path / "state").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ResultFileError, match="/state: damaged: its tensors are not as they were written"):
        resume(extractor, tmp_path / "state")


@pytest.mark.parametrize("targets", [None, 5, ["a"], [[1]]])
def test_a_folder_with_a_malformed_state_is_refused_by_name(targets, extractor, state, tmp_path):
    save_result(tmp_path / "unfinished-0000-0003-4.safetensors", KIND, state[0], state[1] | {"targets": targets})
    with pytest.raises(ResultFileError, match=r"unfinished-0000-0003-4\.safetensors: not the state"):
        select_concepts(extractor, codebook(), tmp_path, grid=4, steps=2)


def test_a_second_run_at_the_same_concepts_is_refused(extractor, tmp_path):
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


def test_names_of_concepts_are_texts():
    zeros = torch.zeros(1, 1, dtype=torch.int64)
    counts = dict.fromkeys(("tokens", "counts", "frequent_tokens", "frequent_counts"), zeros)
    examples = zeros[None, :, :, None]
    with pytest.raises(TypeError, match=r"^names: expected texts, got None"):
        ConceptExplanations((None,), **counts, num_images=zeros[0], examples=examples, top_n=1, per="image")
