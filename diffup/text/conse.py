"""ConSE: a text space over any classifier of ImageNet's classes (Norouzi et al., 2013), position by position.

Every position's class probabilities weigh the sentence embeddings of the class names, which puts it into the space of
the sentence encoder. No image-text training is needed, so this is the text route that works offline.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffup.backbones.base import FrozenBackbone, resolve_input_size, resolve_levels
from diffup.backbones.checkpoint import load_weights, read_weights
from diffup.errors import BackboneError, WeightsError
from diffup.text.name_bank import CLASSES, read_bank
from diffup.text.positions import head_per_position, normalised
from diffup.text.sentences import MINILM, SentenceEncoder, load_sentence_encoder

DEFAULT_CLASSIFIER = "efficientnet_lite2"


class ConseSpace:
    """A text space made of a classifier and a sentence encoder.

    Args:
        name: Full name, `conse:CLASSIFIER`.
        classifier: A backbone whose `encoder` classifies ImageNet's 1000 classes (in the usual order) from a map.
        bank: (1000, C) unit embeddings of the classes' names, of the same sentence encoder.
        sentences: Name of the sentence encoder, loaded with the first text; or a ready-made one.

    Raises:
        BackboneError: The encoder has no such head.
    """

    def __init__(
        self, name: str, classifier: FrozenBackbone, bank: Tensor, sentences: str | SentenceEncoder = MINILM
    ) -> None:
        self.name = name
        self.classifier = classifier
        self.bank = bank.float().to(classifier.device)
        self._sentences = sentences
        _check_classifier(classifier, name)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels, the classifier's."""
        return self.classifier.input_size

    @property
    def device(self) -> torch.device:
        """Device of the classifier."""
        return self.classifier.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """The classifier's, and a hash of the bank, which goes with its sentence encoder."""
        bank = hashlib.sha256(self.bank.cpu().half().numpy().tobytes()).hexdigest()[:16]
        return f"conse-{self.classifier.fingerprint}-{bank}"

    @torch.no_grad()
    def dense(self, images: Tensor) -> Tensor:
        """Class probabilities of every position times the bank.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], on `device`.

        Returns:
            (B, C, h, w) float32, at the stride of the classifier's last map.
        """
        probabilities = self.logits(images).softmax(dim=1)
        return torch.einsum("bkhw,kc->bchw", probabilities, self.bank)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The classifier's head at every position of its last map instead of at their mean.

        Where the head is linear, the mean over positions is the classifier's own output.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], on `device`.

        Returns:
            (B, 1000, h, w) float32.
        """
        encoder: Any = self.classifier.encoder
        return _map_of_classes(encoder, normalised(self.classifier, images))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit sentence embeddings, (N, C) on `device`.

        Raises:
            MissingPackageError: The sentence encoder's package is not installed.
            WeightsError: Its weights cannot be had.
        """
        if isinstance(self._sentences, str):
            self._sentences = load_sentence_encoder(self._sentences)
        embeddings = self._sentences(texts).to(self.device)
        if embeddings.shape[1] != self.bank.shape[1]:
            raise BackboneError(
                f"'{self.name}': the bank of class names has {self.bank.shape[1]} dimensions, sentence encoder "
                f"{self._sentences.name!r} gives {embeddings.shape[1]}; make the bank with the same encoder"
            )
        return embeddings

    def vocabulary_mean(self) -> Tensor:
        """Mean embedding of ImageNet's class names, (C,)."""
        return self.bank.mean(dim=0)

    def to(self, device: torch.device | str) -> ConseSpace:
        """Move classifier and bank; sentences are short enough for the CPU."""
        self.classifier = self.classifier.to(device)
        self.bank = self.bank.to(device)
        return self


def build(
    variant: str | None,
    *,
    sentence_encoder: str | SentenceEncoder = MINILM,
    **options: Any,
) -> ConseSpace:
    """The text space `conse:CLASSIFIER`.

    Args:
        variant: A bundled classifier such as `efficientnet_lite2` (the default), or `timm:NAME` for any convolutional
            classifier of ImageNet's 1000 classes.
        sentence_encoder: Name (see `load_sentence_encoder`) or object. Any other than the default embeds the class
            names anew, which takes some seconds.
        **options: Of the classifier: `input_size`, `pretrained` (False for random weights), and of `timm:` classifiers
            `checkpoint_path`, a local file of weights that holds the head too.

    Raises:
        BackboneError: There is no such classifier, or it has no head of 1000 classes over a map.
        MissingPackageError: A package that it needs is not installed.
        WeightsError: The weights cannot be had or do not fit.
    """
    from diffup.backbones import bundled

    variant = variant or DEFAULT_CLASSIFIER
    if "checkpoint_path" in options and not variant.startswith("timm:"):
        raise BackboneError(
            f"'conse:{variant}': checkpoint_path is for 'conse:timm:NAME', whose file holds the head too"
        )
    if variant.startswith("timm:"):
        classifier = _timm_classifier(variant.removeprefix("timm:"), **options)
    else:
        classifier = bundled.build(variant, **options)
    descriptions, bank = read_bank()
    if sentence_encoder != MINILM:
        encoder = load_sentence_encoder(sentence_encoder) if isinstance(sentence_encoder, str) else sentence_encoder
        sentence_encoder, bank = encoder, encoder(descriptions)
    return ConseSpace(f"conse:{variant}", classifier, bank, sentence_encoder)


def _timm_classifier(
    variant: str,
    *,
    input_size: int | Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    pretrained: bool = True,
) -> FrozenBackbone:
    """A timm model with its classifier, which the backbone family leaves out."""
    import timm

    from diffup.backbones.timm import DEFAULT_INPUT_SIZE, TimmBackbone, stage_strides

    name = f"timm:{variant}"
    download = pretrained and checkpoint_path is None
    try:
        model = timm.create_model(variant, pretrained=download)
        if checkpoint_path is not None:
            load_weights(model, read_weights(checkpoint_path, name), str(checkpoint_path), name, heads=True)
    except WeightsError:
        raise
    except Exception as error:
        kind = WeightsError if download or checkpoint_path is not None else BackboneError
        raise kind(f"'conse:{name}' cannot be built: {error}") from error
    return TimmBackbone(
        name,
        model,
        input_size=resolve_input_size(DEFAULT_INPUT_SIZE if input_size is None else input_size, name),
        levels=resolve_levels(None, stage_strides(model, name), name),
        mean=model.pretrained_cfg["mean"],
        std=model.pretrained_cfg["std"],
    )


def _check_classifier(classifier: FrozenBackbone, name: str) -> None:
    """Run the head on a blank image; whatever does not give 1000 classes at every position is refused."""
    encoder: Any = classifier.encoder
    problem: object = f"it has {getattr(encoder, 'num_classes', 0)} classes"
    if getattr(encoder, "num_classes", 0) == CLASSES and hasattr(encoder, "forward_head"):
        try:
            with torch.no_grad():
                blank = torch.zeros(1, 3, 64, 64, device=classifier.device, dtype=classifier.dtype)
                _map_of_classes(encoder, blank)
        except (RuntimeError, ValueError, AssertionError) as error:
            problem = error
        else:
            return
    raise BackboneError(
        f"'{name}': ConSE needs a classifier of ImageNet's {CLASSES} classes that pools a map, such as "
        f"'conse:{DEFAULT_CLASSIFIER}' or 'conse:timm:resnet50.a1_in1k'; {problem}"
    )


def _map_of_classes(encoder: Any, images: Tensor) -> Tensor:
    """Logits at every position of the last map, (B, 1000, h, w)."""
    logits = head_per_position(encoder, encoder.forward_features(images))
    if logits.ndim != 4:
        raise ValueError("its last features are no map but tokens")
    return logits
