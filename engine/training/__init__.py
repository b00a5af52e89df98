"""Training and evaluation of SPEX on labelled chips."""
