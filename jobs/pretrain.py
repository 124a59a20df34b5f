"""Train a network, or go on training one with labels, as a Ray job.

ray job submit --working-dir . -- python jobs/pretrain.py --config jobs/configs/pretrain.yaml [--option value ...]
"""

import sys

from scgpt_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["pretrain", *sys.argv[1:]]))
