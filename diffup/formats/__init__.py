"""Readers and writers for the formats of other labelling tools and trainers. Pure functions; see `docs/formats.md`."""

from diffup.formats.coco import coco_annotations, coco_document, decode_segmentation, encode_rle
from diffup.formats.contours import connected_components, polygons
from diffup.formats.labelme import read_labelme
from diffup.formats.mask_folder import read_mask_folder
from diffup.formats.png import voc_palette, write_label_png
from diffup.formats.read_coco import read_coco
from diffup.formats.records import read_fiftyone, read_huggingface
from diffup.formats.supports import Skipped, SupportSet
from diffup.formats.yolo import yolo_lines

__all__ = [
    "Skipped",
    "SupportSet",
    "coco_annotations",
    "coco_document",
    "connected_components",
    "decode_segmentation",
    "encode_rle",
    "polygons",
    "read_coco",
    "read_fiftyone",
    "read_huggingface",
    "read_labelme",
    "read_mask_folder",
    "voc_palette",
    "write_label_png",
    "yolo_lines",
]
