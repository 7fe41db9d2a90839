"""Trackers, with the real packages in their offline modes: what they kept is what was logged."""

import json
import struct

import pytest

import train
from run.config import Config
from run.errors import UsageError
from run.trackers import tracked

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # theirs, not ours
]


@pytest.fixture
def run(model_folder, questions_csv, private_cache, tmp_path):
    def run(tracker, **more):
        config = Config(
            model=str(model_folder), data=str(questions_csv), dtype="float32", device="cpu",
            output_dir=str(tmp_path / "run"), epochs=2, tracker=tracker, **more,
        )  # fmt: skip
        folder = train.run(config)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return folder, [json.loads(line) for line in lines]

    return run


def test_tensorboard(run):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs [tensorboard]"
    )
    folder, log = run("tensorboard")
    events = reader.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log]
    assert "rewards/margins" in events.Tags()["scalars"]


def leveldb_records(data, before):
    """LevelDB's log: blocks of 32 KiB, records with a header of checksum, length and type."""
    place, record = 0, b""
    while place + 7 <= len(data):
        left = 32768 - (place + before) % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_offline(run, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="needs [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder, log = run("wandb")
    assert history(folder) == [(x["step"], pytest.approx(x["loss"])) for x in log]
    (tmp_path / "resumed").mkdir()
    with tracked("wandb", tmp_path / "resumed", {}, 5) as report:
        report(5, {"loss": 0.5})
        report(6, {"loss": 0.25})
    assert history(tmp_path / "resumed") == [(5, 0.5), (6, 0.25)]


def history(folder):
    """What wandb keeps of a run on disk: (step, loss)."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its writer, a process of its own, may still be at it when a run has ended

    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    found = []
    for raw in leveldb_records(file.read_bytes()[7:], before=7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            found.append((items["_step"], items["loss"]))
    return found


def test_trackio_local(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs [trackio]")
    import sqlite3

    _, log = run("trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    found = [(step, json.loads(metrics)["loss"]) for step, metrics in rows]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in log]


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"needs its package .*'\.\[wandb\]'"):
        with tracked("wandb", tmp_path, {}, 0):
            pass
