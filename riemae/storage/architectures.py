"""Networks described by names and plain values, and built again from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from riemae.exceptions import CheckpointError, DTypeError, OptionError
from riemae.numerics.random import restored
from riemae.storage.checkpoint import check_plain

Class = TypeVar("Class", bound=type[nn.Module])

# Layers of torch and the attributes that are their arguments. A subclass or a parametrised layer is
# another type.
_CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: (*_CONVOLUTION, "output_padding"),
    nn.ConvTranspose2d: (*_CONVOLUTION, "output_padding"),
    nn.ConvTranspose3d: (*_CONVOLUTION, "output_padding"),
    nn.BatchNorm1d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.BatchNorm2d: ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.Dropout: ("p",),
    nn.AvgPool2d: ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.Upsample: ("size", "scale_factor", "mode", "align_corners"),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
    nn.ELU: ("alpha",),
    nn.GELU: ("approximate",),
    nn.Identity: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU: (),
    nn.Sigmoid: (),
    nn.SiLU: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Tanh: (),
}
_WITH_BIAS = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm)
_BY_NAME: dict[str, type[nn.Module]] = {f"torch.{layer.__name__}": layer for layer in _LAYERS}
_SEQUENTIAL = "torch.Sequential"


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: modules of this class can be described, and built again.

    The class has a method ``arguments()`` that returns plain values with
    ``type(module)(**module.arguments())`` of the same structure; the parameters' values travel as
    tensors.

    Args:
        name: In checkpoints; choose one that will not change, such as ``"mypackage.Decoder"``.

    Raises:
        OptionError: When the name stands for another class.
        DTypeError: When the class has no method ``arguments``.

    Example:
        >>> import torch
        >>> from riemae import storage
        >>> @storage.register("example.Double")
        ... class Double(torch.nn.Linear):
        ...     def __init__(self, size):
        ...         super().__init__(size, 2 * size)
        ...     def arguments(self):
        ...         return {"size": self.in_features}
        >>> storage.build(storage.describe(Double(3))).out_features
        6
    """

    def enter(cls: Class) -> Class:
        known = _BY_NAME.get(name)
        if name == _SEQUENTIAL or (known is not None and known.__qualname__ != cls.__qualname__):
            raise OptionError(
                "storage.register",
                "a name that is free",
                f"{name!r}, which is {known or 'Sequential'}",
                'Choose one with your own prefix, such as "mypackage.Decoder".',
            )
        if not callable(getattr(cls, "arguments", None)):
            hint = "Let arguments() return what its constructor takes, as a dictionary."
            raise DTypeError(
                "storage.register", "a class with a method arguments()", cls.__name__, hint
            )
        _BY_NAME[name] = cls
        return cls

    return enter


def describe(module: nn.Module) -> dict[str, Any] | None:
    """A module as name and plain values, for :func:`build`; None for one that cannot be described.

    Describable are registered classes, common layers of torch, and ``nn.Sequential`` of describable
    modules. A module of your own that is not registered must be passed again when its checkpoint is
    loaded.
    """
    if type(module) is nn.Sequential:
        parts = {key: describe(child) for key, child in module.named_children()}
        if None in parts.values():
            return None
        return {"name": _SEQUENTIAL, "modules": parts}
    name = next((key for key, cls in _BY_NAME.items() if cls is type(module)), None)
    if name is None:
        return None
    if type(module) in _LAYERS:
        arguments = {key: getattr(module, key) for key in _LAYERS[type(module)]}
        if isinstance(module, _WITH_BIAS):
            arguments["bias"] = module.bias is not None
    else:
        arguments = module.arguments()  # type: ignore[operator]
    arguments = {
        key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()
    }
    check_plain(arguments, f"arguments of {type(module).__name__}")
    return {"name": name, "arguments": arguments}


def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The module of a description, its parameters freshly drawn.

    Torch's own random numbers are left as they were.

    Give it its values with ``module.load_state_dict(tensors, assign=True)``, which keeps their
    dtype.

    Args:
        description: From :func:`describe`.
        tensors: The values that it will be given. A description that does not fit them is refused
            before it takes any memory.

    Raises:
        CheckpointError: When the description names nothing that is known, or with other arguments
            than it takes, or describes a module of other tensors.
    """
    try:
        if tensors is not None:
            _check_tensors(description, tensors)
        with restored():
            return _built(description)
    except RecursionError as reason:
        hint = "The description contains itself, or was changed; describe the module again."
        raise CheckpointError(
            "storage.build", "a description of a module", "one without an end", hint
        ) from reason


def outline(description: Mapping[str, Any]) -> nn.Module | None:
    """The module of a description without values, on the meta device.

    None where its class cannot be built there.

    Raises:
        CheckpointError: As :func:`build`.
    """
    with restored(), torch.device("meta"):
        try:
            return _built(description)
        except CheckpointError:
            if not _is_ours(description):
                return None  # it may have to look at values
            raise


def _is_ours(description: Any) -> bool:
    """Whether all classes of a description are layers of torch, or riemae's own."""
    if not isinstance(description, Mapping):
        return True
    parts = description.get("modules")
    if isinstance(parts, Mapping):
        return all(map(_is_ours, parts.values()))
    name = description.get("name")
    cls = None
    if isinstance(name, str):
        cls = _BY_NAME.get(name)
    return cls is None or cls in _LAYERS or cls.__module__.split(".")[0] == "riemae"


def _check_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a description with those that are there.

    Raises:
        CheckpointError: When names or shapes differ.
    """
    module = outline(description)
    if module is None:
        return
    wanted = {
        name: tuple(x.shape) for name, x in module.state_dict().items() if isinstance(x, Tensor)
    }
    found = {name: tuple(x.shape) for name, x in tensors.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            there = f"of shape {found[name]}" if name in found else "missing"
            described = f"of shape {wanted[name]}" if name in wanted else "missing"
            got = f"{name!r} {there} where the description has it {described}"
            hint = "Description and tensors must come from the same module."
            raise CheckpointError("storage.build", "a description that fits the tensors", got, hint)


def _built(description: Mapping[str, Any]) -> nn.Module:
    where = "storage.build"
    name = description.get("name") if isinstance(description, Mapping) else None
    if name == _SEQUENTIAL and isinstance(description.get("modules"), Mapping):
        module = nn.Sequential()
        for key, part in description["modules"].items():
            module.add_module(key, _built(part))
        return module
    cls = _BY_NAME.get(name) if isinstance(name, str) else None
    arguments = description.get("arguments") if isinstance(description, Mapping) else None
    if cls is None or not isinstance(arguments, Mapping):
        hint = "Import the module that registers it, or pass encoder= and decoder=."
        raise CheckpointError(
            where, "the name and arguments of a known module", repr(description)[:200], hint
        )
    try:
        # Tuples became lists in JSON.
        tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in arguments.items()}
        return cls(**tuples)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as reason:
        hint = "The checkpoint was made with another version of this class, or changed."
        raise CheckpointError(where, f"arguments that {name} takes", f"{reason}", hint) from reason
