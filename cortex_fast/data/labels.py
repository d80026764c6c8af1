"""Labels from a CSV of image and label: any attribute, several labels an image, images without one."""

import csv
from pathlib import Path

import torch

from cortex_fast.data.foreign import refuse_foreign
from cortex_fast.data.token_store import TokenStore

COLUMNS = ("image", "label")


def relabelled(store: TokenStore, path: Path) -> TokenStore:
    """The store's images under the labels of a CSV file, once for each of its lines, in the lines' order.

    Args:
        store: the images; its own labels are left out.
        path: a CSV file with the columns image, a number from 0, and label, a text. Other columns are ignored. An image
            may have several lines or none.
    Returns:
        A store with an entry for each line. Its names are the labels in alphabetical order.
    Raises:
        ValueError: the file has no such columns or no lines, an image does not exist, or a label is empty; the message
            names the file and the line.
    """
    refuse_foreign(path, ValueError)
    images, labels = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}:1: expected the columns image and label, got {reader.fieldnames}")
        for line in reader:
            images.append(_image(line["image"], len(store), f"{path}:{reader.line_num}"))
            labels.append((line["label"] or "").strip())
            if not labels[-1]:
                raise ValueError(f"{path}:{reader.line_num}: label: expected a text, got none")
    if not images:
        raise ValueError(f"{path}: expected at least one line of image and label, got none")
    names = sorted(set(labels))
    number = {name: place for place, name in enumerate(names)}
    rows = store.select(torch.tensor(images))
    return TokenStore(rows.tokens, torch.tensor([number[label] for label in labels]), store.codebook, names)


def _image(text: str | None, images: int, place: str) -> int:
    if text is None or not text.strip().isdecimal() or int(text) >= images:
        raise ValueError(f"{place}: image: expected a number below {images}, got {text!r}")
    return int(text)
