"""Readers and writers for the formats of other labelling tools and trainers. Pure functions; see `docs/formats.md`."""

from diffup.formats.coco import coco_annotations, coco_document, decode_segmentation, encode_rle
from diffup.formats.contours import connected_components, polygons
from diffup.formats.label_studio import label_studio_prediction, label_studio_task, local_file_url
from diffup.formats.labelme import read_labelme
from diffup.formats.mask_folder import read_mask_folder
from diffup.formats.png import voc_palette, write_label_png
from diffup.formats.read_coco import read_coco
from diffup.formats.read_cvat import read_cvat
from diffup.formats.read_label_studio import read_label_studio
from diffup.formats.read_supports import read_supports, recognise_format
from diffup.formats.read_torchvision import read_torchvision
from diffup.formats.records import read_fiftyone, read_huggingface
from diffup.formats.supports import Skipped, SupportSet
from diffup.formats.write_labelme import labelme_document
from diffup.formats.yolo import yolo_lines

__all__ = [
    "Skipped",
    "SupportSet",
    "coco_annotations",
    "coco_document",
    "connected_components",
    "decode_segmentation",
    "encode_rle",
    "label_studio_prediction",
    "label_studio_task",
    "labelme_document",
    "local_file_url",
    "polygons",
    "read_coco",
    "read_cvat",
    "read_fiftyone",
    "read_huggingface",
    "read_label_studio",
    "read_labelme",
    "read_mask_folder",
    "read_supports",
    "read_torchvision",
    "recognise_format",
    "voc_palette",
    "write_label_png",
    "yolo_lines",
]
