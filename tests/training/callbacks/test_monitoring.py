"""What a run logs of itself: per-task metrics, times of its parts, alarms, and a profile."""

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import lightning as L
import pytest
import torch

from delvm.training.callbacks import Alarm
from delvm.training.callbacks.alarm import MIN_HISTORY
from delvm.training.callbacks.step_timer import StepTimer
from delvm.training.student import StudentModule
from tests.training.runs import N, curve, student_config, train


@pytest.mark.slow
def test_training_batches_are_measured_per_task_as_validation_does(tokens, tmp_path, monkeypatch):
    batches = []
    original = StudentModule.training_step

    def training_step(self, batch, batch_idx):
        if not batches:  # before the first step
            self.eval()
            sums = self.prediction_sums(batch, 1)[0]
            self.train()
            batches.append(sums)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", training_step)
    train(student_config(tokens, 4, "callbacks.task_metrics.every_n_train_steps=2"), tmp_path)
    losses = curve(tmp_path, "train/pose/loss")
    assert len(losses) == 2
    loss, correct, count = batches[0][:3].tolist()
    assert losses[0] == pytest.approx(loss / count, rel=1e-6)
    assert curve(tmp_path, "train/pose/acc")[0] == pytest.approx(correct / count, rel=1e-6)
    assert curve(tmp_path, "train/pose/ppl")[0] == pytest.approx(2.718281828 ** losses[0], rel=1e-4)


@pytest.mark.slow
def test_measuring_does_not_change_training(tokens, tmp_path):
    losses = []
    for every in (1, 1000):
        override = f"callbacks.task_metrics.every_n_train_steps={every}"
        folder = tmp_path / str(every)
        train(student_config(tokens, 4, override, "student.net.dropout=0.2"), folder)
        losses.append(curve(folder, "train/loss"))
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_measuring_leaves_the_mode_of_each_part(tokens, tmp_path, monkeypatch):
    modes = []
    original = StudentModule.training_step

    def training_step(self, batch, batch_idx):
        modes.append((self.model.training, self.model.norm.training))
        self.model.norm.eval()  # as somebody does who freezes a part
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", training_step)
    train(student_config(tokens, 3, "callbacks.task_metrics.every_n_train_steps=1"), tmp_path)
    assert modes == [(True, True), (True, False), (True, False)]


@pytest.mark.slow
def test_consumed_tokens_go_on_over_a_resume(tokens, tmp_path):
    config = student_config(tokens, 4, "callbacks.stop_at_step.step=2")
    per_step = 8 * 4 * N  # sentences of two pairs
    train(config, tmp_path)
    train(student_config(tokens, 4, "resume=auto"), tmp_path)
    assert curve(tmp_path, "train/tokens") == [per_step * step for step in (1, 2, 3, 4)]


def test_times_of_the_parts_add_up_to_the_step(tokens, tmp_path, monkeypatch):
    original = StudentModule.training_step

    def slow(self, batch, batch_idx):
        time.sleep(0.05)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", slow)
    start = time.monotonic()
    train(student_config(tokens, 4), tmp_path)
    whole = time.monotonic() - start
    parts = {name: curve(tmp_path, f"time/{name}") for name in ("data", "forward", "backward")}
    assert all(len(values) == 4 and min(values) >= 0 for values in parts.values())
    assert min(parts["forward"]) >= 0.05
    assert sum(map(sum, parts.values())) + sum(curve(tmp_path, "time/optimizer")) < whole


@pytest.fixture
def webhook():
    """A server on loopback, and the texts that were posted to it."""
    texts = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret", texts
    server.shutdown()


def test_a_run_reports_its_end_by_the_webhook(tokens, tmp_path, webhook):
    url, texts = webhook
    words = ("callbacks=[default,alarm]", f"callbacks.alarm.webhook_url={url}")
    train(student_config(tokens, 3, *words), tmp_path)
    assert texts == [f"{tmp_path}: ended at step 3"]


def test_an_error_is_reported(tokens, tmp_path, webhook, monkeypatch):
    url, texts = webhook

    def fail(self, batch, batch_idx):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(StudentModule, "training_step", fail)
    words = ("callbacks=[default,alarm]", f"callbacks.alarm.webhook_url={url}")
    with pytest.raises(RuntimeError, match="out of luck"):
        train(student_config(tokens, 3, *words), tmp_path)
    assert texts == [f"{tmp_path}: stopped at step 0: RuntimeError('out of luck')"]


def test_a_loss_that_jumps_is_reported_and_one_that_varies_is_not():
    alarm = Alarm()
    rng = torch.Generator().manual_seed(0)
    values = (2 + 0.1 * torch.randn(200, generator=rng)).tolist()
    assert [alarm._spike(value) for value in values] == [None] * 200
    assert "the loss is 4, the last 50 were 1.979" in alarm._spike(4.0)
    assert alarm._spike(float("nan")) == "the loss is nan"
    fresh = Alarm()
    assert [fresh._spike(value) for value in (9.0, *[1.0] * (MIN_HISTORY - 1))] == [
        None
    ] * MIN_HISTORY


@pytest.mark.slow
def test_a_step_that_does_not_end_is_reported_once(caplog):
    alarm = Alarm(stuck_after_s=0.2)
    trainer = L.Trainer(logger=False, enable_checkpointing=False)
    with caplog.at_level(logging.WARNING, "delvm.training"):
        alarm.on_train_start(trainer, L.LightningModule())
        time.sleep(0.7)
        alarm.on_train_end(trainer, L.LightningModule())
    stuck = [record.message for record in caplog.records if "no step has ended" in record.message]
    assert len(stuck) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/secret", "file:///secret", "secret"])
def test_a_webhook_that_cannot_be_reached_is_a_warning_without_the_url(url, caplog):
    Alarm(webhook_url=url).send("a message")
    assert "cannot be reached" in caplog.text and "secret" not in caplog.text


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="spike_factor=0 is not above 0"):
        Alarm(spike_factor=0)
    assert StepTimer(synchronize=True).synchronize


@pytest.mark.slow
def test_profile_is_written(tokens, tmp_path):
    words = ("callbacks=[default,torch_profiler]", "callbacks.torch_profiler.skip_steps=1",
             "callbacks.torch_profiler.steps=2")  # fmt: skip
    train(student_config(tokens, 6, *words), tmp_path)
    trace = json.loads((tmp_path / "profile/trace.json").read_text())
    assert len(trace["traceEvents"]) > 100
    assert "aten::addmm" in (tmp_path / "profile/operators.txt").read_text()
