"""ONNX files as an artifact holds them: without traces of the machine, weights packed if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanmark import codecs
from leanmark.arrays import Array
from leanmark.codecs import Coding

if TYPE_CHECKING:
    from onnx import ModelProto

# Below this many bytes a tensor is not worth a codebook, and stays in the program.
PACK_MINIMUM_BYTES = 1024


def packed_name(program: str) -> str:
    """The file that holds the packed weights of a program."""
    return "weights.packed" if program == "model" else f"{program}.packed"


def program_files(name: str, onnx: bytes, coding: Coding | None) -> dict[str, bytes]:
    """The files of a program by name; coding: how its weights are packed, None for as they are."""
    import onnx as library
    from onnx import TensorProto, numpy_helper

    proto = library.load_model_from_string(onnx)
    strip_provenance(proto)
    if coding is None:
        return {f"{name}.onnx": proto.SerializeToString(deterministic=True)}
    packed: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes < PACK_MINIMUM_BYTES:
            continue
        packed[tensor.name] = array
        dims, kind = list(tensor.dims), tensor.data_type
        stub = TensorProto(name=tensor.name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        location = packed_name(name)
        for key, value in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
            stub.external_data.add(key=key, value=value)
        tensor.CopyFrom(stub)
    weights = codecs.pack(packed, coding)
    return {f"{name}.onnx": proto.SerializeToString(deterministic=True), packed_name(name): weights}


def read_program(root: Path, name: str) -> ModelProto:
    """The ONNX model of these files, with all its weights."""
    import onnx
    from onnx import TensorProto, numpy_helper

    proto = onnx.load_model(root / f"{name}.onnx", load_external_data=False)
    packed = packed_weights(root, name)
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(packed[tensor.name], tensor.name))
    return proto


def packed_weights(root: Path, name: str) -> dict[str, Array]:
    """The tensors of a program's packed file, decoded; empty if there is none."""
    path = root / packed_name(name)
    return codecs.unpack(path.read_bytes()) if path.exists() else {}


def strip_provenance(proto: ModelProto) -> None:
    """Remove what exporters write about the machine: file names, line numbers, stack traces."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    _strip_graph(proto.graph)
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            _strip_node(node)


def _strip_graph(graph: Any) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: Any) -> None:
    node.doc_string = ""
    del node.metadata_props[:]
    for attribute in node.attribute:
        attribute.doc_string = ""
        for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
            _strip_graph(graph)
