"""A page of a run says and shows what the run measured, needs no network, and works in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ended, quick_run

import page
import report
from dataset import Domain
from latent import Side
from runs import in_words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def data_of(file: Path) -> dict[str, Any]:
    """What the script of a page draws."""
    found = re.search(r"^const data = (\{.*\});$", file.read_text(encoding="utf-8"), flags=re.M)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


@pytest.fixture(scope="module")
def kept_run(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a dann run with two checkpoints, of steps 6 and 12. Read only."""
    return Path(quick_run(small_data, tmp_path_factory.mktemp("kept"), "dann", "usps", "--topk", "2")["folder"])


def test_a_page_shows_every_validation_image_of_each_kept_checkpoint_as_the_run_answered_it(
    kept_run: Path, dann_run: Path, tmp_path: Path
) -> None:
    result = json.loads((kept_run / "result.json").read_text())
    code, out, _ = ended(report, kept_run, "--html", tmp_path / "run.html", "--out_path", tmp_path / "x.png")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "run.html"))
    data = data_of(tmp_path / "run.html")
    (view,) = data["latent"]
    assert [step["step"] for step in view["steps"]] == [6, 12]
    last, target = view["steps"][view["selected"]], view["domains"][1]
    assert len(last["points"]) == 40
    right = np.equal(target["labels"], last["answers"][1]).mean()
    assert right == pytest.approx(result["target_val_accuracy"])
    counts = np.array(data["confusions"][0]["counts"])
    assert counts.trace() / counts.sum() == pytest.approx(result["target_val_accuracy"])
    text = html.unescape((tmp_path / "run.html").read_text())
    assert text.count("<figure ") == counts.sum() - counts.trace()
    assert all(f">{sentence}</li>" in text for sentence in in_words(result))


def test_runs_are_compared_in_one_page_and_images_that_both_show_are_in_it_once(
    kept_run: Path, dann_run: Path, tmp_path: Path
) -> None:
    report.main(
        [str(kept_run), str(dann_run), "--html", str(tmp_path / "x.html"), "--out_path", str(tmp_path / "x.png")]
    )
    data = data_of(tmp_path / "x.html")
    assert (len(data["latent"]), len(data["sheets"])) == (2, 2)
    colours = {(line["run"], line["colour"]) for panel in data["curves"] for line in panel["lines"]}
    assert len(colours) == 2
    assert "Comparison" in (tmp_path / "x.html").read_text()


def test_where_the_images_are_gone_the_page_says_so_and_has_the_figures_of_the_run(
    kept_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(kept_run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    result["args"]["data_root"] = str(tmp_path / "gone")
    (run / "result.json").write_text(json.dumps(result))
    code, out, _ = ended(report, run, "--html", tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    assert (code, str(tmp_path / "gone") in out, str(tmp_path / "gone") in text) == (1, True, True)
    assert text.count('class="wide" src="data:image/png') == 2
    assert data_of(tmp_path / "run.html")["latent"] == []


def test_a_run_whose_checkpoints_are_gone_or_damaged_stands_in_the_page_of_several_without_its_images(
    kept_run: Path, dann_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(kept_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt"))
    flags = ("--html", tmp_path / "run.html", "--out_path", tmp_path / "x.png")
    for damaged in (False, True):
        if damaged:
            (run / "last.pt").write_bytes(b"PK")
        code, out, _ = ended(report, run, dann_run, *flags)
        assert (code, re.search(f"the validation images are not shown: .*{run}", out) is not None) == (1, True)
        assert [view["run"] for view in data_of(tmp_path / "run.html")["latent"]] == [dann_run.name]
        assert "the validation images are not shown" in (tmp_path / "run.html").read_text()


def test_a_page_without_plotly_or_with_no_pages_name_is_refused_and_nothing_is_written(
    dann_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = ended(report, dann_run, "--html", tmp_path / "run.png", "--out_path", tmp_path / "x.png")
    assert (code, "--html" in error) == (2, True)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, error = ended(report, dann_run, "--html", tmp_path / "run.html", "--out_path", tmp_path / "x.png")
    assert (code, "pip install plotly" in error) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_a_value_that_the_page_states_is_refused_by_file_and_key(
    kept_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(kept_run, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    for key in ("warnings", "images", "device"):
        (run / "result.json").write_text(json.dumps({k: value for k, value in result.items() if k != key}))
        code, _, error = ended(report, run, "--html", tmp_path / "run.html")
        assert (code, str(run / "result.json") in error, key in error) == (2, True, True)
    assert not (tmp_path / "run.html").exists()


@pytest.fixture(scope="module")
def large_page(dann_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 1,000 + 1,000 images of noise, the worst to compress, and of names that are code."""
    rng = np.random.default_rng(0)
    classes = ["</script><b>", "$5", *map(str, range(8))]
    sides = []
    for name in ("<i>source", "target"):
        names = [f"{k}.png" for k in range(1000)]
        images = torch.from_numpy(rng.integers(0, 256, (1000, 28, 28, 3), dtype=np.uint8))
        p = torch.from_numpy(rng.dirichlet(np.ones(10), 1000).astype(np.float32))
        labels = torch.zeros(1000, dtype=torch.int64)
        sides.append(Side(p, p, None, name, "val", Domain(images, labels, names), list(range(1000))))
    result = json.loads((dann_run / "result.json").read_text())
    step = result["selected_step"]
    views = {step - 1: (sides, rng.normal(size=(2000, 2))), step: (sides, rng.normal(size=(2000, 2)))}
    file = tmp_path_factory.mktemp("large") / "run.html"
    page.write_page(file, [page.Seen("run", dann_run, result, classes, views)], "")
    return file


def test_a_page_of_two_thousand_images_is_below_eight_megabytes_and_names_no_address_to_load(large_page: Path) -> None:
    assert large_page.stat().st_size < 8e6
    frame = page.FRAME.read_text()
    assert "default-src 'none'" in frame
    assert "http:" not in frame + page.FRAME.name
    assert "https:" not in frame


# In a browser: what a reader does is done by a script behind the page's own
ACTS = """<script>
const count = () => document.querySelectorAll("#latent .points path").length;
const press = (kind, k) => document.querySelectorAll(`#controls input[type=${kind}]`)[k].click();
const box = document.querySelector("#latent .points path").getBoundingClientRect();
const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
document.querySelector("#latent .nsewdrag").dispatchEvent(new MouseEvent("mousemove", at));
setTimeout(() => {
  const card = document.getElementById("card"), seen = { card: card.innerText, points: [count()] };
  seen.shown = getComputedStyle(card).display;
  const edges = card.getBoundingClientRect();
  seen.away = Math.min(Math.abs(edges.top - at.clientY), Math.abs(edges.bottom - at.clientY));
  seen.image = getComputedStyle(card.firstChild).backgroundImage.slice(0, 16);
  press("checkbox", 0);
  seen.points.push(count());
  press("radio", 2);
  seen.legend = document.querySelectorAll("#latent .legend .traces").length;
  document.querySelector("#controls input[type=range]").value = 0;
  document.querySelector("#controls input[type=range]").oninput();
  seen.words = document.getElementById("words").innerText;
  document.title = JSON.stringify(seen);
}, 500);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_the_points_are_there_and_show_their_image_under_the_pointer_without_an_error(
    large_page: Path, dann_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.html").write_text(large_page.read_text().replace("</body>", ACTS))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1400,1200", "--dump-dom"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, (tmp_path / "run.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    seen = json.loads(html.unescape(title[1]))
    assert seen["points"] == [2000, 1000]  # the source switched off
    assert seen["away"] < 20  # pixels of the pointer
    assert seen["legend"] == 1  # by domain
    assert f"step {json.loads((dann_run / 'result.json').read_text())['selected_step'] - 1}:" in seen["words"]
    assert (seen["shown"], seen["image"]) == ("block", 'url("data:image/')
    for words in ("<i>source: ", ".png", "label: </script><b>", "confidence 0."):
        assert words in seen["card"]
