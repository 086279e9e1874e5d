"""fcifar report: what a run came to, and a page of it that is whole in itself."""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fcifar import data, random, recipes
from fcifar.data import Split, make_dataset
from fcifar.errors import UsageError
from fcifar.io import write_text
from fcifar.recipes.trials import make_trials
from fcifar.report import page
from fcifar.report.page.settings import train_command
from fcifar.train import loop, run_dir, sweep
from fcifar.train.config import make_config, read_config
from fcifar.train.runtime import Runtime
from tests.helpers import browser
from tests.helpers.commands import fits

# Names come from outside.
EVIL = ("<script>alert(1)</script>", '" onload="x', "a&b", "</style>", "é ß", *"fghij")
ODD = "run <i>&amp; 'co'"
PAGES = {"run": ["run0"], "odd": [ODD], "pair": ["run0", "run1"], "group": ["g"], "sweep": ["s"]}
VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs, groups, and the data set they were made from."""
    place = tmp_path_factory.mktemp("place")
    train, test = (
        Split(random.randint(random.key(seed), (size, 3, 32, 32), 0, 256).byte(), labels)
        for seed, size in enumerate((42, 23))
        for labels in [torch.arange(size) % 10]
    )
    tiny = make_dataset("tiny", train, test, EVIL, "tests")
    data.save(tiny, place / "data")
    recipe = recipes.get("blitz").replace(batch_size=6, epochs=2, valid_fraction=0.2, log_every=2)
    config = make_config(recipe, tiny, runtime=Runtime(threads=1))
    for seed in (0, 1):
        loop.train(place / f"run{seed}", config.replace(seed=seed), tiny)
    (place / "run1").rename(place / ODD)
    shutil.copytree(place / ODD, place / "run1")
    rates = [(rate, recipe.replace(learning_rate=rate)) for rate in (0.001, 0.01)]
    for name, grid, seeds in (
        ("g", {}, (0, 1, 2)),
        ("s", {"lr": rates, "momentum": [(0.5, recipe.replace(momentum=0.5))]}, (0,)),
    ):
        trials = make_trials(recipe, grid, seeds)
        asked = sweep.Sweep(trials, "loop", config.replace(recipe=trials[0].recipe))
        sweep.train(place / name, asked, tiny)
    return place


@pytest.fixture(autouse=True)
def _copied(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def pages(place: Path) -> dict[str, Path]:
    """A page of each kind."""
    found = {}
    for name, runs in PAGES.items():
        found[name] = place / f"{name}.html"
        write_text(found[name], page.make([place / run for run in runs], place / "data"))
    return found


class Read(HTMLParser):
    """A page as a parser sees it: elements with attributes, what does not close, what it says."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, text: str) -> None:
        self.words += text.strip("\n") + "\n" if text.strip("\n") else ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_refers_to_nothing_outside_itself(pages, name: str) -> None:
    read = Read(pages[name].read_text())
    assert not read.open
    ids = {attributes["id"] for _, attributes in read.elements if "id" in attributes}
    for tag, attributes in read.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "i", "base"), tag
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "srcset", "xlink:href", "poster", "action", "data"):
                assert value.startswith("data:") or value[1:] in ids, (tag, key, value)
            assert "url(" not in value.replace("url(#", "")
            assert "http" not in value or key == "http-equiv" or tag == "meta"
    style = pages[name].read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_by_everybody(pages, name: str) -> None:
    """Headings in order, captions, texts for pictures, boxes that the keyboard can scroll."""
    text = pages[name].read_text()
    read = Read(text)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    assert read.all("html")[0]["lang"]
    assert len(read.all("table")) == len(read.all("caption")) > 3
    assert all(picture["alt"] for picture in read.all("img"))
    assert len(read.all("img")) == 23
    assert all(drawing["aria-label"] for drawing in read.all("svg"))
    assert len(read.all("svg")) >= 3
    assert all(box["tabindex"] == "0" for box in read.all("div") if box.get("class") == "scroll")
    linked = {link["href"][1:] for link in read.all("a")}
    assert linked == {section["id"] for section in read.all("section")} - {"result"}
    for evil in EVIL:
        assert evil in read.words


def test_a_page_says_what_the_run_says(pages, place: Path) -> None:
    read = Read(pages["run"].read_text())
    report = json.loads((place / "run0/report.json").read_text())
    file = (place / "run0/manifest.json").read_bytes()
    manifest = json.loads(file)
    for words in (
        f"{100 * report['test_accuracy']:.2f} %",
        f"{report['test_loss']:.4f}",
        report["params_digest"],
        hashlib.sha256(file).hexdigest(),
        manifest["dataset"]["digest"],
        manifest["environment"]["versions"]["torch"],
        "Changed from the recipe blitz",
        f"fcifar reproduce {shlex.quote(str(place / 'run0'))}",
    ):
        assert words in read.words, words
    assert "valid_fraction\n0.2\n0\n" in read.words


def test_a_comparison_tests_the_differences(pages) -> None:
    read = Read(pages["pair"].read_text())
    assert "p is McNemar's" in read.words
    assert "seed\n0\n1\n" in read.words
    assert "of 2 wrong" in read.words


def test_the_page_of_a_group_says_what_its_runs_say_together(pages, place: Path) -> None:
    summary = json.loads((place / "g/summary.json").read_text())
    read = Read(pages["group"].read_text())
    for value in (summary["test_accuracy"], summary["cells"][0]["together"]["ensemble_accuracy"]):
        assert f"{100 * value:.2f} %" in read.words
    assert "lr by momentum" in Read(pages["sweep"].read_text()).words


def test_a_group_of_more_runs_than_a_page_has_begins_with_the_best(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST", 1)
    read = Read(page.make([place / "s"], place / "data"))
    best = json.loads((place / "s/summary.json").read_text())["best"]
    assert "curves, classes and images of 1 runs" in read.words
    assert f"sum over the runs with {best}" in read.words
    with pytest.raises(UsageError, match="2 runs are too many for one page"):
        page.make([place / "run0", place / "run1"], place / "data")


def test_the_same_run_gives_the_same_page(fcifar, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        done = fcifar("report", "run0", "--html", name)
        assert done.status == 0
        assert fits(done.out)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_command_on_a_page_gives_the_same_bits(fcifar, tmp_path: Path) -> None:
    command = train_command(read_config(tmp_path / "run1"))
    assert command is not None
    done = fcifar(*shlex.split(command)[1:], "--out", "again", "--json", "--quiet")
    then = json.loads((tmp_path / "run1/report.json").read_text())
    assert json.loads(done.out)["params_digest"] == then["params_digest"]


def test_a_page_without_the_data_set_says_so(fcifar, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    assert fcifar("report", "run0", "--html", "page.html", "-q").status == 0
    read = Read((tmp_path / "page.html").read_text())
    assert "the data set tiny is not prepared" in read.words
    assert not read.all("img")
    assert "test/000" in read.words


def test_a_page_of_another_data_set_shows_no_wrong_pictures(fcifar, tmp_path: Path) -> None:
    half = Split(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10)
    data.save(make_dataset("tiny", half, half, EVIL, "tests"), tmp_path / "data")
    assert fcifar("report", "run0", "--html", "page.html", "-q").status == 0
    read = Read((tmp_path / "page.html").read_text())
    assert "is not that of the run" in read.words
    assert not read.all("img")


def test_a_page_without_predictions_says_so(fcifar, tmp_path: Path) -> None:
    (tmp_path / "run0/predictions.safetensors").unlink()
    for name, runs in (("one.html", ["run0"]), ("two.html", ["run0", "run1"])):
        assert fcifar("report", *runs, "--html", name, "-q").status == 0
        assert "predictions" in Read((tmp_path / name).read_text()).words


def test_a_page_without_checksums_leaves_them_out(fcifar, tmp_path: Path) -> None:
    (tmp_path / "run0/SHA256SUMS").unlink()
    done = fcifar("report", "run0", "--html", "page.html", "-q")
    assert done.status == 0, done.err
    words = Read((tmp_path / "page.html").read_text()).words
    assert "digest of the parameters" in words
    assert "manifest's SHA-256" not in words


def test_without_a_page_it_prints_what_training_printed(fcifar, tmp_path: Path) -> None:
    done = fcifar("report", "run0")
    assert done.status == 0
    assert fits(done.out)
    assert "test accuracy" in done.out
    report = json.loads((tmp_path / "run0/report.json").read_text())
    assert report["run_dir"] != "run0"  # the run was copied here
    assert json.loads(fcifar("report", "run0", "--json").out) == {**report, "run_dir": "run0"}
    assert "over 3 seeds" in (group := fcifar("report", "g").out)
    assert [line.split() for line in group.splitlines()][-1] == ["runs", "g"]


def test_plots_draws_the_pictures_again(fcifar, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr("fcifar.report.draw.run", lambda run, data: drawn.append((run, data.name)))
    monkeypatch.setattr("fcifar.report.draw.group", drawn.append)
    assert fcifar("report", "g", "--plots", "-q").status == 0
    g = Path("g")
    assert drawn == [g, *((g / f"seed{seed}", "tiny") for seed in (0, 1, 2))]
    drawn.clear()
    assert fcifar("report", "run0", "--plots", "-q").status == 0
    assert drawn == [(Path("run0"), "tiny")]


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["run0", "--html", "there"], 2, "there already exists; choose another"),
        (["run0", "--html", "run0"], 2, "--html run0 is a folder; give the name of a file"),
        (["run0", "--add", "there"], 2, "--add is for the page of --html; give that, too"),
        (["run0", "run1"], 2, "2 runs need a page: give --html FILE, or use fcifar compare"),
        (["nowhere", "--html", "p"], 2, "there is no nowhere"),
        (["half", "--html", "p"], 2, "half is not finished"),
        (["bad", "--html", "p"], 1, "bad/report.json is damaged: its SHA-256 is not that in"),
        (["odd", "--html", "p"], 1, "odd holds values that fcifar did not write"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    fcifar, tmp_path: Path, words: list[str], status: int, line: str
) -> None:
    (tmp_path / "there").write_text("mine")
    shutil.copytree(tmp_path / "run0", tmp_path / "half")
    (tmp_path / "half/report.json").unlink()
    shutil.copytree(tmp_path / "run0", tmp_path / "bad")
    report = tmp_path / "bad/report.json"
    report.write_text(report.read_text().replace('"seed": 0', '"seed": 3'))
    shutil.copytree(tmp_path / "run0", tmp_path / "odd")
    values = run_dir.read_report(tmp_path / "odd")
    run_dir.write_result(tmp_path / "odd", {**values, "per_class": [1, 2]})
    done = fcifar("report", *words, "-q")
    assert done.status == status
    assert line in done.err
    assert done.err.count("\n") == 1
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "p").exists()


# What other commands wrote -----------------------------------------------------------------------

ASKED = {
    "asked": [
        *("eval", "run0", "--corrupt", "fog:1,contrast", "--attack", "fgsm:1/255"),
        *("--attack", "pgd:2/255,2", "--explain", "integrated_gradients"),
    ],
    "both": ["eval", "run0", "run1", "--corrupt", "fog:1"],
    "influence": ["influence", "run0", "--image", "3"],
    "between": ["compare", "run0", "run1", "--path", "--points", "3"],
    "suspects": ["labels", "tiny", "--runs", "run0"],
}


def test_a_page_has_what_other_commands_wrote(fcifar, tmp_path: Path) -> None:
    add = []
    for name, words in ASKED.items():
        done = fcifar(*words, "--out", name, "-q")
        assert done.status == 0, done.err
        add += ["--add", name]
    done = fcifar("report", "run0", *add, "--html", "page.html", "-q")
    assert done.status == 0, done.err
    text = (tmp_path / "page.html").read_text()
    read = Read(text)
    assert not read.open
    assert [link["href"] for link in read.all("a")][4:-4] == [
        *("#corruptions", "#attacks", "#attributions", "#corruptions-2", "#influence"),
        *("#between", "#labels"),
    ]
    sheets = [each for each in read.all("img") if each.get("class") == "sheet"]
    assert len(sheets) == 6
    assert all(each["src"].startswith("data:image/png;base64,") for each in sheets)
    assert all(evil in read.words for evil in EVIL)
    attacks = json.loads((tmp_path / "asked/report.json").read_text())["attacks"]
    for each in attacks["found"]:
        assert f"{each['attack']}\n{100 * each['accuracy']:.2f} %" in read.words
    between = json.loads((tmp_path / "between/report.json").read_text())
    assert f"as trained\n{between['curves'][0]['loss_barrier']['height']:.3f}\n" in read.words
    assert fcifar("report", "run0", "run1", "--add", "both", "--html", "2.html", "-q").status == 0
    assert "#corruptions" in (tmp_path / "2.html").read_text()


@pytest.mark.parametrize(
    ("add", "status", "line"),
    [
        ("nowhere", 2, "--add nowhere has no report.json that can be read (No such file"),
        ("run0", 2, "run0/report.json has no corruptions, attacks, attributions, influence"),
        ("other", 2, "other/report.json is of the parameters abc, and not of those of this page"),
        ("unnamed", 2, "is of the parameters of a run that it does not name, and not of"),
        ("text", 1, "text/report.json"),
        ("odd", 1, "odd/report.json holds values that fcifar did not write"),
        ("torn", 1, "torn/sheet.png is damaged"),
    ],
)
def test_what_is_not_of_the_runs_is_refused_in_one_line(
    fcifar, tmp_path: Path, add: str, status: int, line: str
) -> None:
    suspects = {"images": [], "pairs": [], "examined": 1, "n": 1, "found": 0, "estimated": 0}
    suspects["accuracy"] = 1.0
    for name, values in {
        "other": {**suspects, "params_digests": ["abc"]},
        "unnamed": suspects,
        "text": "not JSON",
        "odd": {"attacks": 3},
        "torn": suspects,
    }.items():
        (tmp_path / name).mkdir()
        text = values if isinstance(values, str) else json.dumps(values)
        (tmp_path / name / "report.json").write_text(text)
    (tmp_path / "torn/sheet.png").write_bytes(b"not a PNG file")
    done = fcifar("report", "run0", "--html", "p", "--add", add, "-q")
    assert done.status == status
    assert line in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_force_replaces(fcifar, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    assert fcifar("report", "run0", "--html", "there", "--force", "-q").status == 0
    assert (tmp_path / "there").read_text().startswith("<!doctype html>")


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def see(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    if not browser.find():
        pytest.skip(f"needs one of {', '.join(browser.NAMES)} (apt-get install chromium)")
    with browser.browsing(tmp_path_factory.mktemp("profile")) as see:
        yield see


@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_it_and_asks_for_nothing(see, pages, name: str) -> None:
    for width, dark in ((390, True), (1280, False)):
        seen = see(pages[name], width=width, dark=dark)
        asked = [url for url in seen.requests if not url.startswith("data:")]
        assert asked == [pages[name].resolve().as_uri()]
        assert not seen.complaints
        assert seen.window == width
        assert seen.content <= width, "the page scrolls sideways"
        brightness = sum(map(int, re.findall(r"\d+", seen.background)[:3])) / 3
        assert brightness < 50 if dark else brightness > 200


def test_the_browser_would_have_told(see, tmp_path: Path) -> None:
    """A page that is none of ours: it asks, it complains, and it is too wide."""
    page = tmp_path / "page.html"
    page.write_text(
        '<body style="width: 2000px"><img src="nothing.png"><script>console.log("x")</script>'
    )
    seen = see(page, width=390, dark=False)
    assert any(url.endswith("nothing.png") for url in seen.requests)
    assert seen.complaints
    assert seen.content > 390
