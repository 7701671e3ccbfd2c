"""Labelling tools that call Python: CVAT's auto-annotation functions and FiftyOne's models."""
