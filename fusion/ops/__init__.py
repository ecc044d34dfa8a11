"""The vocabulary of layers: one frozen dataclass per operation, with its shape rule and its NumPy meaning."""

from fusion.ops.attention import Attention
from fusion.ops.cache import CacheAppend
from fusion.ops.control import If, Loop
from fusion.ops.convolution import Convolution, Deconvolution
from fusion.ops.convolution_pooling import ConvolutionPooling
from fusion.ops.custom import Custom
from fusion.ops.determinant import Determinant, Inverse
from fusion.ops.fill import Fill, Range, ShapeValue
from fusion.ops.fold import Fold
from fusion.ops.gather import Gather, GatherElements, GatherND, ScatterElements, ScatterND
from fusion.ops.linear_attention import LinearAttention
from fusion.ops.matmul import MatrixMultiply
from fusion.ops.normalization import GroupNormalization, LocalResponseNormalization, Normalization, SumNormalization
from fusion.ops.order import ArgReduce, Cumulative, TopK
from fusion.ops.packed_matmul import PackedMatrixMultiply
from fusion.ops.planar_convolution import PlanarConvolution
from fusion.ops.pointwise import Pointwise
from fusion.ops.pooling import Pooling
from fusion.ops.pooling_indices import PoolingIndices
from fusion.ops.prologue_product import PrologueProduct
from fusion.ops.random import Random
from fusion.ops.recurrent import Recurrence
from fusion.ops.reduce import Reduce
from fusion.ops.reformat import Reformat
from fusion.ops.reinterpret import Reinterpret
from fusion.ops.resize import Resize
from fusion.ops.roi import RoiAlign, RoiPool
from fusion.ops.rotary import RotaryEmbedding
from fusion.ops.sampling import DeformableColumns, GridSample
from fusion.ops.select import NonMaxSuppression, NonZero, Unique
from fusion.ops.separable_convolution import SeparableConvolution
from fusion.ops.shuffle import Concatenation, Expand, Padding, Shuffle, Slice, Tile
from fusion.ops.softmax import Softmax

OPS = {
    op.__name__: op
    for op in (
        ArgReduce, Attention, CacheAppend, Concatenation, Convolution, ConvolutionPooling, Cumulative, Deconvolution, Expand, Fill, Gather, GatherElements,
        GatherND, GroupNormalization, If, LocalResponseNormalization, Loop, MatrixMultiply, NonMaxSuppression, NonZero,
        Normalization, PackedMatrixMultiply, Padding, PlanarConvolution, Pointwise, Pooling, PrologueProduct, Random, Range, Recurrence, Reduce, Reformat, Resize, RotaryEmbedding, ScatterElements,
        ScatterND, SeparableConvolution, ShapeValue, Shuffle, Slice, Softmax, SumNormalization, Tile, TopK, Unique,
        # rare
        Custom, DeformableColumns, Determinant, Fold, GridSample, Inverse, LinearAttention, PoolingIndices, Reinterpret, RoiAlign, RoiPool,
    )
}  # fmt: skip

__all__ = ["OPS", *OPS]
