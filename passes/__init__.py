"""Graph passes: each takes a model, and some a recipe, and does one thing to the graph.

Every pass runs on any valid model, leaves a valid model, and does nothing where its work is already done. What it asks
of a model, ``requires`` checks before; that its work is done, ``ensures`` checks after.
"""

from sparsecc.passes.annotate import AnnotatePass
from sparsecc.passes.clean_up import CleanUpPass
from sparsecc.passes.count_active import CountActivePass, active_count_name
from sparsecc.passes.dequantize_gather import DequantizeGatherPass
from sparsecc.passes.dequantize_matmul_nbits import DequantizeMatMulNBitsPass
from sparsecc.passes.expose_branches import ExposeBranchesPass, direction_mask_name
from sparsecc.passes.expose_thresholds import ExposeThresholdsPass, threshold_input_name
from sparsecc.passes.fold_bias import FoldBiasPass
from sparsecc.passes.fold_dequantize_linear import FoldDequantizeLinearPass
from sparsecc.passes.fold_transpose import FoldTransposePass
from sparsecc.passes.fuse_sparse_linear import FuseSparseLinearPass
from sparsecc.passes.fuse_swiglu import FuseSwiGLUPass
from sparsecc.passes.gate_feed_forward import GateFeedForwardPass
from sparsecc.passes.halve_added import HalveAddedPass
from sparsecc.passes.halve_vocabulary import HalveVocabularyPass
from sparsecc.passes.halve_weights import HalveWeightsPass
from sparsecc.passes.insert_gather_active import InsertGatherActivePass
from sparsecc.passes.insert_keep_largest import InsertKeepLargestPass
from sparsecc.passes.insert_threshold import InsertThresholdPass
from sparsecc.passes.limit_sparse_rows import LimitSparseRowsPass
from sparsecc.passes.merge_products import MergeProductsPass
from sparsecc.passes.quantize_vocabulary import PackedTensors, QuantizeVocabularyPass
from sparsecc.passes.quantize_weights import QuantizedTensors, QuantizeWeightsPass
from sparsecc.passes.replace_matmul import ReplaceMatMulPass
from sparsecc.passes.rotate_hidden_states import RotateHiddenStatesPass, value_heads
from sparsecc.passes.ship_functions import ShipFunctionsPass
from sparsecc.passes.split_low_rank import SplitLowRankPass, low_rank_branch
from sparsecc.passes.split_products import SplitProductsPass
from sparsecc.passes.tap_values import TapValuesPass
from sparsecc.passes.threshold_values import ThresholdValuesPass
from sparsecc.passes.unfuse_sparse_linear import UnfuseSparseLinearPass
from sparsecc.passes.unfuse_swiglu import UnfuseSwiGLUPass

__all__ = [
    "AnnotatePass",
    "CleanUpPass",
    "CountActivePass",
    "DequantizeGatherPass",
    "DequantizeMatMulNBitsPass",
    "ExposeBranchesPass",
    "ExposeThresholdsPass",
    "FoldBiasPass",
    "FoldDequantizeLinearPass",
    "FoldTransposePass",
    "FuseSparseLinearPass",
    "FuseSwiGLUPass",
    "GateFeedForwardPass",
    "HalveAddedPass",
    "HalveVocabularyPass",
    "HalveWeightsPass",
    "InsertGatherActivePass",
    "InsertKeepLargestPass",
    "InsertThresholdPass",
    "LimitSparseRowsPass",
    "MergeProductsPass",
    "PackedTensors",
    "QuantizeVocabularyPass",
    "QuantizeWeightsPass",
    "QuantizedTensors",
    "ReplaceMatMulPass",
    "RotateHiddenStatesPass",
    "ShipFunctionsPass",
    "SplitLowRankPass",
    "SplitProductsPass",
    "TapValuesPass",
    "ThresholdValuesPass",
    "UnfuseSparseLinearPass",
    "UnfuseSwiGLUPass",
    "active_count_name",
    "direction_mask_name",
    "low_rank_branch",
    "threshold_input_name",
    "value_heads",
]
