"""Stage 3: the information extractors CE and RE, on images sampled from the prior."""

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cortex_fast.data.results import replace_whole
from cortex_fast.extractors import TrainingRecipe, build, train_extractor

from . import prior, tokenizer
from .common import Work

CONFIGS = {
    "ce": {"num_classes": 12, "in_channels": 32, "width": 48, "grid": 16},
    "re": {"num_classes": 12, "in_channels": 32, "width": 64, "grid": 16},
}
RECIPE = TrainingRecipe(epochs=12, batch_size=64, lr=1e-3, weight_decay=1e-4, step_epochs=5, gamma=0.1)


def train(work: Work) -> dict[str, nn.Module]:
    """Train or load both extractors."""
    codebook = tokenizer.train(work).quantize.embedding.weight.detach()
    trained = {}
    for name, config in CONFIGS.items():
        path = work.folder / f"{name}.safetensors"
        torch.manual_seed(2)
        extractor = build(name, **config).to(memory_format=torch.channels_last)
        if path.exists():
            extractor.load_state_dict(load_file(path))
        else:
            tokens, labels = prior.samples(work)["train"]

            def report(epoch: int, loss: float, name: str = name) -> None:
                print(f"{name}: epoch {epoch + 1}/{RECIPE.epochs}, loss {loss:.4f}", flush=True)

            train_extractor(extractor, codebook, tokens.view(-1, 16, 16), labels, RECIPE, seed=2, after_epoch=report)
            weights = {key: tensor.contiguous() for key, tensor in extractor.state_dict().items()}
            replace_whole(path, lambda file, weights=weights: save_file(weights, file))
        trained[name] = extractor.eval()
    return trained
