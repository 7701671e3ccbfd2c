"""Create the embeddings of ImageNet's class names for ConSE: `diffup/text/imagenet_names.safetensors`.

Each of the 1000 classes is described by its WordNet lemmas and definition, which timm (Apache-2.0) includes from
WordNet 3.0 (WordNet licence), and embedded by the sentence encoder of the extra `text` (all-MiniLM-L6-v2, Apache-2.0).

    python benchmarks/make_name_bank.py
"""

from __future__ import annotations

import argparse
import json

import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from diffup.text.name_bank import BANK, CLASSES
from diffup.text.sentences import MINILM, load_sentence_encoder
from diffup.utils.files import replacing


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()  # it writes into the package: --help must not
    info = ImageNetInfo()
    descriptions = [info.index_to_description(index, detailed=True) for index in range(CLASSES)]
    embeddings = load_sentence_encoder(MINILM)(descriptions)
    metadata = {
        "descriptions": json.dumps(descriptions),
        "sentence_encoder": MINILM,
        "source": "WordNet 3.0 lemmas and definitions, Princeton University, by way of timm",
    }
    with replacing(BANK) as unfinished:
        save_file({"embeddings": embeddings.to(torch.float16)}, unfinished, metadata)
    print(f"{BANK}: {len(descriptions)} classes, {BANK.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
