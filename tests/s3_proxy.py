"""A proxy on loopback in front of an S3 server: python s3_proxy.py URL FOLDER; prints its own URL.

Requests are logged to FOLDER/log.jsonl. While FOLDER/trouble exists, with the words STATUS TEXT, requests whose method
and path contain the text are answered with the status; with 0, the connection is closed without an answer, and with 1
only when the trouble is over.
"""

import http.client
import json
import sys
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ERRORS = {503: "SlowDown", 403: "AccessDenied"}
OWN = ("connection", "transfer-encoding", "content-length")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server, folder, *arguments):
        self.target, self.folder = server, folder
        super().__init__(*arguments)

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        trouble = self.folder / "trouble"
        status, _, text = (trouble.read_text() if trouble.exists() else "").partition(" ")
        refused = bool(status) and text in f"{self.command} {self.path}"
        entry = {"request": f"{self.command} {self.path}", "headers": dict(self.headers), "refused": refused}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        if refused:
            self.refuse(int(status))
            return
        connection = http.client.HTTPConnection(self.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        found = connection.getresponse()
        content, size = found.read(), found.getheader("content-length")
        kept = [(name, value) for name, value in found.getheaders() if name.lower() not in OWN]
        self.respond(found.status, kept, content, size if self.command == "HEAD" else None)
        connection.close()

    def refuse(self, status):
        if status > 1:
            self.respond(status, [], f"<Error><Code>{ERRORS[status]}</Code></Error>".encode())
        else:
            while status and (self.folder / "trouble").exists():
                time.sleep(0.1)
            self.close_connection = True

    def respond(self, status, headers, content, size=None):
        self.send_response(status)
        for name, value in (*headers, ("content-length", size or str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    handler = partial(Handler, urlsplit(sys.argv[1]).netloc, Path(sys.argv[2]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        sys.stdout.write(f"http://127.0.0.1:{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()
