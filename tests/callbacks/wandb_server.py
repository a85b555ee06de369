"""As much of a W&B server as a client needs to log a run, on the loopback interface."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Answers a client and remembers what it sent.

    Attributes:
        history: Logged rows, by run name.
        summaries: Summary of each run.
        configs: Configuration of each run, as text.
        groups: Group and job type of each run.
        files: Names of the uploaded files.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, str] = {}
        self.groups: dict[str, tuple[str | None, str | None]] = {}
        self.files: list[str] = []
        self.num_requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.num_requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == "/graphql":
                    self._answer(owner._graphql(json.loads(body), self.headers["Host"]))
                elif "file_stream" in self.path:
                    owner._stream(self.path.split("/")[-2], json.loads(body))
                    self._answer({"exitcode": None, "limits": {}})
                else:
                    self._answer({})

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                owner.files.append(self.path.rsplit("/upload/", 1)[-1])
                self._answer({})

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, content: dict[str, Any]) -> None:
                text = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def _graphql(self, request: dict[str, Any], host: str) -> dict[str, Any]:
        query, variables = request.get("query", ""), request.get("variables") or {}
        if "upsertBucket" in query:
            name = variables.get("name") or "run"
            if variables.get("config"):
                self.configs[name] = variables["config"]
            if variables.get("groupName") or variables.get("jobType"):
                self.groups[name] = (variables.get("groupName"), variables.get("jobType"))
            project = {"id": "p", "name": "deeplab_lightning", "entity": {"id": "e", "name": "team"}}
            bucket = {
                "id": name, "name": name, "displayName": variables.get("displayName") or name, "description": "",
                "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0,
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            names = variables.get("files") or []
            files = [{"name": name, "uploadUrl": f"http://{host}/upload/{name}"} for name in names]
            return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
        if "artifactType" in query and "query" in query[:20]:
            return {"data": {"project": None}}
        if "createArtifact(" in query:
            artifact = {
                "id": "a",
                "state": "COMMITTED",
                "digest": "",
                "versionIndex": 0,
                "artifactSequence": {"id": "s"},
            }
            return {"data": {"createArtifact": {"artifact": artifact}}}
        if "viewer" in query.lower():
            viewer = {"id": "u", "username": "team", "entity": "team", "flags": "{}", "teams": {"edges": []}}
            return {"data": {"viewer": viewer, "serverInfo": {"features": []}}}
        return {"data": {"serverInfo": {"features": []}}}

    def _stream(self, run: str, content: dict[str, Any]) -> None:
        files = content.get("files") or {}
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            self.history.setdefault(run, []).append(json.loads(line))
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summaries.setdefault(run, {}).update(json.loads(line))
