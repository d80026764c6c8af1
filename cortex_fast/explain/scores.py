"""Scores of a whole data set's tokens, and the record of what made them."""

import copy
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.results import read_result, save_result
from cortex_fast.data.token_store import TokenStore
from cortex_fast.engine import Prepared, prepare
from cortex_fast.explain.arguments import check_extractor
from cortex_fast.explain.fingerprints import VERSIONS, about_extractor
from cortex_fast.explain.saliency import Settings, token_saliency

_KIND = "Saliency"
_SOME = 100  # samples of an image, about, where their number is found out
_DEFAULTS = {
    one.name: one.default
    for one in inspect.signature(token_saliency).parameters.values()
    if one.kind is inspect.Parameter.KEYWORD_ONLY
}
_TAKEN = ("item_ids", "tick")  # of token_saliency's arguments, which score_tokens gives itself


class Scores(Tensor):
    """TSV [n,h,w] with its `fingerprint`: what made it, in plain values.

    A tensor like any other: what is computed from it, slices and copies to other devices too, is a plain tensor, and so
    is what torch.save keeps of it. `save` and `load` keep the fingerprint.
    """

    fingerprint: dict[str, Any]
    _digest: str
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as nn.Parameter has it

    def __new__(cls, tsv: Tensor, fingerprint: dict[str, Any]) -> "Scores":
        made = tsv.detach().as_subclass(cls)
        made.fingerprint, made._digest = fingerprint, digests.of_values(tsv)
        return made

    @property
    def unchanged(self) -> bool:
        """Whether the values are those that the fingerprint speaks of: a tensor may be written into."""
        return digests.of_values(self) == self._digest

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        save_result(path, _KIND, {"tsv": self}, {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "Scores":
        """Read what `save` wrote. Raises ResultFileError for anything else, naming the file."""
        return read_result(path, _KIND, cls)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Scores":
        return Scores(self.clone(), copy.deepcopy(self.fingerprint, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)  # torch.load takes no classes of ours


def score_tokens(
    extractor: nn.Module | Prepared,
    dataset: TokenStore,
    *,
    batch_size: int = 64,
    progress: bool = True,
    description: str = "scoring tokens",
    **settings: Any,
) -> Scores:
    """TSV [n,h,w] of every image for its own label, on the CPU; `settings` are `token_saliency`'s.

    An image's noise is fixed by its number in the data set, so the result does not depend on batch_size (with
    sigma_range="batch" it does, as in the published code). The result is a tensor that knows what made it.
    """
    batch_size, given = checks.whole("batch_size", batch_size, 1), _settings(settings)
    device = dataset.codebook.device
    dtype = torch.promote_types(dataset.codebook.dtype, torch.float32)
    tsv = torch.empty(dataset.tokens.shape, dtype=dtype)
    if len(dataset) and not isinstance(extractor, Prepared):
        check_extractor(extractor, codebook=dataset.codebook)
        copies = len(dataset) * (_SOME if given.auto else int(given.num_samples))
        extractor = prepare(extractor, dataset.embedding(slice(0, 1)), copies=copies)
    made = _fingerprint(extractor, dataset, given, batch_size)
    with tqdm(total=len(dataset), desc=description, unit="image", disable=not progress) as bar:
        for rows in dataset.batches(batch_size):
            items = torch.arange(rows.start, rows.stop, device=device)
            labels = dataset.labels[rows].to(device)
            tsv[rows] = token_saliency(
                extractor, dataset.embedding(rows), labels, item_ids=items, tick=bar.update, **settings
            ).cpu()
    return Scores(tsv, made)


def _settings(settings: dict[str, Any]) -> Settings:
    """The settings as they come to be: `token_saliency`'s defaults, replaced by those given."""
    for name in settings:
        if name in _TAKEN:
            raise TypeError(f"{name}: expected none, since the images' numbers and the progress bar take its place")
        if name not in _DEFAULTS:
            known = ", ".join(one for one in _DEFAULTS if one not in _TAKEN)
            raise TypeError(f"{name}: expected a setting of token_saliency ({known}), got an unknown one")
    return Settings(**{name: value for name, value in (_DEFAULTS | settings).items() if name != "tick"})


def _fingerprint(
    extractor: nn.Module | Prepared, dataset: TokenStore, settings: Settings, batch_size: int
) -> dict[str, Any]:
    """What the scores depend on, and nothing else: the settings as texts, digests of the images and the extractor."""
    plain = asdict(settings)
    for name in ("item_ids", "memory", *(() if settings.auto else ("top_n",))):
        del plain[name]
    if settings.sigma_range == "batch":
        plain["batch_size"] = batch_size
    return {
        **{name: str(value) for name, value in plain.items()},
        "made_by": "score_tokens",
        "extractor": about_extractor(extractor),
        "images": digests.of_images(dataset.codebook, dataset.tokens, dataset.labels),
        "versions": VERSIONS,
    }
