"""The part of a W&B server that a client needs to log a run, on the loopback interface."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

PROJECT = "deeplab_lightning"


class WandbServer:
    """Answer a client and keep what it sends.

    Attributes:
        history: Logged rows, by run name.
        summaries: Summary of each run.
        configs: Configuration of each run, as text.
        groups: Group and job type of each run.
        sweeps: Sweep of each run that is a trial.
        files: Content of the uploaded files, by run and name.
        reports: Variables of the saved reports.
        questions: Unknown queries.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, str] = {}
        self.groups: dict[str, tuple[str | None, str | None]] = {}
        self.names: dict[str, str] = {}
        self.sweeps: dict[str, str] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.reports: list[dict[str, Any]] = []
        self.questions: list[str] = []
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
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                run, _, name = unquote(self.path).removeprefix("/upload/").partition("/")
                owner.files[run, name] = body
                self._answer({})

            def do_GET(self) -> None:
                run, _, name = unquote(self.path).removeprefix("/upload/").partition("/")
                content = owner.files.get((run, name))
                self._send(b"{}" if content is None else content)

            def _answer(self, content: dict[str, Any]) -> None:
                self._send(json.dumps(content).encode())

            def _send(self, text: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the server's address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _graphql(self, request: dict[str, Any], host: str) -> dict[str, Any]:
        query, variables = request.get("query", ""), request.get("variables") or {}
        if "upsertBucket" in query:
            name = variables.get("name") or "run"
            if variables.get("config"):
                self.configs[name] = variables["config"]
            if variables.get("displayName"):
                self.names[name] = variables["displayName"]
            if variables.get("groupName") or variables.get("jobType"):
                self.groups[name] = (variables.get("groupName"), variables.get("jobType"))
            if variables.get("sweep"):
                self.sweeps[name] = variables["sweep"]
            project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": "team"}}
            bucket = {
                "id": name, "name": name, "displayName": variables.get("displayName") or name, "description": "",
                "config": "{}", "sweepName": None, "project": project,
                "historyLineCount": len(self.history.get(name, [])),
            }  # fmt: skip
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": name not in self.history}}}
        if "RunResumeStatus" in query:
            project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": "team"}}
            return {"data": {"model": {**project, "bucket": self._resumed(variables["name"])}}}
        if "createRunFiles" in query:
            names, run = variables.get("files") or [], variables.get("run")
            files = [{"name": name, "uploadUrl": f"http://{host}/upload/{run}/{quote(name)}"} for name in names]
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
        if "upsertView" in query:
            self.reports.append(variables)
            view = {"id": "report", "name": variables["name"], "displayName": variables["displayName"],
                    "description": "", "spec": variables["spec"], "createdAt": "2026-01-01T00:00:00Z",
                    "updatedAt": "2026-01-01T00:00:00Z", "type": variables["type"],
                    "project": {"id": "p", "name": PROJECT, "entityName": "team"}}  # fmt: skip
            return {"data": {"upsertView": {"view": view, "inserted": True}}}
        if "models(" in query:
            node = {"id": "p", "name": PROJECT, "entityName": "team", "createdAt": "2026-01-01T00:00:00Z",
                    "isBenchmark": False, "user": None}  # fmt: skip
            page = {"endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"edges": [{"node": node, "cursor": "p"}], "pageInfo": page}}}
        if "project(" in query:
            known = variables.get("project", variables.get("projectName")) == PROJECT
            return {"data": {"project": self._project(query, variables, host) if known else None}}
        self.questions.append(query)
        return {"data": {"serverInfo": {"features": []}}}

    def _resumed(self, run: str) -> dict[str, Any] | None:
        """Return where a run goes on; None if it is unknown."""
        rows = self.history.get(run)
        if rows is None:
            return None
        return {
            "id": run, "name": run, "displayName": self.names.get(run, run), "summaryMetrics": "{}", "logLineCount": 0,
            "historyLineCount": len(rows), "eventsLineCount": 0, "historyTail": json.dumps([json.dumps(rows[-1])]),
            "eventsTail": "[]", "config": "{}", "tags": [], "notes": "", "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip

    def _project(self, query: str, variables: dict[str, Any], host: str) -> dict[str, Any]:
        """Answer `wandb.Api` about a project: its runs, or the files or history of one run."""
        if "runs(" in query:
            wanted = json.loads(variables["filters"])
            group = wanted["group"] if isinstance(wanted["group"], dict) else {"$in": [wanted["group"]]}
            is_wanted = re.compile(str(group["$regex"])).search if "$regex" in group else group["$in"].__contains__
            runs = [run for run in self.groups if is_wanted(self.groups[run][0] or "")]
            edges = [{"node": self._run(run), "cursor": run} for run in runs]
            page = {"endCursor": None, "hasNextPage": False}
            return {
                "internalId": "1",
                "runCount": len(runs),
                "readOnly": False,
                "runs": {"edges": edges, "pageInfo": page},
            }
        run = str(variables.get("name") or variables.get("run"))
        if "files(" in query:
            names = variables.get("fileNames") or []
            nodes = [
                {"id": name, "name": name, "url": f"http://{host}/upload/{run}/{quote(name)}", "directUrl": "",
                 "sizeBytes": str(len(self.files[run, name])), "mimetype": "", "updatedAt": None, "md5": ""}
                for name in names if (run, name) in self.files
            ]  # fmt: skip
            page = {"endCursor": None, "hasNextPage": False}
            files = {"edges": [{"node": node, "cursor": node["name"]} for node in nodes], "pageInfo": page}
            return {"internalId": "1", "run": {"fileCount": len(nodes), "files": files}}
        if "parquetHistory" in query:
            rows = self.history.get(run, [])
            return {
                "run": {"historyKeys": {"lastStep": len(rows)}, "parquetHistory": {"liveData": rows, "parquetUrls": []}}
            }
        if "sampledHistory(" in query:
            spec = json.loads(variables["spec"])
            rows = [row for row in self.history.get(run, []) if all(key in row for key in spec["keys"])]
            chosen = [row for row in rows if spec["minStep"] <= row["_step"] < spec["maxStep"]]
            return {"run": {"sampledHistory": [chosen]}}
        return {"internalId": "1", "run": self._run(run)}

    def _run(self, run: str) -> dict[str, Any]:
        group, job_type = self.groups.get(run, (None, None))
        user = {"name": "team", "username": "team"}
        return {
            "id": run, "tags": [], "name": run, "displayName": self.names.get(run, run), "sweepName": None,
            "state": "finished", "config": self.configs.get(run, "{}"), "group": group, "jobType": job_type,
            "commit": None, "readOnly": False, "createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": None,
            "description": "", "notes": "", "systemMetrics": "{}", "user": user, "projectId": "1",
            "summaryMetrics": json.dumps(self.summaries.get(run, {})),
            "historyLineCount": len(self.history.get(run, [])),
            "historyKeys": {"lastStep": len(self.history.get(run, [])), "keys": {}},
        }  # fmt: skip

    def _stream(self, run: str, content: dict[str, Any]) -> None:
        files = content.get("files") or {}
        history = files.get("wandb-history.jsonl", {})
        rows = self.history.setdefault(run, []) if history else []
        for row, line in enumerate(history.get("content", []), start=history.get("offset", 0)):
            rows[row : row + 1] = [json.loads(line)]  # what is sent again replaces what was there
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summaries.setdefault(run, {}).update(json.loads(line))
