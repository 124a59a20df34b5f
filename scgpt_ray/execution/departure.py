"""Actors that end by themselves: on nodes that are about to go, such as spot machines, and after their stream."""

import os
import threading
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError

_LOOK_S = 5.0


def leave_in_time(free: threading.Semaphore, calls: int, attempts: Any) -> None:
    """End this process, an actor, when its stream is over, or once its node is draining and its calls are done.

    Ray Data (2.60) gives an actor on a draining node no more rows, but counts it as one of the pool: a pool whose
    actors are all on such nodes would wait until the nodes are gone. The actors of a stream that failed keep their CPUs
    and GPUs until the driver collects garbage, since unfinished tasks refer to them.

    Args:
        free: Has a permit for each call that the actor could begin.
        calls: Most calls at a time.
        attempts: The actor that is killed at the end of the stream.
    """
    node = ray.get_runtime_context().get_node_id()
    # Private, as Ray Data asks: the public interface needs the dashboard, which a local Ray does not have.
    while node not in ray._private.state.state.get_draining_nodes():
        time.sleep(_LOOK_S)
        try:
            ray.get(attempts.__ray_ready__.remote())
        except ActorDiedError:
            ray.kill(ray.get_runtime_context().current_actor)
    for _ in range(calls):
        free.acquire()
    time.sleep(_LOOK_S)  # until Ray has fetched their results
    os._exit(1)  # Ray restarts it elsewhere; not so an actor that ends by itself in another way
