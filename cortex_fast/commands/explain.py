"""explain: each class's tokens, from scores."""

import argparse
from pathlib import Path

from cortex_fast.commands.arguments import new_file


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("explain", help="each class's tokens, from scores")
    parser.add_argument("store", type=Path, help="the token store that was scored (.safetensors)")
    parser.add_argument("extractor", type=Path, help="the extractor that scored it (.safetensors)")
    parser.add_argument("scores", type=Path, help="the scores (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="the concepts to write (.safetensors)")
    parser.add_argument("--csv", type=Path, help="the same as lines of concept, rank, token, count, share")
    parser.add_argument("--top-n", type=int, default=20, help="positions taken from each image (default 20)")
    parser.add_argument("--top-k", type=int, default=100, help="tokens of each class (default 100)")
    parser.add_argument("--per", choices=("occurrence", "image"), default="occurrence", help="what is counted")
    parser.set_defaults(run=_explain)


def _explain(parsed: argparse.Namespace) -> int:
    from cortex_fast.data import TokenStore
    from cortex_fast.explain import Scores, explain_concepts
    from cortex_fast.extractors import load_extractor
    from cortex_fast.studies.tables import write_csv

    out = new_file(parsed.out)
    concepts = explain_concepts(
        load_extractor(parsed.extractor),
        TokenStore.load(parsed.store),
        top_n=parsed.top_n,
        top_k=parsed.top_k,
        per=parsed.per,
        tsv=Scores.load(parsed.scores),
    )
    concepts.save(out)
    if parsed.csv is not None:
        write_csv(parsed.csv, {parsed.extractor.stem: concepts})
    print(f"{out}: tokens of {len(concepts.names)} classes")
    return 0
