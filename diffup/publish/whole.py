"""The whole model as one graph: from the pixels of a photo to a probability, presence and quality of every class."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffup import __version__
from diffup.backbones import Backbone
from diffup.backbones.base import FrozenBackbone, hash_weights
from diffup.decoder.base import Decoder
from diffup.decoder.options import SamplingOptions
from diffup.errors import ConfigError, ExportError
from diffup.inputs.images import ImageLike, read_image, to_bytes
from diffup.priors.config import PriorConfig
from diffup.priors.prepared import PreparedSupport
from diffup.prototypes import Prototypes
from diffup.publish.export import TOLERANCE, check_packages, quiet
from diffup.publish.photo_model import OUTPUTS, AnyClass, FixedClasses, PhotoModel, resize_photo, support_inputs
from diffup.publish.quantise import (
    ENCODER_IMAGE,
    ENCODER_LEVELS,
    check_quantisable,
    draw_photos,
    fold_encoder,
    quantise_encoder,
)
from diffup.utils.files import checked_ending, replacing
from diffup.utils.resize import resize_maps

PHOTO = "photo"
"""Name of the input: the pixels of B photos of one size, (B, 3, H, W) uint8, RGB; B, H and W vary."""

MAX_SIDE = 16384
"""Greatest side of a photo in pixels."""

MAX_BATCH = 1024
"""Greatest number of photos in a batch."""

FACTS = "diffup"
"""Key of `Facts` in the metadata of a file."""


@dataclass(frozen=True)
class Facts:
    """What a file says of itself, as JSON under the key `FACTS` of its metadata.

    Attributes:
        classes: name and threshold of each class; empty if the class is an input.
        encoder: name, fingerprint and input size (height, width in pixels) of the encoder.
        encoder_licence: licence of the encoder's weights; None if it is not known.
        decoder: SHA-256 of the decoder's weights.
        version: version of diffup.
        steps: number of sampling steps.
        ensemble: number of samples that are averaged.
        threshold: the decoder's own threshold.
        min_presence: presence below which a mask is empty.
        priors: config of the priors, which the prototypes of a class that is an input are prepared with.
        refined: whether the probability is refined to the outlines of the photo; always False.
        encoder_precision: precision in which the encoder computes, "float32" or "int8".
        calibration_photos: number of photos that calibrated an encoder in int8; 0 in float32.
    """

    classes: list[dict[str, Any]]
    encoder: dict[str, Any]
    encoder_licence: str | None
    decoder: str
    version: str
    steps: int
    ensemble: int
    threshold: float
    min_presence: float
    priors: dict[str, Any]
    refined: bool = False
    encoder_precision: str = "float32"
    calibration_photos: int = 0


@dataclass(frozen=True)
class Differences:
    """How far the results of an exported whole model are from the original's.

    Attributes:
        float32: maximum difference of a probability, presence, quality or score from torch's, the encoder in float32.
        int8: mean absolute difference of the probabilities with the encoder in int8 from those in float32, on the
            photos that calibrated it; None if the file has it in float32.
        int8_pixels: share of the pixels of the masks, 64 x 64 each, that int8 changes on those photos; None likewise.
    """

    float32: float
    int8: float | None = None
    int8_pixels: float | None = None


def export_whole(
    backbone: Backbone,
    decoder: Decoder,
    classes: Sequence[Prototypes],
    path: str | os.PathLike[str],
    *,
    options: SamplingOptions | None = None,
    as_inputs: bool = False,
    encoder_licence: str | None = None,
    calibration: Sequence[ImageLike] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Differences:
    """Export encoder, priors and decoder as one ONNX file, and compare its results with the original's.

    Photos are resized and normalised in the graph; they may have any size, the same for all of a batch. Probabilities
    are not refined.

    With `calibration` the encoder computes in int8: smaller and faster, with slightly other results. The graph is
    compared with the original before that.

    Args:
        backbone: the encoder, on the CPU.
        decoder: the decoder, on the CPU.
        classes: prototypes of the classes, made with this encoder; with `as_inputs` they only serve as examples, and
            their tensors are written beside the file as `STEM.CLASS.npz`.
        path: path of the file, ending in .onnx.
        options: sampling options; their noise becomes a constant.
        as_inputs: whether the class is an input of the graph, so that one file serves any class.
        encoder_licence: licence of the encoder's weights, for the metadata; None if it is not known.
        calibration: photos that calibrate an encoder in int8, 8 or more, of which 24 at most are drawn, always the
            same; None for an encoder in float32.
        progress: function that is called with a line on each step before it begins.

    Raises:
        ConfigError: the encoder, decoder or a class cannot be exported, there are too few photos, or the name of a
            class that would be a file's cannot be one.
        ImageError: a photo cannot be read.
        FormatError: the path has another ending.
        MissingPackageError: a package of `diffup[onnx]` is not installed.
        ExportError: the graph cannot be built, or gives other results than the original.
        StorageError: a file cannot be written.
    """
    path = checked_ending(path, ".onnx")
    check_packages()
    encoder = _exportable(backbone, decoder, classes)
    beside = [_class_file(path, item.name) for item in classes] if as_inputs else []
    say = (lambda line: None) if progress is None else progress
    photos: list[Tensor] = []
    if calibration is not None:
        check_quantisable(encoder)
        photos = [_as_input(photo) for photo in draw_photos(calibration)]
    sampling = (SamplingOptions() if options is None else options).resolve(decoder.config)
    supports = [prepared(item, decoder.config.priors) for item in classes]
    thresholds = [sampling.threshold(item.threshold) for item in classes]
    module: PhotoModel = (
        AnyClass(encoder, decoder, sampling, [sampling.threshold()])
        if as_inputs
        else FixedClasses(encoder, decoder, sampling, thresholds, supports)
    )
    inputs = support_inputs(supports[0]) if as_inputs else {}
    names = [] if as_inputs else [{"name": c.name, "threshold": t} for c, t in zip(classes, thresholds, strict=True)]
    facts = Facts(
        classes=names,
        encoder={
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "input_size": list(backbone.input_size),
        },
        encoder_licence=encoder_licence,
        decoder=hash_weights(decoder),
        version=__version__,
        steps=sampling.steps,
        ensemble=sampling.ensemble,
        threshold=sampling.threshold(),
        min_presence=sampling.min_presence,
        priors=asdict(decoder.config.priors),
    )
    with replacing(path) as temporary:
        say("building the graph")
        _write(module.eval(), inputs, facts, temporary, backbone.name)
        say("comparing its results with torch's")
        examples = [support_inputs(support) for support in supports] if as_inputs else [{}]
        difference = max(_difference(module, temporary, example) for example in examples)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{path.name}: the exported model differs from the original by {difference:.2g}, over {TOLERANCE}, "
                f"with the encoder {backbone.name!r}; report it with the versions of torch, onnx and onnxruntime"
            )
        found = Differences(difference)
        if photos:
            before = open_session(temporary)
            say(f"calibrating the encoder in int8 on {len(photos)} photos")
            _quantise(temporary, facts, photos)
            say("comparing int8 with float32 on them")
            after = open_session(temporary)
            found = replace(found, **_int8_differences(before, after, module.thresholds, photos, examples))
    for file, support in zip(beside, supports, strict=True) if as_inputs else ():
        save_class(file, support)
    return found


def _class_file(path: Path, name: str) -> Path:
    """Path of the file of a class beside a graph that takes the class as inputs.

    Raises:
        ConfigError: the name of the class cannot be part of a file's name.
    """
    if any(character in name for character in "/\\"):
        raise ConfigError(
            f"prototypes {name!r}: the class is written to {path.stem}.NAME.npz, and no file name holds a slash; give "
            "the class another name"
        )
    return path.with_name(f"{path.stem}.{name}.npz")


def save_class(path: Path, support: PreparedSupport) -> None:
    """Write the tensors of a class to an `.npz` file, for graphs that take the class as inputs.

    Args:
        path: path of the file.
        support: the prepared class, a batch of one.

    Raises:
        StorageError: the file cannot be written.
    """
    arrays = {name: tensor.numpy() for name, tensor in support_inputs(support).items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _exportable(backbone: Backbone, decoder: Decoder, classes: Sequence[Prototypes]) -> FrozenBackbone:
    """Return the encoder, after checking that it, the decoder and the classes can become a graph.

    Raises:
        ConfigError: one of them cannot.
    """
    if not isinstance(backbone, FrozenBackbone):
        raise ConfigError(
            f"backbone={backbone.name!r}: only single encoders of the built-in families can be exported whole, not a "
            f"{type(backbone).__name__}; export the decoder alone"
        )
    config = decoder.config
    if config.low_level_channels:
        raise ConfigError(f"low_level_channels={config.low_level_channels}: such a decoder cannot be exported whole")
    if config.priors.normalisation == "rank":
        raise ConfigError("priors.normalisation='rank': ONNX has no operator for it; the whole model needs another one")
    check_exportable(classes)
    return backbone


def check_exportable(classes: Sequence[Prototypes]) -> None:
    """Check that classes can be those of a whole model.

    Args:
        classes: prototypes of the classes.

    Raises:
        ConfigError: there is none, or one has text prompts or negatives.
    """
    named = [item.name for item in classes if item.text_prompt is not None or item.features is None]
    if named or not classes:
        raise ConfigError(
            f"prototypes {', '.join(named) or '(none)'}: a whole model needs classes that were taught by images alone"
        )
    opposed = [item.name for item in classes if item.negative is not None]
    if opposed:
        raise ConfigError(
            f"prototypes {', '.join(opposed)}: their negatives cannot be exported; make prototypes without `negatives`"
        )


def prepared(prototypes: Prototypes, config: PriorConfig) -> PreparedSupport:
    """Prepare a class for a graph: a batch of one.

    Args:
        prototypes: the class, which `check_exportable` accepts.
        config: config of the priors.
    """
    found = prototypes.prepared(config, (), torch.device("cpu"))
    assert found is not None
    return found


def _write(module: PhotoModel, support: Mapping[str, Tensor], facts: Facts, path: Path, encoder: str) -> None:
    """Trace a module to a graph in which the number and size of the photos and the number of support views vary.

    Raises:
        ExportError: the encoder or the decoder has something that cannot be traced or that ONNX does not have.
    """
    import onnx

    views = torch.export.Dim("views", min=1, max=1024)
    sides = {
        0: torch.export.Dim("batch", min=1, max=MAX_BATCH),
        2: torch.export.Dim("height", min=1, max=MAX_SIDE),
        3: torch.export.Dim("width", min=1, max=MAX_SIDE),
    }
    photos = example_photo(96, 128).repeat(2, 1, 1, 1)  # the number 1 would become a constant of the graph
    varying = tuple(
        None if tensor.dim() == 1 else {2 if name.startswith("contrast") else 1: views}
        for name, tensor in support.items()
    )
    shapes = (sides, varying) if support else (sides,)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(module, (photos, *support.values()), dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                input_names=[PHOTO, *support],
                output_names=(*OUTPUTS, ENCODER_IMAGE, *ENCODER_LEVELS),
                dynamo=True,
                verbose=False,
                # onnxscript's rewrites take most of the export's time and change results by up to 8e-3.
                optimize=False,
            )
    except Exception as error:  # the exporter has no common class of errors
        reason = str(error).strip().splitlines()
        raise ExportError(
            f"the encoder {encoder!r} with this decoder cannot become a graph: {type(error).__name__}: "
            f"{reason[0] if reason else 'no reason given'}; export the decoder alone"
        ) from error
    assert exported is not None  # only the older exporter returns None
    for _ in (ENCODER_IMAGE, *ENCODER_LEVELS):
        exported.model.graph.outputs.pop()
    exported.model.metadata_props[FACTS] = json.dumps(asdict(facts))
    model = fold_encoder(exported.model_proto)
    _name_dimensions(model)
    onnx.save(model, path)


def _name_dimensions(model: Any) -> None:
    """Give the varying dimensions of all values their names, in the place of the exporter's numbers."""
    photo, *support = (value.type.tensor_type.shape.dim for value in model.graph.input)
    names = {photo[axis].dim_param: name for axis, name in ((0, "batch"), (2, "height"), (3, "width"))}
    names |= {dim.dim_param: "views" for dims in support for dim in dims if dim.dim_param}
    numbers = re.compile(rf"\b({'|'.join(names)})\b")  # within an expression, too: 2*s15
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = numbers.sub(lambda found: names[found[0]], dim.dim_param)


def example_photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Draw a photo of coloured blobs with noise: (1, 3, height, width) uint8.

    Without noise many neighbours would be equal, and rounding would decide which of them is an edge.

    Args:
        height: height in pixels.
        width: width in pixels.
        seed: seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    blobs = resize_maps(torch.rand(1, 3, 6, 8, generator=generator), (height, width))
    return (blobs * 195 + torch.rand(blobs.shape, generator=generator) * 60).to(torch.uint8)


def open_session(path: Path) -> Any:
    """Open a whole model in onnxruntime; the file may be replaced then.

    Args:
        path: path of the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of what it does not fold
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _difference(module: PhotoModel, path: Path, support: Mapping[str, Tensor]) -> float:
    """Maximum difference of a file's results from the original's, at other sizes than it was traced with."""
    session = open_session(path)
    greatest = 0.0
    # No edge of these photos is decided by rounding; in others one pixel is, and changes probabilities by up to 5e-3.
    small, large = example_photo(150, 90), example_photo(300, 410, seed=8)
    for photos in (torch.cat([small, small.flip(2), small.flip(3)]), large):
        with torch.no_grad():
            expected = module(photos, *support.values())[: len(OUTPUTS)]
        for a, b in zip(expected, session.run(None, _arrays(photos, support)), strict=True):
            greatest = max(greatest, float(np.abs(a.numpy() - b).max()))
    return greatest


def _arrays(photos: Tensor, support: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a session."""
    return {PHOTO: photos.numpy(), **{name: tensor.numpy() for name, tensor in support.items()}}


def _as_input(photo: ImageLike) -> Tensor:
    """Read a calibration photo as a graph takes it: (1, 3, H, W) uint8."""
    return torch.from_numpy(to_bytes(read_image(photo, "calibration"))).permute(2, 0, 1)[None].contiguous()


def _quantise(path: Path, facts: Facts, photos: Sequence[Tensor]) -> None:
    """Put the encoder of a file in int8, calibrated on photos (1, 3, H, W) uint8."""
    import onnx

    height, width = facts.encoder["input_size"]
    images = [resize_photo(photo.float() / 255, (height, width)).numpy() for photo in photos]
    model = quantise_encoder(onnx.load(path), images)
    said = replace(facts, encoder_precision="int8", calibration_photos=len(photos))
    next(entry for entry in model.metadata_props if entry.key == FACTS).value = json.dumps(asdict(said))
    onnx.save(model, path)


def _int8_differences(
    before: Any, after: Any, thresholds: Tensor, photos: Sequence[Tensor], examples: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Compare the probabilities of two sessions on photos: the fields `int8` and `int8_pixels` of `Differences`."""
    limits = thresholds.numpy()[:, None, None]
    found = []
    for photo in photos:
        for support in examples:
            a, b = (session.run(OUTPUTS[:1], _arrays(photo, support))[0] for session in (before, after))
            found.append((np.abs(a - b).mean(), ((a > limits) != (b > limits)).mean()))
    mean, pixels = np.mean(found, axis=0)
    return {"int8": float(mean), "int8_pixels": float(pixels)}
