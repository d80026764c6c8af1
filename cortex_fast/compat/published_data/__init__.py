"""The published code's files: embeddings with their tokens, score tables and checkpoints, read and written."""

from cortex_fast.compat.published_data.checkpoints import export_checkpoint, import_checkpoint
from cortex_fast.compat.published_data.codebooks import read_codebook
from cortex_fast.compat.published_data.errors import Bad, PublishedDataError
from cortex_fast.compat.published_data.exporting import export_embeddings
from cortex_fast.compat.published_data.importing import Imported, import_embeddings
from cortex_fast.compat.published_data.scores import Scores

__all__ = [
    "Bad",
    "Imported",
    "PublishedDataError",
    "Scores",
    "export_checkpoint",
    "export_embeddings",
    "import_checkpoint",
    "import_embeddings",
    "read_codebook",
]
