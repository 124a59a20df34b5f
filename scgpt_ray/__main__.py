"""`python -m scgpt_ray VERB ...`: the command line where its script is not on the PATH."""

from scgpt_ray.cli import main

raise SystemExit(main())
