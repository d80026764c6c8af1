"""Token stores and result files."""

from cortex_fast.data.results import ResultFileError
from cortex_fast.data.token_store import TokenStore, embed

__all__ = ["ResultFileError", "TokenStore", "embed"]
