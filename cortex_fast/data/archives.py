"""torch's checkpoints as zip archives: what torch does not look at when it reads one.

It compares no checksum, and where it maps a file it takes as many bytes for a tensor as the pickle says, whatever the
record's size.
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
    """Stands for any class or function that a pickle names. Whatever a pickle does to it, nothing happens."""

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
    """Read an archive through, once. Raises ValueError where a record is damaged, compressed (torch would map it as it
    is) or shorter than the tensors that its pickle puts there; nothing of the pickle is executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename: record for record in archive.infolist()}
            if len(records) < len(archive.infolist()):
                raise ValueError("two records of one name")
            packed = next((name for name, record in records.items() if record.compress_type), None)
            if packed is not None:
                raise ValueError(f"the record {packed} is compressed")
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the record {damaged} is damaged: its checksum is another")
            pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError(f"expected one record data.pkl, got {len(pickles)}")
            folder = pickles[0].removesuffix("data.pkl")
            with archive.open(pickles[0]) as file:
                reader = _Storages(file)
                reader.load()
    except OSError:
        raise
    except Exception as error:  # damage makes zipfile and pickle raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    for key, size in reader.sizes.items():
        record = records.get(f"{folder}data/{key}")
        got = 0 if record is None else record.file_size
        if got < size:
            raise ValueError(f"the record {folder}data/{key} has {got} bytes, its tensor {size}")


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
