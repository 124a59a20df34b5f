"""Map query cells onto an indexed reference, as a Ray job.

ray job submit --working-dir . -- python jobs/map_query.py --config jobs/configs/map_query.yaml [--option value ...]
"""

import sys

from scgpt_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["map", *sys.argv[1:]]))
