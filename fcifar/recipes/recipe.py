"""A recipe as a value: fields with their options and ranges, and the way to JSON and back.

Importing this module does not load torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcifar.errors import UsageError, shown
from fcifar.recipes.checks import (
    LARGEST_NUMBER,
    SMALLEST_NUMBER,
    check_channels,
    check_choice,
    check_count,
    check_number,
    check_rates,
    check_switch,
    check_text,
)

LENGTH, OPTIMIZER, IMAGES = "length", "optimizer", "images"  # groups of options
OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
SCHEDULES = ("constant", "linear", "cosine")
REDUCTIONS = ("mean", "sum")
CLASS_WEIGHTS = ("none", "balanced")
VALIDS = ("fraction", "given")
GROUPS = ("kernel", "linear", "vector", "whiten")
_SWITCHES = (
    *("nesterov", "drop_last", "stratify", "restore_best", "alternating_flip", "compile"),
    "sync_batch_norm",
)
_NUMBERS = ("learning_rate", "weight_decay", "clip_norm", "dp_clip", "dp_noise", "whiten_epochs")
_TUPLES = ("mean", "std", "augment", "resolutions")
_PARTS = (
    *("momentum", "group_momentum", "warmup_fraction", "initial_rate", "final_rate"),
    *("lookahead_decay", "ema_decay", "label_smoothing", "valid_fraction"),
)


def _value(default: Any, about: str, *flags: str, panel: str = "") -> Any:
    """A field of a recipe, with what ``--help`` and ``recipes show`` say of it.

    Args:
        flags: of the option of ``fcifar train``, if there is one; the last is the longest name.
        panel: the group of options that it is shown in.
    """
    return field(default=default, metadata={"about": about, "flags": flags, "panel": panel})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train and how.

    A recipe that exists can be carried out: its network and its augmentations have been made once,
    without memory. Whole numbers go up to a billion, other numbers from 1e-30 to 1e30 (or are 0),
    and a network has at most ``models.LARGEST_MODEL`` parameters.

    Raises:
        UsageError: a value is of another kind or outside its range, or two values contradict each
            other.
    """

    name: str
    summary: str = ""  # one line for a person
    source: str = ""  # the page that it reimplements
    notes: str = ""  # what differs from it, and what it published
    expected: str = ""  # accuracy on CIFAR-10 and training time, compiled, on two CPU cores

    model: str = _value("lenet", "A registered model, or MODULE:FACTORY.", "--model")
    model_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"about": "Options of the model, such as dropout."}
    )

    optimizer: str = _value(
        "sgd",
        "sgd, adam, adamw, muon for kernels and sgd for the rest, or a registered name.",
        "--optimizer",
        panel=OPTIMIZER,
    )
    learning_rate: float = _value(
        1e-3, "Peak learning rate.", "--lr", "--learning-rate", panel=OPTIMIZER
    )
    momentum: float = _value(
        0.0, "Of sgd, and of muon's kernels; in [0, 1).", "--momentum", panel=OPTIMIZER
    )
    nesterov: bool = _value(
        False, "Nesterov's momentum, for sgd.", "--nesterov/--no-nesterov", panel=OPTIMIZER
    )
    group_learning_rates: Mapping[str, float] = field(
        default_factory=dict, metadata={"about": "Learning rates by group, for sgd and muon."}
    )
    group_momentum: float = _value(0.85, "Nesterov's momentum of what muon leaves to sgd.")
    # Learning rate x weight decay is the same in every group; muon's kernels, whose norms are
    # fixed, have none.
    weight_decay: float = _value(
        0.0, "L2 penalty; decoupled for adamw.", "--weight-decay", panel=OPTIMIZER
    )
    clip_norm: float = _value(
        0.0, "Largest global gradient norm; 0 disables clipping.", "--clip-norm", panel=OPTIMIZER
    )
    dp_clip: float = _value(
        0.0,
        "Private training: largest gradient norm of an image; 0 disables it.",
        "--dp-clip",
        panel=OPTIMIZER,
    )
    dp_noise: float = _value(
        0.0, "Its noise on a sum of images, in parts of dp_clip.", "--dp-noise", panel=OPTIMIZER
    )
    schedule: str = _value(
        "constant",
        "Learning rate over the run: constant, linear or cosine.",
        "--schedule",
        panel=OPTIMIZER,
    )
    warmup_steps: int = _value(0, "Linear warm-up, in steps.", "--warmup-steps", panel=OPTIMIZER)
    warmup_fraction: float = _value(0.0, "The same, as a fraction of the run.")
    initial_rate: float = _value(0.0, "Start of the warm-up, as a fraction of the learning rate.")
    final_rate: float = _value(0.0, "End of linear and cosine, as a fraction of the learning rate.")
    whiten_epochs: float = _value(
        0.0, "Epochs until the whitening layer's bias is at rest; 0: never."
    )
    lookahead_every: int = _value(0, "Steps between two lookahead steps; 0 disables it.")
    lookahead_decay: float = _value(0.95, "Decay of the lookahead at the end of the run.")
    ema_decay: float = _value(0.0, "Decay per step of an average of the model; 0 disables it.")

    loss_reduction: str = _value("mean", "mean or sum over a batch.")
    label_smoothing: float = _value(0.0, "Share of a label that is divided among all classes.")
    class_weights: str = _value(
        "none",
        "none, or balanced: all classes weigh the same in the loss.",
        "--class-weights",
        panel=IMAGES,
    )

    batch_size: int = _value(
        4, "Images per step, over all processes.", "--batch-size", panel=LENGTH
    )
    epochs: int = _value(
        2, "Passes over the training images.", "--epochs", "--max-epochs", panel=LENGTH
    )
    drop_last: bool = _value(
        False,
        "Drop the last incomplete batch of an epoch.",
        "--drop-last/--keep-last",
        panel=LENGTH,
    )
    augment: tuple[str, ...] = _value(
        (), "Such as random_flip,random_crop:4; or none.", "--augment", panel=IMAGES
    )
    alternating_flip: bool = _value(False, "Mirror each image in every other epoch.")
    resolutions: tuple[str, ...] = _value(
        (), "SIZE:PART: pixels a side up to that part of the steps."
    )

    sync_batch_norm: bool = _value(True, "Batch norm over the batch of all processes.")

    valid: str = _value("fraction", "fraction, or given: the data set's own validation images.")
    valid_fraction: float = _value(
        0.0, "Fraction of the training images held out.", "--valid-fraction", panel=IMAGES
    )
    stratify: bool = _value(
        False, "Hold out the same part of each class.", "--stratify/--no-stratify", panel=IMAGES
    )
    patience: int = _value(
        0,
        "Early stopping: epochs without improvement; 0: off.",
        "--patience",
        panel=IMAGES,
    )
    restore_best: bool = _value(
        False,
        "Keep the model with the lowest validation loss.",
        "--restore-best/--keep-last-epoch",
        panel=IMAGES,
    )

    mean: tuple[float, float, float] = _value((0.5, 0.5, 0.5), "Of images in [0, 1], by channel.")
    std: tuple[float, float, float] = _value((0.5, 0.5, 0.5), "Of images in [0, 1], by channel.")

    tta: str = _value(
        "none", "Test-time augmentation: none, mirror or translate.", "--tta", panel=IMAGES
    )
    precision: str = _value("fp32", "fp32, or bf16 where the processor has instructions for it.")
    compile: bool = _value(False, "The default of --compile.")

    log_every: int = _value(
        2000, "Steps between log points; 0 for an epoch.", "--log-every", panel=LENGTH
    )

    def __post_init__(self) -> None:
        # Here, so that the command line knows the fields without loading torch.
        from fcifar.augment.tta import VIEWS
        from fcifar.models import mixes_examples, takes_images
        from fcifar.optim import REGISTERED
        from fcifar.precision import POLICIES
        from fcifar.recipes.named import named_augment, named_model, named_stages

        for name in ("name", "summary", "source", "notes", "expected"):
            check_text(name, getattr(self, name))
        if not self.name:
            raise UsageError("a recipe needs a name, and an empty one was given")
        model = named_model(self.model, self.model_options, num_classes=10)
        check_choice("optimizer", self.optimizer, (*OPTIMIZERS, *REGISTERED))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("loss_reduction", self.loss_reduction, REDUCTIONS)
        check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        check_choice("tta", self.tta, VIEWS)
        check_choice("precision", self.precision, POLICIES)
        check_choice("valid", self.valid, VALIDS)
        for name, least in (
            ("batch_size", 1),
            ("epochs", 1),
            ("log_every", 0),
            ("patience", 0),
            ("warmup_steps", 0),
            ("lookahead_every", 0),
        ):
            check_count(name, getattr(self, name), least)
        for name in _SWITCHES:
            check_switch(name, getattr(self, name))
        for name in (*_NUMBERS, *_PARTS):
            check_number(name, getattr(self, name))
        for name in _PARTS:
            if getattr(self, name) >= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        check_rates("group_learning_rates", self.group_learning_rates, GROUPS)
        if not isinstance(self.resolutions, tuple):
            raise UsageError(
                f"resolutions is {shown(self.resolutions)}; it must be texts such as 24:0.5"
            )
        for stage in named_stages(self.resolutions):
            if stage.size and not takes_images(model, stage.size):
                raise UsageError(
                    f"resolutions has {stage.size}, and {self.model} takes no images of that size; "
                    "leave resolutions out, or take speednet or resnet18"
                )
        check_channels("mean", self.mean, -LARGEST_NUMBER)
        check_channels("std", self.std, SMALLEST_NUMBER)
        if not isinstance(self.augment, tuple) or not all(isinstance(a, str) for a in self.augment):
            raise UsageError(
                f"augment is {shown(self.augment)}; it must be names such as random_flip"
            )
        for text in self.augment:
            named_augment(text)
        if self.valid == "given" and (self.valid_fraction or self.stratify):
            raise UsageError(
                "valid is given, which takes the validation images of the data set, and "
                "valid_fraction and stratify hold out training images; give one or the other"
            )
        if not self.has_valid and (self.patience or self.restore_best or self.stratify):
            raise UsageError(
                "patience, restore_best and stratify need validation images; "
                "give valid_fraction, such as 0.2, or valid=given"
            )
        if self.optimizer not in ("sgd", "muon") and (self.momentum or self.group_learning_rates):
            raise UsageError(
                "momentum and group_learning_rates belong to the optimizers sgd and muon, not to "
                f"{self.optimizer}; leave them out"
            )
        if self.optimizer not in ("sgd", "muon") and self.whiten_epochs:
            raise UsageError(
                f"whiten_epochs belongs to sgd and muon, not to {self.optimizer}; leave it out"
            )
        if self.optimizer != "sgd" and self.nesterov:
            raise UsageError(
                f"nesterov belongs to the optimizer sgd, not to {self.optimizer}; leave it out"
            )
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs momentum; give momentum, such as 0.9")
        if self.dp_noise and not self.dp_clip:
            raise UsageError(
                "dp_noise needs dp_clip, which it is a part of; give dp_clip, such as 1"
            )
        if self.dp_clip and mixes_examples(model):
            raise UsageError(
                f"dp_clip needs a model that looks at each image alone, and {self.model} has "
                "batch norm; take lenet or conv3"
            )
        if self.warmup_steps and self.warmup_fraction:
            raise UsageError("warmup_steps and warmup_fraction say the same; give one of them")
        if self.lookahead_every and self.ema_decay:
            raise UsageError("lookahead_every and ema_decay are two averages; give one of them")

    @property
    def has_valid(self) -> bool:
        """Whether a run has validation images."""
        return self.valid == "given" or self.valid_fraction > 0

    def replace(self, **changes: Any) -> "Recipe":
        """The recipe with some values changed, validated again."""
        return dataclasses.replace(self, **changes)


def option_name(name: str) -> str:
    """What ``--sweep`` and tables call a field: by its option, such as ``lr``, if it has one."""
    flags = {f.name: f.metadata.get("flags", ()) for f in dataclasses.fields(Recipe)}
    first: str = (flags.get(name) or (name,))[0]
    return first.partition("/")[0].lstrip("-").replace("-", "_")


TEXTS = ("summary", "source", "notes", "expected")  # fields that describe, and configure nothing


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as values that JSON holds."""
    return dataclasses.asdict(recipe)


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """The recipe that ``to_dict`` was given.

    Raises:
        UsageError: unknown or missing fields, or values out of range.
    """
    names = {f.name for f in dataclasses.fields(Recipe)}
    if not isinstance(values, Mapping):
        raise UsageError(f"not a recipe: {shown(values)}; a recipe has {', '.join(sorted(names))}")
    unknown = set(values) - names
    if unknown or "name" not in values:
        what = f"unknown {', '.join(sorted(map(shown, unknown)))}" if unknown else "no name"
        raise UsageError(f"not a recipe: {what}; a recipe has {', '.join(sorted(names))}")
    fields = {name: _tuples(value) if name in _TUPLES else value for name, value in values.items()}
    if isinstance(options := fields.get("model_options"), Mapping):
        fields["model_options"] = {name: _tuples(value) for name, value in options.items()}
    return Recipe(**fields)


def _tuples(value: Any) -> Any:
    """A tuple for a list, for JSON has none."""
    return tuple(value) if isinstance(value, list) else value
