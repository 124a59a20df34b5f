"""Releases of the CELLxGENE Census, found by name in its release directory.

The directory is a JSON file, which the Census package (cellxgene-census, _release_directory.py) reads, too:

    "stable": "2025-11-08"                    an alias, of a release or of another alias
    "2025-11-08": {"soma": {"uri": ..., "relative_uri": ..., "s3_region": ...},
                   "flags": {"lts": true, "retracted": false}, "retraction": {...}}

Next to it, mirrors.json says where relative URIs lead: {"default": NAME, NAME: {"provider", "base_uri", "region"}}.
"""

import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

from scgpt_ray.errors import AtlasError

logger = logging.getLogger(__name__)

DIRECTORY = "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json"
DIRECTORY_VARIABLE = "SCGPT_RAY_CENSUS_DIRECTORY"
_MIRRORS = "mirrors.json"
_PROVIDERS = ("S3", "file", "unknown")

_TIMEOUT_S = 20.0
_TRIES = 3
_FIRST_PAUSE_S = 0.5
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_SHOWN = 12
"""Releases that an error lists, the newest ones."""


@dataclass(frozen=True)
class Release:
    """A release of the Census.

    Attributes:
        version: Name of the release, which is the date of its build.
        uri: Path or URI of its SOMA collection.
        region: Region of its bucket, if it is known.
    """

    version: str
    uri: str
    region: str | None

    def experiment(self, organism: str) -> str:
        """Path or URI of the experiment of an organism."""
        return f"{self.uri.rstrip('/')}/census_data/{organism}"


def find_release(
    name: str, directory_url: str | None = None, mirror: str | None = None, pinned: str | None = None
) -> Release:
    """Find a release in the release directory.

    Args:
        name: Name of a release or an alias, such as stable, latest or 2025-11-08.
        directory_url: URL of the directory. Default: that of the environment variable, else the public one.
        mirror: Name of a mirror. Default: the one that the directory names.
        pinned: Release with which an earlier run began, to be read again in place of an alias; it may have been
            retracted since.

    Raises:
        AtlasError: If the directory cannot be read, or the release is unknown or retracted, or the mirror is unknown.
    """
    url = directory_url or os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY
    directory = _read_json(url)
    is_resumed = pinned is not None and (name == pinned or not _DATE.fullmatch(name))
    version = _follow(directory, pinned if pinned is not None and is_resumed else name)
    if version is None:
        raise AtlasError(
            f"census:{name}: {url} has no such release",
            expected=f"one of {_valid_names(directory)}",
            remedy="name another release (weekly ones are deleted after about a month)",
        )
    described = directory[version]
    where = _location(described["soma"], urljoin(url, _MIRRORS), mirror)
    _report_state(name, version, described, where["uri"], directory, is_resumed=is_resumed)
    return Release(version, where["uri"], where["region"] or None)


def _follow(directory: Mapping[str, Any], name: str) -> str | None:
    """The release that a name stands for; None if it leads nowhere."""
    for _ in range(len(directory) + 1):
        target = directory.get(name)
        if not isinstance(target, str):
            return name if isinstance(target, dict) and "soma" in target else None
        name = target
    return None


def _report_state(
    name: str, version: str, described: Mapping[str, Any], uri: str, directory: Mapping[str, Any], *, is_resumed: bool
) -> None:
    """Log which release this is; refuse a retracted one, as the Census package does, unless a run began with it."""
    flags, retraction = described.get("flags") or {}, described.get("retraction") or {}
    if flags.get("retracted"):
        since = f" on {retraction['date']}" if retraction.get("date") else ""
        why = ", ".join(str(retraction[key]) for key in ("reason", "info_url") if retraction.get(key))
        found = f"census:{version} was retracted{since}" + (f" ({why})" if why else "")
        if not is_resumed:
            instead = retraction.get("replaced_by") or "stable"
            raise AtlasError(
                found,
                expected=f"a release that stands: {_valid_names(directory)}",
                remedy=f"give census:{instead}, or read the retracted cells from their place, --atlas {uri}",
            )
        logger.warning("%s, after this run began with it", found)
    if name != version:
        logger.info("census:%s is %s%s", name, version, ", with which this run began" if is_resumed else "")
    if not flags.get("lts"):
        logger.warning(
            "census:%s is a weekly release, deleted about a month after its publication; census:stable is kept for "
            "years", version,
        )  # fmt: skip


def _valid_names(directory: Mapping[str, Any]) -> str:
    """Aliases, and the newest releases that were not retracted."""
    stand = {
        name: version
        for name in directory
        if (version := _follow(directory, name)) and not (directory[version].get("flags") or {}).get("retracted")
    }
    aliases = sorted((name for name in stand if name != stand[name]), reverse=True)
    releases = sorted((name for name in stand if name == stand[name]), reverse=True)
    older = f" and {len(releases) - _SHOWN} older ones" if len(releases) > _SHOWN else ""
    return ", ".join([*(f"{name} ({stand[name]})" for name in aliases), *releases[:_SHOWN]]) + older


def _location(soma: Mapping[str, Any], mirrors_url: str, mirror: str | None) -> dict[str, Any]:
    """URI and region of a release, on a mirror where its URI is relative."""
    relative = soma.get("relative_uri")
    if not relative and mirror is None:
        return {"uri": soma["uri"], "region": soma.get("s3_region")}
    mirrors = _read_json(mirrors_url)
    name = str(mirror or mirrors.get("default"))
    chosen = mirrors.get(name)
    if not relative or not isinstance(chosen, dict) or chosen.get("provider") not in _PROVIDERS:
        known = sorted(name for name, value in mirrors.items() if isinstance(value, dict))
        raise AtlasError(
            f"Census mirror {name}: {mirrors_url} has none of that name, or of a kind that this version reads",
            expected=f"one of {', '.join(known)}, of a provider among {', '.join(_PROVIDERS)}",
            remedy="change --census-mirror",
        )
    # As in the Census package, a relative URI with a leading slash starts at the bucket or root of the mirror.
    base = urlsplit(chosen["base_uri"])
    uri = base._replace(path=urljoin(base.path or "/", relative)).geturl()
    return {"uri": uri, "region": chosen.get("region")}


def _read_json(url: str) -> dict[str, Any]:
    """Read a JSON object, in a bounded time.

    Raises:
        AtlasError: If it cannot be had, or is something else.
    """
    try:
        content = json.loads(_fetch(url))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AtlasError(
            f"{url} cannot be read: {_reason(error)}",
            expected="the release directory of the Census",
            remedy=f"check the network and proxy; without one, give the URL of a copy (--census-directory or "
            f"{DIRECTORY_VARIABLE}), or the place of the experiment to --atlas",
        ) from error
    if not isinstance(content, dict):
        raise AtlasError(
            f"{url} holds a {type(content).__name__}",
            expected="a JSON object of releases or mirrors",
            remedy="check --census-directory",
        )
    return content


def _reason(error: Exception) -> object:
    """What happened, without the brackets that URLError puts around the cause of a lost connection."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        return error.reason
    return error


def _fetch(url: str) -> bytes:
    """The content of a URL; what may pass (a lost connection, a busy server) is tried again."""
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            is_busy = error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
            if attempt == _TRIES or not is_busy:
                raise
        except (OSError, http.client.HTTPException):
            if attempt == _TRIES:
                raise
        time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")
