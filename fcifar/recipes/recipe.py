"""A recipe as a value: fields, their ranges, and the way to JSON and back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcifar.augment.tta import VIEWS
from fcifar.errors import UsageError, shown
from fcifar.models import mixes_examples, takes_images
from fcifar.optim import REGISTERED
from fcifar.precision import POLICIES
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
from fcifar.recipes.named import named_augment, named_model, named_stages

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

    model: str = "lenet"  # an entry of models.MODELS, or MODULE:FACTORY
    model_options: Mapping[str, Any] = field(default_factory=dict)

    optimizer: str = "sgd"  # sgd, adam, adamw, or muon for kernels and sgd for the rest; or a
    # name that optim.register knows
    learning_rate: float = 1e-3
    momentum: float = 0.0  # for sgd, and for the kernels of muon
    nesterov: bool = False  # for sgd
    group_learning_rates: Mapping[str, float] = field(default_factory=dict)  # for sgd and muon
    group_momentum: float = 0.85  # of Nesterov's form, for what muon leaves to sgd
    weight_decay: float = 0.0  # L2 penalty, decoupled for adamw; learning rate x weight decay is
    # the same in every group, and muon's kernels, whose norms are fixed, have none
    clip_norm: float = 0.0  # largest global gradient norm; 0 disables clipping
    dp_clip: float = 0.0  # largest gradient norm of an image; 0 disables private training
    dp_noise: float = 0.0  # its noise on a sum of images, in parts of dp_clip
    schedule: str = "constant"  # constant, linear or cosine, over the whole run
    warmup_steps: int = 0  # linear up to the learning rate
    warmup_fraction: float = 0.0  # the same as a part of the run
    initial_rate: float = 0.0  # where the warm-up begins, as a part of the learning rate
    final_rate: float = 0.0  # where linear and cosine end, as a part of the learning rate
    whiten_epochs: float = 0.0  # in which the whitening layer's bias comes to rest; 0 for never
    lookahead_every: int = 0  # steps between two steps of a lookahead; 0 for none
    lookahead_decay: float = 0.95  # a step, at the end; it grows with the cube of the time
    ema_decay: float = 0.0  # a step, of an average of the network to end with; 0 for none

    loss_reduction: str = "mean"  # mean or sum over a batch
    label_smoothing: float = 0.0  # the share of a label that all classes divide between them
    class_weights: str = "none"  # or balanced: in the loss, classes weigh the same in total

    batch_size: int = 4  # over all processes that divide it
    epochs: int = 2  # at most, where patience ends a run early
    drop_last: bool = False  # leave out a last training batch that is not full
    augment: tuple[str, ...] = ()  # NAME or NAME:STRENGTH, entries of AUGMENTS, in order
    alternating_flip: bool = False  # mirror each image in every other epoch
    resolutions: tuple[str, ...] = ()  # SIZE:PART, pixels a side up to that part of the steps

    sync_batch_norm: bool = True  # where processes divide a batch: statistics of the whole of it

    valid: str = "fraction"  # which validation images: a fraction of the training images, or given,
    # those that the data set has besides
    valid_fraction: float = 0.0  # of the training images, held out to choose by
    stratify: bool = False  # hold out the same fraction of each class
    patience: int = 0  # stop after so many epochs without a lower validation loss; 0 for never
    restore_best: bool = False  # end with the parameters of the lowest validation loss

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of images in [0, 1], by channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    tta: str = "none"  # mirror or translate: measured in the end beside the plain figure
    precision: str = "fp32"  # or bf16: the default where the processor has instructions for it
    compile: bool = False  # the default of --compile

    log_every: int = 2000  # steps over which loss and accuracy are averaged; 0 for an epoch

    def __post_init__(self) -> None:
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
