"""The exceptions that diffup raises on purpose; any other exception is a bug.

Each one is also a subclass of the matching built-in exception (`ValueError`, `ImportError`, ...), so code that does not
import this module can catch it too.
"""


class DiffUpError(Exception):
    """Base class of every exception that diffup raises on purpose."""


class ImageError(DiffUpError, ValueError):
    """An image cannot be read or used: it is missing, truncated, too large, or of an unknown layout."""


class AnnotationError(DiffUpError, ValueError):
    """An annotation does not fit its image or marks nothing."""


class ConfigError(DiffUpError, ValueError):
    """A setting or argument is unknown, out of range or contradicts another."""


class BackboneError(DiffUpError, ValueError):
    """An encoder cannot be found or built, or breaks the backbone protocol."""


class ConformanceError(BackboneError):
    """A backbone fails checks of `diffup.backbones.conformance`; the message is the report of all checks."""


class MissingPackageError(DiffUpError, ImportError):
    """An optional package is needed and not installed."""


class WeightsError(DiffUpError, ValueError):
    """Weights are missing, damaged, or belong to another model."""


class HubError(DiffUpError, OSError):
    """The Hugging Face hub cannot be reached, is switched off (`HF_HUB_OFFLINE`), or refuses the request."""


class DataError(DiffUpError, ValueError):
    """A folder of data or results is not laid out as documented, or its content is damaged."""


class FormatError(DiffUpError, ValueError):
    """A file of another program's format is invalid, or a result cannot be written in that format."""


class TrainingError(DiffUpError, RuntimeError):
    """A training run cannot start, continue or be resumed."""


class PrototypesError(DiffUpError, ValueError):
    """Prototypes cannot be read, or do not fit the model or each other."""


class ExportError(DiffUpError, RuntimeError):
    """An exported decoder gives other results than the original."""


class StorageError(DiffUpError, OSError):
    """A file cannot be written: the disk is full, the folder is read-only, or another process writes to it.

    An older file at the same path is left unchanged. Also raised if what was given by its URL cannot be read.
    """
