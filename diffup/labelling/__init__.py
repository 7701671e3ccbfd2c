"""Bulk labelling of images: a folder on one machine, or a dataset on a Ray cluster."""

from diffup.labelling.folder import LabelPlan, LabelReport, label_folder

__all__ = ["LabelPlan", "LabelReport", "label_folder"]
