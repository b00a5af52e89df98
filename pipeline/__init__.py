"""A job file becomes a published map."""
