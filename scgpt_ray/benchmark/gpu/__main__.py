"""The command line: all stages, then the table. The exit code is 0 if all is done and right.

A stage runs in a process for itself: `--stage NAME`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from scgpt_ray.benchmark.gpu import __doc__ as about
from scgpt_ray.benchmark.gpu.report import FIGURES, Report, read, table
from scgpt_ray.benchmark.gpu.runner import Stage, run_stages

SECONDS = {
    "versions": 60,
    "attention": 60,
    "network": 60,
    "embedder": 60,
    "demo": 45,
    "golden": 75,
    "profiler": 45,
    "products": 45,
    "tiles": 150,
    "encoder": 90,
    "end_to_end": 120,
    "gpu_tests": 150,
}
"""Time limit of each stage, in the order in which they run: first whether it works, then how fast it is."""

TABLE = "table.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all stages and print the table, or run one stage."""
    parser = argparse.ArgumentParser(prog="python -m scgpt_ray.benchmark.gpu", description=(about or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for figures.jsonl, table.txt, log")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="golden embeddings; left out where not given")
    parser.add_argument("--deadline", type=float, default=480, metavar="SECONDS", help="for all stages [default: 480]")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: everything in small")
    parser.add_argument("--stage", choices=SECONDS, help="only this stage, in this process and without a table")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.stage:
        run_stage(options)
        return 0
    (options.output / FIGURES).write_text("", encoding="utf-8")
    try:
        run_stages(stages(options), options.output, options.deadline, environment(options.device))
    finally:
        lines = read(options.output / FIGURES)
        (options.output / TABLE).write_text(table(lines), encoding="utf-8")
        sys.stdout.write(table(lines))
    return int(any(line.is_wrong for line in lines))


def stages(options: argparse.Namespace) -> list[Stage]:
    """All stages with their commands."""
    rest = ["--device", options.device, "--output", str(options.output)]
    if options.golden:
        rest += ["--golden", str(options.golden)]
    program = [sys.executable, "-m", "scgpt_ray.benchmark.gpu"]
    return [Stage(name, [*program, "--stage", name, *rest], seconds) for name, seconds in SECONDS.items()]


def run_stage(options: argparse.Namespace) -> None:
    """Run one stage."""
    os.environ.update(environment(options.device))
    # Imported here: if torch cannot be imported, each stage says so.
    import torch

    from scgpt_ray.benchmark.gpu.bench import Bench
    from scgpt_ray.benchmark.gpu.sizes import FULL, SMALL

    report = Report(options.output / FIGURES, options.stage)
    sizes = SMALL if options.device == "cpu" else FULL
    bench = Bench(torch.device(options.device), sizes, report, options.output, options.golden)
    import_module(f"scgpt_ray.benchmark.gpu.stages.{options.stage}").run(bench)


def environment(device: str) -> dict[str, str]:
    """Environment of the stages: one cache of kernels for all of them, and kernels interpreted on a CPU."""
    return {
        "TRITON_CACHE_DIR": str(Path.home() / ".triton" / "cache"),
        **os.environ,
        "TRITON_INTERPRET": "1" if device == "cpu" else "0",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
