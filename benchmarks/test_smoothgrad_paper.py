"""test_smoothgrad.py with CE at the batch size of the stated targets, 25 images: half an hour."""

from functools import partial

from benchmarks import test_smoothgrad as smoothgrad

cases = partial(smoothgrad.cases, images_of={"ce": 25})


def test_smoothgrad_paper(measure):
    measure()
