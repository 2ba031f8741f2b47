"""Training: epochs of steps over triplets or labelled images, an evaluation every EVAL_STEPS epochs, checkpoints.

An epoch: its batches; where due (and after the last epoch) the evaluation on VALID; the schedule's
step; a checkpoint. Checkpoints are also written every few minutes within an epoch and when the run
is stopped, and hold all that the rest of the run depends on: a resumed run ends in the same bits.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import optim
from .. import random as asen_random
from .._asen import Tensor
from ..checkpoint import CheckpointError
from ..data.balanced import BalancedSampler
from ..data.checks import check_images, check_meta, skipped_values, usable_values
from ..data.index import TrainSet, load_train
from ..data.samplers import TripletSampler
from . import memory
from .errors import EngineError, Interrupted, mistakes
from .evaluation import Evaluation
from .images import crops_of, take_batch
from .log import MetricsFile, get_logger, progress
from .precision import Precision
from .run import choose_device, make_loader, seed_everything, set_threads
from .state import (Position, RunFolder, changed_keys, flat, python_random_state, read, set_python_random_state,
                    thread_warning)
from .step import make_step
from .stop import StopSignals
from .weights import initial_model

__all__ = ["train"]

# Keys that may differ between a run and its continuation without a word.
_FREE = ("LOGGER.", "DATA.NUM_WORKERS", "DEVICE", "SAVE_DIR", "MODEL.PRETRAINED", "NUM_THREADS", "SOLVER.LOG_PERIOD")


class _Trainer:
    """One training run: what it is made of, and where it stands."""

    def __init__(self, cfg: Any, logger: Any, resume: str | None) -> None:
        self.cfg, self.logger = cfg, logger
        self.stop = StopSignals("finishing this step, then saving")
        self.folder = RunFolder(cfg)
        self.device, self.threads = choose_device(cfg, logger), set_threads(cfg)
        seed_everything(cfg.SEED)

        data = load_train(cfg)
        self.sampler = self._make_sampler(data)
        check_images(data.dataset, [data.paths[i] for i in np.unique(data.labels.images)])
        self.evaluation = Evaluation(cfg, "VALID", logger, self.device)

        self._refuse_single_values()
        self.position = Position()
        self.sums: dict[str, float] = {}       # of the loss and its parts since the last line of the log
        self.result: dict[str, Any] | None = None
        state = None if resume is None else read(resume)
        self.exact = state is not None and state.get("name") == cfg.NAME and "optimizer" in state
        if self.exact:
            self._refuse_changes(state)
        self.model, sources = initial_model(cfg, state, resume or "", whole=self.exact)
        for line in sources:
            logger.info(line)
        self.model.to(device=self.device)
        self.model.train()
        self.precision = Precision(cfg, self.device)
        self.step = make_step(self.model, cfg, self.device, _most_attributes(data))
        self.optimizer = self._make_optimizer()
        self.schedule = self._make_schedule()
        self.average = optim.EMA(self.model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
        self.metrics_bytes = 0
        if self.exact:
            assert state is not None
            try:
                self._take_up(state)
            except (KeyError, ValueError, TypeError, IndexError) as error:
                if isinstance(error, mistakes()):
                    raise
                what = f"{error.args[0]} is not there" if isinstance(error, KeyError) else str(error)
                raise CheckpointError(f"{resume}: the state of the training is damaged or incomplete ({what}): take another "
                                      "checkpoint of this run, or its weights alone (--opts NAME ...)") from error
        self.loader = make_loader(cfg, data.paths, self.device, keep_images=self.step.local, augment=True)

    def close(self) -> None:
        try:
            self.loader.close()
        finally:
            self.evaluation.loader.close()

    def _make_sampler(self, data: TrainSet) -> TripletSampler | BalancedSampler:
        """The batches of SOLVER.LOSS, from values that it can use; others are an error, or logged and left out."""
        cfg = self.cfg
        usable = usable_values(data, cfg.DATA.SKIP_UNUSABLE_VALUES, images=1 if cfg.SOLVER.LOSS == "cosine" else 2)
        for line in (*skipped_values(data, usable), *check_meta(cfg, data.attributes)):
            self.logger.warning(line)
        if cfg.SOLVER.LOSS == "triplet":
            return TripletSampler(data.table, cfg.DATA.NUM_TRIPLETS, cfg.DATA.TRAIN_BATCHSIZE,
                                  random.Random(cfg.SEED), usable)
        return BalancedSampler(data.labels, data.attributes.sizes, cfg.DATA.NUM_IMAGES, cfg.DATA.TRAIN_BATCHSIZE,
                               cfg.DATA.IMAGES_PER_VALUE, cfg.SEED, usable)

    def _refuse_single_values(self) -> None:
        """Batch norm has no variance of one value: of a last batch, or a part of one, of one image with a 1 x 1 map."""
        size, local, smallest = self.cfg.INPUT.GLOBAL_SIZE, self.cfg.INPUT.LOCAL_SIZE, self.sampler.sizes()[1]
        if smallest // self.cfg.SOLVER.ACCUMULATE > 1:
            return
        for key, pixels in (("GLOBAL_SIZE", size), ("LOCAL_SIZE", local if self.cfg.MODEL.LOCAL.ENABLE else 32)):
            if pixels <= 16:
                count = "NUM_TRIPLETS" if self.cfg.SOLVER.LOSS == "triplet" else "NUM_IMAGES"
                raise EngineError(f"INPUT.{key} is {pixels}, which leaves one position of a feature map, and the smallest "
                                  f"batch has {smallest} in {self.cfg.SOLVER.ACCUMULATE} parts: batch norm would have one value "
                                  f"a channel. Change DATA.{count}, DATA.TRAIN_BATCHSIZE or SOLVER.ACCUMULATE, or take "
                                  "larger images")

    def _make_optimizer(self) -> Any:
        solver = self.cfg.SOLVER
        groups = self.model.parameter_groups(solver.BASE_LR, solver.BASE_LR_SLOW, solver.HEAD_LR_FACTOR)
        return getattr(optim, solver.OPTIMIZER_NAME)(groups, lr=solver.BASE_LR)

    def _make_schedule(self) -> Any:
        solver = self.cfg.SOLVER
        if solver.TYPE == "CosineAnnealingLR":
            return optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=solver.EPOCHS, eta_min=1e-7)
        if solver.TYPE == "WarmupCosine":
            steps = solver.EPOCHS * len(self.sampler)
            if solver.WARMUP_STEPS >= steps:
                raise EngineError(f"SOLVER.WARMUP_STEPS is {solver.WARMUP_STEPS}, but the training has {steps} steps: it "
                                  "must be less")
            return optim.lr_scheduler.WarmupCosine(self.optimizer, solver.WARMUP_STEPS, steps)
        return optim.lr_scheduler.StepLR(self.optimizer, solver.STEP_SIZE, solver.DECAY_RATE)

    # -- checkpoints --------------------------------------------------------------------------------

    def _refuse_changes(self, state: dict[str, Any]) -> None:
        """What decides what a checkpoint holds cannot change within a run."""
        changed = changed_keys(self.cfg, state)
        for key in ("SOLVER.LOSS", "SOLVER.TYPE", "SOLVER.EMA_DECAY"):
            before, now = changed.get(key, ("", ""))
            if before != now and (key != "SOLVER.EMA_DECAY" or 0.0 in (before, now)):
                raise EngineError(f"{key} was {before} when this run was begun, and is {now} now: keep it to go on "
                                  f"(--opts {key} {before}), or start another run from its weights (--opts NAME ...)")

    def _refuse_other_steps(self, then: dict[str, Any]) -> None:
        """Rates by step are a function of the number of steps, and 0 after the last: another number is another run."""
        for name, key in (("total_steps", "SOLVER.EPOCHS, with the batches that an epoch has,"),
                          ("warmup_steps", "SOLVER.WARMUP_STEPS")):
            if self._by_step and then[name] != getattr(self.schedule, name):
                raise EngineError(f"{key} made {then[name]} steps of SOLVER.TYPE WarmupCosine when this run was begun, "
                                  f"and {getattr(self.schedule, name)} now: keep it to go on, or start another run from "
                                  "its weights (--opts NAME ...)")

    def _take_up(self, state: dict[str, Any]) -> None:
        """Everything else that a checkpoint of this very run holds."""
        for line in filter(None, [thread_warning(state)]):
            self.logger.warning(line)
        for key, (then, now) in changed_keys(self.cfg, state).items():
            if not key.startswith(_FREE):
                self.logger.warning("%s was %s when the checkpoint was written, and is %s now", key, then, now)
        if self.average is not None:      # what is saved as the model is the average
            self.average.load_state_dict({"model": state["model"], "updates": state["ema_updates"]})
            self.model.load_state_dict(state["training_model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "scaler" in state and self.precision.dtype:
            self.precision.scaler.load_state_dict(state["scaler"])
        self._refuse_other_steps(state["schedule"])
        self.schedule.load_state_dict(state["schedule"])
        self.sampler.load_state_dict(state["sampler"])
        asen_random.set_state(state["random"])
        set_python_random_state(state["python_random"])
        self.position = Position(state["epoch"], state["batch"], state["step"], state["mAP"], state["best_mAP"],
                                 state.get("since_best", 0))
        self.sums = dict(state["sums"])
        self.metrics_bytes = state["metrics_bytes"]

    def _state(self, metrics: MetricsFile) -> dict[str, Any]:
        at = self.position
        weights = self.model.state_dict()
        averaged = {} if self.average is None else {
            "model": self.average.state_dict()["model"], "training_model": weights,
            "ema_updates": self.average.state_dict()["updates"]}
        return {
            "epoch": at.epoch, "model": weights, **averaged, "mAP": at.last_map, "best_mAP": at.best_map,
            "since_best": at.since_best, "batch": at.batch, "step": at.step, "name": self.cfg.NAME,
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "sampler": self.sampler.state_dict(None if at.batch in (0, len(self.sampler)) else at.batch),
            "random": asen_random.get_state(), "python_random": python_random_state(),
            "sums": dict(self.sums), "seed": self.cfg.SEED, "threads": self.threads,
            "metrics_bytes": metrics.size(), "config": self.cfg.to_dict(),
            **({"scaler": self.precision.scaler.state_dict()} if self.precision.dtype else {}),
        }

    # -- memory -------------------------------------------------------------------------------------

    def check_memory(self) -> None:
        """Raises EngineError, naming the batch that fits, where the training needs too much memory."""
        moments = {"Adam": 2, "AdamW": 2, "SGD": 0}[self.cfg.SOLVER.OPTIMIZER_NAME]
        weights = sum(4 * p.numel() for p in self.model.parameters()) * (moments + (self.average is not None))
        need = memory.check_training(self._trial, self.step, self.cfg, weights + self.evaluation.feature_bytes(),
                                     self.device, self.sampler.sizes()[0])
        self.logger.debug("training takes about %s", memory.gigabytes(need))

    def _trial(self, count: int) -> None:
        """A made-up batch forwards and backwards; the model and the random numbers stay as they were."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        drawn = asen_random.get_state()
        batch = self.step.sample(count)
        size, local = self.cfg.INPUT.GLOBAL_SIZE, self.cfg.INPUT.LOCAL_SIZE
        dtype = self.step.pixel_dtype
        pixels = np.zeros((len(self.step.ids(batch)), size, size, 3), dtype)
        try:
            with self.precision.autocast():
                loss = self.step(pixels, batch, lambda maps, rows=None: np.zeros((len(maps), local, local, 3), dtype))[0]
            loss.backward()
        finally:
            self.optimizer.zero_grad()
            for buffer, values in zip(self.model.buffers(), before):
                buffer.copy_(values)
            asen_random.set_state(drawn)

    # -- the run ------------------------------------------------------------------------------------

    def run(self, metrics: MetricsFile, save_seconds: float) -> None:
        """Trains to the last epoch. Raises Interrupted, with a checkpoint written, where stopped."""
        solver = self.cfg.SOLVER
        while self.position.epoch < solver.EPOCHS and not self._stopped_early():
            self._epoch(metrics, save_seconds)
            done = self.position.epoch + 1
            best = False
            if done % solver.EVAL_STEPS == 0 or done == solver.EPOCHS:
                best = self._evaluate(metrics)
            if not self._by_step:
                self.schedule.step()
            self.position = self.position._replace(epoch=done, batch=0)
            self.folder.save(self._state(metrics), best)

    @property
    def _by_step(self) -> bool:
        """Whether the learning rate changes with each step, or with each epoch."""
        return self.cfg.SOLVER.TYPE == "WarmupCosine"

    def _stopped_early(self) -> bool:
        """Whether SOLVER.EARLY_STOP evaluations in a row were no better than the best before."""
        patience, since = self.cfg.SOLVER.EARLY_STOP, self.position.since_best
        if not patience or since < patience:
            return False
        self.logger.info("stopped early after epoch %d: the mAP of the last %d evaluations did not exceed %.4f "
                         "(SOLVER.EARLY_STOP)", self.position.epoch, since, self.position.best_map)
        return True

    def _epoch(self, metrics: MetricsFile, save_seconds: float) -> None:
        start, total = self.position.batch, len(self.sampler)
        if start == total:      # only the evaluation is left
            return
        drawn = self.sampler.epoch(start)
        batches = self.loader.iterate(((self.step.ids(batch), batch) for batch in drawn), self.position.epoch)
        saved = time.monotonic()
        try:
            for number, batch in enumerate(progress(batches, total, f"epoch {self.position.epoch + 1}", " batches",
                                                    start), start):
                self._train(batch, number, metrics)
                if self.stop.requested:
                    self.folder.save(self._state(metrics), False)
                    raise Interrupted
                if time.monotonic() - saved >= save_seconds and number + 1 < total:
                    self.folder.save(self._state(metrics), False)
                    saved = time.monotonic()
        finally:
            batches.close()

    def _train(self, batch: Any, number: int, metrics: MetricsFile) -> None:
        """One step: forward, backward, and with complete gradients the optimizer."""
        made: list[tuple[float, Tensor, dict[str, Tensor]]] = []
        done = self.precision.step(self._losses(batch, made), self.optimizer)
        if done and self._by_step:
            self.schedule.step()
        if done and self.average is not None:
            self.average.update()
        # Read only now: on a GPU this waits, and all of the step was queued before.
        values: dict[str, float] = {}
        for share, loss, parts in made:
            for name, part in {"loss": loss, **parts}.items():
                values[name] = values.get(name, 0.0) + share * part.item()
        if done and not math.isfinite(values["loss"]):
            raise EngineError(
                f"the loss is {values['loss']} in epoch {self.position.epoch + 1}, iteration {number} "
                f"({', '.join(f'{k} {v:.4g}' for k, v in values.items() if k != 'loss')}); nothing was saved over the "
                f"last checkpoint. A smaller SOLVER.BASE_LR may help")
        self.position = self.position._replace(batch=number + 1, step=self.position.step + done)
        if done:
            for name, value in {**values, "count": 1.0}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if number % self.cfg.SOLVER.LOG_PERIOD == 0:
            self._log(number, metrics)

    def _losses(self, batch: Any, made: list[tuple[float, Tensor, dict[str, Tensor]]]) -> Iterator[Tensor]:
        """The loss of a batch, or SOLVER.ACCUMULATE losses of its parts that add up to it. To `made` come each part's
        share of the terms, its loss (without its history) and what that is made of."""
        count = self.cfg.SOLVER.ACCUMULATE
        if count == 1:
            with self.precision.autocast():
                loss, parts = self.step(batch.pixels, batch.extra, crops_of(batch))
            made.append((1.0, loss.detach(), parts))
            yield loss
            return
        terms = self.step.count(batch.extra)
        for places, part in self.step.parts(batch.extra, count):
            share = self.step.count(part) / terms
            some = take_batch(batch, places)
            with self.precision.autocast():
                loss, parts = self.step(some.pixels, part, crops_of(some))
            made.append((share, loss.detach(), {name: value.detach() for name, value in parts.items()}))
            yield loss * share

    def _log(self, number: int, metrics: MetricsFile) -> None:
        """Means since the last line, and learning rates."""
        count = self.sums.pop("count", 0.0)
        if not count:       # all steps since then were left out
            self.logger.warning("Epoch %d iteration %d: %d steps left out so far, their gradients were not finite",
                                self.position.epoch + 1, number, self.precision.scaler.skipped)
            return
        means = {name: value / count for name, value in self.sums.items()}
        self.sums = {}
        rates = [group["lr"] for group in self.optimizer.param_groups]
        epoch = self.position.epoch + 1
        parts = ", ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        self.logger.info("Epoch %d/%d iteration %d/%d: loss %.4f (%s), learning rate %s", epoch,
                         self.cfg.SOLVER.EPOCHS, number, len(self.sampler), means["loss"], parts,
                         ", ".join(f"{rate:.3g}" for rate in rates))
        scaler = self.precision.scaler
        more = {"skipped": scaler.skipped, "scale": scaler.get_scale()} if self.precision.dtype else {}
        metrics.write(event="train", epoch=epoch, iteration=number, step=self.position.step, loss=means.pop("loss"),
                      parts=means, lr=rates, **more)

    def _evaluate(self, metrics: MetricsFile) -> bool:
        """Evaluates on VALID; True where it is the best so far."""
        try:
            with contextlib.nullcontext() if self.average is None else self.average.applied():
                result = self.evaluation.run(self.model, self.stop)
        except Interrupted:
            self.folder.save(self._state(metrics), False)
            raise
        self.result = result
        best = result["mAP"] > self.position.best_map
        self.position = self.position._replace(last_map=result["mAP"],
                                               best_map=max(result["mAP"], self.position.best_map),
                                               since_best=0 if best else self.position.since_best + 1)
        metrics.write(event="eval", epoch=self.position.epoch + 1, step=self.position.step, best=best, **result)
        return best


def _most_attributes(data: TrainSet) -> int:
    """The most attributes that an image is labelled with."""
    pairs = np.unique(np.stack([data.labels.images, data.labels.attributes]), axis=1)
    return int(np.unique(pairs[0], return_counts=True)[1].max())


def _check_folder(folder: RunFolder, resume: str | None, same_run: bool, overwrite: bool) -> None:
    """A run is not overwritten silently; resuming writes into the folder that it reads from."""
    if overwrite or (same_run and resume is not None and folder.holds(resume)):
        return
    folder.refuse_if_taken()


def train(cfg: Any, resume: str | None = None, overwrite: bool = False, save_seconds: float = 600.0,
          command: tuple[Sequence[str], Sequence[str]] | None = None) -> dict[str, Any]:
    """Trains a model as the configuration says; writes SAVE_DIR/NAME.

    cfg: see asenpp.load_config. resume: a checkpoint; of the same NAME, it is gone on with exactly
    where it stopped, of another NAME its weights are the start. overwrite: a run that lies in
    SAVE_DIR/NAME is replaced. save_seconds: a checkpoint within an epoch is written after so long.
    command: how this was called, before and after `--resume`, for the hint of how to go on.

    Returns {"mAP", "best_mAP" (in [0, 1]), "attributes" {name: mAP} of the last evaluation here,
    "epochs", "step", "checkpoint", "best" (paths)}.

    Raises ConfigError, DataError, CheckpointError, EngineError (a run that exists, memory, a loss
    that is not finite), OSError (images, a full disk); Interrupted on Ctrl-C or SIGTERM, after a
    checkpoint was written.
    """
    logger = get_logger(cfg)
    folder = RunFolder(cfg)
    same_run = resume is not None and read(resume).get("name") == cfg.NAME
    _check_folder(folder, resume, same_run, overwrite)
    trainer = _Trainer(cfg, logger, resume)
    try:
        return _run(trainer, folder, resume, overwrite, save_seconds, command)
    finally:
        trainer.close()


def _run(trainer: _Trainer, folder: RunFolder, resume: str | None, overwrite: bool, save_seconds: float,
         command: tuple[Sequence[str], Sequence[str]] | None) -> dict[str, Any]:
    cfg, logger = trainer.cfg, trainer.logger
    trainer.check_memory()
    goes_on = trainer.exact and resume is not None and folder.holds(resume)
    if overwrite and not goes_on:
        folder.clear()
    folder.make()
    at = trainer.position
    logger.info("%s: %d epochs of %d iterations, %d %s each, on %s with %d threads", cfg.NAME, cfg.SOLVER.EPOCHS,
                len(trainer.sampler), cfg.DATA.TRAIN_BATCHSIZE, trainer.step.unit, trainer.device, trainer.threads)
    if trainer.exact:
        logger.info("going on after epoch %d, iteration %d", at.epoch, at.batch)
    with MetricsFile(folder.metrics) as metrics, trainer.stop:
        metrics.cut(trainer.metrics_bytes if goes_on else 0)
        try:
            if at.epoch >= cfg.SOLVER.EPOCHS:
                logger.info("all %d epochs are done already%s", cfg.SOLVER.EPOCHS,
                            "" if cfg.SOLVER.TYPE == "WarmupCosine" else ": a larger SOLVER.EPOCHS goes on")
            trainer.run(metrics, save_seconds)
        except Interrupted:
            before, after = command or (["python", "main.py", "--cfg", "..."], [])
            line = shlex.join([*before, "--resume", folder.last, *after])
            raise Interrupted(f"To go on: {line}") from None
    at = trainer.position
    return {"mAP": at.last_map, "best_mAP": at.best_map,
            "attributes": trainer.result["attributes"] if trainer.result else {},
            "epochs": at.epoch, "step": at.step, "checkpoint": folder.last,
            "best": folder.best if os.path.exists(folder.best) else folder.last}
