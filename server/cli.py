"""`lianmo coordinator`: run the platform's coordinator, its relay, and ask how they are."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Run the platform's coordinator.")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@app.command()
def start(
    relay: Annotated[bool, typer.Option(help="Run the relay as a child process.")] = True,
) -> None:
    """Serve the API, Flower's fleet paths and the relay until stopped."""
    import asyncio

    from federation import logs
    from server.config import CoordinatorHome
    from server.coordinator import Coordinator, serve

    home = CoordinatorHome.open()
    logs.configure(file=home.path / "log" / "coordinator.log")

    def ready(relay_address: str) -> None:
        at = f"https://{home.config.host}:{home.config.port}"
        _say(f"coordinator ready at {at}" + (f", relay at {relay_address}" if relay else ""))

    asyncio.run(serve(Coordinator(home, with_relay=relay), ready))


@app.command()
def relay() -> None:
    """Serve the relay alone, for a coordinator that was started with --no-relay."""
    from federation import logs
    from server.config import CoordinatorHome
    from server.relay import main as serve_relay

    home = CoordinatorHome.open()
    logs.configure(file=home.path / "log" / "relay.log")
    certificate, key = home.keyring.tls_files
    arguments = ("--key", key, "--certificate", certificate, "--membership", home.membership)
    address = f"{home.config.host}:{home.config.relay_port}"
    raise typer.Exit(serve_relay(["--address", address, *map(str, arguments)]))


@app.command()
def status(as_json: JsonFlag = False) -> None:
    """Ask the running coordinator of this home how it is."""
    import ssl

    import httpx

    from federation.api import API, Health, JobSummary, OrganisationEntry, Page
    from federation.errors import Unavailable
    from server.config import CoordinatorHome

    home = CoordinatorHome.open()
    context = ssl.create_default_context(cadata=home.keyring.own().ca_certificate)
    context.check_hostname = False  # the authority is this very home's
    context.load_cert_chain(*home.keyring.tls_files)
    url = f"https://{home.config.host}:{home.config.port}{API}"
    try:
        with httpx.Client(verify=context, timeout=10) as client:
            health = Health.model_validate_json(client.get(f"{url}/health").raise_for_status().text)
            found = client.get(f"{url}/organisations").raise_for_status().text
            organisations = Page[OrganisationEntry].model_validate_json(found)
            found = client.get(f"{url}/jobs", params={"limit": 50}).raise_for_status().text
            jobs = Page[JobSummary].model_validate_json(found)
    except httpx.HTTPError as error:
        todo = "start it with `lianmo coordinator start`, or see its log"
        what = f"no answer at {url} ({type(error).__name__})"
        raise Unavailable(what, party=home.org, todo=todo) from None
    answer: dict[str, Any] = {
        "url": url,
        "version": health.version,
        "time": health.time,
        "organisations": {item.org: item.last_seen for item in organisations.items},
        "jobs": {item.job: item.status for item in jobs.items},
    }
    if as_json:
        _say(json.dumps(answer))
        return
    _say(f"coordinator {health.version} at {url}, {health.time}")
    for org, seen in answer["organisations"].items():
        _say(f"  organisation {org:<24} last seen {seen or 'never'}")
    for job, state in answer["jobs"].items():
        _say(f"  job          {job:<24} {state}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
