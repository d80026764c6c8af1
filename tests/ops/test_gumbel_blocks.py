"""What only the Triton kernels of gumbel_codebook have: blocks, parts of a row, what is kept, and the tuner."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cortex_fast.kernels import triton as triton_kernels
from cortex_fast.kernels.triton import launching
from cortex_fast.ops import gumbel_codebook, gumbel_codebook_step, gumbel_codebook_with_row_stats, random_stream
from cortex_fast.ops.backends import BackendUnavailableError
from cortex_fast.tuning import fastest, tune
from tests.ops.backends_under_test import WHY_NO_TRITON, random, same_bits
from tests.ops.conftest import compiled_triton

if WHY_NO_TRITON is not None:
    pytest.skip(WHY_NO_TRITON, allow_module_level=True)

from cortex_fast.kernels.triton import gumbel_codebook as forward_kernels
from cortex_fast.kernels.triton import gumbel_codebook_backward as backward_kernels
from cortex_fast.kernels.triton import gumbel_tiles, tiles


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    """Where there is a GPU the kernels run there, on these tensors of the CPU."""
    with contextlib.nullcontext() if triton_kernels.INTERPRETED else compiled_triton():
        yield


@pytest.fixture
def table(tmp_path, monkeypatch) -> Iterator[dict[str, tiles.Block]]:
    """The GPU's table of blocks, as if the CPU were one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found: dict[str, tiles.Block] = {}
    monkeypatch.setattr(tiles, "tuned", lambda device: found)
    for module in (forward_kernels, backward_kernels):
        monkeypatch.setattr(module, "block_of", lambda _device, choice: tiles.block_of(torch.device("cuda"), choice))
    yield found


@pytest.mark.parametrize("codes", [95, 300])
def test_other_blocks_give_the_same(table, codes):
    """Rows and codes over the edges of small blocks, parts of a row put together, a price, many and few programs."""
    logits, codebook = random(2, 9, codes) * 3, random(codes, 40, seed=1)
    upstream, anchor = random(2, 9, 40, seed=2), torch.arange(18).view(2, 9)
    given = random(2, 9, codes, seed=3)
    select, scan, update = (
        forward_kernels.select_choice(18),
        forward_kernels.scan_choice(18, 40),
        backward_kernels.update_choice(18, 40),
    )
    results = []
    for size in (16, 1024):
        table[select.key] = select.default | {"CODES": size}
        table[scan.key] = scan.default | {"CODES": size, "CHANNELS": 16 if size == 16 else 64}
        table[update.key] = update.default | {"CODES": size, "ROWS": 16 if size == 16 else 64}
        noise = {"tau": 0.7, "gumbel": given}
        _, hard = gumbel_codebook(logits, codebook, **noise, impl="triton")
        soft, index, kept = gumbel_codebook_with_row_stats(logits, codebook, **noise, hard=False, impl="triton")
        stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        gumbel_codebook_step(
            stepped, codebook, upstream, lr=0.1, eps=0.05, moments=moments, anchor=anchor, stay_penalty=0.5,
            row_stats=kept, **noise, impl="triton",
        )  # fmt: skip
        assert torch.equal(hard, index)
        results.append([hard, soft, kept[..., :2], stepped, *moments])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert forward_kernels.parts_of(codes, 16, 18, 2048)[0] > 1


@pytest.mark.parametrize(("codes", "tile", "programs"), [(1, 32, 1), (16384, 32, 1), (16384, 1024, 16000), (95, 16, 5)])
def test_parts_cover_the_codes(codes, tile, programs):
    parts, each = forward_kernels.parts_of(codes, tile, programs, 512)
    assert parts >= 1 and each % tile == 0 and (parts - 1) * each < codes <= parts * each
    assert parts == 1 or parts * programs <= 2 * 512


def test_what_is_kept_changes_no_step():
    logits, codebook, upstream = random(1, 3, 70), random(70, 5, seed=1), random(1, 3, 5, seed=2)
    _, _, kept = gumbel_codebook_with_row_stats(logits, codebook, seed=4, impl="triton")
    results = []
    for given in (None, kept):
        stepped = logits.clone()
        gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, row_stats=given, impl="triton")
        results.append([stepped])
    assert same_bits(*results)
    apart = torch.stack([kept, kept + 1], dim=1)[:, 0]
    stepped = logits.clone()
    gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, row_stats=apart, impl="triton")
    assert same_bits([stepped], results[0])
    for wrong in (kept[..., 1:], kept[:, :2], kept.long(), kept.double()):
        with pytest.raises((TypeError, ValueError), match=r"^row_stats:"):
            gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, seed=4, row_stats=wrong, impl="triton")


def test_a_row_that_has_settled_keeps_still():
    """y is 1 in the last bit: the formula's gradient is 0, and Adam would make a whole step of a rounding error."""
    logits, codebook, upstream = random(1, 4, 40), random(40, 300, seed=1) * 30, random(1, 4, 300, seed=2)
    logits[..., 7] = 60
    stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
    given = torch.zeros_like(logits)
    gumbel_codebook_step(stepped, codebook, upstream, lr=0.1, eps=1e-30, moments=moments, gumbel=given, impl="triton")
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
    given, launched = torch.zeros_like(logits), []
    launch = launching.launch

    def rounded(kernel, grid, device_of, /, *arguments, **options):
        launched.append(kernel)
        as_float32 = [float(torch.tensor(a, dtype=torch.float32)) if type(a) is float else a for a in arguments]
        launch(kernel, grid, device_of, *as_float32, **options)

    results = []
    for impl in ("triton", "reference"):
        stepped, moments = logits.clone(), (torch.zeros_like(logits), torch.zeros_like(logits))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launching, "launch", rounded)
            gumbel_codebook_step(
                stepped, codebook, upstream, lr=0.1, eps=0.05, betas=(0.9, 0.99999), moments=moments, gumbel=given,
                impl=impl,
            )  # fmt: skip
        results.append([stepped, *moments])
    assert launched
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("hard", "keep"), [(True, False), (True, True), (False, False)])
def test_opcheck(hard, keep):
    logits, codebook = random(1, 3, 5).requires_grad_(), random(5, 4, seed=1).requires_grad_()
    schedule, checks = (
        torch.tensor([0.7, 3, 0.1, 2]).double(),
        ("test_schema", "test_faketensor", "test_autograd_registration"),
    )
    forward = (logits, codebook, None, None, schedule, 1.0, 3, 1, hard, keep, "triton")
    torch.library.opcheck(torch.ops.cortex_fast.gumbel_codebook.default, forward, test_utils=checks)


def test_opcheck_of_the_step():
    logits, codebook, upstream = random(1, 3, 5), random(5, 4, seed=1), random(1, 3, 4, seed=2)
    anchor, kept = torch.tensor([[0, 4, 1]]), torch.rand(1, 3, 7)
    kept[..., 2] = torch.tensor([0, 1, 2], dtype=torch.int32).view(torch.float32)
    given = (codebook, upstream, None, None, None, kept, anchor, 0.5, 0.7, 3, 1, 0.1, [0.9, 0.999], 1e-8, 2, "triton")
    arguments = (logits, torch.zeros_like(logits), torch.zeros_like(logits), *given)
    torch.library.opcheck(torch.ops.cortex_fast.gumbel_codebook_step.default, arguments)


@pytest.mark.parametrize(("set_to", "expected"), [("highest", "ieee"), ("high", "tf32x3"), ("medium", "tf32")])
def test_products_are_as_exact_as_torchs(set_to, expected, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: set_to)
    assert gumbel_tiles.precision() == expected
    monkeypatch.setattr(torch.version, "hip", "7")
    assert gumbel_tiles.precision() in ("ieee", "bf16x6", "bf16x3")


def test_the_fastest_block_stays():
    choice = tiles.choice("update", [200, 256, "ieee"], {"ROWS": 16, "num_warps": 4}, ROWS=(16, 32), num_warps=(4, 8))
    assert choice.key == "update 256 256 ieee" and len(choice.others) == 4
    table: dict[str, tiles.Block] = {}
    times = {(16, 4): 5.0, (32, 4): 3.0, (16, 8): 6.0, (32, 8): 4.0}
    asked = []

    def measure(call):
        call()
        block = table[choice.key]
        return times[block["ROWS"], block["num_warps"]]

    found = fastest(choice, lambda: asked.append(table[choice.key]), table, measure)
    assert table == {choice.key: {"ROWS": 32, "num_warps": 4}} and found.block == table[choice.key]
    assert (found.time, found.default_time) == (3.0, 5.0) and len(asked) == 5
    times |= {(32, 4): 4.95, (32, 8): 4.95}  # by chance
    assert fastest(choice, lambda: None, table, measure).block == choice.default == table[choice.key]


def test_a_block_that_fails_is_not_kept():
    choice, table = tiles.choice("scan", [], {"ROWS": 16}, ROWS=(64,)), {}

    def measure(call):
        if table["scan"]["ROWS"] == 64:
            raise RuntimeError("the compiler gave up")
        return 1.0

    with pytest.raises(RuntimeError):
        fastest(choice, lambda: None, table, measure)
    assert table["scan"] == {"ROWS": 16}


def test_a_block_without_room_is_passed_over():
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
