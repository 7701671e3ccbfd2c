"""Mark a new class of object in images from a few examples, with any image encoder."""

__version__ = "0.1.0.dev0"
