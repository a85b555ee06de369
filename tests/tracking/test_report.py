"""The W&B Report, without W&B's own server."""

import os
import sys

import pytest

from deeplab_lightning.cli import main
from deeplab_lightning.tracking.report import build_report
from tests.processes import run_program
from tests.tracking.wandb_server import PROJECT, WandbServer

v2 = pytest.importorskip("wandb_workspaces.reports.v2", reason="the extra `report` is not installed")
GROUPS = ["resnet50", "it's lite0"]


def test_the_report_holds_the_panels_of_a_comparison() -> None:
    report = build_report(GROUPS, project="litter", classes=["metal", "glass"])
    [grid] = [block for block in report.blocks if isinstance(block, v2.PanelGrid)]
    model = grid._to_model().model_dump()["metadata"]
    [runs] = model["run_sets"]
    conditions = {f["key"]["name"]: f["value"] for f in runs["filters"]["filters"]}
    assert conditions == {"group": GROUPS, "jobType": "fold"}
    assert [key["name"] for key in runs["grouping"]] == ["group"]
    kinds = [type(panel) for panel in grid.panels]
    assert kinds == [v2.LinePlot, v2.LinePlot, v2.BarPlot, v2.BarPlot, v2.ScatterPlot, v2.RunComparer]
    assert [metric.name for metric in grid.panels[3].metrics] == ["best/iou/metal", "best/iou/glass"]
    assert (grid.panels[4].x.name, grid.panels[4].y.name) == ("cost/giga_macs", "best/miou")


def test_a_dry_run_prints_the_blocks_without_an_account(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    main(["wandb-report", "--project", "litter", "--groups", *GROUPS, "--title", "Two backbones", "--dry_run"])
    output = capsys.readouterr().out
    for part in ("report: Two backbones", "project: litter", "it's lite0", "val/miou", "cost/giga_macs", "RunComparer"):
        assert part in output


def test_a_missing_account_server_or_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    command = ["wandb-report", "--groups", *GROUPS]
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", f"{tmp_path}/netrc")
    with pytest.raises(RuntimeError, match="needs an account of .*or print the blocks with --dry_run"):
        main(command)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr("deeplab_lightning.tracking.mode.can_answer", lambda _: False)
    with pytest.raises(RuntimeError, match="does not answer"):
        main(command)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", None)
    with pytest.raises(RuntimeError, match=r"pip install 'deeplab_lightning\[report\]'"):
        main(command)


@pytest.mark.slow
def test_a_report_is_saved_with_the_classes_that_the_runs_know() -> None:
    server = WandbServer()
    server.groups["run"], server.summaries["run"] = ("lite0", "fold"), {"best/miou": 0.5, "best/iou/metal": 0.4}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40}
    done = run_program("wandb-report", "--groups", "lite0", "--project", PROJECT, env=environment, timeout=120)
    server.stop()
    assert done.returncode == 0, done.stderr
    [report] = server.reports
    assert (report["entityName"], report["projectName"]) == ("team", PROJECT)
    assert "summary_metrics.best/iou/metal" in report["spec"]
    assert f"team/{PROJECT}/reports/" in done.stdout
