"""Build a faiss index over embeddings, as a Ray job.

ray job submit --working-dir . -- python jobs/build_index.py --config jobs/configs/build_index.yaml [--option value ...]
"""

import sys

from scgpt_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["index", *sys.argv[1:]]))
