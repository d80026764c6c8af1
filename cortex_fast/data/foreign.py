"""Files that are often in place of a model file: a Git LFS pointer, or the web page of a failed download."""

import re
from pathlib import Path

_LFS = re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/")
_ANNEX = re.compile(rb"/annex/objects/")
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|\?xml|html|head|body|title|meta|script)", re.IGNORECASE)
_KINDS = (
    (_LFS, "a Git LFS pointer, not the file that it stands for; `git lfs pull` in its repository fetches that"),
    (_ANNEX, "a git-annex pointer, not the file that it stands for; `git annex get` in its repository fetches that"),
    (_PAGE, "a web page (HTML or XML), not the file that was to be downloaded; download it again"),
)
_LOOK = 512  # bytes


def refuse_foreign(path: Path, error: type[Exception]) -> None:
    """Refuse a pointer or a web page. Only regular files are opened: a named pipe would wait for its other end.

    Args:
        path: the file, which need not exist.
        error: the type of exception to raise; its message has the file, what it is, and how to get the wanted file.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_LOOK)
    for pattern, what in _KINDS:
        if pattern.match(start):
            raise error(f"{path}: {what}")
