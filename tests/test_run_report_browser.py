"""report.html as a browser shows it: a real Chromium opens the file, and nothing else."""

import itertools
import math
import shutil

import pytest
from report_runs import HOSTILE, QUESTIONS, question, told, write_run

from run.report import write_report

pytestmark = pytest.mark.slow
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WIDTHS, SCHEMES = (1280, 390), {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 20, 23)"}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Open a file at a width and in a colour scheme; afterwards nothing went wrong."""
    opened, wrong = [], []

    def show(path, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        context.set_default_timeout(10_000)
        opened.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        address = path.absolute().as_uri()
        page.on("request", lambda asked: asked.url == address or wrong.append(asked.url))
        page.goto(address)
        return page

    show.wrong = wrong
    yield show
    for context in opened:
        context.close()
    assert wrong == []  # no message, no error, no request but for the file itself


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with 45 questions, and their pages: each alone, and side by side."""
    folder = tmp_path_factory.mktemp("runs")
    more = [question(f"More {i}", (0.6, 0.4), (0.61, 0.39)) for i in range(41)]
    one = write_run(folder / "one", [*QUESTIONS, *more], steps=300)
    other = [question(QUESTIONS[1]["prompt"], (0.9, 0.1), (0.8, 0.2), category="Animals")]
    two = write_run(folder / "two", [*other, QUESTIONS[0]], steps=200)
    everything = ("summary", "evaluation", "samples", "questions")
    going_on = write_run(folder / "going-on", steps=1, without=everything)
    for run in (one, going_on):
        write_report(run)
    write_report(one, two, output=folder / "both.html")
    pages = {"one": one, "going-on": going_on}
    return {name: run / "report.html" for name, run in pages.items()} | {
        "both": folder / "both.html"
    }


@pytest.mark.parametrize("name", ["one", "both", "going-on"])
def test_a_page_fits_its_window_and_says_nothing_on_the_console(name, runs, show):
    page = show(runs[name])
    assert page.locator("h1").is_visible()
    assert page.locator("figure svg.plane").count() >= 6
    for width, (scheme, color) in itertools.product(WIDTHS, SCHEMES.items()):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == color
    for gone in ("NaN", "undefined", "null"):
        assert gone not in page.locator("main").inner_text()


def prompts(page):
    return page.locator(".asked .head .prompt").all_inner_texts()


def test_questions_are_filtered_searched_and_sorted(runs, show):
    page = show(runs["one"])
    assert len(prompts(page)) == 20 and prompts(page)[:2] == ["Down", "Up"]
    more = page.get_by_role("button", name="Show 20 more")
    more.click()
    more.click()
    assert len(prompts(page)) == 45 and not more.is_visible()
    page.get_by_label("Sort by").select_option("gained most")
    assert prompts(page)[0] == "Up"
    page.get_by_label("Sort by").select_option("lost most")
    assert prompts(page)[0] == "Down"
    page.get_by_label("Sort by").select_option("as in the data")
    assert prompts(page)[:5] == ["Up", "Down", "Held", "Never", "More 0"]
    page.get_by_role("radio", name="Lost 1").check(force=True)
    assert prompts(page) == ["Down"]
    assert (
        "1 of 45 questions: it did before, and no longer does"
        in page.locator("#count").inner_text()
    )
    page.keyboard.press("ArrowLeft")  # the keyboard moves to the filter beside it
    assert prompts(page) == ["Up"]
    page.get_by_role("radio", name="All 45").check(force=True)
    more_with_a_3 = [f"More {i}" for i in range(41) if "3" in str(i)]
    cases = (("animals", ["Down"]), ("MORE 3", more_with_a_3), ("nobody said this", []))
    for words, found in cases:
        page.get_by_label("Search").fill(words)
        assert prompts(page) == found


def test_bars_have_the_width_of_their_share_a_sign_and_a_pattern(runs, show):
    page = show(runs["one"])
    page.get_by_label("Search").fill("Down")
    answers = page.locator(".answers > li")
    assert answers.locator(".sign").all_inner_texts() == ["✓", "✗"]
    assert answers.locator(".value").all_inner_texts() == ["90.0%", "20.0%", "10.0%", "80.0%"]
    assert "MC2 0.900 → 0.200 ▼ \u22120.700" in page.locator(".badge").inner_text()
    widths = answers.locator(".fill").evaluate_all(
        "fills => fills.map(fill => fill.offsetWidth / fill.parentNode.offsetWidth)"
    )
    assert widths == pytest.approx([0.9, 0.2, 0.1, 0.8], abs=0.01)
    right, wrong = (
        page.locator(f".answers .{kind} .fill").first.evaluate(
            "f => getComputedStyle(f).backgroundImage"
        )
        for kind in ("right", "wrong")
    )
    assert right == "none" and "repeating-linear-gradient" in wrong


def test_the_slider_moves_through_the_measured_sizes(runs, show):
    page = show(runs["one"])
    slider, said = page.get_by_role("slider"), page.locator("#slider output")
    assert (
        said.inner_text().startswith("Size 0.5:\nMC1 0.300") and "+5.0% harder" in said.inner_text()
    )
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith("Size 1:\nMC1 0.400")
    assert page.locator('tr[aria-current="true"] th').inner_text() == "1"
    here = page.locator("#dial .mark.here")
    assert here.count() == 5 and here.first.get_attribute("data-size") == "1"  # 3 gains, 2 kinds
    page.locator(".stops button").first.click()
    assert said.inner_text().startswith("Size 0:\nMC1 0.200")
    assert slider.get_attribute("aria-valuetext") == "size 0"


def ticks(page, figure):
    return [float(t.replace("\u2212", "-")) for t in figure.locator(".tick").all_text_contents()]


def test_dragging_over_a_curve_zooms_all_of_them_and_a_key_shows_the_whole_run(runs, show):
    page = show(runs["one"])
    figures = page.locator("#curve-charts figure")
    whole = ticks(page, figures.first)
    assert (whole[0], whole[-1]) == (0, 250 if whole[1] == 50 else 300) and figures.count() == 6
    figures.first.scroll_into_view_if_needed()
    box = figures.first.locator("svg.plane").bounding_box()
    across = [box["x"] + box["width"] * (48 + 300 * part) / 360 for part in (0.5, 0.75)]
    page.mouse.move(across[0], box["y"] + 80)
    page.mouse.down()
    page.mouse.move(across[1], box["y"] + 80)
    assert "step 22" in figures.first.locator(".readout").inner_text()
    page.mouse.up()
    for figure in (figures.first, figures.last):
        zoomed = ticks(page, figure)
        assert min(zoomed) >= 149 and max(zoomed) <= 226 and len(zoomed) >= 4
    figures.last.focus()
    page.keyboard.press("+")
    assert max(ticks(page, figures.first)) - min(ticks(page, figures.first)) < 45
    page.keyboard.press("0")
    assert ticks(page, figures.first) == whole
    page.get_by_role("button", name="Zoom in").click()
    assert ticks(page, figures.last) != whole


def test_hostile_text_stays_text(tmp_path, show):
    """As prompts, answers and categories, and all of it in every other text of the run."""
    questions = [
        question(text, (1, 2), (2, 1), category=text, texts=[text, text]) for text in HOSTILE
    ]
    folder = write_run(tmp_path / "run", questions)
    kept = (folder / "questions.json").read_text()
    told(folder, lambda _: "\n".join(HOSTILE))
    (folder / "questions.json").write_text(kept)
    write_report(folder)
    page = show(folder / "report.html")
    page.get_by_label("Sort by").select_option("as in the data")
    assert page.evaluate("window.obeyed") is None
    assert page.evaluate("document.scripts.length") == 2
    assert page.locator("img, iframe, main b:not(.chip b):not(.badge b), main a").count() == 0
    for place in (".asked .prompt", ".said > bdi", ".category"):
        shown = page.locator(place).all_text_contents()
        assert list(dict.fromkeys(shown)) == HOSTILE, place
    whole = "\n".join(HOSTILE).replace("\x00", "")  # which HTML has not
    for place in (".sample .prompt", ".sample dd", ".lines dd", ".words tr:nth-last-child(2) td"):
        assert page.locator(place).last.evaluate("node => node.textContent") == whole, place


def test_right_to_left_text_leaves_what_is_around_it_in_its_place(tmp_path, show):
    texts = ["\u202e\u05e9\u05dc\u05d5\u05dd evil", "\u05dc\u05d0"]
    folder = write_run(tmp_path / "run", [question("\u202eQ", (1, 2), (2, 1), texts=texts)])
    write_report(folder)
    page = show(folder / "report.html")
    assert "Wrong" not in page.locator(".badge").inner_text()
    sign = page.locator(".said .sign").first.bounding_box()
    text = page.locator(".said bdi").first.bounding_box()
    assert sign["width"] and (
        sign["x"] + sign["width"] <= text["x"] or sign["x"] >= text["x"] + text["width"]
    )


def test_a_script_that_were_in_the_page_would_not_run(runs, show):
    """The policy holds even where text became markup: the browser complains, and that is all."""
    page = show(runs["one"])
    done = page.evaluate(
        """() => new Promise(done => {
            const found = event => done(event.effectiveDirective);
            document.addEventListener("securitypolicyviolation", found);
            const script = document.createElement("script");
            script.textContent = "window.obeyed = 1";
            document.body.append(script);
            setTimeout(() => done("nothing"), 2000);
        })"""
    )
    assert done.startswith("script-src") and page.evaluate("window.obeyed") is None
    assert "Content Security Policy" in show.wrong.pop()


def test_a_long_answer_is_a_click_away_and_one_of_a_megabyte_is_cut(tmp_path, show):
    texts = ["word " * 200, "x" * 10**6]
    folder = write_run(tmp_path / "run", [question("Q", (1, 2), (2, 1), texts=texts)])
    write_report(folder)
    page = show(folder / "report.html", width=390)
    first, second = page.locator(".said details").all()
    assert len(first.inner_text()) < 400
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.inner_text().count("word") >= 200
    second.locator("summary").click()
    assert "[cut here; 1,000,000 characters in all]" in second.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_scores_that_are_no_numbers_are_question_marks(tmp_path, show):
    one = question("Q", (1, 2), (2, 1))
    one["answers"][1]["after"] = math.nan
    write_report(folder := write_run(tmp_path / "run", [one]))
    page = show(folder / "report.html")
    assert "MC2 0.333 → ?" in page.locator(".badge").inner_text()
    assert page.locator(".value").all_inner_texts() == ["33.3%", "?", "66.7%", "?"]


def test_two_runs_show_first_where_they_differ(runs, show):
    page = show(runs["both"])
    assert prompts(page) == ["Down"]
    bars = page.locator(".answers").first.locator("li").first.locator(".of")
    assert bars.all_inner_texts() == ["before", "one", "two"]
    assert page.get_by_role("radio", name="They differ 1").is_checked()
    page.get_by_role("radio", name="All 2").check(force=True)
    assert prompts(page) == ["Down", "Up"]
    assert page.locator("#curve-charts figure").first.locator(".legend li").all_text_contents() == [
        "one",
        "two",
    ]


def test_printing_leaves_controls_out_and_opens_what_is_folded(runs, show):
    page = show(runs["one"])
    page.emulate_media(media="print")
    assert not page.locator(".controls").first.is_visible() and not page.locator("nav").is_visible()
    assert page.locator(".asked .fill").first.is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
