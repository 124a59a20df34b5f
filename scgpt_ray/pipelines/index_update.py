"""An index of earlier embeddings + the refreshed ones -> the same index of the refreshed ones, without training."""

import logging

from scgpt_ray.errors import ReferenceSetError
from scgpt_ray.identity import Fingerprint
from scgpt_ray.index.description import require_index
from scgpt_ray.index.factory import default_shards
from scgpt_ray.index.removal import keep_only
from scgpt_ray.parts.changes import unchanged
from scgpt_ray.pipelines.executor import Engine
from scgpt_ray.pipelines.index import add_shards, finish
from scgpt_ray.pipelines.index_request import tracker_of
from scgpt_ray.records import IndexDescription, Manifest, ShardDescription
from scgpt_ray.storage import Folder

logger = logging.getLogger(__name__)

_MOST_GONE = 0.2
"""Share of the rows of an index, which take disk, memory and time of a search, that may be of cells that are gone."""
_MOST_ADDED = 16
"""Shards that an index may have beyond those of one built anew; each has files, and takes time to open."""


def require_earlier(index: IndexDescription, place: str, earlier: Folder, *known: Fingerprint) -> None:
    """Require that an index is one of embeddings with a known fingerprint, and of these alone.

    Raises:
        ReferenceSetError: If not.
    """
    if index.appended or index.fingerprint not in known:
        raise ReferenceSetError(
            f"{place} is not an index of {earlier.uri} alone",
            expected="the index of the embeddings that are refreshed",
            remedy="give --index-output a folder for a new index",
        )


def update_index(
    earlier: Folder,
    before: Manifest,
    source: Folder,
    after: Manifest,
    output: Folder,
    engine: Engine,
    tracking: str | None = None,
) -> IndexDescription:
    """Bring an index up to date with refreshed embeddings.

    Cells that are gone, or whose content or labels have changed, are taken out of the shards; these and the new ones
    become new shards of the same template. An index with many cells taken out, or many such shards, gets new shards of
    all cells instead; the files of the old ones stay until `prune`. The search parameters are chosen again. Readers
    find the index as it was until the new description is written.

    Args:
        earlier: Folder of the embeddings that were indexed.
        before: Their manifest.
        source: Folder of the refreshed embeddings.
        after: Their manifest.
        output: The index folder.
        engine: Opens the executor.
        tracking: MLflow store, as for `Tracker`.
    """
    there = require_index(output)
    if there.fingerprint == after.fingerprint and there.embeddings == source.uri:
        logger.info("%s is up to date: %d cells; nothing to do", output.uri, there.n_cells)
        return there
    config = {"index": output.uri, "embeddings": source.uri}
    tracker = tracker_of(output, config, there.request, source, after, tracking)
    with engine.open(after.n_cells) as executor, tracker:
        places = (earlier, list(before.parts), source, list(after.parts), list(there.label_columns))
        [kept_N] = executor.tasks(unchanged, [places])
        shards = tuple(keep_only(output, shard, kept_N) for shard in there.shards)
        anew = _is_worn(shards, after.n_cells)
        added = add_shards(executor, source, after, output, there.label_columns, shards, anew=anew)
        n_removed = sum(shard.n_removed for shard in shards)
        if anew:
            logger.info(
                "%d cells of %d shards are gone: %d new shards hold all cells; scgpt-ray prune %s removes old files",
                n_removed, len(shards), len(added), output.uri,
            )  # fmt: skip
        else:
            logger.info("%d shards added; %d cells of others are left out", len(added), n_removed)
        left = (*(() if anew else shards), *added)
        described = there.replace(
            shards=left,
            n_cells=sum(shard.n_left for shard in left),
            embeddings=source.uri,
            fingerprint=after.fingerprint,
        )
        return finish(described, source, after, output, executor, tracker)


def _is_worn(shards: tuple[ShardDescription, ...], n_cells: int) -> bool:
    """Whether shards of all cells are better than more shards."""
    held, gone = sum(shard.n_cells for shard in shards), sum(shard.n_removed for shard in shards)
    return gone > _MOST_GONE * held or len(shards) >= default_shards(n_cells) + _MOST_ADDED
