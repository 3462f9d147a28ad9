"""Who may come in."""

import pytest
from pydantic import SecretStr

from apps.dashboard.access import origins, rules
from pipeline.errors import BadInput
from pipeline.settings import Dashboard

SECRET = SecretStr("secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.53"])
def test_this_machine_needs_no_login(host: str) -> None:
    assert rules(Dashboard(host=host)) == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "dashboard.example"])
def test_another_needs_one(host: str) -> None:
    with pytest.raises(BadInput, match="without a login"):
        rules(Dashboard(host=host))
    assert rules(Dashboard(host=host, password=SECRET))["basic_auth"] == "secret"
    oauth = rules(Dashboard(host=host, oauth_provider="github", oauth_key="id", oauth_secret=SECRET))
    assert (oauth["oauth_provider"], oauth["oauth_key"], oauth["oauth_secret"]) == ("github", "id", "secret")


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (Dashboard(password=SECRET, oauth_provider="github"), "two ways"),
        (Dashboard(password=SecretStr("")), "is empty"),
        (Dashboard(oauth_provider="github", oauth_key="id"), "needs a client"),
    ],
)
def test_half_a_login_is_none(settings: Dashboard, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong):
        rules(settings)


def test_logins_are_signed_with_a_secret_of_the_process_or_the_settings() -> None:
    one, other = (rules(Dashboard(password=SECRET))["cookie_secret"] for _ in range(2))
    assert one != other
    assert rules(Dashboard(password=SECRET, cookie_secret=SecretStr("kept")))["cookie_secret"] == "kept"


def test_a_browser_may_have_the_page_from_this_machine_and_from_what_is_named() -> None:
    assert origins(Dashboard(port=7, origins="iot.example, iot.example:8443")) == [
        "127.0.0.1:7", "iot.example", "iot.example:8443", "localhost:7",
    ]  # fmt: skip
