"""What a Parquet file says about itself in its footer: a JSON object that makes other records needless."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.storage import Folder

_READERS = 16

Said = TypeVar("Said")


def stamped(table: pa.Table, key: bytes, values: dict[str, Any]) -> pa.Table:
    """The table with `values` as all of its metadata."""
    return table.replace_schema_metadata({key: json.dumps(values)})


def read_stamp(folder: Folder, name: str, key: bytes) -> tuple[dict[str, Any], int] | None:
    """What a file says of itself and its rows; None where it is torn or says nothing under this key."""
    try:
        with folder.open(name) as stream:
            metadata = pq.read_metadata(stream)
    except (pa.ArrowInvalid, OSError):
        return None
    stamp = (metadata.metadata or {}).get(key)
    return None if stamp is None else (json.loads(stamp), metadata.num_rows)


def read_all(read: Callable[[str], Said | None], names: Iterable[str]) -> list[Said]:
    """What several files say, in their order; on an object store each is a round trip, so many at a time."""
    with ThreadPoolExecutor(_READERS) as pool:
        return [said for said in pool.map(read, names) if said is not None]
