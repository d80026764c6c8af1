"""The commands train-extractor and test-extractor: from a token store to an extractor and its accuracy table."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add both commands; each sets `run`, the function that it calls."""
    trained = commands.add_parser(
        "train-extractor", help="train an extractor on a token store; several GPUs by torchrun"
    )
    trained.add_argument("store", type=Path, help="token store (.safetensors)")
    trained.add_argument("--extractor", default="ce", help="ce, ce_deep, re or te (default ce)")
    trained.add_argument("--out", type=Path, required=True, help="the extractor file to write (.safetensors)")
    trained.add_argument("--validation", type=Path, help="token store; the epoch with the least loss on it is written")
    trained.add_argument("--epochs", type=int, default=80, help="passes over the images (default 80)")
    trained.add_argument("--batch-size", type=int, default=512, help="images a step, of all processes (default 512)")
    trained.add_argument("--lr", type=float, default=1e-3, help="learning rate of the first epoch (default 0.001)")
    trained.add_argument("--weight-decay", type=float, default=1e-4, help="L2 penalty (default 0.0001)")
    trained.add_argument("--step-epochs", type=int, default=20, help="epochs between reductions of the lr (default 20)")
    trained.add_argument("--gamma", type=float, default=0.1, help="factor of each reduction (default 0.1)")
    trained.add_argument("--width", type=int, default=512, help="hidden channels (default 512, the paper's)")
    trained.add_argument("--seed", type=int, default=0, help="of weights, order and dropout (default 0)")
    trained.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: bfloat16 if the GPU has it")
    trained.add_argument("--every", type=int, help="steps after which a checkpoint is written, besides every epoch")
    trained.add_argument("--resume", action="store_true", help="continue from the checkpoint beside --out")
    trained.set_defaults(run=_train)
    tested = commands.add_parser("test-extractor", help="an extractor's top 1, 3, 5 and 10 accuracy on a token store")
    tested.add_argument("store", type=Path, help="token store (.safetensors)")
    tested.add_argument("extractor", type=Path, help="extractor file (.safetensors)")
    tested.set_defaults(run=_test)


def _train(parsed: argparse.Namespace) -> int:
    from cortex_fast.data import TokenStore
    from cortex_fast.extractors import TrainingRecipe
    from cortex_fast.extractors.distributed import joined
    from cortex_fast.extractors.fitting import fit

    recipe = TrainingRecipe(
        **{setting.name: getattr(parsed, setting.name) for setting in dataclasses.fields(TrainingRecipe)}
    )
    store = TokenStore.load(parsed.store)
    validation = None if parsed.validation is None else TokenStore.load(parsed.validation)
    with (
        joined() as (world, device),
        tqdm(total=recipe.epochs * len(store), unit=" images", disable=None if world.rank == 0 else True) as bar,
    ):
        fit(
            store,
            parsed.out,
            parsed.extractor,
            recipe,
            width=parsed.width,
            validation=validation,
            seed=parsed.seed,
            precision=_precision(parsed.precision, device),
            device=device,
            every=parsed.every,
            resume=parsed.resume,
            report=lambda line: bar.write(line) if world.rank == 0 else None,
            tick=bar.update,
        )
    return 0


def _precision(choice: str, device: "torch.device") -> str:
    """The precision that "auto" stands for on this device, or the choice."""
    import torch

    if choice != "auto":
        return choice
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def _test(parsed: argparse.Namespace) -> int:
    import torch

    from cortex_fast.data import TokenStore
    from cortex_fast.extractors import TOP, accuracy, load_extractor
    from cortex_fast.extractors.files import extractor_header

    store = TokenStore.load(parsed.store)
    header = extractor_header(parsed.extractor)
    sizes = header["sizes"]
    if header["name"] == "re":  # works on any grid
        sizes["grid"] = store.grid
    for name, got in (("in_channels", store.codebook.shape[1]), ("grid", store.grid)):
        if sizes[name] != got:
            raise ValueError(f"{parsed.extractor}: expected {name} {got} as in {parsed.store}, got {sizes[name]}")
    classes, largest = sizes["num_classes"], int(store.labels.max()) if len(store) else 0
    if largest >= classes:
        raise ValueError(f"{parsed.store}: expected labels below {classes} as in {parsed.extractor}, got {largest}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = load_extractor(parsed.extractor).to(device)
    accuracies = accuracy(extractor, store.codebook.float().to(device), store.tokens, store.labels, top=TOP)
    print(f"{len(store)} images of {len(store.names)} classes")
    for k, share in accuracies.items():
        print(f"top {k:<3} {share:.2%}")
    return 0
