"""The card of a data set on the Hugging Face Hub: README.md with a YAML head (huggingface/hub-docs, datasetcard.md)."""

import re
from typing import Any

import pyarrow as pa
import yaml

from scgpt_ray.parts.provenance import CITATION, NOT_STATED, Provenance, markdown_list
from scgpt_ray.records import Manifest
from scgpt_ray.schema import EMBEDDING, JOINID, N_GENES, OBS_ID

_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")
_MEANS = {
    JOINID: "identifies the cell in the atlas",
    OBS_ID: "name of the cell",
    N_GENES: "genes of the cell that the network saw",
    EMBEDDING: "unit vector; null for a cell without counts of genes in the vocabulary",
}

_BODY = """
# {title}

{n_cells:,} cells embedded with [scGPT](https://doi.org/10.1038/s41592-024-02201-0), zero-shot: unit vectors of width
{dimension}. {n_empty:,} of the cells have no embedding, as they have no counts of genes in the vocabulary.

{facts}
* **Licence**: {license}

## Load

```python
from datasets import load_dataset

cells = load_dataset("OWNER/NAME", split="train")  # or the path of this folder
embedded = cells.filter(lambda cell: cell["n_genes"] > 0).with_format("numpy")
print(embedded[:10]["embedding"].shape)
```

The files are Parquet: `pandas.read_parquet("data")` reads them, too. `sha256sum --check SHA256SUMS` verifies them.

## Columns

{columns}

## Citation

{citation}
"""


def dataset_card(
    manifest: Manifest,
    provenance: Provenance,
    schema: pa.Schema,
    *,
    title: str | None,
    license: str,  # noqa: A002 - as the option
) -> str:
    """The text of the card.

    Args:
        manifest: Of the embeddings.
        provenance: Of the embeddings.
        schema: Columns of the files.
        title: Default: embeddings of the atlas.
        license: An identifier of the hub, such as cc-by-4.0, or any other text.
    """
    title = title or f"{provenance.encoder} embeddings of {provenance.atlas}"
    columns = {f"`{column.name}`": f"{column.type}, {_MEANS.get(column.name, 'obs column')}" for column in schema}
    head = {
        "pretty_name": title,
        **hub_license(license),
        "tags": ["biology", "single-cell", "scgpt", "embeddings"],
        "task_categories": ["feature-extraction"],
        "size_categories": [size_category(manifest.n_cells)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    body = _BODY.format(
        title=title,
        n_cells=manifest.n_cells,
        n_empty=manifest.n_empty,
        dimension=manifest.dimension,
        facts=markdown_list(provenance.facts()),
        license=license,
        columns="\n".join(f"* {name}: {text}" for name, text in columns.items()),
        citation=CITATION,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def hub_license(text: str) -> dict[str, Any]:
    """The keys of a licence: the hub knows identifiers, `unknown`, and `other` with a name."""
    if text == NOT_STATED:
        return {"license": "unknown"}
    return {"license": text} if _IDENTIFIER.fullmatch(text) else {"license": "other", "license_name": text}


def size_category(n: int) -> str:
    """The hub's class of a number of rows, such as 10K<n<100K."""
    place = sum(n >= 1000 * 10**power for power in range(len(_SIZES)))
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}" if place < len(_SIZES) else f"n>{_SIZES[-1]}"
