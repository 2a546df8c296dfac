"""A torch module's structure as JSON: what steps changed after the builder ran.

Steps change modules in place: channels are removed, a linear layer becomes two, a
batch norm becomes nothing. `patches` compares the changed module with a freshly
built one and says, by path, which modules stand where others stood; `apply_patches`
does the same to a fresh one. A closed set of module types can be described; code
never travels.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanmark.errors import InvalidInput, PreparationError

if TYPE_CHECKING:
    from torch import nn

# Module type -> the constructor's arguments, which are attributes of the module too.
# `bias` is stored as whether there is one.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Identity": (),
    "Flatten": ("start_dim", "end_dim"),
    "Unflatten": ("dim", "unflattened_size"),
    "ReLU": (),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    "Linear": ("in_features", "out_features", "bias"),
    "Conv1d": (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
    ),
    "Conv2d": (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
    ),
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "BatchNorm2d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
}  # fmt: skip

# Layers of leanmark's own, by the module that defines them.
_OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "Sign": ("leanmark.networks.layers", ()),
    "SelfAttention": ("leanmark.networks.layers", ("width", "heads", "head_width")),
    "SparseLinear": ("leanmark.networks.layers", ("in_features", "out_features", "nonzero", "bias")),
    "RankConstrainedLinear": ("leanmark.networks.layers", ("rows", "columns", "out_features", "rank", "bias")),
    "LowRankPlusColumns": ("leanmark.networks.layers", ("in_features", "out_features", "rank", "columns", "bias")),
}

Spec = dict[str, Any]


def describe(module: nn.Module, path: str) -> Spec:
    """A module of a known type as JSON. Raises PreparationError for another type."""
    name = type(module).__name__
    if name == "Sequential" and type(module).__module__.startswith("torch."):
        # A list, because manifests sort the keys of objects and the order is what runs.
        children = [[key, describe(child, _join(path, key))] for key, child in module.named_children()]
        return {"type": name, "children": children}
    if not _is_known(module):
        raise PreparationError(
            f"the step left a {name} at '{path}', which cannot be written down and built again",
            do=f"Use {', '.join(sorted(_ARGUMENTS))} or Sequential, or make the change permanent first.",
        )
    values: dict[str, Any] = {}
    for argument in _arguments(name):
        value = getattr(module, argument)
        if argument == "bias":
            value = value is not None
        values[argument] = list(value) if isinstance(value, tuple) else value
    spec: Spec = {"type": name, "args": values}
    if next(module.children(), None) is not None:  # a layer of leanmark's own, in which a step may have changed one
        fresh, inside = construct(spec), dict[str, Spec]()
        for key, child in module.named_children():
            _compare(fresh.get_submodule(key), child, key, inside)
        if inside:
            spec["inside"] = inside
    return spec


def construct(spec: Mapping[str, Any]) -> nn.Module:
    """The module that `describe` described. Raises InvalidInput for anything else."""
    from torch import nn

    name = spec.get("type")
    if name == "Sequential":
        sequence = nn.Sequential()
        for key, child in spec["children"]:
            sequence.add_module(key, construct(child))
        return sequence
    if name not in {*_ARGUMENTS, *_OWN} or set(spec.get("args", ())) != set(_arguments(name)):
        raise InvalidInput(f"an artifact describes an unknown module {name!r}")
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in spec["args"].items()}
    home = importlib.import_module(_OWN[name][0]) if name in _OWN else nn
    return apply_patches(getattr(home, name)(**args), spec.get("inside", {}))


def patches(fresh: nn.Module, changed: nn.Module) -> dict[str, Spec]:
    """Path -> description of every module of `changed` that `fresh` has otherwise."""
    found: dict[str, Spec] = {}
    _compare(fresh, changed, "", found)
    return found


def apply_patches(module: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Put the described modules in place; returns the root, which may be new."""
    for path, spec in changes.items():
        replacement = construct(spec)
        if path == "":
            return replacement
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, replacement)
    return module


def _compare(fresh: nn.Module, changed: nn.Module, path: str, found: dict[str, Spec]) -> None:
    if _is_known(changed):
        spec = describe(changed, path)
        if not _is_known(fresh) or describe(fresh, path) != spec:
            found[path] = spec
        return
    names = [name for name, _ in changed.named_children()]
    same_type = type(fresh) is type(changed)
    if same_type and names == [name for name, _ in fresh.named_children()]:
        for name, child in changed.named_children():
            _compare(fresh.get_submodule(name), child, _join(path, name), found)
        return
    found[path] = describe(changed, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _arguments(name: str) -> tuple[str, ...]:
    return _OWN[name][1] if name in _OWN else _ARGUMENTS[name]


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    if kind.__name__ in _OWN and kind.__module__ == _OWN[kind.__name__][0]:
        return True
    return kind.__module__.startswith("torch.nn.modules") and kind.__name__ in _ARGUMENTS
