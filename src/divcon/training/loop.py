"""The algorithm: deep metric learning by divide and conquer.

Every T epochs, *divide*: cluster the training images by their features, and match the clusters to the learners. In
between, *train the learners in turn*, each on a batch of its own cluster, with a loss on its own subspace of the
embedding. In the end, *conquer*: one loss on the full embedding, batches of all data.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from divcon.config.from_data import fit_training
from divcon.config.settings import TrainConfig
from divcon.data.inputs import LabeledData, as_labeled_set
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import ConfigError
from divcon.models import EmbeddingModel
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.device import resolve_device, torch_threads
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.launch import launch
from divcon.runtime.signals import SignalHandler
from divcon.training.averaging import WeightAverage
from divcon.training.checkpoint import Checkpointer, TrainState
from divcon.training.dividing import Divider, division_budget
from divcon.training.feature_bank import FeatureBank
from divcon.training.gradients import Gradients
from divcon.training.loader import create_loader
from divcon.training.optimizer import set_learning_rates, take_step
from divcon.training.precision import Precision
from divcon.training.report import EpochReport, LossRecord
from divcon.training.sampler import plan_epoch
from divcon.training.schedule import Phase, divides_at, learning_rates, phase_at
from divcon.training.setup import (
    check,
    double_learners,
    on_started_group,
    seed_batch,
    set_classes,
    set_up,
    training_device,
)


def train(
    model: EmbeddingModel,
    data: LabeledData,
    config: TrainConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    stop: SignalHandler | None = None,
    context: Context = DEFAULT,
) -> Iterator[EpochReport]:
    """Train a model by divide and conquer (2019, algorithm 1).

    It trains the head's embedding; `divcon.run` also chooses what the finished model embeds by
    (`divcon.models.with_embedding` changes it), and can start the head from a PCA (`divcon.models.start_as_pca`).

    The call checks its arguments; iterating trains::

        for epoch in dc.train(model, data, dc.TrainConfig(epochs=60)):
            print(epoch.number, epoch.loss)

    Args:
        model: trained in place, and moved to the device of ``config``.
        data: labelled images or vectors, of at least two classes: a benchmark (its train classes, without those of
            validation), a path or name that `divcon.read` takes, a set, or ``(vectors, labels)``, arrays of shape
            (N, F) and (N,).
        checkpoint: a file to save the state to: after each epoch, when the next one is requested, and every
            ``config.checkpoint_minutes``. If it exists, training resumes from it; on the CPU the final weights are the
            same, bit for bit, as without the interruption. Of several processes rank 0 alone reads and writes it.
        stop: requests a stop; training stops after the current step, with `divcon.errors.Stopped`, in all processes
            where one of them is asked.
        context: reports progress after each step. If it has no process group, ``config.devices`` processes are
            launched. Its ``workers`` are ignored: those of ``config`` are used.

    Returns:
        An iterator that yields a report after each epoch. The model may be evaluated between epochs: it then has the
        averaged weights (``config.ema_decay``), as at the end.

    Raises:
        ConfigError: at the call: settings that cannot work with this model or data. While training: a loss or miner
            cannot compute a batch; the message names the learner and the batch.
        DataError: at the call: this is no data, or it has too few classes or images. While training: the images cannot
            be divided, or no batch can be drawn; the message says what to change.
        ImageError: an image does not decode; the message names it.
        NonFiniteError: a loss is NaN or infinite; the message names the learner and the batch. The checkpoint has a
            state before that batch.
        RunError: the checkpoint is damaged, or of another training.
    """
    if not isinstance(model, EmbeddingModel):
        raise ConfigError(f"`model` must be a divcon.EmbeddingModel, not of type {type(model).__name__}")
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"`config` must be a divcon.TrainConfig, not of type {type(config).__name__}")
    images = as_labeled_set(data, context)
    config, _ = fit_training(config if context.processes else on_started_group(config), images.labels)
    objectives = check(model, images, config)
    context = replace(context, workers=config.workers)
    start = _launch if context.processes is None else divide_and_conquer
    return start(model, images, config, objectives, checkpoint, stop, context)


def divide_and_conquer(
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    objectives: nn.ModuleList,
    checkpoint: str | Path | None,
    stop: SignalHandler | None,
    context: Context,
) -> Generator[EpochReport, bool | None, None]:
    """The training loop, run by every process of the group; its arguments are those of `train`, checked. Sending True
    ends it once the epoch's checkpoint is saved; all processes must send the same."""
    device = training_device(config)
    optimizer, precision = set_up(model, objectives, config, device), Precision(config.precision, device)
    labels = np.unique(images.labels, return_inverse=True)[1].astype(np.int64)
    bank = FeatureBank(len(images), model.num_features, device, enabled=config.divide_on == "bank")
    distill_weight = config.chosen_distill_weight(model.head.max_learners, vectors=model.vector_dim is not None)
    average = WeightAverage(model, config.ema_decay)
    budget = division_budget(config, context.group, device)
    gradients = Gradients(model, context.group)
    state = TrainState(model, objectives, optimizer, precision, bank, average, division_budget=budget)
    checkpointer = Checkpointer(state, checkpoint, config, images, stop, context)
    loader = create_loader(model, images, config, device, context)
    with loader, checkpointer, context.group.gathered_batch(model.pooling):
        divider = Divider(model, loader, bank, labels, config, state.division_budget, precision, device, context)
        for epoch in range(state.epochs_done, config.epochs):
            phase = phase_at(epoch, config, model.head.max_learners)
            report = EpochReport(epoch, phase)

            # Divide the training images among the learners.
            started = time.perf_counter()
            previous = checkpointer.previous_division
            if checkpointer.resumes_inside_epoch and state.division:
                division = state.division
            elif phase is Phase.FINETUNE or config.divide_by == "none":
                bank.disable()
                division = previous if previous and previous.num_learners == 1 else Division.whole(labels)
            elif previous is None or divides_at(epoch, config):
                # A hierarchy starts with one learner and doubles the learners at each division until there are K.
                double = config.hierarchy and previous is not None and model.num_learners < model.head.max_learners
                division = divider.divide(epoch, previous, double=double)
                if double:
                    double_learners(model, objectives, optimizer)
                    average.restart()
            else:
                division = previous
            num_learners = 1 if phase is Phase.FINETUNE else model.num_learners
            redivided = division is not previous and not checkpointer.resumes_inside_epoch
            set_classes(objectives, division, labels, num_learners, redivided=redivided)
            checkpointer.start_epoch(division, previous)
            report.record_division(division, previous, labels, time.perf_counter() - started)
            if division.sample and report.redivided:
                report.warnings += (divider.sampled,)

            # Train the learners in turn, each on batches of its own cluster, or conquer.
            plan = plan_epoch(
                division,
                labels,
                num_learners=num_learners,
                batch_size=config.batch_size,
                images_per_class=config.images_per_class,
                small_classes=config.small_classes,
                rounds=config.rounds,
                seed=config.seed,
                epoch=epoch,
            )
            record = LossRecord(images, plan, epoch, context, immediate=device.type == "cpu")
            model.train()
            for step, batches in checkpointer.steps(loader, plan, labels, report, record):
                epochs_done = epoch + step.start / len(plan.batches)
                set_learning_rates(optimizer, learning_rates(epochs_done, phase, config))
                optimizer.zero_grad()
                for number, batch, inputs, targets in batches:
                    network = gradients.network(step, number)
                    seed_batch(config.seed, epoch, number)
                    if phase is Phase.SUBSPACE:
                        # The loss of learner k on its subspace; with full_weight, which neither paper has, also that of
                        # the full embedding.
                        own, full, features = precision.forward(network, inputs, learner=batch.learner, with_all=True)
                        loss = record.loss(number, objectives[batch.learner], own, targets)
                        if config.full_weight:
                            loss = loss + config.full_weight * record.full_loss(number, objectives[-1], full, targets)
                        loss = loss + config.mask_penalty * model.head.penalty()
                    else:
                        # Conquer: one loss on the full embedding.
                        _, full, features = precision.forward(network, inputs, with_all=True)
                        loss = record.loss(number, objectives[-1], full, targets)
                    if distill_weight:
                        # The full embedding learns the similarities of its own backbone's features (S2SD).
                        distillation = record.distillation(number, full, features, config.distill_temperature)
                        loss = loss + distill_weight * distillation
                    bank.update(batch.indices, features)
                    precision.backward(loss / len(step))
                take_step(optimizer, precision, objectives, model, gradients, context)
                record.step_done(step)
                context.on_progress(report.progress(record))
            report.record_training(plan, record, optimizer.param_groups, model.head)

            average.update()
            with average.in_model():
                end = yield report
            checkpointer.epoch_done(epoch)
            if end:
                break
    average.copy_to_model()


def _launch(
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    objectives: nn.ModuleList,
    checkpoint: str | Path | None,
    stop: SignalHandler | None,
    context: Context,
) -> Iterator[EpochReport]:
    """Launch ``config.devices`` processes, and train as their main process."""
    device = resolve_device(config.device)
    arguments = (model, images, config, checkpoint)
    with (
        torch_threads(config.num_threads, config.num_devices),
        launch(config.num_devices, config.across, device, _worker, *arguments) as processes,
    ):
        context = replace(context, processes=processes)
        yield from divide_and_conquer(model, images, config, objectives, checkpoint, stop, context)


def _worker(
    processes: ProcessGroup,
    model: EmbeddingModel,
    images: LabeledSet,
    config: TrainConfig,
    checkpoint: str | Path | None,
) -> None:
    # A copy, because PyTorch passes tensors to another process in shared memory.
    network, context = copy.deepcopy(model), Context(processes=processes)
    with SignalHandler() as stop:
        for _ in train(network, images, config, checkpoint=checkpoint, stop=stop, context=context):
            pass
