"""Measuring SPEX: scores with intervals, arms of attributes, baselines trained in the same run, and the page that shows them."""
