"""The program of a run: recipe, runtime and data set put together into functions of a step.

Everything that a run computes is determined here, and by nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fcifar import precision, random, recipes, replicas, tta
from fcifar.compiling import compile_pure, compile_step
from fcifar.data import Dataset
from fcifar.data.splits import holdout
from fcifar.errors import UserError, located
from fcifar.models import Model, Variables
from fcifar.models.base import keep
from fcifar.optim import Optimizer
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.random import Key
from fcifar.recipes import Recipe
from fcifar.running import Feed, Running, accumulate, alternate, on_feed, start_running
from fcifar.runs.checkpoint import on_device
from fcifar.runs.runtime import Runtime
from fcifar.step import (
    Batch,
    EvalStep,
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from fcifar.tta import Views

TrainFeed = Callable[[Running, Feed], tuple[Running, tuple[()]]]

SAMPLE = 5000  # images that a model adapts to


class Program(NamedTuple):
    """A run as functions. Those of runs that differ in their seeds alone are the same functions."""

    model: Model
    axis: Axis  # the processes that divide each batch
    init: Callable[[], Running]
    stages: dict[int, TrainFeed]  # steps, by how many have been made before the first of each
    mapped_stages: dict[int, TrainFeed]  # the same over a stack of runs
    eval_step: EvalStep
    eval_views_step: EvalStep  # with the recipe's test-time augmentation
    compiled_evals: tuple[EvalStep, ...]  # those of both that want to be warmed up
    value: Callable[[TrainState], Variables]  # the variables to evaluate and to end with
    feeds_from: Callable[[int], Iterator[Feed]]  # those of each step from a given one to the last
    steps_per_epoch: int
    images_per_epoch: int
    total_steps: int
    train: Batch  # all training images, those held out included; on the device
    valid: Batch  # those held out, or given with the data set; without rows where none are
    test: Batch

    def step_at(self, step: int) -> TrainFeed:
        """The step to make after so many others."""
        return stage_at(self.stages, step)

    def rows_from(self, start: int) -> Iterator[Tensor]:
        """The row numbers of each step from a given one to the last."""
        return (feed.rows for feed in self.feeds_from(start))


def stage_at(stages: Mapping[int, TrainFeed], step: int) -> TrainFeed:
    """Of steps by where they begin, the one to make after ``step`` others."""
    return stages[max(start for start in stages if start <= step)]


def split_rows(recipe: Recipe, seed: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the training images that a run trains on, and those that it holds out."""
    valid_key = _keys(seed)[2]
    return holdout(valid_key, labels, recipe.valid_fraction, stratify=recipe.stratify)


def _keys(seed: int) -> tuple[Key, ...]:
    """For initial parameters and the draws of a step, the order of images, the holdout, the images
    that are mirrored first, and those that the model adapts to.
    """
    return random.split(random.key(seed), 5).unbind()


def build(
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    *,
    compiled: bool,
    traced: Sequence[str] = (),
    axis: Axis = ALONE,
) -> Program:
    """Put a run together. Enter ``activate(runtime)`` first.

    Args:
        traced: names of numbers of the recipe (``recipes.Numbers``) that are to be arguments of
            the step, so that runs which differ in them share what is compiled.
        axis: the processes that divide each batch; each feeds its steps with ``running.shard``.

    Raises:
        UserError: the recipe does not fit the data set.
    """
    made = share(recipe, runtime, dataset, compiled=compiled, traced=traced, axis=axis)
    return made(recipe, runtime.seed)


def share(
    recipe: Recipe,
    runtime: Runtime,
    dataset: Dataset,
    *,
    compiled: bool,
    traced: Sequence[str] = (),
    axis: Axis = ALONE,
) -> Callable[[Recipe, int], Program]:
    """``(recipe, seed) -> Program``, for runs that share their functions and their images.

    The recipes that it is called with are ``recipe`` but for the numbers in ``traced``. The other
    arguments are those of ``build``.

    Raises:
        UserError: as ``build``.
    """
    device, policy = torch.device(runtime.device), runtime.policy
    train = Batch(dataset.train_images.to(device), dataset.train_labels.to(device))
    test = Batch(dataset.test_images.to(device), dataset.test_labels.to(device))
    given = Batch(dataset.valid_images, dataset.valid_labels)
    if recipe.valid == "given":
        given = Batch(*(part.to(device) for part in given))
    size, steps_per_epoch = count(recipe, dataset, seed=runtime.seed, processes=axis.size)
    total_steps = steps_per_epoch * recipe.epochs
    _check_model(recipe, policy, size, len(dataset.classes), total_steps, axis)
    model = recipes.make_model(recipe, len(dataset.classes), axis)
    average = recipes.make_average(recipe, total_steps)
    preprocess = recipes.make_preprocess(recipe)
    class_weights = recipes.make_class_weights(recipe, train.labels, len(dataset.classes))

    def optimizer(values: Mapping[str, Tensor]) -> Optimizer:
        return recipes.make_optimizer(recipe, total_steps, recipes.make_numbers(recipe, values))

    def make_stages(*, mapped: bool) -> dict[int, TrainFeed]:
        return {
            start: make_stage(stage.size, mapped=mapped)
            for start, stage in recipes.make_stages(recipe, total_steps)
        }

    def make_stage(size: int, *, mapped: bool) -> TrainFeed:
        def step_with(values: Mapping[str, Tensor]) -> TrainStep:
            return make_train_step(
                model,
                optimizer(values),
                loss=recipes.make_loss(recipe, recipes.make_numbers(recipe, values), class_weights),
                augment=recipes.make_augment(recipe),
                preprocess=recipes.make_preprocess(recipe, size),
                policy=policy,
                reduction=recipes.make_reduction(recipe),
                gradient=recipes.make_gradient(recipe, axis),
                average=average,
                axis=axis,
            )

        # Made once where nothing of it is an argument: there is then less to trace.
        plain = step_with({})
        fed = on_feed(step_with if traced else lambda values: plain, train)
        step = replicas.map_replicas(accumulate(fed)) if mapped else accumulate(fed)
        return compile_step(step) if compiled else step

    def make_eval(views: Views, *, compiled: bool) -> EvalStep:
        step = make_eval_step(model, preprocess=preprocess, policy=policy, views=views)
        return compile_pure(step) if compiled else step

    # Compiling takes longer than evaluating once, and far less than after each epoch, or than
    # evaluating several views.
    eval_step = make_eval(tta.NONE, compiled=compiled and recipe.has_valid)
    views_step = make_eval(recipes.make_views(recipe), compiled=compiled)
    wanted = {eval_step: recipe.has_valid, views_step: recipe.tta != "none"}
    stages, mapped_stages = make_stages(mapped=False), make_stages(mapped=True)

    def of_seed(own: Recipe, seed: int) -> Program:
        state_key, order_key, _, flip_key, sample_key = _keys(seed)
        rows, valid_rows = (
            part.to(device) for part in split_rows(recipe, seed, dataset.train_labels)
        )
        mirrored = random.bernoulli(flip_key, 0.5, (len(train.labels),)).to(device)
        values = {
            name: torch.tensor(getattr(own, name), dtype=torch.float32, device=device)
            for name in traced
        }

        def init() -> Running:
            # Drawn on the CPU, so that a run starts from the same bits on every device.
            sample = None
            if model.adapt is not keep:
                chosen = random.permutation(sample_key, rows.cpu())[:SAMPLE]
                sample = preprocess(dataset.train_images[chosen])
            state = init_train_state(
                model,
                optimizer(values),
                key=state_key,
                policy=policy,
                average=average,
                sample=sample,
            )
            return on_device(start_running(state), device)

        def feeds_from(start: int) -> Iterator[Feed]:
            first, done = divmod(start, steps_per_epoch)
            for epoch in range(first, recipe.epochs):
                order = random.permutation(random.fold_in(order_key.to(device), epoch), rows)
                batches = order[: steps_per_epoch * recipe.batch_size].split(recipe.batch_size)
                for batch in batches[done if epoch == first else 0 :]:
                    flips = alternate(mirrored, batch, epoch) if recipe.alternating_flip else ()
                    yield Feed(batch, flips, values)

        return Program(
            model=model,
            axis=axis,
            init=init,
            stages=stages,
            mapped_stages=mapped_stages,
            eval_step=eval_step,
            eval_views_step=views_step,
            compiled_evals=tuple(step for step in wanted if compiled and wanted[step]),
            value=lambda state: average.value(state.variables, state.average),
            feeds_from=feeds_from,
            steps_per_epoch=steps_per_epoch,
            images_per_epoch=steps_per_epoch * recipe.batch_size if recipe.drop_last else size,
            total_steps=total_steps,
            train=train,
            valid=given
            if recipe.valid == "given"
            else Batch(train.images[valid_rows], train.labels[valid_rows]),
            test=test,
        )

    return of_seed


def _check_model(
    recipe: Recipe, policy: Policy, count: int, num_classes: int, total_steps: int, axis: Axis
) -> None:
    """Make sure that the model takes what it is given: on the meta device, where it is cheap.

    Raises:
        UserError: it does not compute in a dtype; or does not train on a batch of one image, as
            under batch norm of features without width and height, and there is one.
    """
    model, key = recipes.make_model(recipe, num_classes), random.key(0, device="meta")
    variables = model.init(key)
    cast = variables._replace(params=precision.cast(variables.params, policy.compute))
    batches = {recipe.batch_size, *(() if recipe.drop_last else (count % recipe.batch_size,))}
    single = axis.size in batches and not (axis.size > 1 and recipe.sync_batch_norm)

    def forward(images: Tensor) -> None:
        with torch.device("meta"):  # where modules that name no device make their tensors, too
            model.apply(cast, images, key=key, train=True)

    for _, stage in recipes.make_stages(recipe, total_steps):
        size = stage.size or 32
        images = torch.empty(2, 3, size, size, dtype=policy.compute, device="meta")
        try:
            forward(images)
        except Exception as error:
            raise UserError(
                f"the model {recipe.model} does not take images of {size}x{size} pixels in "
                f"{str(policy.compute).removeprefix('torch.')} ({located(error)}); give "
                "--precision fp32, or create its tensors in the dtype of the images"
            ) from error
        try:
            if single:
                forward(images[:1])
        except ValueError as error:
            other = "" if recipe.batch_size == axis.size else "--drop-last, or "
            raise UserError(
                f"batches of {recipe.batch_size} of {count} images leave one image alone, which "
                f"the model does not train on ({located(error)}); give {other}another --batch-size"
            ) from error


def count(recipe: Recipe, dataset: Dataset, *, seed: int, processes: int = 1) -> tuple[int, int]:
    """How many images a run trains on, and how many steps an epoch has.

    Raises:
        UserError: the recipe does not fit the data set, or so many processes.
    """
    if not len(dataset.train_labels):
        raise UserError(
            f"{dataset.name} is a test set without training images; train on another data set with "
            f"the same classes, then measure with fcifar eval RUN --dataset {dataset.name}"
        )
    if recipe.valid == "given" and not len(dataset.valid_labels):
        raise UserError(
            f"valid is given, and {dataset.name} has no validation images of its own; hold some "
            "out of the training images with --valid-fraction 0.1 in place of it"
        )
    size, held_out = map(len, split_rows(recipe, seed, dataset.train_labels))
    if recipe.batch_size > size:
        raise UserError(
            f"batch_size is {recipe.batch_size}, but {dataset.name} has {size} training images"
        )
    if recipe.valid_fraction and not held_out:
        raise UserError(
            f"valid_fraction is {recipe.valid_fraction}, which is no image of the "
            f"{size} in {dataset.name}; give a larger one"
        )
    if recipe.batch_size % processes:
        raise UserError(
            f"batch_size is {recipe.batch_size}, which {processes} processes cannot divide "
            f"equally; give a --batch-size that is a multiple of {processes}"
        )
    steps, last = divmod(size, recipe.batch_size)
    if last % processes and not recipe.drop_last:
        raise UserError(
            f"the last batch of an epoch has {last} images, which {processes} processes cannot "
            "divide equally; give --drop-last, or another --batch-size"
        )
    return size, steps if recipe.drop_last or not last else steps + 1
