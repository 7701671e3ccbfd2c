"""`configs/`: every file differs from the library's defaults exactly where its name says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from diffup.decoder.config import DecoderConfig
from diffup.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PAPER = CONFIGS / "paper.json"

RN50, RN101, VIT_B = (
    f"timm:{name}.openai" for name in ("resnet50_clip", "resnet101_clip", "vit_base_patch16_clip_224")
)
ENCODERS = {"rn50": RN50, "rn101": RN101, "vit_b": VIT_B}
ROWS: dict[str, dict[str, Any]] = {
    **{f"table{t}/{name}": {"backbones": [encoder]} for t in (1, 2) for name, encoder in ENCODERS.items()},
    "table5/clip_rn50": {"backbones": [RN50]},
    **{f"table5/in1k_rn{n}": {"backbones": [f"timm:resnet{n}.tv_in1k"]} for n in (50, 101, 152)},
    "table6/full": {},
    "table6/no_affinity": {"decoder.priors.affinity": False},
    "table6/no_edges": {"decoder.priors.edges": False},
    "table6/no_iou": {"decoder.iou_modulation": False},
    "table6/no_error": {"decoder.error_modulation": False},
    "table6/no_quality": {"decoder.iou_modulation": False, "decoder.error_modulation": False},
    "table7/cosine": {},
    **{
        f"table7/{metric}_{conversion}": {"decoder.priors.metric": metric, "decoder.priors.conversion": conversion}
        for metric, conversion in (
            ("l1", "exponential"),
            ("l2", "exponential"),
            ("l2_unit", "square"),
            ("l2_unit", "exponential"),
            ("l2_unit", "reciprocal"),
        )
    },
    "table7/multi_metric": {
        "metrics": [
            ["cosine", "identity"],
            ["l2_unit", "exponential"],
            ["l2_unit", "reciprocal"],
            ["l2", "exponential"],
            ["l1", "exponential"],
        ]
    },
    "table8/diffusion": {},
    "table8/stylegan2": {"decoder.system": "gan"},
    "table9/plain": {},
    "table9/low_level_features": {"decoder.low_level_channels": 16},
}

FILES = sorted(str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("table*/*.json"))


def flat(config: TrainConfig) -> dict[str, Any]:
    """The fields by dotted name; the decoder's encoder, which follows from the run's, left out."""

    def walk(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
        found = {}
        for name, value in fields.items():
            found.update(walk(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
        return found

    fields = walk(json.loads(config.to_json()), "")
    del fields["decoder.backbone"]
    return fields


def difference(config: TrainConfig, base: TrainConfig) -> dict[str, Any]:
    before = flat(base)
    return {name: value for name, value in flat(config).items() if value != before[name]}


def test_every_file_is_in_the_table() -> None:
    assert sorted(ROWS) == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_row_differs_from_the_defaults_exactly_as_its_name_says(name: str) -> None:
    assert difference(TrainConfig.from_files([CONFIGS / f"{name}.json"]), TrainConfig()) == ROWS[name]


@pytest.mark.parametrize("name", FILES)
def test_a_row_differs_from_the_papers_settings_exactly_as_its_name_says(name: str) -> None:
    paper = TrainConfig.from_files([PAPER])
    expected = {key: value for key, value in ROWS[name].items() if value != flat(paper)[key]}
    if name == "table8/stylegan2":  # a generator predicts the mask, not the noise, in one step
        expected |= {"decoder.prediction": "x0", "decoder.loss": "bce_dice", "decoder.steps": 1}
    assert difference(TrainConfig.from_files([PAPER, CONFIGS / f"{name}.json"]), paper) == expected


def test_the_papers_settings_are_its_decoder_trained_plainly() -> None:
    paper = TrainConfig.from_files([PAPER])
    assert paper.decoder == dataclasses.replace(DecoderConfig.paper(), backbone=RN50)
    assert not any(dataclasses.astuple(paper.perturb)) and paper.views.pasted == 0
    assert paper.weight_decay == paper.noisy_steps == paper.self_aligned == 0


def test_the_readme_names_every_file() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert [name for name in ["paper", *FILES] if f"`{name}.json`" not in text] == []
