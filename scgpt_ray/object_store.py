"""How object stores are reached: one value, made in the driver, that travels with every place to the workers."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from scgpt_ray.errors import ConfigError

_VARIABLES = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "public_endpoint": ("SCGPT_RAY_PUBLIC_ENDPOINT",),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "profile": ("AWS_PROFILE",),
    "request_checksums": ("AWS_REQUEST_CHECKSUM_CALCULATION",),
    "google_endpoint": ("STORAGE_EMULATOR_HOST",),
    "azure_account": ("AZURE_STORAGE_ACCOUNT",),
}
SCHEMES = ("s3", "gs", "az")
_CHECKSUMS = ("when_required", "when_supported")
_SECRETS = ("key", "secret", "token", "password", "credential")
_ANY_REGION = "us-east-1"
"""Signed into the requests to a store that is not AWS's; with none, the libraries would look for one for seconds."""

_GOOGLE_WAITS = timedelta(seconds=60)
_SDK_TRIES = 3
"""Attempts in Arrow's own code, in which no signal is seen; longer outages are waited for in `patience`."""


@dataclass(frozen=True)
class ObjectStore:
    """How object stores are reached. It pickles and holds no secrets: credentials are those of each machine.

    Attributes:
        endpoint: URL of a store for s3:// that is not AWS's.
        public_endpoint: URL of the public buckets: the Census and published checkpoints. None: AWS's.
        region: None: that of the bucket.
        profile: Section of the AWS configuration files with the credentials.
        anonymous: Whether requests are not signed.
        request_checksums: when_required or when_supported. The checksums that AWS's libraries add otherwise are more
            than other stores understand: Ceph's refuses them, some store them as content.
        google_endpoint: The same for gs://.
        azure_endpoint: The same for az://.
        azure_account: Storage account of az:// places. Its key may be in AZURE_STORAGE_KEY.
    """

    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False
    request_checksums: str | None = None
    google_endpoint: str | None = None
    azure_endpoint: str | None = None
    azure_account: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "ObjectStore":
        """Make the value of options; the rest comes from the usual AWS variables of this process.

        Raises:
            ValueError: If an option is unknown, a secret, or has a wrong value.
        """
        _refuse_unknown(options)
        values: dict[str, Any] = dict(options)
        for name, variables in _VARIABLES.items():
            found = (os.environ.get(variable) for variable in variables)
            values.setdefault(name, next(filter(None, found), None))
        for name in ("endpoint", "public_endpoint", "google_endpoint", "azure_endpoint"):
            values[name] = _url(name, values.get(name))
        values["anonymous"] = _one_of("anonymous", options.get("anonymous", "false"), ("true", "false")) == "true"
        if values["request_checksums"]:
            values["request_checksums"] = _one_of("request_checksums", values["request_checksums"], _CHECKSUMS)
        elif values["endpoint"]:
            values["request_checksums"] = _CHECKSUMS[0]
        return cls(**values)

    def located(self, bucket: str) -> "ObjectStore":
        """The same with the region of a bucket, where it was not given.

        Raises:
            OSError: If AWS does not know the bucket, or is not reached.
        """
        if self.region:
            return self
        if self.endpoint:
            return replace(self, region=_ANY_REGION)
        import pyarrow.fs as pafs

        with self.environment():
            return replace(self, region=pafs.resolve_s3_region(bucket))

    def public(self, region: str | None = None) -> "ObjectStore":
        """How the public buckets are reached: not with the user's keys and endpoint, which are not theirs."""
        return replace(self, endpoint=self.public_endpoint, region=region, profile=None, anonymous=True)

    def filesystem(self, scheme: str, bucket: str) -> Any:
        """A file system of pyarrow for a bucket.

        Args:
            scheme: s3, gs or az.
            bucket: Bucket, or container of Azure.

        Raises:
            OSError: If the region of the bucket is not known.
            ConfigError: If the storage account is not known.
        """
        # Imported here, as above: the options are checked before pyarrow is needed.
        import pyarrow.fs as pafs

        store = self.located(bucket) if scheme == "s3" else self
        kind, options = {
            "s3": (pafs.S3FileSystem, store._s3),
            "gs": (pafs.GcsFileSystem, store._google),
            "az": (pafs.AzureFileSystem, store._azure),
        }[scheme]

        class Bucket(kind):  # type: ignore[misc,valid-type]  # pyarrow's own forget the variables, or show a secret
            def __reduce__(self) -> tuple[object, ...]:
                return ObjectStore.filesystem, (store, scheme, bucket)

        with self.environment():
            return Bucket(**options())

    def _s3(self) -> dict[str, Any]:
        import pyarrow.fs as pafs

        return {
            "anonymous": self.anonymous,
            "region": self.region,
            # With delayed opening a file below 5 MB is one PUT instead of a multipart upload of three requests.
            "allow_delayed_open": True,
            "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=_SDK_TRIES),
            **({"scheme": self._scheme, "endpoint_override": self._host} if self.endpoint else {}),
        }

    def _google(self) -> dict[str, Any]:
        url = urlsplit(self.google_endpoint or "https:")
        return {
            "anonymous": self.anonymous,
            "scheme": url.scheme,
            "endpoint_override": url.netloc or None,
            "retry_time_limit": _GOOGLE_WAITS,
        }

    def _azure(self) -> dict[str, Any]:
        """Options of an Azure file system.

        Raises:
            ConfigError: If no storage account is named.
        """
        if not self.azure_account:
            raise ConfigError(
                "no storage account for az:// places",
                expected="the name of one",
                remedy="give --storage azure_account=NAME, or set AZURE_STORAGE_ACCOUNT",
            )
        url = urlsplit(self.azure_endpoint or "")
        options = {"account_name": self.azure_account, "account_key": os.environ.get("AZURE_STORAGE_KEY")}
        for interface in ("blob", "dfs") if self.azure_endpoint else ():
            options |= {f"{interface}_storage_authority": url.netloc, f"{interface}_storage_scheme": url.scheme}
        return options

    def tiledb(self) -> dict[str, str]:
        """The settings of TileDB that say the same."""
        config = {"vfs.s3.no_sign_request": str(self.anonymous).lower()}
        if self.region or self.endpoint:
            config["vfs.s3.region"] = self.region or _ANY_REGION
        if self.endpoint:
            config["vfs.s3.endpoint_override"] = self._host
            config["vfs.s3.scheme"] = self._scheme
            config["vfs.s3.use_virtual_addressing"] = "false"
        return config

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Set the variables that Arrow and TileDB read when they connect, and have no other setting for.

        A worker may have an endpoint in its own environment, which must not win over a request that has none.
        """
        changes: dict[str, str | None] = dict.fromkeys(_VARIABLES["endpoint"])
        changes["AWS_REQUEST_CHECKSUM_CALCULATION"] = self.request_checksums
        if self.profile:
            changes["AWS_PROFILE"] = self.profile
        with _ENVIRONMENT:
            before = {name: os.environ.get(name) for name in changes}
            _set(changes)
            try:
                yield
            finally:
                _set(before)

    @property
    def _scheme(self) -> str:
        return urlsplit(self.endpoint or "").scheme

    @property
    def _host(self) -> str:
        return urlsplit(self.endpoint or "").netloc


_ENVIRONMENT = threading.RLock()
_current: ContextVar[ObjectStore | None] = ContextVar("object_store", default=None)


def current() -> ObjectStore:
    """What places that are named now are reached by: the value in use, else that of the environment."""
    return _current.get() or ObjectStore.of({})


@contextmanager
def using(store: ObjectStore) -> Iterator[None]:
    """Make a value the current one for a block."""
    token = _current.set(store)
    try:
        yield
    finally:
        _current.reset(token)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pairs(words: Iterable[str]) -> dict[str, str]:
    """Words KEY=VALUE as a mapping.

    Raises:
        ValueError: If a word is none.
    """
    split = [str(word).partition("=") for word in words]
    for key, equals, _ in split:
        if not equals:
            raise ValueError(f"{key!r} is not KEY=VALUE")
    return {key: value for key, _, value in split}


def _refuse_unknown(options: Mapping[str, str]) -> None:
    known = [field.name for field in fields(ObjectStore)]
    for key in options:
        if key in known:
            continue
        if any(part in key.lower() for part in _SECRETS):
            raise ValueError(
                f"{key} is a secret, which options would show to others: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment of all machines, name a profile=, or give them a role"
            )
        raise ValueError(f"unknown key {key}: give one of {', '.join(known)}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    lower = str(value).lower()
    if lower not in allowed:
        raise ValueError(f"{name}={value} is not one of {', '.join(allowed)}")
    return lower


def _url(name: str, value: str | None) -> str | None:
    """A URL of scheme and host; https where none is given."""
    if not value:
        return None
    parts = urlsplit(value if "://" in value else f"https://{value}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"{name}={value} is not a URL like https://HOST:PORT")
    if "@" in parts.netloc:
        raise ValueError(f"{name} has a password: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
    return f"{parts.scheme}://{parts.netloc}"
