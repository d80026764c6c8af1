"""Stage 5: the package's weights, in half precision, and the model card with figures measured on them."""

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F

from cortex_fast import zoo
from cortex_fast.data.results import replace_whole
from cortex_fast.evaluate import correct, probabilities
from cortex_fast.extractors import accuracy
from cortex_fast.zoo.weight_files import save_weights

from . import extractors, judges, prior, tokenizer
from .common import Work, composites

CARD = zoo.FOLDER.parent / "MODEL_CARD.md"
TEST_COMPOSITES = 960


def write_package(work: Work, folder: Path) -> None:
    """Write all weight files of the package."""
    save_weights(folder / "tokenizer.safetensors", tokenizer.train(work), tokenizer.CONFIG)
    save_weights(folder / "prior.safetensors", prior.train(work), {**prior.CONFIG, "sampling": prior.SAMPLING})
    for name, extractor in extractors.train(work).items():
        save_weights(folder / f"{name}.safetensors", extractor, extractors.CONFIGS[name])
    for name, judge in judges.train(work).items():
        save_weights(folder / f"{name}.safetensors", judge, {})


@torch.no_grad()
def measure(work: Work, folder: Path) -> dict[str, float]:
    """The card's figures, measured on the exported weights and held-out images."""
    model = zoo.load(folder)
    images, labels = composites(work, "test", work.size(TEST_COMPOSITES))
    pictures, truth = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels)
    tokens = model.vqgm.encode(pictures)
    decoded = model.vqgm.decode(tokens)
    error = (decoded - pictures).square().mean(dim=(1, 2, 3))
    flat = tokens.flatten(1)
    inputs = torch.cat((truth[:, None], flat[:, :-1]), dim=1)
    nats = [
        F.cross_entropy(model.prior(part).flatten(0, 1), targets.flatten()).item()
        for part, targets in zip(inputs.split(60), flat.split(60), strict=True)
    ]
    sampled, classes = prior.samples(work)["test"]
    sampled = sampled.view(-1, 16, 16)
    figures = {
        "tokenizer: PSNR of reconstructions of held-out composites, dB": float((-10 * error.log10()).mean()),
        "tokenizer: codebook tokens used by held-out composites, of 1024": float(len(flat.unique())),
        "prior: nats a token on held-out composites": sum(nats) / len(nats),
    }
    for name, extractor in model.extractors.items():
        top = accuracy(extractor, model.vqgm.codebook, sampled, classes, top=(1, 3))
        figures[f"{name}: top 1 on held-out samples"] = top[1]
        figures[f"{name}: top 3 on held-out samples"] = top[3]
    on_composites = correct(probabilities(model.judges, pictures), truth).mean(dim=1)
    on_samples = correct(probabilities(model.judges, model.vqgm.decode(sampled)), classes).mean(dim=1)
    for row, name in enumerate(model.judges):
        figures[f"{name}: top 1 on held-out composites"] = float(on_composites[row])
        figures[f"{name}: top 1 on held-out samples, decoded"] = float(on_samples[row])
    figures["all weight files, MB"] = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6
    return figures


def export(work: Work) -> None:
    """Write the package's weights and card, or with --quick the work folder's."""
    folder = work.folder / "weights" if work.quick else zoo.FOLDER
    write_package(work, folder)
    figures = measure(work, folder)
    times = json.loads((work.folder / "seconds.json").read_text(encoding="utf-8"))
    card = work.folder / "MODEL_CARD.md" if work.quick else CARD
    replace_whole(card, lambda file: file.write_text(_card(figures, times), "utf-8"))


def _card(figures: dict[str, float], times: dict[str, float]) -> str:
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items())
    seconds = "\n".join(f"| {name} | {value / 60:.0f} |" for name, value in times.items())
    ce, re = (extractors.CONFIGS[name]["width"] for name in ("ce", "re"))
    sampling = f"temperature {prior.SAMPLING['temperature']}, top-k {prior.SAMPLING['top_k']}"
    seen, sampled, tested = (f"{n:,}" for n in (tokenizer.IMAGES, prior.TRAIN_SAMPLES, prior.TEST_SAMPLES))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"""# The bundled model

A VQGAN-type tokenizer (64 x 64 px to 16 x 16 tokens, K = 1024, d = 32), a class-conditional transformer over its
tokens, the extractors CE (width {ce}) and RE (width {re}), and four judges. 12 classes.
Made for demonstrations and tests of cortex-fast; it knows nothing of the world beyond 59 sprites.

Data: composites of bundled sprites (NOTICE) on generated backgrounds; `cortex_fast.zoo.composites`. Splits share the
sprites and differ in everything else (background, place, size, turn, flip), so "held-out" means new composites, not new
drawings. The tokenizer and the judges saw {seen} training composites, the prior the same through the tokenizer.
The extractors saw {sampled} images sampled from the prior ({sampling}) and are measured on {tested} others.

| measured on the shipped float16 weights | |
|---|---|
{rows}

Training: `python tools/train_zoo.py`, resumable, seeded; {machine}.

| stage | minutes |
|---|---|
{seconds}

The judges' training blackens up to a quarter of the 4 x 4 px cells, varies brightness and blurs, so that masking tests
weigh evidence. Times are of one shared machine, with other work beside it.

Left out: an adversarial loss (at 4 x 4 px a token the reconstruction is sharp without it).
Weights: Apache-2.0, like the code. The sprites keep their licences (NOTICE).
"""
