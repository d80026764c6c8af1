"""CE at the batch that its targets are stated for, 25 images: what test_smoothgrad.py does, in half an hour."""

from functools import partial

from benchmarks import test_smoothgrad as smoothgrad

cases = partial(smoothgrad.cases, images_of={"ce": 25})


def test_smoothgrad_paper(measure):
    measure()
