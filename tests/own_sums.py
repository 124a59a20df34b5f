"""The command line with other sums of whole-human, which is not at hand: those in the environment."""

import json
import os
from dataclasses import replace

from scgpt_ray import cli
from scgpt_ray.network.published import PUBLISHED, Known


def main(words):
    files = {name: Known(digest) for name, digest in json.loads(os.environ["WHOLE_HUMAN"]).items()}
    PUBLISHED["whole-human"] = replace(PUBLISHED["whole-human"], files=files)
    return cli.main(words)
