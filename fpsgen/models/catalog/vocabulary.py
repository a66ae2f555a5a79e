"""What a small model draws, and which words of a prompt mean nothing to it: vocabulary.json in its folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fpsgen.errors import MODEL
from fpsgen.fields import fields, many, text
from fpsgen.files import read_json
from fpsgen.models.catalog.folder import VOCABULARY
from fpsgen.text import plural

_SHOWN = 5  # unknown words in a warning


@dataclass(frozen=True)
class Vocabulary:
    """subjects, colours, motions, backgrounds: what the model draws. words: every word that its text encoder was
    trained on, lower case; synonyms such as "kitten" and words such as "the" are among them.
    """

    subjects: tuple[str, ...]
    colours: tuple[str, ...]
    motions: tuple[str, ...]
    backgrounds: tuple[str, ...]
    words: frozenset[str]

    def summary(self) -> str:
        """What it draws, in one line."""
        return (
            f"it draws {', '.join(self.subjects)}; in {', '.join(self.colours)}; {', '.join(self.motions)}; "
            f"{', '.join(self.backgrounds)}"
        )

    def warning(self, name: str, prompt: str) -> str:
        """What to say of a prompt with words that the model `name` does not know; "" where it knows them all."""
        unknown = unknown_words(prompt, self)
        if not unknown:
            return ""
        more = f" and {plural(len(unknown) - _SHOWN, 'more word')}" if len(unknown) > _SHOWN else ""
        draws = f"it draws {', '.join(self.subjects)} (fpsgen models show {name}: colours, motions, places)"
        return f"{name} does not know {', '.join(map(repr, unknown[:_SHOWN]))}{more}; {draws}"


def unknown_words(prompt: str, vocabulary: Vocabulary) -> list[str]:
    """Words of a prompt that the model was never trained on, each once, in their order. Words are what the tokenizer
    takes for one: letters, digits and underscores in a row, in lower case.
    """
    words = re.findall(r"\w+", prompt.lower())
    return [word for word in dict.fromkeys(words) if word not in vocabulary.words]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model folder, None where it has none. Raises FpsgenError MODEL for a broken one."""
    path = folder / VOCABULARY
    if not os.path.lexists(path):
        return None
    what = f"{VOCABULARY} of {folder}"
    lists = ("subjects", "colours", "motions", "backgrounds", "words")
    found = fields(
        read_json(path, 1 << 20, what, MODEL), {name: many(text(60), 1, 10_000) for name in lists}, what, MODEL
    )
    return Vocabulary(*(tuple(found[name]) for name in lists[:-1]), words=frozenset(found["words"]))
