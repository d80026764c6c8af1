"""The benchmark suite's own arithmetic, its baselines, and that its siblings compute what they are compared for."""

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import harness, machine, report
from benchmarks.__main__ import FILES, HOURS
from benchmarks.baselines import published
from benchmarks.harness import Case, Sibling
from benchmarks.machine import Floor
from cortex_fast import ops

CPU = torch.device("cpu")


def cases(operator: str, quick: bool) -> list[Case]:
    return importlib.import_module(f"benchmarks.test_{operator}").cases(quick)


EVERY_SIBLING = [
    pytest.param(case, sibling, id=f"{case.group}-{sibling.name}")
    for operator in FILES
    if operator not in HOURS  # its quick case is smoothgrad's
    for case in cases(operator, quick=True)
    for sibling in case.siblings
    if sibling.name != "torch.compile"  # seconds each
]


@functools.cache
def data_of(case: Case) -> Any:
    """Made once for all its siblings, as the suite does."""
    return case.data(CPU)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(group: str, sibling: str, seconds: list[float], **extra: Any) -> report.Record:
    floor = {"bytes": 10**9, "operations": 0, "floor_seconds": 1.0, "share": 1.0}
    about = {"sibling": sibling, "sizes": "[1]", "peak_bytes": 2**20, "max_error": 1e-7, "agreement": None}
    return {"group": group, "name": "test", "stats": {"data": seconds}, "extra_info": {**floor, **about, **extra}}


def completed() -> list[report.Record]:
    turns = [
        record("a", "native", [1.0, 3.0], floor_seconds=0.6),
        record("a", "reference", [8.0, 8.0], operations=8 * 10**9),
        record("a", "native", [2.0, 2.0], floor_seconds=0.5),
        record("b", "native", [4.0, 4.0], peak_bytes=None, agreement=[0.951, 0.85]),
    ]
    pooled = report.pooled(turns)
    report.complete(pooled)
    return pooled


def test_turns_are_pooled_and_the_best_floor_counts() -> None:
    native, reference, other = completed()
    assert native["stats"] == {"median": 2.0, "iqr": pytest.approx(0.5), "min": 1.0, "rounds": 4}
    assert native["extra_info"]["floor_seconds"] == reference["extra_info"]["floor_seconds"] == 0.5
    assert other["extra_info"]["floor_seconds"] == 1.0


def test_figures_and_ratios_within_a_group() -> None:
    native, reference, other = (pooled["extra_info"] for pooled in completed())
    assert native["ratio"] == {"native": 1.0, "reference": 4.0}
    assert reference["ratio"] == {"native": 0.25, "reference": 1.0}
    assert other["ratio"] == {"native": 1.0}
    assert (native["gb_per_s"], native["gflop_per_s"], native["share_of_floor"]) == (0.5, 0.0, 0.25)
    assert (reference["gb_per_s"], reference["gflop_per_s"], reference["share_of_floor"]) == (0.125, 1.0, 0.0625)


def results() -> dict[str, Any]:
    about = {"machine": "A (R) CPU, AVX2", "cores": 2, "threads": 2, "torch": "2", "date": "2025-01-02T03:04:05"}
    return {
        "fingerprint": {**about, "load": 0.0},
        "rates": {"read": 3e10, "copy": 2e10, "matrix": 1e11},
        "unavailable": [{"group": group, "sibling": "cuda", "reason": "no device " * 20} for group in "ab"],
        "rows": report.rows(completed()),
    }


def test_table_has_a_line_for_each_sibling_within_its_width() -> None:
    lines = report.table(results()).splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    assert lines[1].split() == ["a", "native", "2000.00", "1.00", "0.5", "-", "25%", "1", "1e-07"]
    assert lines[2].split() == ["reference", "8000.00", "4.00", "0.1", "1.0", "6%", "1", "1e-07"]
    assert lines[3].split() == ["b", "native", "4000.00", "1.00", "0.2", "-", "25%", "-", "1e-07", "0.95", "85%"]
    assert sum("Not timed in 2 of the groups: cuda, since no device" in line for line in lines) == 1


def test_titles_leave_the_table_its_width() -> None:
    titled = [case for operator in FILES for case in cases(operator, quick=False)]
    names = [sibling.name for case in titled for sibling in case.siblings]
    titles = max(len(case.group) for case in titled) + 2 + max(map(len, names))
    assert titles + sum(report.COLUMNS.values()) <= report.WIDTH


def test_results_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / report.file_name(results()["fingerprint"], [])
    assert path.name == "a-r-cpu-avx2-2-cores-2025-01-02.json"
    assert report.file_name(results()["fingerprint"], ["x", "quick"]).endswith("-2025-01-02-x-quick.json")
    path.write_text("older")
    report.write(results(), path)
    assert [*tmp_path.iterdir()] == [path]
    assert json.loads(path.read_text()) == results()
    assert sum(line.lstrip().startswith('{"group"') for line in path.read_text().splitlines()) == 2 + 3


@pytest.mark.parametrize(
    ("floor", "seconds"),
    [
        (Floor(600), 2.0),
        (Floor(600, traffic="copy"), 3.0),
        (Floor(600, operations=1000), 2.0),
        (Floor(600, operations=2500), 2.5),
    ],
)
def test_floor_is_the_longer_of_traffic_and_arithmetic(
    monkeypatch: pytest.MonkeyPatch, floor: Floor, seconds: float
) -> None:
    rates = {"read": 300.0, "copy": 200.0}
    monkeypatch.setattr(machine, "traffic_seconds", lambda traffic, size, device: size / rates[traffic])
    monkeypatch.setattr(machine, "matrix_rate", lambda device: 1000.0)
    assert machine.floor_seconds(floor, CPU) == seconds


def test_a_copy_takes_as_many_bytes_as_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def noting(call: Callable[[], torch.Tensor]) -> float:
        call()
        return 1.0

    monkeypatch.setattr(machine, "_best_seconds", noting)
    monkeypatch.setattr(torch, "ones", lambda count, device: moved.append(count) or torch.zeros(count, device=device))
    machine.traffic_seconds("read", 4096, CPU)
    machine.traffic_seconds("copy", 4096, CPU)
    assert moved == [1024, 512]


@pytest.mark.parametrize(("seconds", "expected"), [(1e-6, 200), (0.01, 100), (0.3, 5), (0.7, 2), (30.0, 2)])
def test_rounds(seconds: float, expected: int) -> None:
    assert harness.rounds(seconds) == expected


@pytest.mark.parametrize("mebibytes", [0, 1, 8, 100])
def test_peak_memory_is_exact_to_a_megabyte(mebibytes: int) -> None:
    peak = machine.peak_extra_bytes(lambda: torch.ones(mebibytes * 2**18))
    if peak is None:
        pytest.skip("this system does not tell")
    assert abs(peak - mebibytes * 2**20) <= 2**20


def test_peak_memory_counts_scratch_and_not_what_was_there() -> None:
    held = torch.ones(20 * 2**18)

    def call() -> float:
        return float((held * 2).sum())

    call()  # so that no code is left to load
    peak = machine.peak_extra_bytes(call)
    if peak is None:
        pytest.skip("this system does not tell")
    assert abs(peak - 20 * 2**20) <= 2**20


def test_a_wrong_sibling_is_not_timed() -> None:
    timed = []
    case = Case("operator", "name", "sizes", Floor(1), lambda device: 1.0, ())
    for error in (2.0, float("nan")):
        wrong = Sibling("wrong", timed.append, lambda data, result, error=error: error, tolerance=1.0)
        with pytest.raises(pytest.fail.Exception, match=r"operator name, wrong: error .* exceeds 1e"):
            harness.checked(case, wrong, 1.0)
    assert len(timed) == 2  # the calls that were checked, and no more


@pytest.mark.parametrize(("case", "sibling"), EVERY_SIBLING)
def test_every_sibling_is_right_on_small_sizes(case: Case, sibling: Sibling) -> None:
    data = data_of(case)
    reason = sibling.unavailable(data)
    if reason is not None:
        pytest.skip(reason)
    harness.checked(case, sibling, data)


def test_published_token_saliency_is_the_signed_maximum() -> None:
    grads = random(3, 5, 7, 2, 4)
    expected = grads.numpy().astype(np.float64).sum(axis=1).max(axis=1) / 5
    result = published.token_saliency(grads)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-14)
    torch.testing.assert_close(result.float(), ops.token_saliency(grads, reduction="max", impl="reference"))


def test_published_concept_counts_are_the_operators() -> None:
    tsv, generator = random(12, 4, 4), torch.Generator().manual_seed(1)
    tokens = torch.randint(6, (12, 4, 4), generator=generator)
    labels = torch.randint(3, (12,), generator=generator)
    expected = ops.concept_counts(tsv, tokens, labels, top_n=5, num_concepts=3, codebook_size=6, impl="reference")
    counts = published.concept_counts(tsv, tokens, labels, 5)
    assert [[counts[label][token] for token in range(6)] for label in range(3)] == expected.tolist()


def test_published_noise_is_normal_and_of_its_size() -> None:
    x = random(2, 30, 8, 8)
    torch.manual_seed(0)
    copies = list(published.noisy_copies(x, 0.5, 4))
    torch.manual_seed(0)
    for copy in copies:
        torch.testing.assert_close(copy, x + 0.5 * torch.randn(x.shape))
    assert abs(float((torch.stack(copies) - x).std()) - 0.5) < 0.01


def test_published_gumbel_is_the_inverse_of_its_distribution() -> None:
    uniform = torch.tensor([0.0, 0.01, 0.5, 0.99, 1 - 2.0**-24], dtype=torch.float64)
    g = published.gumbel(uniform)
    torch.testing.assert_close((-(-g).exp()).exp(), uniform, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_published_selection_is_the_operator_with_its_noise(tau: float) -> None:
    logits, codebook, upstream = random(5, 11), random(11, 3, seed=1), random(5, 3, seed=2)
    uniform = torch.rand(5, 11, generator=torch.Generator().manual_seed(3))
    gradients = []
    for select in (
        lambda P: published.select(P, codebook, uniform, tau),
        lambda P: ops.gumbel_codebook(
            P, codebook, tau=tau, gumbel=published.gumbel(uniform.double()), impl="reference"
        )[0],
    ):
        P = logits.clone().requires_grad_()
        E = select(P)
        E.backward(upstream)
        gradients.append((E.detach(), P.grad))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_published_nearest_code_is_the_operators() -> None:
    z, codebook = random(20, 6), random(15, 6, seed=1)
    assert torch.equal(published.nearest_code(z, codebook), ops.nearest_code(z, codebook, impl="reference"))
