"""Checks of torch's checkpoints, which are zip archives, that torch itself leaves out.

torch compares no checksum, and where it maps a file it takes as many bytes for a tensor as the pickle says, whatever
the record's size.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

_ITEM_SIZES = {
    **dict.fromkeys(("ByteStorage", "CharStorage", "BoolStorage", "QUInt8Storage", "QInt8Storage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}


class Inert:
    """A stand-in for any class or function that a pickle names: whatever the pickle does with it has no effect."""

    def __new__(cls, *_args: object, **_kwargs: object) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> "Inert":
        return self

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    @staticmethod
    def __setstate__(_state: object) -> None:  # of the class itself, too
        pass

    @staticmethod
    def append(_value: object) -> None:
        pass

    extend = add = update = append


def check_archive(path: Path) -> None:
    """Read an archive through, once. Nothing of its pickle is executed.

    Args:
        path: the checkpoint.
    Raises:
        OSError: the file cannot be read.
        ValueError: a record is damaged, compressed (torch would map it as it is), or shorter than the tensors that the
            pickle places in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _whole_records(archive)
            pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError(f"expected one record data.pkl, got {len(pickles)}")
            with archive.open(pickles[0]) as file:
                reader = _Storages(file)
                reader.load()
    except OSError:
        raise
    except Exception as error:  # damage makes zipfile and pickle raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    folder = pickles[0].removesuffix("data.pkl")
    for key, size in reader.sizes.items():
        record = records.get(f"{folder}data/{key}")
        got = 0 if record is None else record.file_size
        if got < size:
            raise ValueError(f"the record {folder}data/{key} has {got} bytes, its tensor has {size}")


def _whole_records(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """An archive's records by name. Raises ValueError where one is compressed, damaged or listed twice."""
    records = {record.filename: record for record in archive.infolist()}
    if len(records) < len(archive.infolist()):
        raise ValueError("two records have the same name")
    compressed = next((name for name, record in records.items() if record.compress_type), None)
    if compressed is not None:
        raise ValueError(f"the record {compressed} is compressed")
    damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the record {damaged} is damaged: its checksum does not match")
    return records


class _Storages(pickle.Unpickler):
    """Notes how many bytes each storage has; everything else is inert."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> Inert:
        _, kind, key, _, count = pid
        name = getattr(kind, "__name__", "")
        if name not in _ITEM_SIZES:
            raise ValueError(f"unknown storage {name!r}")
        self.sizes[key] = max(self.sizes.get(key, 0), count * _ITEM_SIZES[name])
        return Inert()
