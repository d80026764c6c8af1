"""The benchmark suite: `make bench`, `python -m benchmarks`, or `pytest benchmarks`."""
