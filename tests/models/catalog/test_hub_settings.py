"""What the environment says of the hub: addresses that are none are refused, and credentials are never shown."""

from __future__ import annotations

import pytest
from hub import API, refused
from refusal import refuses

from fpsgen.errors import MODEL, NETWORK, USAGE
from fpsgen.models.catalog.choice import choose
from fpsgen.models.catalog.hub import hub_settings, without_credentials
from fpsgen.models.catalog.machine import Machine


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://h:99999999",
        "http://[::1",
        "://",
        "ftp://h",
        "huggingface.co",
        "http://",
        "http://h:x",
        "http://a b",
        "http://h/?q",
    ],
)
def test_endpoints_that_are_none(endpoint, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with refuses(USAGE, "HF_ENDPOINT"):
        hub_settings()


def test_credentials_are_not_shown(hub, monkeypatch):
    from huggingface_hub import constants

    address = hub.url.replace("http://", "http://user:canary@")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert "canary" not in hub_settings().shown
    hub.hang.add(API)
    assert "canary" not in str(refused(NETWORK, "127.0.0.1"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:canary@127.0.0.1:9")
    assert "canary" not in str(refused(NETWORK, "127.0.0.1:9"))
    for wrong in ("http://user:canary@h:999999", "http://h/?token=canary"):
        monkeypatch.setenv("HF_ENDPOINT", wrong)
        assert "canary" not in str(refused(USAGE))
    assert without_credentials("at https://u:p@h/x with hf_abc and //a@b") == "at https://h/x with hf_... and //b"


def test_other_settings_that_cannot_be_used(hub, monkeypatch):
    from huggingface_hub import constants

    for name, value in (("HF_HUB_CACHE", ""), ("HF_HUB_DOWNLOAD_TIMEOUT", -1)):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            refused(USAGE, name)


def test_a_cache_that_may_not_be_read(hub, tmp_path):
    """Models that were not asked for by name are passed over, with the reason."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hub").symlink_to("x" * 300)
    for name in ("wan2.1-1.3b", "OWNER/NAME"):
        with refuses(MODEL, str(tmp_path / "home" / "hub")):
            choose(name, missing_ok=True)
    found = choose(machine=Machine((1000.0,), 1000.0))
    assert found.spec.name == "nano" and str(tmp_path / "home" / "hub") in found.reason


@pytest.mark.parametrize(
    ("variable", "value"), [("ALL_PROXY", "bla://h"), ("ALL_PROXY", "socks9://u:canary@h"), ("SSL_CERT_FILE", __file__)]
)
def test_proxies_and_certificates_that_are_none(variable, value, hub, monkeypatch):
    from huggingface_hub import close_session

    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    close_session()
    try:
        assert "canary" not in str(refused(USAGE, "proxy or certificates"))
    finally:
        close_session()
