"""Text prompts of a class and their embeddings in a text space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffup.errors import PrototypesError
from diffup.text.space import TextSpace
from diffup.text.templates import Templates, prompts, resolve_names, resolve_templates


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """The text prompts of one class and their embeddings; each prompt is a view of the query (UAPF).

    Attributes:
        sentences: V text prompts, every name in every template.
        embeddings: (V, C) float32 on the CPU, unit embeddings of the prompts.
        space: name of the text space.
        fingerprint: fingerprint of the text space.
    """

    sentences: tuple[str, ...]
    embeddings: Tensor
    space: str
    fingerprint: str

    def check(self, space: TextSpace, name: str) -> None:
        """Check that a text space is the one in which the prompts were embedded.

        Args:
            space: text space of the query's features.
            name: name of the class in error messages.

        Raises:
            PrototypesError: the text spaces differ.
        """
        if self.fingerprint != space.fingerprint:
            raise PrototypesError(
                f"prototypes {name!r} hold text as {self.space} ({self.fingerprint}) embeds it; the model reads text "
                f"with {space.name} ({space.fingerprint}). Embeddings of different text spaces do not compare; embed "
                "the sentences again: prototypes.rebuild(model), or give the model text_backbone="
                f"{self.space!r}"
            )

    def rebuild(self, space: TextSpace) -> TextPrompt:
        """Embed the same prompts in another text space; returns itself if the space is the same.

        Args:
            space: text space to embed in.
        """
        return self if self.fingerprint == space.fingerprint else embed(space, self.sentences)

    def join(self, other: TextPrompt) -> TextPrompt:
        """Combine the prompts of two objects of one text space; a prompt that both have is kept once.

        Args:
            other: prompts in the same text space.
        """
        new = [index for index, sentence in enumerate(other.sentences) if sentence not in self.sentences]
        return TextPrompt(
            (*self.sentences, *(other.sentences[index] for index in new)),
            torch.cat([self.embeddings, other.embeddings[new]]),
            self.space,
            self.fingerprint,
        )


def embed(space: TextSpace, sentences: Sequence[str]) -> TextPrompt:
    """Embed text prompts.

    Args:
        space: text space to embed in.
        sentences: V text prompts.
    """
    return TextPrompt(tuple(sentences), space.embed(sentences).float().cpu(), space.name, space.fingerprint)


def embed_text_prompts(space: TextSpace, text: str | Sequence[str], templates: Templates | None = None) -> TextPrompt:
    """Embed the names of a class, each in every template.

    Args:
        space: text space to embed in.
        text: name of the class, or a list of synonyms.
        templates: one template or a list, each with `{}` where the name goes; or the name of an ensemble ("clip7",
            "clip80"); None is "a photo of a {}.".

    Raises:
        AnnotationError: there is no name, or one is blank.
        ConfigError: the templates cannot be used.
    """
    return embed(space, list(dict.fromkeys(prompts(resolve_names(text), resolve_templates(templates)))))
