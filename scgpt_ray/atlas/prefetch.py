"""Work done ahead of its use, by threads: what hides the latency of a store behind the computing."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Map a function over items, up to `ahead` of them before their results are asked for.

    Args:
        function: Called in another thread if ahead > 0; should spend its time without the GIL.
        items: In the order of the results.
        ahead: Most calls running, and results waiting, beside the one in use; 0 for a plain map.
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
