"""Legends: two names never look the same, whatever fonts the machine has."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffup.utils import fonts, pictures
from diffup.utils.fonts import font_for, legend_key, legend_texts

RED = (255, 0, 0)
HARD = [
    "猫犬",
    "鳥魚",
    "собака",
    "Müller",
    "Muller",
    "كلب",
    "हिन्दी",
    "e\u0301",
    "\xe9",
    "🐈",
    "a",
    "\u0430",
    "1",
    "dog",
]


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ())
    fonts._font.cache_clear()
    yield
    fonts._font.cache_clear()


def legend(*names: str, width: int = 300) -> bytes:
    return pictures.add_legend(np.zeros((4, width, 3), np.uint8), [(name, RED) for name in names]).tobytes()


def test_pillows_font_lacks_what_it_lacks(no_system_fonts: None) -> None:
    assert all(font_for(text) is not None for text in ("dog", "a (b) 1", "..."))
    assert all(font_for(text) is None for text in ("猫", "собака", "Müller", "dog 犬", "a\nb", "🐈", "\u200b"))


def test_names_without_a_font_have_numbers_and_codes(no_system_fonts: None) -> None:
    assert legend_texts(["dog", "猫犬", "Müller"], 200) == ["dog", "2: \\u732b\\u72ac", "3: M\\xfcller"]
    assert legend_key(["dog", "猫犬", "Müller"]) == {2: "猫犬", 3: "Müller"}


def test_pictures_of_different_names_differ(no_system_fonts: None) -> None:
    assert len({legend(name) for name in HARD}) == len(HARD)


def test_pictures_of_different_names_differ_with_the_fonts_of_this_machine() -> None:
    texts = legend_texts(HARD, 300)
    assert len({fonts._look(text) for text in texts}) == len(HARD)


def test_a_name_that_a_font_has_is_drawn_with_it() -> None:
    if font_for("собака") is None:
        pytest.skip("no font of this machine has Cyrillic letters")
    assert legend_texts(["собака"], 300) == ["собака"]
    assert legend("собака") != legend("кошка!")


def test_names_that_look_the_same_have_numbers(no_system_fonts: None) -> None:
    assert legend_texts(["dog", "dog ", "cat"], 300) == ["1: dog", "2: dog ", "cat"]
    long = ["a dog that barks at night", "a dog that barks at noon", "a cat"]
    short = legend_texts(long, 60)
    assert len(set(short)) == 3 and short[2] == "a cat"
    assert [text[0] for text in short[:2]] == ["1", "2"]


def test_a_class_called_as_a_number(no_system_fonts: None) -> None:
    """In a narrow picture the number is all that there is room for."""
    assert legend_texts(["猫", "1"], 1) == ["1", "2"]
    assert legend_texts(["2", "1"], 100) == ["2", "1"]


def test_long_names_are_cut_at_their_end(no_system_fonts: None) -> None:
    [text] = legend_texts(["a cat with a long name"], 60)
    assert text.startswith("a cat") and text.endswith("...")
    assert fonts.font_for(text).getlength(text) <= 60  # type: ignore[union-attr]


def test_numbers_are_those_of_all_names(no_system_fonts: None) -> None:
    """A picture that lacks a class numbers the others as every other picture does."""
    names, pixels = ["猫", "犬", "dog"], np.zeros((4, 200, 3), np.uint8)
    alone = pictures.add_legend(pixels, [("犬", RED)], names)
    other = pictures.add_legend(pixels, [("犬", RED)])
    assert alone.tobytes() != other.tobytes()
    assert alone.info["comment"].decode() == "1 = 猫; 2 = 犬"


def test_jpeg_files_hold_the_key(no_system_fonts: None) -> None:
    file = io.BytesIO()
    pictures.add_legend(np.zeros((4, 200, 3), np.uint8), [("猫犬", RED), ("dog", RED)]).save(file, format="JPEG")
    assert Image.open(file).info["comment"].decode() == "1 = 猫犬"


def test_legends_that_need_no_key_have_none(no_system_fonts: None) -> None:
    assert "comment" not in pictures.add_legend(np.zeros((4, 200, 3), np.uint8), [("dog", RED)]).info


@given(names=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6, unique=True), width=st.integers(0, 400))
def test_names_of_any_script(names: Sequence[str], width: int) -> None:
    texts = legend_texts(names, width)
    assert len({fonts._look(text) for text in texts}) == len(names)
    assert all(font_for(text) is not None for text in texts)
    for number, name in legend_key(names, width).items():
        assert names[number - 1] == name
    pictures.add_legend(np.zeros((2, 50, 3), np.uint8), [(name, RED) for name in names])
