"""When a SOMA experiment was last written to, by the names of its files.

TileDB names what a write leaves after its time, `__<first ms>_<last ms>_<uuid>`, so that listing a few folders is
enough: no array is opened, and consolidation, which keeps the times, changes nothing.
"""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs as pafs

from scgpt_ray.errors import AtlasError

_OF_GROUP = ("__group", "__meta")
_OF_ARRAY = ("__commits", "__schema", "__meta")
_TIMES = re.compile(r"__\d+_(\d+)_")
_LISTINGS_AT_ONCE = 32


def last_write(groups: Iterable[str], arrays: Iterable[str], config: Mapping[str, str]) -> int:
    """When any of these was last written to, in ms since 1970, by the clock of the writer.

    Args:
        groups: Paths or URIs of TileDB groups; their members do not count.
        arrays: Paths or URIs of TileDB arrays.
        config: TileDB settings, for credentials and endpoints.

    Raises:
        AtlasError: If the folders cannot be listed, or name no write.
    """
    pairs = [(_OF_GROUP, uri) for uri in groups] + [(_OF_ARRAY, uri) for uri in arrays]
    folders = [f"{uri.rstrip('/')}/{name}" for names, uri in pairs for name in names]
    try:
        filesystem = _filesystem(folders[0], config)
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
            listings = list(pool.map(lambda folder: _names(filesystem, folder), folders))
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        raise _unknown(pairs[0][1], str(error)) from error
    times = [int(match[1]) for names in listings for name in names if (match := _TIMES.match(name))]
    if not times:
        raise _unknown(pairs[0][1], "no file names a time")
    return max(times)


def _names(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    selector = pafs.FileSelector(re.sub(r"^\w+://", "", folder), allow_not_found=True)
    return [info.base_name for info in filesystem.get_file_info(selector)]


def _filesystem(uri: str, config: Mapping[str, str]) -> pafs.FileSystem:
    """The file system of a path or URI, with TileDB's settings for S3; what they lack comes from the environment."""
    if uri.startswith("s3://"):
        return pafs.S3FileSystem(
            access_key=config.get("vfs.s3.aws_access_key_id"),
            secret_key=config.get("vfs.s3.aws_secret_access_key"),
            session_token=config.get("vfs.s3.aws_session_token"),
            anonymous=config.get("vfs.s3.no_sign_request") == "true",
            region=config.get("vfs.s3.region"),
            endpoint_override=config.get("vfs.s3.endpoint_override"),
            scheme=config.get("vfs.s3.scheme", "https"),
        )
    if "://" in uri and not uri.startswith("file://"):
        return pafs.FileSystem.from_uri(uri)[0]
    return pafs.LocalFileSystem()


def _unknown(uri: str, found: str) -> AtlasError:
    return AtlasError(
        f"{uri}: when it was last written to is not known: {found}",
        expected="an experiment whose folders can be listed",
        remedy="check --tiledb-config, or give the time to --snapshot",
    )
