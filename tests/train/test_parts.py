"""Configuration, what a step draws, and the teacher's pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from refusal import refuses
from safetensors.torch import load_file, save_file

from fpsgen.attention.schedule import Schedule
from fpsgen.errors import BAD_INPUT, USAGE
from fpsgen.train import config as runs
from fpsgen.train.data import Pairs
from fpsgen.train.objective import velocity_error
from fpsgen.train.weights import learning_rate

from .conftest import SCHEDULE

RUN = """
name = "mine"
model = "nano"
schedule = "mine-schedule.toml"
prompts = ["a red ball", "a cat surfing"]
held_out = 1
width = 256
height = 160
frames = 33
steps = 10
"""


def write_run(folder: Path, text: str) -> Path:
    (folder / "mine-schedule.toml").write_text(SCHEDULE)
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_run_is_read_from_a_file(tmp_path):
    config = runs.read_config(write_run(tmp_path, RUN))
    assert (config.steps, config.prompts[1], config.batch) == (10, "a cat surfing", 1)
    assert config.parsed_schedule() == Schedule.from_toml(SCHEDULE)


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("steps = 10", "steps = 0", "steps"),
        ("steps = 10", "stepz = 10", "stepz"),
        ("held_out = 1", "held_out = 2", "held_out"),
        ("mine-schedule.toml", "none.toml", "none.toml"),
        ("name = ", "lr = nan\nname = ", "lr is NaN"),
    ],
)
def test_bad_runs_are_refused(tmp_path, old, new, culprit):
    with refuses(BAD_INPUT, culprit):
        runs.read_config(write_run(tmp_path, RUN.replace(old, new)))


def test_an_unknown_preset_is_refused():
    with refuses(USAGE):
        runs.preset("nano-demos")


def test_the_demo_covers_every_step_of_nano():
    config = runs.preset("nano-demo")
    schedule = config.parsed_schedule()
    assert {schedule.profile_at(sigma / 100).name for sigma in range(101)} == {"early", "middle", "late"}
    assert not schedule.trained


def shard(path: Path, first: int, sigmas=(0.95, 0.5, 0.2)) -> Path:
    count = len(sigmas)
    row = torch.arange(first, first + count).float().view(count, 1, 1, 1, 1)
    tensors = {"latents": row.half(), "velocity": (row + 100).half(), "velocity_null": (row + 200).half()}
    tensors |= {"sigmas": torch.tensor(sigmas), "timesteps": 1000 * torch.tensor(sigmas), "clean": row[0].half()}
    save_file(tensors | {"text": torch.full((1, 1), float(first)), "text_null": torch.full((1, 1), -1.0)}, path)
    return path


@pytest.fixture
def pairs(tmp_path):
    return Pairs(
        [shard(tmp_path / "a.safetensors", 10), shard(tmp_path / "b.safetensors", 20)], Schedule.from_toml(SCHEDULE)
    )


def test_a_step_draws_rows_that_belong_together(pairs):
    for step in range(40):
        batch = pairs.draw(step, 3, 2, 0.5)
        null = bool(batch.text[0] < 0)
        assert torch.equal(batch.velocity, batch.latents + (200 if null else 100))
        assert null or torch.equal(batch.text.flatten(), batch.latents.flatten() // 10 * 10)
        assert {sigma >= 0.9 for sigma in batch.sigmas.tolist()} == {batch.profile == "early"}
        assert torch.equal(batch.timesteps, 1000 * batch.sigmas)


def test_draws_follow_from_seed_and_step_alone(pairs):
    first = [pairs.draw(step, 3, 2, 0.5).latents for step in range(20)]
    again = [pairs.draw(step, 3, 2, 0.5).latents for step in reversed(range(20))][::-1]
    other = [pairs.draw(step, 4, 2, 0.5).latents for step in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_rare_profiles_are_drawn_often(pairs):
    """A third of the pairs is early; half of the steps draw evenly: 5 of 12 steps."""
    found = [pairs.draw(step, 0, 1, 0.0).profile for step in range(600)]
    assert 210 < found.count("early") < 290


def test_every_pair_is_measured_once(pairs):
    seen = [x for name in pairs.profiles for batch in pairs.every(name, 2) for x in batch.latents.flatten().tolist()]
    assert sorted(seen) == [10, 11, 12, 20, 21, 22]


def test_a_broken_shard_is_named(tmp_path):
    path = tmp_path / "00001.safetensors"
    path.write_bytes(b"no tensors")
    with refuses(BAD_INPUT, "00001"):
        Pairs([path], Schedule.from_toml(SCHEDULE))


@pytest.mark.parametrize("name", ["sigmas", "latents", "velocity", "clean", "text"])
def test_a_number_that_is_not_finite_is_named_with_its_shard(tmp_path, name):
    path = shard(tmp_path / "00001.safetensors", 10)
    tensors = load_file(path)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)
    with refuses(BAD_INPUT, "00001", name):
        for step in range(60):
            Pairs([path], Schedule.from_toml(SCHEDULE)).draw(step, 0, 2, 0.0)


@pytest.mark.parametrize("name", ["sigmas", "velocity_null", "clean", "text"])
def test_a_shard_of_another_size_is_named(tmp_path, name):
    paths = [shard(tmp_path / f"{number:05d}.safetensors", 10) for number in range(2)]
    tensors = load_file(paths[1])
    save_file(tensors | {name: torch.cat([tensors[name]] * 2)}, paths[1])
    with refuses(BAD_INPUT, "00001", name):
        Pairs(paths, Schedule.from_toml(SCHEDULE))


def test_the_rate_warms_up_and_falls(make_config):
    config = make_config(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(0.1) and rates[9:] == sorted(rates[9:], reverse=True)


def test_the_teacher_is_the_dense_pipeline(make_config, tiny_dir, tmp_path):
    """The trajectory ends where diffusers' own pipeline does; a velocity is that of the model at its latents."""
    from fpsgen.models.wan.load import load
    from fpsgen.train.teacher import latent_shape, trajectories

    config = make_config(prompts=("a cat", "b"))
    pipe = load(tiny_dir)
    (found,) = trajectories(pipe, config, ["a cat"], 16, [5])
    start = torch.randn(latent_shape(pipe, config), generator=torch.Generator().manual_seed(5))
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, flow_shift=config.shift)
    options = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 3.0}
    ended = pipe(
        prompt="a cat", negative_prompt="", latents=start, output_type="latent", max_sequence_length=16, **options
    )
    torch.testing.assert_close(found["clean"].float(), ended.frames[0].float(), atol=2e-2, rtol=2e-2)
    row = 2
    given = {"hidden_states": found["latents"][row : row + 1].float(), "timestep": found["timesteps"][row : row + 1]}
    out = pipe.transformer(**given, encoder_hidden_states=found["text"][None], return_dict=False)[0][0]
    torch.testing.assert_close(found["velocity"][row].float(), out, atol=5e-3, rtol=5e-3)


def test_prepared_pairs_are_not_made_again(make_config, tiny_dir, tmp_path, monkeypatch):
    from fpsgen.models.wan.load import load
    from fpsgen.train import teacher
    from fpsgen.train.events import Silent

    config, pipe = make_config(), load(tiny_dir)
    paths = teacher.make_pairs(pipe, config, 16, tmp_path / "pairs", Silent())
    before = [load_file(path)["velocity"] for path in paths]
    paths[1].unlink()
    made = []
    true = teacher.trajectories
    monkeypatch.setattr(teacher, "trajectories", lambda *given: made.append(given[2]) or true(*given))
    teacher.make_pairs(pipe, config, 16, tmp_path / "pairs", Silent())
    assert made == [["b"]]
    assert all(torch.equal(load_file(path)["velocity"], old) for path, old in zip(paths, before, strict=True))


def test_prompts_that_share_forwards_get_the_pairs_that_each_gets_alone(make_config, tiny_dir):
    from fpsgen.models.wan.load import load
    from fpsgen.train.teacher import trajectories

    config, pipe = make_config(), load(tiny_dir)
    prompts, seeds = ["a cat", "a long red ball"], [5, 6]
    together = trajectories(pipe, config, prompts, 16, seeds)
    for found, prompt, seed in zip(together, prompts, seeds, strict=True):
        (alone,) = trajectories(pipe, config, [prompt], 16, [seed])
        assert found.keys() == alone.keys()
        for name, x in alone.items():
            assert found[name].shape == x.shape and found[name].dtype == x.dtype
            torch.testing.assert_close(found[name].float(), x.float(), atol=5e-3, rtol=5e-3)


def test_the_student_runs_by_the_profile_of_its_noise_level(make_config, tiny_dir, pairs):
    from fpsgen.models.patch.apply import apply
    from fpsgen.models.wan.load import load

    pipe = load(tiny_dir)
    config = pipe.transformer.config
    with apply(pipe.transformer, schedule=Schedule.from_toml(SCHEDULE)) as handle:
        for sigma, profile in ((0.95, "early"), (0.3, "late")):
            batch = pairs.draw(0, 0, 1, 0.0)
            latents = torch.zeros(1, config.in_channels, 3, 8, 8)
            text = torch.zeros(1, 4, config.text_dim)
            batch = type(batch)(latents, latents, latents, torch.tensor([sigma]), torch.tensor([500.0]), text, profile)
            handle.clear_report()
            velocity_error(pipe.transformer, handle, batch)
            assert {step["profile"] for step in handle.report()["steps"]} == {profile}


def test_presets_can_be_read(tmp_path, monkeypatch, capsys):
    """Each is in the help; data is where the paper's recipe says that it was prepared."""
    from fpsgen.cli.app import run

    monkeypatch.chdir(tmp_path)
    found = {name: runs.preset(name) for name in runs.PRESETS}
    assert run(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in found)
    assert found["wan-14b-lora"].lora_rank == 32
    flow = found["wan-1.3b-flow"]
    assert flow.data == str(tmp_path / "data" / "clips")
    paper = (flow.lr, flow.warmup, flow.shift, flow.weight_decay, flow.clip, flow.ema, flow.adam_eps, flow.null_share)
    assert paper == (5e-6, 200, 5.0, 1e-4, 1.0, 0.99, 1e-15, 0.1) and not flow.uses_teacher
    assert found["wan-1.3b"].parsed_schedule().fp8_linear and len(found["wan-1.3b"].prompts) == 50


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ("distill = 0", "distill"),
        ("batch = 3\nmicro_batch = 2", "micro_batch"),
        ("linear = 'fp4'", "linear"),
        ("prompts = 'none.txt'", "none.txt"),
        ("density_ramp = 11", "density_ramp"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, change, culprit):
    text = "\n".join(line for line in RUN.splitlines() if not change.startswith(line.split(" ")[0] or "#"))
    with refuses(BAD_INPUT, culprit):
        runs.read_config(write_run(tmp_path, f"{text}\n{change}\n"))


def test_prompts_may_be_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("# one a line\n\na red ball\n  a cat surfing \n")
    config = runs.read_config(write_run(tmp_path, RUN.replace('["a red ball", "a cat surfing"]', '"words.txt"')))
    assert config.prompts == ("a red ball", "a cat surfing")


def test_a_run_is_written_and_read_back(tmp_path, make_config):
    config = make_config(flow=0.5, lora_rank=3)
    (tmp_path / "run.json").write_text(config.to_json())
    assert runs.TrainConfig.from_json(tmp_path / "run.json") == config


def test_what_only_watches_a_run_does_not_make_it_another(make_config):
    assert make_config().digest() == make_config(dense_every=7, save_every=3, sample_every=9, keep=4).digest()
    assert make_config().digest() != make_config(ema=0.25).digest()


def test_what_steps_took_says_what_the_others_will(monkeypatch):
    """Steps of 2 s on two GPUs, in a run that goes on at step 150."""
    from fpsgen.train import estimate
    from fpsgen.train.events import Silent
    from fpsgen.train.parallel import Processes

    clock, said = iter([90.0 + 2 * number for number in range(100)]), []
    monkeypatch.setattr(estimate.time, "monotonic", lambda: next(clock))
    shared = Processes(0, 2, torch.device("cuda"))
    events = estimate.MeasuredCost(Silent(), lambda *line: said.append(line), shared)
    for index in range(150, 250):
        events.step(index, 250, "")
    assert said == [("time", "02:58, 0.0989 GPU hours for 89 steps more, by 10 steps")]
    assert estimate.cost(7200, Processes(0, 1, torch.device("cpu"))) == "2:00:00"


def test_processes_share_memory_and_time(make_config, tiny_dir, monkeypatch):
    """10,000 M weights in fp32 with gradient, two moments and average: 20 bytes each, over two processes. A sample was
    measured to take 15 s.
    """
    from fpsgen.models.catalog.choice import choose
    from fpsgen.train import estimate
    from fpsgen.train.parallel import Processes

    monkeypatch.setattr(estimate, "parameters", lambda model: 10**10)
    choice = choose(str(tiny_dir))
    monkeypatch.setattr(estimate, "measured", lambda *run: {"seconds": 15.0, "peak_bytes": None})
    config = make_config(batch=2, steps=60)
    said = [dict(estimate.estimate(config, choice, Processes(0, n, torch.device("cpu")))) for n in (1, 2)]
    assert [text["memory"].split(" GB")[0] for text in said] == ["200.0", "100.0"]
    assert [text["time"] for text in said] == ["30:00 (estimated)", "15:00 (estimated)"]


@pytest.mark.parametrize("name", ["wan-1.3b", "wan-1.3b-lora", "wan-14b-lora"])
def test_runs_for_wan_have_a_measured_row(name):
    from fpsgen.train import estimate

    run = runs.preset(name)
    found = [estimate.measured(run, run.model, device) for device in {row["device"] for row in estimate.cost_rows()}]
    assert any(row and row["seconds"] > 0 and row["peak_bytes"] > 0 for row in found)


def test_what_a_run_takes_is_computed_from_its_weights():
    """Against the numbers written out: 1,000 weights trained in bf16 take 2 + 4 x 4 + 4 bytes each."""
    from tiny import tiny_transformer

    from fpsgen.train.estimate import state_bytes
    from fpsgen.train.lora import adapter_size, add_lora

    assert state_bytes(1000, 1000, True) == 22_000 and state_bytes(1000, 10, True) == 2_200
    assert state_bytes(1000, 1000, False) == 20_000
    model = tiny_transformer()
    add_lora(model, 4, 0)
    assert adapter_size(model.config, 4) == sum(p.numel() for p in model.parameters() if p.requires_grad)
