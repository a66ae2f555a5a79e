"""Models are listed, fetched from a (local) hub, checked and removed; every fault has its code and remedy."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, NAME, Hub, serving

from fpsgen.assets import weights_dir


def answered(machine: Machine, answer: bytes, *arguments: str) -> tuple[int, str]:
    """(exit code, what was shown) of a command at a terminal, where someone types `answer` when asked."""
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "fpsgen", *arguments],
        cwd=machine.home,
        env=machine.environ(),
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
    ) as process:
        os.close(child)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(parent, 1000)
        os.write(parent, answer)
        process.wait(60)
        while True:
            try:
                part = os.read(parent, 1000)
            except OSError:
                break
            shown += part
        os.close(parent)
        return process.returncode, shown.decode()


class Machine:
    """A home of its own for caches and configuration, and the command line in it (a process: the hub's address is read
    when its library is imported)."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url

    def environ(self, **more: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("FPSGEN_", "HF_"))}
        clean |= {
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": self.url,
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
        }
        return clean | {"COLUMNS": "80", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DOWNLOAD_TIMEOUT": "2"} | more

    def __call__(self, *arguments: object, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fpsgen", *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environ(**environ),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )


def without_stdin(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "fpsgen", *arguments]
    return subprocess.run(command, cwd=machine.home, env=machine.environ(), capture_output=True, text=True, timeout=120)


@pytest.fixture
def hub(tiny_dir, tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(tiny_dir, folder)
    (folder / "README.md").write_text("not fetched")
    (folder / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, not fetched")
    with serving(Hub(someone__wan_tiny=folder)) as hub:
        hub.repositories[NAME] = hub.repositories.pop("someone/wan_tiny")
        yield hub


@pytest.fixture
def fpsgen(hub, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    return Machine(home, hub.url)


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()[-2:]
    assert lines[0].startswith("error: ") and lines[1].startswith("fix: "), done.stderr
    assert not done.stdout and all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def files_sent(hub: Hub) -> int:
    return hub.sent.total() - hub.sent[""]


def test_pull_verify_path_generate_rm(fpsgen, hub):
    refused(fpsgen("generate", "a cat", "-m", NAME), 5, f"fpsgen models pull {NAME}")
    done = fpsgen("models", "pull", NAME)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert (folder / "model_index.json").is_file() and folder.name == COMMIT
    assert not (folder / "README.md").exists() and not list(folder.rglob("*.bin"))
    assert "all checked" in done.stderr and done.stdout == f"{folder}\n"
    assert fpsgen("models", "path", NAME).stdout == f"{folder}\n"
    assert fpsgen("models", "verify", NAME).returncode == 0

    before = files_sent(hub)
    again = fpsgen("models", "pull", NAME)
    assert again.returncode == 0 and again.stdout == done.stdout and files_sent(hub) == before
    offline = fpsgen("models", "pull", NAME, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0 and "already" in offline.stderr

    options = ("--res", "32x32", "--frames", "5", "--steps", "1", "--method", "bf16", "-o", "v.mp4")
    made = fpsgen("generate", "a cat", "-m", NAME, *options, HF_HUB_OFFLINE="1")
    assert made.returncode == 0 and made.stdout == "v.mp4\n", made.stderr
    recipe = json.loads((fpsgen.home / "v.json").read_text())["recipe"]
    assert recipe["model"] == {"name": NAME, "source": NAME, "revision": COMMIT}

    refused(fpsgen("models", "rm", NAME), 2, "--yes")
    refused(without_stdin(fpsgen, "models", "rm", NAME), 2, "--yes")
    assert folder.is_dir()
    assert fpsgen("models", "rm", NAME, "--yes").returncode == 0 and not folder.exists()
    refused(fpsgen("models", "path", NAME), 5)
    refused(fpsgen("models", "rm", NAME, "--yes"), 5, "not on this machine", "nothing to do")


def test_a_broken_transfer_goes_on_where_it_stopped(fpsgen, hub):
    name = "transformer/diffusion_pytorch_model.safetensors"
    size = (hub.repositories[NAME] / name).stat().st_size
    hub.cut[name] = size // 2
    done = fpsgen("models", "pull", NAME)
    assert done.returncode == 0, done.stderr
    assert hub.sent[name] == size  # no byte was sent twice
    assert fpsgen("models", "verify", NAME).returncode == 0


def test_a_wrong_byte_is_caught_and_fetched_again(fpsgen, hub):
    name = "vae/diffusion_pytorch_model.safetensors"
    hub.spoil.add(name)
    refused(fpsgen("models", "pull", NAME), 5, name, "digest", "pull again")
    refused(fpsgen("models", "path", NAME), 5)  # not there until it is whole
    hub.spoil.clear()
    assert fpsgen("models", "pull", NAME).returncode == 0
    hub.spoil.add("scheduler/scheduler_config.json")
    shutil.rmtree(fpsgen.home / "hf")
    refused(fpsgen("models", "pull", NAME), 5, "scheduler/scheduler_config.json")


def test_verify_finds_what_changed_on_disk(fpsgen):
    folder = Path(fpsgen("models", "pull", NAME).stdout.strip())
    blob = (folder / "transformer" / "diffusion_pytorch_model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    refused(fpsgen("models", "verify", NAME), 5, "transformer/", "digest", "models rm")
    blob.unlink()
    refused(fpsgen("models", "verify", NAME), 5, "blob is missing")


def test_what_the_hub_refuses(fpsgen, hub):
    refused(fpsgen("models", "pull", "someone/nothing"), 5, "was not found")
    refused(fpsgen("models", "pull", NAME, "--revision", "v9"), 5, "v9")
    hub.status[NAME] = 403
    refused(fpsgen("models", "pull", NAME), 5, "gated", "HF_TOKEN")
    hub.status[NAME] = 500
    refused(fpsgen("models", "pull", NAME), 8, "did not answer")
    hub.repositories["someone/other"] = hub.repositories[NAME] / "vae"
    refused(fpsgen("models", "pull", "someone/other"), 5, "model_index.json")


def test_no_network(fpsgen):
    refused(fpsgen("models", "pull", NAME, HF_ENDPOINT="http://127.0.0.1:9"), 8, "127.0.0.1:9", "HF_ENDPOINT")
    refused(fpsgen("models", "pull", NAME, HF_HUB_OFFLINE="1"), 8, "HF_HUB_OFFLINE")


def test_a_full_disk_is_seen_before_the_transfer(fpsgen, hub, tmp_path):
    patch = "import shutil, collections; shutil.disk_usage = lambda p: collections.namedtuple('U', 'free')(1000)"
    (tmp_path / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    refused(fpsgen("models", "pull", NAME, PYTHONPATH=path), 7, "left", "HF_HOME")
    assert not files_sent(hub)


def test_a_users_own_row_whose_folder_is_not_there(fpsgen):
    config = fpsgen.home / "config" / "fpsgen"
    config.mkdir(parents=True)
    (config / "models.toml").write_text('[[model]]\nname = "mine"\nsource = "/models/no"\nlike = "nano"\n')
    for more in ([], ["--dry-run"], ["--pull"]):
        refused(fpsgen("generate", "a cat", "-m", "mine", *more), 5, "no folder /models/no", "models.toml")
    for command in ("pull", "path", "verify", "rm"):
        refused(fpsgen("models", command, "mine"), 5, "no folder /models/no")
    assert "models.toml" in fpsgen("doctor", "-m", "mine").stdout
    made = fpsgen("generate", "a cat", "--dry-run")  # nor is it offered where any will do
    assert made.returncode == 0 and "mine" not in made.stderr


def test_a_users_own_row(fpsgen):
    config = fpsgen.home / "config" / "fpsgen"
    config.mkdir(parents=True)
    row = f'[[model]]\nname = "mine"\nsource = "{NAME}"\nlike = "nano"\nsteps = 1\nframes = 5\n'
    (config / "models.toml").write_text(row)
    listed = json.loads(fpsgen("models", "list", "--json").stdout)["results"]
    assert [r["name"] for r in listed] == ["nano", "wan2.1-1.3b", "wan2.1-14b", "mine"]
    refused(fpsgen("generate", "a cat", "-m", "mine"), 5, "fpsgen models pull mine")
    assert fpsgen("models", "pull", "mine").returncode == 0
    shown = fpsgen("generate", "a cat", "-m", "mine", "--dry-run").stdout
    assert "5 (0.31 s)" in shown and "mine" in shown
    for text, word in (("steps = 1.5", "steps"), ("stepz = 1", "stepz"), ('like = "x"', "like"), ("x x", "TOML")):
        bad = row.replace("steps = 1", text) if text != 'like = "x"' else row.replace('like = "nano"', text)
        (config / "models.toml").write_text(bad)
        done = fpsgen("models", "list")
        assert done.returncode == 4 and "models.toml" in done.stderr, (word, done.stderr)


def test_nano_is_listed_served_and_kept(fpsgen, hub):
    done = fpsgen("models", "list")
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["nano", "wan2.1-1.3b", "wan2.1-14b"]
    shown = Path(fpsgen("models", "path", "nano").stdout.strip())  # of the installed package, wherever that is
    assert (shown / "manifest.json").read_bytes() == (weights_dir() / "nano" / "manifest.json").read_bytes()
    assert fpsgen("models", "verify", "nano").returncode == 0
    assert "comes with fpsgen" in fpsgen("models", "pull", "nano").stderr
    refused(fpsgen("models", "rm", "nano", "--yes"), 2, "part of fpsgen")
    refused(fpsgen("models", "pull", "nonsense"), 5, "nano")
    hub.repositories["copy/of-nano"] = weights_dir() / "nano"
    pulled = fpsgen("models", "pull", "copy/of-nano", "--json")
    row = json.loads(pulled.stdout)["results"][0]
    assert row["fetched_bytes"] > 15e6 and (Path(row["path"]) / "schedule.toml").is_file()
    plan = fpsgen("generate", "a cat", "-m", "copy/of-nano", "--dry-run").stdout
    assert "carried by the checkpoint" in plan and "256x160" in plan


def test_bare_is_help_and_usage(fpsgen):
    done = fpsgen("models")
    assert done.returncode == 2 and "pull" in done.stdout and not done.stderr
    refused(fpsgen("models", "pull"), 2, "NAME")
    refused(fpsgen("models", "pul"), 2, "pull")


def test_rm_asks_and_no_answer_is_no(fpsgen, hub):
    folder = Path(fpsgen("models", "pull", NAME).stdout.strip())
    for answer in (b"n\n", b"\n", b"\x04", b"nonsense\n"):
        code, shown = answered(fpsgen, answer, "models", "rm", NAME)
        assert code == 0 and "stays" in shown and "Traceback" not in shown and "error" not in shown
        assert folder.is_dir()
    assert answered(fpsgen, b"y\n", "models", "rm", NAME)[0] == 0 and not folder.exists()


def test_rm_takes_what_a_broken_transfer_left(fpsgen, hub):
    hub.file_status["transformer/diffusion_pytorch_model.safetensors"] = (404, "EntryNotFound")
    refused(fpsgen("models", "pull", NAME), 5, "404")
    assert fpsgen("models", "rm", NAME, "--yes").returncode == 0
    left = [path for path in (fpsgen.home / "hf").rglob("*") if path.is_file() and "tiny" in str(path)]
    assert not left


def test_rm_follows_no_links(fpsgen, hub):
    """A file of a snapshot that links to somewhere else: the link goes, what it leads to stays."""
    folder = Path(fpsgen("models", "pull", NAME).stdout.strip())
    victim = fpsgen.home / "victim"
    victim.write_text("mine")
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").symlink_to(victim)
    (folder / "more").symlink_to(fpsgen.home / "config")
    (fpsgen.home / "config").mkdir(exist_ok=True)
    assert fpsgen("models", "rm", NAME, "--yes").returncode == 0
    assert victim.read_text() == "mine" and (fpsgen.home / "config").is_dir() and not folder.exists()


def test_show_says_what_a_model_can_do(fpsgen):
    for name, words in (
        ("nano", ("Apache-2.0", "256x160", "256x144", "20 steps", "cat", "surfing", "over grass", "fits")),
        ("wan2.1-1.3b", ("832x480", "1280x720 (made for 480p)", "28.9 GB to fetch", "50 steps", "CUDA GPU")),
        ("wan2.1-14b", ("1280x720", "80.4 GB to fetch", "guidance 5")),
    ):
        done = fpsgen("models", "show", name)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert all(word in done.stdout for word in words), done.stdout
    row = json.loads(fpsgen("models", "show", "nano", "--json").stdout)["results"][0]
    assert row["vocabulary"]["subjects"][0] == "ball" and row["geometry"]["spatial"] == 8 and row["bytes_to_fetch"] == 0
    refused(fpsgen("models", "show", "nonsense"), 5, "nonsense")


def test_verify_takes_a_folder(fpsgen, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(weights_dir() / "nano", folder)
    assert fpsgen("models", "verify", folder).returncode == 0
    schedule = folder / "schedule.toml"
    schedule.write_bytes(schedule.read_bytes().replace(b"0", b"1", 1))
    refused(fpsgen("models", "verify", folder), 5, "schedule.toml")
    refused(fpsgen("generate", "a cat surfing", "-m", folder, "--steps", "1", "--frames", "1"), 5, "schedule.toml")
    (folder / "manifest.json").unlink()
    assert "no manifest" in fpsgen("models", "verify", folder).stderr


def test_settings_of_the_hub_that_cannot_be_used(fpsgen):
    for commands in (("models", "pull", NAME), ("models", "list"), ("generate", "a cat", "-m", NAME)):
        refused(fpsgen(*commands, HF_ENDPOINT="http://user:canary@h:99999999"), 2, "HF_ENDPOINT")
    refused(fpsgen("models", "pull", NAME, HF_HUB_DOWNLOAD_TIMEOUT="abc"), 2, "HF_HUB_")
    done = fpsgen("models", "pull", NAME, HF_ENDPOINT="http://user:canary@127.0.0.1:9", HF_TOKEN="hf_canary")
    refused(done, 8, "127.0.0.1:9")
    assert "canary" not in done.stderr + done.stdout
    refused(fpsgen("models", "pull", NAME, HF_HOME=f"{weights_dir()}/registry.toml/x"), 2, "HF_HOME")
