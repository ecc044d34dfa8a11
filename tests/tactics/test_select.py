"""Selection: the fastest correct candidate wins, and every other one is a row with its reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Pointwise
from tactics import candidates as candidates_module
from tactics import compiler, select
from tactics.cache import Entry, Timing, key_of
from tactics.candidates import Candidate, NoTacticError, SelectOptions, candidates
from tactics.compiler import cuda_include_paths
from tactics.compilers import Compilers
from tactics.select import decide_from, finish, question, start
from tactics.tactic import Buffer, Config, CpuCall, DeviceSpec, Kernel, Launch, Plan, Refusal, Tactic, Workload, config

DEVICE = DeviceSpec("cpu", "test")
TENSOR = TensorType(DataType.FLOAT, (4, 4))
WORKLOAD = Workload(Pointwise(apply("relu", Operand(0))), (TENSOR,), (TENSOR,), (False,))


class _Fake(Tactic):
    device = "cpu"
    ops = (Pointwise,)

    def __init__(self, name: str, *, configs: Sequence[Config] = ((),), refusal: str = "", workspace: int = 0,
                 reference: bool = False) -> None:  # fmt: skip
        self.id = f"cpu.{name}"  # type: ignore[misc]
        self.reference = reference  # type: ignore[misc]
        self._configs, self._refusal, self._workspace = configs, refusal, workspace

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return Refusal(self._refusal) if self._refusal else None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return self._configs

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        return Plan((CpuCall(lambda i, o, p, w: None),), self._workspace)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return ()


class _Bench:
    def __init__(self, seconds: Mapping[str, float | Exception], wrong: Sequence[str] = ()) -> None:
        self.seconds, self.wrong, self.timed = seconds, wrong, 0

    def time(self, batch: Sequence[Candidate], rounds: int) -> list[float | Exception]:
        self.timed += len(batch)
        return [self.seconds[candidate.label] for candidate in batch]

    def reference(self, candidate: Candidate) -> list[np.ndarray]:
        return []

    def check(self, candidate: Candidate, reference: Sequence[np.ndarray], tolerance: float) -> str | None:
        return "relative error 1" if candidate.label in self.wrong else None


def _run(monkeypatch: pytest.MonkeyPatch, family: Sequence[Tactic], bench: _Bench, options: SelectOptions | None = None):
    for module in (candidates_module, select):
        monkeypatch.setattr(module, "tactics", lambda device: tuple(family))
    compilers = Compilers("", 1, {})
    options = options or SelectOptions()
    search = start(WORKLOAD, DEVICE, options, compilers)
    return finish(search, {}, DEVICE, options, lambda: bench, compilers)


def test_the_fastest_wins_and_the_others_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("a"), _Fake("b"), _Fake("c", refusal="wants channels last")]
    decision = _run(monkeypatch, family, _Bench({"cpu.a": 2.0, "cpu.b": 1.0}))
    assert (decision.tactic, decision.seconds, decision.cached) == ("cpu.b", 1.0, False)
    assert [(row.tactic, row.seconds, row.reason) for row in decision.timings] == [
        ("cpu.b", 1.0, ""), ("cpu.a", 2.0, ""), ("cpu.c", None, "wants channels last"),
    ]  # fmt: skip


def test_a_wrong_result_never_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("fast"), _Fake("slow"), _Fake("plain", reference=True)]
    decision = _run(monkeypatch, family, _Bench({"cpu.fast": 1.0, "cpu.slow": 2.0}, wrong=["cpu.fast"]))
    assert decision.tactic == "cpu.slow"
    assert any("wrong result" in row.reason for row in decision.timings if row.tactic == "cpu.fast")


def test_a_wrong_result_within_the_noise_of_the_best_does_not_win_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("a"), _Fake("b"), _Fake("plain", reference=True)]
    decision = _run(monkeypatch, family, _Bench({"cpu.a": 1.001, "cpu.b": 1.0}, wrong=["cpu.a"]))
    assert decision.tactic == "cpu.b"


def test_leaders_of_different_batches_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Hot(_Bench):
        """Every batch finds the device slower than the one before."""

        heat = 1.0

        def time(self, batch: Sequence[Candidate], rounds: int) -> list[float | Exception]:
            self.heat += 0.03
            return [seconds * self.heat for seconds in super().time(batch, rounds) if not isinstance(seconds, Exception)]

    seconds = {f"cpu.a[k={n}]": 1.0 if n == select.BATCH else 1.02 if n == 0 else 2.0 for n in range(2 * select.BATCH)}
    bench = _Hot(seconds)
    decision = _run(monkeypatch, [_Fake("a", configs=[config(k=n) for n in range(2 * select.BATCH)])], bench, SelectOptions(level=5))
    assert decision.config == config(k=select.BATCH) and bench.timed == 2 * select.BATCH + 2


def test_of_equals_a_library_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    library, own = _Fake("a"), _Fake("b")
    library.source = "CUBLAS_LT"  # type: ignore[misc]
    decision = _run(monkeypatch, [library, own], _Bench({"cpu.a": 1.0, "cpu.b": 1.001}), SelectOptions(sources=("CUBLAS_LT",)))
    assert decision.tactic == "cpu.b"


def test_ties_go_to_the_smaller_id(monkeypatch: pytest.MonkeyPatch) -> None:
    decision = _run(monkeypatch, [_Fake("b"), _Fake("a")], _Bench({"cpu.a": 1.005, "cpu.b": 1.0}))
    assert decision.tactic == "cpu.a"


def test_a_crash_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _Bench({"cpu.a": RuntimeError("illegal address"), "cpu.b": 1.0})
    decision = _run(monkeypatch, [_Fake("a"), _Fake("b")], bench)
    assert decision.tactic == "cpu.b"
    assert any("illegal address" in row.reason for row in decision.timings)


def test_when_all_fail_the_error_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTacticError, match="wants int8"):
        _run(monkeypatch, [_Fake("a", refusal="wants int8")], _Bench({}))
    with pytest.raises(NoTacticError, match="boom"):
        _run(monkeypatch, [_Fake("a"), _Fake("b")], _Bench({"cpu.a": RuntimeError("boom"), "cpu.b": RuntimeError("boom")}))


def test_the_workspace_limit_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("big", workspace=1000), _Fake("small", workspace=10)]
    decision = _run(monkeypatch, family, _Bench({"cpu.small": 1.0}), SelectOptions(workspace_limit=100))
    assert decision.tactic == "cpu.small"
    assert any("1000 bytes of workspace, 100 are allowed" in row.reason for row in decision.timings)


def test_levels_bound_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [_Fake(f"t{n}", configs=[config(k=k) for k in range(30)]) for n in range(10)]
    for module in (candidates_module, select):
        monkeypatch.setattr(module, "tactics", lambda device: tuple(many))
    counts = [len(candidates(WORKLOAD, DEVICE, SelectOptions(level=level))[0]) for level in range(6)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[5] == 300


def test_level_0_times_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = _Bench({})
    decision = _run(monkeypatch, [_Fake("a"), _Fake("b")], bench, SelectOptions(level=0))
    assert bench.timed == 0
    assert math.isnan(decision.seconds)


class _Hill(_Fake):
    """Configurations k, of which ``configs`` lists 0 only; the neighbours of k are k - 1 and k + 1."""

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        k = dict(config)["k"]
        return [select_config(k=k - 1), select_config(k=k + 1)]


select_config = config


def test_level_5_goes_on_to_neighbours_while_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {f"cpu.hill[k={k}]": abs(k - 3) + 1.0 for k in range(-9, 10)}
    bench = _Bench(seconds)
    assert _run(monkeypatch, [_Hill("hill", configs=[config(k=0)])], bench, SelectOptions(level=4)).config == config(k=0)
    decision = _run(monkeypatch, [_Hill("hill", configs=[config(k=0)])], bench, SelectOptions(level=5))
    assert decision.config == config(k=3) and decision.seconds == pytest.approx(1.0)
    assert len(decision.timings) == 6, "0, its neighbours, and one more for each step: -1 to 4"
    bounded = _run(monkeypatch, [_Hill("hill", configs=[config(k=0)])], bench, SelectOptions(level=5, max_tactics=1))
    assert bounded.config == config(k=0)


def test_a_neighbour_that_computes_wrongly_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {f"cpu.hill[k={k}]": abs(k - 3) + 1.0 for k in range(-9, 10)} | {"cpu.plain": 50.0}
    family = [_Hill("hill", configs=[config(k=0)]), _Fake("plain", reference=True)]
    decision = _run(monkeypatch, family, _Bench(seconds, wrong=["cpu.hill[k=3]"]), SelectOptions(level=5))
    assert decision.config in (config(k=2), config(k=4))


def test_the_search_ends_at_the_floor_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "reachable_seconds", lambda workload, device: 0.99)
    bench = _Bench({f"cpu.a[k={k}]": 1.0 + k for k in range(20)})
    decision = _run(monkeypatch, [_Fake("a", configs=[config(k=k) for k in range(20)])], bench, SelectOptions(level=5))
    assert bench.timed == select.BATCH and decision.config == config(k=0)
    assert sum(row.reason == select.AT_FLOOR for row in decision.timings) == 20 - select.BATCH


def test_the_plainest_serves_when_what_was_chosen_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(_Fake):
        def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
            raise ValueError("no such instruction")

    decision = _run(monkeypatch, [Broken("a"), _Fake("plain", reference=True)], _Bench({}), SelectOptions(level=0))
    assert decision.tactic == "cpu.plain" and any("no such instruction" in row.reason for row in decision.timings)


def test_a_pinned_tactic_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("a"), _Fake("b")]
    assert _run(monkeypatch, family, _Bench({"cpu.b": 9.0}), SelectOptions(pinned="cpu.b")).tactic == "cpu.b"
    with pytest.raises(NoTacticError, match=r"those that can: cpu\.a, cpu\.b"):
        _run(monkeypatch, family, _Bench({}), SelectOptions(pinned="cpu.z"))


def test_a_pin_may_name_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """As reports show it, however late it would have its turn."""
    family = [_Fake("a", configs=[config(k=n) for n in range(40)]), _Fake("b")]
    bench = _Bench({"cpu.a[k=37]": 9.0})
    assert _run(monkeypatch, family, bench, SelectOptions(level=1, pinned="cpu.a[k=37]")).config == config(k=37)
    with pytest.raises(NoTacticError, match=r"those that can: cpu\.a\[k=0\], cpu\.a\[k=1\]"):
        _run(monkeypatch, family, _Bench({}), SelectOptions(pinned="cpu.a[k=40]"))


def test_a_cached_decision_is_taken_unless_its_code_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("a")]
    decision = _run(monkeypatch, family, _Bench({"cpu.a": 1.0}))
    entry = Entry({}, decision.timings)
    compilers = Compilers("", 1, {})
    hit = decide_from(entry, WORKLOAD, DEVICE, compilers)
    assert hit is not None
    assert (hit.tactic, hit.cached, hit.seconds) == ("cpu.a", True, 1.0)
    stale = Entry({}, (Timing("cpu.a", (), 1.0, "", "another"),))
    assert decide_from(stale, WORKLOAD, DEVICE, compilers) is None
    gone = Entry({}, (Timing("cpu.gone", (), 1.0),))
    assert decide_from(gone, WORKLOAD, DEVICE, compilers) is None


def test_the_plainest_tactic_serves_when_limits_refuse_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    family = [_Fake("big", workspace=1000), _Fake("plain", reference=True)]
    decision = _run(monkeypatch, family, _Bench({"cpu.plain": 1.0}), SelectOptions(workspace_limit=0))
    assert decision.tactic == "cpu.plain"
    assert any("1000 bytes of workspace, 0 are allowed" in row.reason for row in decision.timings)


def test_a_share_of_the_device_is_another_question() -> None:
    """Times under half of a GPU do not answer a build on all of it; without a share the question is what it always was."""
    whole, options = DeviceSpec("cuda", "X", multiprocessors=132), SelectOptions()
    asked = [
        question(WORKLOAD, device, options, {})
        for device in (whole, replace(whole, share="MPS 50%"), replace(whole, multiprocessors=64, share="64 of 132 SMs"))
    ]
    assert len({key_of(one) for one in asked}) == 3
    assert asked[0]["device"] == ["cuda", "X", "", 132]


@pytest.mark.skipif(not cuda_include_paths(), reason="needs the CUDA headers")
def test_a_process_compiles_a_kernel_once() -> None:
    """Builds without a timing cache (level 0) share kernels, too: what the compiler gave for a source is kept."""
    compiler.compile_cubin.cache_clear()
    kernel = Kernel("", "once", (("WHAT", "1"),), 'extern "C" __global__ void once(int* p) { *p = WHAT; }')
    plan = Plan((Launch(kernel, (1, 1, 1), (1, 1, 1), (Buffer("output"),)),))
    for _ in range(2):
        build = Compilers("sm_80", 1, {})
        (image,) = build.images(plan).values()
        build.close()
        assert image.startswith(b"\x7fELF")
    assert (compiler.compile_cubin.cache_info().misses, compiler.compile_cubin.cache_info().hits) == (1, 1)
