"""Labelling many images: a folder on one machine, or a data set on a Ray cluster."""

from diffup.labelling.folder import LabelPlan, LabelReport, label_folder

__all__ = ["LabelPlan", "LabelReport", "label_folder"]
