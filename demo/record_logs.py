"""Records demo/access.log from a real nginx on loopback; run once, the result is committed.

Starts the system's nginx with a configuration that answers many statuses, once for each of three time
zones, and sends it requests with the test vocabulary: methods, paths with query strings, referers, user
agents, remote users (basic authentication) and client addresses (X-Forwarded-For, which nginx's realip
module takes from loopback). What nginx itself writes in its built-in combined format is the log.
"""

from __future__ import annotations

import argparse
import base64
import os
import random
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import vocabulary as words

PORT = 18080
ZONES = ("UTC", "America/New_York", "Asia/Kolkata")
CONFIG = """
worker_processes 1;
daemon off;
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log combined;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  set_real_ip_from 127.0.0.1;
  real_ip_header X-Forwarded-For;
  client_max_body_size 1k;
  if_modified_since before;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/www;
    location ~ ^/(orders|checkout|webhooks)/ {{ return 201 "created\\n"; }}
    location ~ ^/(basket|wishlist)/ {{ return 204; }}
    location ~ ^/(offers|brochure)/ {{ return 301 /catalogue/; }}
    location ~ ^/(account|sessions)/ {{ return 302 /signup; }}
    location ~ ^/(invoices|passwords)/ {{ deny all; }}
    location ~ ^/(payments|refunds)/ {{ return 500; }}
    location ~ ^/(imports|exports)/ {{ proxy_pass http://127.0.0.1:9; }}
    location ~ ^/(schedule|timetable)/ {{ return 503; }}
    location ~ ^/(coupons|vouchers)/ {{ return 410; }}
    location ~ ^/(support|helpdesk)/ {{ return 429; }}
    location ~ ^/(vacancies|signup)/ {{ return 400 "bad\\n"; }}
    location ~ ^/(reports|registry)/ {{ auth_basic staff; auth_basic_user_file {folder}/users; }}
  }}
}}
"""


def make_path(rng: random.Random) -> str:
    """A path of the test vocabulary, often with a query string."""
    parts = [rng.choice(words.SECTIONS)]
    parts += [rng.choice(words.ITEMS) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    if rng.random() < 0.3:
        parts.append(str(rng.randint(1, 99999)))
    text = "/" + "/".join(parts) + rng.choice(("", "/", "." + rng.choice(words.EXTENSIONS)))
    if rng.random() < 0.4:
        names = rng.sample(words.PARAMETERS, rng.choice((1, 1, 2, 3)))
        text += "?" + "&".join(f"{name}={make_value(rng)}" for name in names)
    return text


def make_value(rng: random.Random) -> str:
    """A query value."""
    if rng.random() < 0.4:
        return str(rng.randint(0, 5000))
    return rng.choice(("+", "%20", "-")).join(rng.sample(words.VALUES, rng.choice((1, 1, 2))))


def make_agent(rng: random.Random) -> str:
    """A real-world user agent with random version numbers."""
    numbers = {"major": 90, "minor": 20, "build": 7000, "patch": 200}
    return rng.choice(words.AGENTS).format(**{name: rng.randint(1, most) for name, most in numbers.items()})


def make_address(rng: random.Random) -> str:
    """A client address: IPv4, or now and then IPv6."""
    if rng.random() < 0.9:
        return ".".join(str(rng.randint(1, 254)) for _ in range(4))
    return f"2001:db8:{rng.getrandbits(16):x}:{rng.getrandbits(16):x}::{rng.getrandbits(16):x}"


def make_headers(rng: random.Random) -> list[str]:
    """The headers of one request."""
    headers = ["Host: shop.example.com", f"X-Forwarded-For: {make_address(rng)}", "Connection: close"]
    if rng.random() < 0.95:
        headers.append(f"User-Agent: {make_agent(rng)}")
    if rng.random() < 0.55:
        tail = make_path(rng) if rng.random() < 0.6 else "/"
        headers.append(f"Referer: https://{rng.choice(words.SITES)}{tail}")
    if rng.random() < 0.3:
        token = base64.b64encode(f"{rng.choice(words.USERS)}:secret".encode()).decode()
        headers.append(f"Authorization: Basic {token}")
    if rng.random() < 0.12:
        headers.append("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT")
    elif rng.random() < 0.08:
        headers.append(f"Range: bytes=0-{rng.randint(1, 900)}")
    return headers


def make_request(rng: random.Random, files: list[str]) -> bytes:
    """One HTTP request: half of the time for a file that exists."""
    path = rng.choice(files) if rng.random() < 0.5 else make_path(rng)
    method = rng.choice(("GET",) * 8 + ("POST", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))
    protocol = rng.choice(("HTTP/1.1",) * 4 + ("HTTP/1.0",))
    headers = make_headers(rng)
    body = ""
    if method in ("POST", "PUT", "PATCH"):
        body = "x" * rng.choice((0, 20, 300, 5000))
        headers.append(f"Content-Length: {len(body)}")
    return ("\r\n".join([f"{method} {path} {protocol}", *headers]) + "\r\n\r\n" + body).encode()


def send(request: bytes) -> None:
    """Sends the request and reads the whole answer."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as connection:
        connection.sendall(request)
        while connection.recv(65536):
            pass


def prepare(folder: Path, rng: random.Random) -> list[str]:
    """Writes nginx's configuration and its files; the paths of the files."""
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=PORT))
    users = "".join(f"{user}:{{PLAIN}}secret\n" for user in words.USERS[:9])
    (folder / "users").write_text(users)
    paths = []
    for _ in range(300):
        path = make_path(rng).partition("?")[0].rstrip("/")
        file = folder / "www" / path[1:]
        if any(parent.is_file() for parent in file.parents) or file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * int(10 ** rng.uniform(0, 5.5)))
        paths.append(path)
    return paths


def record_zone(folder: Path, zone: str, rng: random.Random, count: int, pause: float) -> None:
    """Runs nginx in one time zone and sends it that many requests."""
    files = prepare(folder, rng)
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, env={**os.environ, "TZ": zone}) as server:
        time.sleep(1.0)
        try:
            for _ in range(count):
                send(make_request(rng, files))
                time.sleep(rng.expovariate(1.0 / pause))
        finally:
            server.terminate()


def main() -> None:
    """Records the log, one third in each time zone."""
    parser = argparse.ArgumentParser(description="Record an access log from a local nginx.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "access.log")
    parser.add_argument("--lines", type=int, default=900)
    parser.add_argument("--pause", type=float, default=0.15, help="mean seconds between requests")
    parser.add_argument("--seed", type=int, default=4711)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    lines: list[str] = []
    for zone in ZONES:
        with tempfile.TemporaryDirectory() as folder:
            record_zone(Path(folder), zone, rng, options.lines // len(ZONES), options.pause)
            lines += (Path(folder) / "access.log").read_text(encoding="utf-8").splitlines()
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
