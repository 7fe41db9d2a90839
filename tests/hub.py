"""A small server on the loopback that speaks the part of the Hub's HTTP that we use."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0" * 40


@dataclass
class Account:
    """Somebody who may publish with the token `hf_right`, and what came of it."""

    root: Path  # committed files lie in root/OWNER/NAME
    name: str = "ann"
    may_write: bool = True
    odd: dict = field(default_factory=dict)  # path -> what is done once instead of answering
    breaks_after: int | None = None  # so many large files arrive, then the server fails
    lock: threading.Lock = field(default_factory=threading.Lock)
    stored: dict = field(default_factory=dict)  # sha256 -> bytes, as they were sent
    created: list = field(default_factory=list)  # bodies of requests for a new repository
    commits: list = field(default_factory=list)  # (summary, the paths of the commit)


@contextmanager
def hub(repos, gated=(), account=None, private=()):
    """Serve {"models/org/name" or "datasets/org/name": folder}; yield (endpoint, request log).

    Ids in `gated` exist but refuse everyone without the token `hf_right`. An `account` may publish.
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
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if account:
                self.publish(body)
            else:
                self.answer()

        def do_PUT(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            log.append(f"PUT {self.path}")
            with account.lock:
                full = account.breaks_after is not None
                if full and len(account.stored) >= account.breaks_after:
                    return self.send(400, b'{"error": "the disk is full"}')
                account.stored[hashlib.sha256(body).hexdigest()] = body
            self.send(200)

        def json(self, content, status=200, **headers):
            self.send(status, json.dumps(content).encode(), Content_Type="application/json")

        def publish(self, body):
            path = urlsplit(self.path).path.strip("/")
            log.append(f"POST /{path}")
            if path in account.odd:
                return account.odd.pop(path)(self)
            here = f"http://127.0.0.1:{server.server_port}"
            if path == "api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != "Bearer hf_right":
                return self.json({"error": "Invalid credentials"}, 401)
            if not account.may_write:
                return self.json({"error": "Forbidden: no right to write"}, 403)
            if path == "api/repos/create":
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or account.name}/{wanted['name']}"
                if f"models/{name}" in repos:
                    taken = {"error": "You already created this repo", "url": f"{here}/{name}"}
                    return self.json(taken, 409)
                account.created.append(wanted)
                (account.root / name).mkdir(parents=True)
                repos[f"models/{name}"] = account.root / name
                return self.json({"url": f"{here}/{name}"})
            if path.endswith("/preupload/main"):
                files = json.loads(body)["files"]
                modes = [
                    {"path": f["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".png"))
                     else "regular"}
                    for f in files
                ]  # fmt: skip
                return self.json({"files": modes})
            if path.endswith("/objects/batch"):
                objects = []
                for wanted in json.loads(body)["objects"]:
                    todo = {"actions": {"upload": {"href": f"{here}/lfs/{wanted['oid']}"}}}
                    objects.append(wanted | (todo if wanted["oid"] not in account.stored else {}))
                return self.json({"transfer": "basic", "objects": objects})
            name = path.removeprefix("api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            paths = []
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "deletedFile":
                    (account.root / name / value["path"]).unlink()
                    continue
                file = account.root / name / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                if line["key"] == "file":
                    file.write_bytes(base64.b64decode(value["content"]))
                else:
                    file.write_bytes(account.stored[value["oid"]])
                paths.append(value["path"])
            account.commits.append((lines[0]["value"]["summary"], paths))
            self.json({"commitUrl": f"{here}/{name}/commit/{SHA}", "commitOid": SHA})

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
            if account and path in account.odd:
                return account.odd.pop(path)(self)
            if path == "api/whoami-v2":
                if account and self.headers.get("Authorization") == "Bearer hf_right":
                    return self.json({"type": "user", "name": account.name, "orgs": []})
                return self.json({"error": "Invalid user token."}, 401)
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
                    "id": repo.partition("/")[2], "sha": SHA, "private": repo in private,
                    "tags": [], "siblings": [{"rfilename": name} for name in names],
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
