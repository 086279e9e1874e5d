"""The functions of a run, made of its configuration and its data set.

Everything that a run computes is determined here, and by nothing else.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import random, recipes, step_transforms, tree
from fcifar.augment import tta
from fcifar.augment.tta import Views
from fcifar.data import Dataset
from fcifar.data.split import holdout
from fcifar.models import Model, Variables
from fcifar.models.base import keep
from fcifar.optim import Optimizer
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key
from fcifar.recipes import Recipe
from fcifar.step import (
    Batch,
    EvalStep,
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from fcifar.step_transforms import LoopState, LoopStep, StepInput, alternate
from fcifar.train.config import RunConfig
from fcifar.train.evaluate import evaluate

SAMPLE = 5000  # images that a model adapts to


class Training(NamedTuple):
    """A run as functions. Runs that differ in seeds and traced hyperparameters share them."""

    model: Model
    axis: Axis  # the ranks that divide each batch
    init: Callable[[], LoopState]
    stages: dict[int, LoopStep]  # steps, by how many have been made before the first of each
    vmap_stages: dict[int, LoopStep]  # the same over a stack of states
    first_calls: Callable[[LoopState], Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]]
    """Functions and arguments to call first, for each shape of batch, so that they are compiled;
    none where runs that share them have done so."""
    eval_step: EvalStep
    eval_views_step: EvalStep  # with the recipe's test-time augmentation
    value: Callable[[TrainState], Variables]  # the variables to evaluate and to end with
    inputs: Callable[[int], Iterator[StepInput]]  # of each step from a given one to the last
    steps_per_epoch: int
    images_per_epoch: int
    total_steps: int
    learning_rate: Callable[[int], float]  # of the step after so many others
    train: Batch  # all training images, those held out included; on the device
    valid: Batch  # those held out, or given with the data set; without rows where there are none
    test: Batch


def stage_at(stages: Mapping[int, LoopStep], step: int) -> LoopStep:
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


def make_training(config: RunConfig, dataset: Dataset, axis: Axis = ALONE) -> Training:
    """The functions of a run. Enter ``runtime.activate(config.runtime)`` first.

    Args:
        axis: the ranks that divide each batch.

    Raises:
        UsageError: the recipe does not fit the data set.
    """
    return make_trainings(config, dataset, axis)(config.recipe, config.seed)


def make_trainings(
    config: RunConfig, dataset: Dataset, axis: Axis = ALONE
) -> Callable[[Recipe, int], Training]:
    """``(recipe, seed) -> Training``, for runs that share what is compiled, and their images.

    The recipes that it is called with are ``config.recipe`` but for ``config.traced_hparams``.

    Raises:
        UsageError: as ``make_training``.
    """
    recipe, runtime, compiled = config.recipe, config.runtime, config.compile
    traced = config.traced_hparams
    device, policy = torch.device(runtime.device), runtime.policy
    train = Batch(dataset.train_images.to(device), dataset.train_labels.to(device))
    test = Batch(dataset.test_images.to(device), dataset.test_labels.to(device))
    given = Batch(dataset.valid_images, dataset.valid_labels)
    if recipe.valid == "given":
        given = tree.on_device(given, device)
    rows_of = functools.cache(lambda seed: split_rows(recipe, seed, dataset.train_labels))
    size, held_out = map(len, rows_of(config.seed))
    given_size = len(dataset.valid_labels)
    recipes.check_sizes(recipe, dataset.name, size, held_out, given_size, axis.size)
    steps_per_epoch = recipes.steps_per_epoch(recipe, size)
    total_steps = steps_per_epoch * recipe.epochs
    recipes.check_model(recipe, policy, size, len(dataset.classes), total_steps, axis)
    model = recipes.make_model(recipe, len(dataset.classes), axis)
    average = recipes.make_average(recipe, total_steps)
    preprocess = recipes.make_preprocess(recipe)
    class_weights = recipes.make_class_weights(recipe, train.labels, len(dataset.classes))

    def optimizer(values: Mapping[str, Tensor]) -> Optimizer:
        hparams = recipes.make_hyperparams(recipe, values)
        return recipes.make_optimizer(recipe, total_steps, hparams)

    def make_stages(*, mapped: bool) -> dict[int, LoopStep]:
        return {
            start: make_stage(stage.size, mapped=mapped)
            for start, stage in recipes.make_stages(recipe, total_steps)
        }

    def make_stage(size: int, *, mapped: bool) -> LoopStep:
        def step_with(values: Mapping[str, Tensor]) -> TrainStep:
            hparams = recipes.make_hyperparams(recipe, values)
            return make_train_step(
                model,
                optimizer(values),
                loss=recipes.make_loss(recipe, hparams, class_weights),
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
        step = step_with if traced else lambda values: plain
        if not mapped:
            return step_transforms.make_loop_step(step, train, compile=compiled)
        mapped_step = step_transforms.map_replicas(step_transforms.make_loop_step(step, train))
        return step_transforms.compile_step(mapped_step) if compiled else mapped_step

    def make_eval(views: Views, *, compiled: bool) -> EvalStep:
        step = make_eval_step(model, preprocess=preprocess, policy=policy, views=views)
        return step_transforms.compile_pure(step) if compiled else step

    # Compiling takes longer than evaluating once, and far less than after each epoch, or than
    # evaluating several views.
    eval_step = make_eval(tta.NONE, compiled=compiled and recipe.has_valid)
    views_step = make_eval(recipes.make_views(recipe), compiled=compiled)
    compiled_evals = [eval_step] if compiled and recipe.has_valid else []
    compiled_evals += [views_step] if compiled and recipe.tta != "none" else []
    stages, vmap_stages = make_stages(mapped=False), make_stages(mapped=True)
    is_warm = False

    def of_seed(own: Recipe, seed: int) -> Training:
        state_key, order_key, _, flip_key, sample_key = _keys(seed)
        rows, valid_rows = (part.to(device) for part in rows_of(seed))
        mirrored = random.bernoulli(flip_key, 0.5, (len(train.labels),)).to(device)
        values = {
            name: torch.tensor(getattr(own, name), dtype=torch.float32, device=device)
            for name in traced
        }

        def init() -> LoopState:
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
            return tree.on_device(step_transforms.init_loop_state(state), device)

        def inputs(start: int) -> Iterator[StepInput]:
            first, done = divmod(start, steps_per_epoch)
            for epoch in range(first, recipe.epochs):
                order = random.permutation(random.fold_in(order_key.to(device), epoch), rows)
                batches = order[: steps_per_epoch * recipe.batch_size].split(recipe.batch_size)
                for batch in batches[done if epoch == first else 0 :]:
                    flips = alternate(mirrored, batch, epoch) if recipe.alternating_flip else ()
                    yield StepInput(batch, flips, values)

        def first_calls(state: LoopState) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
            nonlocal is_warm
            if is_warm or not compiled:
                return
            is_warm = True
            is_stack = state.nonfinite.ndim > 0
            last_epoch = inputs(total_steps - steps_per_epoch)
            for given in {len(given.indices): given for given in last_epoch}.values():
                part = step_transforms.shard(given, axis.rank, axis.size)
                part = step_transforms.stack([part] * len(state.nonfinite)) if is_stack else part
                for step in (vmap_stages if is_stack else stages).values():
                    # A donated state is overwritten: the copy is what gets lost.
                    yield step, (tree.map(lambda x: x.clone(), state), part)
            one = step_transforms.take(state, 0) if is_stack else state
            variables = average.value(one.state.variables, one.state.average)
            for eval_step in compiled_evals:
                yield evaluate, (eval_step, variables, tree.map(lambda x: x[:1], test))

        schedule = recipes.make_schedule(own, total_steps)

        def learning_rate(step: int) -> float:
            return float(schedule(torch.tensor(step)) if callable(schedule) else schedule)

        return Training(
            model=model,
            axis=axis,
            init=init,
            stages=stages,
            vmap_stages=vmap_stages,
            first_calls=first_calls,
            eval_step=eval_step,
            eval_views_step=views_step,
            value=lambda state: average.value(state.variables, state.average),
            inputs=inputs,
            steps_per_epoch=steps_per_epoch,
            images_per_epoch=steps_per_epoch * recipe.batch_size if recipe.drop_last else size,
            total_steps=total_steps,
            learning_rate=learning_rate,
            train=train,
            valid=given
            if recipe.valid == "given"
            else Batch(train.images[valid_rows], train.labels[valid_rows]),
            test=test,
        )

    return of_seed
