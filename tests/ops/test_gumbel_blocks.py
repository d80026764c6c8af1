"""What only the Triton kernels of gumbel_codebook have: blocks, parts of a row, row statistics, and the tuner."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cortex_fast.kernels import triton as triton_kernels
from cortex_fast.kernels.row_stats import RowStats
from cortex_fast.kernels.triton import launching
from cortex_fast.ops import gumbel_codebook, gumbel_codebook_step, gumbel_codebook_with_row_stats, random_stream
from cortex_fast.ops.backends import BackendUnavailableError
from cortex_fast.tuning import fastest, tune
from tests.ops.backends_under_test import WHY_NO_TRITON, random, same_bits
from tests.ops.conftest import triton_on_cpu_tensors

if WHY_NO_TRITON is not None:
    pytest.skip(WHY_NO_TRITON, allow_module_level=True)

from cortex_fast.kernels.triton import gumbel_codebook as forward_kernels
from cortex_fast.kernels.triton import gumbel_gradient, gumbel_tiles, tiles


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    """Where there is a GPU the kernels run on it, with these tensors of the CPU."""
    with contextlib.nullcontext() if triton_kernels.INTERPRETED else triton_on_cpu_tensors():
        yield


@pytest.fixture
def table(tmp_path, monkeypatch) -> Iterator[dict[str, tiles.Block]]:
    """The GPU's table of blocks, as if the CPU were one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    blocks: dict[str, tiles.Block] = {}
    monkeypatch.setattr(tiles, "tuned", lambda device: blocks)
    for module in (forward_kernels, gumbel_gradient):
        monkeypatch.setattr(module, "block_of", lambda _device, choice: tiles.block_of(torch.device("cuda"), choice))
    yield blocks


@pytest.mark.parametrize("codes", [95, 300])
def test_other_blocks_give_the_same(table, codes):
    """Rows and codes over the edges of small blocks, merged parts of a row, a penalty, many and few programs."""
    logits, codebook = random(2, 9, codes) * 3, random(codes, 40, seed=1)
    upstream, anchor = random(2, 9, 40, seed=2), torch.arange(18).view(2, 9)
    gumbel = random(2, 9, codes, seed=3)
    select, scan, update = (
        forward_kernels.select_choice(18),
        forward_kernels.scan_choice(18, 40),
        gumbel_gradient.update_choice(18, 40),
    )
    results = []
    for size in (16, 1024):
        table[select.key] = select.default | {"CODES": size}
        table[scan.key] = scan.default | {"CODES": size, "CHANNELS": 16 if size == 16 else 64}
        table[update.key] = update.default | {"CODES": size, "ROWS": 16 if size == 16 else 64}
        noise = {"tau": 0.7, "gumbel": gumbel}
        _, hard = gumbel_codebook(logits, codebook, **noise, impl="triton")
        soft, index, row_stats = gumbel_codebook_with_row_stats(logits, codebook, **noise, hard=False, impl="triton")
        stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        gumbel_codebook_step(
            stepped, codebook, upstream, lr=0.1, eps=0.05, moments=moments, anchor=anchor, stay_penalty=0.5,
            row_stats=row_stats, **noise, impl="triton",
        )  # fmt: skip
        assert torch.equal(hard, index)
        results.append([hard, soft, row_stats.largest_score, row_stats.log_denominator, stepped, *moments])
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-5)
    assert forward_kernels.parts_of(codes, 16, 18, 2048)[0] > 1


@pytest.mark.parametrize(("codes", "tile", "programs"), [(1, 32, 1), (16384, 32, 1), (16384, 1024, 16000), (95, 16, 5)])
def test_parts_cover_the_codes(codes, tile, programs):
    parts, length = forward_kernels.parts_of(codes, tile, programs, 512)
    assert parts >= 1 and length % tile == 0 and (parts - 1) * length < codes <= parts * length
    assert parts == 1 or parts * programs <= 2 * 512


def test_row_stats_change_no_step():
    logits, codebook, upstream = random(1, 3, 70), random(70, 5, seed=1), random(1, 3, 5, seed=2)
    _, _, row_stats = gumbel_codebook_with_row_stats(logits, codebook, seed=4, impl="triton")
    strided = RowStats(*(torch.stack([tensor, tensor + 1], dim=1)[:, 0] for tensor in row_stats))
    results = []
    for statistics in (None, row_stats, strided):
        stepped = logits.clone()
        gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, row_stats=statistics, impl="triton")
        results.append([stepped])
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])
    scores, soft_embedding = row_stats.largest_score, row_stats.soft_embedding
    for wrong in (
        row_stats._replace(soft_embedding=soft_embedding[..., 1:]),
        row_stats._replace(largest_score=scores[:, :2]),
        row_stats._replace(largest_score=scores.long()),
        row_stats._replace(log_denominator=scores.double()),
        row_stats._replace(selected=row_stats.selected.int()),
        row_stats[:3],
    ):
        with pytest.raises((TypeError, ValueError), match=r"^row_stats.*: expected"):
            gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, row_stats=wrong, impl="triton")


def test_a_settled_row_does_not_move():
    """y is 1 in the last bit: the formula's gradient is 0, and Adam would make a whole step of a rounding error."""
    logits, codebook, upstream = random(1, 4, 40), random(40, 300, seed=1) * 30, random(1, 4, 300, seed=2)
    logits[..., 7] = 60
    stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
    gumbel = torch.zeros_like(logits)
    gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, eps=1e-30, moments=moments, gumbel=gumbel, impl="triton")
    assert torch.equal(stepped[..., 7], logits[..., 7]) and not moments[0][..., 7].any()


def test_no_channels_and_another_default_dtype():
    logits, codebook = random(1, 3, 20), random(20, 3, seed=1) + 20
    _, index = gumbel_codebook(logits, codebook[:, :0], seed=4, impl="triton")
    assert torch.equal(index, gumbel_codebook(logits, codebook, seed=4, impl="reference")[1])
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        stepped, upstream = logits.clone(), random(1, 3, 3, seed=2)
        gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, impl="triton")
        drawn = random_stream.gumbel(1, torch.tensor([0]), torch.tensor([0]), 2, 5, impl="triton")
    finally:
        torch.set_default_dtype(before)
    assert drawn.dtype == torch.float32
    expected = logits.clone()
    gumbel_codebook_step(expected, codebook, upstream, lr=0.1, seed=4, impl="reference")
    torch.testing.assert_close(stepped, expected, rtol=0, atol=5e-5)


def test_numbers_of_adam_are_rounded_once():
    """Triton takes Python's floats as float32, the interpreter does not: 1 - beta must not be taken from one."""
    logits, codebook, upstream = random(1, 2, 30), random(30, 4, seed=1), random(1, 2, 4, seed=2)
    gumbel, launched = torch.zeros_like(logits), []
    launch = launching.launch

    def as_float32(argument):
        if isinstance(argument, tuple):
            return type(argument)(*map(as_float32, argument))
        return float(torch.tensor(argument, dtype=torch.float32)) if type(argument) is float else argument

    def rounded(kernel, grid, device_of, /, **options):
        launched.append(kernel)
        launch(kernel, grid, device_of, **{name: as_float32(option) for name, option in options.items()})

    results = []
    for impl in ("triton", "reference"):
        stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launching, "launch", rounded)
            gumbel_codebook_step(
                stepped, codebook, upstream, lr=0.1, eps=0.05, betas=(0.9, 0.99999), moments=moments, gumbel=gumbel,
                impl=impl,
            )  # fmt: skip
        results.append([stepped, *moments])
    assert launched
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("hard", "with_row_stats"), [(True, False), (True, True), (False, False)])
def test_opcheck(hard, with_row_stats):
    logits, codebook = random(1, 3, 5).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    schedule, checks = (
        torch.tensor([0.7, 3, 0.1, 2]).double(),
        ("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    forward = {
        "logits": logits,
        "codebook": codebook,
        "tau": 1.0,
        "seed": 3,
        "draw": 1,
        "item_ids": None,
        "hard": hard,
        "gumbel": None,
        "schedule": schedule,
        "with_row_stats": with_row_stats,
        "impl": "triton",
    }
    torch.library.opcheck(torch.ops.cortex_fast.gumbel_codebook.default, (), forward, test_utils=checks)


def test_opcheck_of_the_step():
    logits, codebook, upstream = random(1, 3, 5), random(5, 4, seed=1), random(1, 3, 4, seed=2)
    arguments = {
        "logits": logits,
        "codebook": codebook,
        "upstream": upstream,
        "lr": 0.1,
        "tau": 0.7,
        "seed": 3,
        "draw": 1,
        "item_ids": None,
        "moments": [torch.zeros_like(logits), torch.zeros_like(logits)],
        "step_count": 2,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "gumbel": None,
        "anchor": torch.tensor([[0, 4, 1]]),
        "stay_penalty": 0.5,
        "schedule": None,
        "row_stats": [torch.rand(1, 3), torch.rand(1, 3), torch.tensor([[0, 1, 2]]), torch.rand(1, 3, 4)],
        "impl": "triton",
    }
    torch.library.opcheck(torch.ops.cortex_fast.gumbel_codebook_step.default, (), arguments)


@pytest.mark.parametrize(("set_to", "expected"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_products_are_as_exact_as_torchs(set_to, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: set_to)
    assert gumbel_tiles.precision() == expected
    monkeypatch.setattr(torch.version, "hip", "7")
    assert gumbel_tiles.precision() in ("ieee", "bf16x6", "bf16x3")


def test_the_fastest_block_is_stored():
    choice = tiles.choice("update", [200, 256, "ieee"], {"ROWS": 16, "num_warps": 4}, ROWS=(16, 32), num_warps=(4, 8))
    assert choice.key == "update 256 256 ieee" and len(choice.others) == 4
    table: dict[str, tiles.Block] = {}
    times = {(16, 4): 5.0, (32, 4): 3.0, (16, 8): 6.0, (32, 8): 4.0}
    measured = []

    def measure(call):
        call()
        block = table[choice.key]
        return times[block["ROWS"], block["num_warps"]]

    tuned = fastest(choice, lambda: measured.append(table[choice.key]), table, measure)
    assert table == {choice.key: {"ROWS": 32, "num_warps": 4}} and tuned.block == table[choice.key]
    assert (tuned.time, tuned.default_time) == (3.0, 5.0) and len(measured) == 5
    times |= {(32, 4): 4.95, (32, 8): 4.95}  # by chance
    assert fastest(choice, lambda: None, table, measure).block == choice.default == table[choice.key]


def test_a_block_that_fails_is_not_stored():
    choice, table = tiles.choice("scan", [], {"ROWS": 16}, ROWS=(64,)), {}

    def measure(call):
        if table["scan"]["ROWS"] == 64:
            raise RuntimeError("the compiler gave up")
        return 1.0

    with pytest.raises(RuntimeError):
        fastest(choice, lambda: None, table, measure)
    assert table["scan"] == {"ROWS": 16}


def test_a_block_without_room_is_skipped():
    from triton.runtime.errors import OutOfResources

    choice, table = tiles.choice("scan", [], {"ROWS": 16}, ROWS=(16, 64)), {}

    def measure(call):
        if table["scan"]["ROWS"] == 64:
            raise OutOfResources(1, 0, "shared memory")
        return 1.0

    assert fastest(choice, lambda: None, table, measure).block == {"ROWS": 16} == table["scan"]


def test_the_table_is_read_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tiles.table_file()
    assert tiles.read(file) == {}
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"some GPU": {"scan 16": {"ROWS": 16}}}))
    assert tiles.read(file) == {"some GPU": {"scan 16": {"ROWS": 16}}}
    for wrong in (
        "{",
        "[]",
        '{"some GPU": {"scan 16": {"ROWS": "16"}}}',
        '{"some GPU": {"scan 16": {"ROWS": -1}}}',
        '{"some GPU": {"scan 16": {"ROWS": 3}}}',
    ):
        file.write_text(wrong)
        with pytest.warns(UserWarning, match="triton-tiles"):
            assert tiles.read(file) == {}


def test_blocks_of_another_version_are_not_used(table):
    choice = forward_kernels.select_choice(18)
    table[choice.key] = {"ROWS": 4}
    assert choice.key == "select 32"
    assert tiles.block_of(torch.device("cuda"), choice) == choice.default
    assert tiles.block_of(torch.device("cpu"), replace(choice, default={"ROWS": 8})) == {"ROWS": 8}


def test_without_a_gpu_there_is_nothing_to_tune():
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailableError, match="no GPU"):
            tune(16, 64, 8)
    with pytest.raises(ValueError, match=r"^rows:"):
        tune(0)
