"""The options of `export`."""

from typing import Literal, Self

from pydantic import model_validator

from scgpt_ray.config.execution import StorageSettings
from scgpt_ray.config.settings import Count, Text, Texts

_CONTACT = 3


class ExportSettings(StorageSettings):
    """Options of `export`."""

    verb = "export"
    group = "Input and output"
    examples = (
        "scgpt-ray export --embeddings demo/reference --output reference.h5ad",
        "scgpt-ray export --embeddings demo/reference --to soma --output reference-soma --half",
        "scgpt-ray export --embeddings demo/reference --to hf --output reference-hf --license cc-by-4.0",
    )

    embeddings: Text
    """Output folder of a finished `embed`."""
    output: Text
    """File (h5ad) or new folder (soma, hf) to write; a path or s3:// URI, which needs the same space on the local disk.
    Checksums are in FILE.sha256 or SHA256SUMS. Of what is there, only an unchanged export to h5ad is replaced."""
    to: Literal["h5ad", "soma", "hf"] = "h5ad"
    """Format. h5ad: obsm["X_scGPT"] and the obs columns that the embeddings carry; soma: an array that the Census
    package reads with get_embedding; hf: a data set for the Hugging Face Hub, Parquet files and a card."""
    half: bool = False
    """Store vectors in half precision: float16, or for soma float32 rounded to bfloat16, as the Census has them."""
    title: Text | None = None
    """Title of the data set, for soma and hf. Default: scGPT embeddings of the atlas."""
    license: Text = "not stated"
    """Licence of the embeddings, for soma and hf: an identifier such as cc-by-4.0, or any text."""
    contact: Texts = ()
    """Name, e-mail address and affiliation of the person to ask, for soma. Default: not stated."""
    obs_rows: Count | None = None
    """Rows of obs in the atlas, for soma: the length of the array. Default: read from the atlas."""

    @model_validator(mode="after")
    def _of_the_format(self) -> Self:
        formats = {"title": ("soma", "hf"), "license": ("soma", "hf"), "contact": ("soma",), "obs_rows": ("soma",)}
        for name in formats.keys() & self.model_fields_set:
            if self.to not in formats[name]:
                raise ValueError(f"--{name.replace('_', '-')} is for --to {' and '.join(formats[name])}")
        if len(self.contact) not in (0, _CONTACT):
            raise ValueError("--contact needs three values: name, e-mail address and affiliation")
        return self
