"""Checkpoints: interrupted runs are resumed to the same results, and damaged files are refused."""

import pytest
import torch

from cortex_fast import ResultFileError, embed, select_concepts, select_tokens
from cortex_fast.data.results import load_result, save_result
from cortex_fast.explain.groups import extractor_judge
from tests.explain.problems import (
    BOTH,
    CHANNELS,
    CLASSES,
    CODES,
    REGION,
    StoppedError,
    assert_same,
    codebook,
    grids,
    targets,
)
from tests.known_extractors import Convolutional, tiny

KIND = "TokenSelectionState"
SETTINGS = {"region": (2, 2, 5, 5), "steps": 6, "lr": 0.4, "judge_every": 2}


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


def test_a_resumed_run_has_each_problems_region_extractor_and_limits(tmp_path):
    """Stopped in the middle, then resumed in groups of another size."""
    extractors, boxes = [tiny("ce"), tiny("re")], [(2, 2, 5, 5), (0, 0, 3, 3), (2, 2, 5, 5), (2, 2, 5, 5), (5, 5, 8, 8)]
    extractor_of = [extractors[index] for index in (0, 1, 1, 0, 1)]
    allowed = torch.rand(5, 9, CODES, generator=torch.Generator().manual_seed(8)) < 0.6
    arguments = {"tokens": grids(5), "region": boxes, "allowed": allowed, "steps": 8, "lr": 0.4, "judge_every": 4}
    straight = select_tokens(extractor_of, codebook(), targets(5), **arguments)
    selected = torch.stack([grid[top:bottom, left:right].flatten() for grid, (top, left, bottom, right)
                            in zip(straight.history[-1], boxes, strict=True)])  # fmt: skip
    assert allowed.gather(2, selected[..., None]).all()
    judges, looks = [extractor_judge(extractor, codebook()) for extractor in extractors], []

    def judge(tokens, target):  # problem 1's for all: each problem's judge has a test below
        looks.append(None)
        if len(looks) == 6:
            raise StoppedError
        return judges[1](tokens, target)

    expected = select_tokens(extractor_of, codebook(), targets(5), judge=judges[1], **arguments)
    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor_of, codebook(), targets(5), judge=judge, checkpoint=path, memory=1, **arguments)
    other = [extractors[index] for index in (0, 1, 0, 0, 1)]
    with pytest.raises(ResultFileError):
        select_tokens(other, codebook(), targets(5), judge=judge, checkpoint=path, **arguments)
    got = select_tokens(extractor_of, codebook(), targets(5), judge=judge, checkpoint=path, **arguments)
    assert torch.equal(got.history, expected.history) and got.fingerprint == expected.fingerprint
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.probability, expected.probability, rtol=1e-4, atol=1e-6)
    swapped = select_tokens(other, codebook(), targets(5), judge=judges[1], **arguments)
    assert swapped.fingerprint != got.fingerprint


def test_a_resumed_run_judges_each_problem_by_its_extractor(tmp_path, monkeypatch):
    from cortex_fast.explain import optimisation

    extractors = [tiny("ce"), tiny("re")]
    extractor_of = [extractors[index] for index in (0, 1, 0, 1)]
    arguments = {"tokens": grids(4), "region": REGION, "steps": 6, "lr": 0.4, "judge_every": 3}
    expected = select_tokens(extractor_of, codebook(), targets(4), **arguments)
    path, calls = tmp_path / "state", []

    def stopping(*arguments):
        calls.append(None)
        if len(calls) == 5:
            raise StoppedError
        return judge(*arguments)

    judge = optimisation._judge
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(optimisation, "_judge", stopping)
        select_tokens(extractor_of, codebook(), targets(4), checkpoint=path, memory=1, **arguments)
    got = select_tokens(extractor_of, codebook(), targets(4), checkpoint=path, **arguments)
    torch.testing.assert_close(got.probability, expected.probability, rtol=1e-4, atol=1e-6)
    assert torch.equal(got.history, expected.history)


@pytest.mark.parametrize("optimise", BOTH)
@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_gives_the_same_bits(optimise, memory, optimizer, tmp_path):
    extractor = tiny("ce")
    arguments = {"tokens": grids(), "region": REGION, "steps": 20, "lr": 0.2, "judge_every": 4, "patience": 9}
    arguments |= {"memory": memory, "optimizer": optimizer}
    straight = optimise(extractor, codebook(), targets(), **arguments)
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 3:
            raise StoppedError
        with torch.no_grad():
            return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        optimise(extractor, codebook(), targets(), judge=judge, checkpoint=path, **arguments)
    assert path.exists()
    before = path.read_bytes()
    with pytest.raises(ResultFileError, match="state"):
        optimise(extractor, codebook(), targets(), checkpoint=path, **(arguments | {"lr": 0.1}))
    assert path.read_bytes() == before
    assert_same(optimise(extractor, codebook(), targets(), judge=judge, checkpoint=path, **arguments), straight)
    assert not path.exists()
    if memory > 1:  # no judgement is repeated
        assert len(looks) <= len(straight.steps) + 2


@pytest.mark.parametrize(("memory", "later"), [(1, 1 << 30), (40_000, 5), (40_000, 1 << 30), (1 << 30, 1)])
def test_a_run_resumed_with_another_memory(memory, later, tmp_path):
    """The groups stay as they were, so that every problem is run once."""
    extractor = tiny("ce")
    arguments = {"tokens": grids(5), "region": REGION, "steps": 20, "lr": 0.2, "judge_every": 4}
    straight = select_tokens(extractor, codebook(), targets(5), memory=memory, **arguments)
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 5:
            raise StoppedError
        return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor, codebook(), targets(5), judge=judge, memory=memory, checkpoint=path, **arguments)
    again = select_tokens(extractor, codebook(), targets(5), memory=later, checkpoint=path, **arguments)
    assert_same(again, straight)
    assert not again.probability.requires_grad and not path.exists()


def test_finished_groups_are_saved_without_a_judgement_between(tmp_path):
    extractor = tiny("ce")
    arguments = {"tokens": grids(3), "region": REGION, "steps": 6, "lr": 0.2, "memory": 1}
    looks = []

    def judge(tokens, target):
        looks.append(None)
        if len(looks) == 4:
            raise StoppedError
        return extractor(embed(tokens, codebook()).contiguous()).softmax(dim=1).gather(1, target[:, None])[:, 0]

    path = tmp_path / "state"
    with pytest.raises(StoppedError):
        select_tokens(extractor, codebook(), targets(3), judge=judge, checkpoint=path, **arguments)
    got = select_tokens(extractor, codebook(), targets(3), judge=judge, checkpoint=path, **arguments)
    assert len(looks) == 4 + 4  # two for each of the second and the third problem
    assert_same(got, select_tokens(extractor, codebook(), targets(3), **arguments))


def test_the_identity_of_a_run_has_the_names_of_earlier_versions(state):
    """So that their checkpoints and finished concepts are recognised: names are never changed in files."""
    _, header = state
    assert header["made"].keys() == {
        *("method", "extractor", "codebook", "problems", "seed"),
        *("steps", "lr", "tau", "optimizer", "regularisation", "judge_every"),
        *("draws", "restarts", "patience", "start", "stay"),
    }
