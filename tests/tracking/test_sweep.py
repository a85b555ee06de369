"""Folds, pooled results and sweeps on a server on this machine: which run each is, and what it holds."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deeplab_lightning.commands.training import resolve_fit_config
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program
from tests.tracking.wandb_server import PROJECT, WandbServer

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "configs" / "sweeps" / "kfold.yaml"


def agent_command(parameters: dict[str, Any]) -> list[str]:
    """Return the command that an agent runs for a trial with these values."""
    sweep = yaml.safe_load(SWEEP.read_text())
    words = [f"--{key}={value}" for key, value in parameters.items()]
    parts = {"${program}": [sweep["program"]], "${args}": words}
    return [word for part in sweep["command"] for word in parts.get(part, [part])]


def test_what_an_agent_passes_to_kfold_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parameters = yaml.safe_load(SWEEP.read_text())["parameters"]
    chosen = {key: own["values"][-1] if "values" in own else own["min"] for key, own in parameters.items()}
    program, command, *words = agent_command(chosen)
    assert (program, command) == ("deeplab", "kfold")
    config = resolve_fit_config(words)
    assert config["wandb"] == "online"
    assert config["model"]["optimizer"]["init_args"]["lr"] == chosen["model.optimizer.init_args.lr"]
    assert config["model"]["net"]["init_args"]["backbone"] == chosen["model.net.init_args.backbone"]


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    draw_noise_data(root)
    logger = {"class_path": "WandbLogger", "init_args": {"project": PROJECT}}
    config = noise_config(root, trainer={"max_epochs": 1, "num_sanity_val_steps": 0, "logger": logger})
    (root / "config.yaml").write_text(yaml.safe_dump({**config, "wandb": "online"}))
    return root


def environment(server: WandbServer, **more: str) -> dict[str, str]:
    """The environment of a process that logs to the server."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return own | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_FINISH_TIMEOUT": "20"} | more


@pytest.mark.long
def test_a_trial_is_the_pooled_result_and_its_folds_are_runs_of_their_own(folder: Path, server: WandbServer) -> None:
    """The folds took the agent's variables over, and all of them logged to the one run of the trial."""
    parameters = folder / "trial.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, "trainer.max_epochs": {"value": 1}}))
    agent = {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "trial1", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    command = agent_command({"trainer.max_epochs": 1})
    own = [str(folder / "config.yaml") if word == "configs/base.yaml" else word for word in command[1:]]
    at = own.index("configs/data/synthetic.yaml")
    words = [*own[: at - 1], *own[at + 1 :], "--name", "trial"]
    done = run_program(*words, env=environment(server, **agent), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((folder / "runs" / "trial" / "cv.json").read_text())
    assert server.sweeps == {"trial1": "s1"}
    group, kind = server.groups["trial1"]
    assert kind == "cv"
    folds = [run for run, own in server.groups.items() if own == (group, "fold")]
    assert len(folds) == 2
    assert set(server.groups) == {"trial1", *folds}
    assert server.summaries["trial1"]["cv/miou"] == pytest.approx(content["out_of_fold"]["miou"], abs=1e-6)
    assert any("cv/miou" in row for row in server.history["trial1"])  # what a sweep optimises
    assert not any(key.startswith("cv/") for run in folds for key in server.summaries[run])
    for refused in ("--in_process",), ("--seeds", "0,1"):
        done = run_program("kfold", "-c", str(folder / "config.yaml"), *refused, env=environment(server, **agent))
        assert done.returncode == 1
        assert "a trial of a W&B sweep is one run" in done.stderr


@pytest.mark.long
def test_folds_that_are_resumed_stay_one_run_each_and_so_does_the_pooled_result(
    folder: Path, server: WandbServer
) -> None:
    before = set(server.groups)
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "resumed", "--in_process")
    results = []
    for epochs in ("1", "2"):
        more = ("--resume",) if epochs == "2" else ()
        done = run_program(*words, "--trainer.max_epochs", epochs, *more, env=environment(server), timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((folder / "runs" / "resumed" / "cv.json").read_text())["out_of_fold"])
    kinds = {run: kind for run, (_, kind) in server.groups.items() if run not in before}
    assert sorted(str(kind) for kind in kinds.values()) == ["cv", "fold", "fold"]
    [pooled] = [run for run, kind in kinds.items() if kind == "cv"]
    for run in set(kinds) - {pooled}:
        assert {row["epoch"] for row in server.history[run] if "val/miou" in row} == {0, 1}
    summary = server.summaries[pooled]
    assert summary["cv/miou"] == pytest.approx(results[1]["miou"], abs=1e-6)
    known = {name: value for name, value in results[1]["iou"].items() if value is not None}
    assert {key: value for key, value in summary.items() if key.startswith("cv/iou/")} == pytest.approx(
        {f"cv/iou/{name}": value for name, value in known.items()}, abs=1e-6
    )
    pytest.importorskip("wandb_workspaces.reports.v2", reason="the extra `report` is not installed")
    group = server.groups[pooled][0]
    done = run_program("wandb-report", "--groups", str(group), "--project", PROJECT, env=environment(server))
    assert done.returncode == 0, done.stderr
    spec = server.reports[-1]["spec"]
    assert all(f"summary_metrics.best/iou/{name}" in spec for name in known)
    assert str(group) in spec
