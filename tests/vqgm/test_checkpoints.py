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
    """Lightning saves such objects beside the tensors."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.kind = {"omegaconf"}


class Callback:
    """The class is a key, and an instance a value."""

    def __init__(self):
        self.best = torch.zeros(2)
        self.seen = [1, 2]


class Evil:
    """Unpickling calls a function with arguments, sets a state, adds items."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def state():
    torch.manual_seed(0)
    tensors = OrderedDict(
        weight=torch.randn(3, 4),
        parameter=nn.Parameter(torch.randn(2)),
        turned=torch.randn(4, 5).T,
        part=torch.arange(12).view(3, 4)[1:],
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        flag=torch.tensor(True),
        none=torch.empty(0, 2),
    )
    tensors._metadata = {"": {"version": 1}}
    return tensors


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
    state["wide"] = torch.tensor([1, 2**16 - 1]).to(torch.uint16)  # of a type without a storage of its own
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
    for callbacks in (*evil, evil):
        torch.save({"callbacks": callbacks, "state_dict": state}, path, pickle_protocol=protocol)
        assert_same(read_state(path, tensors_only=True), state)
    assert not proof.exists() and not hasattr(Callback, "changed")
    assert pickle.loads(pickle.dumps(Evil(exec, (code,)), protocol)) is None and proof.exists()  # they do act


def test_a_pickle_cannot_change_the_functions_it_calls(tmp_path, state):
    """Unpickling would set the attributes of a function from a state."""
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


def rewritten(path, to, change, **options):
    """The archive with the content of each record passed through `change`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", **options) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record.filename)))


@pytest.mark.parametrize("tensors_only", [False, True])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, state, tensors_only):
    """Bytes between records mean nothing."""
    tensors = {name: state[name] for name in ("weight", "half", "flag")}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    whole, refused = path.read_bytes(), 0
    for at in range(int(tensors_only), len(whole), 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            assert_same(read_state(path, tensors_only=tensors_only), tensors)
        except CheckpointError as error:
            assert "last.ckpt: " in str(error)
            refused += 1
    values = tensors["weight"].numpy().tobytes()
    assert values in whole and refused > len(whole) // 10
    for at in (whole.index(values), whole.index(values) + 47):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match=r"last\.ckpt: .*data/0 is damaged: its checksum does not match"):
            read_state(path, tensors_only=tensors_only)


@pytest.mark.parametrize("tensors_only", [False, True])
def test_a_record_that_does_not_fit_its_tensor_is_refused(tmp_path, state, tensors_only):
    path, bad = tmp_path / "last.ckpt", tmp_path / "bad.ckpt"
    torch.save({"state_dict": {"weight": state["weight"], "more": torch.ones(9).to(torch.uint16)}}, path)
    for name, got, wanted in (("data/0", 47, 48), ("data/0", 0, 48), ("data/1", 17, 18)):
        rewritten(path, bad, lambda record, content, name=name, got=got: content[:got] if name in record else content)
        with pytest.raises(CheckpointError, match=rf"bad\.ckpt: .*{name} has {got} bytes, its tensor has {wanted}"):
            read_state(bad, tensors_only=tensors_only)
    rewritten(path, bad, lambda record, content: content, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt: .*is compressed"):  # torch would map it as it is
        read_state(bad, tensors_only=tensors_only)
    rewritten(path, bad, lambda record, content: content)
    assert read_state(bad, tensors_only=tensors_only)["weight"].equal(state["weight"])
    with zipfile.ZipFile(bad, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("last/data/0", state["weight"].numpy().tobytes())
    with pytest.raises(CheckpointError, match=r"bad\.ckpt: .*two records have the same name"):
        read_state(bad, tensors_only=tensors_only)


def test_sizes_are_compared_in_the_older_format_too(tmp_path, state):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"weight": state["weight"]}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    at = whole.index(state["weight"].numpy().tobytes()) - 8  # where the number of values is
    for damaged in (whole[:-4], whole[:at] + bytes([3]) + whole[at + 1 :], whole[: at + 8], whole[:at]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.ckpt: not a readable checkpoint"):
            read_state(path)


@pytest.mark.parametrize("tensors_only", [False, True])
def test_a_tensor_that_its_file_cannot_hold_is_refused(tmp_path, tensors_only):
    path = tmp_path / "last.ckpt"
    for weight, message in (
        (torch.zeros(1).expand(10**9, 1000), r"weight: \[1000000000, 1000\] is more than a file of \d+ bytes holds"),
        (torch.zeros(2, 2).to_sparse(), "weight: expected a plain tensor, got torch.sparse_coo"),
    ):
        torch.save({"state_dict": {"weight": weight, "bias": torch.zeros(2)}}, path)
        if weight.is_sparse and tensors_only:  # the function that rebuilds it is not called
            assert list(read_state(path, tensors_only=True)) == ["bias"]
            continue
        with pytest.raises(CheckpointError, match=rf"last\.ckpt: {message}"):
            read_state(path, tensors_only=tensors_only)


def test_functions_of_torch_itself_are_not_called_either(tmp_path, state):
    """Other names in the modules of the functions that rebuild tensors are inert too."""
    path, changed, proof = tmp_path / "last.ckpt", tmp_path / "changed.ckpt", tmp_path / "proof"
    torch.save({"state_dict": state, "evil": Evil(torch.serialization.save, ({"x": 1}, str(proof)))}, path)
    for module in (b"torch", b"torch.serialization", b"torch._utils", b"collections"):
        renamed = b"c" + module + b"\nsave\n"
        rewritten(path, changed, lambda _, text, to=renamed: text.replace(b"ctorch.serialization\nsave\n", to))
        assert_same(read_state(changed, tensors_only=True), state)
    assert not proof.exists()
    torch.serialization.save({"x": 1}, str(proof))
    assert proof.exists()  # it does write
