"""Prefetching with threads, to hide the latency of a store behind computation."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Map a function over items in order, computing up to `ahead` results in advance.

    Args:
        function: Called in worker threads if ahead > 0; should release the GIL.
        items: Arguments, in the order of the results.
        ahead: Largest number of results in advance, finished or in progress; 0 for a plain map.
    """
    if ahead == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(ahead, "scgpt-ray-ahead") as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
