"""download.sh and inference.sh, offline: a stand-in gdown on PATH, a stand-in inference.py beside the script."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import prepare_data

REPO = Path(__file__).resolve().parent.parent
SVHN_ID, USPS_ID = "1PSlBhFbQoppQLeE5IIIc9ChiSkzPHZMH", "1_vdmGglgkz4B8RlsRFL6UaE9B4G9p50l"
SVHN, USPS = "ep260_svhn_acc=0.41745.pt", "ep115_usps_acc=0.82392.pt"
# A stand-in gdown with a python that has none of its own; `gdown ID -O FILE` does $GDOWN.
STAND_IN = '#!/bin/bash\necho "$1" >> "$HOME/asked"\n[ "$2 $#" = "-O 3" ] && eval "$GDOWN"\n'
WORKS = 'cp "$HOME/whole.pt" "$3"'
ECHO = "import json, os, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(int(os.environ.get('CODE', '0')))\n"


class Project:
    """The two scripts in a folder with a space in its name, and the place that they are called from."""

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.cwd = root, root / "my project", root / "some where"
        self.checkpoints = self.home / "checkpoint"
        for folder in (self.cwd, self.home, root / "bin"):
            folder.mkdir()
        for script in ("download.sh", "inference.sh"):
            shutil.copy(REPO / script, self.home)
        (self.home / "inference.py").write_text(ECHO)
        self.executable("bin/gdown", STAND_IN)
        self.executable("bin/python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
        self.write(root / "whole.pt")
        self.env = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": str(root), "GDOWN": WORKS}

    def executable(self, name: str, text: str) -> Path:
        (self.root / name).write_text(text)
        (self.root / name).chmod(0o755)
        return self.root / name

    def write(self, *paths: Path) -> None:
        """Whole checkpoints, as zip archives, which is how torch.save lays them out."""
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", bytes(range(256)) * 4)

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(self.home / script), *args]
        return subprocess.run(
            command, cwd=self.cwd, env=self.env | env, capture_output=True, text=True, timeout=60, check=False
        )

    def asked(self) -> list[str]:
        """The ids that gdown was asked for."""
        file = self.root / "asked"
        return file.read_text().split() if file.exists() else []

    def there(self) -> list[str]:
        """All that lies in checkpoint/, hidden leftovers included."""
        return sorted(os.listdir(self.checkpoints))

    def predict(self, *args: str, **env: str) -> list[str]:
        """What inference.py is called with."""
        done = self.run("inference.sh", *args, **env)
        assert done.returncode == 0, done.stderr
        found: list[str] = json.loads(done.stdout)
        return found

    def taken(self, folder: str, **env: str) -> str:
        """The checkpoint that a folder of images is predicted with, by its name."""
        (self.cwd / folder).mkdir(parents=True, exist_ok=True)
        return Path(self.predict(folder, "out", **env)[1]).name


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refused call."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    return done.stderr


def test_both_published_files_come_under_their_names_and_are_not_fetched_twice(project: Project) -> None:
    for _ in range(2):
        done = project.run("download.sh")
        assert (done.returncode, done.stderr) == (0, "")
        assert project.asked() == [SVHN_ID, USPS_ID]
        assert project.there() == [USPS, SVHN]


FAILS = {
    "half way": 'head -c 40 "$HOME/whole.pt" | tee "$3.part" > "$3"; exit 1',
    "with a cut-off file": 'head -c 200 "$HOME/whole.pt" > "$3"',
    "with a web page": 'echo "<html>Quota exceeded</html>" > "$3"',
    "with nothing": "true",
}


@pytest.mark.parametrize("how", FAILS)
def test_a_failed_download_leaves_nothing_and_says_what_to_do_by_hand(project: Project, how: str) -> None:
    done = project.run("download.sh", GDOWN=f'if [ "$1" = {SVHN_ID} ]; then {FAILS[how]}; else {WORKS}; fi')
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for named in (str(project.checkpoints / SVHN), "by hand", "https://drive.google.com/drive/folders/"):
        assert named in done.stderr
    assert project.there() == [USPS]  # the other one is fetched all the same


def test_a_cut_off_or_damaged_file_is_fetched_again(project: Project) -> None:
    project.write(project.checkpoints / SVHN, project.checkpoints / USPS)
    os.truncate(project.checkpoints / SVHN, 100)
    with (project.checkpoints / USPS).open("r+b") as file:
        file.seek(300)
        file.write(b"damage")
    assert project.run("download.sh").returncode == 0
    assert project.asked() == [SVHN_ID, USPS_ID]
    whole = (project.root / "whole.pt").read_bytes()
    assert [(project.checkpoints / name).read_bytes() for name in (SVHN, USPS)] == [whole] * 2


def test_without_gdown_on_path_the_module_of_the_interpreter_is_used(project: Project) -> None:
    (project.root / "bin" / "gdown").rename(project.root / "its gdown")
    tools = {name: shutil.which(name) for name in ("bash", "cat", "cp", "dirname", "mkdir", "mv", "rm")}
    for name, place in tools.items():
        if not (project.root / "bin" / name).exists():
            (project.root / "bin" / name).symlink_to(str(place))
    module = f'[ "$1 $2" = "-m gdown" ] && exec bash "{project.root}/its gdown" "${{@:3}}"'
    python = project.executable("a python", f'#!/bin/bash\n{module}\nexec "{sys.executable}" "$@"\n')
    done = project.run("download.sh", PATH=str(project.root / "bin"), PYTHON=str(python))
    assert (done.returncode, done.stderr) == (0, "")
    assert project.there() == [USPS, SVHN]


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_download_leaves_nothing_half_written(project: Project, stop: signal.Signals) -> None:
    env = project.env | {"GDOWN": 'head -c 40 "$HOME/whole.pt" > "$3"; touch "$HOME/started"; exec sleep 60'}
    restored = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execvp('bash', sys.argv[1:])"
    command = [sys.executable, "-c", restored, "bash", str(project.home / "download.sh")]
    with subprocess.Popen(command, env=env, start_new_session=True) as process:  # SIGINT: ignored in the background
        deadline = time.monotonic() + 60
        while not (project.root / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, stop)  # as a terminal does: to every process of the group
        assert process.wait(60) != 0
    assert project.there() == []


def test_the_last_part_of_the_path_that_names_a_target_decides(project: Project) -> None:
    project.write(*(project.checkpoints / f"dann_{name}.pt" for name in ("svhn", "usps")))
    for folder in ("digits/USPS/data/", "svhn_old/usps_new", "usps_and_svhn/usps/val", "svhn/../usps"):
        assert project.taken(folder) == "dann_usps.pt"
    assert project.taken("usps/my SVHN digits/val") == "dann_svhn.pt"
    project.cwd = project.cwd / "usps/my SVHN digits/val"
    assert [project.taken(folder) for folder in ("0", ".", "..")] == ["dann_svhn.pt"] * 3


@pytest.mark.parametrize(("target", "published"), [("svhn", SVHN), ("usps", USPS)])
def test_the_checkpoint_is_the_given_one_else_the_shipped_else_the_downloaded(
    project: Project, target: str, published: str
) -> None:
    (project.cwd / target).mkdir()
    assert "bash download.sh" in refusal(project.run("inference.sh", target, "out"))
    project.write(project.checkpoints / published)
    assert project.taken(target) == published
    project.write(project.checkpoints / f"dann_{target}.pt")
    assert project.taken(target, CHECKPOINT="") == f"dann_{target}.pt"
    assert project.taken(target, CHECKPOINT="runs/my run") == "my run"
    assert project.taken("photos of mine", CHECKPOINT="runs/my run") == "my run"


def test_what_cannot_be_predicted_is_refused_in_one_sentence(project: Project) -> None:
    project.write(*(project.checkpoints / f"dann_{name}.pt" for name in ("svhn", "usps")))
    for folder in ("svhn/usps_and_svhn", "photos of mine"):
        (project.cwd / folder).mkdir(parents=True)
    for args in ((), ("svhn",), ("svhn", ""), ("my", "svhn", "out"), ("--probs", "svhn", "out")):
        assert "usage" in refusal(project.run("inference.sh", *args))
    assert "no such/svhn" in refusal(project.run("inference.sh", "no such/svhn", "out"))
    assert "usps_and_svhn" in refusal(project.run("inference.sh", "svhn/usps_and_svhn", "out"))
    assert "CHECKPOINT" in refusal(project.run("inference.sh", "photos of mine", "out"))


def test_paths_flags_and_the_exit_code_arrive_as_they_are(project: Project) -> None:
    project.write(project.checkpoints / "dann_usps.pt")
    (project.cwd / "my usps" / "*").mkdir(parents=True)
    flags = ("--probs", "--device", "cpu")
    called = project.predict("my usps/*", "../out $x", *flags)
    checkpoint = str(project.checkpoints / "dann_usps.pt")
    assert called == ["--checkpoint", checkpoint, "--test_loc", "my usps/*", "--out_path", "../out $x", *flags]
    assert project.run("inference.sh", "my usps", "out", CODE="1").returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["svhn", "usps"])
def test_a_fresh_clone_labels_a_folder_with_the_shipped_checkpoint(target: str, tmp_path: Path) -> None:
    prepare_data.main(["demo", "--out", str(tmp_path), "--scale", "0.1"])
    command = ["bash", str(REPO / "inference.sh"), str(tmp_path / target / "data"), str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, check=True)
    predicted = pd.read_csv(tmp_path / "pred.csv").set_index("image_name").label
    truth = pd.concat([pd.read_csv(tmp_path / target / f"{split}.csv") for split in ("train", "val")])
    assert (predicted == truth.set_index("image_name").label).mean() > 0.6  # digits that it was never trained on


@pytest.mark.parametrize(("script", "args"), [("download.sh", ()), ("inference.sh", (".", "out"))])
def test_python_names_the_interpreter_and_help_prints_the_header(
    project: Project, script: str, args: tuple[str, ...]
) -> None:
    project.write(project.checkpoints / "dann_usps.pt")
    project.cwd = project.cwd / "usps"
    project.cwd.mkdir()
    python = project.executable("an interpreter", f'#!/bin/bash\ntouch "$HOME/used"\nexec "{sys.executable}" "$@"\n')
    assert project.run(script, *args, PYTHON=str(python)).returncode == 0
    assert (project.root / "used").exists()
    assert "no-such-python" in refusal(project.run(script, *args, PYTHON="no-such-python"))
    for flag in ("-h", "--help"):
        shown = project.run(script, flag)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"    bash {script}" in shown.stdout
        assert "set -" not in shown.stdout
