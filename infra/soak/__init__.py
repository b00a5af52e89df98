"""The reference job run again and again under faults: see `docs/faults.md` and ``python -m infra.soak --help``."""
