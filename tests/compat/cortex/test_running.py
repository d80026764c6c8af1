"""Scripts of the published shape, written for this test, unedited through the runner."""

import runpy
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from cortex_fast.compat.cortex.__main__ import main
from cortex_fast.compat.cortex.running import run
from tests.compat.cortex.scripts import MODEL, SCRIPT, SIZES, maps, save, write_project


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory like that of a user of the published code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    write_project(tmp_path, SIZES, images=5)
    yield tmp_path
    sys.modules.pop("model", None)


def plainly(project, monkeypatch):
    """The script's results without the package, its CUDA calls removed."""
    source = SCRIPT.replace('f"cuda:{args.gpu}"', '"cpu"').replace('"cuda:0"', '"cpu"').replace("net.cuda()", "net")
    (project / "plain.py").write_text(source)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(sys, "argv", ["plain.py"])
    monkeypatch.syspath_prepend(str(project))
    runpy.run_path("plain.py", run_name="__main__")
    sys.modules.pop("model", None)
    return maps(project)


def test_the_script_computes_the_same_and_reports_what_was_replaced(project, monkeypatch, capfd):
    expected = plainly(project, monkeypatch)
    capfd.readouterr()
    before = torch.load, torch.cuda.set_device, sys.argv, list(sys.path), sys.modules["__main__"]
    assert run(project / "TIS.py", ["--batch_size", "3"]) == 0
    assert torch.get_device_module("cuda") is torch.cuda
    assert (torch.load, torch.cuda.set_device, sys.argv, list(sys.path), sys.modules["__main__"]) == before
    got = maps(project)
    assert got.keys() == expected.keys() and len(got) == 5
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-3, atol=1e-5 * abs(expected[name]).max())
    out, err = capfd.readouterr()
    assert out == "type: cortex_fast.compat.cortex.networks\n"  # the script's own line alone
    replaced = "replaced AverageSaliency of __main__, ClassificationNet1 of model, SingleSaliency of __main__; "
    assert f"cortex-fast: {replaced}" in err and not list(project.rglob("model.*.pyc"))


def test_a_network_that_is_not_the_published_one_is_not_replaced(project, capfd):
    save(project, SIZES, "ClassificationNet2")
    assert run(project / "TIS.py", ["--model", "2"]) == 0
    out, err = capfd.readouterr()
    assert out == "type: model\n" and "left ClassificationNet2 as it is: " in err and len(maps(project)) == 5


def test_a_network_that_computes_something_else_is_not_replaced(project, capfd):
    changed = MODEL.replace("return self.fc3(self.relu(self.bn_fc2(", "return self.fc3(torch.tanh(self.bn_fc2(")
    (project / "model.py").write_text(f"SIZES = {SIZES}\n{changed}")
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
def test_a_changed_saliency_is_not_replaced(project, capfd, old, new, reason):
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
    expected = [
        f'File "{script}", line 8, in <module>',
        "fail()",
        f'File "{script}", line 6, in fail',
        "KeyError: 'here'",
    ]
    assert [part for part in expected if part not in err] == [] and "cortex_fast/compat" not in err
    assert "left SingleSaliency as it is: SingleSaliency.__init__ has other arguments" in err
    assert run(write(project, "x = (")) == 1
    assert "SyntaxError" in capfd.readouterr().err


def test_searches_have_the_scripts_defaults(project, capfd):
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
        x, _ = generate_max_activation_image_embedding(
            Sum().eval(), 1, "cuda:0", x, create_mask(x.shape, (0, 0), (0, 0)), None, {}, 0
        )
        x = x.detach()
        print(round(float(x[0, 1, 0, 0]), 4), float(x.abs().sum() - x[0, 1, 0, 0]))
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


def test_a_wrong_script_is_an_error(project, capfd):
    assert main(["run", "nowhere.py"]) == 2
    assert "SCRIPT: there is no file nowhere.py" in capfd.readouterr().err
    assert main(["run", str(project)]) == 2
    assert "SCRIPT: expected a Python file, got the folder" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main([])


def test_the_command_in_a_new_process(project):
    script = write(project, "import sys, torch\ntorch.cuda.set_device(1)\nsys.exit('bye')")
    finished = subprocess.run(
        [sys.executable, "-m", "cortex_fast.compat.cortex", "run", script.name, "-x"], capture_output=True, text=True
    )
    assert finished.returncode == 1 and finished.stderr.startswith("bye\ncortex-fast: nothing was replaced; ")
