"""A Hugging Face Hub and a public bucket on loopback: python hub_server.py FOLDER; prints its port.

FOLDER/hub/OWNER/REPO/BRANCH/ has the files of a branch; FOLDER/s3/BUCKET/ those of a bucket. The commit of a branch is
a digest of its files. Requests are logged to FOLDER/log.jsonl. FOLDER/faults.json changes answers, by name of file:
it comes after `seconds`; after `sends` bytes the connection hangs; it is cut to `truncated` bytes, of a size that was
announced before.
"""

import hashlib
import json
import sys
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 100_000
"""Bytes from which the hub keeps a file in a store elsewhere, and names it by its SHA-256."""


def commit_of(branch):
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(branch.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(branch)).encode() + path.read_bytes())
    return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder, *arguments):
        self.folder = folder
        super().__init__(*arguments)

    def log_message(self, *_arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0].replace("%2F", "/")
        entry = {"method": self.command, "path": path, "range": self.headers.get("Range")}
        entry["authorization"] = self.headers.get("Authorization")
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        words = path.strip("/").split("/")
        if words[2:3] == ["resolve"]:
            self.resolve(words)
        else:
            is_hub = words[0] == "stored"
            file = self.folder / ("hub" if is_hub else "s3") / "/".join(words[is_hub:])
            if file.is_file():
                self.send_file(file, {"ETag": '"bucket"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})
            else:
                self.refuse({})

    def resolve(self, words):
        repo = self.folder / "hub" / words[0] / words[1]
        if not repo.is_dir():
            return self.refuse({"X-Error-Code": "RepoNotFound"})
        branches = {branch.name: branch for branch in repo.iterdir()}
        branches |= {commit_of(branch): branch for branch in repo.iterdir()}
        if words[3] not in branches:
            return self.refuse({"X-Error-Code": "RevisionNotFound"})
        branch = branches[words[3]]
        commit = {"X-Repo-Commit": commit_of(branch)}
        file = branch / "/".join(words[4:])
        if not file.is_file():
            return self.refuse({"X-Error-Code": "EntryNotFound", **commit})
        content = file.read_bytes()
        if len(content) < LARGE:
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            return self.send_file(file, {"ETag": f'"{etag}"', **commit})
        sha256 = hashlib.sha256(content).hexdigest()
        self.send_response(302)
        stored = f"http://localhost:{self.server.server_port}/stored/{file.relative_to(self.folder / 'hub')}"
        headers = {"Location": stored, "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), **commit}
        return self.reply(headers | {"Content-Length": "0"})

    def refuse(self, headers):
        self.send_response(404)
        self.reply({"Content-Length": "0", **headers})

    def reply(self, headers):
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_file(self, file, headers):
        faults = self.folder / "faults.json"
        fault = json.loads(faults.read_text()).get(file.name, {}) if faults.exists() else {}
        content = file.read_bytes()
        if self.command == "GET":
            content = content[: fault.get("truncated")]
        first, last = 0, len(content) - 1
        if self.headers.get("Range"):
            begin, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
            if first > last:
                self.send_response(416)
                return self.reply({"Content-Length": "0"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send_response(206 if self.headers.get("Range") else 200)
        self.reply(headers | {"Content-Length": str(last + 1 - first), "Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return None
        time.sleep(fault.get("seconds", 0))
        sends = fault.get("sends")
        self.wfile.write(content[first : last + 1][:sends])
        self.wfile.flush()
        if sends is not None:
            time.sleep(600)
        return None


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Path(sys.argv[1])))
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
