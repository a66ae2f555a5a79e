"""Scenes in words: sentence patterns with synonyms, and with parts left out.

`describe` writes a random caption of a scene; what it leaves out, the scene leaves to the model. `plain` writes the
one fixed form that evaluation uses. `vocabulary` lists every word that can occur; the tokenizer is made from it.
"""

from __future__ import annotations

import random

from fpsgen.evaluate.nano.world import COLOURS, MOTIONS, SUBJECTS, USUAL_COLOUR, Scene, random_scene

NOUNS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "sphere"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cat": ("cat", "cat", "kitten", "kitty"),
    "fish": ("fish",),
    "bird": ("bird", "bird", "birdie"),
    "boat": ("boat", "boat", "ship", "sailboat"),
}
ADJECTIVES: dict[str, tuple[str, ...]] = {name: (name,) for name in COLOURS}
ADJECTIVES |= {"red": ("red", "red", "crimson"), "purple": ("purple", "purple", "violet")}
VERBS: dict[str, tuple[tuple[str, str], ...]] = {  # (gerund, third person)
    "left": (("moving left", "moves left"), ("going left", "goes left"), ("moving to the left", "moves to the left")),
    "right": (
        ("moving right", "moves right"),
        ("going right", "goes right"),
        ("moving to the right", "moves to the right"),
    ),
    "up": (
        ("moving up", "moves up"),
        ("rising", "rises"),
        ("going up", "goes up"),
        ("moving upwards", "moves upwards"),
    ),
    "down": (("moving down", "moves down"), ("falling", "falls"), ("going down", "goes down"), ("sinking", "sinks")),
    "bouncing": (("bouncing", "bounces"), ("bouncing", "bounces"), ("jumping", "jumps"), ("hopping", "hops")),
    "circling": (("circling", "circles"), ("moving in circles", "moves in circles"), ("going around", "goes around")),
    "growing": (("growing", "grows"), ("getting bigger", "gets bigger"), ("expanding", "expands")),
    "shrinking": (("shrinking", "shrinks"), ("getting smaller", "gets smaller")),
    "surfing": (
        ("surfing", "surfs"),
        ("surfing on waves", "surfs on waves"),
        ("surfing the waves", "surfs the waves"),
        ("riding a wave", "rides a wave"),
    ),
}
SPECIAL = {
    ("fish", "left"): "swim",
    ("fish", "right"): "swim",
    ("bird", "left"): "fly",
    ("bird", "right"): "fly",
    ("bird", "up"): "fly",
    ("bird", "down"): "fly",
    ("boat", "left"): "sail",
    ("boat", "right"): "sail",
    ("cat", "left"): "walk",
    ("cat", "right"): "walk",
    ("ball", "left"): "roll",
    ("ball", "right"): "roll",
}
FORMS = {
    "swim": ("swimming", "swims"),
    "fly": ("flying", "flies"),
    "sail": ("sailing", "sails"),
    "walk": ("walking", "walks"),
    "roll": ("rolling", "rolls"),
}
PLACES = {
    "gray": ("on a gray background", "on gray", "in front of a gray wall"),
    "black": ("on a black background", "on black", "in front of a black wall"),
    "beige": ("on a beige background", "on beige", "in front of a beige wall"),
    "teal": ("on a teal background", "on teal", "in front of a teal wall"),
    "sea": ("over the sea", "at sea", "over the ocean", "by the sea", "over the waves"),
    "night": ("in a night sky", "at night", "under the stars", "in the night sky"),
    "grass": ("over grass", "on the grass", "in a meadow", "over a green meadow"),
}
OPENINGS = ("", "", "", "", "a video of", "a cartoon of", "a clip of")


def _article(words: str, rng: random.Random | None) -> str:
    if rng is not None and rng.random() < 0.12:
        return f"the {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plain(scene: Scene) -> str:
    """The fixed form, as in "a red ball bouncing over grass"."""
    where = "" if scene.motion == "surfing" else f" {PLACES[scene.background][0]}"
    return f"{_article(f'{scene.colour} {scene.subject}', None)} {VERBS[scene.motion][0][0]}{where}"


def describe(scene: Scene, rng: random.Random, colour: bool = True, motion: bool = True, place: bool = True) -> str:
    """A random caption of the scene that names the parts asked for."""
    noun = rng.choice(NOUNS[scene.subject])
    who = f"{rng.choice(ADJECTIVES[scene.colour])} {noun}" if colour else noun
    verb = rng.choice(VERBS[scene.motion])
    special = SPECIAL.get((scene.subject, scene.motion))
    if special and rng.random() < 0.35:
        verb = tuple(f"{form} {scene.motion}" for form in FORMS[special])
    where = rng.choice(PLACES[scene.background]) if place else ""
    style = rng.random()
    if not motion:
        words = [rng.choice(OPENINGS), _article(who, rng), where]
    elif style < 0.62:
        words = [rng.choice(OPENINGS), _article(who, rng), verb[0], where]
    elif style < 0.8:
        words = [_article(who, rng), verb[1], where]
    elif style < 0.9 and where:
        words = [where, _article(who, rng), verb[0]]
    elif style < 0.95 and colour:
        words = [_article(noun, rng), "that is", rng.choice(ADJECTIVES[scene.colour]), verb[0], where]
    else:
        words = [_article(who, rng), "is", verb[0], where]
    return " ".join(word for word in words if word)


def random_example(rng: random.Random) -> tuple[str, Scene]:
    """A training pair. Parts left out fall back on what is usual: the subject's own colour, gray, sea for surfing."""
    scene = random_scene(rng)
    colour, motion, place = rng.random() > 0.1, rng.random() > 0.02, rng.random() > 0.15
    if not colour:
        scene = Scene(scene.subject, USUAL_COLOUR[scene.subject], scene.motion, scene.background)
    if scene.motion == "surfing":
        place = rng.random() < 0.3
    elif not place:
        scene = Scene(scene.subject, scene.colour, scene.motion, "gray")
    return describe(scene, rng, colour, motion, place), scene


def vocabulary() -> list[str]:
    """Every word of every caption, sorted."""
    phrases = [*OPENINGS, *sum(NOUNS.values(), ()), *sum(ADJECTIVES.values(), ()), *sum(PLACES.values(), ())]
    phrases += [form for verbs in VERBS.values() for verb in verbs for form in verb]
    phrases += [form for forms in FORMS.values() for form in forms] + list(SUBJECTS) + list(MOTIONS)
    extra = "a an the is that and with of in on over moving video animation picture big small little one"
    return sorted({word for phrase in phrases for word in phrase.split()} | set(extra.split()))
