"""Runs a script as `python SCRIPT.py` would, with the package's definitions in place of its own."""

import sys
import sysconfig
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from cortex_fast.compat.cortex.replacing import HOOK, Replacer, with_replacements

_PACKAGE = Path(__file__).resolve().parents[2]
_SCHEMES = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = (_PACKAGE, *(Path(sysconfig.get_path(name)).resolve() for name in _SCHEMES))


def run(script: Path, arguments: Sequence[str] = ()) -> int:
    """Run a script. The names that were replaced, and the time, go to standard error.

    The script's folder is first on sys.path, the working directory stays, and an exception is printed with the
    script's own lines. Without a GPU the script's CUDA devices are the CPU.

    Args:
        script: a Python file.
        arguments: the script's own. Default none.
    Returns:
        The script's exit status.
    Raises:
        FileNotFoundError: the script does not exist.
        IsADirectoryError: it is a folder.
    """
    if script.is_dir():
        raise IsADirectoryError(f"SCRIPT: expected a Python file, got the folder {script}")
    if not script.exists():
        raise FileNotFoundError(f"SCRIPT: there is no file {script}")
    replacer = Replacer()
    began = time.perf_counter()
    try:
        with _as_main(script, arguments, replacer) as main, _without_gpu():
            exec(compile(with_replacements(script.read_bytes(), str(script)), str(script), "exec"), main.__dict__)
        status = 0
    except SystemExit as leaving:
        status = _status(leaving)
    except BaseException as error:
        _print(error, str(script))
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    _report(replacer, time.perf_counter() - began)
    return status


def _status(leaving: SystemExit) -> int:
    if leaving.code is None or isinstance(leaving.code, int):
        return leaving.code or 0
    print(leaving.code, file=sys.stderr)
    return 1


def _print(error: BaseException, script: str) -> None:
    """The traceback, from the script's own frame on."""
    frames: TracebackType | None = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != script:
        frames = frames.tb_next
    if isinstance(error, SyntaxError) and frames is None:
        traceback.print_exception(type(error), error, None)
        return
    traceback.print_exception(type(error), error, frames or error.__traceback__)


def _report(replacer: Replacer, seconds: float) -> None:
    sys.stdout.flush()
    if replacer.replaced:
        names = ", ".join(f"{name} of {module}" for name, module in sorted(replacer.replaced.items()))
        print(f"cortex-fast: replaced {names}; {seconds:.1f} s", file=sys.stderr)
    else:
        print(f"cortex-fast: nothing was replaced; {seconds:.1f} s", file=sys.stderr)
    for name, reason in sorted(replacer.left.items()):
        print(f"cortex-fast: left {name} as it is: {reason}", file=sys.stderr)


@contextmanager
def _as_main(script: Path, arguments: Sequence[str], replacer: Replacer) -> Iterator[ModuleType]:
    """The script's module __main__, while sys is as the script expects it."""
    main = ModuleType("__main__")
    main.__dict__.update(__file__=str(script), __builtins__=__builtins__)
    main.__dict__[HOOK] = replacer
    before = sys.modules["__main__"], sys.argv, list(sys.path)
    finder = _Finder(replacer)
    sys.modules["__main__"], sys.argv = main, [str(script), *arguments]
    sys.path[0:1] = [str(script.resolve().parent)]  # where `python -m` puts the working directory
    sys.meta_path.insert(0, finder)
    try:
        yield main
    finally:
        sys.meta_path.remove(finder)
        sys.modules["__main__"], sys.argv, sys.path[:] = before


class _Finder(MetaPathFinder):
    """Finds modules as Python does, and gives the user's own to a loader that replaces definitions in them too."""

    def __init__(self, replacer: Replacer) -> None:
        self.replacer = replacer

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or spec.origin is None:
            return None
        origin = Path(spec.origin).resolve()
        if any(origin.is_relative_to(folder) for folder in _INSTALLED):
            return None
        spec.loader = _Loader(fullname, spec.origin, self.replacer)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, replacer: Replacer) -> None:
        super().__init__(fullname, path)
        self.replacer = replacer

    def get_code(self, fullname: str) -> CodeType:
        """From the source, always: __pycache__ must neither receive the changed code nor provide the unchanged."""
        return compile(with_replacements(self.get_data(self.path), self.path), self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[HOOK] = self.replacer
        super().exec_module(module)


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Without a GPU, let CUDA devices be the CPU: torch.cuda.set_device, .cuda(), .to("cuda:1"), map_location."""
    if torch.cuda.is_available():
        yield
        return
    load, names = torch.load, ("set_device", "synchronize")
    before = {name: getattr(torch.cuda, name) for name in names}

    def loading(*arguments: Any, **named: Any) -> Any:
        return load(*map(_on_cpu, arguments), **{name: _on_cpu(value) for name, value in named.items()})

    torch.load = loading
    for name in names:
        setattr(torch.cuda, name, lambda *arguments, **named: None)
    try:
        with _CPU():
            yield
    finally:
        torch.load = load
        for name, function in before.items():
            setattr(torch.cuda, name, function)


class _CPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.device:  # torch itself looks modules up by a device, and caches them
            return func(*args, **(kwargs or {}))
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **named)


def _on_cpu(value: Any) -> Any:
    """The CPU for a CUDA device, however it is written; anything else as it is."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value
