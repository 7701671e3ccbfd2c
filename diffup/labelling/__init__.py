"""Bulk labelling of images: a folder on one machine, or a dataset on a Ray cluster."""

from diffup.labelling.folder import LabelReport, label_folder
from diffup.labelling.plan import LabelPlan

__all__ = ["LabelPlan", "LabelReport", "label_folder"]
