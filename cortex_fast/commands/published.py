"""The commands import-published and export-published: the published code's files into ours, and back."""

import argparse
import time
from pathlib import Path

from tqdm import tqdm


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands; each sets `run`, the function that it calls."""
    imported = commands.add_parser("import-published", help="convert files of the published CORTEX code")
    imported.add_argument("source", type=Path, help="data folder, folder of label_<n>.csv, or .pth")
    imported.add_argument("--out", type=Path, required=True, help="the file to write (.safetensors)")
    imported.add_argument("--codebook", type=Path, help=".npy, .safetensors, .pth or .ckpt (default: recovered)")
    imported.add_argument("--codes", type=int, help="K of a codebook that is recovered from the data")
    imported.add_argument("--split", choices=("train", "validation", "test"), help="if the folder has several")
    imported.add_argument("--names", type=Path, help="text file with a class name on each line")
    imported.add_argument("--trust-tokens", action="store_true", help="read the table, and check 256 random embeddings")
    imported.add_argument(
        "--tensors-only",
        action="store_true",
        help="read a checkpoint with pickled objects; none is executed",
    )
    imported.add_argument("--skip-bad", action="store_true", help="leave out and list the rows with errors")
    imported.set_defaults(run=_import)
    exported = commands.add_parser("export-published", help="convert files for the published CORTEX code")
    exported.add_argument("source", type=Path, help="token store, scores or extractor file (.safetensors)")
    exported.add_argument("--out", type=Path, required=True, help="folder, or for an extractor the .pth file")
    exported.add_argument("--split", choices=("train", "validation", "test"), help="default: that of the import")
    exported.set_defaults(run=_export)


def _import(parsed: argparse.Namespace) -> int:
    from cortex_fast.compat import published_data

    source, out = parsed.source, parsed.out
    _refuse_existing(out)
    if source.suffix in (".pth", ".pt"):
        name = published_data.import_checkpoint(source, out, tensors_only=parsed.tensors_only)
        print(f"{out}: extractor {name!r}")
    elif source.is_dir() and any(source.glob("label_*.csv")):
        scores = published_data.Scores.read(source)
        scores.save(out)
        print(f"{out}: scores of {len(scores.files)} images of {len(scores.labels.unique())} labels")
    else:
        _import_embeddings(parsed)
    return 0


def _import_embeddings(parsed: argparse.Namespace) -> None:
    from cortex_fast import checks
    from cortex_fast.compat import published_data

    codebook = None
    if parsed.codebook is not None:
        codebook = published_data.read_codebook(parsed.codebook, tensors_only=parsed.tensors_only)
    names = None if parsed.names is None else _names(parsed.names)
    if parsed.codes is not None:
        checks.whole("--codes", parsed.codes, 1)
    start = time.perf_counter()
    with tqdm(unit=" rows", disable=None) as bar:
        done = published_data.import_embeddings(
            parsed.source,
            parsed.out,
            codebook=codebook,
            codes=parsed.codes,
            split=parsed.split,
            class_names=names,
            trust_tokens=parsed.trust_tokens,
            skip_bad=parsed.skip_bad,
            tick=bar.update,
        )
    seconds = time.perf_counter() - start
    print(f"{parsed.out}: {done.written} of {done.rows} images, {done.checked} embeddings read, {seconds:.1f} s")
    print(f"largest error against the codebook: {done.largest_error:.2g}")
    for row in done.bad[:10]:
        print(f"skipped {row}")
    if len(done.bad) > 10:
        print(f"... {len(done.bad)} skipped, all named in {parsed.out.name}.bad.txt")
    if done.unseen:
        print(f"codes that no row uses, so unknown and left 0: {len(done.unseen)}, in the store's fingerprint")


def _export(parsed: argparse.Namespace) -> int:
    from cortex_fast.compat import published_data
    from cortex_fast.data.results import kind_of

    kind = kind_of(parsed.source)
    if kind == "Extractor":
        _refuse_existing(parsed.out)
        published_data.export_checkpoint(parsed.source, parsed.out)
    elif kind == "PublishedScores":
        published_data.Scores.load(parsed.source).write(parsed.out)
    elif kind == "TokenStore":
        with tqdm(unit=" rows", disable=None) as bar:
            published_data.export_embeddings(parsed.source, parsed.out, split=parsed.split, tick=bar.update)
    else:
        raise ValueError(f"{parsed.source}: expected a token store, scores or an extractor, got {kind!r}")
    print(f"written: {parsed.out}")
    return 0


def _refuse_existing(out: Path) -> None:
    if out.is_dir():
        raise IsADirectoryError(f"--out: expected a file to write, got the folder {out}")
    if out.exists():
        raise FileExistsError(f"--out: {out}: already exists; it is not overwritten")


def _names(path: Path) -> tuple[str, ...]:
    from cortex_fast.data.foreign import refuse_foreign

    refuse_foreign(path, ValueError)
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"--names: {path}: not UTF-8 text ({error})") from error
