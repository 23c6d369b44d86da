"""Reports a run that needs a look: a loss that jumps, a step that does not end, an error."""

import json
import logging
import math
import threading
import time
import urllib.request
from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger("delvm.training")

HISTORY = 50  # logged losses that a new one is compared with
MIN_HISTORY = 10


class Alarm(L.Callback):
    """Warns in the log and, with ``webhook_url``, by a message: {"text": "..."} as Slack takes it.

    It warns when ``train/loss`` is far above its recent values or not finite, when no step has
    ended for ``stuck_after_s`` seconds, and when the run ends, by an error or at its last step. A
    webhook that cannot be reached is a warning in the log, and nothing more.
    """

    def __init__(
        self,
        webhook_url: str | None = None,
        spike_factor: float = 6.0,
        stuck_after_s: float = 1800.0,
    ) -> None:
        """
        Args:
            webhook_url: gets a POST of JSON for each message; it is a secret, so set it to
                ``${oc.env:NAME}``. None only logs.
            spike_factor: standard deviations above the mean of the recent losses.
            stuck_after_s: seconds, validation and checkpoints included.

        Raises:
            ValueError: a number is not above 0.
        """
        for name, value in (("spike_factor", spike_factor), ("stuck_after_s", stuck_after_s)):
            if not value > 0:
                raise ValueError(f"{name}={value} is not above 0")
        self.webhook_url = webhook_url
        self.spike_factor, self.stuck_after_s = spike_factor, stuck_after_s
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._last_step_at = 0.0
        self._stop: threading.Event | None = None
        self._name = ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._name, self._losses = trainer.default_root_dir, deque(maxlen=HISTORY)
        self._last_step_at, self._stop = time.monotonic(), threading.Event()
        if trainer.is_global_zero:
            threading.Thread(target=self._watch, args=(self._stop,), daemon=True).start()

    def _watch(self, stop: threading.Event) -> None:
        """Warn once for each step that takes too long."""
        reported = 0.0
        while not stop.wait(min(self.stuck_after_s / 4, 10.0)):
            since = time.monotonic() - self._last_step_at
            if since > self.stuck_after_s and self._last_step_at != reported:
                reported = self._last_step_at
                self.send(f"no step has ended for {since:,.0f} s")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._last_step_at = time.monotonic()
        loss = trainer.callback_metrics.get("train/loss")
        if loss is None or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        if (reason := self._spike(float(loss))) is not None:
            self.send(f"step {trainer.global_step:,}: {reason}")

    def _spike(self, loss: float) -> str | None:
        """Why a loss is one to report; a finite one is kept for comparison."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        past = list(self._losses)
        self._losses.append(loss)
        if len(past) < MIN_HISTORY:
            return None
        mean = sum(past) / len(past)
        # Of losses that hardly vary any change would be a spike: at least 1% of the mean.
        std = max((sum((x - mean) ** 2 for x in past) / len(past)) ** 0.5, 0.01 * abs(mean))
        if loss <= mean + self.spike_factor * std:
            return None
        return f"the loss is {loss:.4g}, the last {len(past)} were {mean:.4g} on average"

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, f"ended at step {trainer.global_step:,}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._end(trainer, f"stopped at step {trainer.global_step:,}: {exception!r:.300}")

    def _end(self, trainer: L.Trainer, text: str) -> None:
        if self._stop is not None and not self._stop.is_set():
            self._stop.set()
            self.send(text)

    @rank_zero_only
    def send(self, text: str) -> None:
        """Log a message, and post it to the webhook."""
        message = f"{self._name}: {text}"
        logger.warning(message)
        if self.webhook_url is None:
            return
        body = json.dumps({"text": message}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            if not self.webhook_url.startswith(("http://", "https://")):
                raise ValueError("it is neither http:// nor https://")
            request = urllib.request.Request(self.webhook_url, body, headers)
            with urllib.request.urlopen(request, timeout=10):
                pass
        except (OSError, ValueError) as error:  # the URL is a secret, and errors may quote it
            reason = str(error).replace(self.webhook_url, "...")
            logger.warning("callbacks.alarm.webhook_url cannot be reached: %s", reason)
