"""Evaluate how embeddings keep labels apart and bring batch keys together, as a Ray job.

ray job submit --working-dir . -- python jobs/integrate.py --config jobs/configs/integrate.yaml [--option value ...]
"""

import sys

from scgpt_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["integrate", *sys.argv[1:]]))
