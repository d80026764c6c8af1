"""The concept-level explanation: the tokens most often salient in a concept's images (eq. 6)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cortex_fast import checks, ops
from cortex_fast.data import digests
from cortex_fast.data.results import read_result, save_result
from cortex_fast.data.token_store import TokenStore
from cortex_fast.engine import Prepared
from cortex_fast.explain.occurrences import Examples, Occurrences, add_counts
from cortex_fast.explain.saliency import top_tokens
from cortex_fast.explain.saliency_settings import ConceptSettings
from cortex_fast.explain.scores import Scores, score_tokens
from cortex_fast.ops.concept_counts import PER

if TYPE_CHECKING:
    import pandas

_KIND = "ConceptExplanations"


@dataclass(frozen=True, eq=False)
class ConceptExplanations:
    """T*_concept of every concept, with the frequency baseline and examples of the tokens (eq. 6).

    Args:
        names: the C concepts.
        tokens: int64 [C,k], the k tokens most often among an image's top tokens, most frequent first; -1 where a
            concept has fewer.
        counts: int64 [C,k], how often they are; 0 where a concept has fewer.
        frequent_tokens: int64 [C,k], the baseline: the most frequent tokens at any position.
        frequent_counts: int64 [C,k], how often they occur.
        num_images: int64 [C].
        examples: int64 [C,k,e,2], (image, flat position) of each token's occurrences of largest TSV; -1 where it has
            fewer.
        top_n: number of top tokens of an image.
        per: "occurrence" (counts are positions) or "image" (counts are images).
        fingerprint: what the explanations were computed from, in plain values. Default {}.

    Raises:
        TypeError: names that are not texts.
    """

    names: tuple[str, ...]
    tokens: Tensor
    counts: Tensor
    frequent_tokens: Tensor
    frequent_counts: Tensor
    num_images: Tensor
    examples: Tensor
    top_n: int
    per: str
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.texts("names", self.names)

    @property
    def shares(self) -> Tensor:
        """counts as a share of all top tokens (per "occurrence") or of all images (per "image"): float32 [C,k]."""
        per_image = self.top_n if self.per == "occurrence" else 1
        return self.counts.float() / (self.num_images * per_image).clamp(min=1)[:, None]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        header = {"names": self.names, "top_n": self.top_n, "per": self.per, "fingerprint": self.fingerprint}
        save_result(path, _KIND, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> "ConceptExplanations":
        """Read a file that `save` wrote.

        Args:
            path: the file.

        Returns:
            The explanations.

        Raises:
            FileNotFoundError: the file does not exist.
            ResultFileError: the file is damaged or of another kind; the message names it.
        """
        return read_result(path, _KIND, lambda names, **rest: cls(names=tuple(names), **rest))

    def to_pandas(self) -> "pandas.DataFrame":
        """The explanations as a table; needs pandas.

        Returns:
            One row for each concept and rank, with columns concept, rank, token, count and share.
        """
        import pandas

        concept, rank = torch.nonzero(self.counts > 0, as_tuple=True)
        return pandas.DataFrame(
            {
                "concept": [self.names[index] for index in concept.tolist()],
                "rank": rank.numpy() + 1,
                "token": self.tokens[concept, rank].numpy(),
                "count": self.counts[concept, rank].numpy(),
                "share": self.shares[concept, rank].numpy(),
            }
        )


def explain_concepts(
    extractor: nn.Module | Prepared,
    dataset: TokenStore,
    *,
    top_n: int = 20,
    top_k: int = 100,
    per: str = "occurrence",
    examples: int = 8,
    tsv: Tensor | None = None,
    batch_size: int = 64,
    progress: bool = True,
    **settings: Unpack[ConceptSettings],
) -> ConceptExplanations:
    """T*_concept of every class: the top_k tokens most often among the top_n of an image of the class (eq. 6).

    Args:
        extractor: eval-mode module, E [B,d,h,w] -> logits [B,classes], prepared by `prepare` or not.
        dataset: n images as tokens, with labels, class names and codebook.
        top_n: number of top tokens of an image, from 1 to h * w; also what num_samples="auto" compares. Default 20.
        top_k: number of tokens of a concept. Default 100.
        per: "occurrence" counts every top position (the published code), "image" a token once in an image. Default
            "occurrence".
        examples: number of occurrences listed for each token. Default 8.
        tsv: float [n,h,w], scores computed before by `score_tokens`, whose fingerprint the result includes. Default
            None: computed here.
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

    Returns:
        The explanations of the data set's C classes.

    Raises:
        TypeError, ValueError: as `score_tokens`, or settings of it together with tsv. The message names the argument.
    """
    top_n = checks.whole("top_n", top_n, 1, dataset.tokens.shape[1:].numel())
    top_k, examples = checks.whole("top_k", top_k, 1), checks.whole("examples", examples, 0)
    checks.whole("batch_size", batch_size, 1)
    checks.one_of("per", per, PER)
    if tsv is not None and settings:
        raise TypeError(f"{', '.join(settings)}: cannot be set with tsv, whose scores are computed already")
    if tsv is None:
        tsv = score_tokens(extractor, dataset, batch_size=batch_size, progress=progress, top_n=top_n, **settings)
    checks.same_shape("tsv", tsv, "dataset's tokens", dataset.tokens.shape)
    tokens, labels = dataset.tokens.int().cpu(), dataset.labels.cpu()
    num_concepts, codebook_size = len(dataset.names), len(dataset.codebook)
    counts = ops.concept_counts(
        tsv, tokens, labels, top_n=top_n, num_concepts=num_concepts, codebook_size=codebook_size, per=per
    )
    positions = top_tokens(tsv, tokens, top_n)[1]
    images = Occurrences(tokens.flatten(1).long(), positions, tsv.flatten(1).gather(1, positions), labels, first=0)
    return concepts_of(
        counts,
        lambda: [images],
        names=tuple(dataset.names),
        top_n=top_n,
        top_k=top_k,
        per=per,
        examples=examples,
        fingerprint=_fingerprint(dataset, tsv),
    )


def concepts_of(
    counts: Tensor,
    shards: Callable[[], Iterable[Occurrences]],
    *,
    names: tuple[str, ...],
    top_n: int,
    top_k: int,
    per: str,
    examples: int,
    fingerprint: dict[str, Any],
) -> ConceptExplanations:
    """T*_concept of every class from the top positions of its images, in memory that does not grow with their number.

    Args:
        counts: int64 [C,K], how often each token is a top token of each class.
        shards: gives all images, shard by shard; called twice.
        names: of the C classes.
        top_n: number of top tokens of an image.
        top_k: number of tokens of a concept.
        per: "occurrence" or "image", see `explain_concepts`.
        examples: number of occurrences listed for each token.
        fingerprint: of the result.

    Returns:
        The explanations.
    """
    frequency, num_images = torch.zeros_like(counts), torch.zeros(len(names), dtype=torch.int64)
    for shard in shards():
        add_counts(frequency, shard.tokens, shard.labels)
        num_images += torch.bincount(shard.labels, minlength=len(names))
    concept_tokens, concept_counts = _most_frequent(counts, top_k)
    frequent_tokens, frequent_counts = _most_frequent(frequency, top_k)
    occurrences = Examples(concept_tokens, counts.shape[1], examples)
    for shard in shards():
        occurrences.add(shard)
    return ConceptExplanations(
        names=names,
        tokens=concept_tokens,
        counts=concept_counts,
        frequent_tokens=frequent_tokens,
        frequent_counts=frequent_counts,
        num_images=num_images,
        examples=occurrences.result(),
        top_n=top_n,
        per=per,
        fingerprint=fingerprint,
    )


def token_frequency(tokens: Tensor, labels: Tensor, num_concepts: int, codebook_size: int) -> Tensor:
    """How often each token occurs in each class's images, at any position.

    Args:
        tokens: int [n,h,w] in [0, codebook_size).
        labels: int64 [n] in [0, num_concepts).
        num_concepts: C.
        codebook_size: K.

    Returns:
        int64 [C,K].
    """
    cells = labels[:, None] * codebook_size + tokens.flatten(1).long()
    return torch.bincount(cells.flatten(), minlength=num_concepts * codebook_size).view(num_concepts, codebook_size)


def _fingerprint(dataset: TokenStore, tsv: Tensor) -> dict[str, Any]:
    """The data set, its images, and the fingerprint of the scores, or a digest of scores without one."""
    if isinstance(tsv, Scores) and tsv.unchanged:
        return {"dataset": dataset.fingerprint, "images": tsv.fingerprint["images"], "saliency": tsv.fingerprint}
    images = digests.of_images(dataset.codebook, dataset.tokens, dataset.labels)
    saliency = {"made_by": "given as tsv", "values": digests.of_values(tsv)}
    return {"dataset": dataset.fingerprint, "images": images, "saliency": saliency}


def _most_frequent(counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """counts [C,K] -> token ids and counts [C,k], most frequent first, ties to the lower id; -1 and 0 for the rest."""
    ordered = counts.sort(dim=1, descending=True, stable=True)
    ids, values = ordered.indices[:, :k], ordered.values[:, :k]
    return ids.masked_fill(values == 0, -1), values
