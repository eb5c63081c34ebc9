"""Deep metric learning by divide and conquer: the algorithm.

Every T epochs, *divide*: cluster the training images by their features, match the clusters to the learners (in a
hierarchy, also split each in two until there are K), leave out what has no positive pair. In between, *train*: the
learners take turns, one batch of their own cluster each, and each one's loss sees its own part of the embedding (a
second loss, which neither paper has, sees the full embedding of the same batch). At last, *conquer*: one loss on the
full embedding, batches of all data.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config.settings import TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division, divide
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import resolve_device
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.launch import launch
from divcon.runtime.signals import SignalHandler
from divcon.training.checkpoint import Checkpointer, TrainState
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import create_loader
from divcon.training.report import EpochReport, LossRecord
from divcon.training.sampler import plan_epoch
from divcon.training.schedule import Phase, learning_rates, phase_at
from divcon.training.setup import check, grow, seed_batch, set_rates, set_up, take_step, tell

Train = Callable[..., Iterator[EpochReport]]


def launched(
    train: Train,
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    checkpoint: str | Path | None,
    context: Context,
    **options: Any,
) -> Iterator[EpochReport]:
    """What ``train`` yields, as the first of ``config.devices`` processes that call it."""
    if config.num_devices > 1:
        check(model, images, config)  # before any is started
    device = resolve_device(config.device)
    given = (train, model, images, config, checkpoint)
    with launch(config.num_devices, config.across, device, _worker, *given) as processes:
        yield from train(
            model,
            images,
            config,
            checkpoint=checkpoint,
            context=dataclasses.replace(context, processes=processes),
            **options,
        )


def _worker(
    processes: ProcessGroup,
    train: Train,
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    checkpoint: str | Path | None,
) -> None:
    # PyTorch hands tensors to a process that is started as memory that both share.
    for _ in train(copy.deepcopy(model), images, config, checkpoint=checkpoint, context=Context(processes=processes)):
        pass


def train(
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    stop: SignalHandler | None = None,
    context: Context = DEFAULT,
) -> Iterator[EpochReport]:
    """Train a model by divide and conquer (2019, algorithm 1): yields a report after each epoch.

    Args:
        model: trained in place, and moved to the device of ``config``.
        images: the training images, of two classes at least.
        checkpoint: a file that holds the state after each epoch whose report was taken, and what it was some minutes
            ago (``config.checkpoint_minutes``). Where it exists already, training goes on from it, and on the CPU ends
            with the same weights, bit for bit, as if it had never stopped.
        stop: what may ask for an end of it, which comes after a step, as `divcon.errors.Stopped`.
        context: reports progress after each step. Where it has joined no process group, as many processes are launched
            as ``config.devices`` says. Its ``workers`` are those of ``config``.

    Raises:
        ConfigError: a loss or miner cannot do with such batches; the message names the learner and the batch.
        DataError: the images cannot be divided, or give no batch; the message says what to change.
        ImageError: an image does not decode; the message names it.
        NonFiniteError: a loss became NaN or infinite; the message names the learner and the batch. What the checkpoint
            holds is a state before that batch.
        RunError: the checkpoint is damaged, or of another training.
    """
    config = config or TrainConfig()
    if context.processes is None:
        return (yield from launched(train, model, images, config, checkpoint, context, stop=stop))
    context = dataclasses.replace(context, workers=config.workers)
    fabric, objectives = check(model, images, config, context)
    labels = np.unique(images.labels, return_inverse=True)[1].astype(np.int64)
    network, optimizer, objectives = set_up(fabric, model, objectives, config)
    memory = FeatureBank(len(images), model.num_features, fabric.device, kept=config.divide_on == "bank")
    state = TrainState(model, objectives, optimizer, fabric.strategy.precision, memory)
    keeper = Checkpointer(state, checkpoint, config, images, stop, context)
    loader = create_loader(model, images, config, fabric.device, context)
    with loader, keeper, context.group.gathered_batch(model.pooling):
        for epoch in range(state.epochs_done, config.epochs):
            phase = phase_at(epoch, config, model.head.max_learners)
            report = EpochReport(epoch, phase)

            # Divide.
            started = time.perf_counter()
            previous = keeper.previous
            if keeper.resumes and state.division:  # divided before a stop
                division = state.division
            elif phase is Phase.FINETUNE or config.divide_by == "none":
                memory.forget()
                division = previous if previous and previous.num_learners == 1 else Division.whole(labels)
            elif previous is None or epoch % config.redivide_every == 0:
                # A hierarchy begins with one learner, and doubles them until there are K.
                grows = config.hierarchy and previous is not None and model.num_learners < model.head.max_learners
                with fabric.autocast():
                    features = memory.refreshed(model, loader, epoch, context)
                division = divide(
                    features,
                    labels,
                    model.num_learners,
                    by=config.divide_by,
                    seed=(config.seed, epoch),
                    tries=config.division_tries,
                    previous=previous,
                    double=grows,
                    device=fabric.device,
                    context=context,
                )
                if grows:
                    grow(model, objectives, optimizer)
            else:
                division = previous
            keeper.divided(division, previous)
            learners = 1 if phase is Phase.FINETUNE else model.num_learners
            tell(objectives, division, labels, learners, new=division is not previous and not keeper.resumes)
            report.divided(division, previous, labels, time.perf_counter() - started)

            # Train the learners in turn, or conquer.
            plan = plan_epoch(
                division,
                labels,
                num_learners=learners,
                batch_size=config.batch_size,
                images_per_class=config.images_per_class,
                small_classes=config.small_classes,
                rounds=config.rounds,
                seed=config.seed,
                epoch=epoch,
            )
            record = LossRecord(images, plan, epoch, context, immediate=fabric.device.type == "cpu")
            model.train()
            for step, batches in keeper.steps(loader, plan, labels, report, record):
                set_rates(optimizer, learning_rates(epoch + step.start / len(plan.batches), phase, config))
                optimizer.zero_grad()
                for number, batch, pixels, targets in batches:
                    seed_batch(config.seed, epoch, number)
                    if phase is Phase.SUBSPACE:
                        own, full, features = network(pixels, learner=batch.learner, with_all=True)
                        loss = record.loss(number, objectives[batch.learner], own, targets)
                        if config.full_weight:
                            loss = loss + config.full_weight * record.full_loss(number, objectives[-1], full, targets)
                        loss = loss + config.mask_penalty * model.head.penalty()
                    else:
                        _, full, features = network(pixels, with_all=True)
                        loss = record.loss(number, objectives[-1], full, targets)
                    memory.saw(batch.indices, features)
                    fabric.backward(loss / len(step))
                take_step(optimizer, objectives, model, context)
                record.step_done(step)
                context.on_progress(report.progress(record))
            report.trained(plan, record, optimizer.param_groups, model.head)

            yield report
            keeper.epoch_done(epoch)
