"""Settings: which layer wins, and what is said of a wrong value."""

from __future__ import annotations

from pathlib import Path

import pytest
from refusal import refuses

from fpsgen.errors import BAD_INPUT, USAGE, FpsgenError
from fpsgen.settings.gather import Settings, gather, gather_lines
from fpsgen.settings.table import SETTINGS


@pytest.fixture
def layers(tmp_path):
    """gather() with files of given content; nothing of this machine comes in."""
    user = tmp_path / "user.toml"

    def run(flags=None, environ=None, local: str | None = None, home: str | None = None) -> Settings:
        for path, text in ((tmp_path / "fpsgen.toml", local), (user, home)):
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text, encoding="utf-8")
        return gather(flags or {}, environ or {}, tmp_path, user)

    return run


def test_each_layer_wins_over_the_ones_below(layers):
    flags, environ = {"steps": "1"}, {"FPSGEN_STEPS": "2"}
    local, home = "steps = 3", "steps = 4"
    assert layers(flags, environ, local, home).steps == 1
    assert layers({}, environ, local, home).steps == 2
    assert layers({}, {}, local, home).steps == 3
    assert layers({}, {}, None, home).steps == 4
    assert layers().steps is None


def test_the_origin_is_told(layers):
    found = layers({"seed": "7"}, {"FPSGEN_FPS": "12"}, "steps = 3")
    assert [found.origin(name) for name in ("seed", "fps", "steps", "shift")] == [
        "flag",
        "environment",
        "./fpsgen.toml",
        "default",
    ]


@pytest.mark.parametrize(
    ("name", "wrong", "example"),
    [("seed", "x", "42"), ("metadata", "perhaps", "true"), ("schedule", "", '"balanced"'), ("method", "fsp", '"fps"')],
)
def test_the_remedy_is_written_as_its_layer_is(layers, name, wrong, example):
    entry, plain = SETTINGS[name], example.strip('"')
    with refuses(USAGE, entry.option, remedy=f"for example {entry.option} {plain}"):
        layers({name: wrong})
    if wrong:
        with refuses(USAGE, entry.variable, remedy=f"for example {entry.variable}={plain}"):
            layers({}, {entry.variable: wrong})
    for value in (f'"{wrong}"', "[1]"):
        with refuses(BAD_INPUT, name, "./fpsgen.toml", remedy=f"for example {name} = ") as caught:
            layers({}, {}, f"{name} = {value}")
    assert caught.value.remedy.endswith(f" {example}") or name == "method"
    with refuses(BAD_INPUT, "p.jsonl line 1") as caught:
        gather_lines({}, {}, Path("nowhere"))(("p.jsonl line 1", {name: wrong}))
    assert caught.value.remedy == f"for example {plain}"  # a line may be JSON or text


def test_a_length_set_higher_up_replaces_its_rival_below(layers):
    found = layers({"seconds": "2"}, {"FPSGEN_FRAMES": "81"})
    assert (found.seconds, found.frames) == (2.0, None)
    found = layers({"frames": "5"}, {}, "seconds = 3")
    assert (found.seconds, found.frames) == (None, 5)


def test_a_size_set_higher_up_replaces_a_ratio_below(layers):
    assert layers({"res": "64x32"}, {"FPSGEN_ASPECT": "1:1"}).aspect is None
    assert layers({"res": "480p"}, {"FPSGEN_ASPECT": "1:1"}).aspect == (1, 1)


@pytest.mark.parametrize("flags", [{"frames": "5", "seconds": "1"}, {"res": "64x32", "aspect": "1:1"}])
def test_rivals_in_one_layer_are_an_error(layers, flags):
    with refuses(USAGE):
        layers(flags)


GOOD = [
    ("res", "832x480", (832, 480)),
    ("res", "832X480", (832, 480)),
    ("res", "720P", "720p"),
    ("aspect", "9:16", (9, 16)),
    ("guidance", "5", 5.0),
    ("guidance", "1e1", 10.0),
    ("negative", "", ""),
    ("negative", "色调艳丽", "色调艳丽"),
    ("seed", "9223372036854775807", 2**63 - 1),
    ("method", "FPS", "fps"),
    ("device", "cuda:1", "cuda:1"),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_values(layers, name, text, value):
    assert getattr(layers({name: text}), name) == value


BAD = [
    *[("steps", text) for text in ("0", "-1", "1.5", "1_0", "abc", "", " 4", "\u0663", "9" * 40, "1001", "nan")],
    *[("guidance", text) for text in ("nan", "inf", "1e999", "-1", "101", "0x10", "1,5")],
    *[("res", text) for text in ("480", "x480", "832x", "832*480", "0x0", "-16x16", "99999x16", "1080i")],
    *[("aspect", text) for text in ("16/9", "0:1", "1:0", "100:1", "wide")],
    *[("seed", text) for text in ("-1", "9223372036854775808")],
    *[("method", "flash"), ("dtype", "int8"), ("device", "tpu"), ("device", "cuda:x"), ("device", "cuda:999")],
    *[("negative", "a\x1b[31m"), ("negative", "a\u202eb"), ("output", "a\x00b"), ("model", " ")],
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_values_name_the_option_and_an_example(layers, name, text):
    for flags, environ, said in (({name: text}, {}, f"--{name}"), ({}, {f"FPSGEN_{name.upper()}": text}, "FPSGEN_")):
        if environ and not text:
            continue  # an empty variable counts as unset
        with refuses(USAGE) as caught:
            layers(flags, environ)
        assert said in caught.value.message and SETTINGS[name].parser.wanted() in caught.value.message
        assert caught.value.remedy and "\x1b" not in str(caught.value)


def test_every_setting_has_an_example_that_parses():
    for entry in SETTINGS.values():
        entry.read(entry.example.strip('"'))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps = 'x'", "steps in ./fpsgen.toml"),
        ("stepz = 3", "did you mean steps"),
        ("steps = [1]", "not a single value"),
        ("[steps]\na = 1", "not a single value"),
        ("steps = ", "not TOML"),
        ("steps = 3\nsteps = 4", "not TOML"),
        ("guidance = nan", "guidance in ./fpsgen.toml"),
        ("a = " + "[" * 3000, "./fpsgen.toml"),
    ],
)
def test_bad_files_are_bad_input(layers, text, said):
    with refuses(BAD_INPUT, said):
        layers({}, {}, text)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "fpsgen.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FpsgenError, match="UTF-8"):
        gather({}, {}, tmp_path, tmp_path / "none")
    (tmp_path / "fpsgen.toml").unlink()
    (tmp_path / "fpsgen.toml").mkdir()
    with pytest.raises(FpsgenError, match="regular file"):
        gather({}, {}, tmp_path, tmp_path / "none")


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "fpsgen.toml").write_bytes(b"\xef\xbb\xbfsteps = 3\r\n")
    assert gather({}, {}, tmp_path, tmp_path / "none").steps == 3


def test_switches(layers):
    assert layers({}, {"FPSGEN_STRICT": "yes", "FPSGEN_METADATA": "0"}) == Settings({"strict": True, "metadata": False})
    assert layers({}, {}, "strict = true").strict


def test_an_empty_variable_is_no_value(layers):
    found = layers({}, {"FPSGEN_NEGATIVE": "", "FPSGEN_STEPS": "", "FPSGEN_STRICT": ""}, "steps = 3")
    assert (found.negative, found.steps, found.strict) == (None, 3, False)
    assert found.origin("negative") == "default"


def test_a_misspelt_variable_is_pointed_out(layers):
    found = layers({}, {"FPSGEN_STEPZ": "3", "FPSGEN_DEBUG": "1"})
    assert found.warnings == ("FPSGEN_STEPZ is not a setting; did you mean FPSGEN_STEPS?",)


def test_a_named_user_file_has_to_exist(tmp_path):
    with pytest.raises(FpsgenError, match="FPSGEN_CONFIG"):
        gather({}, {"FPSGEN_CONFIG": str(tmp_path / "no")}, Path(tmp_path))
