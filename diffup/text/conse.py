"""ConSE: a text space made of any classifier of ImageNet's classes (Norouzi et al., 2013), applied at every position.

The embedding of a position is the mean of the class names' sentence embeddings, weighted by its class probabilities. No
image-text training is needed, so this text space works offline.
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
        name: full name, `conse:CLASSIFIER`.
        classifier: backbone whose `encoder` classifies ImageNet's 1000 classes (in the usual order) from a map.
        bank: (1000, C), unit embeddings of the class names by the same sentence encoder.
        sentences: sentence encoder, or its name, which is loaded with the first text.

    Raises:
        BackboneError: the classifier has no such head.
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
        """(height, width) in pixels of the classifier's input."""
        return self.classifier.input_size

    @property
    def device(self) -> torch.device:
        """Device of the classifier."""
        return self.classifier.device

    @functools.cached_property
    def fingerprint(self) -> str:
        """The classifier's fingerprint and a hash of the bank, which identifies its sentence encoder."""
        bank = hashlib.sha256(self.bank.cpu().half().numpy().tobytes()).hexdigest()[:16]
        return f"conse-{self.classifier.fingerprint}-{bank}"

    @torch.no_grad()
    def dense(self, images: Tensor) -> Tensor:
        """Dense features of images in the text space: class probabilities of every position times the bank.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], on `device`.

        Returns:
            (B, C, h, w) float32, at the stride of the classifier's last map.
        """
        probabilities = self.logits(images).softmax(dim=1)
        return torch.einsum("bkhw,kc->bchw", probabilities, self.bank)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Class logits at every position of the classifier's last map, instead of at the mean over positions.

        If the head is linear, their mean over positions is the classifier's own output.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], on `device`.

        Returns:
            (B, 1000, h, w) float32.
        """
        encoder: Any = self.classifier.encoder
        return _map_of_classes(encoder, normalised(self.classifier, images))

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit sentence embeddings of N texts, (N, C) on `device`.

        Args:
            texts: N texts.

        Raises:
            BackboneError: the sentence encoder has another width than the bank.
            MissingPackageError: the sentence encoder's package is not installed.
            WeightsError: its weights cannot be loaded.
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
        """Move classifier and bank to a device; the sentence encoder stays on the CPU, which is fast enough."""
        self.classifier = self.classifier.to(device)
        self.bank = self.bank.to(device)
        return self


def build(
    variant: str | None,
    *,
    sentence_encoder: str | SentenceEncoder = MINILM,
    **options: Any,
) -> ConseSpace:
    """Build the text space `conse:CLASSIFIER`.

    Args:
        variant: name of a bundled classifier such as `efficientnet_lite2`, or `timm:NAME` for any convolutional
            classifier of ImageNet's 1000 classes; None for `DEFAULT_CLASSIFIER`.
        sentence_encoder: sentence encoder, or its name (a folder or hub repository). Any other than the default embeds
            the class names again, which takes some seconds.
        **options: options of the classifier: `input_size`, `pretrained` (False for random weights), and for `timm:`
            classifiers `checkpoint_path`, a local file of weights that includes the head.

    Raises:
        BackboneError: there is no such classifier, or it has no head of 1000 classes over a map.
        MissingPackageError: a package that it needs is not installed.
        WeightsError: the weights cannot be loaded or do not fit.
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
    """Build a timm model with its classifier, which the backbone family omits."""
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
    """Check, on a blank image, that a classifier gives 1000 classes at every position."""
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
