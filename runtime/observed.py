"""What of an execution context shows its inferences layer by layer: the profiler, and the listener to debug tensors."""

from __future__ import annotations

from typing import Any

from runtime.debugging import Listener, Shown, check_written
from runtime.device import Device, Stream
from runtime.engine import Engine
from runtime.exclusive import Guarded, exclusive
from runtime.loaded import LoadedEngine, load_engine
from runtime.recorder import Observer, Recorder, own_seconds, span_cost
from runtime.watch import Both, Watch


class Observed(Guarded):
    """An engine on a device, and who looks at its layers as they run.

    Attributes:
        enqueue_emits_profile: an enqueue waits and reports to the profiler; else :meth:`report_to_profiler` does.
    """

    profile: int  # the optimization profile in use

    def __init__(self, engine: Engine, device: Device) -> None:
        super().__init__(device)
        self.engine = engine
        with device.current():
            self.loaded: LoadedEngine = load_engine(engine, device)
        self.enqueue_emits_profile = True
        self._profiler: Any = None
        self._recorder: Recorder | None = None  # of layer times, for the profiler
        self._listener: Listener | None = None
        self._shown: tuple[str, ...] = ()  # debug tensors that the listener wants

    # --- layer times -------------------------------------------------------------------------------------------------

    @property
    def profiler(self) -> Any:
        """An object with TensorRT's ``report_layer_time(layer_name, ms)``, or None. While there is one, enqueues put events around every
        layer, and wait at their end to report (see ``enqueue_emits_profile``); captured ones do not."""
        return self._profiler

    @profiler.setter
    @exclusive
    def profiler(self, value: Any) -> None:
        self._profiler = value
        self._recorder = None if value is None else Recorder(self.device)

    @exclusive
    def report_to_profiler(self) -> bool:
        """Report the last enqueue's times, when ``enqueue_emits_profile`` is off; waits for the device. Whether there was something to report."""
        spans = self._recorder.collect() if self._recorder is not None else {}
        for name, seconds in own_seconds(self.engine, spans, span_cost([spans]), self.profile) if spans else ():
            if seconds is not None:
                self._profiler.report_layer_time(name, seconds * 1e3)
        return bool(spans)

    def _report(self, stream: Stream) -> None:
        if self._recorder is not None and self.enqueue_emits_profile:
            stream.synchronize()
            self.report_to_profiler()

    def _watch(self, stream: Stream) -> Watch | None:
        """Who looks at an enqueue: the profiler, and who shows debug tensors."""
        shower = self._shower()
        if self._recorder is None:
            return shower
        self._recorder.collect()  # times that nobody asked for
        self._recorder.empty(stream)
        observer = Observer(self._recorder)
        return observer if shower is None else Both(observer, shower)

    # --- debug tensors -----------------------------------------------------------------------------------------------

    @exclusive
    def set_debug_listener(self, listener: Listener | None) -> None:
        """Show debug tensors to ``listener``: a function of (name, array), which gets a copy on the host, or an object with TensorRT's
        ``process_debug_tensor(address, location, dtype, shape, name, stream)``. None takes it away.

        An enqueue then waits for the stream after each shown tensor. Enqueues that are captured show nothing. Until
        :meth:`set_tensor_debug_state` says otherwise, nothing is shown.
        """
        self._listener = listener

    @exclusive
    def set_tensor_debug_state(self, name: str, state: bool) -> None:
        """Whether tensor ``name`` is shown to the debug listener. Any tensor that a layer of the engine writes can be, inside of branches and loops too
        (there in every iteration, as ``name[0]``, ``name[1]`` ...).

        Raises:
            ValueError: no layer writes it: it was fused away (build with --markDebug=name), or there is no such tensor.
        """
        check_written(self.engine.network, name)
        others = tuple(one for one in self._shown if one != name)
        self._shown = (*others, name) if state else others

    @exclusive
    def set_all_tensors_debug_state(self, state: bool) -> None:
        """The same for all debug tensors that the build declared."""
        self._shown = self.engine.debug_tensors if state else ()

    def get_debug_state(self, name: str) -> bool:
        """Whether tensor ``name`` is shown to the debug listener."""
        return name in self._shown

    def _shower(self) -> Shown | None:
        """Who shows debug tensors, if any are to be shown."""
        if self._listener is None or not self._shown:
            return None
        return Shown(self._listener, self._shown, self.loaded, self.profile)
