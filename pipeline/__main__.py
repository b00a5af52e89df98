"""``python -m pipeline`` is the command ``spexmap``."""

from pipeline.cli import main

main()
