"""report.html: what it says of a run or of several, that it stays small, and obeys no text."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
import transformers
from report_runs import HOSTILE, QUESTIONS, question, told, write_run

from run import report
from run.__main__ import main
from run.page import beliefs, charts
from run.page.reading import read_run
from run.report import page

TABLES = ("measures", "costs", "settings", "samples", "remarks", "dials")


def text(*folders):
    return page([read_run(folder) for folder in folders])


def moving(page_text):
    """The values that the script draws."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page_text, re.S)
    return json.loads(found[1])


def asked(*folders, most=500):
    return beliefs.questions([read_run(folder) for folder in folders], most)


class Tags(HTMLParser):
    """What a page is made of, its texts aside."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, [name for name, _ in attributes]))

    def handle_comment(self, _):
        self.found.append("comment")


def test_shares_sum_to_one_and_those_of_right_answers_to_mc2(tmp_path):
    """Of .2, .3, .5 the second is wrong: MC2 is .7. Of .5, .25, .25 it is .75."""
    one = question("Q", (0.2, 0.3, 0.5), (2.0, 1.0, 1.0), ("chosen", "rejected", "correct"))
    (found,) = asked(write_run(tmp_path / "run", [one]))["questions"]
    assert found["mc2"] == pytest.approx([0.7, 0.75], abs=1e-4)
    assert found["change"] == pytest.approx(0.05, abs=1e-4)
    shares = [answer["shares"] for answer in found["answers"]]
    assert [s[0] for s in shares] == pytest.approx([0.2, 0.3, 0.5], abs=1e-4)
    assert [s[1] for s in shares] == pytest.approx([0.5, 0.25, 0.25], abs=1e-4)
    assert [answer["right"] for answer in found["answers"]] == [True, False, True]
    assert found["status"] == "gained"  # .2 is below .3, and .5 above .25


@pytest.mark.parametrize(
    "before, after, status",
    [((1, 2), (2, 1), "gained"), ((2, 1), (1, 2), "lost"), ((2, 1), (3, 1), "right"),
     ((1, 2), (1, 3), "wrong"), ((1, 1), (2, 1), "gained"), ((1, 1), (1, 2), "lost"),
     ((1, 1), (1, 1), "wrong")],
)  # fmt: skip
def test_a_question_is_gained_or_lost_by_its_best_answer_and_a_tie_is_half_of_it(
    before, after, status, tmp_path
):
    folder = write_run(tmp_path / "run", [question("Q", before, after)])
    assert asked(folder)["questions"][0]["status"] == status


def test_a_runs_answers_are_kept_as_its_models_score_them_and_average_to_its_table(
    plain_pictures, finished, model_folder
):
    kept = json.loads((finished / "questions.json").read_text())
    assert kept["held_out"] == len(kept["questions"]) == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    for when, folder in (("before", model_folder), ("after", finished / "merged")):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for q in kept["questions"]:
            prompt = tokenizer(f"<s>{q['prompt']}").input_ids
            for answer in q["answers"]:
                ids = tokenizer(f" {answer['text']}</s>").input_ids
                assert len(ids) == answer["tokens"]
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
                logp = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
                assert answer[when] == pytest.approx(float(logp), abs=2e-3)
    results = json.loads((finished / "evaluation.json").read_text())
    found = moving((finished / "report.html").read_text(encoding="utf-8"))["questions"]
    for i, when in enumerate(("before", "after")):
        mean = sum(q["mc2"][i] for q in found["questions"]) / len(found["questions"])
        assert mean == pytest.approx(results[when]["mc2"], abs=1e-4)
    summary = json.loads((finished / "summary.json").read_text())
    assert ["kept", "every row"] in summary["data_report"]


def test_the_page_says_what_the_files_say(tmp_path):
    found = text(write_run(tmp_path / "run", QUESTIONS))
    assert "google/gemma-3-270m, tuned by direct preference" in found
    assert "320 pairs from 96 questions of questions.csv" in found  # 100 but for 4 held out
    assert "0.5 times the trained delta" in found
    row = re.search(r"<th[^>]*>MC1</th>(.*?)</tr>", found, re.S)[1]
    assert re.findall(r">([^<>]*\d[^<>]*)</td>", row) == [
        "0.400", "0.600", "▲ +0.200", "+0.050 to +0.350", "0.0100",
    ]  # fmt: skip
    for said in ("0.100 nats a token", "16.00 → 16.80 (+5.0%)", "3.0 times as many", "1.00 GiB"):
        assert said in found
    assert "empty answers, left out: 1 (questions.csv, line 7)" in found
    assert "For a reason" in found and "did not end" in found
    assert "was not kept" not in found and 'class="gap"' not in found.split("<noscript>")[0]


def test_hostile_text_makes_the_same_page_as_plain_text(tmp_path):
    """And what the script draws is the text as it was."""
    plain = write_run(tmp_path / "run", [question("Q", (1, 2), (2, 1), category="c")] * 2)
    expected = Tags(text(plain)).found
    for i, hostile in enumerate(HOSTILE):
        folder = write_run(tmp_path / f"run{i}", [question("Q", (1, 2), (2, 1), category="c")] * 2)
        told(folder, lambda _, hostile=hostile: hostile)
        found = text(folder)
        assert Tags(found).found == expected, hostile
        assert len(re.findall(r"<script|</script", found)) == 4
        one = moving(found)["questions"]["questions"][0]
        assert {one["prompt"], one["category"], one["answers"][0]["text"]} == {hostile}


def test_names_are_shown_and_never_obeyed(tmp_path):
    expected = Tags(text(write_run(tmp_path / "run", QUESTIONS, data="a.csv"))).found
    folder = write_run(tmp_path / "<img src=x>", QUESTIONS, data="<script>x<b>.csv")
    found = text(folder)
    assert Tags(found).found == expected and "&lt;img src=x&gt;" in found


def test_the_browser_is_told_to_obey_our_script_and_style_alone(tmp_path):
    found = text(write_run(tmp_path / "run", QUESTIONS))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', found)[1].replace(
        "&#39;", "'"
    )
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for name in ("script", "style"):
        (own,) = re.findall(rf"<{name}>(.*?)</{name}>", found, re.S)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href)=\"(?!#)", found)  # nothing is fetched


def test_a_page_stays_below_5_mb_and_says_what_was_cut(tmp_path):
    kinds = ("chosen", *["rejected"] * 5)
    long = [question("Q" * 5000, range(1, 7), range(1, 7), kinds, texts=["<é" * 1000] * 6)] * 499
    huge = question("Huge", (1, 2), (2, 1), texts=["x" * 10**6, "y"])
    folder = write_run(tmp_path / "run", [*long, huge])
    found = text(folder)
    assert 3 * 10**5 < len(found.encode()) <= 5 * 10**6
    shown = moving(found)["questions"]["questions"]
    assert len(shown) == 500
    assert shown[-1]["answers"][0]["text"].endswith("[cut here; 1,000,000 characters in all]")


def test_of_more_questions_than_fit_some_are_shown_evenly_and_that_is_said(tmp_path, monkeypatch):
    questions = [question(f"Q{i:03}", (1, 2), (2, 1)) for i in range(60)]
    folder = write_run(tmp_path / "run", questions, held_out=4000)
    found = text(folder)
    assert "60 of 4,000 held-out questions are shown, chosen evenly" in found
    monkeypatch.setattr(report, "LIMIT", len(found.encode()) - 1000)
    shown = [q["prompt"] for q in moving(text(folder))["questions"]["questions"]]
    assert shown == [f"Q{i:03}" for i in range(0, 60, 2)]
    assert "30 of 4,000 held-out questions are shown" in text(folder)


def test_a_run_of_before_gets_its_page_and_hears_what_it_lacks(tmp_path):
    folder = write_run(tmp_path / "run", QUESTIONS, without=("questions",))
    for name, gone in (("evaluation", "dial"), ("summary", "data_report")):
        value = json.loads((folder / f"{name}.json").read_text())
        del value[gone]
        (folder / f"{name}.json").write_text(json.dumps(value))
    found = text(folder)
    assert "0.600" in found and "<h2>The dial" not in found and "<h2>The held-out" not in found
    for what in ("The dial was not measured yet", "Answers to held-out questions were not kept",
                 "What was left out of the data was not kept"):  # fmt: skip
        assert what in found
    assert "python -m run scale RUN OUT --scale 0.5" in found


def test_a_run_that_goes_on_gets_a_page_of_its_curves(tmp_path):
    everything = ("summary", "evaluation", "samples", "questions")
    folder = write_run(tmp_path / "run", without=everything)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 40, "lo')  # by a kill
    found = text(folder)
    assert "The run is not finished" in found
    (line, _) = moving(found)["curves"][0]["lines"]
    assert len(line["x"]) == 40
    (folder / "metrics.jsonl").unlink()
    assert moving(text(folder))["curves"] == []


def test_a_run_that_was_killed_before_its_summary_gets_its_page_too(tmp_path):
    found = text(write_run(tmp_path / "run", QUESTIONS, without=("summary",)))
    assert "0.600" in found and "tuned by direct preference optimization" in found
    assert moving(found)["sizes"]["start"] == 1


def test_a_run_that_held_nothing_out_says_so(tmp_path):
    folder = write_run(tmp_path / "run", without=("questions", "samples"))
    (folder / "evaluation.json").write_text('{"questions": 0}')
    assert "No question was held out, so nothing was measured" in text(folder)


def test_numbers_that_are_none_are_null(tmp_path):
    folder = write_run(tmp_path / "run", [question("Q", (1, 2), (2, 1))])
    value = json.loads((folder / "questions.json").read_text())
    value["questions"][0]["answers"][1]["after"] = math.nan
    (folder / "questions.json").write_text(json.dumps(value))
    (one,) = moving(text(folder))["questions"]["questions"]
    assert one["mc2"][1] is None and one["mc2"][0] == pytest.approx(1 / 3, abs=1e-4)


def test_long_curves_are_thinned_to_means_and_keep_their_ends(tmp_path):
    folder = write_run(tmp_path / "run", steps=5000)
    for panel in charts.curve_panels([read_run(folder)]):
        for line in panel["lines"]:
            assert len(line["x"]) == len(line["y"]) <= charts.POINTS
    loss = charts.curve_panels([read_run(folder)])[0]["lines"][0]
    width = 5000 // len(loss["x"]) + (5000 % len(loss["x"]) > 0)
    assert loss["x"][0] == (width - 1) / 2  # the mean of 0, 1, ..., width - 1
    expected = 0.7 - 0.3 * loss["x"][0] / 5000
    assert loss["y"][0] == pytest.approx(expected, abs=1e-5)


def test_what_all_prompts_share_is_taken_off_them_and_said_once(tmp_path):
    questions = [question(f"Question: {w}\nAnswer:", (1, 2), (2, 1)) for w in ("Why?", "Who?", "W")]
    folder = write_run(tmp_path / "run", questions)
    found = asked(folder)
    assert [q["prompt"] for q in found["questions"]] == ["Why?", "Who?", "W"]
    assert (found["prefix"], found["suffix"]) == ("Question:", "Answer:")
    assert beliefs.shared_ends(["Question: a\nAnswer:"] * 2) == ("", "")
    assert beliefs.shared_ends(["What a", "What b", "What c"]) == ("", "")
    assert beliefs.shared_ends(["a", "a", "a"]) == ("", "")
    assert beliefs.shared_ends(["\na", "\na", "\na"]) == ("\n", "")


def test_two_runs_stand_side_by_side_and_differ_in_verdict_or_in_mc2(tmp_path):
    """Before, the best answer has 1/2. In MC2: .7 and .8 agree, .7 and .9 do not."""
    before = (1, 1)
    first = [question(p, before, after) for p, after in
             (("Verdict", (0.52, 0.48)), ("Agree", (0.7, 0.3)), ("Far", (0.7, 0.3)),
              ("Both wrong", (0.3, 0.7)), ("Alone", (1, 1)))]  # fmt: skip
    second = [question(p, before, after) for p, after in
              (("Verdict", (0.48, 0.52)), ("Agree", (0.75, 0.25)), ("Far", (0.9, 0.1)),
               ("Both wrong", (0.35, 0.65)), ("Not there", (1, 1)))]  # fmt: skip
    a, b = write_run(tmp_path / "a", first), write_run(tmp_path / "b", second, lr=0.5, steps=20)
    found = asked(a, b)
    assert found["bars"] == ["before", "a", "b"]
    assert {q["prompt"]: q["status"] for q in found["questions"]} == {
        "Verdict": "differ", "Agree": "right", "Far": "differ", "Both wrong": "wrong",
    }  # fmt: skip
    assert found["questions"][2]["mc2"] == pytest.approx([0.5, 0.7, 0.9], abs=1e-4)
    assert found["questions"][2]["change"] == pytest.approx(0.2, abs=1e-4)
    whole = text(a, b)
    rows = re.search(r'<th[^>]*rowspan="2">MC1</th>(.*?)<th', whole, re.S)[1]
    assert [*re.findall(r"<bdi>(\w)</bdi>", rows)] == ["a", "b"]
    different = whole[whole.index("Different between the runs") :].split("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]*)', different) == ["lr"]
    curves = moving(whole)["curves"]
    assert [line["label"] for line in curves[0]["lines"]] == ["a", "b"]
    assert [line["label"] for line in moving(whole)["dial"][0]["lines"]] == ["a", "b"]


def test_runs_of_other_models_have_a_start_of_their_own(tmp_path):
    a = write_run(tmp_path / "a", [question("Q", (1, 1), (2, 1))])
    b = write_run(tmp_path / "b", [question("Q", (1, 3), (1, 1))])
    assert asked(a, b)["bars"] == ["before a", "a", "before b", "b"]
    assert asked(a, b)["questions"][0]["mc2"] == pytest.approx(
        [1 / 2, 2 / 3, 1 / 4, 1 / 2], abs=1e-4
    )


def test_runs_of_one_name_are_numbered_and_runs_that_share_nothing_say_so(tmp_path):
    a = write_run(tmp_path / "x" / "run", QUESTIONS[:2])
    b = write_run(tmp_path / "y" / "run", QUESTIONS[2:])
    found = text(a, b)
    assert "run (1)" in found and "run (2)" in found and "There is none: they held out" in found


def test_the_command_makes_the_page_anew_or_one_of_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = write_run(tmp_path / "a", QUESTIONS), write_run(tmp_path / "b", QUESTIONS)
    (a / "report.html").write_text("old")
    assert main(["report", "a"]) == 0
    assert (a / "report.html").read_text(encoding="utf-8") == text(a)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "comparison.html").read_text(encoding="utf-8") == text(a, b)
    assert main(["report", "a", "b", "--output", "c.html"]) == 0
    assert (tmp_path / "c.html").is_file() and not (b / "report.html").exists()
    assert "Written to c.html" in capsys.readouterr().out
    b.chmod(0o700)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "comparison.html").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "file, content, complaint",
    [
        ("config.yaml", None, "is no run: it has no config.yaml"),
        ("config.yaml", "a: [", "config.yaml cannot be read: "),
        ("summary.json", '{"pairs": 3', "summary.json cannot be read: "),
        ("questions.json", "[]", "questions.json cannot be read: it holds no object"),
        ("samples.json", "{}", "samples.json cannot be read: it holds no list"),
        ("evaluation.json", '{"questions": 3}', "the report cannot be made: KeyError"),
        ("metrics.jsonl", "{x}", "metrics.jsonl cannot be read: "),
    ],
)
def test_what_no_run_wrote_is_one_line_and_leaves_the_page_that_was_there(
    file, content, complaint, tmp_path, capsys
):
    folder = write_run(tmp_path / "run", QUESTIONS)
    (folder / "report.html").write_text("old")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    assert main(["report", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and complaint in err
    assert (folder / "report.html").read_text() == "old"


def test_the_output_is_a_file(tmp_path, capsys):
    folder = write_run(tmp_path / "run", QUESTIONS)
    assert main(["report", str(folder), "--output", str(tmp_path)]) == 2
    assert f"--output {tmp_path} is a folder; name a file in it" in capsys.readouterr().err
