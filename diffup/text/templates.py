"""Templates that turn class names into text prompts: every name in every template is a view of the query (UAPF)."""

from __future__ import annotations

from collections.abc import Sequence

from diffup.errors import AnnotationError, ConfigError

DEFAULT = "a photo of a {}."
"""The paper's template."""

CLIP7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""Seven of CLIP's templates that its authors found nearly as good as all 80 (Radford et al., 2021; MIT licence)."""

CLIP80 = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""CLIP's 80 templates for ImageNet (Radford et al., 2021; MIT licence)."""

ENSEMBLES: dict[str, tuple[str, ...]] = {"clip7": CLIP7, "clip80": CLIP80}
"""Ensembles of templates by name."""

Templates = str | Sequence[str]


def resolve_templates(templates: Templates | None) -> tuple[str, ...]:
    """Resolve the templates that a user gives.

    Args:
        templates: None for `DEFAULT`, a key of `ENSEMBLES`, one template, or a list of templates. A template contains
            `{}` once, where the name goes.

    Raises:
        ConfigError: the name is unknown, the list is empty, or a template does not contain `{}` once.
    """
    if templates is None:
        return (DEFAULT,)
    if isinstance(templates, str):
        if templates in ENSEMBLES:
            return ENSEMBLES[templates]
        templates = [templates]
    if not templates:
        raise ConfigError(f"templates: the list is empty; give sentences such as {DEFAULT!r}")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ConfigError(
                f"templates: {template!r} is neither a sentence with one {{}} where the name goes, such as "
                f"{DEFAULT!r}, nor the name of an ensemble: {', '.join(ENSEMBLES)}"
            )
    return tuple(templates)


def resolve_names(text: str | Sequence[str]) -> tuple[str, ...]:
    """Check the names of a class, and return them without outer spaces.

    Args:
        text: name of the class, or several that mean the same.

    Raises:
        AnnotationError: there is no name, or one is not a string or is blank.
    """
    if not isinstance(text, Sequence):
        raise AnnotationError(f"text: expected the name of a class, such as 'a red bus', or several, got {text!r}")
    names = (text,) if isinstance(text, str) else tuple(text)
    if not names:
        raise AnnotationError("text: the list is empty; give the name of the class, such as 'a red bus'")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise AnnotationError(f"text: expected the name of a class, such as 'a red bus', got {name!r}")
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise AnnotationError(f"text: {name!r} holds half a character (a lone surrogate); write the name anew")
    return tuple(name.strip() for name in names)


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Make the text prompts of a class: every name in every template, name by name.

    Within a sentence, a name's own article is dropped, because the template has one: "a red bus" in "a photo of a {}."
    becomes "a photo of a red bus."

    Args:
        names: names of the class, not blank.
        templates: templates, each with one `{}`.
    """
    return [
        template.replace("{}", _bare(name) if template != "{}" else name) for name in names for template in templates
    ]


def _bare(name: str) -> str:
    first, _, rest = name.partition(" ")
    return rest.strip() if rest and first.lower() in ("a", "an", "the") else name
