"""nano names what it draws, and the words that it does not know."""

from __future__ import annotations

import json

from refusal import refuses

from fpsgen.assets import prompts_dir, weights_dir
from fpsgen.errors import MODEL
from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.folder import VOCABULARY
from fpsgen.models.catalog.vocabulary import read_vocabulary, unknown_words
from recipes.nano import release

NANO = weights_dir() / "nano"


def test_unknown_words_are_named_once_in_their_order():
    vocabulary = choose("nano").vocabulary
    assert vocabulary is not None
    assert unknown_words("A dog, a DOG and a cat: dancing cats!", vocabulary) == ["dog", "dancing", "cats"]
    assert unknown_words("The kitten swims to the LEFT, at sea.", vocabulary) == []  # synonyms count
    warning = vocabulary.warning("nano", "a dog surfing")
    assert warning.startswith("nano does not know 'dog'; it draws ball, ")
    assert all(word in warning for word in ("cat", "boat", "models show nano")) and len(warning) < 160
    assert "and 3 more words" in vocabulary.warning("nano", "one two three four five six seven eight nine")
    assert vocabulary.warning("nano", "a cat surfing") == ""


def test_the_sample_prompts_are_known():
    vocabulary = read_vocabulary(NANO)
    assert vocabulary is not None
    lines = (prompts_dir() / "nano.txt").read_text().splitlines()
    for line in [line for line in lines if line and not line.startswith("#")]:
        assert unknown_words(line, vocabulary) == []


def test_the_vocabulary_is_that_of_the_captions_and_of_the_tokenizer(tmp_path):
    written = json.loads(release.write_vocabulary(tmp_path).read_text())
    assert written == json.loads((NANO / VOCABULARY).read_text())
    tokens = json.loads((NANO / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(written["words"]) == set(tokens) - {"<pad>", "</s>", "<unk>"}


def test_other_models_have_none_and_broken_ones_are_refused(tiny_dir, tmp_path):
    assert read_vocabulary(tiny_dir) is None
    good = json.loads((NANO / VOCABULARY).read_text())
    for change in ({"words": "cat"}, {"subjects": []}, {"words": [1]}, {"more": []}):
        (tmp_path / VOCABULARY).write_text(json.dumps(good | change))
        with refuses(MODEL):
            read_vocabulary(tmp_path)
