"""The program of a run: recipe, runtime and data set put together into functions of a step.

Everything that a run computes is determined here, and by nothing else.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import random, recipes
from fcifar.data import Dataset
from fcifar.data.splits import holdout
from fcifar.errors import UserError
from fcifar.models import Model
from fcifar.random import Key
from fcifar.recipes import Recipe
from fcifar.runs.checkpoint import on_device
from fcifar.runs.runtime import Runtime
from fcifar.step import (
    Batch,
    EvalStep,
    Running,
    accumulate,
    compile_pure,
    compile_step,
    init_train_state,
    make_eval_step,
    make_train_step,
    on_indices,
    start_running,
)


class Program(NamedTuple):
    """A run as functions."""

    model: Model
    init: Callable[[], Running]
    train_step: Callable[[Running, Tensor], tuple[Running, tuple[()]]]  # row numbers [B]
    eval_step: EvalStep
    rows_from: Callable[[int], Iterator[Tensor]]  # those of each step from a given one to the last
    steps_per_epoch: int
    images_per_epoch: int
    total_steps: int
    train: Batch  # all training images, those held out included; on the device
    valid: Batch  # those held out; without rows where none are
    test: Batch


def split_rows(recipe: Recipe, seed: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the training images that a run trains on, and those that it holds out."""
    _, _, valid_key = _keys(seed)
    return holdout(valid_key, labels, recipe.valid_fraction, stratify=recipe.stratify)


def _keys(seed: int) -> tuple[Key, ...]:
    """For initial parameters and the draws of a step, the order of images, and the holdout."""
    return random.split(random.key(seed), 3).unbind()


def build(recipe: Recipe, runtime: Runtime, dataset: Dataset, *, compiled: bool) -> Program:
    """Put a run together. Enter ``activate(runtime)`` first.

    Raises:
        UserError: the recipe does not fit the data set.
    """
    device = torch.device(runtime.device)
    state_key, order_key, _ = _keys(runtime.seed)
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
    preprocess = recipes.make_preprocess(recipe)
    policy = runtime.policy

    def init() -> Running:
        # Drawn on the CPU, so that a run starts from the same bits on every device.
        state = init_train_state(model, optimizer, key=state_key, policy=policy)
        return on_device(start_running(state), device)

    def rows_from(start: int) -> Iterator[Tensor]:
        first, done = divmod(start, steps_per_epoch)
        for epoch in range(first, recipe.epochs):
            order = random.permutation(random.fold_in(order_key.to(device), epoch), train_rows)
            batches = order[: steps_per_epoch * batch_size].split(batch_size)
            yield from batches[done if epoch == first else 0 :]

    train_step = make_train_step(
        model,
        optimizer,
        augment=recipes.make_augment(recipe),
        preprocess=preprocess,
        policy=policy,
    )
    step = accumulate(on_indices(train_step, train))
    eval_step = make_eval_step(model, preprocess=preprocess, policy=policy)
    return Program(
        model=model,
        init=init,
        train_step=compile_step(step) if compiled else step,
        # Compiling takes longer than evaluating once, and far less than after each epoch.
        eval_step=compile_pure(eval_step) if compiled and len(valid_rows) else eval_step,
        rows_from=rows_from,
        steps_per_epoch=steps_per_epoch,
        images_per_epoch=steps_per_epoch * batch_size if recipe.drop_last else size,
        total_steps=total_steps,
        train=train,
        valid=Batch(train.images[valid_rows], train.labels[valid_rows]),
        test=test,
    )
