"""The status page, in a real browser."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

import codedinv.gateway
from tests.gateway.browser import CHROMIUM, browser
from tests.gateway.conftest import BUNDLE
from tests.gateway.servers import Gateway, get, infer_body, running_gateway

PAGE = Path(codedinv.gateway.__file__).with_name("status.html")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    text = PAGE.read_text()
    assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", text)


def test_the_page_is_there_and_forbids_what_it_does_not_need(gateway: Gateway) -> None:
    answer = get(gateway, "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_status_is_what_the_page_shows(gateway: Gateway) -> None:
    found = get(gateway, "/status").json()
    assert found["ready"] is True
    (model,) = found["models"]
    assert (model["k"], model["n"]) == (4, 5)
    assert len(model["workers"]) == 3
    latency = model["latency"]
    assert len(latency["bounds"]) == len(latency["counts"])
    assert latency["counts"] == sorted(latency["counts"])
    assert latency["counts"][-1] == sum(model["answered"].values())


@pytest.mark.servers
@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_workers_latency_and_sources(
    gateway: Gateway, tmp_path: Path, scheme: str
) -> None:
    over = threading.Event()
    body = infer_body(np.zeros((2, 1, 28, 28), np.float32))

    def ask() -> None:
        with httpx.Client() as client:
            while not over.wait(0.05):
                client.post(f"{gateway.url}/v2/models/fashion-mnist/infer", json=body, timeout=30)

    async def look() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.prefer(scheme)
            await page.open(gateway.url + "/")
            await page.wait_for("document.getElementById('ready')?.textContent === 'ready'")
            tiles = "[...document.querySelectorAll('[data-model=fashion-mnist] .tile')]"
            assert await page.value(f"{tiles}.length") == 3
            states = await page.value(f"{tiles}.map((t) => t.dataset.state)")
            assert set(states) <= {"ready", "busy"}
            await page.wait_for("[...document.querySelectorAll('path')].some((p) => "
                                "p.getAttribute('d').includes('L'))")  # fmt: skip
            text = await page.value("document.body.innerText")
            assert re.search(r"exact [\d.]+ %", text)
            assert re.search(r"\d+\.\d+ ms|\d\.\d\d s", text)
            colour = await page.value("getComputedStyle(document.body).backgroundColor")
            brightness = sum(map(int, re.findall(r"\d+", colour)[:3]))
            assert (brightness > 600) == (scheme == "light")
            await page.picture(tmp_path / "page.png")
            assert page.complaints == []

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        asyncio.run(look())
    finally:
        over.set()
        asking.join()
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.servers
@needs_chromium
def test_the_page_shows_a_lost_gateway_and_asks_for_its_token(tmp_path: Path) -> None:
    settings = {"models": [{"model": BUNDLE, "workers": 1}], "token": "a-good-token"}

    async def look(running: Gateway) -> None:
        says = "document.getElementById('ready')?.textContent"
        async with browser(tmp_path / "profile") as page:
            await page.open(running.url + "/")
            await page.wait_for(f"{says}?.includes('#token')")
            await page.open(running.url + "/?again#token=a-good-token")
            await page.wait_for(f"{says} === 'ready'")
            running.stop()
            await page.wait_for(f"{says} === 'no answer'")

    with running_gateway(tmp_path / "gateway", settings) as running:
        asyncio.run(look(running))
