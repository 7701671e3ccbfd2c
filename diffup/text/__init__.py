"""Words as an annotation: templates, text spaces that images and texts share, and the one that ships (ConSE)."""

from diffup.text.load import load_text_space
from diffup.text.space import TextSpace

__all__ = ["TextSpace", "load_text_space"]
