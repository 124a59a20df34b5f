"""What `index` is asked."""

from typing import Annotated

from pydantic import Field, field_validator

from scgpt_ray.config.execution import ExecutionSettings
from scgpt_ray.config.settings import Count, Fraction, Text, parse_bytes


class IndexSettings(ExecutionSettings):
    """Build a sharded faiss index over embeddings, with labels beside it and recall measured."""

    verb = "index"

    embeddings: Text
    """Output folder of a finished `embed`."""
    output: Text
    """Folder for index.json, template.faiss, shards and labels."""
    label_columns: tuple[Text, ...] = ()
    """obs columns to keep beside the index. Default: all that the embeddings carry."""
    factory: Text = "auto"
    """faiss factory string, such as IVF4096,SQ8; `auto` chooses by the number of cells, --memory-budget and
    --target-recall."""
    target_recall: Fraction = 0.95
    """Recall@10 against exact search that the search is widened for; measured on a sample, see recall.json."""
    memory_budget: Text | None = None
    """Most memory that the opened index, and the training sample, may take, such as 8GB."""
    shards: Count | None = None
    """Number of index shards. Default: one for two million cells up to four, then one for ten million; with
    --append, of the cells that are new."""
    append: bool = False
    """Add the cells that a finished index in --output lacks, in new shards of the same template."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the training and recall samples."""

    @field_validator("memory_budget")
    @classmethod
    def _is_size(cls, text: str | None) -> str | None:
        if text is not None:
            parse_bytes(text)
        return text
