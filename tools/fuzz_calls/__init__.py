"""Random calls of the operators for tools/fuzz.py: right ones, whose results are judged, and wrong ones."""
