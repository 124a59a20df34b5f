"""Names of the files in an index folder, and its description."""

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.records import IndexDescription
from scgpt_ray.storage import Folder

TEMPLATE = "template.faiss"
CENTRE = "centre.npy"
TEMPLATE_MARKER = "template.json"
"""Commit marker of template and centre, written last."""
RECALL = "recall.json"
MARKERS = "markers.parquet"
"""Genes that mark the labels; a table without rows where the counts of the reference were not read."""


def require_index(folder: Folder) -> IndexDescription:
    """Read the description of a finished index.

    Raises:
        ReferenceSetError: If the folder holds no finished index.
    """
    index = IndexDescription.read(folder)
    if index is None:
        unfinished = folder.has(TEMPLATE)
        raise ReferenceSetError(
            f"{folder.uri} has no {IndexDescription.file}",
            expected="the output folder of a finished index",
            remedy="run the same index command again to finish it" if unfinished else "give its path to --index",
        )
    return index
