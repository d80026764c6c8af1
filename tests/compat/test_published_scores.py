"""Score tables and checkpoints of the published code, against files as it writes them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast.compat.published_data import (
    PublishedDataError,
    Scores,
    export_checkpoint,
    import_checkpoint,
)
from cortex_fast.data.results import ResultFileError
from cortex_fast.extractors import NAMES, build
from cortex_fast.extractors.files import extractor_header, load_extractor
from cortex_fast.vqgm import CheckpointError
from tests.compat.published_files import files

SIZES = {"num_classes": 5, "in_channels": 6, "width": 16, "grid": 16}


def write_scores(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    scores = {f"{label}_{row}.npy": rng.standard_normal((4, 4)) * 1e-5 for label in (7, 11) for row in range(3)}
    for name, values in scores.items():
        label = name.split("_")[0]
        with (folder / f"label_{label}.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["filename", "label", "contribution"])
            writer.writerow([name, int(label), values.flatten().tolist()])
    return scores


def test_scores_are_the_numbers_and_come_back_as_the_same_bytes(tmp_path):
    expected = write_scores(tmp_path / "scores")
    read = Scores.read(tmp_path / "scores")
    read.save(tmp_path / "s")
    again = Scores.load(tmp_path / "s")
    assert set(again.files) == set(expected) and again.labels.tolist() == [7] * 3 + [11] * 3
    order = sorted(expected, reverse=True)
    assert np.array_equal(again.of(order).numpy(), np.stack([expected[name] for name in order]))
    again.write(tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "scores")
    with pytest.raises(FileExistsError, match="label_7"):
        again.write(tmp_path / "back")
    with pytest.raises(ValueError, match=r"'3_3\.npy' has no scores"):
        again.of(["3_3.npy"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("7_1.npy,7", "7_1.npy,8", "expected label 7"),
        ('7_1.npy,7,"[', '7_1.npy,7,"[1, ', "got 17"),
        ('7_1.npy,7,"[', '7_1.npy,7,"[x', "number"),
        ('7_1.npy,7,"[', '7_1.npy,7,"[1e999', "finite|number"),
        ("7_1.npy,7", "../7_1.npy,7", "out of its folder"),
    ],
)
def test_a_bad_score_line_is_reported_with_file_and_line(old, new, reason, tmp_path):
    write_scores(tmp_path / "scores")
    path = tmp_path / "scores" / "label_7.csv"
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode())
    with pytest.raises(PublishedDataError, match=rf"(?s)label_7\.csv:3: .*({reason})"):
        Scores.read(tmp_path / "scores")


def test_scores_of_grids_that_are_not_square_are_not_written(tmp_path):
    """4 x 9 scores would be read as 6 x 6: the tables do not say how many rows there are."""
    scores = Scores(torch.randn(2, 4, 9), torch.tensor([0, 1]), ("0_0.npy", "1_0.npy"))
    scores.save(tmp_path / "s")
    assert torch.equal(Scores.load(tmp_path / "s").tsv, scores.tsv)
    with pytest.raises(
        ValueError, match=r"^tsv: expected square grids, as label_<label>\.csv has them, got \[2, 4, 9\]"
    ):
        scores.write(tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("name", ["ce", "te"])
def test_a_checkpoints_grid_may_be_given(name, tmp_path):
    extractor = build(name, **SIZES | {"grid": (8, 32)}).eval()  # as many tokens as 16 x 16
    torch.save(extractor.state_dict(), tmp_path / "x.pth")
    import_checkpoint(tmp_path / "x.pth", tmp_path / "e", grid=(8, 32))
    assert extractor_header(tmp_path / "e")["sizes"] == SIZES | {"grid": (8, 32)}
    x = torch.randn(2, 6, 8, 32)
    torch.testing.assert_close(load_extractor(tmp_path / "e")(x), extractor(x))
    with pytest.raises(PublishedDataError, match="not a ClassificationNet"):
        import_checkpoint(tmp_path / "x.pth", tmp_path / "other", grid=(8, 12))


def test_a_folder_without_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match="label_"):
        Scores.read(tmp_path)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_both_ways(name, parallel, tmp_path):
    torch.manual_seed(0)
    extractor = build(name, **SIZES)
    for module in extractor.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = torch.nn.DataParallel(extractor).state_dict() if parallel else extractor.state_dict()
    torch.save(state, tmp_path / "best_model.pth")
    assert import_checkpoint(tmp_path / "best_model.pth", tmp_path / "e") == name
    assert extractor_header(tmp_path / "e")["sizes"] == SIZES
    again = load_extractor(tmp_path / "e")
    x = torch.randn(2, 6, 16, 16)
    torch.testing.assert_close(again(x), extractor.eval()(x))
    export_checkpoint(tmp_path / "e", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == list(extractor.state_dict())
    assert all(torch.equal(back[key], value) for key, value in extractor.state_dict().items())


def test_other_checkpoints_are_refused_by_name(tmp_path):
    state = build("ce", **SIZES).state_dict()
    for file, content in {
        "other.pth": {"x": torch.zeros(1)},
        "fewer.pth": {key: value for key, value in state.items() if key != "fc2.bias"},
        "shape.pth": state | {"fc2.bias": torch.zeros(3)},
        "nan.pth": state | {"fc2.bias": torch.full_like(state["fc2.bias"], torch.nan)},
        "empty.pth": {},
    }.items():
        torch.save(content, tmp_path / file)
        with pytest.raises(CheckpointError if file == "empty.pth" else PublishedDataError, match=file):
            import_checkpoint(tmp_path / file, tmp_path / "e")
    (tmp_path / "e").write_bytes(b"something")
    with pytest.raises(ResultFileError, match="/e: "):
        load_extractor(tmp_path / "e")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_checkpoint(tmp_path / "nowhere.pth", tmp_path / "e")
