"""Reading checkpoints: tensors as they were written, and nothing in a file is ever executed."""

import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from cortex_fast.data.digests import of_state
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state


class Hyperparameters(dict):
    """As Lightning keeps beside the tensors."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.kind = {"omegaconf"}


class Callback:
    """Its class is a key, its instance a value."""

    def __init__(self):
        self.best = torch.zeros(2)
        self.seen = [1, 2]


class Evil:
    """Does what it is told when it is unpickled: a function, its arguments, a state, items."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def state():
    torch.manual_seed(0)
    kept = OrderedDict(
        weight=torch.randn(3, 4),
        parameter=nn.Parameter(torch.randn(2)),
        turned=torch.randn(4, 5).T,
        part=torch.arange(12).view(3, 4)[1:],
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        flag=torch.tensor(True),
        none=torch.empty(0, 2),
    )
    kept._metadata = {"": {"version": 1}}
    return kept


def assert_same(read, state):
    assert set(read) == set(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


@pytest.mark.parametrize("tensors_only", [False, True])
def test_one_tensor_has_no_name(tmp_path, tensors_only):
    torch.save(torch.arange(6.0).view(2, 3), tmp_path / "c.pth")
    assert_same(read_state(tmp_path / "c.pth", tensors_only=tensors_only), {"": torch.arange(6.0).view(2, 3)})


@pytest.mark.parametrize("tensors_only", [False, True])
def test_tensors_are_read_as_they_were_written(tmp_path, state, tensors_only):
    path = tmp_path / "last.ckpt"
    for content in ({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 0.1, "m": torch.ones(2)}]}, state):
        torch.save(content, path)
        assert_same(read_state(path, tensors_only=tensors_only), state)
    assert of_state(read_state(path)) == of_state(state) != of_state({**state, "flag": torch.tensor(False)})


def test_lightnings_objects_are_named_then_left_out(tmp_path, state):
    path = tmp_path / "last.ckpt"
    beside = {"callbacks": {Callback: Callback()}, "hyper_parameters": Hyperparameters(a=1, b=torch.float16)}
    torch.save({**beside, "state_dict": state}, path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: carries .*Callback, .*Hyperparameters\).*tensors_only"):
        read_state(path)
    assert_same(read_state(path, tensors_only=True), state)


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_executed(tmp_path, state, protocol):
    path, proof = tmp_path / "last.ckpt", tmp_path / "proof"
    code = f"open({str(proof)!r}, 'w')"
    evil = [
        Evil(os.system, (f"touch {proof}",)),
        Evil(exec, (code,)),
        Evil(eval, (code,), {"state": 1}, iter([1]), iter([("key", 2)])),
        Evil(map, (exec, [code])),
        Evil(getattr, (Evil(__import__, ("os",)), "system")),
        Evil(torch.load, (str(proof),)),
        Evil(setattr, (Callback, "changed", True)),
    ]
    for kept in (*evil, evil):
        torch.save({"callbacks": kept, "state_dict": state}, path, pickle_protocol=protocol)
        assert_same(read_state(path, tensors_only=True), state)
    assert not proof.exists() and not hasattr(Callback, "changed")
    assert pickle.loads(pickle.dumps(Evil(exec, (code,)), protocol)) is None and proof.exists()  # they do work


def test_a_pickle_cannot_change_the_functions_it_calls(tmp_path, state):
    """A state for a function is what unpickling would set its attributes from."""
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "evil": Evil(OrderedDict, (), None)}, path)
    assert_same(read_state(path, tensors_only=True), state)
    opcodes = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."  # GLOBAL, a dict, BUILD
    rewrite(path, opcodes)
    with pytest.raises(CheckpointError, match="tried to change the function"):
        read_state(path, tensors_only=True)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "a")


def rewrite(path, opcodes):
    """The archive with another pickle in it."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, opcodes if name.endswith("data.pkl") else content)


def test_other_files_are_refused_by_name(tmp_path, state):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state}, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no checkpoint at all"):
        path.write_bytes(damaged)
        for tensors_only in (False, True):
            with pytest.raises(CheckpointError, match=r"last\.ckpt"):
                read_state(path, tensors_only=tensors_only)
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
    assert_same(read_state(path), state)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: tensors_only reads the zip format"):
        read_state(path, tensors_only=True)
    torch.save({"state_dict": state}, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/constants.pkl", b"\x80\x02).")  # as TorchScript has, which torch.load hands on
    for tensors_only in (False, True):
        with pytest.raises(CheckpointError, match=r"last\.ckpt: a TorchScript archive"):
            read_state(path, tensors_only=tensors_only)
    for content in ({"state_dict": {}}, [1], {"epoch": 3}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: no tensors under 'state_dict'"):
            read_state(path)
    torch.save({"state_dict": state}, path)
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x01\x02")  # the last entry of the archive's list of members
    for where, byte in ((at, 0), (at + 6, 250)):  # its mark, the version it asks for
        path.write_bytes(whole[:where] + bytes([byte]) + whole[where + 1 :])
        for tensors_only in (False, True):
            with pytest.raises(CheckpointError, match=r"last\.ckpt: "):
                read_state(path, tensors_only=tensors_only)
    with pytest.raises(IsADirectoryError, match=r"^path: expected a checkpoint, got the folder"):
        read_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_state(tmp_path / "nowhere")
