"""What torch.load complains of, in a line."""

import re


def complaint(error: BaseException) -> str:
    """The reason alone: torch adds the advice to load with weights_only=False, which executes what a file says."""
    text = str(error)
    if isinstance(error, EOFError):
        return "it ends too soon"
    if "weights_only" not in text:
        return text or type(error).__name__
    refused = re.search(r"GLOBAL (\S+) was not an allowed global", text)
    return f"it carries pickled objects, such as {refused[1]}" if refused else "it is nothing that torch.save writes"
