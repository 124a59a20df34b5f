"""When a SOMA experiment was last written to, by the names of its files.

TileDB names what a write leaves after its time, `__<first ms>_<last ms>_<uuid>`, so that listing a few folders is
enough: no array is opened, and consolidation, which keeps the times, changes nothing.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from scgpt_ray.errors import AtlasError
from scgpt_ray.object_store import ObjectStore
from scgpt_ray.storage import Folder

_OF_GROUP = ("__group", "__meta")
_OF_ARRAY = ("__commits", "__schema", "__meta")
_TIMES = re.compile(r"__\d+_(\d+)_")
_LISTINGS_AT_ONCE = 32


def last_write(groups: Iterable[str], arrays: Iterable[str], store: ObjectStore) -> int:
    """When any of these was last written to, in ms since 1970, by the clock of the writer.

    Args:
        groups: Paths or URIs of TileDB groups; their members do not count.
        arrays: Paths or URIs of TileDB arrays.
        store: How they are reached.

    Raises:
        AtlasError: If the folders cannot be listed, or name no write.
    """
    pairs = [(_OF_GROUP, uri) for uri in groups] + [(_OF_ARRAY, uri) for uri in arrays]
    folders = [f"{uri.rstrip('/')}/{name}" for names, uri in pairs for name in names]
    try:
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
            listings = list(pool.map(lambda folder: Folder(folder.removeprefix("file://"), store).names(), folders))
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise _unknown(pairs[0][1], str(error)) from error
    times = [int(match[1]) for names in listings for name in names if (match := _TIMES.match(name))]
    if not times:
        raise _unknown(pairs[0][1], "no file names a time")
    return max(times)


def _unknown(uri: str, found: str) -> AtlasError:
    return AtlasError(
        f"{uri}: when it was last written to is not known: {found}",
        expected="an experiment whose folders can be listed",
        remedy="check --storage, or give the time to --snapshot",
    )
