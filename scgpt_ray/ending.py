"""How a command ends: signals become exceptions, and `result.json` in the output says what happened.

A second signal ends the process at once.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from scgpt_ray.errors import interruption

logger = logging.getLogger(__name__)

RESULT = "result.json"
_AGAIN_S = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM: libraries treat it like Ctrl-C."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` in the main thread, so that everything is closed; Ctrl-C is KeyboardInterrupt.

    Python drops exceptions of hooks, such as those that run after each fork: a signal that comes there is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    def send_again(dropped: "sys.UnraisableHookArgs") -> None:
        is_signal = isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit)  # SystemExit by Ray's handler
        if not is_signal or threading.current_thread() is not threading.main_thread():
            report(dropped)
            return
        signal.signal(signal.SIGTERM, terminate)
        number = signal.SIGINT if type(dropped.exc_value) is KeyboardInterrupt else signal.SIGTERM
        again = threading.Timer(_AGAIN_S, signal.pthread_kill, (threading.get_ident(), number))
        again.daemon = True
        again.start()

    before, report = signal.signal(signal.SIGTERM, terminate), sys.unraisablehook
    sys.unraisablehook = send_again
    try:
        yield
    except Exception as error:
        if stop := interruption(error):
            raise stop from None
        raise
    finally:
        sys.unraisablehook = report
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
