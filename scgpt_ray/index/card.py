"""The card of an index: README.md in its folder, for people who are given it."""

from collections.abc import Mapping

import yaml

from scgpt_ray.parts.dataset_card import hub_license, size_category
from scgpt_ray.parts.provenance import CITATION, NOT_STATED, Provenance, markdown_list
from scgpt_ray.records import IndexDescription

CARD = "README.md"

_MOST_LABELS = 25

MOST_VALUES = 10_000
"""A column with more values in a shard identifies cells, as a barcode does: it is not counted."""

_BODY = """
# {title}

A [faiss](https://faiss.ai) index of {n_cells:,} cells embedded with scGPT, zero-shot, with their labels: a reference
onto which scgpt_ray maps new cells. The embeddings that it was built from are not needed.

{facts}

## Map cells onto it

{how}

A faiss file can hold anything: open an index only if you trust its source.

## Labels

{labels}

## Citation

{citation}
"""

_HOW = """\
In this folder, with your cells in `cells.h5ad` (counts, all genes):

```sh
scgpt-ray map --query cells.h5ad --index . --checkpoint {checkpoint} --output ../mapped
```

`--index` may also be `s3://BUCKET/FOLDER`, or `hf://OWNER/NAME` after `hf upload OWNER/NAME . --repo-type model`.
`--checkpoint` must be that of the reference, by the checksum of its weights; others are refused.
`scgpt-ray checkpoints` lists names."""

_NO_LABELS = "No labels are stored, so there is nothing that `map` could transfer."
_NOT_ALL_GENES = "`map` refuses this index, as it holds embeddings of highly variable genes only."


def index_card(
    index: IndexDescription, provenance: Provenance, label_counts: Mapping[str, Mapping[str | None, int] | None]
) -> str:
    """The text of the card.

    Args:
        index: Description of the index.
        provenance: Of the embeddings that it was first built from.
        label_counts: Label column -> label, None for missing -> number of cells; None for a column that identifies
            cells.
    """
    title = f"Index of {provenance.atlas}"
    head = {
        "pretty_name": title,
        **hub_license(index.license),
        "tags": ["biology", "single-cell", "scgpt", "faiss"],
        "size_categories": [size_category(index.n_cells)],
    }
    facts = provenance.facts() | {
        "Index": f"`{index.factory}`, {len(index.shards)} shards, width {index.d}, cosine",
        "Recall@10": f"{index.recall_at_10:.4f}, measured on {index.recall_queries} cells against exact search "
        f"(nprobe {index.nprobe}, rerank {index.rerank}; see `recall.json`)",
        "Licence": index.license,
    }
    if index.appended:
        facts["Cells"] = f"of {1 + len(index.appended)} runs of `embed` on this atlas; the first: {facts['Cells']}"
    named = "CHECKPOINT" if provenance.checkpoint == NOT_STATED else provenance.checkpoint
    how = _HOW.format(checkpoint=named) if label_counts else _NO_LABELS
    body = _BODY.format(
        title=title,
        n_cells=index.n_cells,
        facts=markdown_list(facts),
        how=_NOT_ALL_GENES if "highly_variable" in index.fingerprint.cells else how,
        labels="\n\n".join(_table(column, counts) for column, counts in label_counts.items()) or "None.",
        citation=CITATION,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def _table(column: str, counts: Mapping[str | None, int] | None) -> str:
    """The most frequent labels of a column, and how many others there are."""
    if counts is None:
        return f"`{column}`: more than {MOST_VALUES:,} values, as identifiers of cells have."
    known = sorted(
        ((n, label) for label, n in counts.items() if label is not None), key=lambda pair: (-pair[0], pair[1])
    )
    rows = [f"| {label.replace('|', chr(92) + '|')} | {n:,} |" for n, label in known[:_MOST_LABELS]]
    rest = known[_MOST_LABELS:]
    if rest:
        rows.append(f"| {len(rest):,} others | {sum(n for n, _ in rest):,} |")
    if counts.get(None):
        rows.append(f"| not stated | {counts[None]:,} |")
    return "\n".join([f"`{column}`, {len(known):,} labels", "", "| label | cells |", "|---|---|", *rows])
