"""A JSON object in the footer of a Parquet file, which describes the file without other records."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scgpt_ray.storage import Folder

_READERS = 16

Record = TypeVar("Record")


def stamped(table: pa.Table, key: bytes, values: dict[str, Any]) -> pa.Table:
    """The table with `values` as its only metadata."""
    return table.replace_schema_metadata({key: json.dumps(values)})


def read_stamp(folder: Folder, name: str, key: bytes) -> tuple[dict[str, Any], int] | None:
    """The JSON object in the footer of a file, and its number of rows; None if it is torn or lacks the key."""
    try:
        with folder.open(name) as stream:
            metadata = pq.read_metadata(stream)
    except (pa.ArrowInvalid, OSError):
        return None
    stamp = (metadata.metadata or {}).get(key)
    return None if stamp is None else (json.loads(stamp), metadata.num_rows)


def read_all(read: Callable[[str], Record | None], names: Iterable[str]) -> list[Record]:
    """Read several files in order, in parallel because each is a round trip to an object store; skips None."""
    with ThreadPoolExecutor(_READERS) as pool:
        return [record for record in pool.map(read, names) if record is not None]
