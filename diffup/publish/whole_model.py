"""`WholeModel`: a whole model that was exported to one file, run by onnxruntime, with the results of `DiffUp`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffup.decoder.config import from_dict
from diffup.decoder.options import checked_min_presence, checked_threshold
from diffup.errors import FormatError, PrototypesError
from diffup.inputs.images import ImageLike, fetch, read_image, to_bytes
from diffup.label_map import LabelMap
from diffup.priors.config import PriorConfig
from diffup.prototypes import Prototypes, distinct_classes
from diffup.publish.photo_model import OUTPUTS, support_inputs
from diffup.publish.whole import FACTS, PHOTO, Facts, check_exportable, prepared
from diffup.refine import REFINE
from diffup.result import Segmentation
from diffup.utils.optional import need


class WholeModel:
    """A whole model in one ONNX file (`diffup export --whole`), run by onnxruntime on the CPU.

    Encoder, priors and decoder are computed by onnxruntime; masks are refined as `DiffUp.segment` refines them, so the
    results are the same but for rounding.

    Args:
        session: the onnxruntime session.
        facts: what the file says of itself.

    Examples:
        >>> model = WholeModel.load("pets.onnx")
        >>> result = model.segment("photo.jpg")
        >>> result["dog"].mask
    """

    def __init__(self, session: Any, facts: Facts) -> None:
        self.facts = facts
        self._session = session

    def __repr__(self) -> str:
        classes = ", ".join(self.names) or "any class"
        return f"WholeModel({classes}; {self.facts.encoder['name']}, diffup {self.facts.version})"

    @classmethod
    def load(cls, path: str | os.PathLike[str], threads: int = 0) -> WholeModel:
        """Load a file that `diffup export --whole` wrote.

        Args:
            path: path of the .onnx file.
            threads: number of threads of onnxruntime; 0 for all cores.

        Raises:
            MissingPackageError: onnxruntime is not installed.
            FormatError: the file is missing, damaged, no whole model, or of an older diffup.
        """
        onnxruntime = need("onnxruntime", "a whole model", "onnx")
        path = Path(path)
        if not path.is_file():
            raise FormatError(f"there is no file {str(path)!r}; `diffup export --whole` makes one")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # it warns of what it does not fold
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            raise FormatError(
                f"{path}: onnxruntime cannot open it ({type(error).__name__}); export it again"
            ) from error
        return cls(session, _read_facts(session, path))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in the file; none if classes are inputs."""
        return tuple(item["name"] for item in self.facts.classes)

    def segment(
        self,
        query: ImageLike,
        prototypes: Prototypes | Sequence[Prototypes] = (),
        *,
        threshold: float | None = None,
        min_presence: float | None = None,
        refine: bool | None = None,
    ) -> LabelMap:
        """Segment every class of the file, or those of prototypes, in a photo.

        Args:
            query: the photo: path, PIL image, numpy array (H, W, 3) uint8 or torch tensor (3, H, W).
            prototypes: prototypes of the classes if they are inputs of the file, made with its encoder; else none.
            threshold: probability in (0, 1) above which a pixel is in the mask; by default the class's own. The quality
                is that of the mask at the file's threshold.
            min_presence: presence in [0, 1] below which a mask is empty; by default the file's.
            refine: whether masks are refined to the photo's outlines; `diffup.refine.REFINE` by default.

        Returns:
            A label map, for a single class, too.

        Raises:
            ImageError: the photo cannot be read.
            PrototypesError: prototypes are missing, not wanted, or made with another encoder.
            ConfigError: an option is out of range, or a class has text prompts or negatives.
        """
        threshold = None if threshold is None else checked_threshold(threshold)
        min_presence = checked_min_presence(self.facts.min_presence if min_presence is None else min_presence)
        given = [] if isinstance(prototypes, Sequence) and not prototypes else distinct_classes(prototypes)
        self._check(given)
        photo = to_bytes(read_image(fetch(query, "query"), "query"))
        pixels = np.ascontiguousarray(photo.transpose(2, 0, 1)[None])
        if given:
            config = from_dict(PriorConfig, self.facts.priors, "priors.")
            found = [self._run({PHOTO: pixels, **_arrays(item, config)}) for item in given]
            own = [self.facts.threshold if item.threshold is None else item.threshold for item in given]
            names = tuple(item.name for item in given)
        else:
            found, names = [self._run({PHOTO: pixels})], self.names
            own = [item["threshold"] for item in self.facts.classes]
        presence, quality, score, maps = (np.concatenate(parts, axis=1)[0] for parts in zip(*found, strict=True))
        results = [
            Segmentation(
                image=photo,
                maps=maps[index].copy(),
                quality=float(quality[index]),
                threshold=own[index] if threshold is None else threshold,
                backbone=self.facts.encoder["name"],
                presence=float(presence[index]),
                score=float(score[index]),
                min_presence=min_presence,
                refine=REFINE if refine is None else refine,
            )
            for index in range(len(names))
        ]
        return LabelMap.of(names, results)

    def _check(self, given: Sequence[Prototypes]) -> None:
        """Check that prototypes are given if and only if classes are inputs, and fit the encoder."""
        if not given and not self.names:
            raise PrototypesError(
                "prototypes: classes are inputs of this file, and none is given; give their prototypes"
            )
        if given and self.names:
            raise PrototypesError(
                f"prototypes: this file has its classes inside ({', '.join(self.names)}); leave them out, or export a "
                "file with --prototypes-as-inputs"
            )
        if not given:
            return
        check_exportable(given)
        encoder, grid = self.facts.encoder, self.facts.priors["grid"]
        for item in given:
            if (item.fingerprint, item.grid) != (encoder["fingerprint"], grid):
                raise PrototypesError(
                    f"prototypes {item.name!r} were made with {item.backbone} ({item.fingerprint}, grid {item.grid}); "
                    f"the file has {encoder['name']} ({encoder['fingerprint']}, grid {grid}). Teach the class with that"
                )

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """Presence, quality, score and maps of the classes, each with a batch of one photo before them."""
        found: list[npt.NDArray[np.float32]] = self._session.run(list(OUTPUTS[1:]), dict(inputs))
        return found


def _arrays(item: Prototypes, config: PriorConfig) -> dict[str, npt.NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in support_inputs(prepared(item, config)).items()}


def _read_facts(session: Any, path: Path) -> Facts:
    """Read what a file says of itself.

    Raises:
        FormatError: it is no whole model, or one of another version.
    """
    text = session.get_modelmeta().custom_metadata_map.get(FACTS)
    if text is None:
        raise FormatError(f"{path} is an ONNX file, but no whole model of diffup; `diffup export --whole` makes one")
    sides = {output.name: len(output.shape) for output in session.get_outputs()}
    try:
        facts = Facts(**json.loads(text))
        if not sides.keys() >= set(OUTPUTS):
            raise ValueError("outputs are missing")
        if sides["probability"] != 4:
            raise ValueError("its outputs have no dimension of photos")
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} was written by another version of diffup ({error}); export it again") from error
    return facts
