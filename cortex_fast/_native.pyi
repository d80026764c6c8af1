from collections.abc import Sequence
from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    build_type: str
    openmp: bool

def build_info() -> BuildInfo: ...
def token_saliency(
    *, grads: int, sizes: Sequence[int], strides: Sequence[int], reduction: str, out: int, threads: int
) -> None: ...
def concept_counts_uint8(
    *,
    tsv: int,
    tsv_strides: Sequence[int],
    tokens: int,
    token_strides: Sequence[int],
    labels: int,
    sizes: Sequence[int],
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    per: str,
    counts: int,
    threads: int,
) -> None: ...

concept_counts_int16 = concept_counts_uint8
concept_counts_uint16 = concept_counts_uint8
concept_counts_int32 = concept_counts_uint8
concept_counts_int64 = concept_counts_uint8
