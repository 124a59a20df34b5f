"""Nodes that are about to go, such as spot machines."""

import os
import threading
import time

import ray

_LOOK_S = 5.0


def leave_draining_node(free: threading.Semaphore, calls: int) -> None:
    """End this process, an actor, once its node is draining and its calls are done; Ray restarts it elsewhere.

    Ray Data (2.60) gives an actor on a draining node no more rows, but counts it as one of the pool: a pool whose
    actors are all on such nodes would wait until the nodes are gone.

    Args:
        free: Has a permit for each call that the actor could begin.
        calls: Most calls at a time.
    """
    node = ray.get_runtime_context().get_node_id()
    # Private, as Ray Data asks: the public interface needs the dashboard, which a local Ray does not have.
    while node not in ray._private.state.state.get_draining_nodes():
        time.sleep(_LOOK_S)
    for _ in range(calls):
        free.acquire()
    time.sleep(_LOOK_S)  # until Ray has fetched their results
    os._exit(1)  # an actor that ends by itself in another way is not restarted
