"""No loader hands on torch's advice to execute what a file says."""

import datetime
import pickle

import pytest
import torch

from cortex_fast.data.results import ResultFileError
from cortex_fast.extractors.checkpoints import load_checkpoint
from cortex_fast.vqgm.checkpoints import CheckpointError, read_state


def legacy(path, **beside):
    torch.save({"state_dict": {"a": torch.zeros(3)}, **beside}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_messages_have_the_reason_alone(tmp_path):
    path = tmp_path / "last.ckpt"
    objects = legacy(path, day=datetime.date(2020, 1, 1))
    files = {
        b"Entry not found": "it is nothing that torch.save writes",
        b'{"error": "unauthorised"}': "it is nothing that torch.save writes",
        b"\x1f\x8b\x08\x00\x00\x00": "it is nothing that torch.save writes",
        bytes(1000): "it is nothing that torch.save writes",
        pickle.dumps({"a": datetime.date(2020, 1, 1)}): "",
        objects: r"it carries pickled objects, such as datetime\.date",
        legacy(path)[:60]: "",
        b"": "it ends too soon",
    }
    for content, message in files.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"^{path}: not a readable checkpoint \(.*{message}") as caught:
            read_state(path)
        with pytest.raises(
            ResultFileError, match=rf"^{path}: a truncated or damaged checkpoint of a training run \(.+\)$"
        ) as resumed:
            load_checkpoint(path, {}, None, None)  # neither is reached
        for error in (caught, resumed):
            assert len(str(error.value)) < 250 and "\n" not in str(error.value)
            assert not [
                word for word in ("weights_only", "arbitrary code", "add_safe_globals") if word in str(error.value)
            ]
