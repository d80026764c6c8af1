"""The errors of torch.load, in a line each."""

import re


def complaint(error: BaseException) -> str:
    """The reason of an error, without torch's advice to set weights_only=False, which executes the file's code."""
    text = str(error)
    if isinstance(error, EOFError):
        return "it ends too soon"
    if "weights_only" not in text:
        return text or type(error).__name__
    refused = re.search(r"GLOBAL (\S+) was not an allowed global", text)
    return f"it carries pickled objects, such as {refused[1]}" if refused else "it is nothing that torch.save writes"
