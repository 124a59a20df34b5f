"""Runs stages one after the other, each in a process with a time limit, until a deadline."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scgpt_ray.benchmark.gpu.report import DONE, FIGURES, STATE, Line, append, short

LOG = "log.txt"
LEAST_SECONDS = 5.0
"""Left until the deadline for a stage to be started at all: less would not do for importing torch."""

_DYING_SECONDS = 10.0


@dataclass(frozen=True)
class Stage:
    """A part of the script.

    Attributes:
        command: Program and arguments; it writes its own lines.
    """

    name: str
    command: Sequence[str]
    seconds: float


def run_stages(stages: Sequence[Stage], output: Path, deadline: float, environment: Mapping[str, str]) -> None:
    """Run all stages; every one of them ends with a line, whatever becomes of it.

    Args:
        stages: What to run, in order.
        output: Folder for figures and log.
        deadline: Seconds from now for all of them.
        environment: Of their processes.
    """
    end = time.monotonic() + deadline
    for stage in stages:
        began = time.monotonic()
        left = end - began
        if left < LEAST_SECONDS:
            state = f"not started: {max(left, 0):.0f} s left of {deadline:g}"
        else:
            state = run_stage(stage, left, output / LOG, environment)
        seconds = round(time.monotonic() - began, 1)
        append(output / FIGURES, Line(stage.name, STATE, state, setting={"seconds": seconds}))
        sys.stdout.write(f"{stage.name}: {state}, {seconds} s\n")
        sys.stdout.flush()


def run_stage(stage: Stage, left: float, log: Path, environment: Mapping[str, str]) -> str:
    """Run one stage and kill what is left of it; returns its state.

    Args:
        stage: What to run.
        left: Seconds until the deadline.
        log: File that its output is added to.
        environment: Of its process.
    """
    with log.open("ab") as stream:
        stream.write(f"== {stage.name}\n".encode())
        stream.flush()
        begin = stream.tell()
        process = subprocess.Popen(
            stage.command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )
        try:
            code = process.wait(min(stage.seconds, left))
        except subprocess.TimeoutExpired:
            return _stopped(process, "its limit" if stage.seconds < left else "the deadline")
        finally:
            _kill_group(process)
    return _outcome(code, log, begin)


def _stopped(process: subprocess.Popen[bytes], reason: str) -> str:
    """Kill a process that does not end; a driver that hangs can keep even a killed one."""
    _kill_group(process)
    try:
        process.wait(_DYING_SECONDS)
    except subprocess.TimeoutExpired:
        return f"stopped by {reason}, and did not die"
    return f"stopped by {reason}"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a stage with all processes it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _outcome(code: int, log: Path, begin: int) -> str:
    """The state that an exit code stands for, with the last words of a stage that failed."""
    if code == 0:
        return DONE
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as stream:
        stream.seek(begin)
        said = stream.read().decode(errors="replace").split("\n")
    last = next((line for line in reversed(said) if line.strip()), "")
    return short(f"failed with exit code {code}: {last}")
