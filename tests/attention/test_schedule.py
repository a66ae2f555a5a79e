from dataclasses import replace

import pytest

from fpsgen.attention.methods import METHODS
from fpsgen.attention.plan import AttentionPlan
from fpsgen.attention.presets import PRESETS, preset
from fpsgen.attention.profile import Profile
from fpsgen.attention.schedule import (
    Schedule,
    flow_sigma,
    sigma_at_fraction,
    windows_from_fractions,
)

A, B = Profile("a", "fps", window=(3, 3, 3), granularity=2), Profile("b", "bf16")


def test_lookup_is_half_open_with_one_included():
    schedule = Schedule("s", (A, B), ((0.5, 1.0, "a"), (0.0, 0.5, "b")))
    found = [p.name for p in schedule.profiles_for([0.0, 0.499999, 0.5, 0.99, 1.0, 1.0000005])]
    assert found == ["b", "b", "a", "a", "a", "a"]
    for sigma in (1.1, -0.1, float("nan")):
        with pytest.raises(ValueError):
            schedule.profile_at(sigma)


@pytest.mark.parametrize(
    ("windows", "words"),
    [
        (((0.0, 0.4, "a"), (0.5, 1.0, "b")), "gap at sigma [0.4, 0.5)"),
        (((0.0, 0.6, "a"), (0.5, 1.0, "b")), "overlaps at sigma [0.5, 0.6)"),
        (((0.1, 1.0, "a"),), "gap at sigma [0.0, 0.1)"),
        (((0.0, 0.9, "a"),), "gap at sigma [0.9, 1.0)"),
        (((0.0, 1.2, "a"),), "beyond the range"),
        (((0.0, 1.0, "c"),), "'c'"),
        ((), "gap at sigma [0.0, 1.0)"),
    ],
)
def test_windows_must_cover_sigma_once(windows, words):
    with pytest.raises(ValueError) as caught:
        Schedule("s", (A, B), windows)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "fp4"},
        {"method": "bf16", "window": (3, 3, 3)},
        {"method": "fps", "window": (2, 3, 3)},
        {"method": "fps", "window": (1.5, 3, 3)},  # shares lie in (0, 1]
        {"method": "fps", "window": (0.0, 3, 3)},
        {"method": "fps", "window": (-0.5, 3, 3)},
        {"method": "fps", "window": (float("nan"), 3, 3)},
        {"method": "fps", "window": (True, 3, 3)},
        {"method": "fp8", "density": 0.2},
        {"method": "fps", "density": 0.2, "window": (3, 3, 3)},
        {"method": "fps", "tile": (0, 1, 1)},
        {"method": "fps", "granularity": 0},
        {"method": "sta", "smooth_k": True},
        {"method": "fp8", "smooth_k": 1},
    ],
)
def test_bad_profiles_are_refused(fields):
    with pytest.raises(ValueError):
        Profile("p", **fields)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name, tmp_path):
    schedule = preset(name)
    path = tmp_path / "schedule.toml"
    path.write_text(schedule.to_toml(), encoding="utf-8")
    assert Schedule.from_file(path) == schedule


def test_toml_keeps_every_field():
    odd = Profile('q"\\\n', "fps", tile=(6, 8, 8), window=(3, 0, 0.25), granularity=3, smooth_k=True)
    stated = Profile("b", "sta", tile="paper", density=0.3)
    rough = Profile("c", "sage", smooth_k=False)
    windows = ((0.5, 1.0, odd.name), (0.2, 0.5, "b"), (0.0, 0.2, "c"))
    schedule = Schedule("mine", (odd, stated, rough), windows, dense_layers=(3, 1), trained=True)
    assert Schedule.from_toml(schedule.to_toml()) == schedule
    assert schedule.dense_layers == (1, 3)


def test_smooth_keys_go_with_fp8_alone():
    smooth = replace(A, smooth_k=True)
    schedule = Schedule("s", (smooth,), ((0.0, 1.0, "a"),))
    kept = [schedule.with_method(method).profiles[0].smooth_k for method in ("fps", "fp8", "sta", "bf16")]
    assert kept == [True, True, False, False]


@pytest.mark.parametrize("text", ["name = 1 =", 'name = "x"', preset("paper").to_toml() + "\n[extra]\n"])
def test_bad_toml_is_refused(text):
    with pytest.raises(ValueError):
        Schedule.from_toml(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [('name = "x"', "the schedule lacks"), ('name = "x"\nwindows = []\nprofiles = [1]', "a profile of")],
)
def test_what_lacks_keys_is_named(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ValueError, match=f"s.toml: {said}"):
        Schedule.from_file(tmp_path / "s.toml")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        Schedule.from_file(tmp_path / "nowhere.toml")


def test_methods_of_the_ablation():
    schedule = Schedule("s", (A, B), ((0.5, 1.0, "a"), (0.0, 0.5, "b")))
    assert schedule.with_method("fps") == schedule
    rows = {m: [(p.method, p.window) for p in schedule.with_method(m).profiles] for m in ("bf16", "fp8", "sta")}
    assert rows["bf16"] == [("bf16", "all")] * 2
    assert rows["fp8"] == [("fp8", "all")] * 2
    assert rows["sta"] == [("sta", (3, 3, 3)), ("bf16", "all")]
    with pytest.raises(ValueError):
        schedule.with_method("other")


def test_methods_keep_what_they_have_a_use_for():
    """A method takes out only what it does not have: fp8 keeps granularity, K smoothing and the tile."""
    fine = Profile("a", "fps", tile=(6, 8, 8), window=(3, 3, 3), granularity=4, smooth_k=True)
    stated = Profile("b", "fps", density=0.2, granularity=4)
    schedule = Schedule("s", (fine, stated), ((0.5, 1.0, "a"), (0.0, 0.5, "b")), dense_layers=(1,), trained=True)
    adapted = {name: schedule.with_method(name) for name in METHODS}
    assert adapted["fp8"].profiles == (
        Profile("a", "fp8", tile=(6, 8, 8), granularity=4, smooth_k=True),
        Profile("b", "fp8", tile="blocks", granularity=4),
    )
    plain = replace(fine, method="sta", granularity=1, smooth_k=False)
    assert adapted["sta"].profiles == (plain, Profile("b", "sta", density=0.2))
    assert adapted["bf16"].profiles == (Profile("a", "bf16", tile=(6, 8, 8)), Profile("b", "bf16", tile="blocks"))
    assert adapted["fps"] is schedule
    assert all(profile.smooth_k for name in ("sage", "sparge") for profile in adapted[name].profiles)  # their own way
    assert all(s.trained and s.dense_layers == (1,) for s in adapted.values())


def test_a_schedule_is_trained_only_where_it_says_so():
    text = preset("paper").to_toml()
    assert not Schedule.from_toml(text.replace("trained = false\n", "")).trained
    assert not Schedule.from_toml(text).trained
    assert Schedule.from_toml(text.replace("trained = false", "trained = true")).trained


def test_tiles_of_a_schedule_are_those_that_order_tokens():
    assert [schedule.tiles for schedule in PRESETS.values()] == [("blocks",)] * len(PRESETS)
    mixed = Schedule("s", (A, Profile("b", "bf16", tile="paper")), ((0.5, 1.0, "a"), (0.0, 0.5, "b")))
    assert mixed.tiles == ("fit",)
    assert Schedule("s", (Profile("b", "bf16"),), ((0.0, 1.0, "b"),)).tiles == ()


GOOD = preset("paper").to_toml()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("trained = false", 'trained = "false"'),
        ("trained = false", "trained = 0"),
        ('name = "paper"', "name = 1"),
        ('name = "paper"', 'name = ["paper"]'),
        ("dense_layers = []", 'dense_layers = ["0"]'),
        ("dense_layers = []", "dense_layers = [0.0]"),
        ("dense_layers = []", "dense_layers = [true]"),
        ("dense_layers = []", "dense_layers = 3"),
        ("low = 0.0\n", 'low = "0.0"\n'),
        ("low = 0.0\n", "low = false\n"),
        ("low = 0.0\n", "low = nan\n"),
        ("high = 1.0\n", "high = inf\n"),
        ('profile = "early"', "profile = 3"),
        ('name = "early"', "name = 3"),
        ('method = "fps"', "method = 3"),
        ('method = "fps"', 'method = ["fps"]'),
        ("granularity = 8", 'granularity = "8"'),
        ("granularity = 8", "granularity = true"),
        ("density = 0.12", 'density = "0.12"'),
        ("density = 0.12", "density = true"),
        ("density = 0.12", "density = 0.0"),
        ("density = 0.12", "density = 1.5"),
        ("density = 0.12", "density = nan"),
        ("density = 0.12", "density = 0.12\nwindow = [3, 3, 3]"),
        ("density = 0.12", "density = 0.12\noptions = 3"),
        ("density = 0.12", "density = 0.12\noptions = { topk = 0.5 }"),
        ('tile = "blocks"', "tile = 3"),
        ('tile = "blocks"', 'tile = [1, 2, "3"]'),
        ('tile = "blocks"', 'tile = "bocks"'),
    ],
)
def test_wrong_types_in_a_file_are_refused_in_two_lines(old, new):
    assert old in GOOD
    with pytest.raises(ValueError) as caught:
        Schedule.from_toml(GOOD.replace(old, new, 1))
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "name = 's'\nprofiles = []\nwindows = 3",
        "name = 's'\nprofiles = 3\nwindows = []",
        "name = 's'\nprofiles = [3]\nwindows = []",
        "name = 's'\nprofiles = []\nwindows = [3]",
        GOOD + '\n[[windows]]\nlow = 0.0\nhigh = 0.5706521739130435\nprofile = "late"\n',
        GOOD + '\n[[profiles]]\nname = "late"\nmethod = "bf16"\n',
    ],
)
def test_wrong_shapes_of_a_file_are_refused_in_two_lines(text):
    with pytest.raises(ValueError) as caught:
        Schedule.from_toml(text)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize(("steps", "shift"), [(50, 5.0), (20, 3.0), (7, 1.0)])
def test_fractions_cut_between_steps(steps, shift):
    sigmas = [flow_sigma(1 - i / steps, shift) for i in range(steps)]
    windows = windows_from_fractions(0.2, 0.8, steps, shift)
    schedule = Schedule("s", tuple(Profile(n, "fps") for n in ("early", "middle", "late")), windows)
    names = [p.name for p in schedule.profiles_for(sigmas)]
    early, late = round(0.2 * steps), steps - round(0.8 * steps)
    assert names == ["early"] * early + ["middle"] * (steps - early - late) + ["late"] * late


def test_fraction_ends():
    assert sigma_at_fraction(0.0) == 1.0 and sigma_at_fraction(1.0) == 0.0
    assert windows_from_fractions(0.0, 1.0) == ((0.0, 1.0, "middle"),)
    with pytest.raises(ValueError):
        windows_from_fractions(0.8, 0.2)


@pytest.mark.parametrize("grid", [(21, 45, 80), (21, 30, 52), (9, 10, 16), (1, 2, 2)])
@pytest.mark.parametrize("name", PRESETS)
def test_preset_profiles_make_plans_on_any_grid(name, grid):
    for p in preset(name).profiles:
        plan = AttentionPlan.of(p, grid)
        assert plan.density == pytest.approx(p.resolve(grid)[3]) and 0 < plan.density <= 1


def test_schedules_of_the_first_release_mean_what_they_meant():
    """Recipes carry their schedule as TOML: a tile in one piece, windows as shares of its tiles."""
    text = """
name = "paper"
trained = false
dense_layers = []

[[windows]]
low = 0.0
high = 1.0
profile = "early"

[[profiles]]
name = "early"
method = "fps"
tile = "fit"
window = [0.3, 0.3, 0.3]
granularity = 8
"""
    profile = Schedule.from_toml(text).profiles[0]
    plans = [AttentionPlan.of(profile, grid) for grid in ((21, 45, 80), (21, 30, 52), (9, 10, 16))]
    found = [(plan.tile, plan.block, plan.window) for plan in plans]
    assert found == [
        ((21, 9, 2), None, (1, 3, 13)),
        ((3, 30, 4), None, (3, 1, 5)),
        ((3, 10, 2), None, (1, 1, 3)),
    ]


@pytest.mark.parametrize(
    "make", [lambda: Schedule("s", None, None), lambda: Schedule.from_toml(b""), lambda: Schedule.from_toml(3)]
)
def test_what_is_no_schedule_is_refused_in_two_lines(make):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value).count("\n") == 1
