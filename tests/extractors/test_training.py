"""Training: resumed to the same bits, by two processes as by one, in mixed precision, and its errors."""

import dataclasses
import errno
import math
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from cortex_fast import ResultFileError, TokenStore
from cortex_fast.extractors import TrainingRecipe, accuracy, build, mean_loss, train_extractor
from cortex_fast.extractors.checkpoints import save_checkpoint
from cortex_fast.extractors.files import extractor_header, load_extractor
from cortex_fast.extractors.fitting import best_of, checkpoint_of, fit

CODEBOOK = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


def images(count: int = 45):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, (count, 4, 4), generator=generator)
    return tokens, torch.arange(count) % 3


def store(count: int = 45) -> TokenStore:
    return TokenStore(*images(count), CODEBOOK, ("a", "b", "c"))


def state(extractor: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in extractor.state_dict().items()}


def same_bits(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_recipe_is_the_published_one():
    assert dataclasses.asdict(TrainingRecipe()) == {
        "epochs": 80,
        "batch_size": 512,
        "lr": 1e-3,
        "weight_decay": 1e-4,
        "step_epochs": 20,
        "gamma": 0.1,
    }


def test_training_is_adam_with_torchs_step_schedule():
    """Against a plain loop over whole batches, so that the order of images does not matter."""
    tokens, labels = images(40)
    ours, theirs = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double(), nn.Linear(128, 3).double()
    theirs.load_state_dict(ours[1].state_dict())
    recipe = TrainingRecipe(epochs=6, batch_size=40, lr=0.02, weight_decay=0.01, step_epochs=2, gamma=0.3)
    losses = []
    codebook = CODEBOOK.double()
    train_extractor(ours, codebook, tokens, labels, recipe, after_epoch=lambda epoch, loss: losses.append(loss))
    adam = torch.optim.Adam(theirs.parameters(), lr=0.02, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(adam, 2, 0.3)
    for loss in losses:
        x = codebook[tokens].permute(0, 3, 1, 2).flatten(1)
        wanted = nn.functional.cross_entropy(theirs(x), labels)
        adam.zero_grad()
        wanted.backward()
        adam.step()
        schedule.step()
        assert math.isclose(loss, wanted.item(), rel_tol=1e-12)
    torch.testing.assert_close(ours[1].weight, theirs.weight, rtol=1e-9, atol=1e-12)


class Stop(Exception):  # noqa: N818 (an interruption, not an error)
    pass


@pytest.mark.parametrize(("name", "after"), [("re", 1), ("re", 4), ("re", 10), ("ce", 3), ("te", 3)])
def test_resumed_to_the_same_bits(name, after, tmp_path):
    tokens, labels = images()
    recipe = TrainingRecipe(epochs=3 if name == "re" else 1, batch_size=12, step_epochs=1)  # 4 steps an epoch
    path = tmp_path / "run.pt"

    def fresh():
        torch.manual_seed(0)
        return build(name, num_classes=3, in_channels=8, width=16, grid=4).to(memory_format=torch.channels_last)

    whole = []
    once = fresh()
    train_extractor(once, CODEBOOK, tokens, labels, recipe, after_epoch=lambda epoch, loss: whole.append(loss))
    steps = 0

    def stop(count: int) -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise Stop

    parts = []
    settings = {"checkpoint": path, "every": 1, "after_epoch": lambda epoch, loss: parts.append(loss)}
    with pytest.raises(Stop):
        train_extractor(fresh(), CODEBOOK, tokens, labels, recipe, tick=stop, **settings)
    torch.manual_seed(99)  # the state of another process
    again = build(name, num_classes=3, in_channels=8, width=16, grid=4).to(memory_format=torch.channels_last)
    train_extractor(again, CODEBOOK, tokens, labels, recipe, **settings)
    assert same_bits(state(once), state(again)) and parts == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.pt"]


def test_another_run_and_a_damaged_checkpoint_are_refused(tmp_path):
    tokens, labels = images()
    path = tmp_path / "run.pt"
    extractor = build("re", num_classes=3, in_channels=8, width=16, grid=4)
    train_extractor(extractor, CODEBOOK, tokens, labels, TrainingRecipe(epochs=1), checkpoint=path)
    for changed, named in (
        ({"recipe": TrainingRecipe(epochs=1, lr=0.5)}, "lr: expected 0.5, got 0.001"),
        ({"seed": 4}, "seed"),
        ({"labels": labels.flip(0)}, "data"),
    ):
        settings = {"recipe": TrainingRecipe(epochs=1), "labels": labels} | changed
        with pytest.raises(ResultFileError, match=rf"run\.pt: .*{named}"):
            train_extractor(extractor, CODEBOOK, tokens, checkpoint=path, **settings)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultFileError, match=r"run\.pt: a truncated or damaged checkpoint"):
        train_extractor(extractor, CODEBOOK, tokens, labels, TrainingRecipe(epochs=1), checkpoint=path)


def test_torchs_random_state_is_neither_used_nor_changed():
    tokens, labels = images()
    extractors = []
    for seed in (1, 2):
        torch.manual_seed(0)
        extractors.append(build("re", num_classes=3, in_channels=8, width=16, grid=4))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train_extractor(extractors[-1], CODEBOOK, tokens, labels, TrainingRecipe(epochs=1, batch_size=16))
        assert torch.equal(before, torch.get_rng_state())
    assert same_bits(*map(state, extractors))


def test_uint16_tokens_train_as_other_integers():
    tokens, labels = images()
    codebook = torch.randn(60_000, 8, generator=torch.Generator().manual_seed(0))
    tokens = tokens + 59_980  # beyond int16
    trained = []
    for stored in (tokens, tokens.to(torch.uint16)):
        torch.manual_seed(0)
        extractor = build("re", num_classes=3, in_channels=8, width=16, grid=4)
        losses = []
        train_extractor(
            extractor,
            codebook,
            stored,
            labels,
            TrainingRecipe(epochs=2),
            after_epoch=lambda e, loss, to=losses: to.append(loss),
        )
        trained.append((state(extractor), losses))
    assert trained[0][1] == trained[1][1] and same_bits(trained[0][0], trained[1][0])


def test_mixed_precision_keeps_float32_weights_and_learns():
    tokens, labels = images()
    extractor = build("re", num_classes=3, in_channels=8, width=16, grid=4)
    losses = []
    recipe = TrainingRecipe(epochs=4, batch_size=16, lr=3e-3)
    train_extractor(
        extractor, CODEBOOK, tokens, labels, recipe, precision="bfloat16", after_epoch=lambda e, x: losses.append(x)
    )
    assert {value.dtype for value in extractor.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]


def test_an_infinite_loss_ends_the_run_without_a_checkpoint(tmp_path):
    tokens, labels = images()
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    extractor[1].bias.data[0] = torch.inf
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train_extractor(extractor, CODEBOOK, tokens, labels, TrainingRecipe(epochs=1), checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "float16"}, "precision"),
        ({"every": 0}, "every"),
        ({"seed": -1}, "seed"),
        ({"labels": torch.zeros(3).long()}, "labels"),
    ],
)
def test_bad_settings_are_named(settings, named):
    tokens, labels = images()
    arguments = {"tokens": tokens, "labels": labels, "recipe": TrainingRecipe(epochs=1)} | settings
    with pytest.raises((TypeError, ValueError), match=rf"^{named}:"):
        train_extractor(nn.Linear(1, 1), CODEBOOK, **arguments)


@pytest.mark.parametrize("setting", ["epochs", "batch_size", "lr", "weight_decay", "step_epochs", "gamma"])
def test_bad_recipes_are_named(setting):
    with pytest.raises(ValueError, match=rf"^{setting}:"):
        TrainingRecipe(**{setting: -1})


# --- several processes


def _plain() -> nn.Module:
    """Without BatchNorm, whose statistics differ between processes on CPUs; float64, for sums in another order."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()


def _train_plain(path: Path, stop_after: int | None = None, checkpoint: Path | None = None) -> None:
    tokens, labels = images(45)  # a last batch of 9: the processes' parts differ in size
    losses, seen = [], 0
    extractor = _plain()

    def tick(count: int) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_after:
            raise Stop

    recipe = TrainingRecipe(epochs=3, batch_size=12, lr=1e-2)
    try:
        train_extractor(
            extractor,
            CODEBOOK.double(),
            tokens,
            labels,
            recipe,
            checkpoint=checkpoint,
            every=2,
            after_epoch=lambda e, loss: losses.append(loss),
            tick=tick,
        )
    except Stop:
        return
    torch.save({"losses": losses, "state": extractor.state_dict()}, path)


def _process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    _train_plain(folder / f"{rank}.pt")
    _train_plain(folder / "never", stop_after=7, checkpoint=folder / "run.pt")
    torch.distributed.barrier()
    _train_plain(folder / f"resumed{rank}.pt", checkpoint=folder / "run.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    _train_plain(tmp_path / "single.pt")
    wanted = torch.load(tmp_path / "single.pt", weights_only=True)
    mp.spawn(_process, (tmp_path,), nprocs=2)
    for name in ("0.pt", "1.pt", "resumed0.pt", "resumed1.pt"):
        got = torch.load(tmp_path / name, weights_only=True)
        torch.testing.assert_close(got["state"], wanted["state"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.tensor(got["losses"][-2:]), torch.tensor(wanted["losses"][-2:]))


# --- from a store to a file


def test_fit_writes_the_extractor_of_least_validation_loss(tmp_path):
    out, lines = tmp_path / "e.safetensors", []
    recipe = TrainingRecipe(epochs=5, batch_size=16, lr=0.1)  # bounces
    fit(store(), out, "re", recipe, width=16, validation=store(30), report=lines.append)
    losses = [float(line.split("validation loss ")[1].split(",")[0]) for line in lines]
    header = extractor_header(out)["fingerprint"]
    assert header["epoch"] == 1 + losses.index(min(losses)) and len(losses) == 5
    again = mean_loss(load_extractor(out), CODEBOOK, *images(30))
    assert math.isclose(again, header["validation_loss"], rel_tol=1e-5)
    assert os.listdir(tmp_path) == ["e.safetensors"]  # noqa: PTH208 (names are enough)


def test_fit_resumes_only_when_asked_and_to_the_same_file(tmp_path):
    recipe = TrainingRecipe(epochs=3, batch_size=16)
    once, out = tmp_path / "once", tmp_path / "e"
    fit(store(), once, "re", recipe, width=16, validation=store(30))

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise Stop

    with pytest.raises(Stop):
        fit(store(), out, "re", recipe, width=16, validation=store(30), report=stop)
    assert not out.exists() and checkpoint_of(out).exists() and best_of(out).exists()
    with pytest.raises(FileExistsError, match="resume"):
        fit(store(), out, "re", recipe, width=16, validation=store(30))
    fit(store(), out, "re", recipe, width=16, validation=store(30), resume=True)
    assert extractor_header(out) == extractor_header(once)
    assert same_bits(state(load_extractor(out)), state(load_extractor(once)))
    lines = []
    fit(store(), out, "re", recipe, width=16, validation=store(30), resume=True, report=lines.append)
    assert lines == [f"{out}: already trained"]


def test_fit_resumes_only_the_same_run(tmp_path):
    """Another extractor, recipe, data or validation is refused by finished and unfinished runs, whose files stay."""
    recipe, settings = TrainingRecipe(epochs=2, batch_size=16), {"width": 16, "validation": store(30), "resume": True}
    finished, stopped = tmp_path / "finished", tmp_path / "stopped"

    def stop(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise Stop

    fit(store(), finished, "re", recipe, **settings)
    with pytest.raises(Stop):
        fit(store(), stopped, "re", recipe, **settings, report=stop)
    before = finished.read_bytes(), checkpoint_of(stopped).read_bytes(), best_of(stopped).read_bytes()
    for change, message in (
        ({"name": "ce"}, "'ce'"),
        ({"width": 32}, "sizes"),
        ({"recipe": TrainingRecipe(epochs=3, batch_size=16)}, "epochs: expected 3, got 2"),
        ({"seed": 1}, "seed: expected 1, got 0"),
        ({"store": store(44)}, "data"),
        ({"validation": store(29)}, "validation"),
        ({"validation": None}, "validation: expected None"),
    ):
        for out in (finished, stopped):
            given = {"store": store(), "out": out, "name": "re", "recipe": recipe, **settings} | change
            with pytest.raises(ResultFileError, match=rf"{out.name}.*: .*another run \(.*{message}"):
                fit(**given)
    assert before == (finished.read_bytes(), checkpoint_of(stopped).read_bytes(), best_of(stopped).read_bytes())


def test_validation_is_judged_by_its_own_codebook_and_must_fit(tmp_path):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    tokens, labels = images(30)
    other = TokenStore(order.argsort()[tokens], labels, CODEBOOK[order], ("a", "b", "c"))  # the same E
    losses = []
    for name, validation in (("first", store(30)), ("second", other)):
        fit(store(), tmp_path / name, "re", TrainingRecipe(epochs=1, batch_size=16), width=16, validation=validation)
        losses.append(extractor_header(tmp_path / name)["fingerprint"]["validation_loss"])
    assert losses[0] == losses[1]
    for off, message in (
        (TokenStore(tokens, labels, CODEBOOK[:, :5], "abc"), "in_channels 8 as in the training store, got 5"),
        (TokenStore(tokens[:, :2, :2], labels, CODEBOOK, "abc"), "grid 4 as in the training store, got 2"),
        (TokenStore(tokens, labels + 1, CODEBOOK, "abcd"), r"labels: expected values in \[0, 3\), got 1 to 3"),
        (store().select(slice(0, 0)), "at least one image"),
    ):
        with pytest.raises(ValueError, match=rf"^validation: .*{message}"):
            fit(store(), tmp_path / "off", "re", TrainingRecipe(epochs=1), width=16, validation=off)
    assert not (tmp_path / "off").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path, extractor = tmp_path / "run.pt", nn.Linear(3, 4)
    optimizer = torch.optim.Adam(extractor.parameters())
    save_checkpoint(path, {}, extractor, optimizer, {})
    before = path.read_bytes()

    def full(content, file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run\.pt"):
        save_checkpoint(path, {}, extractor, optimizer, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_accuracy_counts_the_lower_class_first_where_logits_tie():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 2.0, 2.0]]).expand(len(x), 3)

    tokens, labels = images(30)  # ten of each class
    got = accuracy(Constant(), CODEBOOK, tokens, labels, top=(1, 2, 3))
    assert got == {1: 1 / 3, 2: 2 / 3, 3: 1.0}
    assert accuracy(Constant(), CODEBOOK, tokens, torch.ones(30).long()) == {1: 1.0}
    with pytest.raises(ValueError, match=r"^tokens:"):
        accuracy(Constant(), CODEBOOK, tokens[:0], labels[:0])
