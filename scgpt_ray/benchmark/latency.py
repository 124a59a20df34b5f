"""Seconds and requests to read a partition of an atlas on S3, by latency.

    python -m scgpt_ray.benchmark.latency

A proxy holds back each request to a mock S3 server (moto) on loopback. The atlas is synthetic, in the layout of the
Census: 8,192 cells of 1,000 genes in one fragment.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from scgpt_ray.atlas.plan import Partition, cut
from scgpt_ray.atlas.soma_file import CENSUS_LAYOUT, write_soma
from scgpt_ray.atlas.source import Source, locate
from scgpt_ray.benchmark.measurement import Figure, Figures, seconds_of
from scgpt_ray.benchmark.read import synthetic_atlas
from scgpt_ray.benchmark.reader_processes import N_GENES
from scgpt_ray.benchmark.synthetic import cell_lengths
from scgpt_ray.config import CellSettings
from scgpt_ray.object_store import ObjectStore, using
from scgpt_ray.storage import Folder

_LATENCIES = (0.0, 0.05)  # seconds
_METHODS = (b"GET ", b"HEAD ", b"PUT ", b"POST ", b"DELETE ")
_OBS_COLUMNS = ("cell_type", "dataset_id", "donor_id")
_PASSES = 5


class SlowProxy:
    """A proxy on loopback, in a thread; `latency` (seconds) may be changed, `requests` counts."""

    def __init__(self, target: str) -> None:
        self.latency, self.requests = 0.0, 0
        self._target = urlsplit(target)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        serving = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self.url = f"http://127.0.0.1:{serving.result().sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(self._target.hostname, self._target.port)
        await asyncio.gather(self._pass_on(reader, forth), self._pass_on(back, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**18):
            if data.startswith(_METHODS):
                self.requests += 1
                await asyncio.sleep(self.latency)
            writer.write(data)
            await writer.drain()
        writer.close()


@contextmanager
def served(atlas: Path) -> Iterator[tuple[SlowProxy, str]]:
    """Serve a folder from S3, through a proxy; yields the proxy and the URI, for use with `using`."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(line for line in server.stderr if "Running on http" in line).split()[-1]
            threading.Thread(target=server.stderr.read, daemon=True).start()  # its log must not fill the pipe
            with urllib.request.urlopen(urllib.request.Request(f"{url}/atlases", method="PUT")):
                bucket = Folder("s3://atlases", ObjectStore.of({"endpoint": url}))
            for file in filter(Path.is_file, atlas.rglob("*")):
                bucket.write(file.relative_to(atlas.parent).as_posix(), file.read_bytes())
            yield SlowProxy(url), bucket.where(atlas.name)
        finally:
            server.kill()


def benchmark_latency() -> Figures:
    """Measure partitions as they are read on CPUs, and the largest ones, at each latency."""
    cells = synthetic_atlas(cell_lengths("1000", 8192))
    for name in _OBS_COLUMNS:
        cells.obs[name] = [f"{name} {number % 97}" for number in range(cells.n_obs)]
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        write_soma(Path(folder) / "atlas", cells, layout=CENSUS_LAYOUT)
        with served(Path(folder) / "atlas") as (proxy, uri), using(ObjectStore.of({"endpoint": proxy.url})):
            source = locate(uri, CellSettings(obs_columns=_OBS_COLUMNS))
            for size in (2048, 8192):
                for latency in _LATENCIES:
                    proxy.latency = latency
                    figures += _figures(source, cut(source.joinids(), size), proxy, size)
    return figures


def _figures(source: Source, partitions: tuple[Partition, ...], proxy: SlowProxy, size: int) -> list[Figure]:
    genes = np.arange(N_GENES, dtype=np.int32)
    setting: dict[str, str | int | float] = {"cells_per_partition": size, "latency_s": proxy.latency}
    before = proxy.requests
    seconds = [
        seconds_of(partial(deque, source.read(partition, genes), maxlen=0))  # reads when it is called
        for partition in partitions * _PASSES
    ]
    requests = (proxy.requests - before) / len(seconds)
    return [
        Figure("latency", "median per partition", statistics.median(seconds), "s", setting),
        Figure("latency", "mean per partition", requests, "requests", setting),
    ]


if __name__ == "__main__":
    os.environ.update(AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="key", AWS_REGION="us-east-1")
    sys.stdout.write(f"{benchmark_latency().text()}\n")
