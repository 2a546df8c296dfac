"""What steps hand on, and how it lies on disk as an artifact.

A `TorchModel` is an `nn.Module` in eval mode. On disk it is a structure (the
builder's name, its configuration, and the modules that steps put in place of
others) and safetensors. A `Program` is something a runtime executes; here, an ONNX
file. A `Service` answers requests with programs and tables. No pickle is written or read.

An artifact is a folder: ``manifest.json`` and the files that it lists. Its content
hash is the sha256 of the manifest, which holds the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leanmark import codecs, onnx_files
from leanmark.arrays import Array
from leanmark.arrays import numpy as np
from leanmark.codecs import Coding
from leanmark.errors import InvalidInput, PreparationError
from leanmark.jsonable import canonical_json

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Generator, Tensor, nn

MANIFEST = "manifest.json"
ARTIFACT_FORMAT = 2
TABLES = "tables.safetensors"


@dataclass(frozen=True)
class Delivery:
    """How an artifact is stored and driven; every step hands it on.

    packed: weights lie in a file of packed weights that is decoded when loaded.
    slowdown: the fraction by which every call is made to last longer (the positive control).
    coding: how packed weights are written where that is smallest.
    compiler: what compiles it when it is loaded, by `name`, and how; empty for what the runtime does by itself.
    """

    packed: bool = False
    slowdown: float = 0.0
    coding: Coding = "palette"
    compiler: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def as_json(self) -> dict[str, Any]:
        """For a manifest; without what is as always."""
        found: dict[str, Any] = {"packed": self.packed, "slowdown": self.slowdown}
        if self.coding != "palette":
            found["coding"] = self.coding
        if self.compiler:
            found["compiler"] = dict(self.compiler)
        return found


@dataclass(frozen=True)
class Stage:
    """What a step consumes or produces."""

    stage_name: ClassVar[str] = "stage"


@dataclass(frozen=True)
class TorchModel(Stage):
    """A torch module in eval mode, and how its structure can be built again.

    builder is "package.module:function"; config are its keyword arguments.
    """

    stage_name: ClassVar[str] = "torch-model"
    module: nn.Module
    builder: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    delivery: Delivery = Delivery()

    def with_module(self, module: nn.Module) -> TorchModel:
        """The same model with another module, put into eval mode."""
        return replace(self, module=module.eval())


@dataclass(frozen=True)
class Program(Stage):
    """A serialized ONNX model, weights included."""

    stage_name: ClassVar[str] = "program"
    onnx: bytes
    delivery: Delivery = Delivery()

    def proto(self) -> ModelProto:
        """The parsed model."""
        import onnx

        return onnx.load_model_from_string(self.onnx)


@dataclass(frozen=True)
class Service(Stage):
    """A request handler: ONNX programs and tables by name, and how they make answers of requests.

    config: what `serving.config.ServiceConfig` reads.
    """

    stage_name: ClassVar[str] = "service"
    programs: Mapping[str, bytes]
    tables: Mapping[str, Array]
    config: Mapping[str, Any]
    delivery: Delivery = Delivery()


AnyStage = TorchModel | Program | Service
_STAGES: Mapping[str, type[Stage]] = {kind.stage_name: kind for kind in (TorchModel, Program, Service)}


@dataclass(frozen=True)
class Split:
    """Examples of one split: arrays by input name, first axis examples; targets if known."""

    inputs: Mapping[str, Array]
    targets: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def head(self, count: int) -> Split:
        """The first `count` examples."""
        targets = None if self.targets is None else self.targets[:count]
        return Split({name: array[:count] for name, array in self.inputs.items()}, targets)


@dataclass(frozen=True)
class Context:
    """What a step may use: splits (never test), a seed, and a way to tell progress."""

    splits: Callable[[str], Split]
    seed: int
    progress: Callable[[float, str], None] = lambda *_: None
    metric: str = "accuracy"

    def split(self, name: str) -> Split:
        """The train, calibration or validation split. The test split is refused, and so is an empty one."""
        if name == "test":
            raise PreparationError("a step asked for the test split", do="Only measuring may read it.")
        found = self.splits(name)
        if found.inputs and not len(found):
            raise PreparationError(f"the {name} split is empty", do="Give it examples.")
        return found

    def generator(self, purpose: str) -> Generator:
        """A torch generator that depends on the seed and on `purpose` only."""
        import torch

        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Artifact:
    """What a recipe made of a workload, on disk.

    `reference` is the workload's unmodified artifact at the same stage where
    there is one, for evidence that compares.
    """

    root: Path
    manifest: Mapping[str, Any]
    reference: Artifact | None = None

    @staticmethod
    def open(root: Path) -> Artifact:
        """Read the manifest of an artifact. Raises InvalidInput if it is none."""
        path = root / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InvalidInput(f"no readable artifact: {error}", where=root) from error
        if not isinstance(manifest, dict) or manifest.get("format") != ARTIFACT_FORMAT:
            raise InvalidInput("not an artifact of a format that this version reads", where=path)
        kinds = {"files": dict, "delivery": dict, "stage": str}
        if not all(isinstance(manifest.get(key), kind) for key, kind in kinds.items()):
            raise InvalidInput("the manifest is damaged", where=path)
        if manifest["stage"] not in _STAGES:
            raise InvalidInput("is of a stage that this version does not know", where=path)
        programs = manifest.get("programs", [])
        for name in (*manifest["files"], *(programs if isinstance(programs, list) else [""])):
            if not isinstance(name, str) or Path(name).name != name:
                raise InvalidInput(f"the artifact names a file outside its folder: {name!r}", where=path)
        return Artifact(root, manifest)

    def check(self) -> None:
        """Compare a stored artifact with its hashes. Raises InvalidInput."""
        if self.root.name != self.content_hash:
            raise InvalidInput("the manifest is damaged", where=self.root)
        for name, digest in self.manifest["files"].items():
            path = self.root / name
            if path.is_symlink() or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                raise InvalidInput("is missing or damaged", where=path)

    @property
    def content_hash(self) -> str:
        """sha256 over the manifest, which holds the hash of every file."""
        return hashlib.sha256((self.root / MANIFEST).read_bytes()).hexdigest()

    @property
    def stage(self) -> type[Stage]:
        """`TorchModel`, `Program` or `Service`."""
        return _STAGES[self.manifest["stage"]]

    @property
    def delivery(self) -> Delivery:
        """How it is stored and driven."""
        return Delivery(**self.manifest["delivery"])

    def files(self) -> list[Path]:
        """Every file that would be deployed, the manifest included."""
        return [self.root / MANIFEST, *(self.root / name for name in sorted(self.manifest["files"]))]

    def load(self) -> AnyStage:
        """The stage in memory: built again, weights decoded."""
        if self.stage is TorchModel:
            return _load_torch(self)
        if self.stage is Program:
            return Program(self.proto().SerializeToString(deterministic=True), self.delivery)
        programs = {name: self.part(name).proto().SerializeToString(deterministic=True) for name in self.programs}
        return Service(programs, self.tables(), self.manifest["service"], self.delivery)

    @property
    def program(self) -> str:
        """The name of its program's file, without the ending. Raises PreparationError where there are several."""
        if len(self.programs) != 1:
            raise PreparationError(f"it has the programs {', '.join(self.programs)}, not one")
        return self.programs[0]

    @property
    def programs(self) -> list[str]:
        """The names of all its programs."""
        return list(self.manifest.get("programs", ("model",)))

    def part(self, program: str) -> Artifact:
        """One of a service's programs, as an artifact that a runtime loads."""
        return replace(self, manifest={**self.manifest, "stage": Program.stage_name, "programs": [program]})

    def proto(self) -> ModelProto:
        """The ONNX model with all its weights; of a service, if it has one program only. Raises PreparationError."""
        return onnx_files.read_program(self.root, self.program)

    def packed_weights(self) -> dict[str, Array]:
        """The tensors of the packed file, decoded; empty if there is none."""
        return onnx_files.packed_weights(self.root, self.program)

    def tables(self) -> dict[str, Array]:
        """The tables of a service: features by entry, what was computed of them."""
        from safetensors.numpy import load_file

        return load_file(self.root / TABLES) if TABLES in self.manifest["files"] else {}

    def tensors(self) -> dict[str, Array]:
        """Every weight tensor of the file as it is stored, decoded; quantized ones as integers."""
        if self.stage is not TorchModel:
            from onnx import numpy_helper

            parts = [(self.part(name).proto(), f"{name}/" if len(self.programs) > 1 else "") for name in self.programs]
            found = [(f"{prefix}{item.name}", item) for proto, prefix in parts for item in proto.graph.initializer]
            return {name: numpy_helper.to_array(tensor) for name, tensor in found}
        if self.delivery.packed:
            return self.packed_weights()
        from safetensors.numpy import load_file

        return load_file(self.root / "weights.safetensors")


def save(stage: AnyStage, root: Path) -> Artifact:
    """Write a stage into the empty folder `root`.

    Raises PreparationError for a module that could not be built again from what
    is written.
    """
    extra: dict[str, Any] = {}
    if isinstance(stage, TorchModel):
        files, extra = _torch_files(stage)
    else:
        coding = stage.delivery.coding if stage.delivery.packed else None
        if isinstance(stage, Program):
            files = onnx_files.program_files("model", stage.onnx, coding)
        else:
            files, extra = _service_files(stage, coding)
    for name, content in files.items():
        (root / name).write_bytes(content)
    manifest = {
        "format": ARTIFACT_FORMAT,
        "stage": stage.stage_name,
        "delivery": stage.delivery.as_json(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **extra,
    }
    (root / MANIFEST).write_text(canonical_json(manifest))
    return Artifact.open(root)


def _service_files(service: Service, coding: Coding | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    import safetensors.numpy

    files: dict[str, bytes] = {}
    for name, onnx in service.programs.items():
        files |= onnx_files.program_files(name, onnx, coding)
    if service.tables:
        files[TABLES] = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in service.tables.items()})
    return files, {"programs": list(service.programs), "service": dict(service.config)}


def _torch_files(model: TorchModel) -> tuple[dict[str, bytes], dict[str, Any]]:
    import safetensors.numpy

    from leanmark.structure import patches

    fresh = build(model.builder, model.config)
    changed = patches(fresh, model.module)
    tensors: dict[str, Array] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in model.module.state_dict().items():
        identity = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            aliases[name] = seen[identity]
            continue
        seen[identity] = name
        tensors[name] = np.ascontiguousarray(tensor.detach().cpu().numpy())
    if model.delivery.packed:
        files = {"weights.packed": codecs.pack(tensors, model.delivery.coding)}
    else:
        files = {"weights.safetensors": safetensors.numpy.save(tensors)}
    extra = {"builder": model.builder, "config": dict(model.config), "modules": changed, "aliases": aliases}
    return files, extra


def _load_torch(artifact: Artifact) -> TorchModel:
    import torch

    from leanmark.structure import apply_patches

    manifest = artifact.manifest
    module = build(manifest["builder"], manifest["config"])
    module = apply_patches(module, manifest["modules"])
    state: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in artifact.tensors().items()}
    state |= {name: state[source] for name, source in manifest["aliases"].items()}
    module.load_state_dict(state, strict=True)
    return TorchModel(module.eval(), manifest["builder"], manifest["config"], artifact.delivery)


def build(builder: str, config: Mapping[str, Any]) -> nn.Module:
    """Call a builder. Raises PreparationError if it returns no module."""
    from torch import nn

    from leanmark.modules import resolve

    module = resolve(builder)(**config)
    if not isinstance(module, nn.Module):
        raise PreparationError(f"'{builder}' returned {type(module).__name__}, not a torch module")
    return module.eval()
