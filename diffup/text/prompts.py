"""What names of a class become: sentences and their embeddings, of one text space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffup.errors import PrototypesError
from diffup.text.space import TextSpace
from diffup.text.templates import Templates, prompts, resolve_names, resolve_templates


@dataclass(frozen=True, eq=False)
class Words:
    """A class by its names: V sentences, each of them one more view of the query (UAPF).

    Attributes:
        sentences: every name in every template.
        embeddings: (V, C) float32 on the CPU, unit vectors.
        space: name of the text space.
        fingerprint: of the text space.
    """

    sentences: tuple[str, ...]
    embeddings: Tensor
    space: str
    fingerprint: str

    def check(self, space: TextSpace, name: str) -> None:
        """Raise `PrototypesError` unless a text space is the one that these were embedded in.

        Args:
            space: that the query's features are of.
            name: of the class, for the message.
        """
        if self.fingerprint != space.fingerprint:
            raise PrototypesError(
                f"prototypes {name!r} hold text as {self.space} ({self.fingerprint}) embeds it; the model reads text "
                f"with {space.name} ({space.fingerprint}). Embeddings of different text spaces do not compare; embed "
                "the sentences again: prototypes.rebuild(model), or give the model text_backbone="
                f"{self.space!r}"
            )

    def rebuild(self, space: TextSpace) -> Words:
        """The same sentences in another text space; itself where it is the same."""
        return self if self.fingerprint == space.fingerprint else embed(space, self.sentences)

    def join(self, other: Words) -> Words:
        """The sentences of both, of one text space; one that is in both counts once."""
        new = [index for index, sentence in enumerate(other.sentences) if sentence not in self.sentences]
        return Words(
            (*self.sentences, *(other.sentences[index] for index in new)),
            torch.cat([self.embeddings, other.embeddings[new]]),
            self.space,
            self.fingerprint,
        )


def embed(space: TextSpace, sentences: Sequence[str]) -> Words:
    """Embed sentences."""
    return Words(tuple(sentences), space.embed(sentences).float().cpu(), space.name, space.fingerprint)


def read_words(space: TextSpace, text: str | Sequence[str], templates: Templates | None = None) -> Words:
    """Embed names in templates.

    Args:
        space: that reads them.
        text: see `DiffUp.segment`.
        templates: see `DiffUp.segment`.

    Raises:
        AnnotationError: there is no name, or one is blank.
        ConfigError: the templates cannot be used.
    """
    return embed(space, list(dict.fromkeys(prompts(resolve_names(text), resolve_templates(templates)))))
