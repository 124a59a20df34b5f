"""Temporary folders of processes that live, end and are killed."""

import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from scgpt_ray.temporary_folder import temporary_folder

HOLDER = """
from pathlib import Path
from scgpt_ray.temporary_folder import temporary_folder
with temporary_folder() as place:
    (place / "copy").write_bytes(b"123")
    print(place, flush=True)
    input()
"""


def test_the_temporary_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", HOLDER]
    with ExitStack() as stack:
        killed, alive = (
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            )
            for _ in range(2)
        )
        places = [Path(process.stdout.readline().strip()) for process in (killed, alive)]
        killed.kill()
        killed.wait()
        assert sorted(tmp_path.iterdir()) == sorted(places)
        with temporary_folder() as first, temporary_folder() as second:  # of one process
            assert sorted(tmp_path.iterdir()) == sorted([places[1], first, second])
            assert (places[1] / "copy").read_bytes() == b"123"
        alive.communicate("\n")
    assert list(tmp_path.iterdir()) == []
