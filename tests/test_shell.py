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

import pytest

REPO = Path(__file__).resolve().parent.parent
DRIVE = "https://drive.google.com/drive/folders/1kUAP0tcsRnJz4vyVp5khdVVdd2N_yqIG"
PUBLISHED = {
    "1PSlBhFbQoppQLeE5IIIc9ChiSkzPHZMH": "ep260_svhn_acc=0.41745.pt",
    "1_vdmGglgkz4B8RlsRFL6UaE9B4G9p50l": "ep115_usps_acc=0.82392.pt",
}
SVHN_ID, USPS_ID = PUBLISHED
SVHN_FILE, USPS_FILE = PUBLISHED.values()
NOT_WHOLE = "what gdown saved is not a whole checkpoint but a cut-off file or a web page, such as a quota notice"
SECONDS = 60  # a script that hangs fails its test

# What each stand-in gdown does with `gdown ID -O FILE`; $calls is the list of the ids that were asked for.
GDOWN = {
    "works": 'cp "$whole" "$3"',
    "fails half way": 'head -c 40 "$whole" > "$3"; head -c 40 "$whole" > "$3.part"; echo "gdown: no route" >&2; exit 1',
    "saves a cut-off file": 'head -c 200 "$whole" > "$3"',
    "saves a web page": 'echo "<html><title>Google Drive - Quota exceeded</title></html>" > "$3"',
    "saves nothing": "true",
    "fails on svhn only": f'if [ "$1" = {SVHN_ID} ]; then exit 1; fi; cp "$whole" "$3"',
    "hangs": 'head -c 40 "$whole" > "$3"; echo $$ > "$started"; exec sleep 300',
    "is slow": 'head -c 40 "$whole" > "$3"; sleep 0.5; cp "$whole" "$3"',
    "is overtaken, then fails": f'cp "$whole" "{{final}}/{SVHN_FILE}"; cp "$whole" "{{final}}/{USPS_FILE}"; exit 1',
}


def write_checkpoint(path: Path) -> None:
    """A zip archive as torch.save lays it out, with enough bytes in it to be cut off."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(range(256)) * 4)


def default_signals() -> None:
    """A test run in the background, or by nohup, ignores what stops a program, and so would its children."""
    for stop in (signal.SIGINT, signal.SIGHUP):
        signal.signal(stop, signal.SIG_DFL)


class Project:
    """A copy of the two scripts in a folder with a space in its name, and the environment that they run in."""

    def __init__(self, root: Path) -> None:
        self.path = root / "my project"
        self.checkpoints = self.path / "checkpoint"
        self.bin = root / "stand-in bin"
        self.calls = root / "calls.txt"
        self.started = root / "started.txt"
        self.cwd = root / "some where"
        for folder in (self.path, self.bin, self.cwd):
            folder.mkdir()
        for script in ("download.sh", "inference.sh"):
            shutil.copy(REPO / script, self.path)
        write_checkpoint(root / "whole.pt")
        self.env = {name: value for name, value in os.environ.items() if name not in ("CHECKPOINT", "CDPATH")}
        self.env |= {"PYTHON": sys.executable, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C"}

    def install_gdown(self, behaviour: str) -> None:
        root = self.path.parent
        lines = [
            "#!/bin/bash",
            f'whole="{root}/whole.pt" started="{self.started}"',
            f'echo "$1" >> "{self.calls}"',
            '[ "$2" = -O ] && [ $# -eq 3 ] || exit 64',
            GDOWN[behaviour].replace("{final}", str(self.checkpoints)),
        ]
        (self.bin / "gdown").write_text("\n".join(lines) + "\n")
        (self.bin / "gdown").chmod(0o755)

    def install_inference(self, exit_code: int = 0) -> None:
        """An inference.py that prints its arguments and its interpreter and ends with exit_code."""
        (self.path / "inference.py").write_text(
            "import json, os, sys\n"
            "print(json.dumps({'argv': sys.argv[1:], 'cwd': os.getcwd(), 'mark': os.environ.get('MARK')}))\n"
            f"sys.exit({exit_code})\n"
        )

    def run(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.path / script), *args],
            cwd=self.cwd,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def start_download(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.path / "download.sh")],
            cwd=self.cwd,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=default_signals,
        )

    def ids_asked_for(self) -> list[str]:
        return self.calls.read_text().split() if self.calls.exists() else []

    def downloaded(self) -> list[str]:
        """All that lies in checkpoint/, hidden leftovers included."""
        return sorted(path.name for path in self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []

    def passed_to_inference(self, *args: str, **env: str) -> list[str]:
        result = self.run("inference.sh", *args, **env)
        assert result.returncode == 0, result.stderr
        argv = json.loads(result.stdout)["argv"]
        assert isinstance(argv, list)
        return argv

    def checkpoint_taken(self, test_folder: str, **env: str) -> str:
        argv = self.passed_to_inference(test_folder, "out", **env)
        return argv[argv.index("--checkpoint") + 1]

    def put(self, *names: str) -> None:
        self.checkpoints.mkdir(exist_ok=True)
        for name in names:
            write_checkpoint(self.checkpoints / name)

    def missing(self, name: str, reason: str) -> str:
        """The sentence of download.sh about a file that it could not bring."""
        final = self.checkpoints / name
        by_hand = f"get it by hand from {DRIVE} and save it as {final}"
        return f"download.sh: checkpoint/{name} is missing ({reason}): {by_hand}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a refused run: nothing on stdout, one line on stderr, exit code 2."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr.rstrip("\n")


# ---- download.sh


def test_both_published_files_come_under_their_names(project: Project) -> None:
    project.install_gdown("works")
    result = project.run("download.sh")
    assert (result.returncode, result.stderr) == (0, "")
    assert project.ids_asked_for() == list(PUBLISHED)
    assert project.downloaded() == sorted(PUBLISHED.values())


def test_what_is_complete_is_not_fetched_again(project: Project) -> None:
    project.install_gdown("works")
    project.put(SVHN_FILE)
    result = project.run("download.sh")
    assert result.returncode == 0
    assert f"download.sh: checkpoint/{SVHN_FILE} is complete, kept\n" in result.stdout
    assert project.ids_asked_for() == [USPS_ID]
    again = project.run("download.sh")
    assert again.returncode == 0
    assert project.ids_asked_for() == [USPS_ID]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("fails half way", "gdown ended with exit code 1"),
        (
            "saves a cut-off file",
            NOT_WHOLE,
        ),
        (
            "saves nothing",
            NOT_WHOLE,
        ),
    ],
)
def test_a_failed_download_leaves_no_file_under_the_final_name(project: Project, behaviour: str, reason: str) -> None:
    project.install_gdown(behaviour)
    result = project.run("download.sh")
    assert result.returncode == 2
    assert project.downloaded() == []
    assert result.stderr.splitlines()[-2:] == [project.missing(name, reason) for name in PUBLISHED.values()]


def test_an_html_page_is_not_taken_for_a_checkpoint(project: Project) -> None:
    project.install_gdown("saves a web page")
    result = project.run("download.sh")
    assert result.returncode == 2
    assert project.downloaded() == []
    assert result.stderr.splitlines() == ["", *(project.missing(name, NOT_WHOLE) for name in PUBLISHED.values())]


def test_the_second_file_is_tried_when_the_first_fails(project: Project) -> None:
    project.install_gdown("fails on svhn only")
    result = project.run("download.sh")
    assert result.returncode == 2
    assert project.downloaded() == [USPS_FILE]
    assert result.stderr == f"\n{project.missing(SVHN_FILE, 'gdown ended with exit code 1')}\n"


@pytest.mark.parametrize("size", [0, 100])
def test_a_cut_off_file_of_an_earlier_day_is_fetched_again(project: Project, size: int) -> None:
    project.install_gdown("works")
    project.put(SVHN_FILE, USPS_FILE)
    os.truncate(project.checkpoints / SVHN_FILE, size)
    result = project.run("download.sh")
    assert result.returncode == 0
    assert project.ids_asked_for() == [SVHN_ID]
    assert zipfile.ZipFile(project.checkpoints / SVHN_FILE).testzip() is None


def test_a_damaged_byte_is_noticed(project: Project) -> None:
    project.install_gdown("works")
    project.put(SVHN_FILE, USPS_FILE)
    with (project.checkpoints / USPS_FILE).open("r+b") as file:
        file.seek(300)
        file.write(b"damage")
    assert project.run("download.sh").returncode == 0
    assert project.ids_asked_for() == [USPS_ID]


def test_a_cut_off_file_that_cannot_be_replaced_does_not_stay(project: Project) -> None:
    project.install_gdown("fails half way")
    project.put(SVHN_FILE, USPS_FILE)
    os.truncate(project.checkpoints / SVHN_FILE, 100)
    assert project.run("download.sh").returncode == 2
    assert project.downloaded() == [USPS_FILE]


def test_a_folder_under_the_final_name_is_left_alone(project: Project) -> None:
    project.install_gdown("works")
    (project.checkpoints / SVHN_FILE).mkdir(parents=True)
    result = project.run("download.sh")
    assert result.returncode == 2
    assert project.missing(SVHN_FILE, "a folder has its name") in result.stderr.splitlines()
    assert list((project.checkpoints / SVHN_FILE).iterdir()) == []
    assert project.downloaded() == sorted(PUBLISHED.values())


@pytest.mark.parametrize(
    ("stop", "to_the_group", "exit_code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGHUP, False, 129)],
)
def test_a_stopped_download_leaves_nothing_behind(
    project: Project, stop: signal.Signals, to_the_group: bool, exit_code: int
) -> None:
    project.install_gdown("hangs")
    process = project.start_download()
    try:
        deadline = time.monotonic() + SECONDS
        while not (project.started.exists() and project.started.read_text().endswith("\n")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if to_the_group:  # Ctrl-C reaches every process of the terminal
            os.killpg(process.pid, stop)
        else:
            process.send_signal(stop)
        assert process.wait(SECONDS) == exit_code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert project.downloaded() == []
    with pytest.raises(ProcessLookupError):  # gdown has ended too
        os.kill(int(project.started.read_text()), 0)


def test_two_downloads_at_once_do_not_disturb_each_other(project: Project) -> None:
    project.install_gdown("is slow")
    processes = [project.start_download() for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, errors) == (0, "")
    assert project.downloaded() == sorted(PUBLISHED.values())
    for name in PUBLISHED.values():
        assert zipfile.ZipFile(project.checkpoints / name).testzip() is None


def test_a_file_that_another_download_brought_meanwhile_counts(project: Project) -> None:
    project.install_gdown("is overtaken, then fails")
    result = project.run("download.sh")
    assert (result.returncode, result.stderr) == (0, "")
    assert project.downloaded() == sorted(PUBLISHED.values())


def path_without_gdown(project: Project) -> str:
    """A PATH of the few tools that download.sh needs, gdown not among them."""
    tools = project.path.parent / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "mktemp", "mv", "rm", "sed"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    return str(tools)


def stand_in_python(project: Project, gdown_imports: bool) -> str:
    """An interpreter whose `-m gdown` is the stand-in gdown and whose `import gdown` works or fails as told."""
    python = project.path.parent / "the python"
    python.write_text(
        "#!/bin/bash\n"
        f'if [ "$1 $2" = "-c import gdown" ]; then exit {0 if gdown_imports else 1}; fi\n'
        f'if [ "$1 $2" = "-m gdown" ]; then shift 2; PATH="$PATH:/usr/bin:/bin" exec "{project.bin}/gdown" "$@"; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return str(python)


def test_without_gdown_on_path_the_module_of_python_is_used(project: Project) -> None:
    project.install_gdown("works")
    result = project.run("download.sh", PATH=path_without_gdown(project), PYTHON=stand_in_python(project, True))
    assert (result.returncode, result.stderr) == (0, "")
    assert project.downloaded() == sorted(PUBLISHED.values())


def test_without_any_gdown_one_sentence_says_how_to_install_it(project: Project) -> None:
    python = stand_in_python(project, False)
    result = project.run("download.sh", PATH=path_without_gdown(project), PYTHON=python)
    assert refusal(result) == (
        f"download.sh: gdown is not installed: run '{python} -m pip install gdown' and then 'bash download.sh' again,"
        f" or save the files of {DRIVE} in {project.checkpoints} by hand."
    )
    assert project.downloaded() == []


def test_without_gdown_complete_files_are_enough(project: Project) -> None:
    project.put(SVHN_FILE, USPS_FILE)
    result = project.run("download.sh", PATH=path_without_gdown(project), PYTHON=stand_in_python(project, False))
    assert (result.returncode, result.stderr) == (0, "")


def test_a_checkpoint_folder_that_cannot_be_written_is_refused(project: Project) -> None:
    project.install_gdown("works")
    project.checkpoints.write_text("a file where the folder should be")
    sentence = f"download.sh: cannot write in {project.checkpoints}: make it a folder that you may write in."
    assert refusal(project.run("download.sh")) == sentence


def test_download_takes_no_arguments(project: Project) -> None:
    project.install_gdown("works")
    sentence = "download.sh: takes no arguments, but got 'svhn': run 'bash download.sh'."
    assert refusal(project.run("download.sh", "svhn")) == sentence
    assert project.ids_asked_for() == []


# ---- inference.sh


@pytest.mark.parametrize(
    ("test_folder", "target"),
    [
        ("svhn", "svhn"),
        ("digits/svhn/val", "svhn"),
        ("digits/USPS/data/", "usps"),
        ("svhn_old/usps_new", "usps"),
        ("usps/my SVHN digits/val", "svhn"),
        ("usps_and_svhn/usps/val", "usps"),
        ("svhn/../usps", "usps"),
    ],
)
@pytest.mark.parametrize("exists", [True, False])
def test_the_last_path_part_that_names_a_target_decides(
    project: Project, test_folder: str, target: str, exists: bool
) -> None:
    project.install_inference()
    project.put("dann_svhn.pt", "dann_usps.pt")
    if exists:
        (project.cwd / "svhn").mkdir()
        (project.cwd / test_folder).mkdir(parents=True, exist_ok=True)
    assert project.checkpoint_taken(test_folder) == str(project.checkpoints / f"dann_{target}.pt")


def test_the_current_folder_goes_by_its_own_path(project: Project) -> None:
    project.install_inference()
    project.put("dann_svhn.pt", "dann_usps.pt")
    project.cwd = project.cwd / "svhn" / "val"
    (project.cwd / "0").mkdir(parents=True)
    for test_folder in (".", "0", "./0/", "..", "../val"):
        argv = project.passed_to_inference(test_folder, "out")
        assert argv == [
            "--checkpoint",
            f"{project.checkpoints}/dann_svhn.pt",
            "--test_loc",
            test_folder,
            "--out_path",
            "out",
        ]


def test_a_part_that_names_both_targets_is_refused(project: Project) -> None:
    project.install_inference()
    project.put("dann_svhn.pt", "dann_usps.pt")
    for part in ("usps_and_svhn", "SVHN-usps"):
        assert refusal(project.run("inference.sh", f"svhn/{part}/val", "out")) == (
            f"inference.sh: '{part}' in the path svhn/{part}/val names both svhn and usps:"
            " rename the folder, or set CHECKPOINT=..."
        )


def test_a_path_that_names_no_target_is_refused(project: Project) -> None:
    project.install_inference()
    project.put("dann_svhn.pt", "dann_usps.pt")
    (project.cwd / "my photos").mkdir()
    assert refusal(project.run("inference.sh", "my photos", "out")) == (
        f"inference.sh: no part of the path {project.cwd}/my photos holds svhn or usps:"
        " name a folder after its domain, or set CHECKPOINT=..."
    )


def test_an_absent_folder_is_called_absent(project: Project) -> None:
    project.install_inference()
    sentence = "inference.sh: there is no folder no such place: give a folder of images."
    assert refusal(project.run("inference.sh", "no such place", "out")) == sentence


def test_checkpoint_from_the_environment_needs_no_name_in_the_path(project: Project) -> None:
    project.install_inference()
    project.put("dann_svhn.pt", "dann_usps.pt")
    (project.cwd / "photos").mkdir()
    for test_folder in ("photos", "usps_and_svhn", "digits/svhn/val"):
        assert project.checkpoint_taken(test_folder, CHECKPOINT="runs/my run") == "runs/my run"
    assert project.checkpoint_taken("usps", CHECKPOINT="") == str(project.checkpoints / "dann_usps.pt")


@pytest.mark.parametrize(("target", "published"), [("svhn", SVHN_FILE), ("usps", USPS_FILE)])
def test_the_shipped_checkpoint_is_preferred_to_the_downloaded(project: Project, target: str, published: str) -> None:
    project.install_inference()
    project.put(*PUBLISHED.values())
    assert project.checkpoint_taken(target) == str(project.checkpoints / published)
    project.put(f"dann_{target}.pt")
    assert project.checkpoint_taken(target) == str(project.checkpoints / f"dann_{target}.pt")


@pytest.mark.parametrize(("target", "published"), [("svhn", SVHN_FILE), ("usps", USPS_FILE)])
def test_without_a_checkpoint_one_sentence_names_both_and_download_sh(
    project: Project, target: str, published: str
) -> None:
    project.install_inference()
    project.put("dann_mnistm.pt")
    assert refusal(project.run("inference.sh", target, "out")) == (
        f"inference.sh: there is neither {project.checkpoints}/dann_{target}.pt nor {project.checkpoints}/{published}:"
        " run 'bash download.sh', or set CHECKPOINT=..."
    )


def test_paths_and_further_flags_arrive_as_they_were_given(project: Project) -> None:
    project.install_inference()
    project.put("dann_usps.pt")
    checkpoint = str(project.checkpoints / "dann_usps.pt")
    flags = ["--probs", "--batch_size", "8", "--device", "cpu"]
    result = project.run("inference.sh", "my usps/*", "../out $x", *flags)
    assert result.returncode == 0
    assert json.loads(result.stdout) == {
        "argv": ["--checkpoint", checkpoint, "--test_loc", "my usps/*", "--out_path", "../out $x", *flags],
        "cwd": str(project.cwd),
        "mark": None,
    }
    assert result.stderr == f"inference.sh: using {checkpoint}\n"


@pytest.mark.parametrize("exit_code", [0, 1, 2])
def test_the_exit_code_of_inference_py_is_passed_through(project: Project, exit_code: int) -> None:
    project.install_inference(exit_code)
    project.put("dann_usps.pt")
    assert project.run("inference.sh", "usps", "out").returncode == exit_code


def test_the_interpreter_in_python_runs_it(project: Project) -> None:
    project.install_inference()
    project.put("dann_usps.pt")
    for place in (project.bin / "python", project.path.parent / "an interpreter"):
        place.write_text(f'#!/bin/bash\nMARK="{place.name}" exec "{sys.executable}" "$@"\n')
        place.chmod(0o755)
    by_default = project.run("inference.sh", "usps", "out", PYTHON="")
    assert json.loads(by_default.stdout)["mark"] == "python"
    named = project.run("inference.sh", "usps", "out", PYTHON="../an interpreter")
    assert json.loads(named.stdout)["mark"] == "an interpreter"


@pytest.mark.parametrize(("script", "args"), [("inference.sh", ("usps", "out")), ("download.sh", ())])
def test_an_interpreter_that_is_not_there_is_named(project: Project, script: str, args: tuple[str, ...]) -> None:
    project.install_inference()
    project.install_gdown("works")
    project.put("dann_usps.pt")
    result = project.run(script, *args, PYTHON="no-such-python")
    assert refusal(result) == (
        f"{script}: there is no 'no-such-python' to run: set PYTHON to an interpreter, such as PYTHON=.venv/bin/python."
    )


@pytest.mark.parametrize(
    "args",
    [(), ("svhn",), ("", "out"), ("svhn", ""), ("my", "svhn", "out"), ("svhn", "out", ""), ("--probs", "svhn", "out")],
)
def test_a_wrong_number_of_folders_gets_the_usage(project: Project, args: tuple[str, ...]) -> None:
    project.install_inference()
    project.put("dann_svhn.pt")
    sentence = "inference.sh: usage: bash inference.sh TEST_FOLDER OUTPUT_DIR [more flags of inference.py]"
    assert refusal(project.run("inference.sh", *args)) == sentence


# ---- both


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize(
    ("script", "usage"),
    [
        ("download.sh", "    bash download.sh"),
        ("inference.sh", "    bash inference.sh TEST_FOLDER OUTPUT_DIR [more flags of inference.py]"),
    ],
)
def test_help_prints_the_header_and_does_nothing(project: Project, script: str, usage: str, flag: str) -> None:
    project.install_gdown("works")
    result = project.run(script, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert usage in result.stdout.splitlines()
    assert "set -euo" not in result.stdout
    assert project.ids_asked_for() == []
