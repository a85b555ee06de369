"""Where folds train: the options of the launcher, and what is wrong with them in one line."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from deeplab_lightning.commands.parsers import kfold_parser
from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.launchers.options import RayOptions, SlurmOptions, read_launcher
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

LAUNCHERS = Path(__file__).parents[2] / "configs" / "launcher"


def placed(*words: str) -> tuple[Placement, list[str]]:
    return Placement.parse(*kfold_parser().parse_known_args(list(words)))


def test_the_default_is_one_fold_after_the_other_on_this_machine() -> None:
    assert placed("--seed_everything", "1") == (Placement(None, 1), ["--seed_everything", "1"])
    assert placed("--launcher", str(LAUNCHERS / "local.yaml"), "--jobs", "2", "--devices", "0,3")[0] == Placement(
        None, 2, ("0", "3")
    )


def test_options_of_the_command_line_override_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("launcher: slurm\ntime: 4:00:00\npartition: gpu\nsetup: [module load cuda]\ngpus: 2\n")
    words = ("--launcher", str(file), "--launcher.partition", "a100", "--launcher.lines=[--qos=low]", "-c", "x.yaml")
    placement, rest = placed(*words, "--detach", "--jobs", "3")
    assert rest == ["-c", "x.yaml"]
    assert placement == Placement(
        SlurmOptions(
            partition="a100", time="4:00:00", gpus=2, lines=("--qos=low",), setup=("module load cuda",)
        ),  # YAML alone would take the time for 14400, which SLURM takes for minutes
        at_once=3,
        is_detached=True,
    )  # fmt: skip


def test_the_shipped_files_hold_every_option_with_its_default() -> None:
    for name, kind in (("slurm", SlurmOptions), ("ray", RayOptions)):
        content = yaml.safe_load((LAUNCHERS / f"{name}.yaml").read_text())
        assert content.keys() - {"launcher"} == kind.__dataclass_fields__.keys()
        assert read_launcher(str(LAUNCHERS / f"{name}.yaml"), {}) == read_launcher(name, {}) == kind()
    assert {path.stem for path in LAUNCHERS.iterdir()} == {"local", "slurm", "ray"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "pbs"], "--launcher must be local, slurm, ray, or a file such as .*, got 'pbs'"),
        (["--launcher", "none.yaml"], "no such launcher: .*none.yaml"),
        (["--launcher", "slurm", "--launcher.partitoin", "gpu"], "unknown options partitoin of the launcher slurm; it"),
        (["--launcher.gpus", "2"], "unknown options gpus of the launcher local, which has none"),
        (
            ["--launcher", "slurm", "--launcher.cpus", "0"],
            "launcher.cpus must be a whole number of at least 1, got '0'",
        ),
        (["--launcher", "slurm", "--launcher.gpus", "a100:2"], "launcher.gpus must be a whole number"),
        (["--launcher", "slurm", "--launcher.time", "[1, 2]"], "launcher.time must be one value"),
        (["--launcher", "slurm", "--launcher.lines", "{a: b}"], "launcher.lines must be a list of single lines"),
        (["--launcher", "slurm", "--launcher.time"], "--launcher.time needs a value"),
        (["--launcher", "ray", "--detach"], "needs --launcher slurm. Elsewhere .* in the background, by nohup deeplab"),
        (["--launcher", "slurm", "--devices", "0,1"], "a cluster deals its own: --launcher.gpus"),
        (["--launcher", "slurm", "--in_process"], "leave out that or --launcher"),
        (["--launcher", "slurm", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--detach"], "needs --launcher slurm"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_runs(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        placed(*words)


def test_a_fold_in_a_queue_has_one_node() -> None:
    placement, _ = placed("--launcher", "slurm")
    placement.refuse_several_nodes({"trainer": {"num_nodes": 1}})
    with pytest.raises(UserError, match="trainer.num_nodes must be 1 on a cluster, got 2"):
        placement.refuse_several_nodes({"trainer": {"num_nodes": 2}})


@pytest.mark.slow
def test_a_machine_without_slurm_is_said_in_one_line(tmp_path: Path) -> None:
    draw_noise_data(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer={"max_epochs": 1})))
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent)}
    words = ("kfold", "-c", str(tmp_path / "config.yaml"), "--launcher", "slurm", "--name", "a")
    done = run_program(*words, env=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: squeue was not found: --launcher slurm needs a machine of the cluster")
    assert not (tmp_path / "runs").exists()
