"""Train the bundled model from the bundled sprites: tokenizer, prior, extractors and judges, and write its model card.

    python tools/train_zoo.py --work build/zoo

Takes about two hours on 2 cores; the model card lists each stage's minutes. Every stage's result is saved in the work
folder, so that a second run continues where the first stopped.
"""

import argparse
import time
from pathlib import Path

from zoo_stages import common, export, extractors, judges, prior, tokenizer

STAGES = {
    "tokenizer": tokenizer.train,
    "prior": prior.train,
    "samples": prior.samples,
    "extractors": extractors.train,
    "judges": judges.train,
    "export": export.export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/zoo"), help="folder for intermediate products")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work, to test the code")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    arguments = parser.parse_args()
    work = common.Work(arguments.work, arguments.quick)
    for name in arguments.stages:
        start = time.time()
        try:
            STAGES[name](work)
        finally:
            elapsed = time.time() - start
            common.add_seconds(work, name, elapsed)
        print(f"{name}: {elapsed:.0f} s", flush=True)


if __name__ == "__main__":
    main()
