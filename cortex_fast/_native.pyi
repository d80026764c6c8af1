from collections.abc import Sequence
from types import ModuleType
from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    build_type: str
    openmp: bool
    cuda: str | None  # the compiler and what it built for
    why_no_cuda: str | None

cuda: ModuleType  # where build_info has it

def build_info() -> BuildInfo: ...
def levels() -> list[str]: ...
def advise_large_pages(memory: int, bytes: int) -> None: ...
def random_stream(
    *,
    stream: str,
    seed: int,
    items: int,
    draws: int,
    rows: int,
    length: int,
    sizes: Sequence[int],
    out: int,
    threads: int,
    level: str,
) -> None: ...
def gumbel_codebook(
    *,
    logits: int,
    codebook: int,
    tau: float,
    seed: int,
    draw: int,
    item_ids: int,
    hard: bool,
    gumbel: int,
    sizes: Sequence[int],
    embedding: int,
    index: int,
    threads: int,
    level: str,
) -> None: ...
def gumbel_codebook_backward(
    *,
    upstream: int,
    logits: int,
    codebook: int,
    tau: float,
    seed: int,
    draw: int,
    item_ids: int,
    hard: bool,
    gumbel: int,
    index: int,
    sizes: Sequence[int],
    grad_logits: int,
    grad_codebook: int,
    threads: int,
    level: str,
) -> None: ...
def gumbel_codebook_step(
    *,
    logits: int,
    codebook: int,
    upstream: int,
    lr: float,
    tau: float,
    seed: int,
    draw: int,
    item_ids: int,
    moments: Sequence[int],
    step_count: int,
    betas: Sequence[float],
    eps: float,
    gumbel: int,
    anchor: int,
    stay_penalty: float,
    sizes: Sequence[int],
    threads: int,
    level: str,
) -> None: ...
def conv3x3(
    *,
    x: int,
    bias: int,
    winograd: int,
    relu: bool,
    pool: bool,
    padding: int,
    sizes: Sequence[int],
    y: int,
    mask: int,
    threads: int,
    level: str,
) -> None: ...
def conv3x3_backward(
    *,
    upstream: int,
    mask: int,
    winograd_transposed: int,
    pool: bool,
    padding: int,
    sizes: Sequence[int],
    gradient: int,
    threads: int,
    level: str,
) -> None: ...
def conv3x3_filters(
    *, weight: int, transposed: bool, sizes: Sequence[int], strides: Sequence[int], out: int, threads: int
) -> None: ...
def gather_error(
    *, embedding: int, tokens: int, codebook: int, sizes: Sequence[int], error: int, threads: int, level: str
) -> None: ...
def nearest_code(*, z: int, codebook: int, sizes: Sequence[int], index: int, threads: int, level: str) -> None: ...
def smoothgrad_noise_float32(
    *,
    x: int,
    sigma: int,
    num_samples: int,
    seed: int,
    order: int,
    group_starts: int,
    group_items: int,
    antithetic: bool,
    first_sample: int,
    normals: int,
    sizes: Sequence[int],
    out: int,
    threads: int,
    level: str,
) -> None: ...

smoothgrad_noise_bfloat16 = smoothgrad_noise_float32
smoothgrad_noise_float16 = smoothgrad_noise_float32

def token_saliency_float32(
    *, grads: int, reduction: str, sizes: Sequence[int], strides: Sequence[int], out: int, threads: int, level: str
) -> None: ...

token_saliency_bfloat16 = token_saliency_float32
token_saliency_float16 = token_saliency_float32

def concept_counts_uint8(
    *,
    tsv: int,
    tokens: int,
    labels: int,
    top_n: int,
    num_concepts: int,
    codebook_size: int,
    per: str,
    sizes: Sequence[int],
    tsv_strides: Sequence[int],
    token_strides: Sequence[int],
    counts: int,
    threads: int,
) -> None: ...

concept_counts_int16 = concept_counts_uint8
concept_counts_uint16 = concept_counts_uint8
concept_counts_int32 = concept_counts_uint8
concept_counts_int64 = concept_counts_uint8
