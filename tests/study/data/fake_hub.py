"""The part of the hub's protocol that a download takes, served from a folder on this machine."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@contextmanager
def fake_hub(folder, repository):
    """Serve ``folder`` as the data set ``repository``; yield the address and the growing list of files sent."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.folder, server.repository, server.sent = folder, repository, []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", server.sent
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, body, headers = self.answer(unquote(urlsplit(self.path).path))
        self.send_response(status)
        for key, value in {**headers, "Content-Length": len(body), "X-Repo-Commit": COMMIT}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, path):
        api = f"/api/datasets/{self.server.repository}"
        resolve = f"/datasets/{self.server.repository}/resolve/{COMMIT}/"
        files = {p.relative_to(self.server.folder).as_posix(): p for p in self.server.folder.rglob("*") if p.is_file()}
        name = path.removeprefix(resolve)
        if path in (api, f"{api}/revision/main"):
            siblings = [{"rfilename": name} for name in files]
            return 200, json.dumps({"id": self.server.repository, "sha": COMMIT, "siblings": siblings}).encode(), {}
        if path == f"{api}/tree/{COMMIT}":
            sizes = {name: file.stat().st_size for name, file in files.items()}
            tree = [{"type": "file", "path": name, "size": size, "oid": oid(name)} for name, size in sizes.items()]
            return 200, json.dumps(tree).encode(), {}
        if path.startswith(resolve) and name in files:
            if self.command == "GET":
                self.server.sent.append(name)
            return 200, files[name].read_bytes(), {"ETag": f'"{oid(name)}"'}
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}

    def log_message(self, *args):
        """Say nothing."""


def oid(name):
    """What tells contents apart; here no file changes."""
    return hashlib.sha1(name.encode()).hexdigest()
