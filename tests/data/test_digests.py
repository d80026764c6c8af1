"""Digests against hashlib over bytes written out here, and against those that files of earlier versions hold."""

import hashlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from cortex_fast.data import digests


def sha(*parts):
    return hashlib.sha256(b"".join(part.encode() if isinstance(part, str) else part for part in parts)).hexdigest()


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


A = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
STATE = {
    "b": A.transpose(0, 2),
    "a": torch.tensor(True),
    "c": torch.arange(3).to(torch.bfloat16),
    "e": torch.empty(0, 2),
}


def test_a_states_digest_is_of_names_dtypes_shapes_and_values_in_the_names_order():
    state = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "n": torch.tensor(7)}
    expected = sha("about", "n torch.int64 []\n", struct.pack("<q", 7), "w torch.float32 [2, 2]\n", floats(1, 3, 2, 4))
    assert digests.of_state(state, "about") == expected[:16]


def test_parts_count_in_order_by_shape_dtype_and_value():
    expected = sha("['w']", "[2] torch.float32", floats(1, 2))
    assert digests.of_parts([["w"], torch.tensor([1.0, 2.0])]) == expected
    assert digests.of_parts([torch.tensor([1.0, 2.0]), ["w"]]) != expected


def test_texts_values_and_files(tmp_path):
    assert digests.of_text("ü") == digests.of_text("ü".encode()) == sha("ü".encode())
    assert digests.of_values(torch.tensor([2, 0])) == sha(struct.pack("<2q", 2, 0))[:16]
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 3_000_000)  # more than is read at a time
    digest = digests.of_files([tmp_path / "one", tmp_path / "two"])
    assert digest == sha(b"one" * 3_000_000, b"two" * 3_000_000)[:16]


def test_digests_in_files_of_earlier_versions_stay():
    """Made by the functions that this module took the place of."""
    assert (digests.of_state(STATE), digests.of_state(STATE, "about")) == ("e7ddb3d57910763b", "370ff91801092dd9")
    assert digests.of_parts(["b", torch.tensor(3)]) == (
        "133b00cb0e7166652e77e6cf5e981c989a33bddbdb37a076263e5d751d94b991"
    )
    tokens = (torch.arange(8) % 3).view(2, 2, 2)
    assert digests.of_images(A[0], tokens.to(torch.uint16), torch.tensor([0, 1])) == "80c3d29fa3ac85d7"
    assert digests.seed_of(3, "order", 5) == 7972531318639447949


def test_dtypes_do_not_change_the_digest_of_a_data_set():
    tokens, labels = (torch.arange(8) % 3).view(2, 2, 2), torch.tensor([0, 1])
    expected = digests.of_images(A[0], tokens, labels)
    assert digests.of_images(A[0].double(), tokens.to(torch.uint16), labels.int()) == expected
    for changed in ((A[1], tokens, labels), (A[0], tokens.flip(0), labels), (A[0], tokens, labels.flip(0))):
        assert digests.of_images(*changed) != expected


@pytest.mark.parametrize(
    "same",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
        lambda x: torch.stack([x, x], dim=-1)[..., 1],
        lambda x: torch.complex(x, -x).conj().imag,  # lazily negated
        lambda x: x.clone().requires_grad_(True),
        lambda x: torch.nn.Parameter(x),
    ],
    ids=["channels last", "transposed", "every other", "negated", "gradient", "parameter"],
)
def test_the_layout_in_memory_does_not_matter(same):
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    for digest in (digests.of_values, lambda t: digests.of_parts([t]), lambda t: digests.of_state({"x": t})):
        assert digest(same(x)) == digest(x) != digest(-x)


def test_tensors_larger_than_a_piece_strided_or_not():
    x = torch.arange(3 << 20, dtype=torch.int32).view(3, 1 << 20)
    assert digests.of_values(x) == sha(x.numpy().tobytes())[:16]
    assert digests.of_values(x.T) == sha(x.numpy().T.tobytes())[:16]


def test_values_inside_containers_count_and_addresses_do_not():
    """What modules give as extra state may be anything; repr leaves out most values of large tensors."""
    large = torch.zeros(10_000)
    changed = large.index_fill(0, torch.tensor(5000), 1.0)
    for wrap in (
        lambda x: {"x": x},
        lambda x: [3, (x,)],
        lambda x: {"x": x.numpy()},
        lambda x: io.BytesIO(x.numpy().tobytes()),
        lambda x: x.numpy(),
    ):
        assert digests.of_parts([wrap(large)]) == digests.of_parts([wrap(large.clone())])
        assert digests.of_parts([wrap(large)]) != digests.of_parts([wrap(changed)])
    assert digests.of_parts([object()]) == digests.of_parts([object()])
    assert digests.of_parts([np.float64(1)]) != digests.of_parts([np.float64(2)])


def test_no_other_module_computes_digests():
    package = Path(digests.__file__).parents[1]
    makers = [path for path in package.rglob("*.py") if re.search(r"\b(hashlib|blake2|crc32)\b", path.read_text())]
    assert makers == [Path(digests.__file__)]


def test_a_digest_of_a_files_beginning_can_be_continued(tmp_path):
    (tmp_path / "tokens").write_bytes(b"sampled" * 1_000_000 + b"not yet")
    running = digests.begun(tmp_path / "tokens", 7_000_000)
    running.update(b"more")
    assert running.hexdigest() == sha(b"sampled" * 1_000_000, b"more")
    assert digests.begun().hexdigest() == sha("")


def test_checksums_of_states_and_texts():
    state = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "n": torch.tensor(7), "e": torch.empty(0, 2)}
    expected = b"e torch.float32 [0, 2]\nn torch.int64 []\n" + struct.pack("<q", 7) + b"w torch.float32 [2, 2]\n"
    assert digests.crc_of_state(state) == zlib.crc32(expected + floats(1, 3, 2, 4))
    assert digests.crc_of_text("ü") == zlib.crc32("ü".encode())
