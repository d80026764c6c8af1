"""score: TSVs of a token store's images."""

import argparse
from pathlib import Path

from cortex_fast.commands.arguments import new_file


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command, with `run` as what it does."""
    parser = commands.add_parser("score", help="TSVs of a token store's images for their own classes")
    parser.add_argument("store", type=Path, help="token store (.safetensors)")
    parser.add_argument("extractor", type=Path, help="extractor file (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="the scores to write (.safetensors)")
    parser.add_argument("--num-samples", type=_samples, default=20, help='copies of an image, or "auto" (default 20)')
    parser.add_argument("--alpha", type=float, default=0.2, help="sigma as a part of an embedding's range")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.set_defaults(run=_score)


def _samples(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _score(parsed: argparse.Namespace) -> int:
    from cortex_fast.data import TokenStore
    from cortex_fast.explain import score_tokens
    from cortex_fast.extractors import load_extractor

    out = new_file(parsed.out)
    scores = score_tokens(
        load_extractor(parsed.extractor),
        TokenStore.load(parsed.store),
        batch_size=parsed.batch_size,
        num_samples=parsed.num_samples,
        alpha=parsed.alpha,
        seed=parsed.seed,
    )
    scores.save(out)
    print(f"{out}: TSVs of {len(scores)} images")
    return 0
