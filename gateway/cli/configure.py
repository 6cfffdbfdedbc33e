# SPDX-License-Identifier: GPL-2.0-or-later
"""``gateway init``, ``check``, ``doctor`` and ``token``: write a configuration, check it and what
it names, make tokens for the HTTP API.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import click

from gateway.cli import CONFIG, examples

_SERVERS = {
    "emulator": "ws://127.0.0.1:8765/v1/realtime",
    "openai": "wss://api.openai.com/v1/realtime",
}
_KINDS = ("softphone", "pbx", "trunk")

_CONFIG = """\
# Written by `gateway init`; docs/configuration.md has every key. Paths are relative to this file.
# Any string may hold ${{env:NAME}}, ${{env:NAME:-default}} or ${{file:PATH}}.

[sip]
listen = [{listen}]
rtp_ports = [20000, 29999]             # UDP, two ports per call: open them in the firewall
public_address = ""                    # the address that others see, when behind NAT
max_calls = 100                        # more are answered with 503

[realtime]
url = {url}
{key}model = {model}

[dialplan]
folder = "dialplans"                   # every *.toml in it, in the order of the file names

[control]
socket = "gateway.sock"                # for gateway status, calls, transcript, say and others

[records]
folder = "records"                     # a JSON file for each call: gateway timeline
{trunk}"""

_PBX = """
# The PBX: calls from this address get in, all others are rejected. On an Asterisk see
# deploy/asterisk/README.md.
[[trunk]]
name = "pbx"
peers = [{peer}]
"""

_TRUNK = """
# The carrier: the gateway registers there, and calls that come from it get in.
[[trunk]]
name = "carrier"
registrar = {registrar}
username = {username}
password = "${{env:{password}}}"
"""

_ROUTE = """\
# Which calls the agent answers, and how. docs/dialplans.md has every key; the first route that
# matches wins. Try it without a call: gateway route-test --to {number}

[[route]]
name = "agent"
to = {pattern}

# The session object of the realtime API, passed on as it is. The gateway adds type, model and the
# audio formats (the codec of the call).
[route.session]
instructions = \"\"\"
You are the receptionist of a small company. You are on the telephone: answer in one or two short
sentences, in the caller's language. When the caller is done, say goodbye and end the call.
\"\"\"
audio.output.voice = "marin"

# What the model says as soon as the call is answered.
[route.greeting]
say = "Good morning. How can I help?"
"""


def _variable(_context: object, _parameter: object, value: str) -> str:
    """Return the name of an environment variable. Raises BadParameter."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise click.BadParameter("is no name of an environment variable; the secret stands in that")
    return value


@click.command(
    "init",
    epilog=examples(
        "gateway init",
        "gateway init --kind pbx --host 192.0.2.10 --number 100 --server openai",
        "gateway init --kind trunk --host sip.example.net --username 4930123 --number +4930123",
    ),
)
@click.option("--kind", type=click.Choice(_KINDS), help="Where calls come from.")
@click.option("--host", help="Address of the PBX, or host of the carrier's registrar.")
@click.option("--username", help="User name at the carrier.")
@click.option(
    "--password-env", metavar="NAME", default="SIP_PASSWORD", show_default=True,
    callback=_variable,
    help="Environment variable with the password at the carrier.",
)  # fmt: skip
@click.option("--number", "numbers", multiple=True, help="Number that the agent answers.")
@click.option("--server", metavar="URL", help="emulator, openai, or the URL of a realtime server.")
@click.option("--model", default="gpt-realtime-2.1", show_default=True)
@click.option(
    "--key-env", metavar="NAME", default="OPENAI_API_KEY", show_default=True,
    callback=_variable,
    help="Environment variable with the API key of the server.",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(),
    help="Where gateway.toml is written. Default: here.",
)  # fmt: skip
def init(
    kind: str | None,
    host: str | None,
    username: str | None,
    password_env: str,
    numbers: tuple[str, ...],
    server: str | None,
    model: str,
    key_env: str,
    folder: Path,
) -> None:
    """Write gateway.toml and dialplans/10-agent.toml, and check them.

    On a terminal, asks for what the options leave open. Existing files are never overwritten.
    Exit 0, or 2 when the check finds something to do.
    """
    config, route = folder / "gateway.toml", folder / "dialplans" / "10-agent.toml"
    for file in (config, route):
        if file.exists():
            raise click.ClickException(f"{file} exists; nothing was written")
    kind = kind or _ask("Calls from a softphone, a pbx, or a trunk?", "softphone", _KINDS)
    listen, trunk, hint = "udp:127.0.0.1:5060", "", ""
    if kind == "pbx":
        address = _address(host or _ask("Address of the PBX?"))
        trunk = _PBX.format(peer=json.dumps(address))
        listen, hint = _beside_pbx(address)
    elif kind == "trunk":
        listen = "udp:0.0.0.0:5060"
        registrar = host or _ask("Host of the carrier's registrar?")
        username = username or _ask("User name there?")
        trunk = _TRUNK.format(
            registrar=json.dumps(registrar), username=json.dumps(username), password=password_env
        )
    numbers = numbers or (_ask("Number that the agent answers?", "100"),)
    numbers = tuple(map(_number, numbers))
    server = server or _ask("Server: emulator, openai, or a URL?", "emulator")
    url = _SERVERS.get(server, server)
    if "://" not in url:
        raise click.UsageError(f"{server!r} is none of {', '.join(_SERVERS)}, and no URL")
    local = (url.split("://")[-1]).startswith(("127.", "localhost", "[::1]"))
    key = "" if local else f'api_key = "${{env:{key_env}}}"\n'
    text = _CONFIG.format(
        listen=json.dumps(listen),
        url=json.dumps(url),
        key=key,
        model=json.dumps(model),
        trunk=trunk,
    )
    pattern = "|".join(map(re.escape, numbers))
    pattern = f"^({pattern})$" if len(numbers) > 1 else f"^{pattern}$"
    dialplan = _ROUTE.format(number=numbers[0], pattern=json.dumps(pattern))
    try:
        route.parent.mkdir(parents=True, exist_ok=True)
        _write(config, text)
        _write(route, dialplan)
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    click.echo(f"Written: {config}, {route}")
    _check(config)
    if hint:
        click.echo(hint)
    if local:
        start = ": gateway emulator" if server == "emulator" else ""
        click.echo(f"Nothing answers calls before a server is at {url}{start}")


def _ask(question: str, default: str | None = None, choices: tuple[str, ...] = ()) -> str:
    """Ask on the terminal; without one return the default, or raise UsageError."""
    if not sys.stdin.isatty():
        if default is None:
            raise click.UsageError(f"{question} Give the option; there is no terminal to ask on")
        return default
    kind = click.Choice(choices) if choices else None
    return str(click.prompt(question, default=default, type=kind))


def _number(text: str) -> str:
    """Return a number as it stands in a call, without what people put between its digits."""
    number = re.sub(r"[\s()/]|(?<=\d)-(?=\d)", "", text)
    if not re.fullmatch(r"[!-~]+", number) or "@" in number:
        raise click.UsageError(f"{text!r} is no number; as it is dialled, like +4930123 or 100")
    return number


def _address(host: str) -> str:
    """Return the IP address of ``host``: trunks by address are known by that only."""
    bare = re.sub(r"^sips?:", "", host)
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    if re.fullmatch(r"[^:]+:\d+|\[.*|.*/.*", bare):
        raise click.UsageError(f"{host!r}: address or name alone, without a port or network")
    try:
        return str(socket.getaddrinfo(bare, None, type=socket.SOCK_DGRAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise click.ClickException(f"{host} cannot be resolved: {why}") from None


def _beside_pbx(address: str) -> tuple[str, str]:
    """Return where to listen for a PBX at this IP address, and what the PBX has to know of it."""
    everywhere, shown = ("[::]", f"[{address}]") if ":" in address else ("0.0.0.0", address)
    if not _is_ours(address):
        return f"udp:{everywhere}:5060", ""
    return f"udp:{shown}:5080", (
        "The PBX is on this machine and has port 5060, so the gateway takes 5080; "
        f"on an Asterisk: contact = sip:{shown}:5080, match = {address}"
    )


def _is_ours(address: str) -> bool:
    """Return whether an IP address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.bind((address, 0))
        except OSError:
            return False
    return True


def _write(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8") as opened:
        opened.write(text)


def _check(config: Path) -> None:
    """Check the new configuration and exit with its status."""
    from gateway.planning.check import check

    status, lines = check(config)
    for line in lines:
        click.echo(line, err=status != 0)
    if status:
        click.echo(f"Then: gateway check -c {config}", err=True)
        sys.exit(status)
    click.echo(f"Next: gateway doctor -c {config}, then gateway run -c {config}")


@click.command("check", epilog=examples("gateway check -c gateway.toml"))
@CONFIG
def check_command(config: Path) -> None:
    """Check the configuration and its dialplans, without network access.

    Prints `file:line: key: message` for each problem and exits with 2; otherwise prints a summary
    with notes on settings that are seldom meant, and exits with 0.
    """
    from gateway.planning.check import check

    status, lines = check(config)
    for line in lines:
        click.echo(line, err=status != 0)
    sys.exit(status)


@click.command(
    "doctor",
    epilog=examples(
        "gateway doctor -c gateway.toml", "gateway doctor --trunk carrier --call +4930123456"
    ),
)
@CONFIG
@click.option("--trunk", "trunks", multiple=True, metavar="NAME", help="Examine this trunk only.")
@click.option(
    "--call", "number", default="", metavar="NUMBER", help="Call it; else trunk.test_number."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 600),
    default=8.0,
    show_default=True,
    help="Length of that call; 40 show who hangs up after 32 s.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON array.")
def doctor(
    config: Path, trunks: tuple[str, ...], number: str, seconds: float, as_json: bool
) -> None:
    """Check host, pjsua2 build, configuration, realtime servers and trunks; print fixes.

    Nothing is changed and no call is placed; one session is opened at each realtime server, and
    each trunk is asked once. Exit 0, or 1 when something is bad.

    With --trunk, that trunk is examined: it registers where no gateway runs, and calls a test
    number that [outbound] permits, such as an echo. Every fault comes with the SIP messages that
    prove it and the setting to change.
    """
    from gateway.devtools.doctor import Verdict, lines
    from gateway.devtools.doctor.examine import examine, examine_calls

    if number and not trunks:
        raise click.UsageError("--call needs --trunk: through whom to call")
    if trunks:
        import structlog

        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
        try:
            findings = examine_calls(config, trunks, number, seconds)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    else:
        findings = list(examine(config))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for line in lines(findings):
            click.echo(line)
    sys.exit(any(finding.verdict is Verdict.BAD for finding in findings))


@click.group("token", epilog=examples("gateway token create --name dashboard --role readonly"))
def token() -> None:
    """Make tokens for the HTTP API."""


def _token_name(_context: object, _parameter: object, value: str) -> str:
    """Return a name that ``[[api.token]]`` may have. Raises BadParameter."""
    from gateway.config.values import name_of

    try:
        return name_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@token.command("create", epilog=examples("gateway token create --name ops --role admin"))
@click.option("--name", required=True, callback=_token_name, help="Who uses it, as the log shows.")
@click.option(
    "--role",
    type=click.Choice(["application", "readonly", "operator", "admin"]),
    default="readonly",
    show_default=True,
    help="What it allows.",
)
def create(name: str, role: str) -> None:
    """Print a new token and its lines for the configuration.

    The token goes to standard output, once: it is kept nowhere. The lines, which have its hash
    only, go to standard error.
    """
    from gateway.api.backend import hash_of, new_token

    secret = new_token()
    click.echo(secret)
    lines = ["[[api.token]]", f'name = "{name}"', f'role = "{role}"', f'hash = "{hash_of(secret)}"']
    click.echo("\n".join(["", "# for gateway.toml:", *lines]), err=True)
