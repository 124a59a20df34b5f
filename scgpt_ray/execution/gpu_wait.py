"""Waiting for GPUs that a cluster does not have yet."""

import logging
import time

import ray
from ray.autoscaler.sdk import request_resources

from scgpt_ray.errors import WorkerError

logger = logging.getLogger(__name__)

_POLL_S = 2.0
_LINE_EVERY_S = 30.0


def gpus_of_cluster() -> int:
    """GPUs of the nodes that are there."""
    return int(ray.cluster_resources().get("GPU", 0))


def wait_for_gpus(least: int, most: int, limit_s: float) -> int:
    """Ask the autoscaler for GPUs, and wait until there are enough; without an autoscaler for nodes that join.

    What an autoscaler may start at most cannot be asked for: Ray has no interface for it (2.60; ray#52033).

    Args:
        least: GPUs to wait for.
        most: GPUs to ask for.
        limit_s: Longest wait in seconds.

    Returns:
        The GPUs that are there.

    Raises:
        WorkerError: If there are fewer after that time.
    """
    found, deadline, next_line = gpus_of_cluster(), time.monotonic() + limit_s, 0.0
    if found >= least:
        return found
    # A request stands until the next one; it is taken back, so that idle nodes may end.
    request_resources(bundles=[{"GPU": 1}] * max(least, most))
    try:
        while found < least:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkerError(
                    f"{found} of {least} GPUs (--min-gpus) joined within {limit_s:.0f} s (--wait-for-gpus); "
                    "`ray status` shows what its autoscaler does"
                )
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + _LINE_EVERY_S
                logger.info("waiting for GPUs: %d of %d are there, %.0f s left", found, least, left)
            time.sleep(min(_POLL_S, left))
            found = gpus_of_cluster()
    finally:
        request_resources(bundles=[])
    return found
