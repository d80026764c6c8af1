"""Scores of a whole data set's tokens, with a fingerprint of what they were computed from."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from cortex_fast import checks
from cortex_fast.data import digests
from cortex_fast.data.results import read_result, save_result
from cortex_fast.data.token_store import TokenStore, gather, taken
from cortex_fast.engine import Prepared, module_of, prepare
from cortex_fast.explain.arguments import check_classes, check_extractor
from cortex_fast.explain.fingerprints import VERSIONS, about_extractor
from cortex_fast.explain.saliency import tsv_of
from cortex_fast.explain.saliency_settings import ScoreSettings, Settings

_KIND = "Saliency"
_EXPECTED_SAMPLES = 100  # of an image, about, where num_samples is "auto"
_RESERVED = ("item_ids", "tick")  # the arguments of token_saliency that score_tokens sets itself


class Scores(Tensor):
    """TSV [n,h,w] with a fingerprint of what it was computed from.

    Results computed from it, slices and copies to other devices included, are plain tensors, and torch.save writes a
    plain tensor. `save` and `load` include the fingerprint.

    Args:
        tsv: float [n,h,w].
        fingerprint: the settings, and digests of the images and the extractor, in plain values.
    """

    fingerprint: dict[str, Any]
    _digest: str
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment] # as nn.Parameter has it

    def __new__(cls, tsv: Tensor, fingerprint: dict[str, Any]) -> "Scores":
        scores = tsv.detach().as_subclass(cls)
        scores.fingerprint, scores._digest = fingerprint, digests.of_values(tsv)
        return scores

    @property
    def unchanged(self) -> bool:
        """Whether the values still are those of the fingerprint: a tensor may be written into."""
        return digests.of_values(self) == self._digest

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.

        Raises:
            OSError: the file cannot be written.
        """
        save_result(path, _KIND, {"tsv": self}, {"fingerprint": self.fingerprint})

    @classmethod
    def load(cls, path: Path | str) -> "Scores":
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            The scores.

        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: the file is damaged or of another kind; the message names it.
        """
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
    **settings: Unpack[ScoreSettings],
) -> Scores:
    """TSV of every image of a data set for its label (eq. 5).

    An image's noise is fixed by its index in the data set, so the result does not depend on batch_size, unless
    sigma_range is "batch".

    Args:
        extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], prepared by `prepare` or not.
        dataset: n images as tokens, with labels and codebook.
        batch_size: number of images at once. Default 64.
        progress: whether a progress bar is shown. Default True.
        description: the progress bar's title. Default "scoring tokens".
        reduction: "absmax", "max" or "mean", of the mean gradient's channels. Default "absmax".
        num_samples: noisy copies of an image, or "auto": until its top_n positions settle. Default 20.
        alpha: the noise's standard deviation as a share of the range of E. Default 0.2.
        sigma_range: the range of each image ("sample") or of each batch ("batch"). Default "sample".
        noise: "shared" by all images, or "independent". Default "shared".
        seed: seed of the random stream. Default 0.
        antithetic: whether draws come in pairs of opposite sign. Default False.
        memory: bytes that the activations of one pass may take. Default 2^30.
        top_n: number of top positions that num_samples="auto" compares. Default 20.

    Returns:
        At least float32 [n,h,w] on the CPU, with a fingerprint.

    Raises:
        TypeError, ValueError: as `token_saliency`, and for an unknown setting. The message names the argument.
    """
    batch_size, checked = checks.whole("batch_size", batch_size, 1), _checked(settings)
    dtype = torch.promote_types(dataset.codebook.dtype, torch.float32)
    tsv = torch.empty(dataset.tokens.shape, dtype=dtype)
    if not len(dataset):
        return Scores(tsv, _fingerprint(extractor, dataset, checked, batch_size))
    prepared = prepared_for(extractor, dataset, checked)
    fingerprint = _fingerprint(prepared, dataset, checked, batch_size)
    codes = code_ranges(dataset.codebook)
    with tqdm(total=len(dataset), desc=description, unit="image", disable=not progress) as bar:
        for rows in dataset.batches(batch_size):
            tsv[rows] = tsv_of_rows(prepared, dataset, rows, codes, checked, tick=bar.update).cpu()
    return Scores(tsv, fingerprint)


def prepared_for(
    extractor: nn.Module | Prepared, dataset: TokenStore, settings: Settings, *, precision: str = "float32"
) -> Prepared:
    """An extractor checked against a data set once, and prepared to score all of it.

    Args:
        extractor: eval-mode module on the codebook's device, or one that is prepared.
        dataset: at least one image.
        settings: how the images will be scored.
        precision: of the extractor's passes, see `prepare`. Default "float32".

    Returns:
        The prepared extractor.

    Raises:
        TypeError, ValueError: the extractor does not fit the images, or a label is outside its classes.
    """
    check_extractor(module_of(extractor), codebook=dataset.codebook)
    if settings.auto:
        checks.whole("top_n", settings.top_n, 1, dataset.tokens.shape[1:].numel())
    sample = dataset.embedding(slice(0, 1))
    samples = _EXPECTED_SAMPLES if settings.auto else int(settings.num_samples)
    prepared = prepare(extractor, sample, precision=precision, copies=len(dataset) * samples)
    check_classes(prepared, sample, dataset.labels)
    return prepared


def code_ranges(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest component of each code, at least float32 [K]: what an image's range is found from."""
    return codebook.to(torch.promote_types(codebook.dtype, torch.float32)).aminmax(dim=1)


def tsv_of_rows(
    prepared: Prepared,
    dataset: TokenStore,
    rows: slice,
    codes: tuple[Tensor, Tensor],
    settings: Settings,
    tick: Callable[[int], object] | None = None,
) -> Tensor:
    """TSV of some consecutive images of a data set, without checks; an image's item is its index.

    Args:
        prepared: what `prepared_for` returned.
        dataset: the data set.
        rows: the images.
        codes: what `code_ranges` returned for its codebook.
        settings: how they are scored.
        tick: called with the number of images done. Default None.

    Returns:
        At least float32 [n,h,w] on the codebook's device.
    """
    device = dataset.codebook.device
    tokens = taken(dataset.tokens, rows).to(device).long()
    low, high = (code[tokens].flatten(1) for code in codes)
    low, high = low.amin(dim=1), high.amax(dim=1)
    if settings.sigma_range == "batch":
        low, high = low.amin().expand(len(tokens)), high.amax().expand(len(tokens))
    items = torch.arange(rows.start, rows.stop, device=device)
    embedding = gather(tokens, dataset.codebook)
    return tsv_of(
        prepared,
        embedding,
        targets=dataset.labels[rows].to(device),
        item_ids=items,
        span=high - low,
        settings=settings,
        tick=tick,
    )


def _checked(settings: ScoreSettings) -> Settings:
    """The settings with `token_saliency`'s defaults for the others."""
    names = ScoreSettings.__annotations__
    for name in settings:
        if name in _RESERVED:
            raise TypeError(f"{name}: cannot be set here: the images' indices and the progress bar replace it")
        if name not in names:
            raise TypeError(f"{name}: expected a setting of token_saliency ({', '.join(names)}), got an unknown one")
    return Settings(**settings)


def _fingerprint(
    extractor: nn.Module | Prepared, dataset: TokenStore, settings: Settings, batch_size: int
) -> dict[str, Any]:
    """What the scores depend on, and nothing else: the settings as texts, digests of the images and the extractor."""
    values = asdict(settings)
    for name in ("item_ids", "memory", *(() if settings.auto else ("top_n",))):
        del values[name]
    if settings.sigma_range == "batch":
        values["batch_size"] = batch_size
    return {
        **{name: str(value) for name, value in values.items()},
        "made_by": "score_tokens",
        "extractor": about_extractor(extractor),
        "images": digests.of_images(dataset.codebook, dataset.tokens, dataset.labels),
        "versions": VERSIONS,
    }
