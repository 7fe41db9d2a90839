"""A small server on the loopback that speaks the part of the Hub's HTTP that downloads use."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0" * 40


@contextmanager
def hub(repos, gated=()):
    """Serve {"models/org/name" or "datasets/org/name": folder}; yield (endpoint, request log).

    Ids in `gated` exist but refuse everyone without the token `hf_right`.
    """
    log = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer()

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer()

        def send(self, status, content=b"", body=True, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def answer(self, body=True):
            url = urlsplit(self.path)
            path = unquote(url.path).strip("/")
            log.append(f"{self.command} /{path}")
            api = path.startswith("api/")
            name = path.removeprefix("api/") if api else path
            if not api and not name.startswith("datasets/"):
                name = f"models/{name}"
            repo = next((r for r in [*repos, *gated] if f"{name}/".startswith(f"{r}/")), None)
            if repo is None:
                return self.send(404, body=body, X_Error_Code="RepoNotFound")
            if repo in gated and self.headers.get("Authorization") != "Bearer hf_right":
                return self.send(403, body=body, X_Error_Code="GatedRepo")
            kind, *rest = name[len(repo) :].strip("/").split("/")
            folder = Path(repos[repo])
            if api and kind == "tree":
                below = folder.joinpath(*rest[1:])
                found = (
                    below.rglob("*") if "recursive=true" in url.query.lower() else below.glob("*")
                )
                content = [
                    {"type": "file" if p.is_file() else "directory",
                     "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": SHA}
                    for p in sorted(found)
                ]  # fmt: skip
                return self.send(200, json.dumps(content).encode(), body)
            if api and kind in ("", "revision"):
                if rest and rest[0] not in ("main", SHA):
                    return self.send(404, body=body, X_Error_Code="RevisionNotFound")
                names = [str(p.relative_to(folder)) for p in folder.rglob("*.*")]
                content = {
                    "id": repo.partition("/")[2], "sha": SHA, "private": False, "tags": [],
                    "siblings": [{"rfilename": name} for name in names],
                }  # fmt: skip
                return self.send(200, json.dumps(content).encode(), body)
            file = folder.joinpath(*rest[1:])
            if kind != "resolve" or not file.is_file():
                return self.send(404, body=body, X_Error_Code="EntryNotFound")
            content = file.read_bytes()
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.send(200, content, body, ETag=etag, X_Repo_Commit=SHA, Accept_Ranges="none")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
