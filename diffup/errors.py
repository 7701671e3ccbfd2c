"""The exceptions that the library raises on purpose; everything else is a bug.

Each one is also the built-in exception that a caller would expect (`ValueError`, `ImportError`, ...), so code that
does not know this module catches them too.
"""


class DiffUpError(Exception):
    """Base of every exception that diffup raises on purpose."""


class ImageError(DiffUpError, ValueError):
    """An image that cannot be read or used: missing, truncated, too large, of an unknown layout."""


class AnnotationError(DiffUpError, ValueError):
    """An annotation that does not fit its image or marks nothing."""


class ConfigError(DiffUpError, ValueError):
    """A configuration field that is unknown, out of range or contradicts another."""


class BackboneError(DiffUpError, ValueError):
    """An encoder that cannot be found or built, or that breaks the backbone protocol."""


class ConformanceError(BackboneError):
    """A backbone that fails checks of `diffup.backbones.conformance`; the text is the report."""


class MissingPackageError(DiffUpError, ImportError):
    """An optional package that the request needs is not installed."""


class WeightsError(DiffUpError, ValueError):
    """Weights that are missing or do not belong to the model they are given to."""


class HubError(DiffUpError, OSError):
    """The Hugging Face hub cannot be reached, is switched off, or refuses."""


class DataError(DiffUpError, ValueError):
    """A data set folder that is not laid out as documented."""


class FormatError(DiffUpError, ValueError):
    """A file or record of another program that is not as its format says, or that cannot be written in it."""


class TrainingError(DiffUpError, RuntimeError):
    """A training run that cannot start, go on or be resumed."""


class PrototypesError(DiffUpError, ValueError):
    """Prototypes that cannot be read, or that do not fit the model or each other."""


class ExportError(DiffUpError, RuntimeError):
    """A decoder that gives other results once exported."""


class StorageError(DiffUpError, OSError):
    """A file that cannot be written: the disk is full, the folder read-only, or another process writes to it.

    What was there before stays.
    """
