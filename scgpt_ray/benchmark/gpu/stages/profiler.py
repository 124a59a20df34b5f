"""Where the time of one forward pass goes, by kernel."""

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.subjects import boundaries, encoder, microbatch
from scgpt_ray.benchmark.launches import seconds_per_launch

KERNELS = 14
"""That get a line; profile.txt has all."""

_NAME_LENGTH = 54


def run(bench: Bench) -> None:
    """Profile the network as an actor computes it, on one microbatch."""
    on_gpu = bench.device.type == "cuda"
    tokens = bench.sizes.lengths[0]
    network = encoder(bench.checkpoint, bench.device, bench.sizes.precision)
    cells = microbatch(bench.checkpoint, boundaries(tokens, bench.sizes.tokens), bench.device)
    seconds = seconds_per_launch(lambda: network(*cells), bench.device, bench.sizes.seconds)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        network(*cells)
        if on_gpu:
            torch.cuda.synchronize()
    events = profiler.key_averages()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    (bench.output / "profile.txt").write_text(events.table(sort_by=by, row_limit=60), encoding="utf-8")
    # Operations of the host carry the time of the kernels they launch: on a GPU only the kernels are counted.
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    micros = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in events
        if event.device_type == kind
    }
    total = sum(time for time, _ in micros.values())
    bench.report.figure("one forward, by events", 1e3 * seconds, "ms", tokens)
    bench.report.figure("all kernels, by the profiler", total / 1e3, "ms", tokens)
    for key, (time, count) in sorted(micros.items(), key=lambda item: -item[1][0])[:KERNELS]:
        bench.report.figure(
            key[:_NAME_LENGTH], time / 1e3, "ms", tokens, launches=count, share=round(time / total, 4), kernel=key[:200]
        )
