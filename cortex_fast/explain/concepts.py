"""The concept-level explanation: the tokens most often salient in a concept's images (eq. 6)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cortex_fast import checks, ops
from cortex_fast.data import digests
from cortex_fast.data.results import read_result, save_result
from cortex_fast.data.token_store import TokenStore
from cortex_fast.engine import Prepared
from cortex_fast.explain.saliency import top_tokens
from cortex_fast.explain.scores import Scores, score_tokens
from cortex_fast.ops.concept_counts import PER

if TYPE_CHECKING:
    import pandas

_KIND = "ConceptExplanations"


@dataclass(frozen=True, eq=False)
class ConceptExplanations:
    """T*_concept for every concept, with the frequency baseline and where the tokens were seen.

    names: the C concepts. tokens, counts int64 [C,k]: the k most frequent top tokens, most frequent first, and how
    often; -1 and 0 where a concept has fewer. frequent_tokens, frequent_counts int64 [C,k]: the baseline, the most
    frequent tokens at any position. num_images int64 [C]. top_n: tokens taken from each image. examples int64
    [C,k,e,2]: (image, flat position) of a token's occurrences of largest TSV, -1 where there are fewer. fingerprint:
    what made this.
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
        """counts as a part, float32 [C,k] in [0,1]: of all top tokens ("occurrence"), or of all images ("image")."""
        each = self.top_n if self.per == "occurrence" else 1
        return self.counts.float() / (self.num_images * each).clamp(min=1)[:, None]

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        header = {"names": self.names, "top_n": self.top_n, "per": self.per, "fingerprint": self.fingerprint}
        save_result(path, _KIND, tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> "ConceptExplanations":
        """Read what `save` wrote. Raises ResultFileError for anything else, naming the file."""
        return read_result(path, _KIND, lambda names, **rest: cls(names=tuple(names), **rest))

    def to_pandas(self) -> "pandas.DataFrame":
        """One row for each concept and rank: concept, rank, token, count, share. Needs pandas."""
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
    **settings: Any,
) -> ConceptExplanations:
    """The top_k tokens that are most often among the top_n of an image, for every class of the data set (eq. 6).

    extractor: eval-mode module, E [B,d,h,w] -> logits. per: "occurrence" (the published code) or "image" (a token
    counts once an image). examples: occurrences kept for each token. tsv float [n,h,w]: scores from `score_tokens`,
    where they are at hand, whose fingerprint goes into the result's; else they are computed, with `settings` for
    `token_saliency` (num_samples, alpha, seed, ...). num_samples="auto" settles on the same top_n.
    Raises TypeError or ValueError naming the argument.
    """
    top_n = checks.whole("top_n", top_n, 1, dataset.tokens.shape[1:].numel())
    top_k, examples = checks.whole("top_k", top_k, 1), checks.whole("examples", examples, 0)
    checks.whole("batch_size", batch_size, 1)
    checks.one_of("per", per, PER)
    if tsv is not None and settings:
        raise TypeError(f"{', '.join(settings)}: expected none of token_saliency's settings with tsv, which is made")
    if tsv is None:
        tsv = score_tokens(extractor, dataset, batch_size=batch_size, progress=progress, top_n=top_n, **settings)
    tokens, labels = dataset.tokens.int().cpu(), dataset.labels.cpu()
    checks.same_shape("tsv", tsv, "dataset's tokens", tokens.shape)
    num_concepts, codebook_size = len(dataset.names), dataset.codebook.shape[0]
    counts = ops.concept_counts(
        tsv, tokens, labels, top_n=top_n, num_concepts=num_concepts, codebook_size=codebook_size, per=per
    )
    frequency = token_frequency(tokens, labels, num_concepts, codebook_size)
    best, best_counts = most_frequent(counts, top_k)
    frequent, frequent_counts = most_frequent(frequency, top_k)
    return ConceptExplanations(
        names=tuple(dataset.names),
        tokens=best,
        counts=best_counts,
        frequent_tokens=frequent,
        frequent_counts=frequent_counts,
        num_images=torch.bincount(labels, minlength=num_concepts),
        examples=_examples(tsv, tokens, labels, best, top_n, examples),
        top_n=top_n,
        per=per,
        fingerprint=_fingerprint(dataset, tsv),
    )


def token_frequency(tokens: Tensor, labels: Tensor, num_concepts: int, codebook_size: int) -> Tensor:
    """How often each token occurs in each class's images: int64 [C,K]."""
    cells = labels[:, None] * codebook_size + tokens.flatten(1).long()
    return torch.bincount(cells.flatten(), minlength=num_concepts * codebook_size).view(num_concepts, codebook_size)


def _fingerprint(dataset: TokenStore, tsv: Tensor) -> dict[str, Any]:
    """What the images are and what made their scores, or that these were given by hand."""
    if isinstance(tsv, Scores) and tsv.unchanged:
        return {"dataset": dataset.fingerprint, "images": tsv.fingerprint["images"], "saliency": tsv.fingerprint}
    images = digests.of_images(dataset.codebook, dataset.tokens, dataset.labels)
    made = {"made_by": "given as tsv", "values": digests.of_values(tsv)}
    return {"dataset": dataset.fingerprint, "images": images, "saliency": made}


def most_frequent(counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """counts [C,K] -> token ids and counts [C,k], most frequent first, ties to the lower id; -1 and 0 for the rest."""
    ordered = counts.sort(dim=1, descending=True, stable=True)
    ids, values = ordered.indices[:, :k], ordered.values[:, :k]
    return ids.masked_fill(values == 0, -1), values


def _examples(tsv: Tensor, tokens: Tensor, labels: Tensor, best: Tensor, top_n: int, count: int) -> Tensor:
    """[C,k,count,2]: (image, position) of each concept token's occurrences among the top n, largest TSV first."""
    found = torch.full((*best.shape, count, 2), -1, dtype=torch.int64)
    chosen, positions = top_tokens(tsv, tokens, top_n)  # [n, top_n]
    values = tsv.flatten(1).gather(1, positions)
    for concept in range(len(best)):
        images = torch.nonzero(labels == concept).flatten()
        ids = chosen[images].flatten()
        order = values[images].flatten().sort(descending=True, stable=True).indices
        order = order[ids[order].sort(stable=True).indices]  # by token, and by TSV within one
        starts = torch.searchsorted(ids[order], best[concept])
        for rank, (token, start) in enumerate(zip(best[concept].tolist(), starts.tolist(), strict=True)):
            if token < 0:
                break
            places = order[start : start + count]
            places = places[ids[places] == token]
            found[concept, rank, : len(places), 0] = images[places // top_n]
            found[concept, rank, : len(places), 1] = positions[images].flatten()[places]
    return found
