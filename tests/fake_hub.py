"""The part of a model hub's HTTP API that huggingface_hub uses to fetch a model, on loopback.

Usage: fake_hub.py PORT DIRECTORY [CUT_AFTER]

Serves DIRECTORY as the repository org/tiny. The first download of each weight file ends after CUT_AFTER bytes, as when
a line breaks. Standard library only: it runs in the machine, with Debian's Python.
"""

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY, REVISION = "org/tiny", "a" * 40
PORT, DIRECTORY = int(sys.argv[1]), Path(sys.argv[2])
CUT_AFTER = int(sys.argv[3]) if len(sys.argv) > 3 else 0
cut: set[str] = set()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPOSITORY}":
            self.as_json({"id": REPOSITORY, "modelId": REPOSITORY, "sha": REVISION, "siblings": [], "tags": []})
        elif path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
            self.as_json([self.entry(file) for file in sorted(DIRECTORY.iterdir())])
        elif path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/"):
            self.file(DIRECTORY / path.rpartition("/")[2], body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entry(self, file: Path) -> dict[str, object]:
        content = file.read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": file.name, "size": len(content), "oid": oid}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
        return entry

    def as_json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def file(self, file: Path, body: bool) -> None:
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        print(f"{self.command} {file.name} from {first}", flush=True)
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
            return
        if CUT_AFTER and file.suffix == ".safetensors" and file.name not in cut:
            cut.add(file.name)
            self.wfile.write(content[first : first + CUT_AFTER])
            self.close_connection = True
            return
        self.wfile.write(content[first:])

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("127.0.0.1", PORT), Hub).serve_forever()
