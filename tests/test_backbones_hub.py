"""Encoders of the hub: found in a cache folder under offline mode, and named with a way out where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RUN = """
import json, os, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import timm, torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel
from diffup.backbones import load_backbone
from diffup.errors import WeightsError

def cached(repository):
    folder = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return folder / "snapshots" / ("0" * 40)

size = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=64)
vit = ViTModel(ViTConfig(**size))
vit.save_pretrained(cached("someone/tiny-vit"))
resnet = timm.create_model("test_resnet")
weights = cached("timm/test_resnet.r160_in1k") / "model.safetensors"
save_file(resnet.state_dict(), weights)
told = {}
for name in ("transformers:someone/tiny-vit", "timm:test_resnet.r160_in1k"):
    told[name] = [list(level.shape) for level in load_backbone(name, input_size=64).pyramid(torch.rand(1, 3, 64, 64))]
loaded = load_backbone("timm:test_resnet.r160_in1k").encoder.conv1[0].weight
told["same"] = bool(torch.equal(loaded, resnet.conv1[0].weight))
absent = ("transformers:someone/absent", "timm:test_vit.r160_in1k", "open_clip:RN50/openai")
for name in (*absent, "open_clip:ViT-B-32/laion2b_e16"):
    try:
        load_backbone(name)
    except WeightsError as error:
        told[name] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a process without network and with a cache folder of its own loads and says."""
    folder = tmp_path_factory.mktemp("hub")
    environment = os.environ | {
        "HF_HUB_CACHE": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # files that are not on the hub must not be fetched either
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result | {"cache": str(folder)}


def test_what_the_cache_has_is_loaded_offline(told: dict[str, object]) -> None:
    assert told["same"] is True
    assert told["transformers:someone/tiny-vit"] == [[1, 32, 4, 4]] * 4
    assert len(told["timm:test_resnet.r160_in1k"]) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        (
            "transformers:someone/absent",
            "the configuration of 'someone/absent'",
            "hf download someone/absent --local-dir FOLDER; then name the folder as the encoder: transformers:FOLDER",
        ),
        (
            "timm:test_vit.r160_in1k",
            "the weights 'timm/test_vit.r160_in1k'",
            "hf download timm/test_vit.r160_in1k model.safetensors --local-dir .; then pass checkpoint_path=FILE",
        ),
        ("open_clip:RN50/openai", "the weights '", "then pass checkpoint_path=FILE"),
        ("open_clip:ViT-B-32/laion2b_e16", "the weights '", "hf download "),
    ],
)
def test_what_it_has_not_is_named_with_the_way_out(told: dict[str, object], name: str, what: str, remedy: str) -> None:
    message = str(told[name])
    assert f"backbone '{name}' needs {what}" in message
    assert "offline mode is on (HF_HUB_OFFLINE)" in message
    assert f"The cache is {told['cache']}" in message
    assert remedy in message
