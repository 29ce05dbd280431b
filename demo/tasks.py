"""The training generator of the demo model: web-server log lines to JSON, and questions about tables.

An access-log task shows one line in nginx's combined format and asks some of its ten fields as compact
JSON, in the order asked; status and bytes are numbers, the rest strings. A table task shows records of
one table, a record a line as `key: Mr Example | field: value`, and asks one field of one record by its
key; in training many questions follow one table as a conversation. All words come from words.py, so
paths, agents, table names, keys and values here are disjoint from the committed test set. The wording of
the prompts (`log_prompt`, `table_prompt`) is shared with build_requests.py.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from words import digits, letters, lower, mixed, title

FIELDS = ("ip", "user", "time", "method", "path", "protocol", "status", "bytes", "referer", "agent")
NUMBERS = ("status", "bytes")
METHODS = ("GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
STATUSES = (200, 200, 200, 201, 204, 206, 301, 302, 304, 307, 400, 401, 403, 404, 404, 405, 410, 429, 500, 502, 503)
MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
LOG_WORDINGS = ("Give {fields} of this log line as JSON:\n{line}", "Log line to JSON with {fields}:\n{line}")
QUESTIONS = ("What is the {field} of {key}?", "Give the {field} of {key}.")

VERSION = re.compile(r"\d+(?:[._]\d+)*")

Record = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Conversation:
    """Turns behind an optional system message."""

    turns: tuple[Turn, ...]
    system: str | None = None


def log_line(record: Record) -> str:
    """The record as nginx's combined format writes it."""
    return (
        f'{record["ip"]} - {record["user"]} [{record["time"]}] "{record["method"]} {record["path"]} '
        f'{record["protocol"]}" {record["status"]} {record["bytes"]} "{record["referer"]}" "{record["agent"]}"'
    )


def log_answer(record: Record, fields: Sequence[str]) -> str:
    """The asked fields as one line of compact JSON."""
    values = {name: int(record[name]) if name in NUMBERS else record[name] for name in fields}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)


def log_prompt(rng: random.Random, line: str, fields: Sequence[str]) -> str:
    """The user message of an access-log task."""
    return rng.choice(LOG_WORDINGS).format(fields=", ".join(fields), line=line)


def pick_fields(rng: random.Random) -> list[str]:
    """One to ten fields, three to five most often, in random order."""
    count = rng.choice((1, 2, 3, 3, 4, 4, 5, 5, 6, 8, 10))
    return rng.sample(FIELDS, count)


def ip_address(rng: random.Random) -> str:
    """An IPv4 address, or now and then an IPv6 one."""
    if rng.random() < 0.85:
        return ".".join(str(rng.randint(0, 255)) for _ in range(4))
    groups = [f"{rng.getrandbits(16):x}" for _ in range(rng.randint(2, 7))]
    cut = rng.randint(1, len(groups))
    return ":".join(groups[:cut]) + "::" + ":".join(groups[cut:])


def timestamp(rng: random.Random) -> str:
    """A time in nginx's $time_local form."""
    day, month, year = rng.randint(1, 31), rng.choice(MONTHS), rng.randint(2000, 2039)
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    zone = "+0000" if rng.random() < 0.6 else f"{rng.choice('+-')}{rng.randint(0, 12):02}{rng.choice((0, 30)):02}"
    return f"{day:02}/{month}/{year}:{clock} {zone}"


def slug(rng: random.Random) -> str:
    """One path segment or query value."""
    draw = rng.random()
    if draw < 0.40:
        return lower(rng)
    if draw < 0.60:
        return rng.choice("-_.").join(lower(rng) for _ in range(rng.randint(2, 3)))
    if draw < 0.75:
        return digits(rng, 1, 6)
    if draw < 0.85:
        return f"{rng.getrandbits(rng.choice((16, 32, 48))):x}"
    if draw < 0.95:
        return mixed(rng) + rng.choice(("", "-", "~", "%20", "+", "@", ",")) + digits(rng, 1, 3)
    return f"%{rng.randint(128, 255):02X}%{rng.randint(128, 255):02X}" + lower(rng)


def path(rng: random.Random) -> str:
    """A request path, often with an extension, a trailing slash or a query string."""
    if rng.random() < 0.04:
        return "/"
    text = "".join("/" + slug(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5))))
    draw = rng.random()
    if draw < 0.35:
        text += "." + letters(rng, 2, 4).lower()
    elif draw < 0.50:
        text += "/"
    if rng.random() < 0.35:
        pairs = (f"{lower(rng)}={slug(rng)}" for _ in range(rng.choice((1, 1, 2, 3))))
        text += "?" + "&".join(pairs)
    return text


def host(rng: random.Random) -> str:
    """A host name of two or three labels, sometimes with a port."""
    labels = [slug(rng) if rng.random() < 0.2 else lower(rng) for _ in range(rng.choice((1, 1, 2)))]
    port = f":{rng.randint(80, 9999)}" if rng.random() < 0.1 else ""
    return ".".join([*labels, letters(rng, 2, 4).lower()]) + port


def referer(rng: random.Random) -> str:
    """No referer, or a web address."""
    if rng.random() < 0.45:
        return "-"
    tail = path(rng) if rng.random() < 0.7 else "/"
    return f"{rng.choice(('http', 'https', 'https'))}://{host(rng)}{tail}"


def version(rng: random.Random) -> str:
    """A version number of one to four parts."""
    joiner = "_" if rng.random() < 0.1 else "."
    return joiner.join(digits(rng, 1, 3) for _ in range(rng.choice((1, 2, 2, 3, 4))))


def comment_part(rng: random.Random) -> str:
    """One piece of an agent's parenthesised comment."""
    draw = rng.random()
    if draw < 0.30:
        return mixed(rng)
    if draw < 0.60:
        return " ".join(mixed(rng) for _ in range(rng.randint(2, 4))) + rng.choice(("", " " + version(rng)))
    if draw < 0.80:
        return mixed(rng) + rng.choice((" ", ":", "/", "-")) + version(rng)
    if draw < 0.90:
        return f"{letters(rng, 1, 3)}{digits(rng, 1, 3)}_{digits(rng, 2, 2)}"
    return f"+http://{host(rng)}{path(rng) if rng.random() < 0.5 else ''}"


def comment(rng: random.Random) -> str:
    """An agent's parenthesised comment."""
    joiner = rng.choice(("; ", "; ", ", "))
    return "(" + joiner.join(comment_part(rng) for _ in range(rng.choice((1, 2, 2, 3, 4)))) + ")"


def product(rng: random.Random) -> str:
    """A product token such as Name/1.2."""
    name = mixed(rng) if rng.random() < 0.8 else f"{mixed(rng)}-{mixed(rng)}"
    return f"{name}/{version(rng)}" if rng.random() < 0.9 else name


BROWSERS: tuple[tuple[Callable[[random.Random], str], ...], ...] = (
    (product, comment, product, comment, product, product),
    (product, comment, product, comment, product, product, product),
    (product, comment, product, product),
    (product, comment),
)


def echo(rng: random.Random, text: str) -> str:
    """The text with one of its version numbers in several places, as browsers repeat theirs."""
    found = VERSION.findall(text)
    if not found:
        return text
    shared = rng.choice(found)
    other = shared.replace(".", "_") if rng.random() < 0.3 else shared
    return VERSION.sub(lambda match: rng.choice((match[0], shared, other)), text)


def agent(rng: random.Random) -> str:
    """No agent, one product, or a browser-like string of products and comments."""
    draw = rng.random()
    if draw < 0.05:
        return "-"
    if draw < 0.30:
        return product(rng)
    if draw < 0.60:
        makers = rng.choice(BROWSERS)
    else:
        makers = (product, *rng.choices((product, comment), k=rng.choice((1, 1, 2, 3, 4, 5))))
    text = " ".join(make(rng) for make in makers)
    return echo(rng, text) if rng.random() < 0.6 else text


def short(rng: random.Random, make: Callable[[random.Random], str], limit: int) -> str:
    """A draw of `make` of at most `limit` characters."""
    while len(text := make(rng)) > limit:
        pass
    return text


def log_record(rng: random.Random, limit: int) -> Record:
    """One made-up request as the log would show it; paths and referers have at most `limit` characters."""
    size = 0 if rng.random() < 0.1 else int(10 ** rng.uniform(0, 6.5))
    user = "-" if rng.random() < 0.65 else lower(rng) + rng.choice(("", "", digits(rng, 1, 3), "." + lower(rng)))
    return {
        "ip": ip_address(rng),
        "user": user,
        "time": timestamp(rng),
        "method": rng.choice(METHODS),
        "path": short(rng, path, limit),
        "protocol": rng.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0")),
        "status": str(rng.choice(STATUSES) if rng.random() < 0.8 else rng.randint(100, 599)),
        "bytes": str(size),
        "referer": short(rng, referer, limit),
        "agent": short(rng, agent, limit * 2),
    }


def system_message(rng: random.Random) -> str | None:
    """No system message, or one made of random words."""
    if rng.random() < 0.9:
        return None
    return " ".join([title(rng), *(lower(rng) for _ in range(rng.randint(2, 12)))]) + "."


def log_task(rng: random.Random, limit: int = 90) -> Conversation:
    """One access-log line, some of its fields, and the answer."""
    record, fields = log_record(rng, limit), pick_fields(rng)
    turn = Turn(log_prompt(rng, log_line(record), fields), log_answer(record, fields))
    return Conversation((turn,), system_message(rng))
