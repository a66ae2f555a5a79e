"""Which model a command takes: a person is asked, --pull fetches, a machine that cannot run it is not troubled."""

from __future__ import annotations

import pytest
from refusal import refuses

from fpsgen.cli import console, model_choice
from fpsgen.errors import ENVIRONMENT, MODEL, FpsgenError
from fpsgen.models.catalog import choice as catalog
from fpsgen.models.catalog.machine import Machine
from fpsgen.pipeline import memory
from fpsgen.settings.gather import Settings

FITS, CPU = Machine((80.0,), 512.0), Machine((), 16.0)


@pytest.fixture
def shop(monkeypatch, tmp_path):
    """A machine where no Wan model is on disk; `fetched` and `asked` keep what happened."""

    class Shop:
        fetched: list[str]
        asked: list[str]
        terminal, answer, machine = False, False, FITS

        def choose(self, **asked) -> str:
            return model_choice.choose_model(Settings(asked)).spec.name

    shop = Shop()
    shop.fetched, shop.asked = [], []
    here = catalog.on_disk
    monkeypatch.setattr(catalog, "on_disk", lambda spec: tmp_path if spec.name in shop.fetched else here(spec))
    real = catalog.check_folder
    monkeypatch.setattr(catalog, "check_folder", lambda folder: real(folder) if folder != tmp_path else tmp_path)
    for module in (catalog, memory):
        monkeypatch.setattr(module, "this_machine", lambda: shop.machine)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(model_choice, "fetch", lambda spec, settings: shop.fetched.append(spec.name))
    monkeypatch.setattr(console, "at_terminal", lambda: shop.terminal)
    monkeypatch.setattr(console, "ask", lambda question: shop.asked.append(question) or shop.answer)
    monkeypatch.setattr(catalog.ModelChoice, "folder", property(lambda choice: choice.pipeline and tmp_path))
    return shop


def test_auto_is_nano_where_nobody_is_there_to_be_asked(shop):
    assert shop.choose(res="720p") == "nano" and not shop.fetched and not shop.asked


def test_a_person_is_asked_once_with_the_size_of_the_download(shop):
    shop.terminal = True
    assert shop.choose(res="720p") == "nano" and len(shop.asked) == 1 and "80.4 GB" in shop.asked[0]
    shop.answer = True
    assert shop.choose(res="720p") == "wan2.1-14b" and shop.fetched == ["wan2.1-14b"]


def test_pull_asks_nobody(shop):
    shop.terminal = True
    assert shop.choose(res="480p", pull=True) == "wan2.1-14b" and not shop.asked
    assert shop.choose(model="wan2.1-1.3b", pull=True) == "wan2.1-1.3b" and not shop.asked


def test_a_wan_model_that_is_here_is_taken_without_a_question(shop):
    shop.terminal = True
    shop.fetched.append("wan2.1-1.3b")
    assert shop.choose(res="480p") == "wan2.1-1.3b" and not shop.asked


def test_what_cannot_run_here_is_neither_fetched_nor_asked_about(shop):
    shop.machine, shop.terminal, shop.answer = CPU, True, True
    assert shop.choose(res="720p", pull=True) == "nano"
    with refuses(ENVIRONMENT, "CUDA GPU"):
        shop.choose(model="wan2.1-14b", pull=True)
    with refuses(MODEL, remedy="models pull wan2.1-14b"):
        shop.choose(model="wan2.1-14b")
    assert not shop.asked and not shop.fetched


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_auto_takes_what_fits_the_device_that_is_named(shop, device):
    shop.machine = Machine((80.0, 8.0), 512.0)
    shop.fetched.append("wan2.1-14b")
    assert shop.choose() == "wan2.1-14b" and shop.choose(device=device) == "nano"


def test_a_named_model_that_is_missing(shop):
    with refuses(MODEL, remedy="models pull wan2.1-1.3b"):
        shop.choose(model="wan2.1-1.3b")
    shop.terminal = True
    with pytest.raises(FpsgenError):
        shop.choose(model="wan2.1-1.3b")
    assert len(shop.asked) == 1
    assert shop.choose(model="wan2.1-1.3b", dry_run=True) == "wan2.1-1.3b" and len(shop.asked) == 1


def test_words_that_nano_does_not_know_and_scaling_are_said(tmp_path, monkeypatch):
    from fpsgen.pipeline.plan import plan

    monkeypatch.chdir(tmp_path)
    notes = plan("a dog surfing", Settings({"model": "nano", "res": "720p"})).notes
    assert any("'dog'" in note and "ball" in note for note in notes)
    assert any("256x144" in note and "1280x720" in note and "models pull" in note for note in notes)
    assert plan("a red ball", Settings({"model": "nano"})).notes == ()


def test_a_model_beyond_what_it_was_made_for_says_so(tmp_path, monkeypatch):
    from fpsgen.models.catalog.choice import choose
    from fpsgen.pipeline.plan import plan

    monkeypatch.chdir(tmp_path)
    chosen = choose("wan2.1-1.3b", missing_ok=True)
    for res, said in (("720p", 1), ("480p", 0)):
        notes = plan("a cat", Settings({"model": "wan2.1-1.3b", "res": res}), chosen).notes
        assert sum("480p" in note for note in notes) == said


def test_each_job_of_a_batch_names_the_words_that_are_unknown(fpsgen, monkeypatch):
    from pathlib import Path

    from fpsgen.pipeline import run

    def stop(*anything):
        raise FpsgenError("planted", "nothing", ENVIRONMENT)

    monkeypatch.setattr(run, "encode", stop)  # the words are judged before there is work
    Path("p.txt").write_text("a red ball\na zebra\na blue walrus\n")
    assert fpsgen("batch", "p.txt", "-m", "nano", "--steps", "1") == 3
    assert "'zebra'" in fpsgen.err and "'walrus'" in fpsgen.err and fpsgen.err.count("does not know") == 2
