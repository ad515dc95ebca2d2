"""onnxruntime's own operators in numpy, so that onnx's reference evaluator can run a whole decoder."""

import numpy as np
from onnx.reference.op_run import OpRun


class SimplifiedLayerNormalization(OpRun):
    op_domain = ""

    def _run(self, hidden, scale, epsilon=None, **_options):
        return (_rms_norm(hidden, scale, epsilon),)


class SkipSimplifiedLayerNormalization(OpRun):
    op_domain = "com.microsoft"

    def _run(self, hidden, skip, scale, epsilon=None):
        total = hidden + skip
        unused = np.zeros(0, np.float32)
        return _rms_norm(total, scale, epsilon), unused, unused, total


class GroupQueryAttention(OpRun):
    """Query [1, S, H D], key and value [1, S, G D], a cache [1, G, P, D], rotary embedding in two halves."""

    op_domain = "com.microsoft"

    def _run(self, query, key, value, past_key, past_value, *inputs, num_heads=None, kv_num_heads=None, **_options):
        _lengths, _total, cosines, sines = inputs[:4]
        length, past, size = query.shape[1], past_key.shape[2], past_key.shape[3]
        query, key, value = (rows.reshape(length, -1, size).transpose(1, 0, 2) for rows in (query, key, value))
        positions = np.arange(past, past + length)
        query = _rotate(query, cosines[positions], sines[positions])
        key = np.concatenate([past_key[0], _rotate(key, cosines[positions], sines[positions])], axis=1)
        value = np.concatenate([past_value[0], value], axis=1)
        repeats = num_heads // kv_num_heads
        scores = query @ np.repeat(key, repeats, axis=0).transpose(0, 2, 1) / np.sqrt(np.float32(size))
        scores[:, positions[:, None] < np.arange(past + length)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = (weights @ np.repeat(value, repeats, axis=0)).transpose(1, 0, 2).reshape(1, length, -1)
        return attended.astype(np.float32), key[None], value[None]


def _rms_norm(hidden, scale, epsilon):
    return hidden / np.sqrt(np.mean(np.square(hidden), axis=-1, keepdims=True) + np.float32(epsilon)) * scale


def _rotate(heads, cosines, sines):
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)
