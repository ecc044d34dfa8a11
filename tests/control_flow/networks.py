"""Networks in which the host steps in, as text, and how the tests here build and check them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.parser import parse_model

from runtime.engine import Engine
from runtime.graph import compare_replay
from tests.models import onnxruntime_outputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Log

QUICK = BuildConfig(optimization_level=0)


def parse(text: str, opset: int = 18) -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def made(model: onnx.ModelProto, cpu, tmp_path, config: BuildConfig = QUICK) -> Engine:
    """The engine of ``model`` after a trip through a file."""
    path = tmp_path / "e.engine"
    build(model.SerializeToString(), config, cpu, log=Log(to_stderr=True)).save(path)
    return Engine.load(path)


def check(model: onnx.ModelProto, cpu, tmp_path, *cases: dict[str, np.ndarray], config: BuildConfig = QUICK):
    """Every case equals ONNX Runtime, plainly (twice) and through captured segments; returns a context that has run."""
    engine = made(model, cpu, tmp_path, config)
    context = engine.create_execution_context(cpu)
    for inputs in (*cases, *cases[:1]):
        expected = onnxruntime_outputs(model, inputs)
        for found in (context.execute(inputs), context.execute(inputs)):
            for name, array in expected.items():
                assert found[name].dtype == array.dtype and context.get_tensor_shape(name) == array.shape
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
        replay = compare_replay(context, inputs)
        assert replay.differing == ()
    return context


MASKED = """g (float[n, 4] x) => (float[k, 4] y) {
    zero = Constant<value_float = 0.0>()
    s = ReduceMax<keepdims = 0>(x, axes)
    m = Greater(s, zero) p = NonZero(m) q = Transpose<perm = [1, 0]>(p) z = GatherND(x, q) y = Relu(z)
}"""


def masked() -> onnx.ModelProto:
    return parse(MASKED.replace("g (float[n, 4] x) => (float[k, 4] y) {", "g (float[n, 4] x) => (float[k, 4] y) <int64[1] axes = {1}> {"))


N8 = BuildConfig(optimization_level=0, min_shapes={"x": (1, 4)}, opt_shapes={"x": (4, 4)}, max_shapes={"x": (64, 4)})


BRANCH = """g (float[2, 3] x, float[3] w) => (float[a, 3] y) <float zero = {0.0}> {
    s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) r = Relu(x)
    z = If(c) <
        then_branch = t () => (float[2, 3] a) { e = Exp(x) a = Mul(e, w) },
        else_branch = f () => (float[4, 3] b) { d = Add(r, w) b = Concat<axis = 0>(d, x) }>
    y = Neg(z)
}"""


LOOP = """g (float[2] x, int64 n, float[2] w) => (float[2] last, float[k, 2] all) <bool yes = {1}> {
    last, all = Loop(n, yes, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {
        d = Identity(c) f = Cast<to = 1>(i) u = Mul(s, w) t = Add(u, f) o = Neg(t) }>
}"""


GROWING = """g (float[1, 2] x, int64 n) => (float[k, 2] y) <bool yes = {1}> {
    z = Loop(n, yes, x) <body = b (int64 i, bool c, float[j, 2] s) => (bool d, float[m, 2] t) {
        d = Identity(c) e = Add(s, x) t = Concat<axis = 0>(s, e) }>
    y = Relu(z)
}"""


SCAN = """g (float[3] s, float[5, 3] x) => (float[3] last, float[3, 5] all) {
    last, all = Scan(s, x) <num_scan_inputs = 1, scan_input_directions = [1], scan_output_axes = [1], scan_output_directions = [1],
        body = b (float[3] a, float[3] v) => (float[3] t, float[3] o) { t = Add(a, v) o = Mul(t, v) }>
}"""


DEEP = """g (float[8] x, int64 n, bool p) => (float[k] y, float[m, 8] rows, float last) <bool yes = {1}, float half = {0.5}, int64[1] all = {-1}> {
    y, rows = Loop(n, yes, x) <body = b (int64 i, bool c, float[j] s) => (bool d, float[q] t, float[8] o) {
        d = Identity(c)
        g = Greater(s, half)
        t = If(p) <
            then_branch = tt () => (float[a] u) { u = Compress(s, g) },
            else_branch = ff () => (float[e] v) {
                z = NonZero(g) f = Reshape(z, all) w = Gather(s, f) v = Concat<axis = 0>(w, x) }>
        f2 = Cast<to = 1>(i) o = Add(x, f2) }>
    zero = Constant<value_float = 0.0>()
    last = Loop(n, yes, zero) <body = h (int64 i, bool c, float s) => (bool d, float t) {
        d = Identity(c)
        inner = Loop(i, c, s) <body = hh (int64 j, bool cc, float ss) => (bool dd, float tt) {
            dd = Identity(cc) one = Constant<value_float = 1.0>() tt = Add(ss, one) }>
        t = Add(inner, half) }>
}"""


FORKED = """g (float[n, 8] x, int64 steps) => (float[k, 8] y, float[n, 8] s) <bool yes = {1}, int64[1] axes = {1}, float zero = {0.0}> {
    a = Sin(x) b = Softmax(a) c = Cos(x) d = Softmax(c) e = Add(b, d)
    m = ReduceMax<keepdims = 0>(x, axes) g = Greater(m, zero) p = NonZero(g) q = Transpose<perm = [1, 0]>(p)
    v = GatherND(e, q) f = Softmax(v) h = Sin(v) i = Softmax(h) o = Transpose(i) r = MatMul(f, o) y = MatMul(r, v)
    s = Loop(steps, yes, e) <body = l (int64 j, bool c1, float[n, 8] t) => (bool c2, float[n, 8] u) {
        c2 = Identity(c1) t1 = Sin(t) t2 = Softmax(t1) t3 = Cos(t) t4 = Softmax(t3) t5 = Transpose(t4) t6 = MatMul(t2, t5) u = MatMul(t6, t) }>
}"""


FORKED_SHAPES = BuildConfig(optimization_level=0, min_shapes={"x": (1, 8)}, opt_shapes={"x": (16, 8)}, max_shapes={"x": (64, 8)})


ROUNDS = """g (float[n, 4] x, bool c, int64 t) => (float[n, 4] y, float[5, n, 4] all, float[k, 4] z)
    <bool yes = {1}, int64[1] axes = {1}, int64 five = {5}, float zero = {0.0}> {
    h = Exp(x)
    picked = If(c) <
        then_branch = a1 () => (float[a, 4] u) { m = ReduceMax<keepdims = 0>(x, axes) g = Greater(m, zero) p = NonZero(g) q = Transpose<perm = [1, 0]>(p)
            v = GatherND(h, q) w = Softmax(v) u = Neg(w) },
        else_branch = a2 () => (float[b, 4] o) { o = Identity(h) }>
    more = If(c) <
        then_branch = b1 () => (float[d, 4] u2) { u2 = Identity(picked) },
        else_branch = b2 () => (float[e, 4] o2) { m2 = ReduceMax<keepdims = 0>(picked, axes) g2 = Greater(m2, zero) p2 = NonZero(g2)
            q2 = Transpose<perm = [1, 0]>(p2) v2 = GatherND(picked, q2) r2 = GatherND(h, q2) w2 = Add(v2, r2) o2 = Concat<axis = 0>(w2, w2) }>
    y = Loop(t, yes, h) <body = l (int64 i, bool c1, float[n, 4] s) => (bool c2, float[n, 4] next) {
        c2 = Identity(c1) ms = ReduceMax<keepdims = 0>(s, axes) gs = Greater(ms, zero) ps = NonZero(gs) qs = Transpose<perm = [1, 0]>(ps)
        vs = GatherND(s, qs) mean = ReduceMean<keepdims = 0>(vs)
        turned = Loop(i, c1, s) <body = ll (int64 j, bool c3, float[n, 4] ss) => (bool c4, float[n, 4] tt) {
            c4 = Identity(c3) f = Cast<to = 1>(j) t1 = Add(ss, f) tt = Sin(t1) }>
        t2 = Add(turned, mean) next = Tanh(t2) }>
    last, all = Loop(five, yes, x) <body = r (int64 k1, bool c5, float[n, 4] s2) => (bool c6, float[n, 4] t3, float[n, 4] slice) {
        c6 = Identity(c5) t3 = Sin(s2) slice = Cos(s2) }>
    e2 = Softmax(more) zz = Concat<axis = 0>(e2, last) z = Neg(zz)
}"""
