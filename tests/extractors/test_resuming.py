"""The files of a training run: damaged ones are refused, two runs never share them, and older runs' are not used."""

import threading
import zipfile

import pytest
import torch
from torch import nn

from cortex_fast import ResultFileError
from cortex_fast.data.results import replace_whole, save_result
from cortex_fast.extractors import TrainingRecipe, build, fitting, train_extractor
from cortex_fast.extractors.checkpoints import load_checkpoint, save_checkpoint
from cortex_fast.extractors.files import extractor_header, load_extractor, save_extractor
from cortex_fast.extractors.fitting import best_of, checkpoint_of, fit
from tests.extractors.test_training import CODEBOOK, Stop, images, store
from tests.killing import die, hidden, killed

POSITION = {
    "epoch": torch.tensor(1),
    "step": torch.tensor(2),
    "total": torch.tensor(3.0, dtype=torch.float64),
    "loss": torch.tensor(4.0, dtype=torch.float64),
}
RUN = {"lr": 0.1, "sizes": {"width": 16}}


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    extractor = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(extractor.parameters())
    extractor(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return extractor, optimizer


def test_a_checkpoint_is_restored(tmp_path):
    extractor, optimizer = trained()
    save_checkpoint(tmp_path / "run.pt", RUN, extractor, optimizer, POSITION)
    other = nn.Linear(2, 3)
    into = torch.optim.Adam(other.parameters())
    assert load_checkpoint(tmp_path / "run.pt", RUN, other, into) == POSITION
    assert torch.equal(other.weight, extractor.weight)
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(into.state_dict()["state"][number][name], value)


def _with(part: str, value: object):
    return lambda content: content | {part: value}


def _at(**values: object):
    return lambda content: content | {"at": POSITION | values}


def _moments(**values: object):
    def change(content):
        states = {number: state | values for number, state in content["optimizer"]["state"].items()}
        return content | {"optimizer": content["optimizer"] | {"state": states}}

    return change


FORMS = {
    "a tensor": lambda content: torch.zeros(3),
    "a list": lambda content: [content],
    "without at": lambda content: {name: value for name, value in content.items() if name != "at"},
    "run is a number": _with("run", 5),
    "run is a list": _with("run", [1]),
    "run holds tensors": _with("run", {"lr": torch.ones(2), "sizes": {}}),
    "extractor is a list": _with("extractor", []),
    "extractor is a number": _with("extractor", 7),
    "extractor lacks a tensor": _with("extractor", {"weight": torch.zeros(3, 2)}),
    "extractor of other shapes": _with("extractor", {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}),
    "extractor of other types": _with("extractor", {"weight": torch.zeros(3, 2).int(), "bias": torch.zeros(3)}),
    "extractor of texts": _with("extractor", {"weight": "w", "bias": "b"}),
    "optimizer is a number": _with("optimizer", 5),
    "optimizer of numbers": _with("optimizer", {"state": 5, "param_groups": 5}),
    "optimizer without groups": _with("optimizer", {"state": {}}),
    "optimizer of another": _with("optimizer", torch.optim.SGD(nn.Linear(2, 3).parameters()).state_dict()),
    "moments of other shapes": _moments(exp_avg=torch.zeros(1)),
    "moments that are texts": _moments(exp_avg_sq="none"),
    "moments of no parameter": lambda content: content | {"optimizer": content["optimizer"] | {"state": {9: {}}}},
    "at is a number": _with("at", 7),
    "at is empty": _with("at", {}),
    "epoch is a number": _at(epoch=1),
    "epoch is negative": _at(epoch=torch.tensor(-1)),
    "step is two": _at(step=torch.tensor([1, 2])),
    "total is whole": _at(total=torch.tensor(1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_another_form_is_refused_by_name(form, tmp_path):
    path = tmp_path / "run.pt"
    extractor, optimizer = trained()
    save_checkpoint(path, RUN, extractor, optimizer, POSITION)
    torch.save(FORMS[form](torch.load(path, weights_only=True)), path)
    other = nn.Linear(2, 3)
    before = other.weight.clone()
    with pytest.raises(ResultFileError, match=r"run\.pt: "):
        load_checkpoint(path, RUN, other, torch.optim.Adam(other.parameters()))
    assert torch.equal(other.weight, before)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "run.pt"
    extractor, optimizer = trained()
    save_checkpoint(path, RUN, extractor, optimizer, POSITION)
    whole = path.read_bytes()
    at = whole.index(extractor.weight.detach().numpy().tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for damaged in (flipped, whole[:-100], whole[:100], b"", b"nothing of the kind"):
        path.write_bytes(damaged)
        with pytest.raises(ResultFileError, match=r"run\.pt: a truncated or damaged checkpoint"):
            load_checkpoint(path, RUN, extractor, optimizer)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + b"(" * 100_000 + b".")
        file.writestr("archive/version", "3\n")
    with pytest.raises(ResultFileError, match=r"run\.pt: a truncated or damaged checkpoint"):
        load_checkpoint(path, RUN, extractor, optimizer)


def test_a_second_training_to_the_same_file_is_refused(tmp_path):
    """While the first is at its first epoch; the first is not disturbed."""
    recipe, settings = TrainingRecipe(epochs=2, batch_size=16), {"width": 16, "validation": store(30), "resume": True}
    alone, out, messages = tmp_path / "alone", tmp_path / "e.safetensors", []
    fit(store(), alone, "re", recipe, **settings)

    def meanwhile(line: str) -> None:
        def second() -> None:
            for train in (
                lambda: fit(store(), out, "re", recipe, **settings),
                lambda: train_extractor(
                    nn.Linear(1, 1), CODEBOOK, *images(), recipe, checkpoint=checkpoint_of(out)
                ),
            ):  # fmt: skip
                try:
                    train()
                except BlockingIOError as error:
                    messages.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    fit(store(), out, "re", recipe, **settings, report=meanwhile)
    assert len(messages) == 4
    assert messages[0].startswith(f"{out}: another run is writing it (process ")
    assert messages[1].startswith(f"{checkpoint_of(out)}: another run is writing it (process ")
    assert out.read_bytes() == alone.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "e.safetensors"]


def test_resuming_after_the_last_epoch_writes_the_same_file(tmp_path, monkeypatch):
    recipe, settings = TrainingRecipe(epochs=2, batch_size=16), {"width": 16, "resume": True}
    alone, out = tmp_path / "alone", tmp_path / "e"
    fit(store(), alone, "re", recipe, **settings)
    assert extractor_header(alone)["fingerprint"]["loss"] > 0

    def stop(*_args, **_kwargs):
        raise Stop

    monkeypatch.setattr(fitting, "save_extractor", stop)
    with pytest.raises(Stop):
        fit(store(), out, "re", recipe, **settings)
    monkeypatch.undo()
    fit(store(), out, "re", recipe, **settings)
    assert out.read_bytes() == alone.read_bytes()
    fit(store(), tmp_path / "none", "re", TrainingRecipe(epochs=0), **settings)
    assert "loss" not in extractor_header(tmp_path / "none")["fingerprint"]


def test_the_best_epoch_of_an_older_run_is_not_used(tmp_path):
    """If its checkpoint is gone, if the checkpoint is another run's, or if the file is damaged."""
    recipe, settings = TrainingRecipe(epochs=2, batch_size=16), {"width": 16, "validation": store(30), "resume": True}
    alone, out = tmp_path / "alone", tmp_path / "e"
    fit(store(), alone, "re", recipe, **settings)

    perfect = extractor_header(alone)["fingerprint"] | {"validation_loss": 0.0}
    sizes = extractor_header(alone)["sizes"]
    save_extractor(best_of(out), load_extractor(alone), "re", sizes, perfect)  # no epoch is better
    fit(store(), out, "re", recipe, **settings)
    assert out.read_bytes() == alone.read_bytes()
    out.unlink()

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise Stop

    with pytest.raises(Stop):
        fit(store(), out, "re", recipe, **settings, report=stop)
    good = best_of(out).read_bytes()
    save_extractor(best_of(out), load_extractor(alone), "re", sizes, perfect | {"seed": 1})
    with pytest.raises(ResultFileError, match=r"e\.best: .*another run \(seed: expected 0, got 1"):
        fit(store(), out, "re", recipe, **settings)
    save_extractor(best_of(out), load_extractor(alone), "re", sizes, perfect | {"validation_loss": "low"})
    with pytest.raises(ResultFileError, match=r"e\.best: expected its validation loss, got 'low'"):
        fit(store(), out, "re", recipe, **settings)
    best_of(out).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ResultFileError, match=r"e\.best: damaged"):
        fit(store(), out, "re", recipe, **settings)
    best_of(out).write_bytes(good)
    fit(store(), out, "re", recipe, **settings)
    assert out.read_bytes() == alone.read_bytes()


def test_the_best_epoch_of_an_older_run_is_no_result_of_a_run_without_validation(tmp_path):
    """A run judges no epoch if it has no validation store or no epochs."""
    alone, out = tmp_path / "alone", tmp_path / "e"
    fit(store(), alone, "re", TrainingRecipe(epochs=1, batch_size=16), width=16, seed=7, validation=store(30))
    for settings in ({"epochs": 1, "batch_size": 16}, {"epochs": 0}):
        validation = None if settings["epochs"] else store(30)
        best_of(out).write_bytes(alone.read_bytes())
        fit(store(), out, "re", TrainingRecipe(**settings), width=16, validation=validation)
        fingerprint = extractor_header(out)["fingerprint"]
        assert (fingerprint["seed"], fingerprint["epochs"]) == (
            0,
            settings["epochs"],
        ) and "validation_loss" not in fingerprint
        assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "e"]
        out.unlink()


def test_of_equal_losses_the_first_epoch_is_written(tmp_path, monkeypatch):
    losses = iter([0.5, 0.25, 0.25, 0.5, 0.25])
    monkeypatch.setattr(fitting, "mean_loss", lambda *_: next(losses))
    fit(store(), tmp_path / "e", "re", TrainingRecipe(epochs=5, batch_size=16), width=16, validation=store(30))
    fingerprint = extractor_header(tmp_path / "e")["fingerprint"]
    assert (fingerprint["epoch"], fingerprint["validation_loss"]) == (2, 0.25)


def test_the_next_run_removes_the_files_of_a_killed_one(tmp_path):
    """Killed after the extractor was written and before the checkpoint was removed."""
    out, settings = tmp_path / "e", {"width": 16, "validation": store(30), "resume": True}
    fit(store(), out, "re", TrainingRecipe(epochs=1, batch_size=16), **settings)
    checkpoint_of(out).write_bytes(b"a checkpoint")
    killed(lambda: replace_whole(out, die))
    assert hidden(tmp_path)
    fit(store(), out, "re", TrainingRecipe(epochs=1, batch_size=16), **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_classes": 10**6}, "weights do not fit"),
        ({"width": 16 * 2**16}, "weights do not fit"),
        ({"width": 10**18}, "width: expected a whole number from 1"),
        ({"num_classes": 10**30}, "num_classes: expected a whole number from 1"),
        ({"in_channels": -4}, "in_channels"),
        ({"num_classes": "many"}, "its header is"),
        ({"num_classes": True}, "its header is"),
        ({"grid": None}, "grid"),
        ({"more": 1}, "its header is"),
    ],
)
@pytest.mark.parametrize("name", ["ce", "te", "re"])
def test_a_small_file_that_claims_other_sizes_is_refused_before_memory_is_taken(name, sizes, message, tmp_path):
    right = {"num_classes": 3, "in_channels": 8, "width": 16, "grid": 4}
    path = tmp_path / "e.safetensors"
    save_extractor(path, build(name, **right), name, right | sizes, {})
    with pytest.raises(ResultFileError, match=rf"e\.safetensors: .*{message}"):
        load_extractor(path)


@pytest.mark.parametrize("header", [{}, {"name": "ce"}, {"name": 5, "sizes": {}, "fingerprint": {}}])
def test_headers_of_other_forms_are_refused_by_name(header, tmp_path):
    save_result(tmp_path / "e", "Extractor", {}, header)
    for read in (extractor_header, load_extractor):
        with pytest.raises(ResultFileError, match=r"/e: not an extractor of this version"):
            read(tmp_path / "e")
