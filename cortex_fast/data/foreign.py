"""What is often found under a model file's name in place of it: a Git LFS pointer, or the page of a failed download."""

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
    """Raise `error`, naming the file and what it is, where it is a pointer or a web page.

    Only a regular file is looked into: opening a named pipe would wait for its other end.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_LOOK)
    for pattern, what in _KINDS:
        if pattern.match(start):
            raise error(f"{path}: {what}")
