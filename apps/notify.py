"""Messages to people: mail by SMTP, and Slack by a webhook. Each raises what it could not do; callers retry."""

import http.client
import ipaddress
import json
import smtplib
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any

from pipeline.errors import AccessDenied, BadInput, Unreachable
from pipeline.settings import Notify

TIMEOUT_S = 10.0


def mail(settings: Notify, message: EmailMessage) -> None:
    """Send it. Raises Unreachable where trying again may help, AccessDenied and BadInput where it does not."""
    where = f"{settings.smtp_host}:{settings.smtp_port}"
    if settings.smtp_password and settings.smtp_tls == "none" and not _here(settings.smtp_host or ""):
        raise BadInput(
            f"The password for {where} would go over the network in plain text.",
            "Set PIPELINE_NOTIFY__SMTP_TLS to starttls or tls.",
        )
    try:
        with _connected(settings) as server:
            if settings.smtp_user and settings.smtp_password:
                server.login(settings.smtp_user, settings.smtp_password.get_secret_value())
            refused = server.send_message(message)
    except (smtplib.SMTPAuthenticationError, smtplib.SMTPNotSupportedError) as error:
        raise AccessDenied(
            f"{where} does not let us in: {error}",
            "Check PIPELINE_NOTIFY__SMTP_USER, __SMTP_PASSWORD and __SMTP_TLS.",
        ) from error
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused) as error:
        raise BadInput(
            f"{where} refuses the mail: {error}", "Check PIPELINE_NOTIFY__MAIL_FROM and PIPELINE_NOTIFY__MAIL_TO."
        ) from error
    except (OSError, smtplib.SMTPException) as error:
        raise Unreachable(
            f"The mail could not be given to {where}: {error}", "Check PIPELINE_NOTIFY__SMTP_HOST and __SMTP_PORT."
        ) from error
    if refused:
        raise BadInput(
            f"{where} took the mail, but not for {', '.join(sorted(refused))}.", "Check PIPELINE_NOTIFY__MAIL_TO."
        )


def _connected(settings: Notify) -> smtplib.SMTP:
    host, port = settings.smtp_host or "", settings.smtp_port
    if settings.smtp_tls == "tls":
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
    server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    if settings.smtp_tls == "starttls":
        try:
            server.starttls(context=ssl.create_default_context())
        except BaseException:
            server.close()
            raise
    return server


def slack(settings: Notify, payload: Mapping[str, Any]) -> None:
    """Post it. Raises as `mail`; the webhook's address, which is a secret, stands in no error."""
    assert settings.slack_webhook
    address = settings.slack_webhook.get_secret_value()
    host = urllib.parse.urlsplit(address).hostname or ""
    if not address.startswith("https://") and not (address.startswith("http://") and _here(host)):
        raise BadInput("The Slack webhook is not an https address.", "Correct PIPELINE_NOTIFY__SLACK_WEBHOOK.")
    request = urllib.request.Request(
        address, json.dumps(payload).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(200).decode(errors="replace")
        if error.code == 429 or error.code >= 500:
            raise Unreachable(f"Slack did not take the message: {error.code} {said}") from error
        raise AccessDenied(
            f"Slack refuses the message: {error.code} {said}", "Check PIPELINE_NOTIFY__SLACK_WEBHOOK."
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"Slack does not answer: {getattr(error, 'reason', error)}", "Check PIPELINE_NOTIFY__SLACK_WEBHOOK."
        ) from error


def _here(host: str) -> bool:
    """This machine, where nobody listens in?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
