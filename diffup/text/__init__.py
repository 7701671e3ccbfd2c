"""Text as an annotation: templates, joint embedding spaces of images and texts, and the offline one (ConSE)."""

from diffup.text.load import load_text_space
from diffup.text.space import TextSpace

__all__ = ["TextSpace", "load_text_space"]
