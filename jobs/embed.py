"""Embed an atlas, as a Ray job.

ray job submit --working-dir . -- python jobs/embed.py --config jobs/configs/embed.yaml [--option value ...]
"""

import sys

from scgpt_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["embed", *sys.argv[1:]]))
