"""A file server on this machine that can misbehave in every way that real ones do."""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")


@dataclass
class Served:
    """One file and how it is served.

    Attributes:
      content: the whole file.
      ranges: answer Range requests with 206.
      etag: strong ETag, "" for none.
      length: send Content-Length.
      cuts: bytes after which the n-th answer breaks off; None (or the list's end): send all.
      stalls: as `cuts`, but the connection stays open and silent.
      statuses: statuses of the first answers, before the file is served.
      slow_s: wait between pieces of 64 KiB.
      location: redirect there.
      encoding: a Content-Encoding header, true or not.
      needs: the Authorization header that must come; others get 401. "" for none.
    """

    content: bytes = b""
    ranges: bool = True
    etag: str = ""
    length: bool = True
    cuts: list[int | None] = field(default_factory=list)
    stalls: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    slow_s: float = 0.0
    location: str = ""
    encoding: str = ""
    needs: str = ""

    @property
    def sha256(self) -> str:
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


class LoopbackServer:
    """`with LoopbackServer() as server: server.files["/a.zip"] = Served(...)`; `requests` is what was asked."""

    def __enter__(self):
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                owner._answer(self)

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner._answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for a file, None where it had none."""
        return [headers.get("range") for asked, headers in self.requests if asked == path]

    def _answer(self, handler):
        path = handler.path.partition("?")[0]
        self.requests.append((path, {key.lower(): value for key, value in handler.headers.items()}))
        served = self.files.get(path)
        if served is None:
            return handler.send_error(404)
        if served.needs and handler.headers.get("Authorization") != served.needs:
            return handler.send_error(401)
        if served.statuses:
            return handler.send_error(served.statuses.pop(0))
        if served.location:
            handler.send_response(302)
            handler.send_header("Location", served.location)
            handler.send_header("Content-Length", "0")
            return handler.end_headers()
        content, start = served.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        condition = handler.headers.get("If-Range")
        if asked and served.ranges and condition in (None, served.etag):
            start = int(asked[1])
            if start >= len(content):
                return handler.send_error(416)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Accept-Ranges", "bytes" if served.ranges else "none")
        if served.encoding:
            handler.send_header("Content-Encoding", served.encoding)
        if served.etag:
            handler.send_header("ETag", served.etag)
        if served.length:
            handler.send_header("Content-Length", str(len(content) - start))
        cut = served.cuts.pop(0) if served.cuts else None
        stall = served.stalls.pop(0) if served.stalls else None
        end = min(value for value in (cut, stall, len(content) - start) if value is not None)
        try:
            handler.end_headers()
            for at in range(start, start + end, 1 << 16):
                handler.wfile.write(content[at : min(at + (1 << 16), start + end)])
                time.sleep(served.slow_s)
            handler.wfile.flush()
        except OSError:
            return None  # whoever asked has gone, or was killed
        if stall is not None:
            self.closing.wait(60)
        handler.close_connection = True


def as_json(content: dict) -> Served:
    return Served(json.dumps(content).encode())
