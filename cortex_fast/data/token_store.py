"""The token store: images as token ids, 2 bytes a token, with E gathered from the codebook when it is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.classes import class_number, class_numbers
from cortex_fast.data.grids import Grid, grid_of
from cortex_fast.data.mapped import crc_and_range, mapped, place_of
from cortex_fast.data.results import ResultFileError, load_partly, read_result, save_result

_KIND = "TokenStore"


def gather(tokens: Tensor, codebook: Tensor) -> Tensor:
    """`embed` without its checks, for inner loops."""
    return torch.nn.functional.embedding(tokens.long(), codebook).permute(0, 3, 1, 2)


def taken(tokens: Tensor, rows: Tensor | slice) -> Tensor:
    """tokens[rows]. Neither CUDA nor torch before 2.10 indexes uint16, so their bits are taken as int16."""
    if tokens.dtype == torch.uint16:
        return tokens.view(torch.int16)[rows].view(torch.uint16)
    return tokens[rows]


def embed(tokens: checks.Integers, codebook: Tensor) -> Tensor:
    """The token-based embedding E, with E[:, p] = C[token at p].

    Args:
        tokens: integer [B, h, w] within [0, K).
        codebook: C [K, d].
    Returns:
        E [B, d, h, w], of the codebook's dtype, channels last in memory.
    Raises:
        TypeError: tokens are no integers.
        ValueError: shapes do not fit, a token is out of range, or devices are mixed.
    """
    tokens = checks.integers("tokens", tokens, codebook.device if isinstance(codebook, Tensor) else None)
    checks.rank("tokens", tokens, "[B, h, w]")
    checks.rank("codebook", codebook, "[K, d]")
    checks.same_device(tokens=tokens, codebook=codebook)
    checks.in_range("tokens", tokens, len(codebook))
    return gather(tokens, codebook)


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token grids with labels and the codebook that they index.

    Tensors of the right dtype are shared with the caller, not copied; arrays and lists become tensors.

    Args:
        tokens: integer [n, h, w] within [0, K); uint16 where K <= 65,536, else int32 afterwards.
        labels: integer [n], or n names; int64 afterwards.
        codebook: C, floating-point [K, d].
        names: the classes' names.
        fingerprint: the source of the images: model, seed, settings. Default none.
    Raises:
        TypeError: an argument has another dtype.
        ValueError: shapes or values do not fit together.
    """

    tokens: Tensor
    labels: Tensor
    codebook: Tensor
    names: Sequence[str]
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_all_but_range()
        checks.in_range("tokens", self.tokens, self.codebook.shape[0])
        small = torch.uint16 if self.codebook.shape[0] <= 2**16 else torch.int32
        object.__setattr__(self, "tokens", self.tokens.to(small))

    def _check_all_but_range(self) -> None:
        object.__setattr__(self, "tokens", checks.integers("tokens", self.tokens))
        object.__setattr__(self, "labels", class_numbers("labels", self.labels, self.names))
        checks.rank("tokens", self.tokens, "[n, h, w]")
        checks.same_shape("labels", self.labels, "tokens' first dimension", self.tokens.shape[:1])
        checks.rank("codebook", self.codebook, "[K, d]")
        checks.floating("codebook", self.codebook)
        checks.finite("codebook", self.codebook)
        checks.texts("names", self.names)
        checks.in_range("labels", self.labels, len(self.names))
        object.__setattr__(self, "codebook", self.codebook.detach())
        object.__setattr__(self, "names", tuple(self.names))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def grid(self) -> Grid:
        """m of square grids, else (h, w)."""
        return grid_of(self.tokens.shape)

    def select(self, rows: Tensor | slice) -> "TokenStore":
        """A store of some of the images.

        Args:
            rows: int [r], bool [n] or a slice, the images.
        Returns:
            The store of these r images, in that order, with the same codebook, names and fingerprint.
        """
        return TokenStore(taken(self.tokens, rows), self.labels[rows], self.codebook, self.names, self.fingerprint)

    def embedding(self, rows: Tensor | slice) -> Tensor:
        """The token-based embeddings of some of the images.

        Args:
            rows: int [B], bool [n] or a slice, the images.
        Returns:
            E [B,d,h,w], of the codebook's dtype and device, channels last in memory.
        """
        return gather(taken(self.tokens, rows).to(self.codebook.device), self.codebook)

    def label(self, name: str) -> int:
        """The number of a class.

        Args:
            name: the class's name.
        Returns:
            Its index in `names`.
        Raises:
            ValueError: no class, or more than one, has this name; the message has similar names.
        """
        return class_number("name", name, self.names)

    def batches(self, size: int) -> Iterator[slice]:
        """Split the images into consecutive batches.

        Args:
            size: most images of a batch.
        Returns:
            An iterator over slices of 0 to n.
        """
        return (slice(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.
        Raises:
            OSError: the file cannot be written.
        """
        header = {"names": list(self.names), "fingerprint": self.fingerprint}
        tensors = {"tokens": self.tokens, "labels": self.labels, "codebook": self.codebook}
        save_result(path, _KIND, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> "TokenStore":
        """Read a file that `save` wrote.

        Args:
            path: the file.
        Returns:
            The store.
        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: the file is damaged or of another kind; the message names it.
        """
        return read_result(path, _KIND, cls)

    @classmethod
    def open(cls, path: Path | str) -> "TokenStore":
        """The store in a file, with its tokens mapped into memory instead of read into it.

        The tokens are checked as `load` checks them, by one pass over the file. What is written into them stays in this
        process. The file must not be written over meanwhile; replacing it by another is harmless.

        Args:
            path: a file that `save` wrote.
        Returns:
            The store.
        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: it is anything else, naming the file.
        """
        path = Path(path)
        tensors, header, checksum = load_partly(path, _KIND, "tokens")
        place = place_of(path, "tokens")
        tokens = mapped(path, place)
        try:
            store = object.__new__(cls)
            for name, value in {"fingerprint": {}, **tensors, **header, "tokens": tokens}.items():
                object.__setattr__(store, name, value)
            store._check_all_but_range()
            heading = f"tokens {tokens.dtype} {list(tokens.shape)}\n"
            begun = digests.crc_continued(heading, digests.crc_of_state(tensors))
            crc, low, high = crc_and_range(path, place, begun)
            if checksum is not None and crc != checksum:
                raise ResultFileError(f"{path}: damaged: its tensors are not as they were written")
            if low < 0 or high >= len(store.codebook):
                raise ValueError(f"tokens: expected values in [0, {len(store.codebook)}), got {low} to {high}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ResultFileError):
                raise
            raise ResultFileError(f"{path}: not a {_KIND} of this version ({error})") from error
        return store
