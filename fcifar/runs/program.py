"""The program of a run: recipe, runtime and data set put together into functions of a step.

Everything that a run computes is determined here, and by nothing else.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random, recipes, tta
from fcifar.compiling import compile_pure, compile_step
from fcifar.data import Dataset
from fcifar.data.splits import holdout
from fcifar.errors import UserError
from fcifar.models import Model, Variables
from fcifar.models.base import keep
from fcifar.random import Key
from fcifar.recipes import Recipe
from fcifar.running import (
    Running,
    accumulate,
    on_alternating_indices,
    on_indices,
    start_running,
)
from fcifar.runs.checkpoint import on_device
from fcifar.runs.runtime import Runtime
from fcifar.step import (
    Batch,
    EvalStep,
    TrainState,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from fcifar.tta import Views

TrainRows = Callable[[Running, Tensor], tuple[Running, tuple[()]]]  # row numbers int64 [B]

SAMPLE = 5000  # images that a model adapts to


class Program(NamedTuple):
    """A run as functions."""

    model: Model
    init: Callable[[], Running]
    stages: dict[int, TrainRows]  # steps, by how many have been made before the first of each
    eval_step: EvalStep
    eval_views_step: EvalStep  # with the recipe's test-time augmentation
    compiled_evals: tuple[EvalStep, ...]  # those of both that want to be warmed up
    value: Callable[[TrainState], Variables]  # the variables to evaluate and to end with
    rows_from: Callable[[int], Iterator[Tensor]]  # those of each step from a given one to the last
    steps_per_epoch: int
    images_per_epoch: int
    total_steps: int
    train: Batch  # all training images, those held out included; on the device
    valid: Batch  # those held out; without rows where none are
    test: Batch

    def step_at(self, step: int) -> TrainRows:
        """The step to make after so many others."""
        return self.stages[max(start for start in self.stages if start <= step)]


def split_rows(recipe: Recipe, seed: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the training images that a run trains on, and those that it holds out."""
    valid_key = _keys(seed)[2]
    return holdout(valid_key, labels, recipe.valid_fraction, stratify=recipe.stratify)


def _keys(seed: int) -> tuple[Key, ...]:
    """For initial parameters and the draws of a step, the order of images, the holdout, the images
    that are mirrored first, and those that the model adapts to.
    """
    return random.split(random.key(seed), 5).unbind()


def build(recipe: Recipe, runtime: Runtime, dataset: Dataset, *, compiled: bool) -> Program:
    """Put a run together. Enter ``activate(runtime)`` first.

    Raises:
        UserError: the recipe does not fit the data set.
    """
    device = torch.device(runtime.device)
    state_key, order_key, _, flip_key, sample_key = _keys(runtime.seed)
    train = Batch(dataset.train_images.to(device), dataset.train_labels.to(device))
    test = Batch(dataset.test_images.to(device), dataset.test_labels.to(device))
    train_rows, valid_rows = (
        rows.to(device) for rows in split_rows(recipe, runtime.seed, dataset.train_labels)
    )
    size, batch_size = len(train_rows), recipe.batch_size
    if batch_size > size:
        raise UserError(
            f"batch_size is {batch_size}, but {dataset.name} has {size} training images"
        )
    if recipe.valid_fraction and not len(valid_rows):
        raise UserError(
            f"valid_fraction is {recipe.valid_fraction}, which is no image of the "
            f"{size} in {dataset.name}; give a larger one"
        )
    steps_per_epoch = size // batch_size if recipe.drop_last else -(-size // batch_size)
    total_steps = steps_per_epoch * recipe.epochs

    model = recipes.make_model(recipe, len(dataset.classes))
    optimizer = recipes.make_optimizer(recipe, total_steps)
    average = recipes.make_average(recipe, total_steps)
    preprocess = recipes.make_preprocess(recipe)
    policy = runtime.policy

    def init() -> Running:
        # Drawn on the CPU, so that a run starts from the same bits on every device.
        sample = None
        if model.adapt is not keep:
            rows = random.permutation(sample_key, train_rows.cpu())[:SAMPLE]
            sample = preprocess(dataset.train_images[rows])
        state = init_train_state(
            model,
            optimizer,
            key=state_key,
            policy=policy,
            average=average,
            sample=sample,
        )
        return on_device(start_running(state), device)

    def rows_from(start: int) -> Iterator[Tensor]:
        first, done = divmod(start, steps_per_epoch)
        for epoch in range(first, recipe.epochs):
            order = random.permutation(random.fold_in(order_key.to(device), epoch), train_rows)
            batches = order[: steps_per_epoch * batch_size].split(batch_size)
            yield from batches[done if epoch == first else 0 :]

    mirrored = random.bernoulli(flip_key, 0.5, (len(train.labels),)).to(device)

    def make_step(size: int) -> TrainRows:
        step = make_train_step(
            model,
            optimizer,
            loss=recipes.make_loss(recipe),
            augment=recipes.make_augment(recipe),
            preprocess=recipes.make_preprocess(recipe, size),
            policy=policy,
            reduction=recipes.make_reduction(recipe),
            average=average,
        )
        if recipe.alternating_flip:
            fed = on_alternating_indices(step, train, mirrored, steps_per_epoch)
        else:
            fed = on_indices(step, train)
        return compile_step(accumulate(fed)) if compiled else accumulate(fed)

    def make_eval(views: Views, *, compiled: bool) -> EvalStep:
        step = make_eval_step(model, preprocess=preprocess, policy=policy, views=views)
        return compile_pure(step) if compiled else step

    # Compiling takes longer than evaluating once, and far less than after each epoch, or than
    # evaluating several views.
    eval_step = make_eval(tta.NONE, compiled=compiled and len(valid_rows) > 0)
    views_step = make_eval(recipes.make_views(recipe), compiled=compiled)
    wanted = {eval_step: len(valid_rows) > 0, views_step: recipe.tta != "none"}
    return Program(
        model=model,
        init=init,
        stages={
            start: make_step(stage.size)
            for start, stage in recipes.make_stages(recipe, total_steps)
        },
        eval_step=eval_step,
        eval_views_step=views_step,
        compiled_evals=tuple(step for step in wanted if compiled and wanted[step]),
        value=lambda state: average.value(state.variables, state.average),
        rows_from=rows_from,
        steps_per_epoch=steps_per_epoch,
        images_per_epoch=steps_per_epoch * batch_size if recipe.drop_last else size,
        total_steps=total_steps,
        train=train,
        valid=Batch(train.images[valid_rows], train.labels[valid_rows]),
        test=test,
    )
