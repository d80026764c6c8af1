"""A script of the published shape, unedited, by the runner: 25 images at paper scale, N = 20, from the start of Python
to the written tables. Its sibling is one of the N draws of the procedure, without any start.

Floor: the products of both passes through the extractor, as in test_smoothgrad.py, but with the first layer for every
copy, because the noise is independent.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.baselines import published
from benchmarks.harness import Case, Sibling
from benchmarks.machine import Floor
from cortex_fast.compat.cortex import ClassificationNet1
from tests.compat.cortex import scripts

SAMPLES = 20
TOLERANCE = 0.05  # of the largest value: where rounding flips a ReLU, a gradient moves by that ReLU's whole share
FEW = 2  # images compared with the procedure, without noise


@dataclass(frozen=True)
class Project:
    folder: tempfile.TemporaryDirectory[str]
    model: ClassificationNet1
    x: Tensor
    labels: Tensor


def project(sizes: dict[str, int], images: int, _device: torch.device) -> Project:
    folder = tempfile.TemporaryDirectory()
    scripts.write_project(Path(folder.name), sizes, images)
    rest = {name: size for name, size in sizes.items() if name != "num_classes"}
    model = ClassificationNet1(sizes["num_classes"], **rest).eval()
    model.load_state_dict(torch.load(Path(folder.name) / "checkpoints" / "net.pth", weights_only=True))
    x = np.stack([np.load(Path(folder.name) / "datasets" / f"{image}.npy") for image in range(images)])
    return Project(folder, model, torch.from_numpy(x), torch.arange(images) % sizes["num_classes"])


def by_runner(data: Project, samples: int = SAMPLES, spread: float = 0.2, batch: int | None = None) -> None:
    options = {"samples": samples, "spread": spread, "batch_size": batch or len(data.x)}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "cortex_fast.compat.cortex", "run", "TIS.py", *arguments]
    subprocess.run(command, cwd=data.folder.name, check=True, capture_output=True)


def error_without_noise(data: Project, _result: None) -> float:
    scripts.maps(Path(data.folder.name))
    by_runner(data, samples=1, spread=0.0)
    maps = scripts.maps(Path(data.folder.name))
    exact = published.draw_gradients(data.model, data.x[:FEW], data.labels[:FEW], 0.0).amax(dim=1).flatten(1)
    got = torch.tensor(np.stack([maps[f"{image}.npy"] for image in range(FEW)]))
    return float((got - exact).abs().max() / exact.abs().max())


def draw_gradients(data: Project) -> Tensor:
    spread = 0.2 * float(data.x.max() - data.x.min())
    return published.draw_gradients(data.model, data.x, data.labels, spread)


def cases(quick: bool) -> list[Case]:
    sizes = {"num_classes": 1000, "in_channels": 256, "width": 512, "grid": 16}
    sizes, images = (scripts.SIZES, 3) if quick else (sizes, 25)
    width, side = sizes["width"], sizes["grid"]
    layers = [(sizes["in_channels"], side), *[(width, side)] * 3, *[(width, side // 2)] * 4]
    products = sum(36 / 16 * grid**2 * inputs * width for inputs, grid in layers)  # Winograd's
    products += width * (side // 4) ** 2 * 8 * width + (8 * width) ** 2
    return [
        Case(
            operator="published_script",
            name=f"{images} images, N = {SAMPLES}",
            sizes=f"ClassificationNet1, {sizes}, float32",
            floor=Floor(bytes=0, operations=round(4 * products * images * SAMPLES)),
            data=partial(project, sizes, images),
            siblings=(
                Sibling("runner, all of it", by_runner, error_without_noise, TOLERANCE),
                Sibling(f"published / {SAMPLES}", draw_gradients, None, TOLERANCE, share=1 / SAMPLES),
            ),
        )
    ]


def test_published_script(measure):
    measure()
