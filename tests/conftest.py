"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kernels
import pytest
import torch
from fakes import FakeBackbone, make_folder, teach, tiny_model
from hypothesis import HealthCheck, settings
from pages import PHOTOS, make, make_decoder
from runs import CONFIG, banks_of, encoder
from skips import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401

from diffup import DiffUp, Prototypes
from diffup.backbones.registry import temporary_backbones
from diffup.training.config import TrainConfig
from diffup.training.prepare import Banks
from diffup.training.trainer import train

# Fuzz tests go by the profile: a few examples each by default, the same ones at every run so that the verdict is about
# the code alone; many that differ from run to run with `--hypothesis-profile=soak`.
FUZZ: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("few", max_examples=25, derandomize=True, **FUZZ)
settings.register_profile("soak", max_examples=int(os.environ.get("DIFFUP_SOAK_EXAMPLES", 3000)), **FUZZ)
settings.load_profile("few")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and weights beside the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True, scope="session")
def _kernels() -> None:
    kernels.choose()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules that fork: OpenMP's threads do not survive it, and a child with two waits for them forever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _as_if_alone() -> Iterator[None]:
    """What a test draws without a seed of its own, and its threads, are the same whichever tests ran before."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder of coloured shapes; not to be changed (see `fakes.make_folder` for a folder of one's own)."""
    return make_folder(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="session")
def feature_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(shapes: Path, feature_cache: Path) -> Callable[..., Path]:
    """`train` on the folder of shapes, its features cached over all tests."""

    def call(out: Path, config: TrainConfig = CONFIG, **options: object) -> Path:
        settings = {"cache": feature_cache, "checkpoint_every": 2, "tensorboard": False, "progress": False}
        backbones = options.pop("backbones", [encoder()])
        return train(shapes, out, config, backbones, **(settings | options))

    return call


@pytest.fixture(scope="session")
def banks(shapes: Path, feature_cache: Path) -> Banks:
    return banks_of(shapes, feature_cache)


@pytest.fixture(scope="module")
def model() -> DiffUp:
    """A model of a small random decoder and a fake encoder."""
    return tiny_model()


@pytest.fixture(scope="module")
def classes(model: DiffUp, request: pytest.FixtureRequest) -> list[Prototypes]:
    """Prototypes of the shapes 1, 2, ... by the names in the test module's `NAMES`."""
    return teach(model, request.module.NAMES)


@pytest.fixture
def tiny_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random decoder in the place of the released one."""
    make_decoder(tmp_path / "release")
    monkeypatch.setattr("diffup.model.RELEASED", tmp_path / "release")


@pytest.fixture
def families() -> Iterator[Callable[..., None]]:
    """`families(fake=build)` makes families of encoders known; all that a test registers is forgotten afterwards."""
    with ExitStack() as stack:
        stack.enter_context(temporary_backbones())
        yield lambda **factories: stack.enter_context(temporary_backbones(**factories))


@pytest.fixture
def fake_encoders(families: Callable[..., None]) -> None:
    """Encoders of a few lines in the place of the bundled ones."""

    def build(variant: str | None, *, input_size: int = 96, pretrained: bool = True) -> FakeBackbone:
        return FakeBackbone(input_size=(input_size, input_size), seed=0 if pretrained else 1)

    families(bundled=build)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the snippets of every page may name."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in PHOTOS:
        make(name, folder)
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """A folder of four scenes, of which a labelling tool may ask."""
    from labelling import save_scenes

    folder = tmp_path / "photos"
    folder.mkdir()
    save_scenes(folder, 4)
    return folder


@pytest.fixture
def client(tmp_path: Path, scenes: Path) -> Any:
    """A client of the server for labelling tools, which has no shot yet."""
    from labelling import server

    return server(tmp_path / "shots", [scenes])
