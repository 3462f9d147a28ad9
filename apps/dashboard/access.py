"""Who may come in: anybody on this machine; from elsewhere only who logs in, by password or OAuth."""

import ipaddress
import secrets
from collections.abc import Mapping
from typing import Any

from apps.dashboard.theme import ASSETS
from pipeline.errors import BadInput
from pipeline.settings import Dashboard


def rules(settings: Dashboard) -> Mapping[str, Any]:
    """What `panel.serve` has to know of logins. Raises BadInput where anybody could come in from elsewhere."""
    if settings.password is not None and settings.oauth_provider is not None:
        raise BadInput(
            "The dashboard has two ways to log in.",
            "Set PIPELINE_DASHBOARD__PASSWORD or PIPELINE_DASHBOARD__OAUTH_PROVIDER, not both.",
        )
    if settings.password is None and settings.oauth_provider is None:
        if not is_here(settings.host):
            raise BadInput(
                f"The dashboard would listen on {settings.host}, where other machines reach it, without a login.",
                "Set PIPELINE_DASHBOARD__PASSWORD or PIPELINE_DASHBOARD__OAUTH_PROVIDER, or listen on 127.0.0.1.",
            )
        return {}
    secret = settings.cookie_secret.get_secret_value() if settings.cookie_secret else secrets.token_hex(32)
    door = str(ASSETS / "login.html")  # Panel's own pages want fonts and pictures from elsewhere
    common = {
        "cookie_secret": secret,
        "logout_endpoint": "/logout",
        "logout_template": door,
        "oauth_error_template": door,
    }
    if settings.password is not None:
        if not settings.password.get_secret_value():
            raise BadInput("PIPELINE_DASHBOARD__PASSWORD is empty.", "Choose one, or leave it out on 127.0.0.1.")
        return {
            **common,
            "basic_auth": settings.password.get_secret_value(),
            "login_template": door,
        }
    if not (settings.oauth_key and settings.oauth_secret):
        raise BadInput(
            f"OAuth by {settings.oauth_provider} needs a client.",
            "Set PIPELINE_DASHBOARD__OAUTH_KEY and PIPELINE_DASHBOARD__OAUTH_SECRET.",
        )
    return {
        **common,
        "oauth_provider": settings.oauth_provider,
        "oauth_key": settings.oauth_key,
        "oauth_secret": settings.oauth_secret.get_secret_value(),
        "oauth_redirect_uri": settings.oauth_redirect_uri,
    }


def is_here(host: str) -> bool:
    """Can only this machine reach it?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origins(settings: Dashboard) -> list[str]:
    """Addresses that a browser may have the page from: its websocket is refused elsewhere."""
    own = {f"{host}:{settings.port}" for host in ("127.0.0.1", "localhost", settings.host)}
    return sorted(own | {origin for origin in settings.origins.replace(",", " ").split() if origin})
