"""Scripts of the published shape, written for this test, unedited through the runner."""

import csv
import runpy
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cortex_fast.compat.cortex.__main__ import main
from cortex_fast.compat.cortex.running import run

MODEL = """
import torch
from torch import nn

SIZES = dict(in_channels=5, width=16, grid=8)


class ClassificationNet1(nn.Module):
    def __init__(self, num_classes, in_channels=256, width=512, grid=16):
        super(ClassificationNet1, self).__init__()
        for group in "12":
            for number in "1234":
                inputs = in_channels if group + number == "11" else width
                setattr(self, f"conv{group}_{number}", nn.Conv2d(inputs, width, 3, padding=1))
                setattr(self, f"bn{group}_{number}", nn.BatchNorm2d(width))
        self.fc1, self.bn_fc1 = nn.Linear(width * (grid // 4) ** 2, 8 * width), nn.BatchNorm1d(8 * width)
        self.fc2, self.bn_fc2 = nn.Linear(8 * width, 8 * width), nn.BatchNorm1d(8 * width)
        self.fc3, self.relu, self.dropout = nn.Linear(8 * width, num_classes), nn.ReLU(), nn.Dropout(0.5)

    def forward(self, x):
        for group in "12":
            for number in "1234":
                x = self.relu(getattr(self, f"bn{group}_{number}")(getattr(self, f"conv{group}_{number}")(x)))
            x = nn.functional.max_pool2d(x, 2)
        x = self.dropout(self.relu(self.bn_fc1(self.fc1(x.view(x.size(0), -1)))))
        return self.fc3(self.relu(self.bn_fc2(self.fc2(x))))


class ClassificationNet2(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(5 * 64, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)).relu()
"""

SCRIPT = """
import argparse
import csv
import os

import numpy as np
import torch
from model import SIZES, ClassificationNet1, ClassificationNet2

class AverageSaliency:
    def __init__(self, model, output_index=0):
        self.model, self.output_index = model, output_index

    def get_grad(self, input_images, target_indices):
        input_images.requires_grad = True
        outputs = self.model(input_images)
        grads = [
            torch.autograd.grad(outputs[i, t], input_images, create_graph=True)[0][i]
            for i, t in enumerate(target_indices)
        ]
        return torch.stack(grads)

    def get_average_grad(self, input_images, target_indices, stdev_spread=0.2, nsamples=20):
        stdev = stdev_spread * (torch.max(input_images) - torch.min(input_images))
        total = torch.zeros_like(input_images, dtype=torch.float64)
        for _ in range(nsamples):
            noise = torch.randn(input_images.shape) * stdev
            total += self.get_grad(input_images + noise.to(input_images.device), target_indices)
        return total / nsamples


class SingleSaliency(AverageSaliency):
    def __init__(self, model, output_index=0):
        super(SingleSaliency, self).__init__(model, output_index)


def main(args):
    device = torch.device(f"cuda:{args.gpu}")
    torch.cuda.set_device(device)
    torch.manual_seed(7)
    net = ClassificationNet1(4, **SIZES) if args.model == 1 else ClassificationNet2(4)
    net.load_state_dict(torch.load("checkpoints/net.pth", map_location=device))
    net.to(device)
    net.cuda().eval()
    folder = "datasets"
    with open(os.path.join(folder, "test_embeddings.csv")) as f:
        rows = [line.split(",")[:2] for line in f.read().split()[1:]]
    for start in range(0, len(rows), args.batch_size):
        part = rows[start : start + args.batch_size]
        x = torch.tensor(np.stack([np.load(os.path.join(folder, name)) for name, _ in part])).to("cuda:0")
        labels = torch.tensor([int(label) for _, label in part], device=device)
        grads = SingleSaliency(net).get_average_grad(x, labels, args.spread, args.samples).detach().cpu().numpy()
        for (name, label), grad in zip(part, grads):
            os.makedirs("results", exist_ok=True)
            with open(f"results/label_{label}.csv", "a", newline="") as f:
                csv.writer(f).writerow([name, label, grad.max(axis=0).flatten().tolist()])
    print("type:", type(net).__module__)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=int, default=1)
    parser.add_argument("--gpu", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=2)
    main(parser.parse_args())
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder of a user of the published code, who stands in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "TIS.py").write_text(SCRIPT)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "checkpoints").mkdir()
    generator = np.random.default_rng(0)
    lines = ["filename,label,indices"]
    for index in range(5):
        np.save(tmp_path / "datasets" / f"{index}.npy", generator.standard_normal((5, 8, 8)).astype(np.float32))
        lines.append(f"{index}.npy,{index % 4}")
    (tmp_path / "datasets" / "test_embeddings.csv").write_text("\n".join(lines))
    save(tmp_path)
    yield tmp_path
    sys.modules.pop("model", None)


def save(folder, name="ClassificationNet1"):
    names: dict = {}
    exec(MODEL, names)
    torch.manual_seed(0)
    net = names[name](4, **(names["SIZES"] if name == "ClassificationNet1" else {}))
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(2.4 if tensor.ndim > 1 else 1).add_(0 if tensor.ndim > 1 else 0.1)
    torch.save(net.state_dict(), folder / "checkpoints" / "net.pth")


def maps(folder):
    rows = [row for path in sorted((folder / "results").iterdir()) for row in csv.reader(path.open())]
    for path in (folder / "results").iterdir():
        path.unlink()
    return {name: np.array([float(number) for number in values[1:-1].split(",")]) for name, _, values in rows}


def plainly(project, monkeypatch):
    """What the script computes by itself, on a machine whose CUDA calls were taken out."""
    source = SCRIPT.replace('f"cuda:{args.gpu}"', '"cpu"').replace('"cuda:0"', '"cpu"').replace("net.cuda()", "net")
    (project / "plain.py").write_text(source)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(sys, "argv", ["plain.py"])
    monkeypatch.syspath_prepend(str(project))
    runpy.run_path("plain.py", run_name="__main__")
    sys.modules.pop("model", None)
    return maps(project)


def test_the_script_computes_the_same_and_says_what_was_replaced(project, monkeypatch, capfd):
    wanted = plainly(project, monkeypatch)
    capfd.readouterr()
    before = torch.load, torch.cuda.set_device, sys.argv, list(sys.path), sys.modules["__main__"]
    assert run(project / "TIS.py", ["--batch_size", "3"]) == 0
    assert torch.get_device_module("cuda") is torch.cuda
    assert (torch.load, torch.cuda.set_device, sys.argv, list(sys.path), sys.modules["__main__"]) == before
    got = maps(project)
    assert got.keys() == wanted.keys() and len(got) == 5
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-3, atol=1e-5 * abs(wanted[name]).max())
    out, err = capfd.readouterr()
    assert out == "type: cortex_fast.compat.cortex.networks\n"  # the script's own line alone
    replaced = "replaced AverageSaliency of __main__, ClassificationNet1 of model, SingleSaliency of __main__; "
    assert f"cortex-fast: {replaced}" in err and not list(project.rglob("model.*.pyc"))


def test_a_network_that_is_not_the_published_one_stays_theirs(project, capfd):
    save(project, "ClassificationNet2")
    assert run(project / "TIS.py", ["--model", "2"]) == 0
    out, err = capfd.readouterr()
    assert out == "type: model\n" and "left ClassificationNet2 as it is: " in err and len(maps(project)) == 5


def test_a_network_of_the_published_names_that_computes_otherwise_stays_theirs(project, capfd):
    changed = MODEL.replace("return self.fc3(self.relu(self.bn_fc2(", "return self.fc3(torch.tanh(self.bn_fc2(")
    (project / "model.py").write_text(changed)
    assert run(project / "TIS.py") == 0
    out, err = capfd.readouterr()
    assert out == "type: model\n"
    assert "left ClassificationNet1 as it is: it computes something else than the published one" in err


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("nsamples=20", "nsamples=50", "AverageSaliency.get_average_grad has other arguments or defaults"),
        ("outputs[i, t]", "2 * outputs[i, t]", "its gradients differ from the published one's"),
        ("torch.randn(input_images.shape)", "torch.rand(input_images.shape)", "its noise differs"),
    ],
)
def test_a_saliency_that_was_changed_stays_theirs(project, capfd, old, new, reason):
    assert SCRIPT.count(old) == 1
    (project / "TIS.py").write_text(SCRIPT.replace(old, new))
    assert run(project / "TIS.py") == 0
    assert f"left AverageSaliency as it is: {reason}" in capfd.readouterr().err


def write(folder, text):
    (folder / "script.py").write_text(textwrap.dedent(text))
    return folder / "script.py"


def test_exit_status_arguments_and_exceptions_are_the_scripts(project, capfd):
    script = write(project, "import sys\nprint(sys.argv[1:], __name__, sys.path[0])\nsys.exit(int(sys.argv[1]))")
    assert run(script, ["3", "--flag"]) == 3
    out, err = capfd.readouterr()
    assert out == f"['3', '--flag'] __main__ {project}\n" and "cortex-fast: nothing was replaced; " in err
    script = write(
        project,
        """
        class SingleSaliency:
            pass

        def fail():
            raise KeyError("here")

        fail()
        """,
    )
    assert run(script) == 1
    err = capfd.readouterr().err
    wanted = [
        f'File "{script}", line 8, in <module>',
        "fail()",
        f'File "{script}", line 6, in fail',
        "KeyError: 'here'",
    ]
    assert [part for part in wanted if part not in err] == [] and "cortex_fast/compat" not in err
    assert "left SingleSaliency as it is: SingleSaliency.__init__ has other arguments" in err
    assert run(write(project, "x = (")) == 1
    assert "SyntaxError" in capfd.readouterr().err


def test_the_searches_keep_the_scripts_own_defaults(project, capfd):
    script = write(
        project,
        """
        import torch
        from torch import nn

        STEPS = 3

        def generate_max_activation_image_embedding(
            model, target_label, device, initial_embedding, mask, VQ_model, pretrained_models, initial_label,
            num_steps=STEPS, lr=0.5, reg=0,
        ):
            raise RuntimeError("the script's own ran")

        def create_mask(shape, top_left, bottom_right):
            mask = torch.zeros(shape)
            if len(shape) == 2:
                for i in range(top_left[0], bottom_right[0] + 1):
                    for j in range(top_left[1], bottom_right[1] + 1):
                        mask[i * 16 + j] = 1
            else:
                mask[:, :, top_left[0] : bottom_right[0] + 1, top_left[1] : bottom_right[1] + 1] = 1
            return mask

        class Sum(nn.Module):
            def forward(self, x):
                return x.sum(dim=(2, 3))

        x = torch.zeros(1, 5, 8, 8)
        found, _ = generate_max_activation_image_embedding(
            Sum().eval(), 1, "cuda:0", x, create_mask(x.shape, (0, 0), (0, 0)), None, {}, 0
        )
        found = found.detach()
        print(round(float(found[0, 1, 0, 0]), 4), float(found.abs().sum() - found[0, 1, 0, 0]))
        """,
    )
    assert run(script) == 1  # the judging at the end has no VQ_model
    assert "'NoneType' object has no attribute 'quantize'" in capfd.readouterr().err
    source = script.read_text().replace("None, {}, 0", "Model(), {}, 0")
    model = """
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.quantize = nn.Module()
                self.quantize.embedding = nn.Embedding(4, 5)

            def decode(self, z):
                return z[:, :3]
    """
    script.write_text(source.replace("x = torch.zeros", textwrap.dedent(model) + "\nx = torch.zeros"))
    assert run(script) == 0
    out, err = capfd.readouterr()
    assert out == "1.5 0.0\n"  # three of Adam's steps of 0.5
    assert "replaced create_mask of __main__, generate_max_activation_image_embedding of __main__" in err


def test_mistakes_are_told(project, capfd):
    assert main(["run", "nowhere.py"]) == 2
    assert "SCRIPT: there is no file nowhere.py" in capfd.readouterr().err
    assert main(["run", str(project)]) == 2
    assert "SCRIPT: expected a Python file, got the folder" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def test_the_command_in_a_process_of_its_own(project):
    script = write(project, "import sys, torch\ntorch.cuda.set_device(1)\nsys.exit('bye')")
    found = subprocess.run(
        [sys.executable, "-m", "cortex_fast.compat.cortex", "run", script.name, "-x"], capture_output=True, text=True
    )
    assert found.returncode == 1 and found.stderr.startswith("bye\ncortex-fast: nothing was replaced; ")
