"""Reading and writing what other labelling tools and trainers use. Pure functions; `docs/formats.md` shows them."""

from diffup.formats.coco import coco_annotations, coco_document, decode_segmentation, encode_rle
from diffup.formats.contours import connected_components, polygons
from diffup.formats.png import voc_palette, write_label_png, write_mask_png
from diffup.formats.yolo import yolo_lines

__all__ = [
    "coco_annotations",
    "coco_document",
    "connected_components",
    "decode_segmentation",
    "encode_rle",
    "polygons",
    "voc_palette",
    "write_label_png",
    "write_mask_png",
    "yolo_lines",
]
