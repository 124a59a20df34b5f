"""How a command ends: signals become exceptions, and `result.json` in the output says what happened.

A second signal ends the process at once.
"""

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from scgpt_ray.errors import interruption

logger = logging.getLogger(__name__)

RESULT = "result.json"


class Terminated(KeyboardInterrupt):
    """SIGTERM: libraries treat it like Ctrl-C."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` in the main thread, so that everything is closed; Ctrl-C is KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Exception as error:
        if stop := interruption(error):
            raise stop from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def write_result(place: str, ending: dict[str, Any]) -> None:
    """Write `result.json` if the run has made its output folder; a folder that cannot be written is only logged.

    Args:
        place: Path or URI of the output folder.
        ending: Its content.
    """
    # Imported on need: `--help` waits for no pyarrow.
    import pyarrow as pa

    from scgpt_ray.storage import Folder

    output = Folder.at(place)
    try:
        # In an object store there are no empty folders, and below a file, such as an exported .h5ad, there is no other.
        if output.path.is_dir() if output.is_local else output.names():
            output.write(RESULT, json.dumps(ending, indent=1).encode())
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s cannot be written: %s", output.where(RESULT), error)
