"""ONNX models to networks.

``import_onnx`` reads a file (or bytes, or a ModelProto), walks its nodes, and gives a :class:`fusion.network.Network` of
layers: shapes are inferred on the way with symbolic dimensions, arithmetic on shapes is folded into them, constants
are folded, and every ONNX node gets a fate. One file per operator group in ``operators/``.
"""

from fusion.importer.errors import ModelError, Problem, UnsupportedModel
from fusion.importer.main import ImportReport, import_onnx, import_with_report

__all__ = ["ImportReport", "ModelError", "Problem", "UnsupportedModel", "import_onnx", "import_with_report"]
