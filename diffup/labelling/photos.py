"""The folder of photos to label: a local one, or one of an object store. Photos are named relative to it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from diffup.errors import ConfigError
from diffup.formats.label_studio import local_file_url
from diffup.labelling.files import path_from
from diffup.labelling.hashes import PhotoFacts
from diffup.labelling.listing import Listing, list_images, list_names
from diffup.labelling.outputs import Place
from diffup.utils.storage import RemoteFolder


class Photos(Protocol):
    """The photos of a folder."""

    listing: Listing

    def source(self, image: str) -> Place:
        """Path or URL of a photo."""
        ...

    def facts(self, image: str) -> PhotoFacts | None:
        """Facts by which a later run sees whether the photo has changed; None if it cannot be read."""
        ...

    def still(self, image: str, facts: PhotoFacts) -> bool:
        """Whether a photo has the same content as when its facts were taken."""
        ...

    def refuse_within(self, output: Path | RemoteFolder) -> None:
        """Check that a folder for results does not lie within that of the photos.

        Raises:
            ConfigError: it does.
        """
        ...

    def seen_from(self, output: Path | RemoteFolder, file: str, image: str) -> str:
        """A photo's path as seen from a file of the results; its path or URL if that is elsewhere.

        Args:
            output: folder of the results.
            file: name of the file in it.
            image: name of the photo.
        """
        ...

    def task_url(self, image: str) -> str:
        """The photo's address in a task of Label Studio."""
        ...


class LocalPhotos:
    """Photos on a disk.

    Args:
        folder: path of their folder.

    Raises:
        DataError: the folder does not exist, or holds no image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listing = list_images(folder)

    def source(self, image: str) -> Path:
        """Path of a photo."""
        return self.folder / image

    def facts(self, image: str) -> PhotoFacts | None:
        """Facts by which a later run sees whether the photo has changed; None if it cannot be read."""
        return PhotoFacts.of(self.folder / image)

    def still(self, image: str, facts: PhotoFacts) -> bool:
        """Whether a photo has the same content as when its facts were taken."""
        return facts.still(self.folder / image)

    def refuse_within(self, output: Path | RemoteFolder) -> None:
        """Check that a folder for results does not lie within that of the photos (see `Photos`)."""
        if isinstance(output, Path) and any(output.resolve().is_relative_to(real) for real in self.listing.folders):
            raise _within(str(output), str(self.folder))

    def seen_from(self, output: Path | RemoteFolder, file: str, image: str) -> str:
        """A photo's path as seen from a file of the results (see `Photos`)."""
        if isinstance(output, Path):
            return path_from((output / file).parent, self.folder / image)
        return (self.folder / image).resolve().as_posix()

    def task_url(self, image: str) -> str:
        """The photo's address in a task of Label Studio, whose document root holds the folder."""
        return local_file_url(f"{self.folder.resolve().name}/{image}")


class RemotePhotos:
    """Photos of an object store, listed once. Their facts are those of the list, so that nothing is read for them.

    Args:
        folder: their folder.

    Raises:
        DataError: the folder holds no image.
        StorageError: the folder cannot be listed.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self.folder = folder
        self._versions = folder.versions()
        self.listing = list_names(self._versions, folder.shown())

    def source(self, image: str) -> str:
        """URL of a photo."""
        return self.folder.url_of(image)

    def facts(self, image: str) -> PhotoFacts:
        """The version of a photo, in the place of the hash of its content."""
        return PhotoFacts(0, 0, 0, self._versions[image])

    def still(self, image: str, facts: PhotoFacts) -> bool:
        """Whether a photo has not been written anew since."""
        return self.facts(image) == facts

    def refuse_within(self, output: Path | RemoteFolder) -> None:
        """Check that a folder for results does not lie within that of the photos (see `Photos`)."""
        if isinstance(output, RemoteFolder) and self.folder.holds(output):
            raise _within(output.shown(), self.folder.shown())

    def seen_from(self, output: Path | RemoteFolder, file: str, image: str) -> str:
        """A photo's path as seen from a file of the results, or its URL (see `Photos`)."""
        return self.folder.shown(image) if isinstance(output, Path) else output.path_to(file, self.folder, image)

    def task_url(self, image: str) -> str:
        """The photo's URL, which Label Studio resolves for the storages that a project is connected to."""
        return self.folder.shown(image)


def open_photos(place: Path | RemoteFolder) -> Photos:
    """The photos at a place.

    Args:
        place: path of a local folder, or a folder of an object store.

    Raises:
        DataError: the folder does not exist, or holds no image.
        StorageError: the folder cannot be listed.
    """
    return LocalPhotos(place) if isinstance(place, Path) else RemotePhotos(place)


def _within(output: str, folder: str) -> ConfigError:
    return ConfigError(f"output: {output} lies within {folder}, so its pictures would be labelled; choose another")
