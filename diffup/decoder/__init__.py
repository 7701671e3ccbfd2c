"""UQDD: the only trained part, from a condition to masks (paper section III-D), and its baselines."""
