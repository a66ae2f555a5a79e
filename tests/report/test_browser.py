"""The bench's page in a real browser: nothing leaves it, its script runs, and it fits a phone and a sheet of paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from fpsgen.report.page import page
from fpsgen.video import write_mp4
from tests.report.test_page import row

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]

# Measures the page in a frame of a phone's width, and says what it found in the title.
PROBE = """<body style="margin:0">
<iframe id="f" src="page.html" style="border:0;width:390px;height:2000px"></iframe><script>
const say = found => { document.title = JSON.stringify(found) };
const within = e => e.getBoundingClientRect().right <= 391 || e.closest('.wide');
f.onload = async () => { try {
  const d = f.contentDocument, videos = [...d.querySelectorAll('video')], root = d.documentElement;
  await Promise.all(videos.map(v => v.readyState >= 2 || new Promise(ok => v.onloadeddata = ok)));
  d.querySelector('#play').click();
  await new Promise(ok => setTimeout(ok, 400));
  const playing = videos.filter(v => !v.paused).length;
  d.querySelector('#play').click();
  d.querySelector('#back').click();
  const box = d.querySelector('#left'), shown = d.querySelector('#a'), before = shown.src;
  box.selectedIndex = 1; box.onchange();
  const entries = f.contentWindow.performance.getEntriesByType('resource').map(e => e.name);
  say({playing, videos: videos.length, fits: root.scrollWidth <= root.clientWidth,
    wide: [...d.querySelectorAll('body > *, svg, video')].filter(e => !within(e)).map(e => e.tagName),
    options: [...box.options].map(o => o.text), changed: before !== shown.src,
    requests: entries.filter(name => !name.startsWith('data:'))});
} catch (error) { say({error: String(error)}) } };
</script></body>"""


@pytest.fixture
def served(tmp_path):
    """A folder with the page, served; the addresses that were asked for."""
    videos = []
    for number, name in enumerate(("bf16", "fps")):
        frames = np.full((9, 48, 64, 3), 60 + 90 * number, np.uint8)
        videos.append(str(write_mp4(frames, tmp_path / f"{name}.mp4", 8)))
    profile = {"profile": "early", "steps": 2, "method": "fps", "kernel": "cpu", "density": 0.25}
    profile |= {"tile": [3, 5, 8], "window": [1, 3, 3], "step_s": {"median": 1.0}}
    rows = [row("bf16", 1.0, None, video=videos[0]), row("fps", 3.0, 25.0, video=videos[1], profiles=[profile])]
    rows.insert(1, row("fp8", 1.5, 28.0))
    (tmp_path / "page.html").write_text(page(rows))
    (tmp_path / "probe.html").write_text(PROBE)
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def browse(*arguments: str) -> str:
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required")
    done = subprocess.run([BROWSER, *flags, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_a_phone_shows_all_and_nothing_leaves_the_page(served):
    address, asked = served
    made = browse("--virtual-time-budget=6000", "--window-size=800,2100", "--dump-dom", f"{address}/probe.html")
    found = json.loads(re.search("<title>(.*?)</title>", made)[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert found == {
        **{"playing": 4, "videos": 4, "fits": True, "wide": [], "requests": [], "changed": True},
        "options": ["bf16", "fps, 25.0 dB"],
    }
    assert set(asked) <= {"/probe.html", "/page.html", "/favicon.ico"}


def test_it_prints(served, tmp_path):
    address, _ = served
    browse(f"--print-to-pdf={tmp_path / 'page.pdf'}", f"{address}/page.html")
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 1 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page/") <= 3
