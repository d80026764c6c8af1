"""The logits within the result of an extractor's forward."""

from typing import Any

from torch import Tensor, nn

from cortex_fast.engine.errors import NoLogitsError

Output = str | int | None


class Logits(nn.Module):
    """An extractor whose result is the logits alone.

    output: the key or attribute (str) or the position (int) of the logits in the forward's result; None takes a tensor
    itself, else `.logits` or ["logits"].
    """

    def __init__(self, extractor: nn.Module, output: Output = None) -> None:
        super().__init__()
        self.extractor, self.output = extractor, output
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits = selected_output(self.extractor(x), self.output)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise NoLogitsError(f"extractor: expected logits [B, classes] for B = {len(x)}, got {got}{_advice(logits)}")
        if not logits.is_floating_point():
            raise NoLogitsError(f"extractor: expected floating-point logits, got {logits.dtype}")
        return logits


def selected_output(result: Any, output: Output) -> Any:
    """The part of a forward's result that `output` selects."""
    if output is None:
        if isinstance(result, Tensor):
            return result
        if isinstance(result, dict):
            return result.get("logits", result)
        return getattr(result, "logits", result)
    try:
        if isinstance(output, str) and not isinstance(result, dict):
            return getattr(result, output)
        return result[output]
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise NoLogitsError(
            f"output: expected a part of the extractor's {_described(result)}, got {output!r}"
        ) from error


def _advice(result: Any) -> str:
    if isinstance(result, dict | tuple | list):
        return f" ({_described(result)}); prepare(extractor, sample, output=...) names the part that holds them"
    return ""


def _described(result: Any) -> str:
    if isinstance(result, dict):
        return f"dict with the keys {', '.join(map(repr, list(result)[:8]))}"
    if isinstance(result, tuple | list):
        return f"{type(result).__name__} of {len(result)}"
    return type(result).__name__
