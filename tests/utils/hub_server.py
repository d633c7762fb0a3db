"""A small server on loopback with the paths of the Hugging Face hub that its client uses."""

import base64
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = ".safetensors"


def etag(name, data):
    """The name that the hub gives a file: SHA-256 of a large one, git's hash of another."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class HubServer:
    """Serves repositories until it is closed.

    Attributes:
      repositories: "user/model" -> dict from the name of a file to its bytes. Commits write here.
      private: repositories that need a token.
      interrupt: names of files whose connection breaks in the middle, once each.
      falsified: names of files that are sent with another byte.
      requests: "METHOD path" of each request.
      url: for HF_ENDPOINT.
    """

    def __init__(self, repositories):
        self.repositories, self.private = repositories, set()
        self.interrupt, self.falsified, self.requests = set(), set(), []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._handle()

    def do_GET(self):
        self._handle()

    def do_POST(self):
        self._handle()

    def _handle(self):
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "repos"]:
            name = json.loads(body)["name"]
            organization = json.loads(body).get("organization") or "user"
            if not self._may_write():
                return
            name = name if "/" in name else f"{organization}/{name}"
            self.hub.repositories.setdefault(name, {})
            self._json({"url": f"{self.hub.url}/{name}", "name": name})
        elif parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif parts[:2] == ["api", "whoami-v2"] or parts == ["api", "validate-yaml"]:
            self._json({"name": "user", "errors": [], "warnings": []})
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "EntryNotFound")

    def _api(self, name, rest, body):
        if not self._may_read(name):
            return
        files = self.hub.repositories[name]
        if rest[:1] == ["preupload"]:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                {
                    "files": [
                        {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for path in paths
                    ]
                }
            )
        elif rest[:1] == ["commit"]:
            if not self._may_write():
                return
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self._error(404, "RevisionNotFound")
        elif rest[:1] == ["tree"]:
            self._json([self._entry(path, data) for path, data in files.items()])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False})

    def _entry(self, path, data):
        entry = {"type": "file", "path": path, "size": len(data), "oid": etag("small", data)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": etag(path, data), "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, name, revision, path):
        if not self._may_read(name):
            return
        data = self.hub.repositories[name].get(path)
        if revision not in ("main", COMMIT) or data is None:
            self._error(404, "EntryNotFound" if data is None else "RevisionNotFound")
            return
        tag, start = etag(path, data), 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
        if path in self.hub.falsified:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{tag}"')
        self.send_header("X-Linked-Etag", f'"{tag}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        if path in self.hub.interrupt:
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[start:])

    def _may_read(self, name):
        known = name in self.hub.repositories
        if known and (name not in self.hub.private or self.headers.get("Authorization")):
            return True
        self._error(401, "RepoNotFound")
        return False

    def _may_write(self):
        if self.headers.get("Authorization"):
            return True
        self._error(401, None)
        return False

    def _json(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status, code):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
