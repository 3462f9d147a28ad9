"""Logins by OpenID Connect, through a browser: a fake provider, and the dashboard with the settings of a real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr

from tests.ui import fake_openid
from tests.ui.conftest import Served, serve, settings_of
from tests.ui.fake_openid import CLIENT, SECRET, Provider

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def openid(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    with fake_openid.provider() as running:
        for name, path in {"AUTHORIZE": "authorize", "TOKEN": "token", "USER": "userinfo"}.items():
            monkeypatch.setenv(f"PANEL_OAUTH_{name}_URL", f"{running.url}/{path}")
        yield running


def dashboard(directory: Path, secret: str) -> Iterator[Served]:
    settings = settings_of(directory / "lake")
    login = {"oauth_provider": "generic", "oauth_key": CLIENT, "oauth_secret": SecretStr(secret)}
    yield from serve(
        settings.model_copy(update={"dashboard": settings.dashboard.model_copy(update=login)}), directory / "log"
    )


@pytest.mark.thorough
def test_the_provider_lets_a_viewer_in_and_only_with_what_it_gave_out(
    page: Page, openid: Provider, tmp_path: Path
) -> None:
    for served in dashboard(tmp_path, SECRET):
        forged = page.context.request.get(f"{served.url}/login?code=guess&state=guess")
        assert (forged.status, openid.tokens) == (401, set())
        page.goto(f"{served.url}/health")
        assert page.url.startswith(openid.url)
        page.get_by_role("link").click()
        page.wait_for_url(f"{served.url}/**")
        page.goto(f"{served.url}/health")
        expect(page.locator("h1")).to_have_text("Pipeline")
        expect(page.locator(".badge")).to_contain_text("No data yet")
        assert len(openid.tokens) == 1
        page.get_by_role("link", name="Log out").click()
        expect(page.get_by_role("heading")).to_have_text("Logged out")
        page.goto(f"{served.url}/health")
        expect(page.get_by_role("link")).to_contain_text("As ada")


@pytest.mark.thorough
def test_a_client_that_the_provider_does_not_know_lets_nobody_in(
    page: Page, openid: Provider, tmp_path: Path
) -> None:
    for served in dashboard(tmp_path, "another secret"):
        page.goto(f"{served.url}/health")
        href = page.get_by_role("link").get_attribute("href")
        refused = page.context.request.get(str(href))
        assert (refused.status, "Not logged in" in refused.text()) == (401, True)
        assert page.context.request.get(f"{served.url}/health", max_redirects=0).status == 302
        assert not openid.tokens
