"""The ``Recipe`` dataclass: its fields, their options and ranges, and conversion to JSON.

Importing this module does not load torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcifar.errors import UsageError, shown
from fcifar.recipes import checks

LENGTH, OPTIMIZER, IMAGES = "length", "optimizer", "images"  # groups of options
SCHEDULE_FREE = ("schedule_free", "schedule_free_adamw")
OPTIMIZERS = ("sgd", "adam", "adamw", "muon", *SCHEDULE_FREE)
SAMPLINGS = ("shuffle", "poisson")
SCHEDULES = ("constant", "linear", "cosine", "multistep")
GROUPS = ("kernel", "linear", "vector", "whiten")
_TEXTS = ("name", "summary", "source", "notes", "expected")
_TUPLES = ("mean", "std", "augment", "resolutions", "freeze", "milestones")
_FRACTIONS = (
    *("momentum", "group_momentum", "warmup_fraction", "initial_rate", "final_rate"),
    *("milestone_factor", "lookahead_decay", "ema_decay", "swa_start", "label_smoothing"),
    *("valid_fraction", "dp_delta"),
)


def _value(default: Any, about: str, panel: str | None = None, *flags: str) -> Any:
    """A field of a recipe, with its description in ``--help`` and ``recipes show``.

    Args:
        default: a value, or the type of an empty mapping.
        panel: where ``fcifar train --help`` shows the field's option, if it has one.
        flags: names of the option where they are not the field's name.
    """
    initial: dict[str, Any] = (
        {"default_factory": default} if default is dict else {"default": default}
    )
    return field(**initial, metadata={"about": about, "panel": panel, "flags": flags})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how.

    Every value is validated, and the model and the augmentations are made once on the meta device.
    Whole numbers are at most a billion, other numbers 0 or from 1e-30 to 1e30, and a model has at
    most ``models.LARGEST_MODEL`` parameters.

    Raises:
        UsageError: a value has another type or is out of range, or two values contradict each
            other.
    """

    name: str
    summary: str = ""  # one line
    source: str = ""  # the page that it reimplements
    notes: str = ""  # differences from that page, and its published result
    expected: str = ""  # accuracy on CIFAR-10 and training time, compiled, on two CPU cores

    model: str = _value("lenet", "A registered model, or MODULE:FACTORY.", "")
    model_options: Mapping[str, Any] = _value(dict, "Options of the model, such as dropout.")

    freeze: tuple[str, ...] = _value(
        (), "Parameters not to train, by patterns of names such as conv*,layer1.*; or none.", ""
    )

    optimizer: str = _value(
        "sgd",
        "sgd, adam, adamw, muon (convolutions; sgd for the rest), schedule_free (sgd), "
        "schedule_free_adamw, or a registered name.",
        OPTIMIZER,
    )
    learning_rate: float = _value(1e-3, "Peak learning rate.", OPTIMIZER, "--lr", "--learning-rate")
    momentum: float = _value(0.0, "Of sgd and muon; in [0, 1).", OPTIMIZER)
    nesterov: bool = _value(False, "Nesterov momentum for sgd.", OPTIMIZER)
    schedule_free_b1: float = _value(0.9, "In place of momentum for schedule_free; in (0, 1).")
    group_learning_rates: Mapping[str, float] = _value(dict, "By group, for sgd and muon.")
    learning_rate_factors: Mapping[str, float] = _value(
        dict, "Factors of the learning rate, by patterns of names."
    )
    group_momentum: float = _value(0.85, "Nesterov momentum of the groups that muon leaves to sgd.")
    # Learning rate x weight decay is the same in every group; muon's kernels, whose norms are
    # fixed, have none.
    weight_decay: float = _value(
        0.0, "L2 penalty; decoupled for adamw and schedule_free_adamw.", OPTIMIZER
    )
    clip_norm: float = _value(0.0, "Largest global gradient norm; 0 disables clipping.", OPTIMIZER)
    dp_clip: float = _value(
        0.0, "Private training: largest gradient norm per image; 0 disables it.", OPTIMIZER
    )
    dp_noise: float = _value(0.0, "Private training: noise, relative to dp_clip.", OPTIMIZER)
    dp_sampling: str = _value(
        "shuffle",
        "Private training: shuffle, or poisson (each image in each batch at random).",
        OPTIMIZER,
    )
    dp_delta: float = _value(
        0.0,
        "Private training: delta of the guarantee; 0: the power of ten below 1/images.",
        OPTIMIZER,
    )
    sam_rho: float = _value(
        0.0, "Sharpness-aware minimization: distance, such as 0.05; 0 disables it.", OPTIMIZER
    )
    schedule: str = _value(
        "constant", "Learning rate: constant, linear, cosine or multistep.", OPTIMIZER
    )
    milestones: tuple[float, ...] = _value(
        (), "Where multistep changes the rate, as fractions of the run."
    )
    milestone_factor: float = _value(0.1, "Factor of the rate at each milestone.")
    warmup_steps: int = _value(0, "Linear warm-up, in steps.", OPTIMIZER)
    warmup_fraction: float = _value(0.0, "Linear warm-up, as a fraction of the run.")
    initial_rate: float = _value(0.0, "Start of the warm-up, as a fraction of the learning rate.")
    final_rate: float = _value(0.0, "End of linear and cosine, as a fraction of the learning rate.")
    whiten_epochs: float = _value(0.0, "Epochs that train the whitening layer's bias; 0: all.")
    lookahead_every: int = _value(0, "Steps between two lookahead steps; 0 disables it.")
    lookahead_decay: float = _value(0.95, "Decay of the lookahead at the end of the run.")
    ema_decay: float = _value(
        0.0, "Also average the model, with this decay per step (EMA); 0: off.", OPTIMIZER
    )
    swa_start: float = _value(
        0.0,
        "Also average the model after each epoch, from this part of the run on; 0: off.",
        OPTIMIZER,
    )

    loss_reduction: str = _value("mean", "mean or sum over a batch.")
    label_smoothing: float = _value(0.0, "Share of a label that is divided among all classes.")
    class_weights: str = _value("none", "none, or balanced: equal weight of all classes.", IMAGES)

    batch_size: int = _value(4, "Images per step, over all processes.", LENGTH)
    micro_batch: int = _value(
        0, "Images per forward and backward pass, to save memory; 0: the whole batch.", LENGTH
    )
    epochs: int = _value(2, "Passes over the training images.", LENGTH, "--epochs", "--max-epochs")
    drop_last: bool = _value(
        False, "Drop an incomplete last batch.", LENGTH, "--drop-last/--keep-last"
    )
    augment: tuple[str, ...] = _value((), "Such as random_flip,random_crop:4; or none.", IMAGES)
    alternating_flip: bool = _value(False, "Mirror each image in every other epoch.")
    resolutions: tuple[str, ...] = _value(
        (), "SIZE:PART: pixels a side up to that part of the run."
    )

    sync_batch_norm: bool = _value(True, "Batch norm over the batch of all processes.")

    valid: str = _value("fraction", "fraction, or given: the data set's own validation images.")
    valid_fraction: float = _value(0.0, "Fraction of the training images held out.", IMAGES)
    stratify: bool = _value(False, "Hold out the same part of each class.", IMAGES)
    fold: str = _value(
        "", "Hold out part I of N of the training images, of each class alike: I/N.", IMAGES
    )
    patience: int = _value(0, "Early stopping: epochs without improvement; 0: off.", IMAGES)
    restore_best: bool = _value(
        False, "Keep the best model by validation loss.", IMAGES, "--restore-best/--keep-last-epoch"
    )

    mean: tuple[float, float, float] = _value((0.5, 0.5, 0.5), "Channel means on a [0, 1] scale.")
    std: tuple[float, float, float] = _value((0.5, 0.5, 0.5), "Channel stds on a [0, 1] scale.")

    tta: str = _value("none", "Test-time augmentation: none, mirror or translate.", IMAGES)
    precision: str = _value("fp32", "fp32, or bf16 where the processor has instructions for it.")
    compile: bool = _value(False, "The default of --compile.")

    log_every: int = _value(2000, "Steps between log points; 0 for an epoch.", LENGTH)

    def __post_init__(self) -> None:
        # Imported here, so that the command line can read the fields without loading torch.
        from fcifar.augment.tta import VIEWS
        from fcifar.models import mixes_examples, takes_images
        from fcifar.optim import REGISTERED
        from fcifar.precision import POLICIES
        from fcifar.recipes.named import named_model, named_stages, split_augments

        for name in _TEXTS:
            checks.check_text(name, getattr(self, name))
        if not self.name:
            raise UsageError("a recipe needs a name, and an empty one was given")
        for name, example in (("freeze", "conv*"), ("augment", "random_flip")):
            texts = getattr(self, name)
            if not isinstance(texts, tuple) or not all(isinstance(t, str) for t in texts):
                raise checks.refused(name, texts, f"names such as {example}")
        model = named_model(self.model, self.model_options, 10, frozen=self.freeze)
        checks.check_choice("optimizer", self.optimizer, (*OPTIMIZERS, *REGISTERED))
        checks.check_choice("schedule", self.schedule, SCHEDULES)
        checks.check_milestones(self.milestones)
        if self.schedule == "multistep" and not self.milestones:
            raise UsageError(
                "schedule multistep needs milestones; give milestones, such as 0.5,0.75"
            )
        checks.check_choice("loss_reduction", self.loss_reduction, ("mean", "sum"))
        checks.check_choice("class_weights", self.class_weights, ("none", "balanced"))
        checks.check_choice("dp_sampling", self.dp_sampling, SAMPLINGS)
        checks.check_choice("tta", self.tta, VIEWS)
        checks.check_choice("precision", self.precision, POLICIES)
        checks.check_choice("valid", self.valid, ("fraction", "given"))
        for name, kind in ((f.name, f.type) for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if kind is int:
                checks.check_count(name, value, 1 if name in ("batch_size", "epochs") else 0)
            elif kind is bool:
                checks.check_switch(name, value)
            elif kind is float:
                checks.check_number(name, value)
                if name in _FRACTIONS and value >= 1:
                    raise UsageError(f"{name} is {value}; it must lie in [0, 1)")
        checks.check_rates("group_learning_rates", self.group_learning_rates, GROUPS)
        checks.check_factors("learning_rate_factors", self.learning_rate_factors, model)
        if not isinstance(self.resolutions, tuple):
            raise checks.refused("resolutions", self.resolutions, "texts such as 24:0.5")
        for stage in named_stages(self.resolutions):
            if stage.size and not takes_images(model, stage.size):
                raise UsageError(
                    f"resolutions has {stage.size}, and {self.model} takes no images of that size; "
                    "leave resolutions out, or take speednet or resnet18"
                )
        checks.check_channels("mean", self.mean, -checks.LARGEST_NUMBER)
        checks.check_channels("std", self.std, checks.SMALLEST_NUMBER)
        _, mixes = split_augments(self.augment)
        if self.valid == "given" and (self.valid_fraction or self.stratify):
            raise UsageError(
                "valid is given, which takes the validation images of the data set, and "
                "valid_fraction and stratify hold out training images; give one or the other"
            )
        if self.fold:
            checks.parse_fold(self.fold)
            others = {"valid_fraction": self.valid_fraction, "stratify": self.stratify}
            others["valid"] = self.valid == "given"
            if both := [name for name, is_set in others.items() if is_set]:
                raise UsageError(
                    f"fold and {both[0]} both say which images are held out; give one of them"
                )
        elif not isinstance(self.fold, str):
            raise checks.refused("fold", self.fold, "a text such as 2/5")
        for name in ("patience", "restore_best", "stratify"):
            if getattr(self, name) and not self.has_valid:
                raise UsageError(
                    f"{name} needs validation images; give valid_fraction, such as 0.2, or "
                    "valid=given"
                )
        for name in ("momentum", "group_learning_rates", "whiten_epochs", "nesterov"):
            accepted = ("sgd",) if name == "nesterov" else ("sgd", "muon")
            if getattr(self, name) and self.optimizer not in accepted:
                raise UsageError(
                    f"{name} needs the optimizer {' or '.join(accepted)}, not {self.optimizer}; "
                    f"leave it out, or make it {type(getattr(self, name))()}"
                )
        if self.learning_rate_factors and self.optimizer in ("muon", *SCHEDULE_FREE):
            why = {"muon": "which gives kernels a fixed norm; give group_learning_rates instead"}
            why = why.get(self.optimizer, "whose average has one rate; take sgd or adamw")
            raise UsageError(
                f"learning_rate_factors does not fit the optimizer {self.optimizer}, {why}"
            )
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs momentum; give momentum, such as 0.9")
        if self.dp_noise and not self.dp_clip:
            raise UsageError("dp_noise is relative to dp_clip; give dp_clip, such as 1")
        for name in ("dp_delta", "dp_sampling"):
            if getattr(self, name) not in (0, "shuffle") and not self.dp_clip:
                raise UsageError(f"{name} is for private training; give dp_clip, such as 1")
        if self.dp_clip and self.class_weights != "none":
            raise UsageError(
                "class_weights are counts of the labels, without noise, and dp_clip bounds what is "
                "known about one image; leave one of them out"
            )
        if self.dp_clip and mixes_examples(model):
            raise UsageError(
                f"dp_clip needs a model that looks at each image alone, and {self.model} has "
                "batch norm; take lenet or conv3"
            )
        if self.dp_clip and mixes:
            raise UsageError(
                f"augment has {shown(mixes[0])}, which makes an example of two images, and dp_clip "
                "bounds the influence of one; leave one of them out"
            )
        if self.dp_clip and self.sam_rho:
            raise UsageError(
                "dp_clip and sam_rho each define the gradient of a step; give one of them"
            )
        if self.micro_batch > self.batch_size:
            raise UsageError(
                f"micro_batch is {self.micro_batch:,}, and batch_size {self.batch_size:,}; give at "
                "most that, or 0 for the whole batch"
            )
        if not 0 < self.schedule_free_b1 < 1:
            raise UsageError(
                f"schedule_free_b1 is {self.schedule_free_b1}; it must lie between 0 and 1, such "
                "as 0.9"
            )
        for name in ("lookahead_every", "ema_decay", "swa_start"):
            if getattr(self, name) and self.optimizer in SCHEDULE_FREE:
                raise UsageError(
                    f"{name} and the optimizer {self.optimizer} are two averages; give one of them"
                )
        if self.warmup_steps and self.warmup_fraction:
            raise UsageError(
                "warmup_steps and warmup_fraction both set the warm-up; give one of them"
            )
        averages = ("lookahead_every", "ema_decay", "swa_start")
        given = [name for name in averages if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} are two averages; give one of them")
        if self.swa_start and self.patience:
            raise UsageError(
                "swa_start averages from a part of the whole run on, and patience may stop it "
                "before; give one of them"
            )

    @property
    def average(self) -> str:
        """The average that a run has beside its weights: ``ema``, ``swa``, or empty for none."""
        return "ema" if self.ema_decay else "swa" if self.swa_start else ""

    @property
    def has_valid(self) -> bool:
        """Whether a run has validation images."""
        return self.valid == "given" or self.holds_out

    @property
    def holds_out(self) -> bool:
        """Whether a run holds training images out, a fraction or a fold."""
        return self.valid_fraction > 0 or bool(self.fold)

    def replace(self, **changes: Any) -> "Recipe":
        """Return a validated copy with ``changes``."""
        return dataclasses.replace(self, **changes)


def option_flags(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the names of a field's option in ``fcifar train``; none if it has no option."""
    if field.metadata.get("panel") is None:
        return ()
    if flags := field.metadata["flags"]:
        return flags
    name = field.name.replace("_", "-")
    return (f"--{name}/--no-{name}",) if field.type is bool else (f"--{name}",)


def option_name(name: str) -> str:
    """Return the name of a field in ``--sweep`` and tables: its option's, such as ``lr``."""
    flags = next((option_flags(f) for f in dataclasses.fields(Recipe) if f.name == name), ())
    return flags[0].partition("/")[0].lstrip("-").replace("-", "_") if flags else name


TEXTS = ("summary", "source", "notes", "expected")  # fields that describe, and configure nothing


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe configures, without its name and its texts, as in ``to_dict``."""
    values = to_dict(recipe)
    return {name: value for name, value in values.items() if name not in ("name", *TEXTS)}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as values that JSON can hold."""
    return dataclasses.asdict(recipe)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with ``values``, as from ``to_dict`` or from its JSON.

    Raises:
        UsageError: unknown or missing fields, or values out of range.
    """
    names = {f.name for f in dataclasses.fields(Recipe)}
    wrong = ""
    if not isinstance(values, Mapping):
        wrong = shown(values)
    elif unknown := set(values) - names:
        wrong = f"unknown {', '.join(sorted(map(shown, unknown)))}"
    elif "name" not in values:
        wrong = "no name"
    if wrong:
        raise UsageError(f"not a recipe: {wrong}; a recipe has {', '.join(sorted(names))}")
    fields = {name: _tuple(value) if name in _TUPLES else value for name, value in values.items()}
    if isinstance(options := fields.get("model_options"), Mapping):
        fields["model_options"] = {name: _tuple(value) for name, value in options.items()}
    return Recipe(**fields)


def _tuple(value: Any) -> Any:
    """Return a list, as JSON has it, as a tuple."""
    return tuple(value) if isinstance(value, list) else value
