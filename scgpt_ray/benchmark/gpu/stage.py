"""One stage, in a process for itself: `python -m scgpt_ray.benchmark.gpu.stage NAME --device cuda --output DIR`."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from scgpt_ray.benchmark.gpu.bench import Bench
from scgpt_ray.benchmark.gpu.report import FIGURES, Report
from scgpt_ray.benchmark.gpu.sizes import FULL, SMALL


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--golden", type=Path)
    options = parser.parse_args(arguments)
    report = Report(options.output / FIGURES, options.name)
    sizes = SMALL if options.device == "cpu" else FULL
    bench = Bench(torch.device(options.device), sizes, report, options.output, options.golden)
    import_module(f"scgpt_ray.benchmark.gpu.stages.{options.name}").run(bench)


if __name__ == "__main__":
    main()
