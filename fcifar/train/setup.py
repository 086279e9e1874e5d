"""Build the functions of a run from its configuration and its data set."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcifar import averaging, precision, privacy, random, recipes, step_transforms, tree
from fcifar.augment import tta
from fcifar.augment.tta import Views
from fcifar.data import Dataset
from fcifar.data.split import folds, holdout
from fcifar.models import Model, Variables
from fcifar.models.base import Buffers, keep
from fcifar.optim import Optimizer
from fcifar.parallel import ALONE, Axis
from fcifar.precision import Policy
from fcifar.random import Key
from fcifar.recipes import Recipe
from fcifar.recipes.checks import parse_fold
from fcifar.step import (
    Batch,
    EvalOutput,
    EvalStep,
    TrainState,
    TrainStep,
    eval_variables,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from fcifar.step_transforms import LoopState, LoopStep, StepInput, alternate
from fcifar.train import distributed, environment, programs
from fcifar.train.config import RunConfig
from fcifar.train.evaluate import batch_size_of, evaluate
from fcifar.train.events import Event, Noted, Observe, Preparing

SAMPLE = 5000  # images that a model is adapted to, and that statistics are estimated from
_STATISTICS_BATCH = 500  # images


class Training(NamedTuple):
    """The functions and data of a run."""

    model: Model
    axis: Axis  # the ranks that divide each batch
    pretrained: Mapping[str, Tensor]  # what ``init`` does not draw
    init: Callable[[], LoopState]
    stages: dict[int, LoopStep]  # the step functions by the step that each starts at
    vmap_stages: dict[int, LoopStep]  # the same over a stack of states
    first_calls: Callable[[LoopState], Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]]
    """Yields functions and arguments to call once, so that they are loaded or compiled for each
    shape of batch. Runs that share compiled functions do so once."""
    listeners: list[Observe]  # called with the events of compiling
    eval_step: EvalStep
    eval_views_step: EvalStep  # with the recipe's test-time augmentation
    value: Callable[[TrainState], Variables]  # the variables to evaluate and to save
    average: Callable[[TrainState], Variables] | None
    """The average beside them, with batch-norm statistics of its own; None without ``ema_decay``
    and ``swa_start``."""
    inputs: Callable[[int], Iterator[StepInput]]  # of each step from a given one on
    size: int  # number of images to train on
    steps_per_epoch: int
    images_per_epoch: int  # on average
    total_steps: int
    learning_rate: Callable[[int], float]  # by step, from 0
    train: Batch  # all training images, with those held out; on the device
    valid: Batch  # held out, or given with the data set; may be empty
    test: Batch


def stage_at(stages: Mapping[int, LoopStep], step: int) -> LoopStep:
    """Return the step function of ``step``."""
    return stages[max(start for start in stages if start <= step)]


def split_rows(recipe: Recipe, seed: int, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of the training images to train on, and those held out for validation."""
    valid_key = _keys(seed)[2]
    if recipe.fold:
        part, parts = parse_fold(recipe.fold)
        is_held_out = folds(valid_key, labels, parts) == part - 1
        return torch.nonzero(~is_held_out).flatten(), torch.nonzero(is_held_out).flatten()
    return holdout(valid_key, labels, recipe.valid_fraction, stratify=recipe.stratify)


_STATISTICS_KEY = 5  # after the keys below; 6 and 7 are in runs.proponents and report.draw


def _keys(seed: int) -> tuple[Key, ...]:
    """Keys of the state, the order of images, the holdout, the first flips, and the sample."""
    return random.split(random.key(seed), 5).unbind()


def with_statistics(
    model: Model,
    variables: Variables,
    images: Tensor,
    rows: Tensor,
    *,
    seed: int,
    recipe: Recipe,
    policy: Policy,
) -> Variables:
    """Return the variables with batch-norm statistics estimated from images, see ``averaging``.

    Up to 5,000 images, which the seed draws, in batches of 500, normalised and not augmented. They
    are the same for every average of a seed. Models without batch norm keep their variables.

    Args:
        images: training images, uint8 [N, 3, 32, 32], on the device of the variables.
        rows: int64 [M], the images to draw from.
    """
    key = random.fold_in(random.key(seed), _STATISTICS_KEY)
    order_key, model_key = random.split(key)
    drawn = random.permutation(order_key, rows.cpu())[:SAMPLE]
    whole = max(len(drawn) // _STATISTICS_BATCH, 1) * _STATISTICS_BATCH
    batches = drawn[:whole].to(images.device).split(_STATISTICS_BATCH)
    keys = random.split(model_key, len(batches))  # of dropout, which is on as in training
    preprocess = recipes.make_preprocess(recipe)
    params = precision.cast(variables.params, policy.compute)

    def update(buffers: Buffers, batch: tuple[Tensor, Key]) -> Buffers:
        rows, key = batch
        x = preprocess(images[rows]).to(policy.compute)
        changed = model.apply(Variables(params, buffers), x, key=key.to(x.device), train=True)[1]
        return precision.cast(changed, policy.param)

    with torch.no_grad():
        pairs = zip(batches, keys, strict=True)
        return Variables(
            variables.params, averaging.estimate_statistics(update, variables.buffers, pairs)
        )


def make_training(
    config: RunConfig,
    dataset: Dataset,
    axis: Axis = ALONE,
    pretrained: Mapping[str, Tensor] | None = None,
) -> Training:
    """Build the functions of a run. Call it within ``runtime.activate(config.runtime)``.

    ``axis`` are the ranks that divide each batch, ``pretrained`` values as for
    ``init_train_state``. Raises a UsageError if the recipe does not fit the data set.
    """
    return make_trainings(config, dataset, axis, pretrained)(config.recipe, config.seed)


def make_trainings(
    config: RunConfig,
    dataset: Dataset,
    axis: Axis = ALONE,
    pretrained: Mapping[str, Tensor] | None = None,
) -> Callable[[Recipe, int], Training]:
    """Return ``(recipe, seed) -> Training``, for runs that share compiled functions and images.

    Their recipes must be ``config.recipe`` up to ``config.traced_hparams``. Raises as
    ``make_training``.
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
    size, valid_size = map(len, rows_of(config.seed))
    given_size = len(dataset.valid_labels)
    recipes.check_sizes(recipe, dataset.name, size, valid_size, given_size, axis.size)
    steps_per_epoch = recipes.steps_per_epoch(recipe, size)
    total_steps = steps_per_epoch * recipe.epochs
    recipes.check_model(recipe, policy, size, len(dataset.classes), total_steps, axis)
    model = recipes.make_model(recipe, len(dataset.classes), axis)
    average = recipes.make_average(recipe, total_steps)
    alone = recipes.make_model(recipe, len(dataset.classes))  # each rank estimates on whole batches
    preprocess = recipes.make_preprocess(recipe)
    class_weights = recipes.make_class_weights(recipe, train.labels, len(dataset.classes))

    listeners: list[Observe] = []

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    noted: set[str] = set()

    def note(text: str) -> None:
        if text not in noted:  # each compiled function says it
            noted.add(text)
            tell(Noted(text))

    is_ahead = compiled and programs.are_for(device)
    if compiled and not is_ahead:
        environment.check_compiler(runtime.device)
    described = {
        # The folds of one size share a program.
        "recipe": {k: v for k, v in recipes.settings(recipe).items() if k != "fold"},
        "about": {"recipe": recipe.name, "dataset": dataset.name},
        "precision": runtime.precision,
        "traced": list(traced),
        "classes": len(dataset.classes),
        "class_weights": class_weights.tolist() if class_weights is not None else [],
        "total_steps": total_steps,
        "ranks": [axis.size, distributed.group_name() if axis.size > 1 else ""],
    }
    ahead = functools.partial(
        programs.ahead_of_time, traced=not recipes.is_own(recipe), observe=tell
    )

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
                mix=recipes.make_mix(recipe, len(dataset.classes)),
                preprocess=recipes.make_preprocess(recipe, size),
                policy=policy,
                reduction=recipes.make_reduction(recipe),
                gradient=recipes.make_gradient(recipe, axis),
                average=average,
                axis=axis,
            )

        # Without traced hyperparameters, build the step once: there is less to trace.
        constant = step_with({})
        step = step_with if traced else lambda values: constant

        def loop_step(data: Batch) -> LoopStep:
            plain = step_transforms.make_loop_step(step, data)
            return step_transforms.map_replicas(plain) if mapped else plain

        def by_torch() -> LoopStep:
            return step_transforms.compile_step(loop_step(train), note=note)

        if not is_ahead:
            return by_torch() if compiled else loop_step(train)

        def overwriting(data: Batch, state: LoopState, inputs: StepInput) -> tuple[()]:
            return step_transforms.overwrite(state, loop_step(data)(state, inputs)[0])

        request = {**described, "what": "step", "size": size, "mapped": mapped}
        run = ahead(overwriting, train, request, wrap=tuple, otherwise=by_torch)
        return programs.donating(run)

    def make_eval(views: Views, *, is_costly: bool) -> EvalStep:
        step = make_eval_step(model, preprocess=preprocess, policy=policy, views=views)
        if compiled and not is_ahead:
            return step_transforms.replay(
                step_transforms.compile_pure(step) if is_costly else step, note
            )
        if not compiled or not is_costly:
            return step
        request = {**described, "what": "evaluation", "views": views is not tta.NONE}
        return ahead(
            lambda _, variables, batch: step(variables, batch),
            *((), request),
            wrap=EvalOutput._make,
            otherwise=lambda: step_transforms.compile_pure(step),
        )

    # Compiling takes longer than one evaluation, but less than one per epoch or of several views.
    eval_step = make_eval(tta.NONE, is_costly=recipe.has_valid)
    views = recipes.make_views(recipe)
    views_step = make_eval(views, is_costly=recipe.tta != "none")
    compiled_evals = [(eval_step, tta.NONE)] if compiled and recipe.has_valid else []
    compiled_evals += [(views_step, views)] if compiled and recipe.tta != "none" else []
    stages, vmap_stages = make_stages(mapped=False), make_stages(mapped=True)
    is_warm = False

    def make(own: Recipe, seed: int) -> Training:
        state_key, order_key, _, flip_key, sample_key = _keys(seed)
        rows, valid_rows = (part.to(device) for part in rows_of(seed))
        order_key = order_key.to(device)
        mirrored = random.bernoulli(flip_key, 0.5, (len(train.labels),)).to(device)
        values = {
            name: torch.full((), getattr(own, name), dtype=torch.float32, device=device)
            for name in traced
        }

        def init() -> LoopState:
            # On the CPU, so that a run starts from the same bits on every device, up to rounding
            # in what is computed from the sample of images.
            sample = None
            if model.adapt is not keep:
                sample_rows = random.permutation(sample_key, rows.cpu())[:SAMPLE]
                sample = preprocess(train.images[sample_rows.to(device)])
            opt = optimizer(values)
            state = init_train_state(
                model,
                opt,
                key=state_key,
                policy=policy,
                average=average,
                sample=sample,
                pretrained=pretrained,
            )
            return tree.on_device(step_transforms.init_loop_state(state), device)

        def value(state: TrainState) -> Variables:
            own_average = averaging.none() if recipe.average else average
            return eval_variables(state, optimizer(values), own_average)

        def order_of(_: Tensor, epoch: Tensor) -> Tensor:
            return random.permutation(random.fold_in(order_key, epoch), rows)

        def sample_of(_: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
            key = random.fold_in(order_key, step)
            numbers, present = privacy.poisson_sample(key, size, recipe.batch_size)
            return rows[numbers], present

        is_sampled = recipe.dp_sampling == "poisson"
        # An order takes hundreds of small kernels.
        draw_order = step_transforms.replay(order_of, note) if compiled else order_of
        draw_sample = step_transforms.replay(sample_of, note) if compiled else sample_of

        def sampled_inputs(start: int) -> Iterator[StepInput]:
            for step in range(start, total_steps):
                indices, present = draw_sample(rows, torch.full((), step, device=device))
                flip: Any = ()
                if recipe.alternating_flip:
                    flip = alternate(mirrored, indices, step // steps_per_epoch)
                yield StepInput(indices, flip, values, present=present)

        def shuffled_inputs(start: int) -> Iterator[StepInput]:
            first, done = divmod(start, steps_per_epoch)
            for epoch in range(first, recipe.epochs):
                order = draw_order(rows, torch.full((), epoch, device=device))
                order = order[: steps_per_epoch * recipe.batch_size]
                batches = order.split(recipe.batch_size)
                flips: Sequence[Any] = [()] * len(batches)
                if recipe.alternating_flip:
                    flips = alternate(mirrored, order, epoch).split(recipe.batch_size)
                for i in range(done if epoch == first else 0, len(batches)):
                    yield StepInput(batches[i], flips[i], values)

        inputs = sampled_inputs if is_sampled else shuffled_inputs

        def first_calls(state: LoopState) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
            nonlocal is_warm
            if is_warm or not compiled:
                return
            is_warm = True
            if not is_ahead:
                tell(Preparing("compiling"))
            is_stack = state.nonfinite.ndim > 0
            # Shuffled epochs end with a smaller batch.
            last_epoch = inputs(total_steps - (1 if is_sampled else steps_per_epoch))
            for batch in {len(batch.indices): batch for batch in last_epoch}.values():
                part = step_transforms.shard(batch, axis.rank, axis.size)
                part = step_transforms.stack([part] * len(state.nonfinite)) if is_stack else part
                for step in (vmap_stages if is_stack else stages).values():
                    if hasattr(step, "prepare"):
                        yield step.prepare, (state, part)
                    else:  # the step overwrites its donated state, so give it a copy
                        yield step, (tree.map(lambda x: x.clone(), state), part)
            one = step_transforms.take(state, 0) if is_stack else state
            variables = value(one.state)
            for eval_step, of in compiled_evals:
                first = functools.partial(evaluate, batch_size=batch_size_of(of, device))
                yield first, (eval_step, variables, tree.map(lambda x: x[:1], test))

        held_out = Batch(train.images[valid_rows], train.labels[valid_rows])
        schedule = recipes.make_schedule(own, total_steps)

        def average_of(state: TrainState) -> Variables:
            return with_statistics(
                alone,
                average.value(state.variables, state.average),
                train.images,
                rows,
                seed=seed,
                recipe=recipe,
                policy=policy,
            )

        def learning_rate(step: int) -> float:
            return float(schedule(torch.tensor(step)) if callable(schedule) else schedule)

        return Training(
            model=model,
            axis=axis,
            pretrained=pretrained or {},
            init=init,
            stages=stages,
            vmap_stages=vmap_stages,
            first_calls=first_calls,
            listeners=listeners,
            eval_step=eval_step,
            eval_views_step=views_step,
            value=value,
            average=average_of if recipe.average else None,
            inputs=inputs,
            size=size,
            steps_per_epoch=steps_per_epoch,
            images_per_epoch=steps_per_epoch * recipe.batch_size
            if recipe.drop_last or is_sampled
            else size,
            total_steps=total_steps,
            learning_rate=learning_rate,
            train=train,
            valid=given if recipe.valid == "given" else held_out,
            test=test,
        )

    return make
