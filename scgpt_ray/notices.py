"""Messages of a command to other systems: OpenLineage events, and a webhook when it ends.

Each receiver has a thread. One that does not answer costs at most five seconds, at the end, and changes nothing else.
Addresses and keys come from the environment alone: options are written to plans, logs and MLflow, and the path of a
webhook is often a password.
"""

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from scgpt_ray.lineage import Lineage

logger = logging.getLogger(__name__)

WEBHOOK = "SCGPT_RAY_WEBHOOK"
_ANSWER_S = 5.0


class Notices:
    """The messages of one command, to the receivers that the environment names.

    `OPENLINEAGE_URL`, with `OPENLINEAGE_ENDPOINT`, `OPENLINEAGE_NAMESPACE` and `OPENLINEAGE_API_KEY`, as OpenLineage
    defines them; `SCGPT_RAY_WEBHOOK`, a URL.
    """

    def __init__(self) -> None:
        self._webhook = _Receiver.of(WEBHOOK)
        self._events = _Receiver.of(
            "OPENLINEAGE_URL",
            path=os.environ.get("OPENLINEAGE_ENDPOINT", "api/v1/lineage"),
            key=os.environ.get("OPENLINEAGE_API_KEY"),
        )
        self._lineage: Lineage | None = None

    def start(self, verb: str, settings: Any) -> None:
        """Say that a command begins.

        Args:
            verb: Name of the command.
            settings: Its settings.
        """
        if self._events is not None:
            self._lineage = Lineage(verb, settings)
            self._events.send(self._lineage.start)

    def end(self, ending: dict[str, Any]) -> None:
        """Say that the command has ended; returns after five seconds at the latest.

        Args:
            ending: What `result.json` holds.
        """
        if self._events is not None and self._lineage is not None:
            self._events.send(partial(self._lineage.end, ending))
        if self._webhook is not None:
            self._webhook.send(lambda: ending)
        deadline = time.monotonic() + _ANSWER_S
        with suppress(KeyboardInterrupt):  # the command has ended
            for receiver in (self._events, self._webhook):
                if receiver is not None:
                    receiver.finish(deadline)


class _Receiver:
    """A URL to which a thread posts JSON objects in order."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url, self._key = url, key
        self._name = urlsplit(url).hostname or "?"  # without user, password and path
        self._pending: queue.SimpleQueue[Callable[[], dict[str, Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"notices to {self._name}", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, variable: str, *, path: str = "", key: str | None = None) -> "_Receiver | None":
        """The receiver that a variable of the environment names, if it does."""
        url = os.environ.get(variable)
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            logger.warning(
                "%s is not a URL like https://HOST/PATH, without user and password: nothing is sent", variable
            )
            return None
        return cls(f"{url.rstrip('/')}/{path.lstrip('/')}" if path else url, key)

    def send(self, message: Callable[[], dict[str, Any]]) -> None:
        """Post what a function returns, which is called in the thread: it may read files."""
        self._pending.put(message)

    def finish(self, deadline: float) -> None:
        """Wait until everything is sent, or the time is over."""
        self._pending.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("%s does not answer: it was not notified", self._name)

    def _work(self) -> None:
        while (message := self._pending.get()) is not None:
            self._post(json.dumps(message(), default=str).encode())

    def _post(self, content: bytes) -> None:
        # Imported on need: the help of the command line does not wait for them.
        import http.client
        import urllib.error
        import urllib.request

        class NoRedirect(urllib.request.HTTPRedirectHandler):  # which would carry the key to another host
            def redirect_request(self, *_: Any) -> None: ...

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            request = urllib.request.Request(self._url, content, headers)
            with urllib.request.build_opener(NoRedirect).open(request, timeout=_ANSWER_S):
                pass
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Only what cannot hold the URL: the text of an HTTPError is its status.
            reason = str(error) if isinstance(error, urllib.error.URLError) else type(error).__name__
            logger.warning("%s was not notified: %s", self._name, reason)
