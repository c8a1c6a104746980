"""The part of a model hub's HTTP API that huggingface_hub uses to fetch a model, on loopback.

Serves a directory as the repository org/tiny, and with --token-file also as org/gated for clients with the token.
Standard library only: it runs in the machine, with Debian's Python.
"""

import argparse
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORIES, GATED, REVISION = ("org/tiny", "org/gated"), "org/gated", "a" * 40
PIECE = 1_000_000  # bytes

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("port", type=int)
parser.add_argument("directory", type=Path)
parser.add_argument("--cut-after", type=int, default=0, help="bytes after which each weight file's first download ends")
parser.add_argument("--rate", type=float, default=1e12, help="bytes per second for weight files")
parser.add_argument("--token-file", type=Path, default="/dev/null", help="file with the token for org/gated")
parser.add_argument("--longer", type=int, default=0, help="bytes by which weight files are longer than listed")
parser.add_argument("--endless", action="store_true", help="never end the download of a weight file")
parser.add_argument("--list", default="", help="one more name to list, with Python's escapes")
parser.add_argument("--warning", default="", help="a warning in each answer, with Python's escapes")
parser.add_argument("--error", default="", help="an error instead of any answer, with Python's escapes")
options = parser.parse_args()
token = options.token_file.read_text().strip()
cut: set[str] = set()


def unescaped(text: str) -> str:
    return text.encode().decode("unicode_escape")


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        repository = next((name for name in REPOSITORIES if f"/{name}/" in f"{path}/"), "")
        rest = path.removeprefix("/api/models").removeprefix(f"/{repository}").replace("/main", f"/{REVISION}")
        files = sorted(options.directory.iterdir())
        given = self.headers.get("Authorization", "")
        if options.error:
            self.as_json({"error": unescaped(options.error)}, 400)
        elif not repository:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif repository == GATED and rest and not given:
            # The hub shows everybody that a gated model exists, but not its files.
            self.refuse(401, "GatedRepo", "Access to model org/gated is restricted")
        elif repository == GATED and given not in ("", f"Bearer {token}"):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif rest in ("", f"/revision/{REVISION}"):
            siblings = [{"rfilename": file.name} for file in files]
            self.as_json({"id": repository, "modelId": repository, "sha": REVISION, "siblings": siblings, "tags": []})
        elif rest == f"/tree/{REVISION}":
            more = [{"type": "file", "path": unescaped(options.list), "size": 1, "oid": "0"}] if options.list else []
            self.as_json([*(self.entry(file) for file in files), *more])
        elif (file := options.directory / rest.rpartition("/")[2]) in files:
            self.file(file, body)
        else:
            self.refuse(404, "EntryNotFound", "Entry not found")

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def entry(self, file: Path) -> dict[str, object]:
        content = file.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": file.name, "size": len(content), "oid": oid}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return entry

    def as_json(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if options.warning:
            self.send_header("X-HF-Warning", unescaped(options.warning))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def file(self, file: Path, body: bool) -> None:
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        print(f"{self.command} {file.name} from {first}", flush=True)
        weights = file.suffix == ".safetensors"
        if weights:
            content += b"x" * options.longer
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if weights and options.endless:
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
            return
        while weights and options.endless:
            self.wfile.write(bytes(PIECE))
        last = len(content)
        if options.cut_after and weights and file.name not in cut:
            cut.add(file.name)
            last = first + options.cut_after
            self.close_connection = True
        for begin in range(first, last, PIECE):
            self.wfile.write(content[begin : min(last, begin + PIECE)])
            time.sleep(PIECE / options.rate if weights else 0)

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", options.port), Hub).serve_forever()
