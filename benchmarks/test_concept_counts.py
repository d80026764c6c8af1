"""concept_counts on 2,000 images of a 16 x 16 grid: every CPU backend, validated before it is timed.

Floor: one read of the scores and tokens, 1.5 KB an image, and the zeroed counts.
"""

import pytest
import torch

from cortex_fast import ops

IMAGES, CONCEPTS, CODES, TOP_N = 2000, 100, 1024, 20


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_concept_counts(benchmark, impl):
    generator = torch.Generator().manual_seed(0)
    tsv = torch.rand((IMAGES, 16, 16), generator=generator)
    tokens = torch.randint(CODES, (IMAGES, 16, 16), generator=generator)
    labels = torch.randint(CONCEPTS, (IMAGES,), generator=generator)
    arguments = {"top_n": TOP_N, "num_concepts": CONCEPTS, "codebook_size": CODES, "impl": impl}
    counts = ops.concept_counts(tsv, tokens, labels, **arguments)
    assert counts.sum(dim=1).tolist() == (torch.bincount(labels, minlength=CONCEPTS) * TOP_N).tolist()
    benchmark.group = "concept_counts"
    benchmark.extra_info.update(bytes=tsv.numel() * 12, threads=torch.get_num_threads())
    benchmark(ops.concept_counts, tsv, tokens, labels, **arguments)
