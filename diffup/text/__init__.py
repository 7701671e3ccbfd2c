"""Words as an annotation: templates, text spaces that images and texts share, and the one that ships (ConSE)."""

from diffup.text.space import TextSpace, load_text_space

__all__ = ["TextSpace", "load_text_space"]
