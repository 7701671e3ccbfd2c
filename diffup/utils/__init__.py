"""Helpers that know nothing of segmentation: files, journals, pictures, checks, optional packages."""
