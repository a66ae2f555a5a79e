"""What the environment says of the hub: addresses that are none are refused, and credentials are never shown."""

from __future__ import annotations

import pytest
from hub import API, refused

from fpsgen.errors import NETWORK, USAGE, FpsgenError
from fpsgen.models.catalog.cache import hub_settings
from fpsgen.models.catalog.hub import without_credentials


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
    with pytest.raises(FpsgenError) as caught:
        hub_settings()
    assert caught.value.code == USAGE and "HF_ENDPOINT" in caught.value.message


def test_credentials_are_not_shown(hub, monkeypatch):
    from huggingface_hub import constants

    address = hub.url.replace("http://", "http://user:canary@")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert "canary" not in hub_settings().shown
    hub.hang.add(API)
    assert "canary" not in str(refused(NETWORK, "127.0.0.1"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:canary@127.0.0.1:9")
    assert "canary" not in str(refused(NETWORK, "127.0.0.1:9"))
    monkeypatch.setenv("HF_ENDPOINT", "http://user:canary@h:999999")
    assert "canary" not in str(refused(USAGE))
    assert without_credentials("at https://u:p@h/x with hf_abc and //a@b") == "at https://h/x with hf_... and //b"


def test_other_settings_that_cannot_be_used(hub, monkeypatch):
    from huggingface_hub import constants

    for name, value in (("HF_HUB_CACHE", ""), ("HF_HUB_DOWNLOAD_TIMEOUT", -1)):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            refused(USAGE, name)
